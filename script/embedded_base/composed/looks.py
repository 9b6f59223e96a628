"""Looks: a palette, a way of drawing and a shape, or some of the three. Their words are named in any order.

All are procedural, on the base's own first family; beside them stand real families of drawings, each with a word.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from .. import pictures
from .palettes import PALETTES
from .shapes import SHAPES
from .ways import ROOM, WAYS

# Real families, by the word that captions call them; the first is what plain prompts ask for.
FAMILIES = {
    pictures.NOTO: None,
    pictures.FLUENT_FLAT: "flat",
    pictures.FLUENT: "glossy",
    pictures.NOTO_V1: "vintage",
    pictures.NOTO_MONO: "thin line",
}
SAMPLED = {("palette", "way"): 110, ("palette", "shape"): 20, ("way", "shape"): 20, ("palette", "way", "shape"): 20}
HELD_OUT_SHARE = 0.1  # of the pairs of a thing and a look


@dataclass(frozen=True)
class Look:
    palette: str | None = None
    way: str | None = None
    shape: str | None = None

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(word for word in (self.palette, self.way, self.shape) if word)


PLAIN = Look()


@cache
def looks() -> tuple[Look, ...]:
    """Every palette, way and shape alone, and the compositions that were drawn: the same 210 every time."""
    words = {"palette": list(PALETTES), "way": list(WAYS), "shape": list(SHAPES)}
    rng = np.random.default_rng(41)
    found = [Look(**{kind: word}) for kind, those in words.items() for word in those]
    for kinds, count in SAMPLED.items():
        combined = list(itertools.product(*(words[kind] for kind in kinds)))
        chosen = rng.choice(len(combined), count, replace=False)
        found += [Look(**dict(zip(kinds, combined[n], strict=True))) for n in sorted(chosen)]
    return tuple(found)


@cache
def held_out_pairs(things: int) -> np.ndarray:
    """Which pairs training never shows: bool [things, looks]. Compositions alone: a palette or a way by itself is what the
    others are told apart by."""
    drawn = np.random.default_rng(42).random((things, len(looks()))) < HELD_OUT_SHARE
    return drawn & np.array([len(look.words) > 1 for look in looks()])


def redraw(picture: Image.Image, look: Look) -> Image.Image:
    """An RGBA drawing in a look, cropped to what is drawn."""
    if look.shape:
        picture = SHAPES[look.shape](picture)
    if look.palette:
        rgb = PALETTES[look.palette](np.asarray(picture.convert("RGB"), np.float32) / 255)
        recoloured = Image.fromarray(np.clip(255 * rgb, 0, 255).astype(np.uint8), "RGB")
        recoloured.putalpha(picture.getchannel("A"))
        picture = recoloured
    if look.way:
        room = Image.new("RGBA", [side + 2 * ROOM for side in picture.size])
        room.paste(picture, (ROOM, ROOM))
        picture = WAYS[look.way](room)
    return picture.crop(picture.getbbox())
