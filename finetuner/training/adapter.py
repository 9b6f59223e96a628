"""The LoRA on the transformer that is being trained: add it, set its strength, take its tensors. Served ones go into a slot.

The adapter is never merged. Each linear's output gets s B A x added, so that strength s is exactly s times the change, and 0 is
exactly the base.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from finetuner.bases import target_names


class LoraLinear(nn.Module):
    """A frozen linear of the base, in any precision, and a LoRA beside it: W x + b + s B A x.

    A [rank, in] and B [out, rank] are float32 and are cast to the dtype of x in each forward, so that they run where the base's
    products run. peft (tuners/lora/layer.py) casts x to float32 instead: a copy a linear, kept for backward, and products
    off a GPU's tensor cores. Here x is kept as it came, once for all the linears that read it.
    """

    def __init__(self, base_layer: nn.Module, rank: int):
        super().__init__()
        self.base_layer = base_layer
        self.strength: float | torch.Tensor = 1.0
        place = {"device": base_layer.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Parameter(torch.empty(rank, base_layer.in_features, **place))
        self.lora_B = nn.Parameter(torch.zeros(base_layer.out_features, rank, **place))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # peft's, and Microsoft's loralib's

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base_layer(x)
        alpha = self.strength
        if not isinstance(alpha, torch.Tensor) and alpha == 0:
            return y
        down = F.linear(x, self.lora_A.to(x.dtype))
        if isinstance(alpha, torch.Tensor):
            down, alpha = down * alpha.to(x.dtype).view(-1, 1, 1), 1.0
        down = down.flatten(0, -2)
        # One product with y as its addend rounds once in bfloat16, and leaves y bit for bit as it is where B or s is zero.
        return torch.addmm(y.flatten(0, -2), down, self.lora_B.to(x.dtype).T, alpha=alpha).view_as(y)


def add_adapter(transformer: nn.Module, rank: int, seed: int, names: Iterable[str] | None = None) -> None:
    """Add a LoRA that changes nothing yet: A random, B zero, alpha = rank.

    Args:
        names: of the linears that get it; all that a finetune changes where none are named.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name in names or target_names(transformer):
            transformer.set_submodule(name, LoraLinear(transformer.get_submodule(name), rank))


def lora_layers(transformer: nn.Module) -> dict[str, LoraLinear]:
    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLinear)}


def trainable_weights(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """What `add_adapter` made trainable: the LoRA's matrices, by their names in the saved file (without diffusers' prefix)."""
    weights = {}
    for name, layer in lora_layers(transformer).items():
        weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"] = layer.lora_A, layer.lora_B
    return weights


def set_strength(transformer: nn.Module, strength: float | torch.Tensor) -> None:
    """Scale the adapter's change by ``strength``, a number or a tensor: one for all, [], or one a row of a batch, [B]."""
    for layer in lora_layers(transformer).values():
        layer.strength = strength


def adapter_state_dict(transformer: nn.Module) -> dict[str, torch.Tensor]:
    """The LoRA's tensors on the CPU, by their names in the saved file."""
    return {name: parameter.detach().cpu().contiguous() for name, parameter in trainable_weights(transformer).items()}


@torch.no_grad()
def load_adapter_state_dict(transformer: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put a LoRA of the same rank, such as `adapter_state_dict` gave, into what `add_adapter` made."""
    places = trainable_weights(transformer)
    for name, tensor in weights.items():
        places[name].copy_(tensor)
