"""The state of a running job on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Protocol

import torch

from finetuner.store import is_sealed

log = logging.getLogger(__name__)

EVERY_SECONDS = 30  # of work that a kill can cost; seconds, since a step takes from 0.1 s to 5 s


class Stateful(Protocol):
    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class Checkpoint:
    """One file in a folder of the job's own, replaced atomically. Only the job that wrote it reads it.

    As a context manager it removes the folder when the job has ended: finished, or cancelled by the user (Cog cancels with a
    BaseException of its own). After a failure or an interruption the folder stays, so that the same job can go on, or publish
    the result that it has in ``result``.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "checkpoint.pt"
        self.result = folder / "result"
        self.last_save = time.monotonic()

    def __enter__(self) -> Checkpoint:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process dies
        except BlockingIOError:
            self.lock.close()
            raise RuntimeError(
                "This same job, with the same archive and inputs, is running already. Wait for its result."
            ) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        interrupted = kind is not None and issubclass(kind, (Exception, KeyboardInterrupt, SystemExit))
        if not interrupted or not (self.path.exists() or is_sealed(self.result)):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()

    def restore(self, **parts: Stateful) -> None:
        """Load the parts' states, where there are any."""
        if not self.path.exists():
            return
        states = torch.load(self.path, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(states[name])
        log.info("Going on from the checkpoint of an earlier run of this job")

    def save_when_due(self, **parts: Stateful) -> None:
        if time.monotonic() - self.last_save < EVERY_SECONDS:
            return
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save({name: part.state_dict() for name, part in parts.items()}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)
        self.last_save = time.monotonic()
