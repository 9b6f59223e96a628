"""The transformer, trained jointly with the text encoders on the codec's latents; then guidance distilled into it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from tqdm import tqdm, trange

from finetuner.flow import resolution_shift

from . import captions, pictures, text
from .checkpoints import Checkpoints

STEPS = 9000
SQUARE_STEPS = 6000  # one shape first: where things stand is learned fastest on one grid; then all shapes
DISTILLATION_STEPS = 600
LEARNING_RATE = 1e-3
DISTILLATION_LEARNING_RATE = 3e-4
BETAS = (0.9, 0.98)
GUIDANCE = (1.0, 5.0)  # the distilled range; 1 is the model without guidance
FLAT_SHARE = 0.25  # of the second look: learned well with less, and the first is what plain prompts ask for


@dataclass(frozen=True)
class Shape:
    size: tuple[int, int]  # width, height in pixels
    batch: int
    share: float  # of the steps
    scenes: int  # cached for every concept and family


SHAPES = (
    Shape((64, 64), 32, 0.50, 16),
    Shape((80, 48), 32, 0.06, 3),
    Shape((48, 80), 32, 0.06, 3),
    Shape((72, 56), 32, 0.06, 3),
    Shape((56, 72), 32, 0.06, 3),
    Shape((96, 96), 16, 0.18, 6),
    Shape((120, 72), 16, 0.04, 2),
    Shape((72, 120), 16, 0.04, 2),
)


@dataclass(frozen=True)
class Scenes:
    """The cached latents of one shape: what is drawn, on what, and the codec's moments."""

    concept: np.ndarray
    family: np.ndarray
    background: np.ndarray
    moments: torch.Tensor  # bf16 [N, 32, H, W]: mean and log variance


