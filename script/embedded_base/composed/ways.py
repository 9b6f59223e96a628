"""Ways of drawing: what is done to a drawing's lines, areas and edges, whatever its colours.

Each takes and gives an RGBA picture of the drawing with room around it. Lengths are shares of the picture's longer side, and
no line is thinner than one pixel of a 64 px scene, so that each way is still seen there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageFilter

Way = Callable[[Image.Image], Image.Image]

ROOM = 10  # pixels around a drawing of 128: borders, halos and shadows need it


def alpha_of(picture: Image.Image) -> Image.Image:
    return picture.getchannel("A")


def _colours(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), np.float32)


def _with_alpha(rgb: np.ndarray, alpha: Image.Image) -> Image.Image:
    drawn = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8), "RGB")
    drawn.putalpha(alpha)
    return drawn


def _behind(picture: Image.Image, mask: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The drawing over an area of one colour."""
    below = Image.new("RGBA", picture.size, colour)
    below.putalpha(mask)
    below.alpha_composite(picture)
    return below


def _grown(picture: Image.Image, pixels: int) -> Image.Image:
    return alpha_of(picture).filter(ImageFilter.MaxFilter(2 * pixels + 1))


def _lines(picture: Image.Image) -> np.ndarray:
    """Where a pen would go, 0..1: the outline, and where the brightness changes."""
    alpha = alpha_of(picture)
    outer = ImageChops.subtract(alpha, alpha.filter(ImageFilter.MinFilter(5)))
    grey = picture.convert("L").filter(ImageFilter.GaussianBlur(1))
    inner = ImageChops.subtract(grey.filter(ImageFilter.MaxFilter(3)), grey.filter(ImageFilter.MinFilter(3)))
    drawn = np.asarray(outer, np.float32) + np.asarray(inner, np.float32) * 2.2 * (np.asarray(alpha) > 200)
    drawn = Image.fromarray(np.clip(drawn, 0, 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
    return np.clip(np.asarray(drawn, np.float32) / 150 - 0.25, 0, 1)


def _mean_colour(picture: Image.Image) -> np.ndarray:
    weight = np.asarray(alpha_of(picture), np.float32)[..., None]
    return (_colours(picture) * weight).sum((0, 1)) / max(1.0, weight.sum())


def _pen(picture: Image.Image) -> tuple[int, ...]:
    """A pen of the drawing's own colour, dark enough to draw with."""
    return tuple(int(c) for c in 0.55 * _mean_colour(picture))


def lines(picture: Image.Image) -> Image.Image:
    """Lines alone, in a pen of the drawing's own colour; what lies between is see-through."""
    drawing = Image.new("RGBA", picture.size, _pen(picture))
    drawing.putalpha(Image.fromarray((255 * _lines(picture)).astype(np.uint8)))
    return drawing


def colouring_book(picture: Image.Image) -> Image.Image:
    """The same lines on white paper, cut along the outline."""
    return _behind(lines(picture), alpha_of(picture), (255, 255, 255))


def hollow(picture: Image.Image) -> Image.Image:
    """The drawing's rim alone, in its own colours."""
    alpha = alpha_of(picture)
    rim = picture.copy()
    rim.putalpha(ImageChops.subtract(alpha, alpha.filter(ImageFilter.MinFilter(15))))
    return rim


def cut_out(picture: Image.Image) -> Image.Image:
    """The silhouette, in the drawing's mean colour."""
    return _with_alpha(np.broadcast_to(_mean_colour(picture), (*picture.size[::-1], 3)), alpha_of(picture))


def outlined(picture: Image.Image) -> Image.Image:
    return _behind(picture, _grown(picture, 5), (10, 10, 10))


def sticker(picture: Image.Image) -> Image.Image:
    return _behind(picture, _grown(picture, 8), (255, 255, 255))


def glowing(picture: Image.Image) -> Image.Image:
    halo = _grown(picture, 5).filter(ImageFilter.GaussianBlur(4))
    return _behind(picture, halo.point(lambda a: min(255, int(1.4 * a))), (255, 250, 150))


def shadowed(picture: Image.Image) -> Image.Image:
    return _behind(picture, ImageChops.offset(alpha_of(picture), 8, 8), (0, 0, 0))


def pixelated(picture: Image.Image) -> Image.Image:
    small = picture.resize([max(1, round(side / 9)) for side in picture.size], Image.Resampling.BOX)
    small.putalpha(alpha_of(small).point(lambda a: 255 if a > 110 else 0))
    return small.resize(picture.size, Image.Resampling.NEAREST)


def blurred(picture: Image.Image) -> Image.Image:
    weight = np.asarray(alpha_of(picture), np.float32)[..., None] / 255
    spread = Image.fromarray((_colours(picture) * weight).astype(np.uint8)).filter(ImageFilter.GaussianBlur(6))
    alpha = alpha_of(picture).filter(ImageFilter.GaussianBlur(6))
    share = np.maximum(np.asarray(alpha, np.float32)[..., None] / 255, 1 / 255)
    return _with_alpha(np.asarray(spread, np.float32) / share, alpha)


def posterised(picture: Image.Image) -> Image.Image:
    """Three steps of brightness in the drawing's mean hue."""
    grey = np.asarray(picture.convert("L").filter(ImageFilter.GaussianBlur(2)), np.float32)[..., None]
    return _with_alpha(
        _mean_colour(picture) * np.choose((grey > 85).astype(int) + (grey > 170), [0.35, 0.9, 1.6]), alpha_of(picture)
    )


def inked(picture: Image.Image) -> Image.Image:
    """Dark parts black, the rest in the mean colour, with lines."""
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    weight = np.maximum((grey < 95).astype(np.float32), _lines(picture)[..., None])
    return _with_alpha((0.4 * _mean_colour(picture) + 153) * (1 - weight), alpha_of(picture))


def embossed(picture: Image.Image) -> Image.Image:
    """As if pressed from a sheet of the mean colour and lit from above."""
    height = picture.convert("L").filter(ImageFilter.GaussianBlur(1.5))
    height = np.asarray(height, np.float32) + 0.5 * np.asarray(
        alpha_of(picture).filter(ImageFilter.GaussianBlur(3)), np.float32
    )
    slope = np.zeros_like(height)
    slope[3:, 3:] = height[3:, 3:] - height[:-3, :-3]
    return _with_alpha(_mean_colour(picture) + 2.2 * slope[..., None], alpha_of(picture))


def _pattern(picture: Image.Image, of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """0..1 by place: ``of`` takes rows and columns in pixels."""
    y, x = np.mgrid[0 : picture.height, 0 : picture.width]
    return of(y, x).astype(np.float32)


def striped(picture: Image.Image) -> Image.Image:
    """Dark bands across."""
    bands = _pattern(picture, lambda y, x: y // 9 % 2 == 0)
    return _with_alpha(_colours(picture) * (1 - 0.75 * bands[..., None]), alpha_of(picture))


def barred(picture: Image.Image) -> Image.Image:
    """Cut into upright bars; the background shows between them."""
    bars = _pattern(picture, lambda y, x: x % 18 < 11)
    return _with_alpha(_colours(picture), Image.fromarray((np.asarray(alpha_of(picture)) * bars).astype(np.uint8)))


def dotted(picture: Image.Image) -> Image.Image:
    """Round dots in the drawing's colours; the background shows between them."""
    step = 14
    dots = _pattern(
        picture,
        lambda y, x: np.hypot(y % step - step / 2 + 0.5, (x + step // 2 * (y // step % 2)) % step - step / 2 + 0.5) < 6.2,
    )
    coarse = picture.resize([max(1, side // 5) for side in picture.size], Image.Resampling.BOX).resize(picture.size)
    return _with_alpha(_colours(coarse), Image.fromarray((np.asarray(alpha_of(picture)) * dots).astype(np.uint8)))


def chequered(picture: Image.Image) -> Image.Image:
    squares = _pattern(picture, lambda y, x: (y // 16 + x // 16) % 2 == 0)[..., None]
    return _with_alpha(_colours(picture) * (1 - squares) + (0.3 * _colours(picture) + 178) * squares, alpha_of(picture))


def hatched(picture: Image.Image) -> Image.Image:
    """White slanting strokes."""
    strokes = _pattern(picture, lambda y, x: (x + y) % 16 < 5)[..., None]
    return _with_alpha(_colours(picture) * (1 - strokes) + 255 * strokes, alpha_of(picture))


WAYS: dict[str, Way] = {  # by the word that captions call it
    "line": lines,
    "colouring book": colouring_book,
    "hollow": hollow,
    "cut-out": cut_out,
    "outlined": outlined,
    "sticker": sticker,
    "glowing": glowing,
    "shadowed": shadowed,
    "pixelated": pixelated,
    "blurred": blurred,
    "posterised": posterised,
    "inked": inked,
    "embossed": embossed,
    "striped": striped,
    "barred": barred,
    "dotted": dotted,
    "chequered": chequered,
    "hatched": hatched,
}
