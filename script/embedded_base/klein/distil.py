"""The distilled twin: 4 steps and no guidance, as FLUX.2-klein-4B draws beside FLUX.2-klein-base-4B.

The base draws with guidance, in small steps, and what it passes through is kept. The twin begins as the base and learns to go
from one kept place to the next in one step: a stage of progressive distillation (Salimans and Ho 2022) that takes guidance in
as well (Meng et al. 2023).
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from ..checkpoints import Checkpoints
from ..composed.captions import Captions
from ..composed.scenes import Scenes
from . import text
from .batches import GRID, SIZE, image_ids
from .descent import Stage, descend
from .evaluate import DISTILLED_STEPS, GUIDANCE
from .training import new_scheduler, velocity_of

SUBSTEPS = 4  # of the base for each of the twin's
DRAWN = 3072  # pictures whose way is kept
CHUNK = 32  # drawn at once
STEPS = 1200
LEARNING_RATE = 4e-4  # of both optimisers: the twin has little to learn anew
WARMUP = 50


@dataclass(frozen=True)
class Ways:
    """What the base passed through: bfloat16 [N, 5, 64 tokens, 64], noise first, picture last; and what it was asked for."""

    places: torch.Tensor
    embeds: torch.Tensor  # bfloat16 [N, 32, 288]


def twin_sigmas(substeps: int = 1) -> torch.Tensor:
    """Noise levels of the twin's steps, float32 [4 * substeps + 1], the last 0, as its pipeline sets them."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(new_scheduler().config)
    steps = DISTILLED_STEPS * substeps
    mu = compute_empirical_mu(image_seq_len=GRID**2, num_steps=DISTILLED_STEPS)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler.sigmas


def _velocity(
    transformer: Flux2Transformer2DModel, noisy: torch.Tensor, sigmas: torch.Tensor, embeds: torch.Tensor
) -> torch.Tensor:
    return velocity_of(transformer, noisy, sigmas, image_ids(references=False), embeds)


@torch.no_grad()
def _drawn(transformer: Flux2Transformer2DModel, embeds: torch.Tensor, empty: torch.Tensor, seed: int) -> np.ndarray:
    """Draw with guidance; what was passed through where the twin will stop, float32 [N, 5, 64, 64]."""
    torch.set_num_threads(1)
    state = torch.randn(len(embeds), GRID**2, 64, generator=torch.Generator().manual_seed(seed))
    sigmas, kept = twin_sigmas(SUBSTEPS), [state]
    for n in range(DISTILLED_STEPS * SUBSTEPS):
        both = torch.cat([embeds, empty.expand_as(embeds)])
        named, unnamed = _velocity(transformer, state.repeat(2, 1, 1), sigmas[n].repeat(len(both)), both).chunk(2)
        state = state + (sigmas[n + 1] - sigmas[n]) * torch.lerp(unnamed, named, GUIDANCE)
        if n % SUBSTEPS == SUBSTEPS - 1:
            kept.append(state)
    return torch.stack(kept, dim=1).numpy()


@torch.no_grad()
def ways(
    transformer: Flux2Transformer2DModel,
    encoder: Qwen3ForCausalLM,
    tokens: PreTrainedTokenizerFast,
    scenes: Scenes,
    captions: Captions,
    cache: Path,
) -> Ways:
    """Draw what captions of the scenes ask for, or load what was drawn before."""
    if not cache.exists():
        rng = np.random.default_rng(71)
        prompts = [captions(scenes.facts(n), rng) for n in rng.integers(len(scenes.thing), size=DRAWN)]
        embeds = torch.cat([text.encode(encoder, *text.token_ids(tokens, [p]))[0].bfloat16() for p in ["", *prompts]])
        empty, embeds = embeds[:1], embeds[1:]
        parts = [(transformer, part, empty, seed) for seed, part in enumerate(embeds.split(CHUNK))]
        with multiprocessing.get_context("spawn").Pool(2) as pool:  # as numpy: tensors would go by open files
            places = torch.cat([torch.from_numpy(part).bfloat16() for part in pool.starmap(_drawn, parts, chunksize=1)])
        torch.save({"places": places, "embeds": embeds}, cache)
    return Ways(**torch.load(cache, weights_only=True))


def loss_of(twin: Flux2Transformer2DModel, kept: Ways, step: int, part: slice) -> list[torch.Tensor]:
    """Mean squared error of the velocity that leads from one kept place to the next, a float32 scalar."""
    rng = np.random.default_rng((72, step))
    rows = rng.integers(len(kept.places), size=SIZE)[part]
    at = torch.from_numpy(rng.integers(DISTILLED_STEPS, size=SIZE)[part])
    sigmas, places = twin_sigmas(), kept.places[rows].float()
    here, there = (places[torch.arange(len(at)), n] for n in (at, at + 1))
    wanted = (there - here) / (sigmas[at + 1] - sigmas[at])[:, None, None]
    return [(_velocity(twin, here, sigmas[at], kept.embeds[rows]) - wanted).pow(2).mean()]


def rate_factor(step: int) -> float:
    return min((step + 1) / WARMUP, (STEPS - step) / STEPS)


STAGE = Stage("klein-twin", STEPS, LEARNING_RATE, LEARNING_RATE, weight_decay=0.0, rate_factor=rate_factor)


def distil(transformer: Flux2Transformer2DModel, kept: Ways, checkpoints: Checkpoints) -> Flux2Transformer2DModel:
    """The twin of a trained transformer, or as it was trained before."""
    twin = copy.deepcopy(transformer).requires_grad_(True)

    def report(step: int, means: list[float], seconds: float) -> None:
        logging.info("twin %d: %.4f, %.2f s a step", step, means[0], seconds)

    descend(twin, STAGE, lambda step, part: loss_of(twin, kept, step, part), checkpoints, report)
    return twin
