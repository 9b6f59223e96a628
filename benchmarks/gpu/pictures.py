"""A step of a prediction on random weights: eager, compiled, with fp8 linears, with the slot and without."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.adapters import random_adapter
from benchmarks.gpu.steps import RANK, random_batch, timed
from finetuner.bases import device, target_names
from finetuner.bases.warm import sharing_copy
from finetuner.serving import Slot
from finetuner.training.compiling import compiled_blocks
from finetuner.training.flow import predict_velocity

SIZE_MULTIPLE = 16
WARM_UP, REPEATS = 2, 5
LARGEST = torch.finfo(torch.float8_e4m3fn).max
# The last two change what is in the slot, and run no forward.
PREDICTIONS = ("bare", "slot", "compiled bare", "compiled slot", "fp8 compiled bare", "fp8 compiled slot", "strength", "switch")


@dataclass(frozen=True)
class Prediction:
    """One forward of the transformer for a picture of ``side`` pixels, or what the slot takes between two pictures."""

    side: int
    prediction: str  # one of PREDICTIONS


class Fp8Linear(nn.Module):
    """A linear by fp8 products, a scale for each row of W and for each token, and its share of the slot beside it in the
    transformer's own dtype (the recipe of diffusers-torchao)."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        own = getattr(linear, "linear", linear)  # of the base, where the slot is around it
        weight, scale = by_row(own.weight.detach())
        self.weight, self.scale = nn.Parameter(weight, requires_grad=False), nn.Parameter(scale.t(), requires_grad=False)
        self.bias = own.bias
        self.a, self.b = getattr(linear, "a", None), getattr(linear, "b", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2)
        quantised, scale = by_row(rows)
        y = torch._scaled_mm(
            quantised, self.weight.t(), scale_a=scale, scale_b=self.scale, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        y = y.to(x.dtype) if self.bias is None else y.to(x.dtype) + self.bias
        if self.a is not None:
            y = torch.addmm(y, F.linear(rows, self.a), self.b)
        return y.unflatten(0, x.shape[:-1])


def by_row(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In fp8, with a float32 scale [rows, 1]."""
    scale = (matrix.abs().amax(dim=1, keepdim=True).float() / LARGEST).clamp_min(1e-12)
    return (matrix.float() / scale).to(torch.float8_e4m3fn), scale


@torch.no_grad()
def measure_prediction(transformer: nn.Module, case: Prediction, text_tokens: int) -> dict:
    """Seconds of it (the median), of the first time, and the peak's bytes (of a GPU alone)."""
    words = case.prediction.split()
    used = sharing_copy(transformer)
    if not {"slot", "strength", "switch"}.isdisjoint(words):
        slot = Slot(used, RANK)
        adapters = [slot.pack(random_adapter(sharing_copy(transformer), RANK, seed, (0.02, 0.02))) for seed in (1, 2)]
        slot.load(adapters[0], 1.0)
        if case.prediction == "strength":
            strengths = (1 + number / 1000 for number in itertools.count(1))
            return timed(lambda: slot.load(adapters[0], next(strengths)), WARM_UP, REPEATS)
        if case.prediction == "switch":
            turns = itertools.cycle(reversed(adapters))
            return timed(lambda: slot.load(next(turns), 1.0), WARM_UP, REPEATS)
    if "fp8" in words:
        for name in target_names(transformer):
            used.set_submodule(name, Fp8Linear(used.get_submodule(name)))
    batch = random_batch(used, (case.side // SIZE_MULTIPLE) ** 2, text_tokens, 1)
    sigmas = torch.full((1,), 0.5, device=device())
    with compiled_blocks(used) if "compiled" in words else nullcontext():
        return timed(lambda: predict_velocity(used, batch.latents, sigmas, batch, 3.0), WARM_UP, REPEATS)
