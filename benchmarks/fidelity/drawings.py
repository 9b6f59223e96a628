"""The drawings that concepts and probes are made of: emoji families, and one look of our own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image

from script.embedded_base import pictures

FOLDER = Path("build/embedded-base/pictures")
SIDE = 64  # pixels: what the embedded base draws
CORNER = 4  # pixels: a picture's background is read off its corners
THERMAL = "thermal"  # Noto as an infrared camera would show it: a look that is all colour, and that no base was taught
# Neither the base nor its VAE saw the last four. The probe of looks must tell these apart.
LOOKS = (pictures.NOTO, pictures.FLUENT_FLAT, pictures.LINE, *pictures.UNSEEN_FAMILIES, THERMAL)


@cache
def drawing(look: str, code: str) -> Image.Image:
    """RGBA, cropped to what is drawn."""
    if look != THERMAL:
        return pictures.drawing(FOLDER, look, code)
    picture = pictures.drawing(FOLDER, pictures.NOTO, code)
    heat = colormaps["plasma"](np.asarray(picture.convert("L")))[..., :3]
    recoloured = Image.fromarray((255 * heat).astype(np.uint8))
    recoloured.putalpha(picture.getchannel("A"))
    return recoloured


def codes(look: str) -> list[str]:
    return pictures.family_codes(FOLDER, pictures.NOTO if look == THERMAL else look)


def scene(look: str, code: str, background, side: int, scale: float, place: tuple[float, float]) -> np.ndarray:
    """uint8 [side, side, 3]; ``background`` is an RGB colour, the rest as in `pictures.compose`."""
    return pictures.compose(drawing(look, code), background, (side, side), scale, place)
