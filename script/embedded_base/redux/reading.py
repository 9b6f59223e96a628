"""flux-emoji learns to read what Redux says, and Redux to say it. Beside prompts alone it stays as it is.

FLUX.1-dev reads any token of T5's width, so that FLUX.1-Redux could be trained with it frozen. flux-emoji takes what it draws
from CLIP's vector: with it frozen, no training of Redux brought more of a picture along than its colours (the right thing in 4
of 100). Trained with Redux it learns to read pictures.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.transformers import transformer_flux
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import nn
from torch.nn import functional
from transformers import SiglipVisionModel

from .. import captions, text, transformer
from ..checkpoints import Checkpoints
from ..looks import LOOKS
from ..pictures import BACKGROUNDS, Concept
from ..scenes import SHAPES
from .training import GRID, REPORT_EVERY, Optimizer, rate_factor
from .views import DRAWN_AS, ViewMaker, Views

# At first some heads of some blocks are told to look at the token of their own place. Left alone, they looked at all alike
# after 280 steps; told, they made the loss of 1,500 steps without it in 500.
PLACE_WEIGHT = 0.1
PLACE_BLOCKS, PLACE_HEADS = (0, 2), slice(0, 3)
TOKENS = GRID**2
SQUARES = (64, 64), (96, 96)  # pixels, of what is shown
# AdamW's, Muon's for the tower's matrices, in units of Adam's, and the projection's.
RATES = (1e-3, 3e-3, 1e-3)
BASE_RATE = 7e-4


def any_caption(concept: Concept, family: str, background: str, rng: np.random.Generator) -> str:
    """Of all that flux-emoji was taught: half name a look, which the view does not have."""
    look = list(LOOKS)[rng.integers(len(LOOKS))] if rng.random() < 0.5 else None
    return captions.dropped_taught_caption(concept, family, background, rng, look)


@dataclass(frozen=True)
class Samples:
    """Views on their way to noise."""

    noisy: torch.Tensor  # float32 [B, tokens, 64]
    sigmas: torch.Tensor  # float32 [B]
    guidance: torch.Tensor  # float32 [B]
    wanted: torch.Tensor  # the velocity, float32 [B, tokens, 64]
    ids: torch.Tensor  # of the tokens, [tokens, 3]
    prompts: list[str]  # the views' captions


class SampleMaker:
    def __init__(self, pipeline: FluxPipeline, concepts: list[Concept]):
        self.pipeline, self.concepts, self.scheduler = pipeline, concepts, transformer.new_scheduler()
        self.families, self.backgrounds = list(DRAWN_AS.values()), list(BACKGROUNDS)

    @torch.no_grad()
    def __call__(
        self, views: Views, size: tuple[int, int], caption_of: Callable[..., str], rng: np.random.Generator
    ) -> Samples:
        """At ``size``, width and height in pixels."""
        count, vae = len(views.pixels), self.pipeline.vae
        pixels = functional.interpolate(views.pixels, size[::-1], mode="bilinear", antialias=True)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(pixels.to(memory_format=torch.channels_last)).latent_dist.mean.float()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        height, width = latents.shape[2:]
        packed = FluxPipeline._pack_latents(latents, *latents.shape)
        ids = FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, latents.device, latents.dtype)
        sigmas = transformer.sample_sigmas(self.scheduler, count, packed.shape[1])
        noise = torch.randn_like(packed)
        prompts = [
            caption_of(self.concepts[concept], self.families[family], self.backgrounds[background], rng)
            for concept, family, background in zip(*(part.tolist() for part in views.labels), strict=True)
        ]
        noisy = torch.lerp(packed, noise, sigmas[:, None, None])
        return Samples(noisy, sigmas, torch.empty(count).uniform_(*transformer.GUIDANCE), noise - packed, ids, prompts)

    def velocity(
        self, model: FluxTransformer2DModel, samples: Samples, prompts: list[str], tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """With ``tokens`` behind the prompts' own, float32 [B, tokens, 64]."""
        with torch.no_grad():
            embeds, pooled, _ = self.pipeline.encode_prompt(prompts, None, max_sequence_length=text.T5_LENGTH)
        told = embeds if tokens is None else torch.cat([embeds, tokens], dim=1)
        return transformer.velocity(model, samples.noisy, samples.sigmas, samples.guidance, pooled, told, samples.ids)


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    shown: int  # of a step: pictures that are to be drawn; an eighth of them beside their caption, an eighth beside another's
    kept: int  # prompts alone, held to what the base made of them
    rate: float  # in units of the rates
    place_steps: int = 0  # the first, in which places are taught (`place_loss`)


# Reading is learned fast once it has begun, and what the base drew before loses its fine parts; so that comes back at the end.
READING = Stage("redux-reading", steps=2600, shown=16, kept=6, rate=1.0, place_steps=250)
SETTLING = Stage("redux-settling", steps=450, shown=8, kept=22, rate=0.4)


