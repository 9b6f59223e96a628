"""Finetunes on this machine's disk, within a budget of bytes, the least recently used out first.

Several processes may share the folder. What a process has open it holds by a shared lock on the entry's folder, and only an
entry that nobody holds is evicted; the kernel lets go of the locks of a process that dies.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

PARTIAL = ".partial-"  # an entry in the making: .partial-<the bytes it will have>-<random>


class Hold:
    """A lock on a folder, let go of with the last reference to it."""

    def __init__(self, descriptor: int):
        weakref.finalize(self, os.close, descriptor)


class Cache:
    """Named folders. An entry is there whole or not at all."""

    def __init__(self, folder: Path, budget: int):
        self.folder = folder
        self.budget = budget  # bytes

    def open(self, name: str) -> tuple[Path, Hold] | None:
        """The entry, held, and now the last to be evicted; None where there is none."""
        path = self.folder / name
        descriptor = _lock(path, fcntl.LOCK_SH)
        if descriptor is None:
            return None
        os.utime(path)
        return path, Hold(descriptor)

    @contextmanager
    def filling(self, name: str, size: int) -> Iterator[Path]:
        """A folder to put an entry of ``size`` bytes into, room made for it; at the end it is the entry."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{PARTIAL}{size}-{uuid.uuid4()}"
        with self._alone():
            self._make_room(size)
            partial.mkdir()
            descriptor = os.open(partial, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield partial
            try:
                partial.rename(self.folder / name)
            except OSError:
                if not (self.folder / name).is_dir():  # else another process was here first, with the same
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(descriptor)

    def drop(self, name: str) -> None:
        """Take an entry out that turned out damaged, whoever has it open."""
        with self._alone():
            self._remove(self.folder / name)

    def _make_room(self, size: int) -> None:
        """Evict until ``size`` bytes more fit into the budget, or all that is left is in use."""
        partials = list(self.folder.glob(f"{PARTIAL}*"))  # before the entries: one that becomes an entry must count
        used = size
        for partial in partials:
            if not self._remove_if_free(partial):  # a free one is of a process that died
                used += int(partial.name.removeprefix(PARTIAL).partition("-")[0])
        entries = sorted(self.folder.glob("[!.]*"), key=lambda entry: entry.stat().st_mtime)
        sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in entries}
        used += sum(sizes.values())
        for entry in entries:
            if used > self.budget and self._remove_if_free(entry):
                used -= sizes[entry]
        if used > self.budget:
            log.warning("FINETUNE_CACHE_BYTES: what is in use takes %d bytes, more than the %d allowed", used, self.budget)

    def _remove_if_free(self, path: Path) -> bool:
        descriptor = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is None:
            return False
        self._remove(path)  # with the lock on: whoever waits for it finds the folder gone
        os.close(descriptor)
        return True

    def _remove(self, path: Path) -> None:
        aside = self.folder / f"{PARTIAL}0-{uuid.uuid4()}"
        path.rename(aside)
        shutil.rmtree(aside)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time makes room: two would each count on the bytes that the other is about to fill."""
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _lock(path: Path, kind: int) -> int | None:
    """Open and lock a folder; None where there is none, or it was taken away while we waited."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, kind)
        if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
