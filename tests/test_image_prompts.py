"""Requests with an image prompt, on the embedded bases of both families."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import publish
from PIL import Image

from benchmarks.adapters import random_adapter
from finetuner.bases import Base
from finetuner.bases.base import WEIGHTS
from finetuner.generate import Generator
from finetuner.requests import ImageRequest
from finetuner.store import FolderStore

HELD_OUT = Path(__file__).parent / "held_out" / "drawings.zip"
PURPLE = (125, 65, 175)
PROMPT = "an owl on a yellow background, TOK style"


@pytest.fixture(scope="module", params=["flux-emoji", "klein-emoji"])
def generator(request, tmp_path_factory) -> Generator:
    return Generator(Base.open(WEIGHTS / request.param), FolderStore(tmp_path_factory.mktemp("finetunes")))


@pytest.fixture(scope="module")
def finetune_id(generator) -> str:
    weights = random_adapter(generator.base.load_transformer(), 16, 1, deviations=(0.02, 0.02))
    return publish(generator.finetunes.store, generator.base, weights, 16)


@pytest.fixture(scope="module")
def fox() -> Image.Image:
    """On purple, at a scale and a place of its own."""
    with zipfile.ZipFile(HELD_OUT) as archive:
        drawing = Image.open(io.BytesIO(archive.read("noto/fox.png"))).convert("RGBA")
    scene = Image.new("RGB", (90, 90), PURPLE)
    scene.paste(drawing, (18, 12), drawing)
    return scene


@pytest.fixture
def file(fox, tmp_path) -> Path:
    fox.save(tmp_path / "fox.png")
    return tmp_path / "fox.png"


def make(generator: Generator, finetune_id: str, **changes) -> bytes:
    fields = {"prompt": PROMPT, "finetune_id": finetune_id, "finetune_strength": 0.5, "steps": 8, "seed": 5}
    path = generator.generate(ImageRequest(**fields | {"output_format": "png"} | changes)).path
    data = path.read_bytes()
    path.unlink()
    return data


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)


def test_at_strength_zero_the_file_is_the_one_without_an_image_prompt(generator, finetune_id, file):
    without = make(generator, finetune_id)
    assert make(generator, finetune_id, image_prompt=file, image_prompt_strength=0.0) == without
    assert make(generator, finetune_id, image_prompt=file, image_prompt_strength=1.0) != without
    assert make(generator, finetune_id) == without


def test_the_stronger_the_image_prompt_the_more_it_changes(generator, finetune_id, file):
    without = pixels(make(generator, finetune_id))

    def change(strength: float) -> float:
        return float(
            np.abs(pixels(make(generator, finetune_id, image_prompt=file, image_prompt_strength=strength)) - without).mean()
        )

    changes = [change(strength) for strength in (0.0, 0.03, 0.3, 1.0)]
    assert changes[0] == 0 < changes[-1] and changes == sorted(changes), changes


def test_what_is_shown_is_drawn_in_its_place_where_the_prompt_says_nothing_else(generator, finetune_id, file, fox):
    shown = {"image_prompt": file, "image_prompt_strength": 1.0}
    drawn = pixels(make(generator, finetune_id, prompt="this on a purple background", finetune_strength=0.0, steps=12, **shown))
    wanted = np.asarray(fox.resize(drawn.shape[1::-1]), float)
    assert np.corrcoef(drawn.ravel(), wanted.ravel())[0, 1] > 0.8


def test_the_strengths_of_image_prompt_and_finetune_are_apart(generator, finetune_id, file):
    shown = {"image_prompt": file, "image_prompt_strength": 0.5}
    first = make(generator, finetune_id, **shown)
    for finetune_strength in (0.0, 1.0):
        assert make(generator, finetune_id, finetune_strength=finetune_strength, **shown) != first
    assert make(generator, finetune_id, **shown) == first


def test_an_image_prompt_is_read_once(generator, finetune_id, file, tmp_path, monkeypatch):
    read = []
    family = generator.base.family
    encode = family.encode_image_prompt
    monkeypatch.setattr(family, "encode_image_prompt", lambda *given: read.append(1) or encode(*given))
    generator.image_prompts.read.clear()
    copy = tmp_path / "another-name.png"
    copy.write_bytes(file.read_bytes())
    hits = [
        generator.generate(
            ImageRequest(PROMPT, finetune_id, image_prompt=shown, image_prompt_strength=s, steps=1)
        ).image_prompt_hit
        for shown, s in ((file, 0.2), (copy, 0.9), (None, 0.1))
    ]
    assert hits == [False, True, None] and len(read) == 1


def test_the_picture_says_what_it_was_made_with(generator, finetune_id, file):
    def said(**inputs) -> dict:
        return json.loads(Image.open(io.BytesIO(make(generator, finetune_id, steps=1, **inputs))).text["finetune"])

    fields = said(image_prompt=file, image_prompt_strength=0.25)
    assert fields["image_prompt"].startswith("sha256:") and len(fields["image_prompt"]) == 71
    assert fields["image_prompt_strength"] == 0.25
    assert not said().keys() & {"image_prompt", "image_prompt_strength"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_any_picture_that_an_archive_may_hold_is_read(generator, finetune_id, fox, tmp_path, kind):
    fox.save(tmp_path / "no-suffix", kind)
    shown = make(generator, finetune_id, image_prompt=tmp_path / "no-suffix", image_prompt_strength=1.0, steps=2)
    assert shown != make(generator, finetune_id, steps=2)


def test_a_photograph_of_a_telephone_is_read(generator, finetune_id):
    heic = Path(__file__).parent / "data" / "rotated.heic"
    assert make(generator, finetune_id, image_prompt=heic, steps=1) != make(generator, finetune_id, steps=1)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_what_is_no_picture_or_too_large_is_refused_in_a_sentence(generator, finetune_id, tmp_path, strength):
    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make(generator, finetune_id, image_prompt=tmp_path / "sent", image_prompt_strength=strength)

    (tmp_path / "sent").write_bytes(b"not a picture")
    refused(r"^image_prompt: is not an image that can be read here: save it as JPEG or PNG\.$")
    (tmp_path / "sent").write_bytes(b"")
    refused(r"^image_prompt: is an empty file: replace it\.$")
    (tmp_path / "sent").write_bytes(bytes(20_000_001))
    refused(r"^image_prompt: has 20.0 MB, and at most 20 are taken: save it smaller .*\.$")
    Image.new("L", (5000, 4001)).save(tmp_path / "sent", "PNG")
    refused(r"^image_prompt: has 20.0 megapixels, and at most 20 are taken: save it smaller .*\.$")
    Image.new("L", (5000, 4000)).save(tmp_path / "sent", "PNG")
    assert make(generator, finetune_id, image_prompt=tmp_path / "sent", image_prompt_strength=strength, steps=1)
