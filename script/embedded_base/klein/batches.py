"""Batches by step: the same step always gives the same batch. Half is in a look, from the first step on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import Flux2KleinPipeline

from ..composed.captions import Captions
from ..composed.scenes import SIDE, Scenes

SIZE = 32
REFERENCE_EVERY = 10  # each tenth batch carries reference pictures: klein's own way to image prompts
GRID = SIDE // 8  # tokens a side


@dataclass(frozen=True)
class Batch:
    latents: torch.Tensor  # float32 [B, 64 tokens, 64]
    references: torch.Tensor | None  # the same of another picture of the same thing; where the prompt is empty, of this one
    prompts: list[str]


def image_ids(references: bool) -> torch.Tensor:
    """(t, h, w, l) of every token, float32 [tokens, 4]: t is 0 for the picture, 10 for its reference, which comes behind."""
    blank = torch.empty(1, 1, GRID, GRID)
    ids = Flux2KleinPipeline._prepare_latent_ids(blank)[0]
    if references:
        ids = torch.cat([ids, Flux2KleinPipeline._prepare_image_ids([blank])[0]])
    return ids.float()


class Batches:
    def __init__(self, scenes: Scenes, tokens: torch.Tensor, captions: Captions):
        self.scenes, self.tokens, self.captions = scenes, tokens, captions
        self.by_thing = [np.flatnonzero(scenes.thing == n) for n in range(scenes.thing.max() + 1)]

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng((6, step))
        chosen = rng.integers(len(self.tokens), size=SIZE)
        latents = self.tokens[chosen].float()
        facts = [self.scenes.facts(n) for n in chosen]
        if step % REFERENCE_EVERY:
            return Batch(latents, None, [self.captions.dropped(each, rng) for each in facts])
        others = [int(rng.choice(self.by_thing[each.thing])) for each in facts]
        prompts = [self.captions.of_reference(each, rng) for each in facts]
        shown = [other if prompt else this for this, other, prompt in zip(chosen, others, prompts, strict=True)]
        return Batch(latents, self.tokens[shown].float(), prompts)
