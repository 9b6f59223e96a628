"""Build emoji-redux, and teach flux-emoji to read it: ``script/build-embedded-base emoji-redux``. Goes on where it was stopped.

It begins with flux-emoji as its own build leaves it, which is kept in ``build/redux``.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from pathlib import Path

import torch
from diffusers import FluxPipeline

from finetuner.bases import Base

from .. import card as base_card
from .. import evaluate as base_evaluate
from .. import export as base_export
from .. import pictures
from ..checkpoints import Checkpoints
from . import evaluate, reading, training
from .card import model_card
from .export import NAME, export
from .views import ViewMaker

PICTURES = Path("build/embedded-base/pictures")
BUILD = Path("build/redux")
WEIGHTS = Path("weights")


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    torch.set_num_threads(2)
    BUILD.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(BUILD / "checkpoints")

    pictures.fetch(PICTURES)
    concepts = pictures.concepts(PICTURES)
    pipeline = FluxPipeline.from_pretrained(base_before(BUILD / "before"), dtype=torch.float32)
    views = ViewMaker(PICTURES, concepts)
    tower, embedder = training.new_tower(), training.new_embedder()
    before = copy.deepcopy(pipeline.transformer).requires_grad_(False)
    for stage in (reading.READING, reading.SETTLING):
        reading.teach_reading(pipeline, before, tower, embedder, views, concepts, stage, checkpoints)

    staged, staged_base = BUILD / NAME, BUILD / base_export.NAME
    for folder in (staged, staged_base):
        shutil.rmtree(folder, ignore_errors=True)
    export(staged, tower, embedder)
    base_export.replace(WEIGHTS / NAME, staged)
    shutil.copytree(BUILD / "before", staged_base)
    pipeline.transformer.to(torch.bfloat16).save_pretrained(staged_base / "transformer")
    base_export.forget_origins(staged_base)
    manifest = staged_base / "base.json"
    manifest.write_text(manifest.read_text().replace(f'"{base_export.VERSION}"', f'"{base_export.READING_VERSION}"'))
    pipeline = FluxPipeline.from_pretrained(staged_base, dtype=torch.float32)
    base_figures = base_evaluate.evaluate(PICTURES, pipeline, concepts, staged_base)
    (staged_base / "README.md").write_text(base_card.model_card(concepts, base_figures, base_export.READING_VERSION))
    base_export.replace(WEIGHTS / base_export.NAME, staged_base)

    base = Base.open(WEIGHTS / base_export.NAME)
    figures = evaluate.evaluate(PICTURES, base, concepts, (*pictures.UNSEEN_FAMILIES, pictures.NOTO))
    logging.info("Measured: %s", json.dumps(base_figures | figures))
    (WEIGHTS / NAME / "README.md").write_text(model_card(figures))


def base_before(kept: Path) -> Path:
    """flux-emoji from before it was taught to read, copied from ``weights/`` when this build begins."""
    weights = WEIGHTS / base_export.NAME
    if not kept.exists():
        version = json.loads((weights / "base.json").read_text())["version"]
        if version != base_export.VERSION:
            raise SystemExit(f"{weights} {version} reads pictures already. Build it anew first: script/build-embedded-base")
        shutil.copytree(weights, kept)
    return kept


if __name__ == "__main__":
    main()
