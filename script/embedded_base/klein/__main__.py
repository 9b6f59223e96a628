"""Build klein-emoji and its distilled twin: ``script/build-embedded-base klein-emoji``. Goes on where it was stopped."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import torch

from finetuner.bases import Base

from .. import pictures
from ..checkpoints import Checkpoints
from ..composed import scenes, things
from ..composed.captions import Captions
from ..export import replace
from ..redux import evaluate as image_prompts
from . import codec, distil, evaluate, judge, text, training
from .batches import Batches
from .card import REFERENCE_FAMILIES, model_card, twin_card
from .export import NAME, TWIN, export, export_twin

PICTURES = Path("build/embedded-base/pictures")
BUILD = Path("build/klein")
WEIGHTS = Path("weights")


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    torch.set_num_threads(1)  # two processes of one thread each train: `two_cores`
    BUILD.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(BUILD / "checkpoints")

    pictures.fetch(PICTURES)
    concepts = things.things(PICTURES)
    drawn = scenes.render(PICTURES, concepts, BUILD / "scenes.npz")
    vae = codec.carried_over(WEIGHTS / "flux-emoji" / "vae")
    latents = codec.of_scenes(vae, drawn.pixels, BUILD / "tokens.pt")

    tokens = text.tokenizer(concepts, BUILD / "tokenizer")
    model = training.Model(training.new_transformer(), text.new_text_encoder(tokens))
    batches = Batches(drawn, latents, Captions(concepts))
    training.train(model, tokens, batches, checkpoints, BUILD / "curve.txt")

    staged = cleared(BUILD / NAME)
    pipeline = export(staged, vae, tokens, model)

    judged, judge_figures = judge.train(PICTURES, concepts, pipeline.vae, BUILD / "judged.npz", checkpoints)
    figures = judge_figures | codec.measure(pipeline.vae, drawn) | evaluate.evaluate(pipeline, concepts, judged, staged)
    figures |= image_prompts.evaluate(PICTURES, Base.open(staged), concepts, REFERENCE_FAMILIES)
    logging.info("Measured: %s", json.dumps(figures))
    (staged / "README.md").write_text(model_card(concepts, figures))
    replace(WEIGHTS / NAME, staged)

    parts = pipeline.transformer, pipeline.text_encoder, tokens
    ways = distil.ways(*parts, drawn, Captions(concepts), BUILD / "ways.pt")
    twin = distil.distil(pipeline.transformer, ways, checkpoints)
    staged = cleared(BUILD / TWIN)
    figures = evaluate.evaluate(export_twin(staged, BUILD / NAME, twin), concepts, judged, staged)
    logging.info("Measured of the twin: %s", json.dumps(figures))
    (staged / "README.md").write_text(twin_card(figures))
    replace(WEIGHTS / TWIN, staged)


def cleared(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
