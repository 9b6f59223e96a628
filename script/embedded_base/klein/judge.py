"""The judge of a drawn picture: which thing, palette, way, shape and family it shows. A small CNN trained on real scenes, the
held-out pairs among them, since a judge must know what the base has not seen."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .. import pictures
from ..checkpoints import Checkpoints
from ..composed.looks import FAMILIES, held_out_pairs, looks
from ..composed.palettes import PALETTES
from ..composed.scenes import Scenes, all_looks, draw, stands_out
from ..composed.shapes import SHAPES
from ..composed.ways import WAYS
from ..pictures import BACKGROUNDS, Concept

STEPS, BATCH, RATE = 6000, 64, 2e-3
LOOK_SHARE, HELD_OUT_SHARE = 0.65, 0.15  # of a batch, in a look and of a held-out pair; the rest as it comes
KINDS = ("palette", "way", "shape")
NOISE = 0.05  # of -1..1, and blur for half of a batch: what a base draws is not as clean as what it learned from


class Judge(nn.Module):
    """float32 [B, 3, 64, 64] in -1..1 -> scores by question, [B, classes] each. Class 0 of a kind of look is "none"."""

    def __init__(self, things: int):
        super().__init__()
        widths = (3, 32, 64, 128, 192)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.classes = {"thing": things, "family": len(FAMILIES)}
        self.classes |= {kind: 1 + len(those) for kind, those in zip(KINDS, (PALETTES, WAYS, SHAPES), strict=True)}
        self.hidden = nn.Sequential(nn.Linear(192 * 16, 384), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(384 + 192, sum(self.classes.values()))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.trunk(images)
        seen = torch.cat([self.hidden(maps.flatten(1)), maps.mean((2, 3))], dim=1)
        return dict(zip(self.classes, self.head(seen).split(list(self.classes.values()), dim=1), strict=True))

    @torch.inference_mode()
    def answers(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 [N, 64, 64, 3] -> the likeliest class by question, [N] each."""
        parts = [
            self(torch.from_numpy(pictures.to_tensor_range(part))) for part in np.array_split(images, -(-len(images) // 256))
        ]
        return {name: torch.cat([part[name] for part in parts]).argmax(1).numpy() for name in self.classes}


def _look_classes() -> dict[str, np.ndarray]:
    """By kind, the class of each of `all_looks`."""
    words = {kind: [None, *those] for kind, those in zip(KINDS, (PALETTES, WAYS, SHAPES), strict=True)}
    return {kind: np.array([words[kind].index(getattr(look, kind)) for look in all_looks()]) for kind in KINDS}


def targets(thing: np.ndarray, family: np.ndarray, look: np.ndarray) -> dict[str, np.ndarray]:
    """What a perfect judge answers; ``look`` is an index into `all_looks`."""
    classes = _look_classes()
    return {"thing": thing, "family": family} | {kind: classes[kind][look] for kind in KINDS}


def right_look(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> np.ndarray:
    """Where palette, way and shape are all as named: bool [N]."""
    return np.all([found[kind] == wanted[kind] for kind in KINDS], axis=0)


def pairs(things: int, count: int, seed: int, *, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """(thing, look) pairs of composed looks, that training never saw together or that it may have: indices, [count] each."""
    composed = np.array([len(look.words) > 1 for look in looks()])
    found = np.argwhere(composed & (held_out_pairs(things) == held_out))
    chosen = found[np.random.default_rng(seed).choice(len(found), count, replace=False)]
    return chosen[:, 0], chosen[:, 1] + 1


def held_out_scenes(folder: Path, concepts: list[Concept], count: int, seed: int) -> tuple[Scenes, np.ndarray]:
    """Real pictures of held-out pairs."""
    rng = np.random.default_rng(seed)
    thing, look = pairs(len(concepts), count, seed, held_out=True)
    backgrounds, drawn = [], []
    for t, k in zip(thing, look, strict=True):
        for _ in range(6):
            background = int(rng.integers(len(BACKGROUNDS)))
            colour = list(BACKGROUNDS.values())[background]
            scene = draw(folder, concepts[t], pictures.NOTO, all_looks()[k], colour, rng)
            if stands_out(scene, colour):
                break
        backgrounds.append(background)
        drawn.append(scene)
    words = np.zeros(count, "U8")
    return Scenes(thing, np.zeros_like(thing), look, np.array(backgrounds), words, np.stack(drawn))


def _seen_through(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise for all, blur for half."""
    half = len(pixels) // 2
    soft = nn.functional.avg_pool2d(nn.functional.pad(pixels[:half], (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.cat([soft, pixels[half:]]) + NOISE * torch.randn(pixels.shape, generator=generator)


def train(folder: Path, concepts: list[Concept], scenes: Scenes, checkpoints: Checkpoints) -> tuple[Judge, dict[str, float]]:
    """The judge, and how often it is right on 1,000 real pictures of held-out pairs that it was not trained on."""
    torch.manual_seed(61)
    judge = Judge(len(concepts))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS + 1)
    start = checkpoints.resume("judge", judge=judge, optimizer=optimizer, schedule=schedule)
    in_look = np.flatnonzero(scenes.look)
    extra = held_out_scenes(folder, concepts, 2000, 62) if start < STEPS else None
    for step in range(start, STEPS):
        rng, generator = np.random.default_rng((63, step)), torch.Generator().manual_seed(step)
        assert extra is not None
        redrawn, unseen = round(LOOK_SHARE * BATCH), round(HELD_OUT_SHARE * BATCH)
        parts = [
            (scenes, rng.choice(in_look, redrawn)),
            (extra, rng.integers(len(extra.thing), size=unseen)),
            (scenes, rng.integers(len(scenes.thing), size=BATCH - redrawn - unseen)),
        ]
        thing, family, look = (np.concatenate([getattr(s, name)[n] for s, n in parts]) for name in ("thing", "family", "look"))
        order = torch.from_numpy(rng.permutation(BATCH))
        pixels = torch.from_numpy(pictures.to_tensor_range(np.concatenate([s.pixels[n] for s, n in parts])))[order]
        found = judge(_seen_through(pixels, generator))
        wanted = {name: torch.from_numpy(those.astype(np.int64))[order] for name, those in targets(thing, family, look).items()}
        loss = sum(nn.functional.cross_entropy(found[name], wanted[name], label_smoothing=0.05) for name in wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            logging.info("judge %d: loss %.2f", step, loss.item())
        checkpoints.save("judge", step + 1, last=step + 1 == STEPS, judge=judge, optimizer=optimizer, schedule=schedule)
    judge.requires_grad_(False).eval()
    unseen = held_out_scenes(folder, concepts, 1000, 64)
    found, wanted = judge.answers(unseen.pixels), targets(unseen.thing, unseen.family, unseen.look)
    return judge, {
        "judge_thing": float((found["thing"] == wanted["thing"]).mean()),
        "judge_look": float(right_look(found, wanted).mean()),
    }
