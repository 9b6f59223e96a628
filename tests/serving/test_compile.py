"""Serving with the transformer's blocks compiled: what is asked for changes, what was compiled holds."""

import itertools
import os
from dataclasses import replace

import pytest
import torch
from helpers import publish
from torch._dynamo.utils import counters

from benchmarks.adapters import random_adapter
from finetuner.generate import Generator
from finetuner.requests import ASPECT_RATIOS, ImageRequest
from finetuner.store import FolderStore

REQUESTS, FINETUNES = 50, 5


def leave_out_inductor(monkeypatch) -> None:
    """Dynamo alone decides what is compiled again; what it compiles then runs as captured, and the test takes seconds."""
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, *_, **__: graph)


@pytest.fixture(params=[("captured", "base"), ("captured", "klein_base"), ("inductor", "base")], ids="-".join)
def generator(request, tmp_path, monkeypatch) -> Generator:
    compiler, base = request.param
    if compiler == "captured":
        leave_out_inductor(monkeypatch)
    elif os.environ.get("TEST_INDUCTOR") != "1":
        pytest.skip("takes minutes: set TEST_INDUCTOR=1")
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setenv("COMPILE", "1")
    yield Generator(request.getfixturevalue(base), FolderStore(tmp_path))
    torch._dynamo.reset()


def test_nothing_is_compiled_again_after_the_start(generator):
    base = generator.base
    transformer = base.load_transformer()
    finetunes = [
        publish(generator.finetunes.store, base, random_adapter(transformer, rank, seed=seed), rank)
        for seed, rank in zip(range(FINETUNES), itertools.cycle((16, 32)), strict=False)
    ]
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0

    def picture(number: int):
        return ImageRequest(
            prompt=f"a fox, TOK style {number % 3}",
            finetune_id=finetunes[number % FINETUNES],
            finetune_strength=number % 11 / 5,
            aspect_ratio=list(ASPECT_RATIOS)[number % len(ASPECT_RATIOS)],
            steps=1 + number % 2,
            guidance=2 + number % 4,
            seed=number % 7,
            output_format="png",
        )

    made = {}
    for number in range(REQUESTS):
        path = generator.generate(picture(number)).path
        made[number] = path.read_bytes()
        path.unlink()
    assert counters["stats"]["unique_graphs"] == compiled

    for made_at_once in generator.generate_many([replace(picture(3), seed=seed) for seed in (0, 1)]):
        made_at_once.path.unlink()
    compiled = counters["stats"]["unique_graphs"]  # once more, for two rows

    again = generator.generate(picture(3)).path
    assert counters["stats"]["unique_graphs"] == compiled
    assert again.read_bytes() == made[3]
    again.unlink()
