import dataclasses
import json
import logging
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from helpers import random_adapter
from PIL import Image

from finetuner import adapter
from finetuner.generate import EXIF_IFD, EXIF_USER_COMMENT, Generator, ImageRequest
from finetuner.sampling import ASPECT_RATIOS
from finetuner.store import FolderStore, Store

PROMPT = "a fox, TOK style"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return FolderStore(tmp_path_factory.mktemp("finetunes"))


def publish(store: Store, base, seed: int, rank: int = 32, trained_on: dict | None = None) -> str:
    """A finetune of random weights, strong enough to change every picture."""
    with tempfile.TemporaryDirectory() as staged:
        adapter.save_adapter(random_adapter(base.load_transformer(), rank, seed), rank, Path(staged))
        return store.publish(Path(staged), {"base": trained_on or base.describe(), "inputs": {"trigger_word": "TOK"}}).id


@pytest.fixture(scope="module")
def finetunes(store, base) -> list[str]:
    return [publish(store, base, seed=1), publish(store, base, seed=2, rank=16)]


@pytest.fixture(scope="module")
def generator(base, store) -> Generator:
    return Generator(base, store)


def request(finetune_id: str, **changes) -> ImageRequest:
    fields = {"prompt": PROMPT, "finetune_id": finetune_id, "steps": 4, "seed": 5, "output_format": "png"}
    return ImageRequest(**fields | changes)


def make(generator: Generator, finetune_id: str, **changes) -> bytes:
    path = generator.generate(request(finetune_id, **changes))
    data = path.read_bytes()
    path.unlink()
    return data


def picture(generator: Generator, finetune_id: str, **changes) -> Image.Image:
    path = generator.generate(request(finetune_id, **changes))
    image = Image.open(path)
    image.load()
    path.unlink()
    return image


def plain_picture(base, folder=None) -> Image.Image:
    """What FluxPipeline alone makes of the same request."""
    pipeline = FluxPipeline.from_pretrained(base.folder, dtype=torch.float32)
    if folder:
        pipeline.load_lora_weights(folder)
    side = base.sampling_side
    return pipeline(
        PROMPT,
        width=side,
        height=side,
        num_inference_steps=4,
        guidance_scale=3.0,
        max_sequence_length=base.max_sequence_length,
        generator=torch.Generator().manual_seed(5),
    ).images[0]


def test_strength_zero_is_the_picture_of_the_base_whatever_the_finetune(generator, finetunes, base):
    first, second = (make(generator, finetune, finetune_strength=0.0) for finetune in finetunes)
    assert first == second
    assert picture(generator, finetunes[0], finetune_strength=0.0).tobytes() == plain_picture(base).tobytes()


def test_strength_one_is_what_plain_diffusers_makes_of_the_published_lora(generator, finetunes, base, store):
    ours = picture(generator, finetunes[0], finetune_strength=1.0)
    assert ours.tobytes() == plain_picture(base, store.folder / finetunes[0]).tobytes()
    assert ours.tobytes() != plain_picture(base).tobytes()


def test_a_request_gives_the_same_bytes_whatever_was_served_before(generator, finetunes):
    first = make(generator, finetunes[0], finetune_strength=0.7)
    for finetune, strength in ((finetunes[1], 1.6), (finetunes[0], 0.0), (finetunes[1], 0.3)):
        make(generator, finetune, finetune_strength=strength)
    assert make(generator, finetunes[0], finetune_strength=0.7) == first


def test_a_new_seed_is_drawn_where_none_is_given(generator, finetunes):
    assert make(generator, finetunes[0], seed=None) != make(generator, finetunes[0], seed=None)


@pytest.mark.parametrize("output_format", ["png", "jpg"])
def test_the_picture_says_how_to_make_it_again(generator, finetunes, output_format):
    image = picture(generator, finetunes[0], seed=None, finetune_strength=1.2, output_format=output_format)
    if output_format == "png":
        said = json.loads(image.text["finetune"])
    else:
        said = json.loads(image.getexif().get_ifd(EXIF_IFD)[EXIF_USER_COMMENT].removeprefix(b"ASCII\0\0\0"))
    assert said["finetune_id"] == finetunes[0] and said["finetune_strength"] == 1.2
    assert said["base"] == generator.base.describe()
    fields = {field.name for field in dataclasses.fields(ImageRequest)}
    again = picture(generator, **{name: value for name, value in said.items() if name in fields})
    assert again.tobytes() == image.tobytes()


@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_every_documented_aspect_ratio_is_made_at_the_area_the_base_knows(generator, finetunes, aspect_ratio):
    width, height = picture(generator, finetunes[0], aspect_ratio=aspect_ratio, steps=1).size
    side, multiple = generator.base.sampling_side, generator.base.size_multiple
    assert width % multiple == height % multiple == 0
    assert width * height == pytest.approx(side**2, rel=0.2)
    wanted = ASPECT_RATIOS[aspect_ratio]
    assert abs(width - height * wanted[0] / wanted[1]) <= multiple


def test_a_custom_size_is_the_size_of_the_picture_rounded_to_32(generator, finetunes, caplog):
    caplog.set_level(logging.INFO, "finetuner")
    image = picture(generator, finetunes[0], aspect_ratio="custom", width=500, height=330, steps=1)
    assert image.size == (512, 320)
    assert "enlarged to 512 x 320" in caplog.text


def test_jpeg_keeps_the_colours_of_flat_areas(generator, finetunes):
    png, jpg = (
        picture(generator, finetunes[0], finetune_strength=0.0, steps=20, output_format=f).convert("RGB")
        for f in ("png", "jpg")
    )
    errors = torch.tensor(list(png.tobytes())).float() - torch.tensor(list(jpg.tobytes())).float()
    assert errors.abs().mean() < 2


def test_a_finetune_of_another_base_is_refused_by_both_names(generator, store, base):
    krea = {"name": "FLUX.1-Krea-dev", "version": "1.0", "fingerprint": "0" * 64}
    other = publish(store, base, seed=3, trained_on=krea)
    with pytest.raises(ValueError, match=rf"^finetune_id: .*FLUX.1-Krea-dev 1.0.*{base.name}.*BASE_MODEL"):
        generator.generate(request(other))


def test_a_prompt_without_the_trigger_word_is_answered_with_a_warning(generator, finetunes, caplog):
    make(generator, finetunes[0], prompt="a fox", steps=1)
    assert "lacks the trigger word 'TOK'" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": " "}, "^prompt: "),
        ({"aspect_ratio": "custom", "width": 512}, "^width, height: "),
        ({"aspect_ratio": "2:1"}, "^aspect_ratio: "),
    ],
)
def test_a_request_that_cannot_be_met_says_why(fields, message):
    with pytest.raises(ValueError, match=message):
        request("8f14e45f-ceea-467f-a8f0-1d0a1a3f1c2b", **fields)
