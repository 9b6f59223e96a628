"""Adapters of random weights: what serving costs does not depend on what was learned."""

from __future__ import annotations

import torch
from torch import nn

from finetuner.bases import target_names


def random_adapter(
    transformer: nn.Module, rank: int, seed: int = 0, deviations: tuple[float, float] = (0.1, 0.05)
) -> dict[str, torch.Tensor]:
    """A LoRA that changes every linear, for a transformer that has none yet, by its names in a file.

    Args:
        deviations: standard deviations of A's and of B's values; the default changes every picture.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in target_names(transformer):
        linear = transformer.get_submodule(name)
        weights[f"{name}.lora_A.weight"] = deviations[0] * torch.randn(rank, linear.in_features, generator=generator)
        weights[f"{name}.lora_B.weight"] = deviations[1] * torch.randn(linear.out_features, rank, generator=generator)
    return weights
