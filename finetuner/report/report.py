"""What people look at after a training: a page, a model card, and the pieces of both as PNG and JSON."""

from __future__ import annotations

import json
from pathlib import Path

from finetuner.bases import Base
from finetuner.data import CaptionedExample
from finetuner.report.card import render_card
from finetuner.report.curve import draw_loss_curve, learning_rates
from finetuner.report.page import SHOWN, render_page
from finetuner.report.sheet import SAMPLING_STEPS, SEED, STRENGTHS, Sheet, contact_sheet
from finetuner.report.summary import summarise
from finetuner.requests import FinetuneRequest
from finetuner.training import History, Recipe

FOLDER = "report"


def write_report(
    finetune: Path,
    manifest: dict,
    request: FinetuneRequest,
    base: Base,
    recipe: Recipe,
    examples: list[CaptionedExample],
    history: History,
    sheet: Sheet,
) -> None:
    """Write ``report/`` and the model card, README.md, into the folder of a finetune.

    Args:
        manifest: the finetune's, as far as it is known by now.
    """
    folder = finetune / FOLDER
    (folder / "sheet").mkdir(parents=True)
    summary = summarise(manifest, request, base, recipe, sheet)
    curve = draw_loss_curve(history, recipe)
    curve.savefig(folder / "curve.png", dpi=150)
    sheet.picture().save(folder / "strengths.png")
    contact_sheet([example.image for example in examples[:SHOWN]]).save(folder / "training.png")
    names = save_pictures(sheet, folder / "sheet")
    made = {"size": sheet.size, "steps": SAMPLING_STEPS, "guidance": base.guidance_scale, "seed": SEED}
    write_json(folder / "sheet.json", {"prompts": sheet.prompts, "strengths": STRENGTHS, "pictures": names, **made})
    write_json(folder / "history.json", {**history.series(), "learning_rates": learning_rates(recipe)})

    (folder / "index.html").write_text(render_page(summary, examples, sheet, curve))
    gallery = [f"{FOLDER}/{row[STRENGTHS.index(1.0)]}" for row in names]
    (finetune / "README.md").write_text(render_card(summary, base, examples, sheet, gallery))


def save_pictures(sheet: Sheet, folder: Path) -> list[list[str]]:
    """Each picture as a PNG of its own; their names beside the folder, as the sheet has them."""
    names = []
    for number, row in enumerate(sheet.rows, start=1):
        names.append([f"{folder.name}/{number}-strength-{strength:g}.png" for strength in STRENGTHS])
        for name, image in zip(names[-1], row, strict=True):
            image.save(folder.parent / name)
    return names


def write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n")
