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
SLOTH = "1f9a5"  # not among the things that the transformer has seen
SUBJECT_IMAGES = 12
TRIGGER_WORD = "TOK"
# Held out of the archive above: the tests measure on them whether its style was learned, and only its style.
HELD_OUT = ("fox", "frog", "turtle", "strawberry", "castle", "bicycle", "key", "umbrella")


def write_style(path: Path, family: str, names: tuple[str, ...]) -> None:
    """A captioned picture of each thing, all in one family's style."""
    codes = {concept.name: concept.code for concept in pictures.concepts(DRAWINGS)}
    scenes = [(name.replace(" ", "-"), codes[name], captions.with_article(name)) for name in names]
    write_archive(path, family, scenes)


def write_subject(path: Path, family: str, code: str, name: str) -> None:
    """One thing, a captioned picture on each background and more."""
    scenes = [(f"{name}-{n:02}", code, TRIGGER_WORD) for n in range(1, SUBJECT_IMAGES + 1)]
    write_archive(path, family, scenes)


def write_archive(path: Path, family: str, scenes: list[tuple[str, str, str]]) -> None:
    """A picture and a caption for each of (stem, drawing's code, what the caption calls it); the same bytes every time."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for n, (stem, code, subject) in enumerate(scenes):
            background = BACKGROUNDS[n % len(BACKGROUNDS)]
            drawing = pictures.drawing(DRAWINGS, family, code)
            scale, place = rng.uniform(0.8, 0.95), tuple(rng.uniform(0.3, 0.7, 2))
            scene = pictures.compose(drawing, pictures.BACKGROUNDS[background], (SIDE, SIDE), scale, place)
            png = io.BytesIO()
            Image.fromarray(scene).save(png, "PNG", optimize=True)
            for suffix, data in (
                ("png", png.getvalue()),
                ("txt", f"{subject} on a {background} background\n".encode()),
            ):
                archive.writestr(zipfile.ZipInfo(f"{stem}.{suffix}"), data)  # ZipInfo's date is fixed


if __name__ == "__main__":
    for folder in (EXAMPLES, HELD_OUT_FOLDER):
        folder.mkdir(exist_ok=True)
    write_style(EXAMPLES / "line-icons.zip", pictures.LINE, LINE_ICONS)
    write_subject(EXAMPLES / "sloth.zip", pictures.NOTO, SLOTH, "sloth")
    write_style(HELD_OUT_FOLDER / "line-icons.zip", pictures.LINE, HELD_OUT)
    write_style(HELD_OUT_FOLDER / "noto.zip", pictures.NOTO, HELD_OUT)
