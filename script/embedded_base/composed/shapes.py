"""Shapes: how a drawing's form is bent, before anything is done to its colours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

Shape = Callable[[Image.Image], Image.Image]


def tilted(picture: Image.Image) -> Image.Image:
    return picture.rotate(-32, Image.Resampling.BICUBIC, expand=True)


def upside_down(picture: Image.Image) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def squashed(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width, max(1, round(0.55 * picture.height))), Image.Resampling.BICUBIC)


def stretched(picture: Image.Image) -> Image.Image:
    return picture.resize((max(1, round(0.55 * picture.width)), picture.height), Image.Resampling.BICUBIC)


def slanted(picture: Image.Image) -> Image.Image:
    lean = 0.45 * picture.height
    size = round(picture.width + lean), picture.height
    return picture.transform(size, Image.Transform.AFFINE, (1, 0.45, -lean, 0, 1, 0), Image.Resampling.BICUBIC)


def wavy(picture: Image.Image) -> Image.Image:
    """Each row is shifted along a sine."""
    pixels = np.pad(np.asarray(picture), ((0, 0), (12, 12), (0, 0)))
    shifts = np.round(11 * np.sin(np.arange(picture.height) * 2 * np.pi / 52)).astype(int)
    columns = (np.arange(pixels.shape[1])[None] + shifts[:, None]) % pixels.shape[1]
    return Image.fromarray(np.take_along_axis(pixels, columns[..., None], axis=1))


SHAPES: dict[str, Shape] = {  # by the word that captions call it
    "tilted": tilted,
    "upside down": upside_down,
    "squashed": squashed,
    "stretched": stretched,
    "slanted": slanted,
    "wavy": wavy,
}
