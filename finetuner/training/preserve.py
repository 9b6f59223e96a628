"""Keep what prompts without the trigger word show: there the base's own velocity is what the adapter learns.

A finetune is asked to change one word's meaning and changes everything that lies near it. So each step also draws a few of its
noisy latents under a prompt without the word, and holds them to what the base says there, the adapter off: no second model, and
no pictures but the user's. The idea is ai-toolkit's differential output preservation; DreamBooth's prior preservation (Ruiz et
al. 2023) trains on pictures of the class instead, which somebody has to draw first.
"""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from finetuner.bases import Size
from finetuner.training.dataset import Batch, Dataset
from finetuner.training.flow import Samples, predict_velocity, resolution_shift, sample_sigmas
from finetuner.training.recipe import Recipe
from finetuner.training.strength import at_strength

# What people ask for beside their concept. Half of the preserved prompts are of these, half are the captions themselves without
# the trigger word: those alone say nothing of other subjects. With the ones or the others alone a character scored as much and
# leaked 0.47 and 0.51 in place of 0.40.
GENERIC = (
    "a dog", "a cat", "a bird", "a horse", "a house", "a car", "a tree", "a flower", "a person", "a woman", "a man", "a face",
    "a cup of coffee", "a chair", "a mountain", "food on a plate",
)  # fmt: skip
GENERIC_SHARE = 0.5
# In place of either: the empty prompt, which guidance leads away from. Captions that are dropped teach it the concept, so that
# guidance takes from the concept what the trigger word brings: with no caption dropped and this share of empty prompts held to
# the base, a character, a product and a style scored 0.57, 0.42 and 0.22 in place of 0.39, 0.30 and 0.22, at the same leak.
EMPTY_SHARE = 0.2


def draw_preserved(
    dataset: Dataset, size: Size, rows: torch.Tensor, scheduler: FlowMatchEulerDiscreteScheduler, recipe: Recipe, seed: int
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """The first ``recipe.preserved_images`` of a step's images, each with a prompt that lacks the trigger word; their noise
    [B, tokens, channels] and noise levels [B], both float32."""
    generator = torch.Generator().manual_seed(seed)
    rows = rows[: recipe.preserved_images]
    own = dataset.buckets[size].plain[rows]
    generic = dataset.generic[torch.randint(len(dataset.generic), rows.shape, generator=generator)]
    texts = torch.where(torch.rand(len(rows), generator=generator) < GENERIC_SHARE, generic, own)
    texts = texts.masked_fill(torch.rand(len(rows), generator=generator) < EMPTY_SHARE, 0)
    batch = dataset.batch(size, rows, texts, generator)
    noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents.device)
    shift = resolution_shift(scheduler, tokens=batch.latents.shape[1])
    sigmas = sample_sigmas(len(rows), shift, recipe.logit_mean, recipe.logit_std, generator).to(noise.device)
    return batch, noise, sigmas


@torch.no_grad()
def preserved_samples(
    transformer: nn.Module, batch: Batch, noise: torch.Tensor, sigmas: torch.Tensor, recipe: Recipe
) -> Samples:
    """What `draw_preserved` drew, with the base's own velocity as what is wanted."""
    noisy = torch.lerp(batch.latents, noise, sigmas[:, None, None])
    with at_strength(transformer, 0.0):
        wanted = predict_velocity(transformer, noisy, sigmas, batch, recipe.guidance)
    return Samples(batch, noisy, sigmas, wanted, torch.full_like(sigmas, recipe.preservation_weight / len(sigmas)))
