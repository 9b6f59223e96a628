"""The training loop."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn
from tqdm import tqdm

from finetuner.bases import Size, device_name
from finetuner.training.checkpoint import Checkpoint
from finetuner.training.dataset import Batch, Bucket, Dataset, batch_schedule
from finetuner.training.flow import Samples, resolution_shift, sample_sigmas, velocity_errors
from finetuner.training.optim import InBackwardOptimizer, LoraOptimizer, rate_factor
from finetuner.training.preserve import draw_preserved, preserved_samples
from finetuner.training.ranks import ALONE, Ranks
from finetuner.training.recipe import Recipe
from finetuner.training.strength import at_strength, strength_of
from finetuner.training.tracker import track

log = logging.getLogger(__name__)

SMOOTHING = 0.95  # of the loss that people are shown: a single step's depends mostly on its noise levels


@dataclass
class History:
    """One value a step, and where the steps ran."""

    losses: list[float] = field(default_factory=list)
    smoothed_losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)  # in turn: a job may go on on another

    def append(self, loss: float, gradient_norm: float) -> None:
        before = self.smoothed_losses[-1] if self.losses else 0.0
        self.losses.append(loss)
        weight = (1 - SMOOTHING) / (1 - SMOOTHING ** len(self.losses))  # the first losses count evenly
        self.smoothed_losses.append(before + weight * (loss - before))
        self.gradient_norms.append(gradient_norm)

    def note_device(self, name: str) -> None:
        if self.devices[-1:] != [name]:
            self.devices.append(name)

    def series(self) -> dict[str, list[float]]:
        """What has one value a step, by name."""
        return {name: values for name, values in vars(self).items() if name != "devices"}

    def state_dict(self) -> dict:
        return vars(self)

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def train(
    transformer: nn.Module,
    optimizer: LoraOptimizer | InBackwardOptimizer,
    dataset: Dataset,
    scheduler: FlowMatchEulerDiscreteScheduler,
    recipe: Recipe,
    checkpoint: Checkpoint,
    ranks: Ranks = ALONE,
) -> History:
    """Train what is trainable in ``transformer``, going on from ``checkpoint`` where it holds a state.

    Every step draws from a generator of its own, so that a resumed job ends with the same bits as one that ran through.

    Raises:
        FloatingPointError: the loss or the gradient is not finite.
    """
    schedule = batch_schedule(dataset.buckets, recipe.steps, recipe.batch_size, recipe.seed)
    history = History()
    checkpoint.restore(optimizer=optimizer, history=history)
    history.note_device(device_name() if ranks.count == 1 else f"{ranks.count} x {device_name()}")
    done = len(history.losses)
    if done:
        log.info("Going on from step %d of %d, where the checkpoint of an earlier run of this job stands", done, recipe.steps)
    with tqdm(total=recipe.steps, initial=done, desc="Training", unit="step", mininterval=1) as progress:
        for step, (size, rows) in enumerate(schedule[done:], start=done):
            samples = taught = Samples.of(*draw_batch(dataset, size, rows, scheduler, recipe, recipe.seed + step, ranks))
            if recipe.preserved_images:
                kept = draw_preserved(dataset, size, rows, scheduler, recipe, recipe.seed + recipe.steps + step)
                samples = Samples.cat([taught, preserved_samples(transformer, *kept, recipe)])

            optimizer.set_rate(rate_factor(step, recipe))
            with at_strength(transformer, strength_of(step, recipe)):
                errors = accumulate_gradients(transformer, samples, recipe)
            norm = optimizer.step()

            loss = ranks.average(errors[: len(taught)].mean()).item()  # once: on a GPU each waits for the step to end
            _require_finite(step, loss, norm, recipe)
            history.append(loss, norm)
            images = recipe.batch_size * (progress.format_dict["rate"] or 0)
            rate = recipe.learning_rate * rate_factor(step, recipe)
            track(step + 1, loss=loss, gradient_norm=norm, learning_rate=rate, images_per_second=images)
            checkpoint.save_when_due(optimizer=optimizer, history=history)
            progress.set_postfix(loss=f"{history.smoothed_losses[-1]:.4f}", images=f"{images:.1f}/s", refresh=False)
            progress.update()
    return history


def draw_batch(
    dataset: Dataset,
    size: Size,
    rows: torch.Tensor,
    scheduler: FlowMatchEulerDiscreteScheduler,
    recipe: Recipe,
    seed: int,
    ranks: Ranks = ALONE,
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """All that is random in a step: the batch, its noise [B, tokens, channels] and noise levels [B], both float32.

    Every rank draws all of it and takes its share, so that the step is the same however many there are.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = choose_texts(dataset.buckets[size], rows, recipe, generator)
    batch = dataset.batch(size, rows, texts, generator)
    noise = torch.randn(batch.latents.shape, generator=generator).to(batch.latents.device)
    shift = resolution_shift(scheduler, tokens=batch.latents.shape[1])
    sigmas = sample_sigmas(len(rows), shift, recipe.logit_mean, recipe.logit_std, generator).to(noise.device)
    share = ranks.rows(len(rows))
    return batch[share], noise[share], sigmas[share]


def choose_texts(bucket: Bucket, rows: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Which text each image comes with, int64 [B]: its caption, or now and then the empty one."""
    dropped = torch.rand(len(rows), generator=generator) < recipe.caption_dropout
    return bucket.captions[rows].masked_fill(dropped, 0)


def accumulate_gradients(transformer: nn.Module, samples: Samples, recipe: Recipe) -> torch.Tensor:
    """Add up the gradients of the samples, a micro-batch at a time; returns each one's error, [B]."""
    errors = []
    for start in range(0, len(samples), recipe.plan.micro_batch):
        part = samples[start : start + recipe.plan.micro_batch]
        found = velocity_errors(transformer, part, recipe.guidance)
        (found * part.weights).sum().backward()
        errors.append(found.detach())
    return torch.cat(errors)


def _require_finite(step: int, loss: float, norm: float, recipe: Recipe) -> None:
    if not math.isfinite(loss + norm):
        rate = recipe.learning_rate * rate_factor(step, recipe)
        raise FloatingPointError(
            f"learning_rate: training broke at step {step + 1} of {recipe.steps}: the loss is {loss}, the gradient {norm},"
            f" the learning rate {rate:g} (base scale included). Nothing was published. Try again with a third of the rate."
        )
