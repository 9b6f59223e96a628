"""A base in 8 or 4 bits, for a LoRA on a small card: int8 by a linear of our own, nf4 by bitsandbytes (Dettmers et al. 2023),
on CUDA or CPU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
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
    quantised = Int8Linear if precision == "int8" else _nf4
    for name, linear in block_linears(transformer).items():
        transformer.set_submodule(name, quantised(linear).to(device))
    # In evaluation mode Linear4bit repacks its weights for inference on some CPUs and then cannot train; FLUX has no dropout
    # that training mode would switch on.
    return transformer.to(device).train()


class Int8Linear(nn.Linear):
    """A frozen linear whose weight is int8 [out, in], with a float32 scale a row; it is expanded for each product.

    bitsandbytes' int8 linear (0.50) keeps its input for backward, as an attribute that checkpointing does not see: with every
    block checkpointed, each linear's input was alive all the same. It also rounds the input to int8, which this does not.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Int8Product.apply(x, self.weight, self.scale, self.bias)


class _Int8Product(torch.autograd.Function):
    """x W^T + b; what is kept for backward is W as it lies in memory."""

    @staticmethod
    def forward(ctx, x, weight, scale, bias):
        ctx.save_for_backward(weight, scale)
        return F.linear(x, _expanded(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx, gradient):
        weight, scale = ctx.saved_tensors
        return gradient @ _expanded(weight, scale, gradient.dtype), None, None, None


def _expanded(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return weight.to(dtype).mul_(scale)  # in place: computed in float32, rounded once, one copy of the weight


def _nf4(linear: nn.Linear) -> nn.Linear:
    import bitsandbytes as bnb  # here: it looks for kernels and logs what it lacks, which concerns small cards alone

    quantised = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    quantised.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=quantised)
    quantised.bias = linear.bias
    return quantised
