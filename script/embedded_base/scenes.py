"""The scenes that the transformer trains on, as the codec's latents, and the batches drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from tqdm import tqdm

from . import pictures
from .looks import LOOKS, redraw
from .pictures import Concept

FLAT_SHARE = 0.25  # of the second look: learned well with less, and the first is what plain prompts ask for
FAMILIES = (pictures.NOTO, pictures.FLUENT_FLAT)
LOOK_NAMES = (None, *LOOKS)


@dataclass(frozen=True)
class Shape:
    size: tuple[int, int]  # width, height in pixels
    batch: int
    share: float  # of the steps
    scenes: int  # cached for every concept and family
    look_scenes: int = 0  # cached for every concept and look


SHAPES = (
    Shape((64, 64), 32, 0.50, 16, look_scenes=2),
    Shape((80, 48), 32, 0.06, 3),
    Shape((48, 80), 32, 0.06, 3),
    Shape((72, 56), 32, 0.06, 3),
    Shape((56, 72), 32, 0.06, 3),
    Shape((96, 96), 16, 0.18, 6, look_scenes=1),
    Shape((120, 72), 16, 0.04, 2),
    Shape((72, 120), 16, 0.04, 2),
)


@dataclass(frozen=True)
class Scenes:
    """The cached latents of one shape: what is drawn, how, on what, and the codec's moments."""

    concept: np.ndarray
    family: np.ndarray  # index into FAMILIES
    look: np.ndarray  # index into LOOK_NAMES: 0 where the drawing is as its family has it
    background: np.ndarray
    moments: torch.Tensor  # bf16 [N, 32, H, W]: mean and log variance


@torch.no_grad()
def cache_scenes(
    folder: Path, concepts: list[Concept], codec: AutoencoderKL, shape: Shape, seed: tuple[int, int], *, looks: bool
) -> Scenes:
    rng = np.random.default_rng(seed)
    names = list(pictures.BACKGROUNDS)
    if looks:
        kinds = [(0, look) for look in range(1, len(LOOK_NAMES)) for _ in range(shape.look_scenes)]
    else:
        kinds = [(family, 0) for family in range(len(FAMILIES)) for _ in range(shape.scenes)]
    rows = [(concept, *kind) for concept in range(len(concepts)) for kind in kinds]
    # White is what prompts without a background mean, so it is seen more often.
    white_share = 0.0 if looks else 0.25  # chalk and white silhouettes cannot be seen on it
    backgrounds = np.where(rng.random(len(rows)) < white_share, 0, rng.integers(len(names), size=len(rows)))
    moments = []
    for start in range(0, len(rows), 128):
        scenes = [
            pictures.compose(
                redraw(pictures.drawing(folder, FAMILIES[f], concepts[c].code), LOOK_NAMES[k]),
                pictures.BACKGROUNDS[names[b]],
                shape.size,
                rng.uniform(0.8, 0.95),
                tuple(rng.uniform(0.4, 0.6, 2)),
            )
            for (c, f, k), b in zip(rows[start : start + 128], backgrounds[start : start + 128], strict=True)
        ]
        batch = torch.from_numpy(pictures.to_tensor_range(np.stack(scenes))).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            moments.append(codec.encode(batch).latent_dist.parameters.bfloat16())
    concept, family, look = np.array(rows).T
    return Scenes(concept, family, look, backgrounds, torch.cat(moments))


def cache_plain(folder: Path, concepts: list[Concept], codec: AutoencoderKL, cache: Path) -> list[Scenes]:
    """Of every shape, the drawings as they are."""
    return _cached(
        cache, [lambda s=s, n=n: cache_scenes(folder, concepts, codec, s, (4, n), looks=False) for n, s in enumerate(SHAPES)]
    )


def cache_looks(folder: Path, concepts: list[Concept], codec: AutoencoderKL, cache: Path) -> list[Scenes]:
    """Of the shapes that have some, the drawings in every look."""
    shapes = [(n, s) for n, s in enumerate(SHAPES) if s.look_scenes]
    return _cached(cache, [lambda s=s, n=n: cache_scenes(folder, concepts, codec, s, (9, n), looks=True) for n, s in shapes])


def _cached(cache: Path, makers: list[Callable[[], Scenes]]) -> list[Scenes]:
    if not cache.exists():
        found = [make() for make in tqdm(makers, desc=cache.stem)]
        torch.save([vars(s) | {k: torch.from_numpy(v) for k, v in vars(s).items() if k != "moments"} for s in found], cache)
    return [
        Scenes(**{k: v if k == "moments" else v.numpy() for k, v in s.items()}) for s in torch.load(cache, weights_only=True)
    ]


class Batches:
    """Batches by step: the same step always gives the same batch. Before ``square_steps`` all are of the first shape."""

    def __init__(self, scenes: list[Scenes], concepts: list[Concept], codec: AutoencoderKL, square_steps: int = 0):
        self.square_steps = square_steps
        self.scenes, self.concepts, self.config = scenes, concepts, codec.config
        self.backgrounds = list(pictures.BACKGROUNDS)

    def __call__(self, stage: int, step: int, caption_of: Callable[..., str]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """-> packed latents [B, tokens, 64], image ids [tokens, 3], captions."""
        rng = np.random.default_rng((stage, step))
        n = rng.choice(len(SHAPES), p=[s.share for s in SHAPES]) if step >= self.square_steps else 0
        scenes = self.scenes[n]
        chosen = self.choose(scenes, SHAPES[n].batch, rng)
        prompts = [
            caption_of(
                self.concepts[scenes.concept[i]],
                FAMILIES[scenes.family[i]],
                self.backgrounds[scenes.background[i]],
                rng,
                look=LOOK_NAMES[scenes.look[i]],
            )
            for i in chosen
        ]
        mean, log_variance = scenes.moments[chosen].float().chunk(2, dim=1)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        latents = (latents - self.config.shift_factor) * self.config.scaling_factor
        batch, channels, height, width = latents.shape
        packed = FluxPipeline._pack_latents(latents, batch, channels, height, width)
        ids = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, latents.device, latents.dtype)
        return packed, ids, prompts

    def choose(self, scenes: Scenes, count: int, rng: np.random.Generator) -> list[int]:
        flat = rng.random(count) < FLAT_SHARE
        return [rng.choice(np.flatnonzero((scenes.family == f) & (scenes.look == 0))) for f in flat]


class LookBatches(Batches):
    """Half of a batch's drawings are in one of the looks, where the shape has such scenes."""

    LOOK_SHARE = 0.5

    def __init__(self, scenes: list[Scenes], look_scenes: list[Scenes], concepts: list[Concept], codec: AutoencoderKL):
        with_looks = iter(look_scenes)
        both = [_joined(s, next(with_looks)) if shape.look_scenes else s for s, shape in zip(scenes, SHAPES, strict=True)]
        super().__init__(both, concepts, codec)

    def choose(self, scenes: Scenes, count: int, rng: np.random.Generator) -> list[int]:
        chosen = super().choose(scenes, count, rng)
        redrawn = np.flatnonzero(scenes.look)
        if len(redrawn):
            chosen[: round(self.LOOK_SHARE * count)] = rng.choice(redrawn, round(self.LOOK_SHARE * count))
        return chosen


def _joined(first: Scenes, second: Scenes) -> Scenes:
    fields = {name: np.concatenate([value, getattr(second, name)]) for name, value in vars(first).items() if name != "moments"}
    return Scenes(**fields, moments=torch.cat([first.moments, second.moments]))
