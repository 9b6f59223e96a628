"""Redux's two parts as they begin, and what trains them."""

from __future__ import annotations

import torch
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from .. import text
from .views import SIDE

PATCH = 9  # pixels: as many tokens as a picture of 64 px has
GRID = SIDE // PATCH
WIDTH, LAYERS = 128, 2
TURNS = tuple(10_000 ** (-n / 7) for n in range(3))  # of FluxPosEmbed's 14 channels a direction, those that tell 8 places apart
PLACE_LOUDNESS = 2.0  # beside what a patch shows, whose channels deviate by about 0.6
WARMUP, DECAY_SHARE = 50, 0.4
REPORT_EVERY = 50


def new_tower() -> SiglipVisionModel:
    """Without the head that pools: Redux reads every place. A token says its place from the start (`_places`), in channels of
    its own: learned from nothing, it told a third to half of it after 1,200 steps, and the base drew colours and no form."""
    torch.manual_seed(31)
    config = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    tower = SiglipVisionModel(config)
    embeddings, places = tower.embeddings, _places()
    with torch.no_grad():
        embeddings.patch_embedding.weight[: places.shape[1]] = 0
        embeddings.position_embedding.weight[:, : places.shape[1]] = places
    return tower


def _places() -> torch.Tensor:
    """Sines and cosines of each token's row and column, at the first of the frequencies by which the base turns its queries, so
    that one of a place finds the token of that place. [tokens, channels]"""
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    waves = [f(place.flatten() * w) for place in (rows, columns) for w in TURNS for f in (torch.sin, torch.cos)]
    return PLACE_LOUDNESS * torch.stack(waves, dim=1)


def new_embedder() -> ReduxImageEncoder:
    """It begins as a projection alone: silu(x) - silu(-x) is x."""
    torch.manual_seed(32)
    embedder = ReduxImageEncoder(redux_dim=WIDTH, txt_in_features=text.WIDTH)
    places = 4 * len(TURNS)
    projection = torch.zeros(text.WIDTH, WIDTH)
    projection[:places, :places] = torch.eye(places)
    nn.init.orthogonal_(projection[places:, places:])
    with torch.no_grad():
        up, down = embedder.redux_up, embedder.redux_down
        for part in (up.weight, up.bias, down.weight, down.bias):
            part.zero_()
        for sign, rows in ((1, slice(0, WIDTH)), (-1, slice(WIDTH, 2 * WIDTH))):
            up.weight[rows] = sign * torch.eye(WIDTH)
            down.weight[:, rows] = sign * projection
    return embedder


def rate_factor(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY_SHARE * steps))


class Optimizer:
    """Muon (Jordan et al. 2024) for the tower's matrices, AdamW for all else: a ViT of so few pictures learns slowly by Adam
    alone."""

    def __init__(self, tower: SiglipVisionModel, head: nn.Module, rates: tuple[float, float, float]):
        rate, matrix_rate, head_rate = rates
        matrices, others = [], []
        for name, parameter in tower.named_parameters():
            (matrices if parameter.ndim == 2 and "layers." in name else others).append(parameter)
        groups = [{"params": others, "lr": rate}, {"params": list(head.parameters()), "lr": head_rate}]
        self.parts = {
            "muon": torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            "adam": torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
        }
        self.rates = [(group, group["lr"]) for part in self.parts.values() for group in part.param_groups]
        self.parameters = [*matrices, *others, *head.parameters()]

    def step(self, loss: torch.Tensor, factor: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group, rate in self.rates:
            group["lr"] = rate * factor
        for part in self.parts.values():
            part.step()
            part.zero_grad()
