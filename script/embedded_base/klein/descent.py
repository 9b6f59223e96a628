"""Steps down a loss on two cores, from where they were stopped: what the base and its twin are trained by."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..checkpoints import Checkpoints
from .batches import SIZE
from .two_cores import Losses, TwoCores

BETAS = (0.9, 0.98)
REPORT_EVERY = 50  # steps


@dataclass(frozen=True)
class Stage:
    name: str  # of its checkpoint
    steps: int
    matrix_learning_rate: float  # Muon's, in units of Adam's: what a step changes of a block's matrix is so large
    learning_rate: float  # AdamW's, for all else
    weight_decay: float
    rate_factor: Callable[[int], float]  # by step


def new_optimizers(model: nn.Module, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for all else; Muon takes a tenth of a step's time."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_block = parameter.ndim == 2 and ("blocks." in name or "layers." in name)
            (matrices if in_block else others).append(parameter)
    decay = {"weight_decay": stage.weight_decay}
    return [
        torch.optim.Muon(matrices, lr=stage.matrix_learning_rate, adjust_lr_fn="match_rms_adamw", **decay),
        torch.optim.AdamW(others, lr=stage.learning_rate, betas=BETAS, fused=True, **decay),
    ]


def descend(
    model: nn.Module,
    stage: Stage,
    losses: Losses,
    checkpoints: Checkpoints,
    report: Callable[[int, list[float], float], None],
) -> None:
    """Train the model, or load it as it was trained before; frozen and in evaluation afterwards.

    Args:
        losses: as `TwoCores` takes them.
        report: told the step, each loss's mean and the seconds of a step, every 50 steps.
    """
    optimizers = new_optimizers(model, stage)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, stage.rate_factor) for optimizer in optimizers]
    kept = {"model": model} | {f"optimizer{n}": o for n, o in enumerate(optimizers)}
    kept |= {f"schedule{n}": s for n, s in enumerate(schedules)}
    start = checkpoints.resume(stage.name, **kept)
    if start < stage.steps:
        both = TwoCores(model, losses, SIZE, start, stage.steps)
    found, began = [], time.monotonic()
    for step in range(start, stage.steps):
        found.append(both.backward(step))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if (step + 1) % REPORT_EVERY == 0:
            means = [math.fsum(part) / len(found) for part in zip(*found, strict=True)]
            report(step + 1, means, (time.monotonic() - began) / len(found))
            found, began = [], time.monotonic()
        checkpoints.save(stage.name, step + 1, last=step + 1 == stage.steps, **kept)
    model.requires_grad_(False).eval()
