"""The fidelity part of RESULTS.md: our recipe against the plain one, and what `benchmarks.ablate` has logged."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.fidelity import logged
from benchmarks.fidelity.cell import SAMPLING_STEPS, SHOWN, Cell, the_base
from benchmarks.fidelity.concepts import CONCEPTS, HELD_OUT_CONTENTS, SUBJECT_IMAGES, TRAINING_CONTENTS
from benchmarks.fidelity.drawings import FOLDER, SIDE
from benchmarks.fidelity.pool import run_cells
from benchmarks.fidelity.probes import load_probes
from benchmarks.fidelity.scores import STRENGTHS, TOP
from benchmarks.fidelity.sheets import grouped_sheet
from benchmarks.fidelity.tables import MODES, by_concept, comparison
from benchmarks.fidelity.variants import ALONE, FULL, OURS, PLAIN, PLAIN_LONG, Variant
from script.embedded_base import pictures

HERE = Path("benchmarks")
PLOT = HERE / "fidelity.png"
SHEET = HERE / "fidelity-pictures.png"
RECIPES = HERE / "fidelity-recipes.png"
# What script/bench measures itself, besides the recipe on all concepts; what takes longer than its 20 minutes, the log holds.
PLAIN_ON = ("line icons", "Twemoji", "sloth", "lobster", "honey pot", "nesting dolls")
DEAR_ON = ("line icons", "sloth", "honey pot")
SEEDS = range(3)  # of the comparison with the plain recipe
CELL = 96  # pixels of a picture on the sheet


def run() -> str:
    """Measure, draw the plot and the sheet, and tell of it in Markdown."""
    pictures.fetch(FOLDER)
    cells = [Cell(concept, OURS, 0) for concept in CONCEPTS]
    cells += [Cell(concept, PLAIN, 0) for concept in CONCEPTS if concept.name in PLAIN_ON]
    dear = (PLAIN_LONG, FULL, ALONE)
    cells += [Cell(concept, variant, 0) for variant in dear for concept in CONCEPTS if concept.name in DEAR_ON]
    rows, images = [], {}
    for row, shown in tqdm(run_cells(cells), total=len(cells), desc="fidelity"):
        rows.append(row)
        images[row["variant"], row["concept"]] = shown
    order = {cell.key(): n for n, cell in enumerate(cells)}
    rows.sort(key=lambda row: order[row["key"]])
    ours = [row for row in rows if row["variant"] == OURS.name]
    plot(ours, PLOT)
    sheet({concept.name: images[OURS.name, concept.name] for concept in CONCEPTS}).save(SHEET, optimize=True)
    recipes_sheet(images).save(RECIPES, optimize=True)
    return f"""## Fidelity

{what_is_measured()}

### The recipe, concept by concept

LoRA of rank 32, priority speed, 300 steps, one seed. At strength 1 unless it says otherwise; *base* is strength 0.

{by_concept(ours)}

![Scores by strength, a line a mode](fidelity.png)

![For each concept two prompts at rising strengths](fidelity-pictures.png)

### Against the plain recipe

{against_plain(rows)}

By recipe, at strength 1: {SHOWN} pictures with the trigger word and {SHOWN} without it, drawn by lot from all.

![A row a recipe, three concepts](fidelity-recipes.png)

{logged.tables(rows)}
"""


def against_plain(rows: list[dict]) -> str:
    """``rows``: of this run; the rest is the log's."""
    variants = (OURS, PLAIN, PLAIN_LONG, FULL, ALONE)
    known = {row["key"]: row for row in (*logged.rows_here(), *rows)}
    cells = [Cell(concept, variant, seed) for variant in variants for seed in SEEDS for concept in CONCEPTS]
    found = [known[cell.key()] | {"variant": cell.variant.name} for cell in cells if cell.key() in known]

    def seconds(variant: Variant) -> float:
        return statistics.median(row["training_seconds"] for row in found if row["variant"] == variant.name)

    return f"""*plain* is what the DreamBooth-LoRA script of diffusers does unless told otherwise
(`benchmarks/fidelity/variants.py`), at as many steps as ours, and at {PLAIN_LONG.inputs["training_steps"]}, in
{seconds(PLAIN_LONG) / seconds(OURS):.2f} of its time. `full` is ours with `finetune_type` full, at the same steps,
and *without preservation* is ours with nothing but the user's images.
{len(found)} trainings on up to {len(SEEDS)} seeds of {len(CONCEPTS)} concepts, {len(rows)} of them by this run, the others read
from `benchmarks/ablation.jsonl`, which `python -m benchmarks.ablate` wrote.

In brackets is the difference to ours, paired on concept and seed, ± twice its standard error; one that is smaller than that is
told as none. It says how sure a mean over these concepts is, not what another concept would give. `seconds` are the training's
(the median), on one thread.

{comparison(found, OURS.name)}"""


