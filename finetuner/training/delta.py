"""Full fine-tuning as a difference: every block linear computes with W + delta, W frozen, delta trained from zero.

In bf16 a direct update of W at a learning rate of 1e-5 is rounded away (bf16 holds 8 bits, W is about 0.05); a delta of its
own starts at zero, where bf16 is fine. It is also exactly what the extraction needs.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from finetuner.bases import target_names


class Delta(nn.Module):
    """Parametrizes a weight W, float [out, in], as W + s delta."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.delta = nn.Parameter(torch.zeros_like(weight))
        self.strength: float | torch.Tensor = 1.0

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if isinstance(self.strength, torch.Tensor):
            return weight + self.strength * self.delta
        return torch.add(weight, self.delta, alpha=self.strength) if self.strength else weight


def add_deltas(transformer: nn.Module) -> None:
    """Make every linear that a LoRA can express trainable through a delta; the rest stays frozen."""
    for name in target_names(transformer):
        linear = transformer.get_submodule(name)
        parametrize.register_parametrization(linear, "weight", Delta(linear.weight), unsafe=True)  # unsafe: shape is kept


def deltas(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """Linear's name -> its delta."""
    suffix = ".parametrizations.weight.0"
    return {
        name.removesuffix(suffix): module.delta for name, module in transformer.named_modules() if isinstance(module, Delta)
    }


def set_strength(transformer: nn.Module, strength: float | torch.Tensor) -> None:
    """Scale all deltas by ``strength``, a number or a tensor, []; at 0 the transformer is the base."""
    for module in transformer.modules():
        if isinstance(module, Delta):
            module.strength = strength


def remove_deltas(transformer: nn.Module) -> dict[str, torch.Tensor]:
    """Give the transformer its own weights back; returns the deltas."""
    found = {name: delta.detach() for name, delta in deltas(transformer).items()}
    for name in found:
        linear = transformer.get_submodule(name)
        weight = linear.parametrizations.weight.original
        del linear.parametrizations
        linear.__class__ = nn.Linear
        linear.weight = weight
    return found
