"""Palettes: the colours that a drawing is redone in. Each keeps the drawing's outline and its light and dark."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Palette = Callable[[np.ndarray], np.ndarray]  # float32 [H, W, 3] in 0..1 -> the same

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def duotone(dark: tuple[int, int, int], light: tuple[int, int, int]) -> Palette:
    """From dark to light by brightness; the contrast is raised, so that a yellow thing is not all light."""
    first, last = np.array(dark, np.float32) / 255, np.array(light, np.float32) / 255

    def recolour(rgb: np.ndarray) -> np.ndarray:
        grey = np.clip(1.3 * (rgb @ LUMINANCE) - 0.2, 0, 1)[..., None]
        return first + (last - first) * grey

    return recolour


def negative(rgb: np.ndarray) -> np.ndarray:
    return 1 - rgb


def shifted(rgb: np.ndarray) -> np.ndarray:
    """Red as green, green as blue, blue as red."""
    return rgb[..., [2, 0, 1]]


def pale(rgb: np.ndarray) -> np.ndarray:
    return 0.6 + 0.4 * rgb


def dark(rgb: np.ndarray) -> np.ndarray:
    return 0.4 * rgb


def neon(rgb: np.ndarray) -> np.ndarray:
    """Each channel on or off: eight colours."""
    return (rgb > 0.5).astype(np.float32)


PALETTES: dict[str, Palette] = {  # by the word that captions call it
    "greyscale": duotone((10, 10, 10), (250, 250, 250)),
    "sepia": duotone((70, 40, 15), (250, 225, 180)),
    "blue ink": duotone((15, 30, 130), (200, 220, 255)),
    "red ink": duotone((130, 10, 20), (255, 210, 205)),
    "green ink": duotone((5, 80, 40), (205, 250, 210)),
    "purple ink": duotone((75, 15, 120), (230, 205, 255)),
    "golden": duotone((110, 70, 0), (255, 225, 80)),
    "icy": duotone((60, 130, 180), (240, 252, 255)),
    "rosy": duotone((190, 50, 110), (255, 225, 235)),
    "candy": duotone((220, 40, 160), (150, 255, 215)),
    "midnight": duotone((15, 15, 60), (120, 140, 220)),
    "negative": negative,
    "shifted": shifted,
    "pale": pale,
    "dark": dark,
    "neon": neon,
}
