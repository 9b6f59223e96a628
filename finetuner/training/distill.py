"""Give the extracted LoRA back part of what its rank lost: a short training against the full fine-tune itself."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn
from tqdm import tqdm

from finetuner.training import adapter, delta
from finetuner.training.dataset import Dataset, batch_schedule
from finetuner.training.flow import predict_velocity
from finetuner.training.optim import LoraOptimizer, rate_factor
from finetuner.training.ranks import ALONE, Ranks
from finetuner.training.recipe import Recipe
from finetuner.training.strength import strength_of
from finetuner.training.trainer import draw_batch


def distill_lora(
    transformer: nn.Module,
    lora: dict[str, torch.Tensor],
    dataset: Dataset,
    scheduler: FlowMatchEulerDiscreteScheduler,
    recipe: Recipe,
    ranks: Ranks = ALONE,
) -> None:
    """Train the LoRA so that the transformer with it, its deltas off, has the velocity that it has with the deltas on, at each
    strength.

    An SVD keeps what is large in the weights; what counts is what is large in the velocity, on this data.

    Args:
        lora: the LoRA's matrices in the transformer, by name; trained in place, and frozen again after.
    """
    recipe = replace(recipe, steps=recipe.distillation_steps, learning_rate=recipe.distillation_rate, lora_b_rate=1.0)
    trained = {name: parameter.requires_grad_(True) for name, parameter in lora.items()}
    optimizer = LoraOptimizer(trained, recipe, ranks)
    batches = batch_schedule(dataset.buckets, recipe.steps, recipe.batch_size, recipe.seed + 1)
    for step, (size, rows) in enumerate(tqdm(batches, desc="Distilling", unit="step", mininterval=1)):
        batch, noise, sigmas = draw_batch(dataset, size, rows, scheduler, recipe, recipe.seed + 1 + step, ranks)
        noisy = torch.lerp(batch.latents, noise, sigmas[:, None, None])

        optimizer.set_rate(rate_factor(step, recipe))
        strength = strength_of(step, recipe)
        _use(transformer, lora=0.0, deltas=strength)
        with torch.no_grad():
            target = predict_velocity(transformer, noisy, sigmas, batch, recipe.guidance)
        _use(transformer, lora=strength, deltas=0.0)
        nn.functional.mse_loss(predict_velocity(transformer, noisy, sigmas, batch, recipe.guidance), target).backward()
        optimizer.step()
    _use(transformer, lora=1.0, deltas=0.0)
    for parameter in trained.values():
        parameter.requires_grad_(False)


def _use(transformer: nn.Module, *, lora: float | torch.Tensor, deltas: float | torch.Tensor) -> None:
    """The LoRA, or the deltas that it was extracted from."""
    adapter.set_strength(transformer, lora)
    delta.set_strength(transformer, deltas)
