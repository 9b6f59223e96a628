"""The twin's steps, and the training that both embedded kleins share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from embedded_base.checkpoints import Checkpoints
from embedded_base.klein import distil
from embedded_base.klein.batches import SIZE
from embedded_base.klein.descent import Stage, descend
from torch import nn

from finetuner.paths import WEIGHTS


def test_the_twin_learns_at_the_noise_levels_that_its_pipeline_draws_at():
    pipeline = Flux2KleinPipeline.from_pretrained(WEIGHTS / "klein-emoji", dtype=torch.float32)
    pipeline(prompt="a fox", width=64, height=64, num_inference_steps=4, guidance_scale=1.0, max_sequence_length=32)
    torch.testing.assert_close(distil.twin_sigmas(), pipeline.scheduler.sigmas)


def test_the_base_passes_through_the_twins_noise_levels():
    torch.testing.assert_close(distil.twin_sigmas(distil.SUBSTEPS)[:: distil.SUBSTEPS], distil.twin_sigmas())


def test_a_straight_way_is_gone_by_its_own_velocity(monkeypatch):
    noise, picture = torch.randn(SIZE, 64, 64), torch.randn(SIZE, 64, 64)
    places = torch.stack([torch.lerp(picture, noise, sigma) for sigma in distil.twin_sigmas()], dim=1)
    kept = distil.Ways(places, torch.zeros(SIZE, 32, 288))
    chosen = np.random.default_rng((72, 5)).integers(SIZE, size=SIZE)  # as the step draws them
    right = (noise - picture)[chosen]
    for velocity, loss in ((right, 0.0), (right + 1, 1.0)):
        monkeypatch.setattr(distil, "_velocity", lambda *_, velocity=velocity: velocity)
        assert distil.loss_of(None, kept, 5, slice(None))[0].item() == pytest.approx(loss, abs=1e-6)


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    def losses(model: nn.Linear, step: int, part: slice) -> list[torch.Tensor]:
        pictures = torch.randn(SIZE, 5, generator=torch.Generator().manual_seed(step))[part]
        return [model(pictures).pow(2).mean()]

    def trained(folder: str, *stops: int) -> torch.Tensor:
        for steps in stops:
            torch.manual_seed(0)
            model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(5, 3)])})
            linear = model["blocks"][0]
            stage = Stage("tiny", steps, 0.02, 0.1, 0.01, lambda step: 1 / (1 + step))
            descend(model, stage, lambda *given, on=linear: losses(on, *given), Checkpoints(tmp_path / folder), lambda *_: None)
        return linear.weight

    whole = trained("whole", 6)
    torch.testing.assert_close(trained("stopped", 2, 6), whole)
    assert not torch.allclose(trained("short", 2), whole)
