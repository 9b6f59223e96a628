"""Who is at work in a folder that nodes share. A lock of the kernel would stay with a node that is lost; a lease runs out.

The holder writes a beat into its file every few seconds, and who waits takes the lease over once the beats have stopped for
long: measured by the waiting node's own clock, so that no clocks are compared. Each lease is a file of its own number, made
with O_EXCL, so that of several who wait one gets it, and the holder of the highest number is the one that counts: a fencing
token (Kleppmann, "How to do distributed locking", 2016).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

BEAT_SECONDS = 2.0
EXPIRY_SECONDS = 12.0  # five beats may be late: a shared file system stalls for seconds
PREFIX = "lease."
FREE = "free"


class LeaseLost(RuntimeError):
    """Another process took the lease over; this one has to stop."""


class Lease:
    """Waits until the folder is free, and holds it until `close`."""

    def __init__(self, folder: Path, expiry: float = EXPIRY_SECONDS):
        self._folder, self._expiry = folder, expiry
        self._stopped = threading.Event()
        while (number := self._claim()) is None:
            pass
        self._number = number
        self._path = folder / f"{PREFIX}{number}"
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def require_held(self) -> None:
        """Raises LeaseLost where the lease is another's by now."""
        if _highest(self._folder) != self._number:
            raise LeaseLost(f"{self._folder} is another process's by now, which goes on with the job.")

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):  # a job that is over clears its folder
            _overwrite(self._path, FREE)  # the file stays: numbers only rise

    def _claim(self) -> int | None:
        """The number of the lease that is ours; None where another process was faster."""
        held = _highest(self._folder)
        if held:
            self._wait_until_free(self._folder / f"{PREFIX}{held}")
        ours = self._folder / f"{PREFIX}{held + 1}"
        try:
            with ours.open("x") as file:
                file.write("0")
        except FileExistsError:
            return None
        if _highest(self._folder) != held + 1:  # others came and went since we looked
            ours.unlink(missing_ok=True)
            return None
        (self._folder / f"{PREFIX}{held}").unlink(missing_ok=True)
        return held + 1

    def _wait_until_free(self, path: Path) -> None:
        beat, seen = _read(path), time.monotonic()
        while beat not in (None, FREE) and time.monotonic() - seen < self._expiry:
            time.sleep(min(BEAT_SECONDS, self._expiry) / 4)
            if (now := _read(path)) != beat:
                beat, seen = now, time.monotonic()

    def _beat(self) -> None:
        number = 0
        while not self._stopped.wait(min(BEAT_SECONDS, self._expiry / 5)):
            number += 1
            try:
                _overwrite(self._path, str(number))
            except OSError:
                continue  # a shared file system may be away for a moment; require_held tells whether all is lost


def _highest(folder: Path) -> int:
    return max((int(path.name.removeprefix(PREFIX)) for path in folder.glob(f"{PREFIX}*")), default=0)


def _overwrite(path: Path, text: str) -> None:
    """Not made again where it was cleared away."""
    with path.open("r+") as file:
        file.write(text)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> str | None:
    """Opened each time: a network file system gives what is there now only to who opens the file."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