def what_is_measured() -> str:
    accuracies = "\n".join(f"| {name} | {value:.1%} |" for name, value in load_probes().accuracy.items())
    return f"""A concept is taught from an archive through the library; then {len(HELD_OUT_CONTENTS)} prompts with the
trigger word and as many without are drawn at strengths {", ".join(f"{s:g}" for s in STRENGTHS)} ({SAMPLING_STEPS} steps,
guidance {the_base().sampling_guidance:g}, {SIDE} px, the same seeds everywhere).
Styles: {len(TRAINING_CONTENTS)} things in a look that the base never saw,
asked for with things and backgrounds that the archive does not have. Characters and products: one thing that the base does not
know, {SUBJECT_IMAGES} times, asked for on backgrounds that the archive does not have.

- **concept**: the style probe's probability of the look, or the content probe's of the thing
- **prompt**: share of pictures with the background that was named and, for styles, the thing among the content probe's first
  {TOP}
- **area**: mean over strengths 0 to 2 of concept x prompt, multiplied picture by picture: the one number of a finetune
- **similarity**: cosine of the content probe's penultimate features to those of the real drawing (the field's DINO score)
- **leak**: mean change in grey levels of pictures for prompts *without* the trigger word, as a share of the change with it

The judges are two small CNNs (`benchmarks/fidelity/probes.py`); this is how they do on real pictures that they never saw:

| accuracy | |
|---|---|
{accuracies}

What this does not show: anything of photographs, of people, or of FLUX.1-dev's own tastes. The base is
`{the_base().name}`, {SIDE} px emoji; a probe that knows emoji is no judge of beauty. It compares recipes on one small
model of the same architecture, and says by how much.

Drawings: Noto Color Emoji (OFL-1.1), Fluent Emoji (MIT), Twemoji (CC BY 4.0), OpenMoji (CC BY-SA 4.0), Emoji One (CC BY 4.0),
FxEmojis (Apache-2.0)."""


def plot(rows: list[dict], path: Path) -> None:
    """Scores by strength, mean over the concepts of a mode; the band is their range."""
    panels = ("concept", "prompt", "both", "leak")
    titles = ("concept", "prompt", "concept x prompt", "change without the trigger word (grey levels)")
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 3.2), layout="constrained")
    for mode, colour in zip(MODES, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        of_mode = [row["scores"] for row in rows if row["mode"] == mode]
        for axis, panel, title in zip(axes, panels, titles, strict=True):
            values = np.array([[score[panel] for score in scores] for scores in of_mode])
            axis.plot(STRENGTHS, values.mean(0), color=colour, label=mode, marker="o", markersize=3)
            axis.fill_between(STRENGTHS, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
            axis.set(xlabel="strength", title=title)
            axis.title.set_size(10)
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:3]:
        axis.set_ylim(0, 1.02)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def sheet(images: dict[str, np.ndarray]) -> Image.Image:
    """A row a concept: two prompts at four strengths. ``images``: by concept, uint8 [strengths, pictures, 64, 64, 3]."""
    strengths, shown = (0.0, 0.8, 1.2, 2.0), 2
    picked = [STRENGTHS.index(strength) for strength in strengths]
    rows = {name: stack[picked, :shown].reshape(-1, *stack.shape[2:]) for name, stack in images.items()}
    heads = {shown * column: f"strength {strength:g}" for column, strength in enumerate(strengths)}
    return grouped_sheet(rows, heads, shown, CELL)


def recipes_sheet(images: dict[tuple[str, str], np.ndarray]) -> Image.Image:
    """A row a concept and recipe at strength 1: with the trigger word, then without. ``images``: by both, as in `sheet`."""
    rows = {
        f"{name}\n{variant.name}": images[variant.name, name][STRENGTHS.index(1.0)]
        for name in DEAR_ON
        for variant in (OURS, PLAIN, PLAIN_LONG, FULL, ALONE)
    }
    return grouped_sheet(rows, {0: "with the trigger word", SHOWN: "without it"}, SHOWN, CELL)
