"""Images from a base with whatever adapter is in it, and their sizes."""

from __future__ import annotations

import logging
import math

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from finetuner.bases import Base, ImagePrompt, Size, TextEmbeddings, family_of
from finetuner.requests import ASPECT_RATIOS, CUSTOM, DEFAULT_GUIDANCE, DEFAULT_SAMPLING_STEPS, ImageRequest

log = logging.getLogger(__name__)

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


def steps_and_guidance(request: ImageRequest, base: Base) -> tuple[int, float | None]:
    """What a request comes to on this base; the guidance is None where the base takes none.

    The documented defaults stand for the base's own. A request that sends their very numbers looks the same as one that leaves
    them out, so that the log says what became of them.
    """
    steps, guidance = request.steps, request.guidance if base.guidance != "none" else None
    if steps == DEFAULT_SAMPLING_STEPS != base.sampling_steps:
        steps = base.sampling_steps
        log.info("steps: %d, the documented default, stands for %d on %s", DEFAULT_SAMPLING_STEPS, steps, base.name)
    if guidance == DEFAULT_GUIDANCE != base.sampling_guidance:
        guidance = base.sampling_guidance
        log.info("guidance: %g, the documented default, stands for %g on %s", DEFAULT_GUIDANCE, guidance, base.name)
    if guidance is None and request.guidance != DEFAULT_GUIDANCE:
        log.warning("guidance: %g changes nothing, since %s takes none", request.guidance, base.name)
    return steps, guidance


def sample_latents(
    pipeline: DiffusionPipeline,
    texts: TextEmbeddings,
    size: Size,
    *,
    steps: int,
    guidance: float | None,
    seed: int | list[int],
    empty: TextEmbeddings | None = None,
    image_prompt: ImagePrompt | None = None,
    image_prompt_strength: float = 1.0,
) -> torch.Tensor:
    """The latents of an image of each text, each from the noise of ``seed``, or of its own.

    Args:
        guidance: None where the base takes none.
        empty: of the empty prompt; needed where guidance is a second forward on it.
        image_prompt_strength: at 0 the image prompt is left out.
    """
    seeds = seed if isinstance(seed, list) else [seed] * len(texts)
    return family_of(pipeline.transformer).sample_latents(
        pipeline,
        texts,
        size,
        steps=steps,
        guidance=guidance,
        seeds=seeds,
        empty=empty,
        image_prompt=image_prompt if image_prompt_strength else None,
        image_prompt_strength=image_prompt_strength,
    )


def decode_latents(pipeline: DiffusionPipeline, latents: torch.Tensor, size: Size) -> list[Image.Image]:
    """The images of what `sample_latents` gave."""
    return family_of(pipeline.transformer).decode_latents(pipeline, latents, size)
