"""Images from a base with whatever adapter is in it, and their sizes."""

from __future__ import annotations

import math

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from finetuner.bases import Base, Size, TextEmbeddings, family_of
from finetuner.requests import ASPECT_RATIOS, CUSTOM, ImageRequest

CUSTOM_MULTIPLE = 32  # documented: width and height are rounded to it


def native_size(aspect: float, side: float, multiple: int) -> Size:
    """Width and height in pixels: of the area side x side, of this aspect (width / height), in whole multiples."""
    width, height = side * math.sqrt(aspect), side / math.sqrt(aspect)
    return max(1, round(width / multiple)) * multiple, max(1, round(height / multiple)) * multiple


def sampling_and_output_size(request: ImageRequest, base: Base) -> tuple[Size, Size]:
    """The size to sample at, which the base can make, and the size that was asked for, in pixels."""
    if request.aspect_ratio != CUSTOM:
        width, height = ASPECT_RATIOS[request.aspect_ratio]
        size = native_size(width / height, base.sampling_side, base.size_multiple)
        return size, size
    width, height = (
        math.floor(side / CUSTOM_MULTIPLE + 0.5) * CUSTOM_MULTIPLE for side in (request.width or 0, request.height or 0)
    )
    side = min(base.largest_side, (width * height) ** 0.5)
    return native_size(width / height, side, base.size_multiple), (width, height)


def sample_latents(
    pipeline: DiffusionPipeline, texts: TextEmbeddings, size: Size, *, steps: int, guidance: float, seed: int
) -> torch.Tensor:
    """The latents of an image of each text, each from the noise of ``seed``."""
    seeds = [seed] * len(texts)
    return family_of(pipeline.transformer).sample_latents(pipeline, texts, size, steps=steps, guidance=guidance, seeds=seeds)


def decode_latents(pipeline: DiffusionPipeline, latents: torch.Tensor, size: Size) -> list[Image.Image]:
    """The images of what `sample_latents` gave."""
    return family_of(pipeline.transformer).decode_latents(pipeline, latents, size)
