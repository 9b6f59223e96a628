"""train.py and predict.py on their own: what they hand to the library, and what they leave behind."""

import dataclasses
import inspect
import subprocess
import sys
import tempfile
from pathlib import Path

import cog
import pytest

import predict
import train
from finetuner.generate import Generated
from finetuner.requests import FinetuneRequest, ImageRequest
from finetuner.store import Finetune

PROJECT = Path(__file__).parent.parent

# As Cog hands them over: 3.0 passes for an integer and 1 for a number.
TRAINING = {
    "input_images": cog.Path("photos.zip"),
    "training_steps": 3.0,
    "trigger_word": "TOK",
    "mode": "style",
    "learning_rate": None,
    "captioning": "automatic",
    "priority": "speed",
    "finetune_type": "lora",
    "lora_rank": 16.0,
}
PREDICTION = {
    "prompt": "a photo of TOK",
    "finetune_id": "00000000-0000-4000-8000-000000000000",
    "finetune_strength": 1,
    "image_prompt": None,
    "image_prompt_strength": 0.1,
    "aspect_ratio": "custom",
    "width": 512.0,
    "height": 256.0,
    "prompt_upsampling": False,
    "steps": 20.0,
    "guidance": 3,
    "raw": False,
    "safety_tolerance": 2.0,
    "seed": 7.0,
    "output_format": "png",
}


class GeneratorWithoutModel:
    """Writes a file for each request; fails where the prompt says so, after it has begun one."""

    def __init__(self) -> None:
        self.requests = []

    def generate(self, request, folder: Path) -> Generated:
        self.requests.append(request)
        file = folder / f"{len(self.requests)}.png"
        file.write_bytes(b"image")
        if request.prompt == "fail":
            raise ValueError("prompt: fails")
        seconds = {"fetch": 0.1, "sampling": 2.0}
        return Generated(file, 7, seconds, adapter_hit=True, prompt_hit=False, image_prompt_hit=None, safety_score=0.1)


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(predict.Generator, "open", GeneratorWithoutModel)
    predictor = predict.Predictor()
    predictor.setup()
    return predictor


def types_of(request) -> dict[str, type]:
    return {name: type(value) for name, value in vars(request).items()}


def test_training_numbers_have_their_documented_types(monkeypatch):
    requests = []
    published = Finetune("id", Path(), {"seconds": {"train": 1.5}, "peak_memory_bytes": {"train": 10}})
    monkeypatch.setattr(train, "finetune", lambda request, **_: requests.append(request) or published)
    assert train.train(**TRAINING) == "id"
    assert train.train(**TRAINING | {"learning_rate": 1e-4}) == "id"
    assert types_of(requests[0])["training_steps"] is int
    assert types_of(requests[0])["lora_rank"] is int
    assert [request.learning_rate for request in requests] == [None, 1e-4]


def test_null_means_the_documented_default(monkeypatch, predictor):
    requests = []
    published = Finetune("id", Path(), {"seconds": {}, "peak_memory_bytes": {}})
    monkeypatch.setattr(train, "finetune", lambda request, **_: requests.append(request) or published)
    train.train(**dict.fromkeys(TRAINING) | {"input_images": TRAINING["input_images"]})
    assert requests == [FinetuneRequest(Path("photos.zip"))]
    required = {name: PREDICTION[name] for name in ("prompt", "finetune_id")}
    predictor.run(**dict.fromkeys(PREDICTION) | required)
    assert predictor.generator.requests == [ImageRequest(**required)]


@pytest.mark.parametrize("seed", [-(2.0**63), 2.0**53, 1e30])
def test_an_integer_that_came_as_an_inexact_float_is_refused(predictor, seed):
    with pytest.raises(ValueError, match="^seed: .* did not arrive as it was sent"):
        predictor.run(**PREDICTION | {"seed": seed})


def test_the_librarys_defaults_are_those_of_the_entrypoints():
    for function, request in ((train.train, FinetuneRequest), (predict.Predictor.run, ImageRequest)):
        for field in dataclasses.fields(request):
            default = inspect.signature(function).parameters[field.name].default.default
            assert field.default is dataclasses.MISSING or field.default == default, field.name


def test_a_long_string_is_not_repeated_whole():
    with pytest.raises(ValueError, match="input_images: 'UEsD") as error:
        train.train(**TRAINING | {"input_images": "UEsD" * 1_000_000})
    assert len(str(error.value)) < 400


def test_prediction_numbers_have_their_documented_types(predictor):
    predictor.run(**PREDICTION)
    predictor.run(**PREDICTION | {"width": None, "height": None, "aspect_ratio": "1:1", "seed": None})
    given, absent = (types_of(request) for request in predictor.generator.requests)
    assert {given[name] for name in ("width", "height", "steps", "safety_tolerance", "seed")} == {int}
    assert {given[name] for name in ("finetune_strength", "image_prompt_strength", "guidance")} == {float}
    assert {absent[name] for name in ("width", "height", "seed")} == {type(None)}


def test_an_image_is_kept_until_the_next_request(predictor, tmp_path):
    first = predictor.run(**PREDICTION)
    assert first.exists()
    second = predictor.run(**PREDICTION)
    assert files_in(tmp_path) == [second]
    with pytest.raises(ValueError, match="prompt"):
        predictor.run(**PREDICTION | {"prompt": "fail"})
    third = predictor.run(**PREDICTION)
    assert files_in(tmp_path) == [third]


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_log_shows_the_library_and_no_one_else():
    lines = (
        "import logging; from entrypoints import logs; logs.show_library_log(); logs.show_library_log();"
        "logging.getLogger('finetuner.training.trainer').info('step 1');"
        "logging.getLogger('httpx').info('noise');"
        "logging.getLogger('httpx').warning('trouble')"
    )
    shown = subprocess.run([sys.executable, "-c", lines], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert shown.stderr.splitlines() == ["step 1", "trouble"]
