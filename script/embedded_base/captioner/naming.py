"""How well the captioner names: on drawings it learned from, placed and coloured as it never saw them, and on other styles."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from finetuner.data.captioner import SUBJECT, Captioner

from .. import captions, pictures
from ..composed import things
from ..composed.looks import PLAIN
from ..composed.scenes import stands_out
from ..pictures import BACKGROUNDS, FLUENT_FLAT, LINE, NOTO, UNSEEN_FAMILIES, Concept
from . import redrawn
from .views import SCALES

# Far from every colour that the views have behind them.
UNSEEN_BACKGROUNDS = {
    "navy": (20, 25, 90),
    "maroon": (110, 20, 40),
    "olive": (125, 125, 35),
    "beige": (235, 215, 175),
    "lavender": (200, 185, 240),
    "mint": (170, 240, 205),
}
UNSEEN_SCALES = (SCALES[0][1], SCALES[1][0])
SIZE = (128, 128)
MODES_SHOWN = 40
LOOKS_SHOWN = 300
HELD_OUT = ("fox", "owl", "snail", "mushroom", "banana", "pizza", "rocket", "house", "guitar", "key", "castle", "umbrella")


def renderings(
    folder: Path, concepts: list[Concept], family: str, colours: dict[str, tuple[int, int, int]], scales: tuple[float, float]
) -> tuple[list[Image.Image], list[str]]:
    """Each concept once, at a scale and a place and on a background by the draw; and the names of the backgrounds."""
    rng = np.random.default_rng(31)
    images, chosen = [], [list(colours)[n] for n in rng.integers(len(colours), size=len(concepts))]
    for concept, background in zip(concepts, chosen, strict=True):
        picture = pictures.drawing(folder, family, concept.code)
        scene = pictures.compose(picture, colours[background], SIZE, rng.uniform(*scales), tuple(rng.uniform(0, 1, 2)))
        images.append(Image.fromarray(scene))
    return images, chosen


def named(captioner: Captioner, images: list[Image.Image], concepts: list[Concept]) -> float:
    """The share of images whose caption begins with the right name."""
    texts = captioner.caption(images, "style")
    wanted = [f"{captions.with_article(concept.name)} on " for concept in concepts]
    return sum(bool(text) and text.startswith(name) for text, name in zip(texts, wanted, strict=True)) / len(images)


def evaluate(folder: Path, captioner: Captioner, concepts: list[Concept]) -> dict[str, float]:
    """The figures of the model card, as shares."""
    figures = {}
    for family in (NOTO, FLUENT_FLAT):
        images, _ = renderings(folder, concepts, family, UNSEEN_BACKGROUNDS, UNSEEN_SCALES)
        figures[family] = named(captioner, images, concepts)
    for family in (LINE, *UNSEEN_FAMILIES):
        images, _ = renderings(folder, concepts, family, BACKGROUNDS, (0.8, 0.95))
        figures[family] = named(captioner, images, concepts)
    images, backgrounds = renderings(folder, concepts, NOTO, BACKGROUNDS, UNSEEN_SCALES)
    texts = [text or "" for text in captioner.caption(images, "style")]
    ends = [f"on {captions.with_article(background)} background" for background in backgrounds]
    figures["background"] = sum(text.endswith(end) for text, end in zip(texts, ends, strict=True)) / len(texts)
    shown = captioner.caption(images[:MODES_SHOWN], "product") + captioner.caption(images[:MODES_SHOWN], "character")
    figures["kept_quiet"] = sum(f" of {SUBJECT} on a" in (text or "") for text in shown) / len(shown)
    return figures | naming_looks(folder, captioner)


def naming_looks(folder: Path, captioner: Captioner) -> dict[str, float]:
    """Pictures in klein-emoji's composed looks, drawn anew: shares with all words of the look, with the palette, way and shape
    where there is one, and with the right thing."""
    concepts, rng = things.things(folder), np.random.default_rng(32)
    known = {(row.thing, row.look) for row in redrawn.chosen_rows(folder, concepts, 0, redrawn.COUNT)}
    rows = [row for row in redrawn.chosen_rows(folder, concepts, 1, 6 * LOOKS_SHOWN) if (row.thing, row.look) not in known]
    rows = [row for row in rows if row.look != PLAIN][:LOOKS_SHOWN]
    images = []
    for row in rows:
        picture = redrawn.drawn(folder, concepts[row.thing].code, row)
        for _ in range(6):
            colour = list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS))]
            scene = pictures.compose(picture, colour, SIZE, rng.uniform(*UNSEEN_SCALES), tuple(rng.uniform(0, 1, 2)))
            if stands_out(scene, colour):
                break
        images.append(Image.fromarray(scene))
    texts = [text or "" for text in captioner.caption(images, "general")]
    said = [text.partition(" background, ")[2].removesuffix(" style") for text in texts]
    figures = {
        "composed_look": sum(" ".join(row.look.words) == words for row, words in zip(rows, said, strict=True)) / len(rows)
    }
    for kind in redrawn.WORDS:
        there = [getattr(row.look, kind) in words for row, words in zip(rows, said, strict=True) if getattr(row.look, kind)]
        figures[f"composed_{kind}"] = sum(there) / len(there)
    subjects = [f" of {captions.with_article(concepts[row.thing].name)} on " for row in rows]
    figures["composed_thing"] = sum(subject in text for text, subject in zip(texts, subjects, strict=True)) / len(texts)
    return figures


def write_held_out(folder: Path, concepts: list[Concept], path: Path) -> None:
    """A dozen drawings of each family that is learned from, small, for the tests to render."""
    by_name = {concept.name: concept for concept in concepts}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for family in (NOTO, FLUENT_FLAT):
            for name in HELD_OUT:
                picture = pictures.drawing(folder, family, by_name[name].code)
                picture.thumbnail((64, 64), Image.Resampling.LANCZOS)
                png = io.BytesIO()
                picture.quantize(64, Image.Quantize.FASTOCTREE).save(png, "PNG", optimize=True)
                archive.writestr(zipfile.ZipInfo(f"{family}/{name}.png"), png.getvalue())  # ZipInfo's date is fixed
