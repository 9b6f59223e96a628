"""Build emoji-redux: ``script/build-embedded-base emoji-redux``. Goes on where it was stopped."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import torch
from diffusers import FluxPipeline

from finetuner.bases import Base

from .. import captions, pictures
from ..checkpoints import Checkpoints
from ..export import replace
from ..pictures import BACKGROUNDS
from . import evaluate, training
from .card import model_card
from .export import NAME, export
from .views import ViewMaker

PICTURES = Path("build/embedded-base/pictures")
BUILD = Path("build/redux")
WEIGHTS = Path("weights")


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    torch.set_num_threads(1)
    BUILD.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(BUILD / "checkpoints")

    pictures.fetch(PICTURES)
    concepts = pictures.concepts(PICTURES)
    pipeline = FluxPipeline.from_pretrained(WEIGHTS / "flux-emoji", dtype=torch.float32)
    views = ViewMaker(PICTURES, concepts)
    tower, embedder = training.new_tower(), training.new_embedder()
    training.train_sight(tower, views, checkpoints)
    targets = training.Targets(PICTURES, concepts, pipeline, BUILD / "targets.pt")
    told = [
        [f"{captions.with_article(c.name)} on {captions.with_article(b)} background" for b in BACKGROUNDS] for c in concepts
    ]
    training.train_redux(tower, embedder, pipeline, views, targets, told, checkpoints)

    staged = BUILD / NAME
    shutil.rmtree(staged, ignore_errors=True)
    export(staged, tower, embedder)
    replace(WEIGHTS / NAME, staged)
    base = Base.open(WEIGHTS / "flux-emoji")
    figures = evaluate.evaluate(PICTURES, base, concepts, (*pictures.UNSEEN_FAMILIES, pictures.NOTO))
    logging.info("Measured: %s", json.dumps(figures))
    (WEIGHTS / NAME / "README.md").write_text(model_card(figures))


if __name__ == "__main__":
    main()
