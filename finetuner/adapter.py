"""The LoRA on the transformer that is being trained: add it, set its strength, save it. Served ones go into a `slot.Slot`.

The adapter is never merged. peft adds scaling * B A x to each layer's output, so that strength s is exactly s times the
change, and 0 is exactly the base.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

log = logging.getLogger(__name__)

ADAPTER = "default"
WEIGHTS_NAME = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
MODULATION = ("norm.linear", "norm1.linear", "norm1_context.linear")


def block_linears(transformer: FluxTransformer2DModel) -> dict[str, nn.Linear]:
    """The linears inside the double and single blocks, modulation included, by their full names (494 in FLUX.1)."""
    blocks = ("transformer_blocks.", "single_transformer_blocks.")
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(blocks)
    }


def target_names(transformer: FluxTransformer2DModel) -> list[str]:
    """Full names of the linears inside the double and single blocks, modulation left out (418 in FLUX.1).

    Modulation acts on every token alike: trained on a few images, it moves every picture's colours. With it, or with attention
    alone, a finetune of flux-emoji comes out alike (benchmarks/RESULTS.md). Full names, since peft's suffix match on
    ``proj_out`` would also catch the transformer's own output layer.
    """
    return [name for name in block_linears(transformer) if not name.endswith(MODULATION)]


def add_adapter(transformer: FluxTransformer2DModel, rank: int, seed: int) -> None:
    """Add a LoRA that changes nothing yet: A random, B zero, alpha = rank, float32 whatever the base's dtype."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=target_names(transformer), init_lora_weights=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer.add_adapter(config, adapter_name=ADAPTER)
    for parameter in trainable_weights(transformer).values():
        parameter.data = parameter.data.float()


def trainable_weights(transformer: FluxTransformer2DModel) -> dict[str, nn.Parameter]:
    """What `add_adapter` made trainable: the LoRA's matrices, by their full names."""
    return {name: parameter for name, parameter in transformer.named_parameters() if parameter.requires_grad}


def lora_layers(transformer: FluxTransformer2DModel) -> dict[str, LoraLayer]:
    return {name: module for name, module in transformer.named_modules() if isinstance(module, LoraLayer)}


def set_strength(transformer: FluxTransformer2DModel, strength: float) -> None:
    """Scale the adapter's change by ``strength``. peft's own ways to do so reload or compound."""
    for layer in lora_layers(transformer).values():
        layer.scaling[ADAPTER] = strength


def adapter_weights(transformer: FluxTransformer2DModel) -> dict[str, torch.Tensor]:
    """The LoRA's tensors on the CPU, by their names in the saved file (without diffusers' prefix)."""
    return {
        name: t.detach().cpu().contiguous() for name, t in get_peft_model_state_dict(transformer, adapter_name=ADAPTER).items()
    }


def load_weights(transformer: FluxTransformer2DModel, weights: dict[str, torch.Tensor]) -> None:
    """Put a LoRA of the same rank, such as `adapter_weights` gave, into what `add_adapter` made."""
    places = get_peft_model_state_dict(transformer, adapter_name=ADAPTER)
    for name, tensor in weights.items():
        places[name].copy_(tensor)


def save_adapter(weights: dict[str, torch.Tensor], rank: int, folder: Path) -> Path:
    """Write the LoRA so that plain ``FluxPipeline.load_lora_weights`` reads it, unmodified.

    float16: its 11 bits of mantissa hold LoRA weights (all far below 65504) better than bfloat16's 8.
    """
    half = {name: tensor.half() for name, tensor in weights.items()}
    targets = sorted({name.rsplit(".lora_", 1)[0] for name in weights})
    metadata = {"r": rank, "lora_alpha": rank, "target_modules": targets}
    FluxPipeline.save_lora_weights(folder, transformer_lora_layers=half, transformer_lora_adapter_metadata=metadata)
    return folder / WEIGHTS_NAME


def read_adapter(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved LoRA, by the names that `adapter_weights` gives them."""
    return {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
