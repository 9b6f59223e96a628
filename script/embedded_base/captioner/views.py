"""What the captioner learns from: drawings in many looks, on many backgrounds, turned, scaled and moved, made in batches.

More than half of them are in klein-emoji's looks (`redrawn`). The others are of families of drawings, too few to learn what a
fox is. So each of their drawings is also seen in *ink* (its outline, its inner edges and its dark parts), as a silhouette, in
grey and in shifted colours: a new style then has something to be like.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter
from torch.nn import functional

from ..pictures import BACKGROUNDS, FLUENT_FLAT, NOTO, NOTO_MONO, Concept, drawing
from . import redrawn
from .redrawn import Redrawn, squared

SIDE = 96  # pixels of a view, and of the drawings in it
PADDING = 127  # grey value beside a view that is not square: the processor's
OWN_LOOKS = ("emoji", "flat icon", "line drawing", "silhouette", "grey icon", "thin line drawing")
LOOKS = (*OWN_LOOKS, *redrawn.FAMILIES.values(), redrawn.COMPOSED)
EMOJI, FLAT, LINE, SILHOUETTE, GREY, THIN_LINE = range(len(OWN_LOOKS))
REDRAWN_SHARE = 0.6
INKS = ((0.0, 5), (0.3, 5), (0.45, 9), (0.6, 7))  # luminance below which all is inked, width of the outline in pixels of 128
FAMILIES = (NOTO, FLUENT_FLAT, NOTO_MONO)
FAMILY_SHARES = (0.42, 0.42, 0.16)
# How a coloured drawing is seen; "mixed" shifts its colours and keeps the look's name.
WAYS = ("own", "mixed", "grey", "silhouette", "ink")
OWN, INK = WAYS.index("own"), WAYS.index("ink")
WAY_SHARES = (0.34, 0.1, 0.08, 0.06, 0.42)
SCALES = ((0.45, 0.64), (0.74, 1.0))  # of the longer side; what lies between is held out
BACKGROUND_JITTER = 14  # grey levels: "teal" is not one colour
CONTRAST = 60  # grey levels between a redrawn drawing's mean colour and its background: pale on white cannot be seen


@dataclass(frozen=True)
class Views:
    """A batch: float32 [B, 3, 96, 96] in -1..1, and int64 [B] each: concept, look, background; [B, 3]: the words of a composed
    look, as `redrawn.WORDS` counts them."""

    pixels: torch.Tensor
    concepts: torch.Tensor
    looks: torch.Tensor
    backgrounds: torch.Tensor
    words: torch.Tensor


@dataclass(frozen=True)
class Shown:
    """What each view of a batch shows: int64 [B] each, but for the words, [B, 3]."""

    rows: torch.Tensor  # of the sources
    ways: torch.Tensor
    concepts: torch.Tensor
    looks: torch.Tensor
    backgrounds: torch.Tensor
    words: torch.Tensor

    def with_some_of(self, other: Shown, where: torch.Tensor) -> Shown:
        """The other's rows where ``where``, bool [B], says so."""
        parts = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return Shown(*(torch.where(where if a.ndim == 1 else where[:, None], b, a) for a, b in parts))


