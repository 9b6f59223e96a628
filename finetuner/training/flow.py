"""The rectified-flow objective, as FLUX was trained: a straight path from the image's latents to noise.

Latents are packed into tokens, [B, tokens, channels], a token being a 2x2 patch of latent pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from finetuner.bases import family_of
from finetuner.training.dataset import Batch, Dataset

PROBE_SIGMAS = (0.2, 0.4, 0.6, 0.8)
PROBE_IMAGES = 8


@dataclass(frozen=True)
class Samples:
    """What a step learns from: noisy latents of one size, and the velocity that is wanted at each."""

    batch: Batch
    noisy: torch.Tensor  # float32 [B, tokens, channels]
    sigmas: torch.Tensor  # float32 [B]
    wanted: torch.Tensor  # float32 [B, tokens, channels]
    weights: torch.Tensor  # of each one's mean squared error in the loss: float32 [B]

    def __len__(self) -> int:
        return len(self.sigmas)

    def __getitem__(self, rows: slice) -> Samples:
        return Samples(*(part[rows] for part in vars(self).values()))

    @classmethod
    def cat(cls, parts: list[Samples]) -> Samples:
        """All of them, of one size."""
        tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0]) if name != "batch"}
        return cls(Batch.cat([part.batch for part in parts]), **tensors)

    @classmethod
    def of(cls, batch: Batch, noise: torch.Tensor, sigmas: torch.Tensor) -> Samples:
        """What lies on the straight paths from a batch to its noise; of equal weights, 1 together."""
        noisy = torch.lerp(batch.latents, noise, sigmas[:, None, None])
        return cls(batch, noisy, sigmas, noise - batch.latents, torch.full_like(sigmas, 1 / len(sigmas)))


def sample_sigmas(count: int, shift: float, logit_mean: float, logit_std: float, generator: torch.Generator) -> torch.Tensor:
    """Noise levels in 0..1: logit-normal (Esser et al. 2024), then shifted as sampling at this size is. float32 [count].

    Stratified: each of ``count`` equal shares of the distribution gives one, so that even a batch of 4 sees high and low
    noise in every step.
    """
    quantiles = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    sigmas = torch.sigmoid(logit_mean + logit_std * torch.special.ndtri(quantiles.clamp(1e-6, 1 - 1e-6)))
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def resolution_shift(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> float:
    """How much more of the path an image of this many tokens spends at high noise: exp(mu), as the pipeline computes mu, or the
    constant of a base that samples without it (schnell)."""
    config = scheduler.config
    if not config.use_dynamic_shifting:
        return config.shift
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return math.exp(config.base_shift + slope * (tokens - config.base_image_seq_len))


def predict_velocity(
    transformer: nn.Module, noisy: torch.Tensor, sigmas: torch.Tensor, batch: Batch, guidance: float
) -> torch.Tensor:
    """The transformer's velocity at ``noisy``: [B, tokens, channels], float32."""
    return family_of(transformer).velocity(transformer, noisy, sigmas, batch.texts, batch.grid, guidance).float()


def velocity_errors(transformer: nn.Module, samples: Samples, guidance: float) -> torch.Tensor:
    """Mean squared error between the predicted velocity and the one that is wanted, of each sample: float32 [B]."""
    velocity = predict_velocity(transformer, samples.noisy, samples.sigmas, samples.batch, guidance)
    return (velocity - samples.wanted).square().mean((1, 2))


@torch.no_grad()
def probe_velocities(transformer: nn.Module, dataset: Dataset, guidance: float) -> torch.Tensor:
    """The velocities of a few training images at four noise levels, noise and all fixed: what to compare two states of the
    transformer by. float32 [4 * images, tokens, channels]."""
    size, bucket = max(dataset.buckets.items(), key=lambda item: len(item[1].captions))
    rows = torch.arange(min(PROBE_IMAGES, len(bucket.captions)))
    generator = torch.Generator().manual_seed(0)
    batch = dataset.batch(size, rows, bucket.captions[rows], generator)
    noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents.device)
    levels = [torch.full((len(rows),), sigma, device=noise.device) for sigma in PROBE_SIGMAS]
    return torch.cat(
        [predict_velocity(transformer, torch.lerp(batch.latents, noise, s[0]), s, batch, guidance) for s in levels]
    )