def new_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=text.WIDTH,
        pooled_projection_dim=text.WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    )


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's, with the shift of its largest pictures at 64 tokens (64 px), rising with the root of their number.

    What is drawn is decided at high noise: with FLUX.1-dev's smallest shift a tenth of the training was there, and the
    colours of a thing were learned but not its form (6 points more of 100 captions named after 600 steps at 1.15).
    """
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=1.15, max_shift=1.85, base_image_seq_len=64, max_image_seq_len=256
    )


@torch.no_grad()
def cache_scenes(folder: Path, concepts: list[pictures.Concept], codec: AutoencoderKL, shape: Shape, seed: int) -> Scenes:
    rng = np.random.default_rng((4, seed))
    families = (pictures.NOTO, pictures.FLUENT_FLAT)
    names = list(pictures.BACKGROUNDS)
    rows = [(c, f) for c in range(len(concepts)) for f in (0, 1) for _ in range(shape.scenes)]
    # White is what prompts without a background mean, so it is seen more often.
    backgrounds = np.where(rng.random(len(rows)) < 0.25, 0, rng.integers(len(names), size=len(rows)))
    moments = []
    for start in range(0, len(rows), 128):
        scenes = [
            pictures.compose(
                pictures.drawing(folder, families[f], concepts[c].code),
                pictures.BACKGROUNDS[names[b]],
                shape.size,
                rng.uniform(0.8, 0.95),
                tuple(rng.uniform(0.4, 0.6, 2)),
            )
            for (c, f), b in zip(rows[start : start + 128], backgrounds[start : start + 128], strict=True)
        ]
        batch = torch.from_numpy(pictures.to_tensor_range(np.stack(scenes))).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            moments.append(codec.encode(batch).latent_dist.parameters.bfloat16())
    concept, family = np.array(rows).T
    return Scenes(concept, family, backgrounds, torch.cat(moments))


def cache_all(folder: Path, concepts: list[pictures.Concept], codec: AutoencoderKL, cache: Path) -> list[Scenes]:
    if not cache.exists():
        found = [cache_scenes(folder, concepts, codec, s, n) for n, s in enumerate(tqdm(SHAPES, desc="latents"))]
        torch.save([vars(s) | {k: torch.from_numpy(v) for k, v in vars(s).items() if k != "moments"} for s in found], cache)
    return [
        Scenes(**{k: v if k == "moments" else v.numpy() for k, v in s.items()}) for s in torch.load(cache, weights_only=True)
    ]


class Batches:
    """Batches by step: the same step always gives the same batch. Before ``square_steps`` all are of the first shape."""

    def __init__(self, scenes: list[Scenes], concepts: list[pictures.Concept], codec: AutoencoderKL, square_steps: int = 0):
        self.square_steps = square_steps
        self.scenes, self.concepts, self.config = scenes, concepts, codec.config
        self.backgrounds = list(pictures.BACKGROUNDS)

    def __call__(
        self, stage: int, step: int, caption_of=captions.dropped_caption
    ) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """-> packed latents [B, tokens, 64], image ids [tokens, 3], captions."""
        rng = np.random.default_rng((stage, step))
        n = rng.choice(len(SHAPES), p=[s.share for s in SHAPES]) if step >= self.square_steps else 0
        scenes = self.scenes[n]
        flat = rng.random(SHAPES[n].batch) < FLAT_SHARE
        chosen = [rng.choice(np.flatnonzero(scenes.family == f)) for f in flat]
        prompts = [
            caption_of(
                self.concepts[scenes.concept[i]],
                (pictures.NOTO, pictures.FLUENT_FLAT)[scenes.family[i]],
                self.backgrounds[scenes.background[i]],
                rng,
            )
            for i in chosen
        ]
        mean, log_variance = scenes.moments[chosen].float().chunk(2, dim=1)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        latents = (latents - self.config.shift_factor) * self.config.scaling_factor
        batch, channels, height, width = latents.shape
        packed = FluxPipeline._pack_latents(latents, batch, channels, height, width)
        ids = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, latents.device, latents.dtype)
        return packed, ids, prompts


def sample_sigmas(scheduler: FlowMatchEulerDiscreteScheduler, count: int, tokens: int) -> torch.Tensor:
    """Logit-normal, shifted by the number of tokens as sampling is."""
    shift = resolution_shift(scheduler, tokens)
    sigmas = torch.sigmoid(torch.randn(count))
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def velocity(transformer, noisy, sigmas, guidance, pooled, embeds, ids) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return transformer(
            hidden_states=noisy,
            timestep=sigmas,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3),
            img_ids=ids,
            return_dict=False,
        )[0].float()


def rate_factor(step: int) -> float:
    """Share of the learning rate: warm-up, and a cool-down to zero over the last half, which is where the
    drawings become sharp."""
    return min(1, (step + 1) / 300, (STEPS - step) / 5000)


def train(encoders: text.TextEncoders, batches: Batches, checkpoints: Checkpoints) -> FluxTransformer2DModel:
    """Train the transformer and the text encoders together, or return them as they were trained before."""
    torch.manual_seed(5)
    transformer = new_transformer()
    modules = torch.nn.ModuleDict({"transformer": transformer, "text": encoders.modules()})
    optimizer = torch.optim.AdamW(modules.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor)
    start = checkpoints.resume("transformer", modules=modules, optimizer=optimizer, schedule=schedule)
    if start == STEPS:
        return transformer.requires_grad_(False)
    scheduler = new_scheduler()
    transformer.compile_repeated_blocks(dynamic=True)  # a third faster; the shapes differ in their token counts
    progress = trange(start, STEPS, initial=start, total=STEPS, desc="transformer", mininterval=10)
    average = None
    for step in progress:
        torch.manual_seed(step)
        latents, ids, prompts = batches(6, step)
        sigmas = sample_sigmas(scheduler, len(latents), latents.shape[1])
        noise = torch.randn_like(latents)
        noisy = torch.lerp(latents, noise, sigmas[:, None, None])
        pooled, embeds = encoders(prompts)
        loss = (
            (velocity(transformer, noisy, sigmas, torch.ones(len(latents)), pooled, embeds, ids) - (noise - latents))
            .pow(2)
            .mean()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average = loss.item() if average is None else 0.99 * average + 0.01 * loss.item()
        progress.set_postfix(loss=f"{average:.3f}", refresh=False)
        checkpoints.save(
            "transformer", step + 1, last=step + 1 == STEPS, modules=modules, optimizer=optimizer, schedule=schedule
        )
    return transformer.requires_grad_(False)


def distill_guidance(
    transformer: FluxTransformer2DModel, encoders: text.TextEncoders, batches: Batches, checkpoints: Checkpoints
) -> FluxTransformer2DModel:
    """Teach one pass with guidance g what u + g (c - u) of two passes is (Meng et al. 2023), as FLUX.1-dev was."""
    teacher = copy.deepcopy(transformer).requires_grad_(False)
    student = transformer.requires_grad_(True)
    encoders.modules().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=DISTILLATION_LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 50, 1.02 - s / DISTILLATION_STEPS))
    start = checkpoints.resume("distillation", student=student, optimizer=optimizer, schedule=schedule)
    scheduler = new_scheduler()
    empty = [part[0] for part in encoders([""])]
    progress = trange(start, DISTILLATION_STEPS, initial=start, total=DISTILLATION_STEPS, desc="distillation", mininterval=10)
    for step in progress:
        torch.manual_seed(step)
        latents, ids, prompts = batches(7, step, captions.caption)
        count = len(latents)
        sigmas = sample_sigmas(scheduler, count, latents.shape[1])
        noisy = torch.lerp(latents, torch.randn_like(latents), sigmas[:, None, None])
        guidance = torch.empty(count).uniform_(*GUIDANCE)
        pooled, embeds = encoders(prompts)
        with torch.no_grad():
            both = velocity(
                teacher,
                noisy.repeat(2, 1, 1),
                sigmas.repeat(2),
                torch.ones(2 * count),
                torch.cat([pooled, empty[0].expand_as(pooled)]),
                torch.cat([embeds, empty[1].expand_as(embeds)]),
                ids,
            )
            conditional, unconditional = both.chunk(2)
            target = unconditional + guidance[:, None, None] * (conditional - unconditional)
        loss = (velocity(student, noisy, sigmas, guidance, pooled, embeds, ids) - target).pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        checkpoints.save(
            "distillation",
            step + 1,
            last=step + 1 == DISTILLATION_STEPS,
            student=student,
            optimizer=optimizer,
            schedule=schedule,
        )
    return student.requires_grad_(False)