class ViewMaker:
    def __init__(self, folder: Path, concepts: list[Concept], others: Redrawn, families: tuple[str, ...] = FAMILIES):
        rows, owners = [], []
        for family_index, family in enumerate(families):
            for concept_index, concept in enumerate(concepts):
                picture = squared(drawing(folder, family, concept.code), SIDE)
                inks = [_mask(picture)] if family == NOTO_MONO else [ink(picture, *how) for how in INKS]
                rows += [_source(picture, inked) for inked in inks]
                owners += [(family_index, concept_index)] * len(inks)
        self.sources = torch.stack(rows)  # uint8 [N, 5, 96, 96]: RGB times alpha, ink, alpha
        self.owners = torch.tensor(owners)
        self.concepts, self.families = len(concepts), len(families)
        self.colours = torch.tensor(list(BACKGROUNDS.values())) / 255
        self._add(others, concepts)

    def _add(self, others: Redrawn, concepts: list[Concept]) -> None:
        """The redrawn drawings, behind the sources of the families: without ink."""
        self.first_redrawn = len(self.sources)
        places = {concept.code: n for n, concept in enumerate(concepts)}
        self.redrawn_concepts = torch.tensor([places[code] for code in others.codes])
        called = [redrawn.FAMILIES.get(row.family, redrawn.COMPOSED) for row in others.rows]
        self.redrawn_looks = torch.tensor([LOOKS.index(name) for name in called])
        self.redrawn_words = torch.from_numpy(others.classes())
        layers = torch.from_numpy(others.pixels).permute(0, 3, 1, 2)
        alpha = layers[:, 3:]
        colour = (layers[:, :3].to(torch.int16) * alpha // 255).to(torch.uint8)
        mean = colour.float().sum((2, 3)) / alpha.float().sum((2, 3)).clamp_min(1)
        far = (mean[:, None] - self.colours).abs().amax(2) > CONTRAST / 255
        self.redrawn_backgrounds = (far | ~far.any(1, keepdim=True)).float()  # what each may stand on
        self.sources = torch.cat([self.sources, torch.cat([colour, torch.zeros_like(alpha), alpha], dim=1)])

    def batch(self, count: int, generator: torch.Generator, difficulty: float = 1.0) -> Views:
        """Draw views: ``difficulty`` 0 shows each drawing as it is, large and in the middle, 1 all that is done to them."""

        def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
            return low + (high - low) * torch.rand(*shape, generator=generator)

        shown = self._of_families(count, generator, difficulty)
        shown = shown.with_some_of(self._of_redrawn(count, generator), uniform(count) < REDRAWN_SHARE)
        behind = self.colours[shown.backgrounds] + uniform(count, 3, low=-1, high=1) * BACKGROUND_JITTER / 255
        behind = behind.clamp(0, 1)[:, :, None, None]

        inner, theta = self._places(count, uniform, difficulty)
        seen = self.sources[shown.rows].float() / 255
        grid = functional.affine_grid(theta, [count, 5, SIDE, SIDE], align_corners=False)
        seen = functional.grid_sample(seen, grid, align_corners=False)
        colour, alpha = self._coloured(seen, shown.ways[:, None, None, None], behind, uniform)

        pixels = behind * (1 - alpha) + colour
        pixels = pixels * uniform(count, 1, 1, 1, low=0.92, high=1.08) + uniform(count, 1, 1, 1, low=-0.03, high=0.03)
        pixels = torch.where(inner, pixels, PADDING / 255).clamp(0, 1) * 2 - 1
        return Views(pixels, shown.concepts, shown.looks, shown.backgrounds, shown.words)

    def _of_families(self, count: int, generator: torch.Generator, difficulty: float) -> Shown:
        concepts = torch.randint(self.concepts, (count,), generator=generator)
        families = torch.multinomial(torch.tensor(FAMILY_SHARES), count, replacement=True, generator=generator)
        drawn = torch.multinomial(torch.tensor(WAY_SHARES), count, replacement=True, generator=generator)
        ways = torch.where(torch.rand(count, generator=generator) < difficulty, drawn, OWN)
        ways = torch.where(families == FAMILIES.index(NOTO_MONO), INK, ways)
        rows = torch.tensor([self._row(*pair, generator) for pair in zip(families.tolist(), concepts.tolist(), strict=True)])
        looks = torch.where(families == FAMILIES.index(NOTO), EMOJI, FLAT)
        for way, look in (("ink", LINE), ("silhouette", SILHOUETTE), ("grey", GREY)):
            looks = torch.where(ways == WAYS.index(way), look, looks)
        looks = torch.where(families == FAMILIES.index(NOTO_MONO), THIN_LINE, looks)
        backgrounds = torch.randint(len(self.colours), (count,), generator=generator)
        words = torch.zeros(count, len(redrawn.WORDS), dtype=torch.int64)
        return Shown(rows, ways, concepts, looks, backgrounds, words)

    def _of_redrawn(self, count: int, generator: torch.Generator) -> Shown:
        chosen = torch.randint(len(self.redrawn_looks), (count,), generator=generator)
        return Shown(
            rows=self.first_redrawn + chosen,
            ways=torch.full((count,), OWN),
            concepts=self.redrawn_concepts[chosen],
            looks=self.redrawn_looks[chosen],
            backgrounds=torch.multinomial(self.redrawn_backgrounds[chosen], 1, generator=generator)[:, 0],
            words=self.redrawn_words[chosen],
        )

    def _coloured(self, seen: torch.Tensor, way: torch.Tensor, behind: torch.Tensor, uniform) -> tuple[torch.Tensor, ...]:
        """Sources, [B, 5, 96, 96] in 0..1, as each way shows them: colour, times alpha, and alpha."""
        colour, inked, alpha = seen[:, :3], seen[:, 3:4], seen[:, 4:]
        colour = torch.where(way == WAYS.index("mixed"), self._mixed(colour, uniform), colour)
        colour = torch.where(way == WAYS.index("grey"), colour.mean(1, keepdim=True), colour)
        pen = self._pens(behind, uniform)
        colour = torch.where(way == WAYS.index("silhouette"), pen * alpha, colour)
        filled = (uniform(len(seen), 1, 1, 1) < 0.25) * alpha * (1 - inked)  # paper inside the lines
        colour = torch.where(way == INK, pen * inked + (1 - pen.round()) * filled, colour)
        return colour, torch.where(way == INK, (inked + filled).clamp(max=1), alpha)

    def _row(self, family: int, concept: int, generator: torch.Generator) -> int:
        """One of the sources of that drawing: they lie together, as many as there are inks (one for the last family)."""
        inks = 1 if FAMILIES[family] == NOTO_MONO else len(INKS)
        before = sum(1 if FAMILIES[f] == NOTO_MONO else len(INKS) for f in range(family)) * self.concepts
        return before + concept * inks + int(torch.randint(inks, (), generator=generator))

    @staticmethod
    def _places(count: int, uniform, difficulty: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Which pixels belong to the picture [B, 1, 96, 96], and where the drawing lies in it: affine [B, 2, 3]."""
        aspect = torch.where(uniform(count) < 0.15 * difficulty, uniform(count, low=0.55), 1.0)
        wide = uniform(count) < 0.5
        half_width, half_height = torch.where(wide, 1.0, aspect), torch.where(wide, aspect, 1.0)
        line = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
        within = [line.abs() < half[:, None] for half in (half_height, half_width)]
        inner = within[0][:, :, None] & within[1][:, None, :]
        low, high = (uniform(count, low=a, high=b) for a, b in SCALES)
        scale = torch.where(uniform(count) < 0.4 * difficulty, low, high) * aspect
        stretch = 1 + uniform(count, low=-1) * 0.08 * difficulty
        across, down = scale * stretch, scale / stretch
        across = torch.where(uniform(count) < 0.3 * difficulty, -across, across)  # mirrored
        angle = uniform(count, low=-1) * math.radians(12) * difficulty
        x = uniform(count, low=-1) * (half_width - scale).clamp(min=0) * difficulty
        y = uniform(count, low=-1) * (half_height - scale).clamp(min=0) * difficulty
        turn = torch.stack([angle.cos() / across, angle.sin() / across, -angle.sin() / down, angle.cos() / down], 1)
        turn = turn.reshape(-1, 2, 2)
        return inner[:, None], torch.cat([turn, -turn @ torch.stack([x, y], 1)[:, :, None]], 2)

    @staticmethod
    def _mixed(colour: torch.Tensor, uniform) -> torch.Tensor:
        """Other colours of the same brightness pattern: each channel a random average of all three."""
        mix = uniform(len(colour), 3, 3) ** 3
        return torch.einsum("bij,bjhw->bihw", mix / mix.sum(2, keepdim=True), colour)

    @staticmethod
    def _pens(behind: torch.Tensor, uniform) -> torch.Tensor:
        """A colour that is seen on the background: mostly black, white on what is dark."""
        count = len(behind)
        dark = behind.mean(1, keepdim=True) < 0.35
        black = uniform(count, 1, 1, 1, high=0.12).expand(-1, 3, -1, -1)
        pen = torch.where(uniform(count, 1, 1, 1) < 0.75, black, uniform(count, 3, 1, 1, high=0.35))
        return torch.where(dark, 1 - pen, pen)


def ink(picture: Image.Image, dark: float, width: int) -> Image.Image:
    """The drawing as a pen would do it: outline, inner edges, and what is darker than ``dark`` filled in.

    Args:
        picture: RGBA.
        width: of the outline, in pixels, odd.

    Returns:
        Greyscale, 255 where there is ink.
    """
    shape = _mask(picture)
    outline = ImageChops.subtract(shape, shape.filter(ImageFilter.MinFilter(width)))
    pixels = np.asarray(picture.convert("RGB"), np.int16)
    change = np.zeros(pixels.shape[:2], np.int16)
    change[:, 1:] = np.abs(np.diff(pixels, axis=1)).max(2)
    change[1:] = np.maximum(change[1:], np.abs(np.diff(pixels, axis=0)).max(2))
    edges = Image.fromarray((change > 40).astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(3))
    filled = Image.fromarray((np.asarray(picture.convert("L")) < 255 * dark).astype(np.uint8) * 255)
    return ImageChops.multiply(ImageChops.lighter(ImageChops.lighter(outline, edges), filled), shape)


def _mask(picture: Image.Image) -> Image.Image:
    return picture.getchannel("A")


def _source(picture: Image.Image, inked: Image.Image) -> torch.Tensor:
    alpha = _mask(picture)
    colour = Image.composite(picture.convert("RGB"), Image.new("RGB", picture.size), alpha)
    layers = [*colour.split(), inked, alpha]
    return torch.from_numpy(np.stack([np.asarray(layer) for layer in layers]))
