"""A finetune's LoRA on disk: one safetensors file in diffusers' keys, which plain diffusers loads unmodified."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file

from finetuner.bases import Family

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
PREFIX = "transformer."  # diffusers' own, before the names of the transformer's linears

Weights = dict[str, torch.Tensor]  # <linear>.lora_A.weight [rank, in] and <linear>.lora_B.weight [out, rank]; alpha = rank


def save_lora(weights: Weights, folder: Path, family: Family) -> Path:
    """Write the LoRA so that plain ``load_lora_weights`` of the family's pipeline reads it, unmodified: the same tensors give
    the same bytes."""
    rank = min(next(iter(weights.values())).shape)
    targets = sorted({name.rpartition(".lora_")[0] for name in weights})
    metadata = {"r": rank, "lora_alpha": rank, "target_modules": targets}
    family.PIPELINE.save_lora_weights(folder, transformer_lora_layers=weights, transformer_lora_adapter_metadata=metadata)
    sort_metadata(folder / WEIGHTS_NAME)
    return folder / WEIGHTS_NAME


def in_half(weights: Weights) -> Weights:
    """In float16, as they are published: its 11 bits of mantissa hold LoRA weights (all far below 65504) better than
    bfloat16's 8."""
    return {name: tensor.half() for name, tensor in weights.items()}


def load_lora(path: Path) -> Weights:
    """The tensors of a saved LoRA, by the transformer's names."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in load_file(path).items()}


def sort_metadata(path: Path) -> None:
    """safetensors writes the metadata of its header in another order each time; in the header's own length, in place."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        data = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(data.ljust(length))
