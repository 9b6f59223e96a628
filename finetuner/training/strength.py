"""How strongly what is being trained is applied, a LoRA or the deltas of a full fine-tune: each step at a strength of its own.

A finetune that is trained at strength 1 alone breaks soon beyond it: people turn `finetune_strength` up to 2, and see noise. So
what is learned is asked for at other strengths, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from finetuner.bases import device
from finetuner.training.adapter import LoraLinear
from finetuner.training.delta import Delta
from finetuner.training.recipe import Recipe

GOLDEN_RATIO = 0.6180339887498949  # its multiples' fractions lie evenly in 0..1, wherever they begin and end


def strength_of(step: int, recipe: Recipe) -> torch.Tensor:
    """The strength that a step is trained at, float32 []: a tensor, since compiled blocks would take each number for new."""
    lowest, highest = recipe.strengths
    return torch.tensor(lowest + (highest - lowest) * ((step + 1) * GOLDEN_RATIO % 1), device=device())


@contextmanager
def at_strength(transformer: nn.Module, strength: float | torch.Tensor) -> Iterator[None]:
    """Scale the change that the LoRA, or the deltas, make: by ``strength`` inside, by what it was behind it; 0 is the base."""
    trained = [module for module in transformer.modules() if isinstance(module, LoraLinear | Delta)]
    before = trained[0].strength
    _scale(trained, strength)
    try:
        yield
    finally:
        _scale(trained, before)


def _scale(trained: list[LoraLinear | Delta], strength: float | torch.Tensor) -> None:
    for layer in trained:
        layer.strength = strength
