"""The judge of a drawn picture: which thing, palette, way and shape it shows. A small CNN trained on real scenes, the
held-out pairs among them, since a judge must know what the base has not seen. Half of them are as the codec gives them back."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2
from torch import nn

from .. import pictures
from ..checkpoints import Checkpoints
from ..composed.looks import held_out_pairs, looks
from ..composed.palettes import PALETTES
from ..composed.scenes import all_looks, draw, stands_out
from ..composed.shapes import SHAPES
from ..composed.ways import WAYS
from ..pictures import BACKGROUNDS, Concept

COUNT, CHUNK = 60_000, 500  # scenes to learn from, drawn at once
PLAIN_SHARE = 0.1  # of them
STEPS, BATCH, RATE = 7000, 64, 3e-3
KINDS = ("palette", "way", "shape")
NOISE = 0.03  # of -1..1: what a base draws is not as clean as what it learned from


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(maps + self.layers(maps))


class Judge(nn.Module):
    """float32 [B, 3, 64, 64] in -1..1 -> scores by question, [B, classes] each. Class 0 of a kind of look is "none"."""

    def __init__(self, things: int):
        super().__init__()
        widths = (3, 32, 64, 128, 192)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            if after > 32:  # at 32 x 32 it would cost as much as all else
                layers.append(Residual(after))
        self.trunk = nn.Sequential(*layers)
        self.classes = {"thing": things}
        self.classes |= {kind: 1 + len(those) for kind, those in zip(KINDS, (PALETTES, WAYS, SHAPES), strict=True)}
        self.hidden = nn.Sequential(nn.Linear(192 * 16, 384), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(384 + 192, sum(self.classes.values()))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.trunk(images.contiguous(memory_format=torch.channels_last))
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


def targets(thing: np.ndarray, look: np.ndarray) -> dict[str, np.ndarray]:
    """What a perfect judge answers; ``look`` is an index into `all_looks`."""
    classes = _look_classes()
    return {"thing": thing} | {kind: classes[kind][look] for kind in KINDS}


def right_look(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> np.ndarray:
    """Where palette, way and shape are all as named: bool [N]."""
    return np.all([found[kind] == wanted[kind] for kind in KINDS], axis=0)


def pairs(things: int, count: int, seed: int, *, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """(thing, look) pairs of composed looks, that training never saw together or that it may have: indices, [count] each."""
    composed = np.array([len(look.words) > 1 for look in looks()])
    found = np.argwhere(composed & (held_out_pairs(things) == held_out))
    chosen = found[np.random.default_rng(seed).choice(len(found), count, replace=False)]
    return chosen[:, 0], chosen[:, 1] + 1


def scenes_of(folder: Path, concepts: list[Concept], thing: np.ndarray, look: np.ndarray, seed: int) -> np.ndarray:
    """Real pictures of these pairs, each on a background on which it can be seen: uint8 [N, 64, 64, 3]."""
    rng, drawn = np.random.default_rng((66, seed)), []
    for t, k in zip(thing, look, strict=True):
        for _ in range(6):
            colour = list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS))]
            scene = draw(folder, concepts[t], pictures.NOTO, all_looks()[k], colour, rng)
            if stands_out(scene, colour):
                break
        drawn.append(scene)
    return np.stack(drawn)


@torch.inference_mode()
def through_codec(codec: AutoencoderKLFlux2, images: np.ndarray) -> np.ndarray:
    """What the codec makes of pictures, uint8 [N, 64, 64, 3]: the best that the base can draw of them."""
    codec, restored = codec.to(memory_format=torch.channels_last), []
    for part in np.array_split(images, -(-len(images) // 50)):
        pixels = torch.from_numpy(pictures.to_tensor_range(part)).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            made = codec.decode(codec.encode(pixels).latent_dist.mode()).sample.float()
        restored.append(((made.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(restored)


def render(
    folder: Path, concepts: list[Concept], codec: AutoencoderKLFlux2, cache: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Things, looks and pictures to learn from, every second through the codec; drawn, or as they were drawn before."""
    if not cache.exists():
        rng = np.random.default_rng(65)
        thing = rng.integers(len(concepts), size=COUNT)
        look = np.where(rng.random(COUNT) < PLAIN_SHARE, 0, rng.integers(1, len(all_looks()), size=COUNT))
        parts = [
            (folder, concepts, codec, thing[start : start + CHUNK], look[start : start + CHUNK], start)
            for start in range(0, COUNT, CHUNK)
        ]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            images = np.concatenate(pool.starmap(_render_part, parts, chunksize=1))
        np.savez(cache, thing=thing, look=look, images=images)
    with np.load(cache) as saved:
        return saved["thing"], saved["look"], saved["images"]


def _render_part(
    folder: Path, concepts: list[Concept], codec: AutoencoderKLFlux2, thing: np.ndarray, look: np.ndarray, start: int
) -> np.ndarray:
    torch.set_num_threads(1)
    images = scenes_of(folder, concepts, thing, look, start)
    images[::2] = through_codec(codec, images[::2])
    return images


def train(
    folder: Path, concepts: list[Concept], codec: AutoencoderKLFlux2, cache: Path, checkpoints: Checkpoints
) -> tuple[Judge, dict[str, float]]:
    """The judge, and how often it is right on 1,000 real pictures of held-out pairs that it was not trained on, as the codec
    gives them back."""
    torch.manual_seed(61)
    judge = Judge(len(concepts)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS + 1)
    start = checkpoints.resume("judge", judge=judge, optimizer=optimizer, schedule=schedule)
    if start < STEPS:
        thing, look, images = render(folder, concepts, codec, cache)
        answers = {name: torch.from_numpy(those.astype(np.int64)) for name, those in targets(thing, look).items()}
    for step in range(start, STEPS):
        rows = np.random.default_rng((63, step)).integers(COUNT, size=BATCH)
        pixels = torch.from_numpy(pictures.to_tensor_range(images[rows]))
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(step))
        found = judge(pixels + NOISE * noise)
        loss = sum(nn.functional.cross_entropy(found[name], answers[name][rows], label_smoothing=0.05) for name in answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            logging.info("judge %d: loss %.2f", step, loss.item())
        checkpoints.save("judge", step + 1, last=step + 1 == STEPS, judge=judge, optimizer=optimizer, schedule=schedule)
    judge.requires_grad_(False).eval()

    thing, look = pairs(len(concepts), 1000, 64, held_out=True)
    found = judge.answers(through_codec(codec, scenes_of(folder, concepts, thing, look, COUNT)))
    wanted = targets(thing, look)
    return judge, {
        "judge_thing": float((found["thing"] == wanted["thing"]).mean()),
        "judge_look": float(right_look(found, wanted).mean()),
    }
