"""A training step on two cores: a second process computes the gradient of the other half of the batch.

Two threads of one process wait for each other at every one of a small model's thousand operations, which costs more than half
of the time and nearly all of it where the cores have other work; two processes meet once a step.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable

import torch
from torch import nn

Losses = Callable[[int, slice], list[torch.Tensor]]  # step, which half of the batch -> the scalars whose sum is minimised
PATIENCE = 5  # seconds between looks at whether the other process still lives


class TwoCores:
    """Both processes see one set of parameters; the first alone changes them."""

    def __init__(self, model: nn.Module, losses: Losses, batch: int, start: int, steps: int):
        self.losses, self.halves = losses, (slice(0, batch // 2), slice(batch // 2, batch))
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.share_memory()
        self.gradient = torch.zeros(sum(p.numel() for p in self.parameters)).share_memory_()
        self.values = torch.zeros(16).share_memory_()
        context = multiprocessing.get_context("fork")  # inherits model and pictures; no thread has been started yet
        self.go, self.done = context.Semaphore(0), context.Semaphore(0)
        self.helper = context.Process(target=self._help, args=(start, steps, os.getpid()), daemon=True)
        self.helper.start()

    def backward(self, step: int) -> list[float]:
        """Leave the whole batch's gradient in ``.grad``; the losses, averaged over both halves.

        Raises:
            RuntimeError: the second process ended.
        """
        self.go.release()
        values = self._half(step, self.halves[0])
        while not self.done.acquire(timeout=PATIENCE):
            if not self.helper.is_alive():
                raise RuntimeError(
                    f"the second process of the training ended with {self.helper.exitcode}; run the build again."
                )
        parts = self.gradient.split([p.numel() for p in self.parameters])
        for parameter, other in zip(self.parameters, parts, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(other.view_as(parameter)).mul_(0.5)
        return [(ours + theirs) / 2 for ours, theirs in zip(values, self.values.tolist(), strict=False)]

    def _half(self, step: int, half: slice) -> list[float]:
        losses = self.losses(step, half)
        torch.stack(losses).sum().backward()
        return [loss.item() for loss in losses]

    def _help(self, start: int, steps: int, parent: int) -> None:
        for step in range(start, steps):
            while not self.go.acquire(timeout=PATIENCE):
                if os.getppid() != parent:
                    return
            for parameter in self.parameters:
                parameter.grad = None
            values = self._half(step, self.halves[1])
            for parameter, kept in zip(self.parameters, self.gradient.split([p.numel() for p in self.parameters]), strict=True):
                kept.copy_(torch.zeros_like(kept) if parameter.grad is None else parameter.grad.flatten())
            self.values[: len(values)] = torch.tensor(values)
            self.done.release()
