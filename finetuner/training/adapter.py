"""The LoRA on the transformer that is being trained: add it, set its strength, take its tensors. Served ones go into a slot.

The adapter is never merged. peft adds scaling * B A x to each layer's output, so that strength s is exactly s times the
change, and 0 is exactly the base.
"""

from __future__ import annotations

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import nn

from finetuner.bases import target_names

ADAPTER = "default"


def add_adapter(transformer: nn.Module, rank: int, seed: int) -> None:
    """Add a LoRA that changes nothing yet: A random, B zero, alpha = rank, float32 whatever the base's dtype."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=target_names(transformer), init_lora_weights=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer.add_adapter(config, adapter_name=ADAPTER)
    for parameter in trainable_weights(transformer).values():
        parameter.data = parameter.data.float()


def trainable_weights(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """What `add_adapter` made trainable: the LoRA's matrices, by their full names."""
    return {name: parameter for name, parameter in transformer.named_parameters() if parameter.requires_grad}


def lora_layers(transformer: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}


def set_strength(transformer: nn.Module, strength: float) -> None:
    """Scale the adapter's change by ``strength``. peft's own ways to do so reload or compound."""
    for layer in lora_layers(transformer).values():
        layer.scaling[ADAPTER] = strength


def adapter_state_dict(transformer: nn.Module) -> dict[str, torch.Tensor]:
    """The LoRA's tensors on the CPU, by their names in the saved file (without diffusers' prefix)."""
    return {
        name: t.detach().cpu().contiguous() for name, t in get_peft_model_state_dict(transformer, adapter_name=ADAPTER).items()
    }


def load_adapter_state_dict(transformer: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put a LoRA of the same rank, such as `adapter_state_dict` gave, into what `add_adapter` made."""
    places = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    for name, tensor in weights.items():
        places[name].copy_(tensor)
