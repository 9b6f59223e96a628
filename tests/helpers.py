"""What several tests make: archives, adapters of random weights, finetunes."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from finetuner.bases import Base
from finetuner.loras import save_lora
from finetuner.store import Store
from finetuner.training.dataset import Batch
from finetuner.training.flow import predict_velocity
from finetuner.training.plan import Plan
from finetuner.training.recipe import Recipe

PLAN = Plan("float32", 0, micro_batch=4, accumulation=1, compiled=False, peak_bytes=0, step_flop=0)
EXAMPLES = Path(__file__).parent.parent / "examples"


def make_recipe(**changes) -> Recipe:
    """A small LoRA's."""
    fields = {
        "finetune_type": "lora",
        "steps": 40,
        "rank": 4,
        "resolutions": (32,),
        "learning_rate": 3e-3,
        "guidance": 1.0,
        "distillation_steps": 0,
        "distillation_rate": 0.0,
        "plan": PLAN,
        "seed": 7,
    }
    return Recipe(**fields | changes)


def make_archive(path: Path, files: dict[str, Image.Image | str]) -> Path:
    """A zip of images (as PNG) and texts."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            if isinstance(content, Image.Image):
                png = io.BytesIO()
                content.save(png, "PNG")
                content = png.getvalue()
            archive.writestr(name, content)
    return path


@torch.no_grad()
def velocity(transformer: nn.Module, batch: Batch) -> torch.Tensor:
    """Of a batch of two, at a low and a high noise level."""
    return predict_velocity(transformer, batch.latents, torch.tensor([0.3, 0.8]), batch, guidance=1.0)


def plain_picture(base: Base, prompt: str, steps: int, seed: int, lora: Path | None = None) -> Image.Image:
    """What diffusers alone makes of a request at the default guidance. ``lora``: a file, or a finetune's folder."""
    pipeline = base.family.PIPELINE.from_pretrained(base.folder, dtype=torch.float32)
    if lora:
        pipeline.load_lora_weights(lora)
    return pipeline(
        prompt=prompt,
        width=base.sampling_side,
        height=base.sampling_side,
        num_inference_steps=steps,
        guidance_scale=base.guidance_scale,
        max_sequence_length=base.max_sequence_length,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]


def publish(store: Store, base: Base, weights: dict[str, torch.Tensor], rank: int, trained_on: dict | None = None) -> str:
    """Put a finetune of these weights into the store, as a training does. Returns its id."""
    with tempfile.TemporaryDirectory() as folder:
        save_lora(weights, Path(folder), base.family)
        return store.publish(Path(folder), manifest_of(base=trained_on or base.describe())).id


def publish_files(store: Store, content: bytes = b"weights" * 1000, **changes) -> str:
    """Publish a finetune whose weights are these bytes; for what never looks into them."""
    with tempfile.TemporaryDirectory() as folder:
        return store.publish(files_of_a_finetune(Path(folder), content), manifest_of(**changes)).id


def files_of_a_finetune(folder: Path, content: bytes = b"weights" * 1000) -> Path:
    (folder / "report").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(content)
    (folder / "report" / "README.md").write_text("card")
    return folder


def manifest_of(trigger_word: str = "TOK", **changes) -> dict:
    return {"inputs": {"trigger_word": trigger_word}, "base": {"name": "flux-emoji"}} | changes


# Centre, half axes (shares of a side), angle, and colour of each blob: climbed to from a random draw, until Open-NSFW took four
# soft blobs for what they are not.
BLOBS = (
    (0.58, 0.34, 0.11, 0.21, 2.75, (230, 154, 165)),
    (0.43, 0.30, 0.34, 0.10, 2.86, (182, 115, 72)),
    (0.29, 0.72, 0.34, 0.27, 2.34, (192, 161, 126)),
    (0.22, 0.73, 0.33, 0.34, 2.12, (195, 163, 128)),
)


def flagged_picture() -> Image.Image:
    """Harmless, and yet 0.994 by the safety check."""
    side = 128
    y, x = np.mgrid[0:side, 0:side] / side
    picture = np.full((side, side, 3), (146.0, 63.0, 50.0))
    for across, down, long, short, angle, colour in BLOBS:
        u = (x - across) * np.cos(angle) + (y - down) * np.sin(angle)
        v = (y - down) * np.cos(angle) - (x - across) * np.sin(angle)
        share = np.exp(-(((u / long) ** 2 + (v / short) ** 2) ** 2))[..., None]
        picture = picture * (1 - share) + np.array(colour) * share
    return Image.fromarray(picture.astype(np.uint8))
