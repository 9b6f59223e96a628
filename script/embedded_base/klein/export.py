"""The trained parts -> a folder that plain ``Flux2KleinPipeline.from_pretrained`` loads, with its manifest."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from transformers import PreTrainedTokenizerFast

from ..composed.scenes import SIDE
from ..export import save
from . import text
from .training import Model, new_scheduler

NAME = "klein-emoji"
VERSION = "0.1"
LICENCE = "Apache-2.0"

MANIFEST = {
    "name": NAME,
    "version": VERSION,
    "source": f"weights/{NAME}",
    "licence": LICENCE,
    "trains": True,
    "serves_finetunes_of": [],
    "resolutions": {"speed": [SIDE], "quality": [SIDE], "high_res_only": [SIDE]},
    "sampling": {"side": SIDE, "largest_side": SIDE, "steps": 20, "guidance": 4},
    "max_sequence_length": text.LENGTH,
    "training_guidance": 1.0,
    "learning_rate_scale": 16,
    "learning_rate_scale_reason": "Derived, not measured: the documented rates suit models 3072 wide. Adam's rate for hidden"
    " matrices transfers as 1/width (muP, Yang et al. 2022), and this base is 192 wide: 3072 / 192 = 16.",
    "caption_form": "a fox on a teal background, striped style",
    "hears_new_words": True,
    "pictures": "emoji",
}


def export(folder: Path, codec: AutoencoderKLFlux2, tokens: PreTrainedTokenizerFast, model: Model) -> Flux2KleinPipeline:
    """Write the pipeline in bfloat16 with ``base.json``; returns it as it loads from there, in float32."""
    pipeline = Flux2KleinPipeline(
        scheduler=new_scheduler(), vae=codec, text_encoder=model.encoder, tokenizer=tokens, transformer=model.transformer
    )
    save(pipeline, folder, MANIFEST)
    return Flux2KleinPipeline.from_pretrained(folder, dtype=torch.float32)
