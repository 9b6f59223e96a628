"""The device that everything runs on: the first GPU, else the CPU."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# Memory that is not ours to fill. All are allowances, not measurements: CUDA's context, its kernels and cuBLAS's workspaces
# take about half a GiB; the caching allocator hands out 2 MiB blocks and splits them, and pictures of several sizes (some
# 1 % larger than their square) leave gaps that fit nothing; and no card has yet shown what compiled blocks take at their peak.
CONTEXT_BYTES = 3 << 28
FRAGMENTATION = 0.05
COMPILED = 0.05


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """As people know it: the model of the GPU, or of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())  # x86; others do not say
    return found[1] if found else platform.machine()


def device_memory_bytes() -> int:
    """All of the device's memory: what is free at the moment would make two runs of a job differ."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def weight_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32  # most CPUs emulate bf16


@contextmanager
def default_dtype_kept() -> Iterator[None]:
    """Around what loads a model. diffusers sets torch's default dtype to the model's meanwhile, and sets it back only where
    nothing is raised (0.42, ``ModelMixin.from_pretrained``): after a cancel in those seconds, all that the process computes
    next would be in bfloat16."""
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def switch(variable: str) -> bool | None:
    """What a variable of the environment says, 1 or 0; None where it says nothing.

    Raises:
        ValueError: it is neither.
    """
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{variable}: {value!r} is neither 0 nor 1.")
    return value == "1" if value else None


def usable_bytes(memory_bytes: int, compiled: bool = False) -> int:
    """What of a device's memory tensors may take; ``compiled``: where the blocks are trained compiled."""
    return int(memory_bytes * (1 - FRAGMENTATION - COMPILED * compiled)) - CONTEXT_BYTES


def device_for(tensor_bytes: int) -> int:
    """The memory of a device on which tensors may take so much."""
    return int((tensor_bytes + CONTEXT_BYTES) / (1 - FRAGMENTATION)) + 1
