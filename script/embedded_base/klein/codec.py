"""The VAE: flux-emoji's, carried over into FLUX.2's class, in which statistics by channel take the place of shift and scale."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2KleinPipeline

from .. import pictures
from ..codec import psnr
from ..composed.scenes import Scenes

SHARED = (  # what both classes are configured by
    "block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "latent_channels", "norm_num_groups",
    "mid_block_add_attention", "use_quant_conv", "use_post_quant_conv", "sample_size",
)  # fmt: skip
STATISTICS_SCENES = 4096
CHUNK = 250  # pictures that a process encodes at once


def carried_over(flux_vae: Path) -> AutoencoderKLFlux2:
    """flux-emoji's VAE as an `AutoencoderKLFlux2`; the statistics are still to be set."""
    trained = AutoencoderKL.from_pretrained(flux_vae, dtype=torch.float32)
    codec = AutoencoderKLFlux2(**{name: trained.config[name] for name in SHARED})
    missing, unexpected = codec.load_state_dict(trained.state_dict(), strict=False)
    if unexpected or any(not name.startswith("bn.") for name in missing):
        raise ValueError(
            f"{flux_vae} does not fit AutoencoderKLFlux2: {sorted(missing)} are missing, {unexpected} are left over."
        )
    return codec.requires_grad_(False).eval()


@torch.no_grad()
def patches(codec: AutoencoderKLFlux2, pixels: torch.Tensor) -> torch.Tensor:
    """float32 [B, 3, H, W] in -1..1 -> the latents' mode in 2 x 2 patches, [B, 64, H / 8, W / 8], before the statistics."""
    return Flux2KleinPipeline._patchify_latents(codec.encode(pixels).latent_dist.mode())


def set_statistics(codec: AutoencoderKLFlux2, patched: torch.Tensor) -> None:
    """Give every channel of the patches zero mean and unit deviation, as FLUX.2's are."""
    codec.bn.running_mean.copy_(patched.mean((0, 2, 3)))
    codec.bn.running_var.copy_(patched.var((0, 2, 3)))


def deviations(codec: AutoencoderKLFlux2) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation by channel, each [1, 64, 1, 1], as the pipeline computes them."""
    mean, variance = (part.view(1, -1, 1, 1) for part in (codec.bn.running_mean, codec.bn.running_var))
    return mean, torch.sqrt(variance + codec.config.batch_norm_eps)


@torch.no_grad()
def tokens(codec: AutoencoderKLFlux2, pictures_: torch.Tensor) -> torch.Tensor:
    """float32 [B, 3, H, W] in -1..1 -> what the transformer learns, [B, tokens, 64]."""
    mean, deviation = deviations(codec)
    return Flux2KleinPipeline._pack_latents((patches(codec, pictures_) - mean) / deviation)


def of_scenes(codec: AutoencoderKLFlux2, pixels: np.ndarray, cache: Path) -> torch.Tensor:
    """Tokens of uint8 pictures [N, 64, 64, 3] in bfloat16, [N, 64, 64]; sets the codec's statistics by the first of them."""
    if not cache.exists():
        parts = [(codec, pixels[start : start + CHUNK]) for start in range(0, len(pixels), CHUNK)]
        with multiprocessing.get_context("spawn").Pool(2) as pool:  # two of one thread each: faster than one of two
            patched = torch.cat([torch.from_numpy(part) for part in pool.starmap(_encoded, parts, chunksize=1)])
        set_statistics(codec, patched[:STATISTICS_SCENES])
        mean, deviation = deviations(codec)
        packed = Flux2KleinPipeline._pack_latents((patched - mean) / deviation).bfloat16()
        torch.save({"tokens": packed, "statistics": codec.bn.state_dict()}, cache)
    saved = torch.load(cache, weights_only=True)
    codec.bn.load_state_dict(saved["statistics"])
    return saved["tokens"]


def _encoded(codec: AutoencoderKLFlux2, pixels: np.ndarray) -> np.ndarray:
    """The patches of some pictures, float32; as numpy, since tensors would go from process to process by open files."""
    torch.set_num_threads(1)
    codec = codec.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        images = torch.from_numpy(pictures.to_tensor_range(pixels)).to(memory_format=torch.channels_last)
        return torch.cat([patches(codec, part).float() for part in images.split(50)]).numpy()


@torch.no_grad()
def measure(codec: AutoencoderKLFlux2, scenes: Scenes) -> dict[str, float]:
    """PSNR in dB on 256 scenes in looks and on 256 in none."""
    figures = {}
    for name, of_kind in (("codec_looks", scenes.look > 0), ("codec_plain", scenes.look == 0)):
        images = torch.from_numpy(pictures.to_tensor_range(scenes.pixels[np.flatnonzero(of_kind)[:256]]))
        restored = torch.cat([codec.decode(codec.encode(part).latent_dist.mode()).sample for part in images.split(64)])
        figures[name] = psnr(restored - images)
    return figures
