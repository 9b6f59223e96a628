"""The place for one adapter in the base that serves all of them, made once; finetunes are copied in and out of it.

Every linear that a LoRA can change computes W x + b + B A x, where B carries the strength. Nothing is merged, so that no
strength leaves a trace in W, and nothing is added, removed or branched on, so that nothing is compiled again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from finetuner.bases import block_linears, target_names


@dataclass(frozen=True, eq=False)
class PackedAdapter:
    """A LoRA as the slot takes it: of the slot's linears, in its order and up to the last that the LoRA changes, every A
    [rank, inputs] and every B^T [rank, outputs], side by side. On the CPU, in the dtype it was saved in."""

    a: torch.Tensor
    b: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes


class SlotLinear(nn.Module):
    """A linear of the base, with its share of the slot: W x + b + B A x."""

    def __init__(self, linear: nn.Linear, a: torch.Tensor, b: torch.Tensor):
        super().__init__()
        self.linear = linear  # quantised, or streamed from the CPU, as it may be
        self.a = nn.Parameter(a, requires_grad=False)  # [rank, in]
        self.b = nn.Parameter(b, requires_grad=False)  # [rank, out]: s B^T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        # In place: rounds once in bfloat16, and of a zero B^T it leaves y bit for bit as it is.
        y.flatten(0, -2).addmm_(F.linear(x, self.a).flatten(0, -2), self.b)
        return y


class Slot:
    """Room for a LoRA of up to ``rank`` in every linear of the transformer's blocks, in the transformer's dtype: also in the
    modulation, which our own training leaves alone and most others change.

    All A are views of one tensor, and so are all B^T: a finetune is switched by two copies, a strength by one, and a smaller
    rank leaves rows of zeros, which add nothing.

    Args:
        transformer: its blocks' linears may be quantised, or streamed.
        device: where it computes; needed where its weights lie elsewhere in between.
    """

    def __init__(self, transformer: nn.Module, rank: int, device: torch.device | None = None):
        targets, every = target_names(transformer), block_linears(transformer)
        # Targets first: modulation, which our own finetunes leave alone, then takes no room in their PackedAdapter.
        self.linears: dict[str, nn.Linear] = {name: every[name] for name in dict.fromkeys([*targets, *every])}
        self.rank = rank
        self.loaded: tuple[PackedAdapter, float] | None = None  # with its strength
        self.inputs = [linear.in_features for linear in self.linears.values()]
        self.outputs = [linear.out_features for linear in self.linears.values()]
        place = {"device": device or transformer.device, "dtype": transformer.dtype}  # a quantised weight's own are bytes
        self.a, self.b = torch.zeros(rank, sum(self.inputs), **place), torch.zeros(rank, sum(self.outputs), **place)
        places = zip(self.a.split(self.inputs, dim=1), self.b.split(self.outputs, dim=1), strict=True)
        for (name, linear), (a, b) in zip(self.linears.items(), places, strict=True):
            transformer.set_submodule(name, SlotLinear(linear, a, b))

    def pack(self, weights: dict[str, torch.Tensor]) -> PackedAdapter:
        """Lay out what `loras.load_lora` gives. Targets that the LoRA leaves out stay as the base has them.

        Raises:
            ValueError: the weights do not fit the transformer.
        """
        rank = self._check(weights)
        dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in weights.values()))
        names = list(self.linears)
        while f"{names[-1]}.lora_A.weight" not in weights:
            names.pop()
        columns = self.inputs[: len(names)], self.outputs[: len(names)]
        sides = [torch.zeros(rank, sum(widths), dtype=dtype) for widths in columns]
        for side, matrix, widths in zip(sides, "AB", columns, strict=True):
            for name, place in zip(names, side.split(widths, dim=1), strict=True):
                if (tensor := weights.get(f"{name}.lora_{matrix}.weight")) is not None:
                    rows = tensor if matrix == "A" else tensor.T
                    place[: len(rows)] = rows
        if self.a.is_cuda:  # a copy from pinned memory is several times as fast
            return PackedAdapter(*(side.pin_memory() for side in sides))
        return PackedAdapter(*sides)

    def _check(self, weights: dict[str, torch.Tensor]) -> int:
        """Refuse weights that do not fit; returns their rank, the highest where they have several."""
        known = {f"{name}.lora_{matrix}.weight" for name in self.linears for matrix in "AB"}
        if unknown := weights.keys() - known:
            raise ValueError(
                f"the LoRA has {len(unknown)} tensors that this base has no place for, for example {min(unknown)!r}."
            )
        ranks = []
        for name, linear in self.linears.items():
            a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
            if a not in weights and b not in weights:
                continue
            for matrix in (a, b):
                if matrix not in weights:
                    raise ValueError(f"{matrix} is missing.")
            rank = min(weights[a].shape[0], self.rank)
            for matrix, wanted in ((a, (rank, linear.in_features)), (b, (linear.out_features, rank))):
                if weights[matrix].shape != wanted:
                    raise ValueError(
                        f"{matrix} has shape {tuple(weights[matrix].shape)}; this base takes {wanted}, and a rank of up to"
                        f" {self.rank}."
                    )
            ranks.append(rank)
        return max(ranks)

    @contextmanager
    def holding(self, adapter: PackedAdapter, strength: float) -> Iterator[None]:
        """With the adapter in the slot. It stays there for the next request, unless this one fails or is cancelled (Cog does
        that by a BaseException of its own): then nothing is in it, and nothing half done."""
        try:
            self.load(adapter, strength)
            yield
        except BaseException:
            self.clear()
            raise

    @torch.no_grad()
    def load(self, adapter: PackedAdapter, strength: float) -> None:
        """Put an adapter in, at a strength. At 0 there is nothing to put in, not even what is infinite in a damaged LoRA."""
        if strength == 0:
            return self.clear()
        held, self.loaded = self.loaded, None  # until all of it is in: a half-filled slot must not pass for any finetune
        if held is None or held[0] is not adapter:
            _fill(self.a, adapter.a.to(self.a.device, non_blocking=True))
        if held != (adapter, strength):
            _fill(self.b, strength * adapter.b.to(self.b.device, non_blocking=True).float())  # float32: s B is rounded once
        self.loaded = (adapter, strength)

    @torch.no_grad()
    def clear(self) -> None:
        self.loaded = None
        self.a.zero_()
        self.b.zero_()


def _fill(place: torch.Tensor, rows: torch.Tensor) -> None:
    rank, width = rows.shape
    place[:rank, :width] = rows
    place[:rank, width:] = 0
    place[rank:] = 0
