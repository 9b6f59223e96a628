"""What a train server keeps of a base between two jobs, so that the second does not read it again (FLUX.1-dev: 34 GB)."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import nn

log = logging.getLogger(__name__)

GIB = 1 << 30
SHARE = 0.5  # of the memory that is free: the rest is for what a job needs beside its base

Part = TypeVar("Part", nn.Module, DiffusionPipeline)


class WarmParts:
    """The parts of the base that was used last, as they were read, in the host's memory.

    A job gets copies that share their tensors. What it adds or moves to a GPU is its own, and no job writes into a frozen
    weight, so that the next one finds the bits that were read.
    """

    def __init__(self) -> None:
        self.fingerprint = ""
        self.parts: dict[str, nn.Module | DiffusionPipeline] = {}

    def part(self, fingerprint: str, name: str, load: Callable[[], Part]) -> Part:
        """A part of the base that the fingerprint tells; read where it is not here, and kept where there is room."""
        if fingerprint != self.fingerprint:
            self.parts.clear()
            self.fingerprint = fingerprint
        if name not in self.parts:
            part = load()
            if (size := sum(tensor.nbytes for tensor in _tensors(part))) > SHARE * available_bytes():
                log.info("The %s of %.1f GiB does not stay in memory for the next job: too little is free", name, size / GIB)
                return part
            self.parts[name] = part
        return sharing_copy(self.parts[name])


def sharing_copy(part: Part) -> Part:
    """A copy of modules, with parameters of its own on the same memory. Tokenizers and the like are shared."""
    memo: dict[int, object] = {}
    for tensor in _tensors(part):
        alias = tensor.detach()
        memo[id(tensor)] = nn.Parameter(alias, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else alias
    if isinstance(part, DiffusionPipeline):
        others = (component for component in part.components.values() if not isinstance(component, nn.Module))
        memo |= {id(component): component for component in others}
    return copy.deepcopy(part, memo)


def _tensors(part: nn.Module | DiffusionPipeline) -> list[torch.Tensor]:
    parts = part.components.values() if isinstance(part, DiffusionPipeline) else [part]
    modules = [module for module in parts if isinstance(module, nn.Module)]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def available_bytes(root: Path = Path("/")) -> int:
    """The host's memory that programs can still get: the machine's, or what the container is allowed."""
    machine = 1024 * _number(root / "proc/meminfo", "MemAvailable:")
    group = root / "sys/fs/cgroup"  # of cgroup v2, as seen from inside of a container
    limit = group / "memory.max"
    if not limit.is_file() or limit.read_text().strip() == "max":
        return machine
    used = _number(group / "memory.current", "") - _number(group / "memory.stat", "inactive_file")  # files it can let go of
    return min(machine, int(limit.read_text()) - used)


def _number(path: Path, name: str) -> int:
    found = re.search(rf"^{name}\s*(\d+)", path.read_text(), re.MULTILINE)
    assert found, f"{path} tells {name} (proc(5), cgroups(7))"
    return int(found[1])
