"""The place for one adapter in the base that serves all of them, made once; finetunes are copied in and out of it.

Every linear that a LoRA can change computes W x + b + B A x, where B carries the strength. Nothing is merged, so that no
strength leaves a trace in W, and nothing is added, removed or branched on, so that nothing is compiled again. In a batch every
row may have an adapter and a strength of its own, as Punica (Chen et al. 2023) gives it to the requests of a language model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
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
    """A linear of the base, with its share of the slot: W x + b + B A x.

    A [rank, in] and s B^T [rank, out] are the whole batch's, or each row's own: [rows, rank, in] and [rows, rank, out].
    """

    def __init__(self, linear: nn.Linear, a: torch.Tensor, b: torch.Tensor):
        super().__init__()
        self.linear = linear  # quantised, or streamed from the CPU, as it may be
        self.put(a, b)

    def put(self, a: torch.Tensor, b: torch.Tensor) -> None:
        self.a, self.b = nn.Parameter(a, requires_grad=False), nn.Parameter(b, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        # In place: rounds once in bfloat16, and of a zero B^T it leaves y bit for bit as it is.
        if self.a.ndim == 3:  # an x of [rows, in], as modulation takes it, has no axis of tokens
            rows, _, inputs = self.a.shape
            y.view(rows, -1, y.shape[-1]).baddbmm_(torch.bmm(x.reshape(rows, -1, inputs), self.a.mT), self.b)
            return y
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
        self.places: list[SlotLinear] = []
        for (name, linear), a, b in zip(self.linears.items(), *self._shares(self.a, self.b), strict=True):
            self.places.append(SlotLinear(linear, a, b))
            transformer.set_submodule(name, self.places[-1])

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

    @contextmanager
    @torch.no_grad()
    def holding_rows(self, rows: list[tuple[PackedAdapter, float]]) -> Iterator[None]:
        """With an adapter at a strength for each row of the batch, which must have as many. What the slot holds otherwise is
        back in it after."""
        a, b = (side.new_zeros(len(rows), *side.shape) for side in (self.a, self.b))
        for (adapter, strength), own_a, own_b in zip(rows, a, b, strict=True):
            if strength != 0:  # as in `load`
                _fill_a(own_a, adapter)
                _fill_b(own_b, adapter, strength)
        held = [(place.a, place.b) for place in self.places]
        try:
            for place, own_a, own_b in zip(self.places, *self._shares(a, b), strict=True):
                place.put(own_a, own_b)
            yield
        finally:
            for place, (own_a, own_b) in zip(self.places, held, strict=True):
                place.a, place.b = own_a, own_b

    def _shares(self, a: torch.Tensor, b: torch.Tensor) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        return a.split(self.inputs, dim=-1), b.split(self.outputs, dim=-1)

    @torch.no_grad()
    def load(self, adapter: PackedAdapter, strength: float) -> None:
        """Put an adapter in, at a strength. At 0 there is nothing to put in, not even what is infinite in a damaged LoRA."""
        if strength == 0:
            return self.clear()
        held, self.loaded = self.loaded, None  # until all of it is in: a half-filled slot must not pass for any finetune
        if held is None or held[0] is not adapter:
            _fill_a(self.a, adapter)
        if held != (adapter, strength):
            _fill_b(self.b, adapter, strength)
        self.loaded = (adapter, strength)

    @torch.no_grad()
    def clear(self) -> None:
        self.loaded = None
        self.a.zero_()
        self.b.zero_()


def _fill_a(place: torch.Tensor, adapter: PackedAdapter) -> None:
    _fill(place, adapter.a.to(place.device, non_blocking=True))


def _fill_b(place: torch.Tensor, adapter: PackedAdapter, strength: float) -> None:
    _fill(place, strength * adapter.b.to(place.device, non_blocking=True).float())  # float32: s B is rounded once


def _fill(place: torch.Tensor, rows: torch.Tensor) -> None:
    rank, width = rows.shape
    place[:rank, :width] = rows
    place[:rank, width:] = 0
    place[rank:] = 0
