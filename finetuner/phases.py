"""What each phase of a piece of work took: seconds, and of a job the most memory, too."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

log = logging.getLogger(__name__)

GIB = 1 << 30


@dataclass
class Seconds:
    """By the phase's name, in the order in which they ran."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note what the phase took."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


@dataclass
class Phases(Seconds):
    """The phases of a job, which its log and its manifest tell of."""

    peak_memory_bytes: dict[str, int] = field(default_factory=dict)  # of the GPU where there is one, else of this process

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name the phase in the log and note what it took."""
        _forget_peak()
        with super().phase(name):
            yield
        self.peak_memory_bytes[name] = _peak()
        log.info("Phase %s: %.1f s, at most %.2f GiB", name, self.seconds[name], self.peak_memory_bytes[name] / GIB)

    def facts(self) -> dict:
        """What the manifest says of the phases that are over."""
        return {
            "seconds": {name: round(spent, 2) for name, spent in self.seconds.items()},
            "peak_memory_bytes": dict(self.peak_memory_bytes),
        }


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # 5: the high-water mark starts again from what is resident now (proc(5))


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux tells VmHWM of every process (proc(5))"
    return int(found[1]) * 1024
