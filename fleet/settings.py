"""What the operator of a fleet chooses by the environment."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from finetuner.paths import ROOT
from fleet.lease import EXPIRY_SECONDS
from fleet.records import Limits


@dataclass(frozen=True)
class Settings:
    """The folder is one that every node reads and writes at the same path."""

    folder: Path = ROOT / "weights" / "fleet"
    database_url: str = ""  # SQLite in the folder where it is empty
    replicas: tuple[int, int] = (1, 1)  # of drawing: as few and as many as there may be
    trainings: int = 1  # at once
    gpus: float | None = None  # each replica's and each training's; None: 1 where the cluster has any
    limits: Limits = field(default_factory=Limits)
    lease_seconds: float = EXPIRY_SECONDS  # without a sign of life until another process takes a job, or the records, over

    @property
    def records_url(self) -> str:
        return self.database_url or f"sqlite:///{self.folder / 'records.sqlite3'}"

    @property
    def trainings_folder(self) -> Path:
        return self.folder / "trainings"

    @property
    def results_folder(self) -> Path:
        return self.folder / "results"

    @property
    def fetched_folder(self) -> Path:
        return self.folder / "fetched"

    @classmethod
    def open(cls) -> Settings:
        """Those of ``FLEET_FOLDER``, ``DATABASE_URL``, ``DRAWING_REPLICAS``, ``TRAININGS_AT_ONCE``, ``GPUS_PER_WORKER``,
        ``QUEUE_LIMIT``, ``TRAININGS_PER_KEY`` and ``DRAWINGS_PER_KEY``.

        Raises:
            ValueError: one of them is no such number.
        """
        gpus = os.environ.get("GPUS_PER_WORKER")
        if gpus and not re.fullmatch(r"\d+(\.\d+)?", gpus):
            raise ValueError(f"GPUS_PER_WORKER: {gpus!r} is no number. Set 1, a share such as 0.5, or 0 to work on CPUs.")
        return cls(
            folder=ROOT / os.path.expanduser(os.environ.get("FLEET_FOLDER") or "weights/fleet"),
            database_url=os.environ.get("DATABASE_URL", ""),
            replicas=_replicas(),
            trainings=_count("TRAININGS_AT_ONCE", 1),
            gpus=float(gpus) if gpus else None,
            limits=Limits(
                queue=_count("QUEUE_LIMIT", Limits.queue),
                trainings=_count("TRAININGS_PER_KEY", Limits.trainings),
                drawings=_count("DRAWINGS_PER_KEY", Limits.drawings),
            ),
        )


def _count(name: str, default: int) -> int:
    said = os.environ.get(name) or str(default)
    if not said.isdecimal() or int(said) < 1:
        raise ValueError(f"{name}: {said!r} is not a number from 1. Set one, such as {default}.")
    return int(said)


def _replicas() -> tuple[int, int]:
    said = os.environ.get("DRAWING_REPLICAS") or "1"
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", said)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= least <= most:
        raise ValueError(f"DRAWING_REPLICAS: {said!r} is neither a number from 1 nor a range. Set one, such as 2 or 1-4.")
    return least, most
