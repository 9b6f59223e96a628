"""Where the parts of a pipeline lie while it draws, and at which precision: the device may be smaller than the base."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading
from torch import nn

from finetuner.bases.quantise import quantise

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Placement:
    """A way to hold a base. Streamed: its weights wait on the CPU, and each layer's come to the device for its own forward."""

    precision: str | None = None  # of the linears in the transformer's blocks: one of `quantise.PRECISIONS`, or their own
    texts_streamed: bool = False
    transformer_streamed: bool = False


RESIDENT = Placement()


def place(pipeline: DiffusionPipeline, text_parts: tuple[str, ...], placement: Placement, device: torch.device) -> None:
    """Put a pipeline's parts, loaded on the CPU, where ``placement`` has them, frozen. The pipeline computes on ``device``."""
    for name, part in pipeline.components.items():
        if not isinstance(part, nn.Module):
            continue
        part.requires_grad_(False).eval()
        if name == "transformer" and placement.precision:
            quantise(part, placement.precision, device)  # and leaves it in training mode, for a reason of its own
        elif (name in text_parts and placement.texts_streamed) or (name == "transformer" and placement.transformer_streamed):
            streamed_to(part, device)
        else:
            part.to(device)


def streamed_to(part: nn.Module, device: torch.device) -> nn.Module:
    """The same module, whose weights wait on the CPU; each layer's come to ``device`` for its own forward."""
    apply_group_offloading(part, onload_device=device, offload_device=CPU, offload_type="leaf_level")
    return part
