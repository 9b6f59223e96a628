"""Compile the transformer that draws."""

from __future__ import annotations

import logging

from diffusers import DiffusionPipeline

from finetuner.bases import Base
from finetuner.serving.caches import PromptCache
from finetuner.serving.sampling import native_size, sample_latents

log = logging.getLogger(__name__)


def compile_blocks(pipeline: DiffusionPipeline, base: Base, prompts: PromptCache) -> None:
    """Compile the transformer's blocks, once for all sizes; a first picture, which this draws, is what does it."""
    log.info("Compiling the transformer's blocks, which takes minutes")
    pipeline.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)
    # Not a square: one of 1024 px is 4096 tokens, which a transformer 4096 wide (FLUX.2 klein 9B) does not tell from its
    # width. Dynamo takes equal sizes for one and the same, and would compile again for the next picture of another shape.
    size = native_size(3 / 2, base.sampling_side, base.size_multiple)
    guidance, empty = base.sampling_guidance, prompts.empty
    sample_latents(pipeline, prompts.get(""), size, steps=1, guidance=guidance, seed=0, empty=empty)
