"""How much an image prompt counts by its strength: two weightings, and a sheet. ``python -m benchmarks.image_prompts``.

A prompt asks for a thing on one background, the image prompt shows another on another: how often each of the two is drawn. And
a prompt asks for "this" on one background: what the image prompt shows should stand there. It needs the drawings of
``script/build-embedded-base``.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from finetuner.bases import Base, ImagePrompt
from finetuner.generate import Generator
from finetuner.paths import WEIGHTS
from finetuner.report import labelled_grid
from finetuner.requests import ImageRequest
from finetuner.store import FolderStore
from script.embedded_base import pictures
from script.embedded_base.captions import with_article
from script.embedded_base.composed.things import things as known_things
from script.embedded_base.redux.evaluate import Drawing, Names, held_out

PICTURES = Path("build/embedded-base/pictures")
BASES = ("flux-emoji", "klein-emoji")
STRENGTHS = (0.05, 0.1, 0.2, 0.4, 1.0)
COUNT = 40
SHEET = Path("docs/image-prompts.png")
SHEET_STRENGTHS = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)
SHEET_PROMPTS = ("an owl on a yellow background", "this on a teal background", "")
FINETUNE_STRENGTHS = (0.0, 0.5, 1.0, 1.5)
CELL = 96


def scaled(read: ImagePrompt, strength: float) -> tuple[ImagePrompt, float]:
    """The other weighting: the tokens times the strength."""
    return dataclasses.replace(read, tokens=read.tokens * strength), 1.0


def weighed(read: ImagePrompt, strength: float) -> tuple[ImagePrompt, float]:
    """Ours: an addition of log(strength) in attention."""
    return read, strength


def table(name: str, count: int) -> list[str]:
    """Rows of Markdown for one base. By weighting: shares with the background and the thing of the image prompt, and with those
    of the prompt."""
    concepts = known_things(PICTURES)  # of those that flux-emoji draws, the ones that klein-emoji draws, too
    draws, names = Drawing(Base.open(WEIGHTS / name)), Names(PICTURES, concepts)
    shown, things, backgrounds = (part[:count] for part in held_out(PICTURES, concepts, pictures.NOTO, 81))
    rng = np.random.default_rng(82)
    asked, behind = (things + rng.integers(1, len(concepts), count)) % len(concepts), (backgrounds + 5) % len(names.colours)
    colours = [with_article(colour) for colour in pictures.BACKGROUNDS]
    read, rows = draws.read(list(shown)), []
    for named in (True, False):
        prompts = [
            f"{with_article(concepts[a].name) if named else 'this'} on {colours[b]} background"
            for a, b in zip(asked, behind, strict=True)
        ]
        for strength in (0.0, *STRENGTHS):
            cells = []
            for weighting in (weighed, scaled):
                images = draws(prompts, *(weighting(read, strength) if strength else (None, 1.0)))
                there = names.backgrounds(images)
                found = names.things(images, there)
                right = (there == backgrounds), (found == things), (there == behind), (found == asked)
                cells.append(" | ".join(f"{np.mean(those):.0%}" for those in right))
            rows.append(f"| {name} | {'another thing' if named else 'this'} | {strength:g} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    return rows


def sheet(finetune: Path | None) -> None:
    """Rows of image prompts, then of finetune strengths; columns of image prompt strengths."""
    concepts = {concept.name: concept for concept in pictures.concepts(PICTURES)}
    rows: list[tuple[str, list[Image.Image]]] = []
    for name in BASES:
        draws = Drawing(Base.open(WEIGHTS / name))
        for prompt, (thing, background) in zip(
            SHEET_PROMPTS, (("fox", "purple"), ("fox", "purple"), ("rocket", "brown")), strict=True
        ):
            drawn = pictures.drawing(PICTURES, pictures.NOTO, concepts[thing].code)
            shown = Image.fromarray(pictures.compose(drawn, pictures.BACKGROUNDS[background], (CELL, CELL), 0.8, (0.4, 0.6)))
            read = draws.read([shown])
            images = [draws([prompt], read if s else None, s or 1.0, seed=3)[0] for s in SHEET_STRENGTHS]
            rows.append((f"{name}: {prompt or 'empty prompt'}", [shown, *(Image.fromarray(image) for image in images)]))
    if finetune is not None:
        store = FolderStore(finetune.parent)
        generator = Generator(Base.open(WEIGHTS / "klein-emoji"), store)
        drawn = pictures.drawing(PICTURES, pictures.NOTO, concepts["fox"].code)
        shown = Image.fromarray(pictures.compose(drawn, pictures.BACKGROUNDS["purple"], (CELL, CELL), 0.8, (0.4, 0.6)))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "fox.png"
            shown.save(file)
            for strength in FINETUNE_STRENGTHS:
                images = []
                for s in SHEET_STRENGTHS:
                    request = ImageRequest(
                        f"{SHEET_PROMPTS[1]}, TOK style",
                        finetune.name,
                        finetune_strength=strength,
                        image_prompt=file,
                        image_prompt_strength=s,
                        steps=20,
                        seed=3,
                        output_format="png",
                    )
                    with Image.open(generator.generate(request, Path(folder)).path) as image:
                        images.append(image.convert("RGB"))
                rows.append((f"finetune_strength {strength:g}: {SHEET_PROMPTS[1]}, TOK style", [shown, *images]))
    labels, images = zip(*rows, strict=True)
    heads = ["image prompt", *(f"strength {s:g}" for s in SHEET_STRENGTHS)]
    labelled_grid(list(images), list(labels), heads, CELL).save(SHEET, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", choices=BASES, help="only this base's table")
    parser.add_argument("--sheet", action="store_true", help="only the sheet")
    parser.add_argument("--finetune", type=Path, help="a finetune of klein-emoji in a folder store, for the sheet's last rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in [arguments.table] if arguments.table else [] if arguments.sheet else BASES:
        print("\n".join(table(name, COUNT)))
    if not arguments.table:
        sheet(arguments.finetune)


if __name__ == "__main__":
    main()
