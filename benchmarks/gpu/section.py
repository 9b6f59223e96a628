"""The section of RESULTS.md on a card, from benchmarks/gpu.json: measured anew where there is a card."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.gpu.cases import Bases, measure
from script.plan import FLUX_DEV, KLEIN_4B, TEXT_TOKENS

MEASURED = Path("benchmarks/gpu.json")
SECONDS = 480.0  # after which no case is begun: the last one, with its compilation, is over within nine minutes
REAL = Bases({"FLUX.1-dev": FLUX_DEV, "FLUX.2-klein-base-4B": KLEIN_4B}, sides=(512, 1024), text_tokens=TEXT_TOKENS)
GIB = 1 << 30


def run() -> str:
    if torch.cuda.is_available():
        measure(REAL, SECONDS, keep=lambda measured: write(measured, MEASURED))
    return section(json.loads(MEASURED.read_text()) if MEASURED.exists() else None)


def write(measured: dict, path: Path) -> None:
    path.write_text(json.dumps(measured, indent=1) + "\n")


def section(measured: dict | None) -> str:
    if measured is None:
        return """## On a card

**No card has run it.** `python -m benchmarks gpu` on a machine with an NVIDIA GPU takes at most nine minutes, needs no network
and no weights, and writes `benchmarks/gpu.json` and this section: seconds and peak memory of training steps beside the plan's
formulas, the same steps as peft and as diffusers' script run them, and of predictions. What docs/running.md says of cards comes
from formulas, which `script/plan --check` holds against a trace, and what the plan thinks of compiled blocks from other
projects' figures (`finetuner/training/compiling.py` names them). A test runs it on the CPU, with tiny configurations; that is
all that is known of it.
"""
    steps = [case for case in measured["cases"] if "finetune_type" in case]
    pictures = [case for case in measured["cases"] if "prediction" in case]
    left_out = ", ".join(measured["left_out"]) or "none"
    return "\n".join(
        [
            "## On a card",
            "",
            f"{measured['date']}, {measured['device']}, {measured['memory_bytes'] / GIB:.1f} GiB, {measured['dtype']}, torch"
            f" {measured['torch']},"
            f" {measured['seconds']:.0f} s in all. Random weights; medians. *first*: the first step, which compiles."
            " *formula*: how far the plan's bytes are from the peak. Left out for want of time: " + left_out + ".",
            "",
            "| base | type | px | images | checkpointed | way | s | first | TFLOP/s | peak GiB | formula |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *(_step_row(case) for case in steps),
            "",
            "| base | px | a prediction's step | s | first | peak GiB |",
            "|---|---|---|---|---|---|",
            *(_picture_row(case) for case in pictures),
            "",
        ]
    )


def _step_row(case: dict) -> str:
    way = ", ".join(filter(None, [case["way"], case["precision"], "compiled" * case["compiled"]]))
    cells = [case["base"], case["finetune_type"], case["side"], case["images"], case["checkpointed"], way]
    if "failed" in case:
        return _row([*cells, case["failed"], "", "", "", ""])
    speed = f"{case['formula_flop'] / case['seconds'] / 1e12:.1f}"
    return _row([*cells, f"{case['seconds']:.3f}", f"{case['first_seconds']:.1f}", speed, *_peak(case, case["formula_bytes"])])


def _picture_row(case: dict) -> str:
    cells = [case["base"], case["side"], case["prediction"]]
    if "failed" in case:
        return _row([*cells, case["failed"], "", ""])
    return _row([*cells, f"{case['seconds']:.4f}", f"{case['first_seconds']:.1f}", _peak(case)[0]])


def _peak(case: dict, formula: int = 0) -> list[str]:
    """The peak, and how far the formula is from it; nothing of a device that does not tell."""
    peak = case["peak_bytes"]
    return [f"{peak / GIB:.2f}", f"{100 * (formula / peak - 1):+.1f} %"] if peak else ["-", "-"]


def _row(cells: list) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"
