"""The trained parts -> a folder that plain ``FluxPriorReduxPipeline.from_pretrained`` loads."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FluxPriorReduxPipeline
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from transformers import SiglipImageProcessor, SiglipVisionModel

from ..export import save
from .views import SIDE

NAME = "emoji-redux"
VERSION = "0.3"
LICENCE = "Apache-2.0"


def export(folder: Path, tower: SiglipVisionModel, embedder: ReduxImageEncoder) -> FluxPriorReduxPipeline:
    """Write the pipeline in bfloat16; returns it as it loads from there, in float32."""
    pipeline = FluxPriorReduxPipeline(
        image_encoder=tower,
        feature_extractor=SiglipImageProcessor(size={"height": SIDE, "width": SIDE}),
        image_embedder=embedder,
    )
    save(pipeline, folder)
    return FluxPriorReduxPipeline.from_pretrained(folder, dtype=torch.float32)
