"""A training as a Ray task. It may run more than once, on one node after another, and makes one finetune all the same."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetuner.finetune import finetune
from finetuner.requests import FinetuneRequest
from finetuner.store import StoreError
from finetuner.training import Checkpoint
from fleet.lease import EXPIRY_SECONDS, Lease
from fleet.requests import from_json

LOG_BYTES = 200_000  # of the end: what a client can read through


@dataclass(frozen=True)
class TrainingFolder:
    """A job's folder, which every node reads and writes."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "job"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def figures(self) -> Path:
        return self.folder / "figures.json"

    def read(self) -> dict:
        """What is new for the job's record: logs, and where a step is done progress and metrics."""
        news: dict = {}
        with contextlib.suppress(OSError):
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - LOG_BYTES))
                news["logs"] = file.read().decode(errors="replace").replace("\r", "\n").replace("\0", "")
            figures = json.loads(self.figures.read_text())
            news["progress"] = figures.pop("progress")
            news["metrics"] = figures
        return news

    def write(self, figures: dict) -> None:
        partial = self.figures.with_suffix(".partial")
        partial.write_text(json.dumps(figures))
        partial.replace(self.figures)


def train(finetune_id: str, inputs: dict, folder: str, expiry: float = EXPIRY_SECONDS) -> dict:
    """The task: the finetune's id and metrics, or ``error``, a sentence; with ``again`` where the training is done and the
    store cannot be written, so that another try only publishes."""
    here = TrainingFolder(Path(folder))
    here.folder.mkdir(parents=True, exist_ok=True)
    leases: list[Lease] = []

    def lock(path: Path) -> Lease:
        leases.append(Lease(path, expiry))
        return leases[-1]

    with _logging_to(here.log):
        try:
            request = from_json(FinetuneRequest, inputs)
            if not request.input_images.is_file():
                raise ValueError("input_images: the archive is not on the server any more. Send it again.")

            def progress(values: dict[str, float], step: int) -> None:
                leases[-1].require_held()
                here.write({"progress": step / request.training_steps, "step": step, **values})

            published = finetune(request, finetune_id, Checkpoint(here.checkpoint, lock), progress)
        except (ValueError, FloatingPointError) as error:
            return {"error": str(error)}
        except StoreError as error:
            return {"error": str(error.__cause__ or error), "again": True}
    told = {
        f"{phase}_{what}": amount
        for what in ("seconds", "peak_memory_bytes")
        for phase, amount in published.manifest[what].items()
    }
    return {"finetune_id": published.id, "metrics": told}


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """The library's log and its bars, into a file: what clients see as the job's logs."""
    library = logging.getLogger("finetuner")
    library.setLevel(logging.INFO)
    with path.open("a", buffering=1) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(message)s"))
        library.addHandler(handler)
        try:
            with contextlib.redirect_stderr(file):
                yield
        finally:
            library.removeHandler(handler)
            file.flush()
            os.fsync(file.fileno())
