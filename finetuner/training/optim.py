"""The two optimizers, with one face: set the rate, step after backward, and a state to checkpoint (the trained parameters
are part of it). On several ranks all of them step alike, by the gradient's mean over the ranks."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.optimization import Adafactor

from finetuner.training.ranks import ALONE, Ranks
from finetuner.training.recipe import Recipe


def rate_factor(step: int, recipe: Recipe) -> float:
    """Share of the learning rate at ``step``: linear warm-up, then cosine decay to ``recipe.final_rate``."""
    warmup = max(1, round(recipe.warmup_share * recipe.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.final_rate + (1 - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


class LoraOptimizer:
    """AdamW, LoRA B faster than A (LoRA+), the whole gradient clipped to a norm."""

    def __init__(self, parameters: dict[str, nn.Parameter], recipe: Recipe, ranks: Ranks = ALONE):
        self.parameters = parameters
        self.ranks = ranks
        ranks.agree(p.detach() for p in parameters.values())
        self.clip_norm = recipe.clip_norm
        groups = [
            {"params": [p for n, p in parameters.items() if ".lora_A." in n], "rate": recipe.learning_rate},
            {
                "params": [p for n, p in parameters.items() if ".lora_B." in n],
                "rate": recipe.learning_rate * recipe.lora_b_rate,
            },
        ]
        self.adamw = torch.optim.AdamW(groups, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)

    def set_rate(self, factor: float) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = group["rate"] * factor

    def step(self) -> float:
        """Apply the gradients and drop them; returns their norm."""
        if self.ranks.count > 1:
            self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip_norm)
        self.adamw.step()
        self.adamw.zero_grad()
        return norm.item()

    def _average_gradients(self) -> None:
        """All in one reduction. It stands beside the gradients for a moment, as AdamW's temporaries do."""
        parameters = list(self.parameters.values())
        flat = self.ranks.average(torch.cat([p.grad.flatten() for p in parameters]))
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)

    def state_dict(self) -> dict:
        return {"parameters": _detached(self.parameters), "optimizer": self.adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        _copy(state["parameters"], self.parameters)
        self.adamw.load_state_dict(state["optimizer"])


class InBackwardOptimizer:
    """Adafactor on each matrix as soon as backward has its gradient, so that gradients never stand all at once.

    Adafactor (Shazeer & Stern 2018) keeps a row and a column per matrix instead of two more copies of it, and clips each
    matrix's update by itself. The ranks' gradients are averaged one by one, too, in the order in which backward has them,
    which is the same on all.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], recipe: Recipe, ranks: Ranks = ALONE):
        self.parameters = parameters
        self.ranks = ranks
        self.rate = recipe.learning_rate
        self.square_norms: list[torch.Tensor] = []
        self.optimizers = {
            name: Adafactor([p], lr=self.rate, scale_parameter=False, relative_step=False, warmup_init=False)
            for name, p in parameters.items()
        }
        for name, parameter in parameters.items():
            parameter.register_post_accumulate_grad_hook(lambda p, optimizer=self.optimizers[name]: self._apply(p, optimizer))

    def _apply(self, parameter: nn.Parameter, optimizer: Adafactor) -> None:
        self.ranks.average(parameter.grad)
        self.square_norms.append(parameter.grad.float().square().sum())
        optimizer.step()
        parameter.grad = None

    def set_rate(self, factor: float) -> None:
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = self.rate * factor

    def step(self) -> float:
        """The matrices have been stepped in backward; returns the norm of the gradient they had."""
        norm = torch.stack(self.square_norms).sum().sqrt().item()
        self.square_norms.clear()
        return norm

    def state_dict(self) -> dict:
        states = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {"parameters": _detached(self.parameters), "optimizers": states}

    def load_state_dict(self, state: dict) -> None:
        _copy(state["parameters"], self.parameters)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])


def _detached(parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in parameters.items()}


@torch.no_grad()
def _copy(saved: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])
