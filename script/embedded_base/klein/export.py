"""The trained parts -> a folder that plain ``Flux2KleinPipeline.from_pretrained`` loads, with its manifest."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from transformers import PreTrainedTokenizerFast

from ..composed.scenes import SIDE
from ..export import forget_origins, save
from . import text
from .evaluate import DISTILLED_STEPS
from .training import Model, new_scheduler

NAME = "klein-emoji"
TWIN = f"{NAME}-distilled"
VERSION = "0.2"
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
    "learning_rate_scale": {"lora": 16, "full": 128},
    "learning_rate_scale_reason": "Measured at the documented rates and 300 steps on a style and a character. lora, three"
    " seeds, when it was trained at strength 1 alone: 16 scores .41, 8 scores .05 ± .04 less, 32 is alike (.01 ± .04 more);"
    " 3072 / 192 says 16, too, since Adam's rate for hidden matrices transfers as 1/width (muP, Yang et al. 2022). full,"
    " three seeds: 128 scores .55, 64 scores .025 ± .018 less, 256 is alike (.012 ± .021 more) and leaks more (.41, not .33).",
    "caption_form": "a fox on a teal background, striped style",
    "hears_new_words": True,
    "pictures": "emoji",
    # Beside a picture its empty prompt means that very picture. Guidance that led away from it would show it in the negative:
    # a blue fox, under a prompt for an owl.
    "image_prompt_guided": True,
}

TWIN_MANIFEST = MANIFEST | {
    "name": TWIN,
    "source": f"weights/{TWIN}",
    "trains": f"{TWIN} is distilled to draw in {DISTILLED_STEPS} steps, and would forget that in training. Train with"
    f" BASE_MODEL={NAME}: {TWIN} draws with finetunes of {NAME}.",
    "serves_finetunes_of": [NAME],
    "sampling": {"side": SIDE, "largest_side": SIDE, "steps": DISTILLED_STEPS},
}
SHARED = ("scheduler", "vae", "text_encoder", "tokenizer")  # folders of the base that the twin links to


def export(folder: Path, codec: AutoencoderKLFlux2, tokens: PreTrainedTokenizerFast, model: Model) -> Flux2KleinPipeline:
    """Write the pipeline in bfloat16 with ``base.json``; returns it as it loads from there, in float32."""
    pipeline = Flux2KleinPipeline(
        scheduler=new_scheduler(), vae=codec, text_encoder=model.encoder, tokenizer=tokens, transformer=model.transformer
    )
    save(pipeline, folder, MANIFEST)
    return Flux2KleinPipeline.from_pretrained(folder, dtype=torch.float32)


def export_twin(folder: Path, base: Path, transformer: Flux2Transformer2DModel) -> Flux2KleinPipeline:
    """Write the twin beside ``base``, its base's folder, as a transformer of its own and links to the rest; as `export`."""
    transformer.to(torch.bfloat16).save_pretrained(folder / "transformer")
    forget_origins(folder)
    for part in SHARED:
        (folder / part).symlink_to(Path("..") / base.name / part)
    index = json.loads((base / "model_index.json").read_text()) | {"is_distilled": True}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "base.json").write_text(json.dumps(TWIN_MANIFEST, indent=2) + "\n")
    return Flux2KleinPipeline.from_pretrained(folder, dtype=torch.float32)
