"""Build emoji-captioner: ``script/build-embedded-base emoji-captioner``. Goes on where it was stopped."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import torch

from finetuner.data.captioner import Captioner

from .. import pictures
from ..checkpoints import Checkpoints
from ..export import replace
from . import naming, redrawn, rewriting, training
from .card import model_card
from .model import NAME, export, new_model, new_processor
from .views import SIDE, ViewMaker
from .vocabulary import tokenizer

PICTURES = Path("build/embedded-base/pictures")
BUILD = Path("build/captioner")
WEIGHTS = Path("weights")


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    torch.set_num_threads(1)  # what it was measured with; more threads change the last bits
    BUILD.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(BUILD / "checkpoints")

    pictures.fetch(PICTURES)
    concepts = pictures.concepts(PICTURES)
    tokens = tokenizer(concepts, BUILD / "tokenizer")
    model = new_model(len(tokens)).train()
    views = ViewMaker(PICTURES, concepts, redrawn.render(PICTURES, SIDE, BUILD / "redrawn.npy"))
    head = training.train_sight(model, views, concepts, checkpoints)
    training.speak_of_what_is_seen(model, head, tokens, concepts)
    sentences = training.Sentences(tokens, concepts)
    training.train_speech(model, views, sentences, checkpoints)
    rewritings = rewriting.Rewritings(PICTURES, concepts)
    training.train_rewriting(model, views, sentences, rewritings, checkpoints)
    model.eval()

    staged = BUILD / NAME
    shutil.rmtree(staged, ignore_errors=True)
    export(staged, model, new_processor(tokens))
    figures = naming.evaluate(PICTURES, Captioner.open(staged), concepts)
    figures["rewritten"] = rewriting.evaluate(model, tokens, rewritings)
    logging.info("Measured: %s", json.dumps(figures))
    (staged / "README.md").write_text(model_card(concepts, figures))
    replace(WEIGHTS / NAME, staged)


if __name__ == "__main__":
    main()
