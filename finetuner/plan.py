"""What a training step needs in memory, and the cheapest way to run it on the device that is here.

A closed formula, so that a job decides in a moment. Its constants are counts of what the step keeps for backward, checked
against a trace of the step itself on fake tensors: `script/plan --check` prints how far the two are apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from finetuner.adapter import target_names

GIB = 1 << 30

# Bytes per weight of a quantised linear. int8: a byte, and a float32 scale per row (counted apart). nf4: half a byte, a byte
# per 64 weights as their scale, and a float32 per 256 of those: 0.516 as measured on bitsandbytes' double-quantised weights.
QUANTISED = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}

# Activations that a block keeps for backward, in widths per token: LayerNorm's, RMSNorm's and GELU's inputs, and attention's
# q, k, v and output. A double block's two streams have a LayerNorm before the MLP too.
KEPT = {"double": 12, "single": 11}
# What its linears keep to make their weights' gradients. Those of one input share it, unless each makes a copy of its own:
# a float32 LoRA on a bfloat16 base does (peft casts its input), and the copies are the largest part of what is kept.
INPUTS = {"double": 7, "single": 6}
COPIED_INPUTS = {"double": 9, "single": 9}


@dataclass(frozen=True)
class Shape:
    """What of a base decides how much memory its training takes."""

    config: Mapping  # of its FluxTransformer2DModel
    size_multiple: int  # pixels a side of an image token
    text_tokens: int  # T5 tokens of every prompt
    dtype: torch.dtype  # of the weights as loaded

    def tokens(self, side: int) -> int:
        """Of one picture with the area of a square of ``side`` pixels, text included."""
        return math.ceil(side / self.size_multiple) ** 2 + self.text_tokens


@dataclass(frozen=True)
class Plan:
    """How to run a training step. ``micro_batch`` images at a time, ``accumulation`` times, make the recipe's batch."""

    base_precision: str  # the base's own ("bfloat16", "float32"), "int8" or "nf4"
    checkpointing: bool
    micro_batch: int
    accumulation: int
    peak_bytes: int  # of all tensors alive at once; the allocator and CUDA itself take more


@dataclass(frozen=True)
class Sizes:
    """Counts of a transformer's weights."""

    width: int
    blocks: dict[str, int]  # "double" and "single": how many
    block_weights: int  # of the blocks' linears, biases left out: what a quantised base holds in fewer bits
    block_rows: int  # their output features
    other_weights: int
    largest: int  # weights of the largest linear of the blocks
    targets: dict[str, list[tuple[int, int]]]  # by kind of block: out and in features of what is trained

    @classmethod
    def of(cls, config: Mapping) -> Sizes:
        """Count on the meta device: exact for whatever diffusers builds from the configuration, in a tenth of a second."""
        with torch.device("meta"):
            transformer = FluxTransformer2DModel.from_config(config)
        linears = {n: m.weight for n, m in transformer.named_modules() if isinstance(m, nn.Linear) and "blocks." in n}
        targets: dict[str, list[tuple[int, int]]] = {"double": [], "single": []}
        for name in target_names(transformer):
            targets["single" if name.startswith("single") else "double"].append(tuple(linears[name].shape))
        block_weights = sum(w.numel() for w in linears.values())
        return cls(
            width=transformer.inner_dim,
            blocks={"double": len(transformer.transformer_blocks), "single": len(transformer.single_transformer_blocks)},
            block_weights=block_weights,
            block_rows=sum(w.shape[0] for w in linears.values()),
            other_weights=sum(p.numel() for p in transformer.parameters()) - block_weights,
            largest=max((w.numel() for w in linears.values()), default=0),
            targets=targets,
        )


def base_bytes(sizes: Sizes, precision: str, dtype: torch.dtype) -> int:
    """The frozen base's weights. Quantised are the blocks' linears, modulation included (99.5 % of FLUX.1)."""
    blocks = sizes.block_weights * QUANTISED.get(precision, dtype.itemsize)
    scales = 4 * sizes.block_rows if precision == "int8" else 0
    return math.ceil(blocks) + scales + sizes.other_weights * dtype.itemsize


def peak_bytes(
    sizes: Sizes, finetune_type: str, rank: int, tokens: int, dtype: torch.dtype, precision: str, checkpointing: bool
) -> int:
    """All tensors alive at once in a training step, where that is most.

    Args:
        tokens: of all images in the micro-batch, text included.
        dtype: of the activations, and of the base where ``precision`` does not name a quantised one.
    """
    kinds = ("double", "single")
    copies = finetune_type == "lora" and dtype.itemsize < 4
    unit = tokens * sizes.width
    matrices = {kind: sum(out * in_ for out, in_ in sizes.targets[kind]) * dtype.itemsize for kind in kinds}
    if finetune_type == "lora":
        trained = {kind: sum(rank * (out + in_) for out, in_ in sizes.targets[kind]) * 4 for kind in kinds}
        static = 3 * sum(trained.values())  # the LoRA and Adam's two moments, float32
        formed, gradients = dict.fromkeys(kinds, 0), trained
    else:
        static = sum(matrices.values())
        formed, gradients = 


def margin(memory_bytes: int) -> int:
    """..."""
