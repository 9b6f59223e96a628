"""What `benchmarks.ablate` has logged, as Markdown: a table for each question."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from benchmarks.fidelity.cell import the_base
from benchmarks.fidelity.pool import read_rows
from benchmarks.fidelity.tables import MODES, comparison
from benchmarks.fidelity.variants import ALONE, FULL, OTHER_TRAINERS, OURS, PLAIN, PLAIN_LONG
from finetuner.training import Recipe

LOG = Path("benchmarks/ablation.jsonl")
STEPS = re.compile(r"training_steps=(\d+)")
PRESERVING = re.compile(rf"{ALONE.name}|preservation_weight=[\d.]+")
IMAGES = re.compile(r", (\d+) images?$")  # behind a concept's name


def tables(measured: list[dict]) -> str:
    """``measured``: rows of this run, which count beside the log's."""
    rows = list({row["key"]: row for row in (*rows_here(), *measured)}.values())
    usual = [row for row in rows if not IMAGES.search(row["concept"])]
    trainers = {variant.name for variant in OTHER_TRAINERS}
    ours = [row for row in usual if row["variant"] == OURS.name]
    preserving = [row for row in usual if PRESERVING.fullmatch(row["variant"])]
    of_steps = [row for row in usual if STEPS.fullmatch(row["variant"])]
    elsewhere = trainers | {variant.name for variant in (PLAIN, PLAIN_LONG, FULL)}
    elsewhere |= {row["variant"] for row in (*preserving, *of_steps)}
    ablations = [row for row in usual if row["variant"] not in elsewhere]
    of_images = [row for row in rows if IMAGES.search(row["concept"])]
    at_defaults = [row for row in of_images if row["variant"] == OURS.name]
    of_few = [row for row in of_images if row["variant"] != OURS.name]
    beside_few = [row for row in at_defaults if row["concept"] in {other["concept"] for other in of_few}]
    steps = images = ""
    if of_steps:
        steps = f"### Steps\n\n`training_steps` at the documented rate; ours has 300.\n\n{_beside(ours, of_steps)}\n\n"
    if at_defaults:
        images = f"""### Numbers of images

The same defaults, with archives of other sizes: the score, and in brackets concept x prompt at strength 1. A style has a thing
an image, a character or product the same drawing at another place on another background.

{images_table(at_defaults)}

With other settings, on small archives:

{_beside(beside_few, of_few)}

"""
    return f"""### Against other trainers

What they publish, through our loop: their rates, batches, noise levels and averaging, our rank and our linears, in about the
time of 300 of our steps (`benchmarks/fidelity/variants.py` has the sources). *plain, equal time* is diffusers' script. These
and the tables below are of {len(rows)} trainings, of this run and of `benchmarks/ablation.jsonl`.

{_beside(ours, [row for row in usual if row["variant"] in trainers | {PLAIN_LONG.name}])}

### Preservation

Nothing preserved, and at another weight than {Recipe.preservation_weight}.

{_beside(ours, preserving)}

{steps}{images}### Ablations

Each line changes what it names, at as many images seen. Differences are as above; of so many lines, one in twenty is beyond its
spread by accident.

{_beside([], ablations)}

{earlier()}"""


def rows_here() -> list[dict]:
    """What was measured on this base by this recipe."""
    return [row for row in read_rows(LOG) if _is_here(row)]


def _is_here(row: dict) -> bool:
    return row["base"] == f"{the_base().name} {the_base().version}"


def earlier() -> str:
    """What the log holds of other bases, and of earlier recipes: the recipe's reasons are figures of theirs."""
    others = [row for row in read_rows(LOG) if not _is_here(row)]
    tables = [
        f"""### On {name}

{len(rows)} trainings, read from `benchmarks/ablation.jsonl`, by the recipe of their time. `preserved_images` of each batch were
captioned without the trigger word and drawn to the base's own velocity.

{_beside([], rows)}"""
        for name in dict.fromkeys(row["base"] for row in others)
        for rows in [[row for row in others if row["base"] == name]]
    ]
    return "\n\n".join(tables)


def images_table(rows: list[dict]) -> str:
    """A line a number of images, a column a mode; means over concepts and seeds."""
    rows = list({(row["concept"], row["seed"]): row for row in rows}.values())
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    lines = [f"| images | {' | '.join(modes)} | trainings |", "|---" * (len(modes) + 2) + "|"]
    for count in sorted({_images(row) for row in rows}):
        found = [row for row in rows if _images(row) == count]
        values = []
        for mode in modes:
            areas = [row["area"] for row in found if row["mode"] == mode]
            at_one = [
                score["both"] for row in found if row["mode"] == mode for score in row["scores"] if score["strength"] == 1
            ]
            values.append(f"{statistics.mean(areas):.3f} ({statistics.mean(at_one):.2f})" if areas else "")
        lines.append(f"| {count} | {' | '.join(values)} | {len(found)} |")
    return "\n".join(lines)


def _images(row: dict) -> int:
    found = IMAGES.search(row["concept"])
    assert found
    return int(found[1])


def _beside(ours: list[dict], others: list[dict]) -> str:
    """Ours first, then by name, numbers by their value."""

    def place(row: dict) -> tuple:
        number = STEPS.fullmatch(row["variant"])
        return row["variant"] != OURS.name, int(number[1]) if number else 0, row["variant"]

    return comparison(sorted(ours + others, key=place), OURS.name)