@contextmanager
def watched_attention() -> Iterator[list[torch.Tensor]]:
    """What image tokens ask of Redux's in each block: attention's logits, [B, heads, image tokens, tokens]."""
    seen: list[torch.Tensor] = []
    dispatch = transformer_flux.dispatch_attention_fn

    def watch(query: torch.Tensor, key: torch.Tensor, *others: object, **options: object) -> torch.Tensor:
        image, shown = query[:, text.T5_LENGTH + TOKENS :], key[:, text.T5_LENGTH : text.T5_LENGTH + TOKENS]
        seen.append(torch.einsum("bqhd,bkhd->bhqk", image.float(), shown.float()) / math.sqrt(query.shape[-1]))
        return dispatch(query, key, *others, **options)

    transformer_flux.dispatch_attention_fn = watch
    try:
        yield seen
    finally:
        transformer_flux.dispatch_attention_fn = dispatch


def place_loss(attention: list[torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """How far some heads are from asking, at each place of the picture, for the token of that place: cross-entropy."""
    places = ids[:, 1:]
    own = (places + 0.5) * GRID // (places.amax(0) + 1)
    token = (own[:, 0] * GRID + own[:, 1]).long()
    logits = torch.stack([attention[block][:, PLACE_HEADS] for block in PLACE_BLOCKS])
    return functional.cross_entropy(logits.flatten(0, 3), token.repeat(logits.shape[:3].numel()))


def teach_reading(
    pipeline: FluxPipeline,
    before: FluxTransformer2DModel,
    tower: SiglipVisionModel,
    embedder: ReduxImageEncoder,
    views: ViewMaker,
    concepts: list[Concept],
    stage: Stage,
    checkpoints: Checkpoints,
) -> None:
    """Train tower, projection and flux-emoji's transformer together. The loss of a picture that is shown is the flow's own, to
    the means of the codec's posterior: what is drawn from it besides is noise, from which nothing is learned.

    Args:
        before: the transformer as it was, to which prompts alone are held.
    """
    student = pipeline.transformer
    for model in (student, tower, embedder):
        model.requires_grad_(True)
    optimizer = Optimizer(tower, embedder, RATES)
    adam = torch.optim.AdamW(student.parameters(), lr=BASE_RATE, betas=transformer.BETAS, weight_decay=0.0, fused=True)
    kept = {"tower": tower, "embedder": embedder, "transformer": student, "adam_of_it": adam, **optimizer.parts}
    start = checkpoints.resume(stage.name, **kept)
    maker, figures, began = SampleMaker(pipeline, concepts), [], time.monotonic()
    for step in range(start, stage.steps):
        factor = stage.rate * rate_factor(step, stage.steps)
        torch.manual_seed(step)
        rng = np.random.default_rng((35, step))
        batch = views.batch(stage.shown + stage.kept, torch.Generator().manual_seed(10**6 + step))
        shape = SHAPES[rng.choice(len(SHAPES), p=[shape.share for shape in SHAPES])]

        shown = maker(batch[: stage.shown], SQUARES[shape.size == SQUARES[1]], captions.caption, rng)
        some = stage.shown // 8
        prompts = [*shown.prompts[1 : some + 1], *shown.prompts[some : 2 * some], *[""] * (stage.shown - 2 * some)]
        tokens = embedder(tower(batch.pixels[: stage.shown]).last_hidden_state).image_embeds
        if step < stage.place_steps:
            with watched_attention() as attention:
                seen = (maker.velocity(student, shown, prompts, tokens) - shown.wanted).square().mean()
            loss = seen + PLACE_WEIGHT * place_loss(attention, shown.ids)
        else:
            if step in (start, stage.place_steps):
                for model in (student, before):
                    model.compile_repeated_blocks(dynamic=True)  # a tenth faster
            loss = seen = (maker.velocity(student, shown, prompts, tokens) - shown.wanted).square().mean()

        alone = maker(batch[stage.shown :], shape.size, any_caption, rng)
        with torch.no_grad():
            as_before = maker.velocity(before, alone, alone.prompts)
        drift = (maker.velocity(student, alone, alone.prompts) - as_before).square().mean()

        for group in adam.param_groups:
            group["lr"] = BASE_RATE * factor
        optimizer.step(loss + drift, factor)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        if step % 10 == 0:
            with torch.no_grad():
                blind = (maker.velocity(before, shown, [""] * stage.shown) - shown.wanted).square().mean()
            figures.append((seen.item(), blind.item(), drift.item(), (loss - seen).item() / PLACE_WEIGHT))
        if (step + 1) % REPORT_EVERY == 0 and figures:
            seconds = (time.monotonic() - began) / REPORT_EVERY
            means = [math.fsum(column) / len(figures) for column in zip(*figures, strict=True)]
            logging.info(
                "%s %d: loss %.3f, blind %.3f; drift %.4f; places %.2f; %.2f s a step", stage.name, step + 1, *means, seconds
            )
            figures, began = [], time.monotonic()
        checkpoints.save(stage.name, step + 1, last=step + 1 == stage.steps, **kept)
    for model in (tower, embedder, student):
        model.requires_grad_(False).eval()
