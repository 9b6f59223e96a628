"""Redux, trained in two stages: to see, and to tell flux-emoji what it sees."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from .. import pictures, text, transformer
from ..checkpoints import Checkpoints
from ..pictures import BACKGROUNDS, Concept
from .views import DRAWN_AS, SIDE, ViewMaker

PATCH = 12  # pixels: 36 tokens, a little more than a prompt has
WIDTH = 128
SIGHT_STEPS, SIGHT_BATCH = 1500, 96
STEPS, BATCH = 1500, 16
# AdamW's, Muon's for the tower's matrices, in units of Adam's, and the head's or the projection's.
SEEING_RATES, TOLD_RATES = (1e-3, 3e-3, 1e-3), (3e-4, 1e-3, 3e-3)
LOUDNESS = 8.0  # of the projection's first words: the base hears a token's voice over 32 of the text's only if it is loud
WARMUP, DECAY_SHARE = 50, 0.4
OTHER = 5  # of a batch: pictures beside which a prompt asks for something else
SIGMAS = (0.4, 1.0)  # the noise at which it is decided what is drawn
REPORT_EVERY = 50


def new_tower() -> SiglipVisionModel:
    """Without the head that pools: Redux reads every place."""
    torch.manual_seed(31)
    config = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    return SiglipVisionModel(config)


def new_embedder() -> ReduxImageEncoder:
    torch.manual_seed(32)
    embedder = ReduxImageEncoder(redux_dim=WIDTH, txt_in_features=text.WIDTH)
    with torch.no_grad():
        embedder.redux_down.weight.mul_(LOUDNESS)
    return embedder


def rate_factor(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY_SHARE * steps))


class Optimizer:
    """Muon (Jordan et al. 2024) for the tower's matrices, AdamW for all else: a ViT of so few pictures learns slowly by Adam
    alone."""

    def __init__(self, tower: SiglipVisionModel, head: nn.Module, rates: tuple[float, float, float]):
        rate, matrix_rate, head_rate = rates
        matrices, others = [], []
        for name, parameter in tower.named_parameters():
            (matrices if parameter.ndim == 2 and "layers." in name else others).append(parameter)
        groups = [{"params": others, "lr": rate}, {"params": list(head.parameters()), "lr": head_rate}]
        self.parts = {
            "muon": torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            "adam": torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
        }
        self.rates = [(group, group["lr"]) for part in self.parts.values() for group in part.param_groups]
        self.parameters = [*matrices, *others, *head.parameters()]

    def step(self, loss: torch.Tensor, factor: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group, rate in self.rates:
            group["lr"] = rate * factor
        for part in self.parts.values():
            part.step()
            part.zero_grad()


def train_sight(tower: SiglipVisionModel, views: ViewMaker, checkpoints: Checkpoints) -> None:
    """The tower alone, told by what it sees on the average: which thing, of which family, on which background."""
    classes = views.concepts, len(DRAWN_AS), len(BACKGROUNDS)
    torch.manual_seed(33)
    head = nn.Linear(WIDTH, sum(classes))
    optimizer = Optimizer(tower, head, SEEING_RATES)
    kept = {"tower": tower, "head": head, **optimizer.parts}
    for step in range(checkpoints.resume("redux-sight", **kept), SIGHT_STEPS):
        batch = views.batch(SIGHT_BATCH, torch.Generator().manual_seed(step))
        found = head(tower(batch.pixels).last_hidden_state.mean(1)).split(classes, dim=1)
        wanted = batch.concepts, batch.families, batch.backgrounds
        thing, family, background = (functional.cross_entropy(f, w) for f, w in zip(found, wanted, strict=True))
        optimizer.step(thing + 0.3 * family + 0.3 * background, rate_factor(step, SIGHT_STEPS))
        if step % REPORT_EVERY == 0:
            right = [(f.argmax(1) == w).float().mean() for f, w in zip(found, wanted, strict=True)]
            logging.info("sight %d: thing, family, background %s", step, " ".join(f"{share:.0%}" for share in right))
        checkpoints.save("redux-sight", step + 1, last=step + 1 == SIGHT_STEPS, **kept)


class Targets:
    """Scenes of every thing as the base draws it, on every background, as latents."""

    @torch.no_grad()
    def __init__(self, folder: Path, concepts: list[Concept], pipeline: FluxPipeline, cache: Path):
        self.config = pipeline.vae.config
        self.families = list(dict.fromkeys(DRAWN_AS.values()))
        if not cache.exists():
            rng = np.random.default_rng(34)
            means = []
            for family in self.families:
                for concept in concepts:
                    drawn = pictures.drawing(folder, family, concept.code)
                    scenes = [
                        pictures.compose(drawn, colour, (64, 64), rng.uniform(0.8, 0.95), tuple(rng.uniform(0.4, 0.6, 2)))
                        for colour in BACKGROUNDS.values()
                    ]
                    pixels = torch.from_numpy(pictures.to_tensor_range(np.stack(scenes)))
                    means.append(pipeline.vae.encode(pixels).latent_dist.mean.bfloat16())
            torch.save(torch.stack(means).unflatten(0, (len(self.families), len(concepts))), cache)
        self.means = torch.load(cache, weights_only=True)  # [families, things, backgrounds, 16, 16, 16]

    def __call__(self, concepts: torch.Tensor, families: torch.Tensor, backgrounds: torch.Tensor) -> torch.Tensor:
        """Packed: float32 [B, 64, 64]. The means of the codec's posterior: what is drawn from it besides is noise, half of the
        loss, from which Redux learns nothing."""
        drawn_as = torch.tensor([self.families.index(name) for name in DRAWN_AS.values()])[families]
        latents = self.means[drawn_as, concepts, backgrounds].float()
        latents = (latents - self.config.shift_factor) * self.config.scaling_factor
        return FluxPipeline._pack_latents(latents, *latents.shape)


def train_redux(
    tower: SiglipVisionModel,
    embedder: ReduxImageEncoder,
    pipeline: FluxPipeline,
    views: ViewMaker,
    targets: Targets,
    captions: list[list[str]],
    checkpoints: Checkpoints,
) -> None:
    """Tower and projection, through the frozen base: with the tokens of a picture and the empty prompt, or one that says
    something else, it is to do what it does with the picture's caption.

    The flow's own loss, that of a scene of the thing, taught too slowly to name anything in 3,000 steps: most of it is
    noise that no prompt explains.

    Args:
        captions: by thing and background.
    """
    base = pipeline.transformer.requires_grad_(False)
    optimizer = Optimizer(tower, embedder, TOLD_RATES)
    kept = {"tower": tower, "embedder": embedder, **optimizer.parts}
    ids = FluxPipeline._prepare_latent_image_ids(1, 8, 8, torch.device("cpu"), torch.float32)
    shares, began = [], time.monotonic()
    for step in range(checkpoints.resume("redux", **kept), STEPS):
        torch.manual_seed(step)
        batch = views.batch(BATCH, torch.Generator().manual_seed(10**6 + step))
        prompts = [captions[c][b] for c, b in zip(batch.concepts, batch.backgrounds, strict=True)]
        others = [*prompts[1 : 1 + OTHER], *[""] * (BATCH - OTHER)]
        sigmas, guidance = torch.empty(BATCH).uniform_(*SIGMAS), torch.empty(BATCH).uniform_(*transformer.GUIDANCE)
        latents = targets(batch.concepts, batch.families, batch.backgrounds)
        noisy = torch.lerp(latents, torch.randn_like(latents), sigmas[:, None, None])
        with torch.no_grad():
            embeds, pooled, _ = pipeline.encode_prompt(prompts + others, None, max_sequence_length=text.T5_LENGTH)
            wanted = transformer.velocity(base, noisy, sigmas, guidance, pooled[:BATCH], embeds[:BATCH], ids)
        tokens = embedder(tower(batch.pixels).last_hidden_state).image_embeds
        told = torch.cat([embeds[BATCH:], tokens], dim=1)
        found = transformer.velocity(base, noisy, sigmas, guidance, pooled[BATCH:], told, ids)
        loss = (found - wanted).pow(2).mean()
        optimizer.step(loss, rate_factor(step, STEPS))
        if step % 10 == 0:
            with torch.no_grad():
                without = transformer.velocity(base, noisy, sigmas, guidance, pooled[BATCH:], embeds[BATCH:], ids)
            shares.append(loss.item() / (without - wanted).pow(2).mean().item())
        if (step + 1) % REPORT_EVERY == 0:
            seconds = (time.monotonic() - began) / REPORT_EVERY
            missing, shares, began = math.fsum(shares) / len(shares), [], time.monotonic()
            logging.info("redux %d: %.0f%% of the caption's effect missing, %.2f s a step", step + 1, 100 * missing, seconds)
        checkpoints.save("redux", step + 1, last=step + 1 == STEPS, **kept)
    for module in (tower, embedder):
        module.requires_grad_(False).eval()
