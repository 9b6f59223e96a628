"""A base in 8 or 4 bits, for a LoRA on a small card, by bitsandbytes (Dettmers et al. 2022, 2023), on CUDA or CPU."""

from __future__ import annotations

import math

import torch
from torch import nn

from finetuner.bases.linears import block_linears

# Bytes per weight of a quantised linear. int8: a byte, and a float32 scale per row (counted apart). nf4: half a byte, a byte
# per 64 weights for their scale, and a float32 per 256 such scales; 0.516 is what bitsandbytes' weights take.
QUANTISED = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
PRECISIONS = tuple(QUANTISED)


def quantised_bytes(weights: int, rows: int, precision: str) -> int:
    """What linears of so many weights and output features take."""
    return math.ceil(weights * QUANTISED[precision]) + (4 * rows if precision == "int8" else 0)


def quantise(transformer: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """Quantise the linears inside the blocks, modulation included, and move the transformer to ``device``.

    Each is quantised as it gets there, so that the device never holds the whole base in its own precision. The rest (2 % of
    FLUX.1's weights) stays as it is. diffusers' own BitsAndBytesConfig refuses a machine without a GPU.

    Args:
        transformer: frozen, on the CPU, in float32, float16 or bfloat16: the dtype that it computes in then, too.
        precision: "int8" (a float32 scale a row) or "nf4" (four bits, a scale for 64 weights).
    """
    for name, linear in block_linears(transformer).items():
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, _quantised(linear, precision).to(device))
    # In evaluation mode Linear4bit repacks its weights for inference on some CPUs and then cannot train; FLUX has no dropout
    # that training mode would switch on.
    return transformer.to(device).train()


def _quantised(linear: nn.Linear, precision: str) -> nn.Linear:
    import bitsandbytes as bnb  # here: it looks for kernels and logs what it lacks, which concerns small cards alone

    shape = {"input_features": linear.in_features, "output_features": linear.out_features, "bias": linear.bias is not None}
    if precision == "int8":
        quantised = bnb.nn.Linear8bitLt(**shape, has_fp16_weights=False, device="meta")
        quantised.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        quantised = bnb.nn.Linear4bit(**shape, compute_dtype=linear.weight.dtype, quant_type="nf4", device="meta")
        quantised.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=quantised)
    quantised.bias = linear.bias
    return quantised
