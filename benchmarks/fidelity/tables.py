"""Rows of cells -> Markdown."""

from __future__ import annotations

import math
from collections import defaultdict

from benchmarks.fidelity.scores import mean_and_spread

MODES = ("style", "character", "product")


def comparison(rows: list[dict], against: str) -> str:
    """A line a variant: its area by mode and in all, and the difference to ``against`` on the same concepts and seeds.

    A difference smaller than its spread (twice its standard error over concepts and seeds) is told as none.
    """
    areas: dict[str, dict[tuple[str, int], dict]] = defaultdict(dict)
    for row in rows:
        areas[row["variant"]][row["concept"], row["seed"]] = row
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    lines = [
        f"| recipe | {' | '.join(modes)} | all | difference to {against} | leak at 1 | images seen | seconds |",
        "|---" * (len(modes) + 6) + "|",
    ]
    for name, cells in areas.items():
        by_mode = [_mean([c["area"] for c in cells.values() if c["mode"] == mode]) for mode in modes]
        values = [
            name,
            *("" if math.isnan(value) else f"{value:.3f}" for value in by_mode),
            f"{_mean([c['area'] for c in cells.values()]):.3f}",
            "" if name == against else _difference(cells, areas[against]),
            f"{_mean([c['leak_ratio'] for c in cells.values()]):.2f}",
            f"{_mean([c['images_seen'] for c in cells.values()]):.0f}",
            f"{_mean([c['training_seconds'] for c in cells.values()]):.0f}",
        ]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def _difference(cells: dict[tuple[str, int], dict], others: dict[tuple[str, int], dict]) -> str:
    """Paired: what a concept is hard by is the same on both sides."""
    paired = [cells[key]["area"] - others[key]["area"] for key in cells.keys() & others.keys()]
    mean, spread = mean_and_spread(paired)
    if math.isnan(spread):
        return f"{mean:+.3f} (one pair: no spread)"
    return f"{mean:+.3f} ± {spread:.3f}" + ("" if abs(mean) > spread else ": none")


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
