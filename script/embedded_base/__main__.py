"""Build flux-emoji from nothing: ``script/build-embedded-base``. Goes on where it was stopped."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import torch

from . import codec, evaluate, pictures, scenes, text, transformer
from .card import model_card
from .checkpoints import Checkpoints
from .export import NAME, VERSION, export, replace

BUILD = Path("build/embedded-base")
WEIGHTS = Path("weights") / NAME


def main() -> None:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    torch.set_num_threads(2)  # what the steps and seeds were measured with; more threads change the last bits
    checkpoints = Checkpoints(BUILD / "checkpoints")
    drawings = BUILD / "pictures"

    pictures.fetch(drawings)
    concepts = pictures.concepts(drawings)
    vae = codec.train(drawings, checkpoints)
    encoders = text.new_text_encoders(drawings, concepts, BUILD / "tokenizers")
    plain = scenes.cache_plain(drawings, concepts, vae, BUILD / "latents.pt")
    redrawn = scenes.cache_looks(drawings, concepts, vae, BUILD / "look-latents.pt")
    batches = scenes.Batches(plain, concepts, vae, transformer.SQUARE_STEPS)
    model = transformer.train(encoders, batches, checkpoints)
    batches = scenes.LookBatches(plain, redrawn, concepts, vae)
    transformer.teach_looks(model, encoders, batches, checkpoints)
    model = transformer.distill_guidance(model, encoders, batches, checkpoints)

    staged = BUILD / NAME
    shutil.rmtree(staged, ignore_errors=True)
    pipeline = export(staged, vae, encoders, model)
    figures = evaluate.evaluate(drawings, pipeline, concepts, staged)
    logging.info("Measured: %s", json.dumps(figures))
    (staged / "README.md").write_text(model_card(concepts, figures, VERSION))
    replace(WEIGHTS, staged)


if __name__ == "__main__":
    main()
