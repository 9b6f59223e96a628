"""Other starts of a LoRA than a random A and a zero B."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from finetuner.training import adapter
from finetuner.training.optim import LoraOptimizer
from finetuner.training.recipe import Recipe


def orthogonal(transformer: nn.Module, weights: dict[str, nn.Parameter], recipe: Recipe) -> LoraOptimizer:
    """The rows of A orthogonal to one another, as long as they are at our start."""
    for layer in adapter.lora_layers(transformer).values():
        length = layer.lora_A.detach().norm(dim=1).mean()
        nn.init.orthogonal_(layer.lora_A)
        with torch.no_grad():
            layer.lora_A.mul_(length)
    return LoraOptimizer(weights, recipe)


class PissaOptimizer(LoraOptimizer):
    """PiSSA (Meng et al. 2024): half of the rank begins as the principal part of the base's weight, and the other half takes
    that part off, and stays. Together they are a LoRA of the rank that was asked for, which begins with no change."""

    def __init__(self, transformer: nn.Module, weights: dict[str, nn.Parameter], recipe: Recipe):
        half = recipe.rank // 2
        for layer in adapter.lora_layers(transformer).values():
            left, values, right = torch.linalg.svd(layer.base_layer.weight.detach().float(), full_matrices=False)
            up, down = left[:, :half] * values[:half].sqrt(), values[:half].sqrt()[:, None] * right[:half]
            with torch.no_grad():
                layer.lora_A.copy_(torch.cat([down, down]))
                layer.lora_B.copy_(torch.cat([up, -up], dim=1))
            layer.lora_A.register_hook(lambda gradient: gradient * (torch.arange(len(gradient)) < half)[:, None])
            layer.lora_B.register_hook(lambda gradient: gradient * (torch.arange(gradient.shape[1]) < half))
        super().__init__(weights, recipe)
        self.half = half
        self.kept = {name: parameter.detach().clone() for name, parameter in weights.items()}

    @torch.no_grad()
    def step(self) -> float:
        """Weight decay may not shrink the half that stays."""
        norm = super().step()
        for name, parameter in self.parameters.items():
            stays = (slice(self.half, None),) if ".lora_A." in name else (slice(None), slice(self.half, None))
            parameter[stays] = self.kept[name][stays]
        return norm


STARTS: dict[str, Callable[[nn.Module, dict[str, nn.Parameter], Recipe], LoraOptimizer]] = {
    "orthogonal": orthogonal,
    "pissa": PissaOptimizer,
}
