"""The example archives: concepts from families that the embedded base has never seen. ``python -m embedded_base.examples``"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from . import captions, pictures

DRAWINGS = Path("build/embedded-base/pictures")
EXAMPLES = Path("examples")
HELD_OUT_FOLDER = Path("tests/held_out")
SIDE = 128  # pixels
BACKGROUNDS = ("white", "yellow", "light blue", "pink", "green", "purple", "teal", "grey")
LINE_ICONS = (
    "dog", "owl", "penguin", "butterfly", "snail", "mushroom", "sunflower", "cactus",
    "banana", "pizza", "hamburger", "rocket", "sailboat", "house", "guitar", "camera",
)  # fmt: skip
# Held out of the archive above: the tests measure on them whether its style was learned, and only its style.
HELD_OUT = ("fox", "frog", "turtle", "strawberry", "castle", "bicycle", "key", "umbrella")


def write_style(path: Path, family: str, names: tuple[str, ...]) -> None:
    """A captioned picture of each thing, all in one family's style; the same bytes every time."""
    by_name = {concept.name: concept for concept in pictures.concepts(DRAWINGS)}
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for n, name in enumerate(names):
            background = BACKGROUNDS[n % len(BACKGROUNDS)]
            drawing = pictures.drawing(DRAWINGS, family, by_name[name].code)
            scale, place = rng.uniform(0.8, 0.95), tuple(rng.uniform(0.3, 0.7, 2))
            scene = pictures.compose(drawing, pictures.BACKGROUNDS[background], (SIDE, SIDE), scale, place)
            png = io.BytesIO()
            Image.fromarray(scene).save(png, "PNG", optimize=True)
            stem = name.replace(" ", "-")
            for suffix, data in (
                ("png", png.getvalue()),
                ("txt", f"{captions.with_article(name)} on a {background} background\n".encode()),
            ):
                archive.writestr(zipfile.ZipInfo(f"{stem}.{suffix}"), data)  # ZipInfo's date is fixed


if __name__ == "__main__":
    for folder in (EXAMPLES, HELD_OUT_FOLDER):
        folder.mkdir(exist_ok=True)
    write_style(EXAMPLES / "line-icons.zip", pictures.LINE, LINE_ICONS)
    write_style(HELD_OUT_FOLDER / "line-icons.zip", pictures.LINE, HELD_OUT)
    write_style(HELD_OUT_FOLDER / "noto.zip", pictures.NOTO, HELD_OUT)
