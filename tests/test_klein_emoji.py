"""The embedded base of the second family: it is trained, trains, and draws as plain diffusers draws with it."""

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from helpers import EXAMPLES
from PIL import Image

from finetuner import finetune
from finetuner.bases import Base
from finetuner.bases.base import WEIGHTS
from finetuner.generate import Generator
from finetuner.requests import FinetuneRequest, ImageRequest

PROMPT = "a star on a red background"


@pytest.fixture(scope="module")
def klein() -> Base:
    return Base.open(WEIGHTS / "klein-emoji")


def plain(klein: Base, lora=None) -> Image.Image:
    pipeline = Flux2KleinPipeline.from_pretrained(klein.folder, dtype=torch.float32)
    if lora:
        pipeline.load_lora_weights(lora)
    return pipeline(
        prompt=PROMPT,
        width=64,
        height=64,
        num_inference_steps=8,
        guidance_scale=4.0,
        max_sequence_length=klein.max_sequence_length,
        generator=torch.Generator().manual_seed(3),
    ).images[0]


def test_a_finetune_of_it_draws_as_plain_diffusers_does(klein, store, monkeypatch):
    monkeypatch.setenv("BASE_MODEL", "klein-emoji")
    request = FinetuneRequest(EXAMPLES / "sloth.zip", training_steps=3, mode="character", finetune_type="lora")
    published = finetune.finetune(request)
    generator = Generator(klein, store)

    def drawn(strength: float) -> bytes:
        inputs = {"prompt": PROMPT, "finetune_id": published.id, "steps": 8, "guidance": 4.0, "seed": 3, "output_format": "png"}
        with Image.open(generator.generate(ImageRequest(**inputs, finetune_strength=strength)).path) as image:
            return image.convert("RGB").tobytes()

    assert drawn(0.0) == plain(klein).tobytes()
    assert drawn(1.0) == plain(klein, published.folder).tobytes() != drawn(0.0)


def test_it_draws_what_it_is_asked_for(klein):
    picture = np.asarray(plain(klein).convert("RGB")).astype(int)
    corner, middle = picture[2, 2], picture[32, 32]
    assert corner[0] > 150 and corner[1] < 110 and corner[2] < 110  # red
    assert middle[0] > 170 and middle[1] > 150 and middle[2] < 140  # yellow
