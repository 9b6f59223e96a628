"""The two ways to learn: a LoRA directly, or all block linears, whose change is then made a LoRA."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from finetuner.training import adapter, delta
from finetuner.training.activations import checkpoint_blocks
from finetuner.training.checkpoint import Checkpoint
from finetuner.training.compiling import compiled_blocks
from finetuner.training.dataset import Dataset
from finetuner.training.distill import distill_lora
from finetuner.training.extract import extract_lora
from finetuner.training.flow import probe_velocities
from finetuner.training.optim import InBackwardOptimizer, LoraOptimizer
from finetuner.training.ranks import ALONE, Ranks
from finetuner.training.recipe import Recipe
from finetuner.training.trainer import History, train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learned:
    weights: dict[str, torch.Tensor]  # the LoRA, as `adapter.adapter_state_dict` names it
    history: History
    extraction: dict  # what the manifest says of it; empty where there was none


def learn(
    transformer: nn.Module,
    dataset: Dataset,
    scheduler: FlowMatchEulerDiscreteScheduler,
    recipe: Recipe,
    checkpoint: Checkpoint,
    ranks: Ranks = ALONE,
) -> Learned:
    """Train a LoRA, or all block linears and a LoRA extracted from their change; it is left in the transformer.

    On several ranks, each calls it with the same arguments but ``ranks`` and comes to the same LoRA.
    """
    checkpoint_blocks(transformer, recipe.plan.checkpointed_blocks)
    optimizer: LoraOptimizer | InBackwardOptimizer
    if recipe.finetune_type == "lora":
        adapter.add_adapter(transformer, recipe.rank, recipe.seed)
        optimizer = LoraOptimizer(adapter.trainable_weights(transformer), recipe, ranks)
    else:
        delta.add_deltas(transformer)
        optimizer = InBackwardOptimizer(delta.deltas(transformer), recipe, ranks)
    with compiled_blocks(transformer) if recipe.plan.compiled else nullcontext():
        history = train(transformer, optimizer, dataset, scheduler, recipe, checkpoint, ranks)
    facts = {} if recipe.finetune_type == "lora" else _exchange_for_lora(transformer, dataset, scheduler, recipe, ranks)
    return Learned(adapter.adapter_state_dict(transformer), history, facts)


def _exchange_for_lora(
    transformer: nn.Module, dataset: Dataset, scheduler: FlowMatchEulerDiscreteScheduler, recipe: Recipe, ranks: Ranks
) -> dict:
    """Extract a LoRA from the deltas, distil it, and leave it in their place; returns what it kept of them."""
    full = probe_velocities(transformer, dataset, recipe.guidance)
    trained = {name: parameter.requires_grad_(False) for name, parameter in delta.deltas(transformer).items()}
    extraction = extract_lora(trained, recipe.rank, recipe.seed)
    adapter.add_adapter(transformer, recipe.rank, recipe.seed)
    adapter.load_adapter_state_dict(transformer, extraction.weights)
    distill_lora(transformer, adapter.trainable_weights(transformer), dataset, scheduler, recipe, ranks)
    delta.remove_deltas(transformer)

    extracted = probe_velocities(transformer, dataset, recipe.guidance)
    adapter.set_strength(transformer, 0.0)
    before = probe_velocities(transformer, dataset, recipe.guidance)
    adapter.set_strength(transformer, 1.0)
    kept = 1 - ((full - extracted).norm() / (full - before).norm().clamp_min(1e-12)).item()
    log.info("The LoRA of rank %d keeps %.1f %% of the change in velocity", recipe.rank, 100 * kept)
    return {"energy_kept": extraction.total_energy, "velocity_kept": kept, "energy_by_linear": extraction.energy}
