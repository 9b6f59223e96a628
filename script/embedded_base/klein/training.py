"""The transformer and the text encoder, trained together on the scenes' latents."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from finetuner.training.flow import resolution_shift, sample_sigmas

from ..checkpoints import Checkpoints
from . import text
from .batches import Batch, Batches, image_ids
from .descent import Stage, descend

STEPS = 15_000
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


STAGE = Stage("klein", STEPS, matrix_learning_rate=3e-3, learning_rate=1e-3, weight_decay=0.01, rate_factor=rate_factor)


def velocity_of(
    transformer: Flux2Transformer2DModel,
    noisy: torch.Tensor,
    sigmas: torch.Tensor,
    image_ids: torch.Tensor,
    embeds: torch.Tensor,
) -> torch.Tensor:
    """Of every token, float32 [B, tokens, 64], computed in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return transformer(
            hidden_states=noisy,
            encoder_hidden_states=embeds.float(),
            timestep=sigmas,
            img_ids=image_ids,
            txt_ids=Flux2KleinPipeline._prepare_text_ids(embeds[:1])[0].float(),
            return_dict=False,
        )[0].float()


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
        return velocity_of(self.transformer, noisy, sigmas, image_ids, embeds), language


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


def train(model: Model, tokens: PreTrainedTokenizerFast, batches: Batches, checkpoints: Checkpoints, curve: Path) -> None:
    """Train both, or load them as they were trained before. The loss goes to ``curve``, a line every 50 steps."""

    def report(step: int, means: list[float], seconds: float) -> None:
        flow, language = means
        line = f"{step} flow {flow:.4f} language {language / LANGUAGE_WEIGHT:.3f} {seconds:.2f} s a step"
        logging.info(line)
        with curve.open("a") as file:
            file.write(line + "\n")

    def losses(step: int, part: slice) -> list[torch.Tensor]:
        return losses_of(model, tokens, batches(step), step, part)

    descend(model, STAGE, losses, checkpoints, report)
