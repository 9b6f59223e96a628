"""Drawings in klein-emoji's looks: composed ones, and the families that go by a word of their own."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .. import pictures
from ..composed import things
from ..composed.looks import PLAIN, Look, looks, redraw
from ..composed.palettes import PALETTES
from ..composed.shapes import SHAPES
from ..composed.ways import WAYS
from ..pictures import Concept

COUNT = 14_000
SINGLE_SHARE = 0.4  # of them: a palette, a way or a shape alone, from which its word is learned
FAMILY_SHARE = 0.12
FAMILIES = {pictures.FLUENT: "glossy icon", pictures.NOTO_V1: "vintage icon"}  # by what the captioner calls them
COMPOSED = "icon"  # what it calls all others
# What a composed look is told apart by: class 0 of each is none of them.
WORDS = {"palette": (None, *PALETTES), "way": (None, *WAYS), "shape": (None, *SHAPES)}
CHUNK = 500


@dataclass(frozen=True)
class Row:
    thing: int  # index into klein-emoji's things
    family: str
    look: Look


@dataclass(frozen=True)
class Redrawn:
    """``pixels`` uint8 [N, side, side, 4], of a drawing that fills its square; the rest has one value a row."""

    rows: list[Row]
    codes: list[str]  # of the things
    pixels: np.ndarray

    def classes(self) -> np.ndarray:
        """Of `WORDS`, in their order: int64 [N, 3]."""
        return np.array([[words.index(getattr(row.look, kind)) for kind, words in WORDS.items()] for row in self.rows])


def words_of(classes: list[int]) -> tuple[str, ...]:
    """The words of a composed look, by its classes of `WORDS`; none of a plain one."""
    found = [words[n] for words, n in zip(WORDS.values(), classes, strict=True)]
    return tuple(word for word in found if word)


def chosen_rows(folder: Path, concepts: list[Concept], seed: int, count: int) -> list[Row]:
    """Things in looks by the draw: the same every time."""
    rng = np.random.default_rng((71, seed))
    single = [look for look in looks() if len(look.words) == 1]
    composed = [look for look in looks() if len(look.words) > 1]
    families = list(FAMILIES)
    have = {family: set(pictures.family_codes(folder, family)) for family in families}
    rows = []
    while len(rows) < count:
        thing = int(rng.integers(len(concepts)))
        if rng.random() < FAMILY_SHARE:
            family, look = families[rng.integers(len(families))], PLAIN
            if concepts[thing].code not in have[family]:
                continue
        else:
            those = single if rng.random() < SINGLE_SHARE else composed
            family, look = pictures.NOTO, those[rng.integers(len(those))]
        rows.append(Row(thing, family, look))
    return rows


def render(folder: Path, side: int, cache: Path) -> Redrawn:
    """Draw all, or load those that were drawn before."""
    concepts = things.things(folder)
    rows = chosen_rows(folder, concepts, 0, COUNT)
    codes = [concepts[row.thing].code for row in rows]
    if not cache.exists():
        parts = [(folder, codes[n : n + CHUNK], rows[n : n + CHUNK], side) for n in range(0, len(rows), CHUNK)]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            np.save(cache, np.concatenate(pool.starmap(_render_part, parts)))
    return Redrawn(rows, codes, np.load(cache))


def _render_part(folder: Path, codes: list[str], rows: list[Row], side: int) -> np.ndarray:
    return np.stack([np.asarray(squared(drawn(folder, code, row), side)) for code, row in zip(codes, rows, strict=True)])


def drawn(folder: Path, code: str, row: Row) -> Image.Image:
    """RGBA, cropped to what is drawn."""
    return redraw(pictures.drawing(folder, row.family, code), row.look)


def squared(picture: Image.Image, side: int) -> Image.Image:
    """Scaled to ``side`` pixels on the longer side, in the middle of a square."""
    factor = side / max(picture.size)
    picture = picture.resize([max(1, round(length * factor)) for length in picture.size], Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
