"""Rows of cells -> Markdown."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict

from benchmarks.fidelity.scores import mean_and_spread

MODES = ("style", "character", "product")


def comparison(rows: list[dict], against: str) -> str:
    """A line a variant: by mode and in all its area and, in brackets, the difference to ``against``.

    Differences are paired on concept and seed: what a concept is hard by is the same on both sides. One that is larger than its
    spread is bold; one that is smaller is told as none; of too few pairs there is no spread.
    """
    by_variant: dict[str, dict[tuple[str, int], dict]] = defaultdict(dict)
    for row in rows:
        by_variant[row["variant"]][row["concept"], row["seed"]] = row
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    lines = [
        f"| recipe | {' | '.join(modes)} | all | pairs | leak at 1 | images seen | seconds |",
        "|---" * (len(modes) + 6) + "|",
    ]
    reference = by_variant[against]
    for name, cells in by_variant.items():
        others = {} if name == against else reference
        values = [
            name,
            *(area_and_difference(_of_mode(cells, mode), others) for mode in modes),
            area_and_difference(cells, others),
            str(len(cells.keys() & others.keys()) or ""),
            f"{_mean([c['leak_ratio'] for c in cells.values()]):.2f}",
            f"{_mean([c['images_seen'] for c in cells.values()]):.0f}",
            f"{statistics.median(c['training_seconds'] for c in cells.values()):.0f}",
        ]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def _of_mode(cells: dict[tuple[str, int], dict], mode: str) -> dict[tuple[str, int], dict]:
    return {key: cell for key, cell in cells.items() if cell["mode"] == mode}


def area_and_difference(cells: dict[tuple[str, int], dict], others: dict[tuple[str, int], dict]) -> str:
    """Empty of no cells; no difference where nothing pairs."""
    if not cells:
        return ""
    area = f"{_mean([cell['area'] for cell in cells.values()]):.3f}"
    paired = [cells[key]["area"] - others[key]["area"] for key in cells.keys() & others.keys()]
    if not paired:
        return area
    mean, spread = mean_and_spread(paired)
    if math.isnan(spread):
        return f"{area} ({mean:+.3f})"
    difference = f"{mean:+.3f} ± {spread:.3f}"
    return f"{area} (**{difference}**)" if abs(mean) > spread else f"{area} ({difference}: none)"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def by_concept(rows: list[dict]) -> str:
    """A line a finetune, at strength 1, with the base as the control."""
    lines = [
        "| concept | mode | concept (base) | prompt (base) | similarity (base) | area | change | leak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        base = row["scores"][0]
        at = next(score for score in row["scores"] if score["strength"] == 1)
        pairs = [f"{at[name]:.2f} ({base[name]:.2f})" for name in ("concept", "prompt", "similarity")]
        values = [row["concept"], row["mode"], *pairs, f"{row['area']:.3f}", f"{at['change']:.0f}", f"{row['leak_ratio']:.2f}"]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)
