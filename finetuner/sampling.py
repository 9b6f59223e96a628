"""Images from the base with whatever adapter is in it."""

from __future__ import annotations

import math

import torch
from diffusers import FluxPipeline
from PIL import Image

from finetuner.encode import Size, TextEmbeddings

ASPECT_RATIOS = {  # the documented ones, width to height
    "1:1": (1, 1), "21:9": (21, 9), "16:9": (16, 9), "3:2": (3, 2), "4:3": (4, 3), "5:4": (5, 4),
    "4:5": (4, 5), "3:4": (3, 4), "2:3": (2, 3), "9:16": (9, 16), "9:21": (9, 21),
}  # fmt: skip
DEFAULT_GUIDANCE, DEFAULT_STEPS = 3.0, 40  # of a prediction, as documented


def native_size(aspect: float, side: int, multiple: int) -> Size:
    """Width and height in pixels: of the area side x side, of this aspect (width / height), in whole multiples."""
    return tuple(max(1, round(length / multiple)) * multiple for length in (side * math.sqrt(aspect), side / math.sqrt(aspect)))


def sample(
    pipeline: FluxPipeline, texts: TextEmbeddings, size: Size, *, steps: int, guidance: float, seed: int
) -> list[Image.Image]:
    """An image of each text."""
    return decode(pipeline, sample_latents(pipeline, texts, size, steps=steps, guidance=guidance, seed=seed), size)


def sample_latents(
    pipeline: FluxPipeline, texts: TextEmbeddings, size: Size, *, steps: int, guidance: float, seed: int
) -> torch.Tensor:
    """The packed latents of an image of each text, from the noise that ``seed`` gives it alone: [N, tokens, 4 * channels].

    The noise is drawn on the CPU: a seed means the same picture on every device.
    """
    return pipeline(
        prompt_embeds=texts.embeds,
        pooled_prompt_embeds=texts.pooled,
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator("cpu").manual_seed(seed) for _ in texts.embeds],
        output_type="latent",
    ).images


@torch.no_grad()
def decode(pipeline: FluxPipeline, latents: torch.Tensor, size: Size) -> list[Image.Image]:
    """The images of packed latents, as FluxPipeline decodes them."""
    width, height = size
    latents = FluxPipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    latents = latents / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    return pipeline.image_processor.postprocess(pipeline.vae.decode(latents, return_dict=False)[0])
