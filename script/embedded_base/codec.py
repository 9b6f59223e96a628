"""The VAE: trained first, on scenes of several families; its latents are what the transformer learns.

4x downscale with 16 latent channels: at 64 px an 8x codec of this size stops at 22 dB, because each of
its latent pixels must hold 192 colour values.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import trange

from . import pictures
from .checkpoints import Checkpoints

SHARP_STEPS, SQUEEZE_STEPS = 4500, 1000
STEPS = SHARP_STEPS + SQUEEZE_STEPS
BATCHES = (((64, 64), 16),) * 7 + (((96, 96), 7), ((80, 48), 16), ((48, 80), 16))
LEARNING_RATE = 1e-3
SHARP_KL_WEIGHT = 3e-4  # a fifth of what a decoder of 32 dB would ask for: the decoder learns every detail
SQUEEZE_KL_WEIGHT = 5e-3  # then decibels to spare go, and with them detail that the transformer would have to learn to draw
L1_WEIGHT = 0.1  # sharper edges than squared error alone


def new_codec() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=64,
        force_upcast=False,
    )


def random_background(rng: np.random.Generator, size: tuple[int, int]):
    """A named colour, any colour, or a gradient between two colours."""
    kind = rng.random()
    if kind < 0.5:
        return list(pictures.BACKGROUNDS.values())[rng.integers(len(pictures.BACKGROUNDS))]
    first, second = rng.integers(0, 256, (2, 3))
    if kind < 0.8:
        return tuple(int(c) for c in first)
    angle = rng.random() * 2 * math.pi
    y, x = np.mgrid[0 : size[1], 0 : size[0]] / max(size)
    ramp = x * math.cos(angle) + y * math.sin(angle)
    ramp = ((ramp - ramp.min()) / (np.ptp(ramp) + 1e-6))[..., None]
    return (first + (second - first) * ramp).astype(np.uint8)


def random_scenes(
    folder: Path, families: tuple[str, ...], rng: np.random.Generator, size: tuple[int, int], count: int
) -> torch.Tensor:
    """Scenes of any drawing, background, scale and place: float32 count x 3 x H x W in -1..1."""
    scenes = []
    for _ in range(count):
        family = families[rng.integers(len(families))]
        codes = _codes(folder, family)
        drawn = pictures.drawing(folder, family, codes[rng.integers(len(codes))])
        scenes.append(pictures.compose(drawn, random_background(rng, size), size, rng.uniform(0.5, 1.1), tuple(rng.random(2))))
    return torch.from_numpy(pictures.to_tensor_range(np.stack(scenes)))


_codes = cache(pictures.family_codes)


def rate_factor(step: int) -> float:
    """Share of the learning rate: warm-up and cosine, once to become sharp and, half as high, once to squeeze."""
    if step < SHARP_STEPS:
        return min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / SHARP_STEPS))
    step -= SHARP_STEPS
    return min(1, (step + 1) / 50) * 0.25 * (1 + math.cos(math.pi * step / SQUEEZE_STEPS))


def train(folder: Path, checkpoints: Checkpoints) -> AutoencoderKL:
    """Train the codec, or return the one that was trained before."""
    torch.manual_seed(0)
    codec = new_codec().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor)
    start = checkpoints.resume("codec", codec=codec, optimizer=optimizer, schedule=schedule)
    progress = trange(start, STEPS, initial=start, total=STEPS, desc="codec", mininterval=10)
    for step in progress:
        rng = np.random.default_rng((1, step))
        torch.manual_seed(step)
        size, count = BATCHES[rng.integers(len(BATCHES))]
        scenes = random_scenes(folder, pictures.CODEC_FAMILIES, rng, size, count).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = codec.encode(scenes).latent_dist
            restored = codec.decode(posterior.sample()).sample
        error = restored.float() - scenes
        kl_weight = SHARP_KL_WEIGHT if step < SHARP_STEPS else SQUEEZE_KL_WEIGHT
        kl = 0.5 * (posterior.mean.float().pow(2) + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = error.pow(2).mean() + L1_WEIGHT * error.abs().mean() + kl_weight * kl
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(psnr=f"{psnr(error):.1f} dB", kl=f"{kl.item():.2f}", refresh=False)
        checkpoints.save("codec", step + 1, last=step + 1 == STEPS, codec=codec, optimizer=optimizer, schedule=schedule)
    codec.requires_grad_(False).eval()
    set_scaling(codec, random_scenes(folder, (pictures.NOTO,), np.random.default_rng(2), (64, 64), 512))
    return codec


def set_scaling(codec: AutoencoderKL, scenes: torch.Tensor) -> None:
    """Give the latents zero mean and unit deviation, as FLUX's are (``(latent - shift) * scale``)."""
    torch.manual_seed(0)
    with torch.no_grad():
        latents = torch.cat([codec.encode(part).latent_dist.sample() for part in scenes.split(64)])
    codec.register_to_config(shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4))


def psnr(error: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of an error in the -1..1 range, averaged over the pictures."""
    return (10 * torch.log10(4 / error.detach().pow(2).flatten(1).mean(1).clamp_min(1e-8))).mean().item()


@torch.no_grad()
def measure(folder: Path, codec: AutoencoderKL, families: tuple[str, ...], size: tuple[int, int] = (64, 64)) -> float:
    """PSNR in dB on 512 scenes with backgrounds and places that training did not draw."""
    scenes = random_scenes(folder, families, np.random.default_rng(9), size, 512)
    return float(
        np.mean([psnr(codec.decode(codec.encode(part).latent_dist.mode()).sample - part) for part in scenes.split(64)])
    )
