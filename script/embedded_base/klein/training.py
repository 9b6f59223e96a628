"""The transformer and the text encoder, trained together on the scenes' latents."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from finetuner.training.flow import resolution_shift, sample_sigmas

from ..checkpoints import Checkpoints
from . import text
from .batches import SIZE, Batch, Batches, image_ids
from .two_cores import TwoCores

STEPS = 20_000
LEARNING_RATE = 1e-3
MATRIX_LEARNING_RATE = 3e-3  # Muon's, in units of Adam's: what a step changes of a block's matrix is so large
BETAS = (0.9, 0.98)
REPORT_EVERY = 50
WARMUP = 100
DECAY_SHARE = 0.25  # of the steps, the last: where the drawings become sharp
LANGUAGE_WEIGHT = 0.05
LOGIT_STD = 1.2  # a little wider than fine-tuning draws its noise: low noise, too, must be learned once


def new_transformer() -> Flux2Transformer2DModel:
    torch.manual_seed(5)
    return Flux2Transformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=len(text.READ_AFTER) * text.WIDTH,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """With the shift that the pipeline's ``compute_empirical_mu`` has at 20 steps: training sees the noise of drawing."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=1.83, max_shift=1.85, base_image_seq_len=64, max_image_seq_len=256
    )


def rate_factor(step: int) -> float:
    return min(1, (step + 1) / WARMUP, (STEPS - step) / (DECAY_SHARE * STEPS))


class Model(nn.Module):
    """Both, with what one training step needs of them."""

    def __init__(self, transformer: Flux2Transformer2DModel, encoder: Qwen3ForCausalLM):
        super().__init__()
        self.transformer, self.encoder = transformer, encoder

    def forward(
        self, noisy: torch.Tensor, sigmas: torch.Tensor, image_ids: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocity of every token, [B, tokens, 64], and the language model's loss."""
        embeds, hidden = text.encode(self.encoder, ids, mask)
        language = text.language_loss(self.encoder, hidden, ids, mask)
        text_ids = Flux2KleinPipeline._prepare_text_ids(embeds[:1])[0].float()
        with torch.autocast("cpu", torch.bfloat16):
            velocity = self.transformer(
                hidden_states=noisy,
                encoder_hidden_states=embeds,
                timestep=sigmas,
                img_ids=image_ids,
                txt_ids=text_ids,
                return_dict=False,
            )[0]
        return velocity.float(), language


def losses_of(model: Model, tokens: PreTrainedTokenizerFast, batch: Batch, seed: int, part: slice) -> list[torch.Tensor]:
    """Of a part of a batch: the flow's mean squared error, and the language model's loss by its weight. Float32 scalars."""
    generator = torch.Generator().manual_seed(seed)
    count = batch.latents.shape[1]
    sigmas = sample_sigmas(len(batch.latents), resolution_shift(new_scheduler(), count), 0.0, LOGIT_STD, generator)[part]
    noise = torch.randn(batch.latents.shape, generator=generator)[part]
    latents = batch.latents[part]
    noisy = torch.lerp(latents, noise, sigmas[:, None, None])
    shown = batch.references is not None
    if shown:
        noisy = torch.cat([noisy, batch.references[part]], dim=1)
    velocity, language = model(noisy, sigmas, image_ids(shown), *text.token_ids(tokens, batch.prompts[part]))
    return [(velocity[:, :count] - (noise - latents)).pow(2).mean(), LANGUAGE_WEIGHT * language]


def new_optimizers(model: Model) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for all else; Muon takes a tenth of a step's time."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_block = parameter.ndim == 2 and ("blocks." in name or "layers." in name)
            (matrices if in_block else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=BETAS, weight_decay=0.01, fused=True),
    ]


def train(model: Model, tokens: PreTrainedTokenizerFast, batches: Batches, checkpoints: Checkpoints, curve: Path) -> None:
    """Train both, or load them as they were trained before. The loss goes to ``curve``, a line every 50 steps."""
    optimizers = new_optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor) for optimizer in optimizers]
    kept = {"model": model} | {f"optimizer{n}": o for n, o in enumerate(optimizers)}
    kept |= {f"schedule{n}": s for n, s in enumerate(schedules)}
    start = checkpoints.resume("klein", **kept)
    if start < STEPS:
        both = TwoCores(model, lambda step, part: losses_of(model, tokens, batches(step), step, part), SIZE, start, STEPS)
    losses, began = [], time.monotonic()
    for step in range(start, STEPS):
        losses.append(both.backward(step))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if (step + 1) % REPORT_EVERY == 0:
            flow, language = (math.fsum(part) / len(losses) for part in zip(*losses, strict=True))
            seconds = (time.monotonic() - began) / len(losses)
            line = f"{step + 1} flow {flow:.4f} language {language / LANGUAGE_WEIGHT:.3f} {seconds:.2f} s a step"
            logging.info(line)
            with curve.open("a") as file:
                file.write(line + "\n")
            losses, began = [], time.monotonic()
        checkpoints.save("klein", step + 1, last=step + 1 == STEPS, **kept)
    model.requires_grad_(False).eval()
