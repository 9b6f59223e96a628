"""One image from the base with whatever adapter is in it."""

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


def native_size(aspect: float, side: int, multiple: int) -> Size:
    """Width and height in pixels: of the area side x side, of this aspect (width / height), in whole multiples."""
    return tuple(max(1, round(length / multiple)) * multiple for length in (side * math.sqrt(aspect), side / math.sqrt(aspect)))


def sample(pipeline: FluxPipeline, text: TextEmbeddings, size: Size, *, steps: int, guidance: float, seed: int) -> Image.Image:
    """Make one image of ``size``. The noise is drawn on the CPU: a seed means the same picture on every device."""
    return pipeline(
        prompt_embeds=text.embeds,
        pooled_prompt_embeds=text.pooled,
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]


def sample_latents(
    pipeline: FluxPipeline, text: TextEmbeddings, size: Size, *, steps: int, guidance: float, seed: int
) -> torch.Tensor:
    """As `sample`, but stops at the latents, packed: [1, tokens, 4 * channels]."""
    return pipeline(
        prompt_embeds=text.embeds,
        pooled_prompt_embeds=text.pooled,
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="latent",
    ).images


@torch.no_grad()
def decode(pipeline: FluxPipeline, latents: torch.Tensor, size: Size) -> Image.Image:
    """The image of packed latents, as FluxPipeline decodes it."""
    width, height = size
    latents = FluxPipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    latents = latents / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    return pipeline.image_processor.postprocess(pipeline.vae.decode(latents, return_dict=False)[0])[0]
