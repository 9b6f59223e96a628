"""The transformer: trained jointly with the text encoders on the codec's latents, taught looks and made-up words, and guidance
distilled into it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from tqdm import trange

from finetuner.training.flow import resolution_shift

from . import captions, text
from .checkpoints import Checkpoints
from .scenes import Batches

STEPS = 9000
SQUARE_STEPS = 6000  # one shape first: where things stand is learned fastest on one grid; then all shapes
LOOK_STEPS = 3600
DISTILLATION_STEPS = 600
LEARNING_RATE = 1e-3
LOOK_LEARNING_RATE = 6e-4  # it knows the things already
DISTILLATION_LEARNING_RATE = 3e-4
BETAS = (0.9, 0.98)
GUIDANCE = (1.0, 5.0)  # the distilled range; 1 is the model without guidance


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


def train(encoders: text.TextEncoders, batches: Batches, checkpoints: Checkpoints) -> FluxTransformer2DModel:
    """Train the transformer and the text encoders together, or return them as they were trained before."""

    def rate(step: int) -> float:
        """Warm-up, and a cool-down to zero over the last half, which is where the drawings become sharp."""
        return LEARNING_RATE * min(1, (step + 1) / 300, (STEPS - step) / 5000)

    torch.manual_seed(5)
    transformer = new_transformer()
    _fit("transformer", 6, STEPS, rate, transformer, encoders, batches, captions.dropped_caption, checkpoints)
    return transformer


def teach_looks(
    transformer: FluxTransformer2DModel, encoders: text.TextEncoders, batches: Batches, checkpoints: Checkpoints
) -> None:
    """Train both further on looks and on made-up words that stand for a look or a thing (`captions.taught_caption`)."""

    def rate(step: int) -> float:
        return LOOK_LEARNING_RATE * min(1, (step + 1) / 100, (LOOK_STEPS - step) / (0.8 * LOOK_STEPS))

    _fit("looks", 8, LOOK_STEPS, rate, transformer, encoders, batches, captions.dropped_taught_caption, checkpoints)


def _fit(
    stage: str,
    stage_seed: int,
    steps: int,
    rate: Callable[[int], float],
    transformer: FluxTransformer2DModel,
    encoders: text.TextEncoders,
    batches: Batches,
    caption_of: Callable[..., str],
    checkpoints: Checkpoints,
) -> None:
    modules = torch.nn.ModuleDict({"transformer": transformer, "text": encoders.modules()}).requires_grad_(True)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1.0, betas=BETAS, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start = checkpoints.resume(stage, modules=modules, optimizer=optimizer, schedule=schedule)
    if start < steps:
        transformer.compile_repeated_blocks(dynamic=True)  # a third faster; the shapes differ in their token counts
    scheduler = new_scheduler()
    progress = trange(start, steps, initial=start, total=steps, desc=stage, mininterval=10)
    average = None
    for step in progress:
        torch.manual_seed(step)
        latents, ids, prompts = batches(stage_seed, step, caption_of)
        sigmas = sample_sigmas(scheduler, len(latents), latents.shape[1])
        noise = torch.randn_like(latents)
        noisy = torch.lerp(latents, noise, sigmas[:, None, None])
        pooled, embeds = encoders(prompts)
        predicted = velocity(transformer, noisy, sigmas, torch.ones(len(latents)), pooled, embeds, ids)
        loss = (predicted - (noise - latents)).pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average = loss.item() if average is None else 0.99 * average + 0.01 * loss.item()
        progress.set_postfix(loss=f"{average:.3f}", refresh=False)
        checkpoints.save(stage, step + 1, last=step + 1 == steps, modules=modules, optimizer=optimizer, schedule=schedule)
    modules.requires_grad_(False)


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
        latents, ids, prompts = batches(7, step, captions.taught_caption)
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
