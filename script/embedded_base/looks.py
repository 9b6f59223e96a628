"""Looks: ways to redraw any drawing. They teach the base that how a thing is drawn is apart from what it is, and that a word
it has never read as such can stand for a look: what a style fine-tune then builds on.

All are procedural, so that no further family of drawings is seen: one that a fine-tune teaches stays new to the base.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageFilter

Redraw = Callable[[Image.Image], Image.Image]


def _grey(picture: Image.Image) -> np.ndarray:
    """Luminance 0..1, height x width; what is transparent counts as white."""
    over_white = Image.new("RGBA", picture.size, "white")
    over_white.alpha_composite(picture)
    return np.asarray(over_white.convert("L"), np.float32) / 255


def _with_alpha(rgb: np.ndarray, picture: Image.Image) -> Image.Image:
    drawn = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8), "RGB")
    drawn.putalpha(picture.getchannel("A"))
    return drawn


def duotone(dark: tuple[int, int, int], light: tuple[int, int, int]) -> Redraw:
    def redraw(picture: Image.Image) -> Image.Image:
        grey = _grey(picture)[..., None]
        return _with_alpha(np.array(dark) * (1 - grey) + np.array(light) * grey, picture)

    return redraw


def silhouette(colour: tuple[int, int, int]) -> Redraw:
    return duotone(colour, colour)


def negative(picture: Image.Image) -> Image.Image:
    return _with_alpha(255 - np.asarray(picture.convert("RGB"), np.float32), picture)


def channels_turned(picture: Image.Image) -> Image.Image:
    """Red as green, green as blue, blue as red."""
    return _with_alpha(np.asarray(picture.convert("RGB"), np.float32)[..., [2, 0, 1]], picture)


def poster(picture: Image.Image) -> Image.Image:
    return _with_alpha((np.asarray(picture.convert("RGB")) > 127) * 255, picture)


def mosaic(picture: Image.Image) -> Image.Image:
    small = picture.resize([max(1, round(12 * side / max(picture.size))) for side in picture.size], Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.NEAREST)


def striped(picture: Image.Image) -> Image.Image:
    rows = np.arange(picture.height) * 16 // max(picture.size) % 2
    return _with_alpha(np.asarray(picture.convert("RGB"), np.float32) * (0.35 + 0.65 * rows[:, None, None]), picture)


def sticker(picture: Image.Image) -> Image.Image:
    """A thick white border around the whole."""
    border = max(picture.size) // 12
    room = Image.new("RGBA", [side + 2 * border for side in picture.size])
    room.paste(picture, (border, border))
    cut = room.getchannel("A").filter(ImageFilter.GaussianBlur(border / 2)).point(lambda a: 255 if a > 25 else 0)
    paper = Image.new("RGBA", room.size, "white")
    paper.putalpha(cut)
    paper.alpha_composite(room)
    return paper


def lines(ink: tuple[int, int, int], paper: tuple[int, int, int] | None) -> Redraw:
    """Only where the brightness or the silhouette changes, in ink; the rest in paper, or see-through."""

    def redraw(picture: Image.Image) -> Image.Image:
        width = max(3, max(picture.size) // 24 | 1)
        alpha = picture.getchannel("A")
        outer = ImageChops.difference(alpha, alpha.filter(ImageFilter.MinFilter(width)))
        grey = Image.fromarray((255 * _grey(picture)).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
        inner = ImageChops.difference(grey.filter(ImageFilter.MaxFilter(width)), grey.filter(ImageFilter.MinFilter(width)))
        drawn = np.maximum(np.asarray(outer, np.float32), np.asarray(inner, np.float32) * (np.asarray(alpha) > 127)) / 255
        strength = np.clip(4 * drawn - 0.6, 0, 1)[..., None]
        if paper is not None:
            return _with_alpha(np.array(ink) * strength + np.array(paper) * (1 - strength), picture)
        drawing = Image.new("RGB", picture.size, ink).convert("RGBA")
        drawing.putalpha(Image.fromarray((255 * strength[..., 0]).astype(np.uint8)))
        return drawing

    return redraw


LOOKS: dict[str, Redraw] = {  # by the name that captions call it
    "greyscale": duotone((0, 0, 0), (255, 255, 255)),
    "sepia": duotone((70, 40, 15), (250, 225, 180)),
    "blue ink": duotone((15, 30, 120), (215, 230, 255)),
    "red ink": duotone((130, 10, 20), (255, 220, 215)),
    "green ink": duotone((5, 80, 40), (220, 250, 220)),
    "golden": duotone((110, 70, 0), (255, 225, 90)),
    "negative": negative,
    "alien colours": channels_turned,
    "poster": poster,
    "pixel art": mosaic,
    "striped": striped,
    "sticker": sticker,
    "black silhouette": silhouette((15, 15, 15)),
    "white silhouette": silhouette((245, 245, 245)),
    "chalk": lines((250, 250, 250), None),
    "blueprint": lines((240, 245, 255), (25, 70, 160)),
    "colouring book": lines((40, 40, 40), (255, 255, 255)),
}


def redraw(picture: Image.Image, look: str | None) -> Image.Image:
    """The drawing in a look of `LOOKS`, or as it is."""
    return picture if look is None else LOOKS[look](picture)
