"""The state of a job on disk, so that one that was killed, cancelled or given up goes on where it was, and publishes once."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import torch

from finetuner.store import is_sealed

log = logging.getLogger(__name__)

EVERY_SECONDS = 30  # of work that a kill can cost; seconds, since a step takes from 0.1 s to 5 s
KEPT_SECONDS = 24 * 60 * 60  # a client that went away comes back within a day, or starts another job


class Stateful(Protocol):
    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


class Lock(Protocol):
    def close(self) -> None: ...


class Checkpoint:
    """A folder of the job's own: its checkpoint, the result that it has in ``result``, and what it published.

    As a context manager it holds the folder alone. At the end a job that was published leaves its record, and any other what
    it can go on from, whatever ended it: a failure, a kill, or a cancel, which a client does by going away. `remove_old` clears
    both away after a day.
    """

    def __init__(self, folder: Path, lock: Callable[[Path], Lock | None] | None = None):
        """``lock`` takes the folder for this process alone, as `lock_folder` does; another, where machines share the folder."""
        self.folder = folder
        self._take = lock or lock_folder
        self.path = folder / "checkpoint.pt"
        self.result = folder / "result"
        self.record = folder / "published.json"
        self.last_save = time.monotonic()

    def __enter__(self) -> Checkpoint:
        lock: Lock | None = None
        while lock is None:  # the folder may be cleared away as we come
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock = self._take(self.folder)
            except BlockingIOError:
                raise RuntimeError(
                    "This same job, with the same archive and inputs, is running already. Wait for its result."
                ) from None
        self.lock = lock
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if self.record.exists():
            self._clear_all_but_the_record()
        elif kind is None or not (self.path.exists() or is_sealed(self.result)):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()

    def restore(self, **parts: Stateful) -> None:
        """Load the parts' states, where there are any."""
        if not self.path.exists():
            return
        states = torch.load(self.path, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(states[name])

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

    def published(self) -> str | None:
        """The id of the finetune that an earlier run of this job published."""
        try:
            return json.loads(self.record.read_text())["finetune_id"]
        except (OSError, ValueError, KeyError):
            return None

    def note_published(self, finetune_id: str) -> None:
        """Whoever sends the request again gets this id. A kill before it costs nothing: the sealed result has it, too."""
        partial = self.record.with_suffix(".partial")
        with partial.open("w") as file:
            json.dump({"finetune_id": finetune_id}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.record)

    def forget_published(self) -> None:
        """As its finetune is gone, the job is to make another."""
        self._clear_all_but_the_record()
        self.record.unlink(missing_ok=True)

    def _clear_all_but_the_record(self) -> None:
        for path in self.folder.iterdir():
            if path.name in (self.record.name, "lock"):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def remove_old(jobs: Path) -> None:
    """Remove the folders of jobs that nothing has been written to for a day, and that no process is at work in.

    A result that waits to be published stays: it is a whole training, and its job was told that it is kept.
    """
    for folder in jobs.glob("*"):
        try:
            if time.time() - folder.stat().st_mtime < KEPT_SECONDS:
                continue
            lock = lock_folder(folder)
        except OSError:  # at work there, or gone already
            continue
        if lock is None:
            continue
        with lock:
            waits = is_sealed(folder / "result") and not (folder / "published.json").exists()
            if not waits:
                shutil.rmtree(folder, ignore_errors=True)
                log.info("Removed what a job of more than a day ago left: %s", folder.name)


def lock_folder(folder: Path) -> IO | None:
    """The folder's lock, held; the kernel lets go of it when the process dies. None where the folder was taken away meanwhile.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        lock = (folder / "lock").open("w")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(lock.name).st_ino == os.fstat(lock.fileno()).st_ino:
            return lock
    except FileNotFoundError:
        pass
    except BaseException:
        lock.close()
        raise
    lock.close()
    return None
