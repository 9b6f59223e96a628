"""The comparison with diffusers' DreamBooth script, which is not ours to ship: what is made of it, and what is measured."""

import sys

import pytest
from PIL import Image

from benchmarks.dreambooth import adapt, cost_of, transforms
from finetuner.bases import Base
from finetuner.paths import WEIGHTS

SCRIPT = """
from torchvision import transforms
from torchvision.transforms.functional import crop
tokens = tokenize_prompt(tokenizer_one, prompts, max_sequence_length=77)
ids = tokenizer(prompt, max_length=77)
"""


def test_the_script_gets_the_bases_length_and_needs_no_torchvision():
    adapted = adapt(SCRIPT, Base.open(WEIGHTS / "flux-emoji"))
    assert "77" not in adapted and "max_sequence_length=32)" in adapted and "max_length=32)" in adapted
    names: dict = {
        "tokenize_prompt": lambda *_, **__: 0,
        "tokenizer_one": 0,
        "prompts": 0,
        "tokenizer": lambda *_, **__: 0,
        "prompt": 0,
    }
    exec(adapted, names)
    assert names["transforms"] is transforms and names["crop"] is transforms.crop


def test_its_pictures_are_square_and_in_range():
    image = Image.new("RGB", (120, 80), (255, 0, 0))
    resized = transforms.Resize(64, transforms.InterpolationMode.BILINEAR)(image)
    assert resized.size == (96, 64)
    top, left, height, width = transforms.RandomCrop.get_params(resized, (64, 64))
    assert top == 0 and 0 <= left <= 32
    cropped = transforms.crop(resized, top, left, height, width)
    pixels = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])(cropped)
    assert pixels.shape == (3, 64, 64)
    assert pixels[0].min() == 1 and pixels[1].max() == -1


def test_a_process_is_measured_without_what_began_it():
    ballast = bytearray(300 << 20)  # of this process, from which the measured one must not count
    small, large = (cost_of([sys.executable, "-c", f"x = bytearray({n} << 20)"], {}) for n in (1, 200))
    assert len(ballast) and small.peak_bytes < 100 << 20
    assert 190 << 20 < large.peak_bytes - small.peak_bytes < 230 << 20
    assert 0 < small.seconds < 60
    with pytest.raises(RuntimeError, match="ended with 3"):
        cost_of([sys.executable, "-c", "import sys; sys.exit(3)"], {})
