"""The trained parts -> a folder that plain ``FluxPipeline.from_pretrained`` loads, with its manifest."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline, FluxTransformer2DModel

from . import text
from .transformer import new_scheduler

NAME = "flux-emoji"
VERSION = "1.2"
READING_VERSION = "1.3"  # as it is when it has been taught to read image prompts (`redux.reading`)
LICENCE = "Apache-2.0"

MANIFEST = {
    "name": NAME,
    "version": VERSION,
    "source": f"weights/{NAME}",
    "licence": LICENCE,
    "trains": True,
    "serves_finetunes_of": [],
    "resolutions": {"speed": [64], "quality": [64, 96], "high_res_only": [96]},
    "sampling": {"side": 64, "largest_side": 96},
    "max_sequence_length": text.T5_LENGTH,
    "training_guidance": 1.0,
    "learning_rate_scale": {"lora": 16, "full": 32},
    "learning_rate_scale_reason": "The documented rates suit FLUX.1-dev, 3072 wide. Adam's rate for hidden matrices transfers"
    " as 1/width (muP, Yang et al. 2022), and this base is 192 wide: 3072 / 192 = 16. full scores .31 at 32 and .26 at 16 (ten"
    " concepts and six pairs, when it was trained at strength 1 alone; lora .31).",
    "caption_form": "a fox on a teal background",
    "hears_new_words": False,
    "pictures": "emoji",
    "image_reader": "emoji-redux",
}


def export(
    folder: Path, codec: AutoencoderKL, encoders: text.TextEncoders, transformer: FluxTransformer2DModel
) -> FluxPipeline:
    """Write the pipeline in bfloat16 with ``base.json``; returns it as it loads from there, in float32."""
    pipeline = FluxPipeline(
        scheduler=new_scheduler(),
        vae=codec.to(memory_format=torch.contiguous_format),
        text_encoder=encoders.clip,
        tokenizer=encoders.clip_tokenizer,
        text_encoder_2=encoders.t5,
        tokenizer_2=encoders.t5_tokenizer,
        transformer=transformer,
    )
    save(pipeline, folder, MANIFEST)
    return FluxPipeline.from_pretrained(folder, dtype=torch.float32)


def save(pipeline: DiffusionPipeline, folder: Path, manifest: dict | None = None) -> None:
    """Write a pipeline in bfloat16; with ``base.json`` where it is a base."""
    pipeline.to(torch.bfloat16).save_pretrained(folder)
    forget_origins(folder)
    if manifest:
        (folder / "base.json").write_text(json.dumps(manifest, indent=2) + "\n")


def forget_origins(folder: Path) -> None:
    """Take out of its configurations the folder that a model was loaded from: it says nothing to others."""
    for path in folder.rglob("*.json"):
        fields = json.loads(path.read_text())
        if fields.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(fields, indent=2) + "\n")


def replace(weights: Path, staged: Path) -> None:
    """Put what was built in the place of the folder in ``weights/``."""
    shutil.rmtree(weights, ignore_errors=True)
    shutil.copytree(staged, weights, symlinks=True)
    logging.info("Built %s, %.1f MB", weights, sum(p.stat().st_size for p in weights.rglob("*") if p.is_file()) / 1e6)
