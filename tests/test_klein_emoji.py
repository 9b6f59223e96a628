"""The default embedded base and its distilled twin: they are trained, train, and draw as plain diffusers draws with them."""

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from helpers import EXAMPLES, plain_picture
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


def test_the_distilled_twin_draws_with_its_finetunes_in_four_steps(klein, store, monkeypatch):
    twin = Base.open(WEIGHTS / "klein-emoji-distilled")
    monkeypatch.setenv("BASE_MODEL", "klein-emoji")
    request = FinetuneRequest(EXAMPLES / "sloth.zip", training_steps=3, mode="character", finetune_type="lora")
    published = finetune.finetune(request)
    generator = Generator(twin, store)

    def drawn(strength: float) -> Image.Image:
        inputs = {"prompt": PROMPT, "finetune_id": published.id, "seed": 3, "output_format": "png"}
        with Image.open(generator.generate(ImageRequest(**inputs, finetune_strength=strength)).path) as image:
            return image.convert("RGB")

    assert twin.sampling_steps == 4 and twin.sampling_guidance is None
    without, with_it = (plain_picture(twin, PROMPT, 4, seed=3, lora=lora) for lora in (None, published.folder))
    assert drawn(0.0).tobytes() == without.tobytes() != with_it.tobytes() == drawn(1.0).tobytes()
    assert_a_yellow_star_on_red(without)
    monkeypatch.setenv("BASE_MODEL", "klein-emoji-distilled")
    with pytest.raises(ValueError, match=r"^BASE_MODEL: klein-emoji-distilled is distilled .* BASE_MODEL=klein-emoji: "):
        finetune.finetune(request)


def test_it_draws_what_it_is_asked_for(klein):
    assert_a_yellow_star_on_red(plain(klein))


def assert_a_yellow_star_on_red(image: Image.Image) -> None:
    picture = np.asarray(image.convert("RGB")).astype(int)
    corner, middle = picture[2, 2], picture[32, 32]
    assert corner[0] > 150 and corner[1] < 110 and corner[2] < 110  # red
    assert middle[0] > 170 and middle[1] > 150 and middle[2] < 140  # yellow
