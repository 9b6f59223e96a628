import dataclasses

import pytest
import torch
from helpers import make_recipe, velocity
from training_runs import KINDS, copy_of, make_trainable, run

from finetuner.bases import flux1
from finetuner.training.flow import PROBE_IMAGES, Samples, velocity_errors
from finetuner.training.strength import at_strength, strength_of

RECIPE = make_recipe(steps=150)


def test_the_steps_strengths_lie_evenly_in_their_range():
    strengths = torch.stack([strength_of(step, RECIPE) for step in range(300)])
    counts = torch.histc(strengths, bins=10, min=0.5, max=2.0)
    assert strengths.min() >= 0.5 and strengths.max() < 2 and counts.min() >= 29 and counts.max() <= 31
    halves = strengths[:30].mean(), strengths[-30:].mean()
    assert halves[0] == pytest.approx(1.25, abs=0.04) == halves[1]
    assert strength_of(3, dataclasses.replace(RECIPE, strengths=(1.0, 1.0))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_strength_holds_inside_alone_and_zero_is_the_base(transformer, batch, kind):
    base = velocity(transformer, batch)
    trained, _ = make_trainable(transformer, kind)
    generator = torch.Generator().manual_seed(0)
    for parameter in trained.values():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    once = velocity(transformer, batch)
    with at_strength(transformer, torch.tensor(1.7)):
        stronger = velocity(transformer, batch)
        with at_strength(transformer, 0.0):
            assert torch.equal(velocity(transformer, batch), base)
        assert torch.equal(velocity(transformer, batch), stronger)
    assert torch.equal(velocity(transformer, batch), once)
    assert (stronger - base).norm() > (once - base).norm() > 0
    with at_strength(transformer, torch.tensor(1.0)):
        torch.testing.assert_close(velocity(transformer, batch), once)


@pytest.mark.parametrize("family", [flux1], ids=["flux1"], indirect=True)  # one suffices: what differs is not theirs
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_at_several_strengths_holds_at_all_of_them(transformer, dataset, scheduler, tmp_path, kind):
    size, bucket = max(dataset.buckets.items(), key=lambda item: len(item[1].captions))
    rows = torch.arange(min(PROBE_IMAGES, len(bucket.captions)))
    generator = torch.Generator().manual_seed(0)
    images = dataset.batch(size, rows, bucket.captions[rows], generator)
    noise, sigmas = torch.randn(images.latents.shape, generator=generator), torch.linspace(0.3, 0.9, len(rows))
    found = {}
    for strengths in ((1.0, 1.0), (0.5, 2.0)):
        other = copy_of(transformer)
        recipe = dataclasses.replace(RECIPE, strengths=strengths, learning_rate=1e-2)
        run(other, kind, dataset, scheduler, tmp_path / str(strengths[1]), recipe)
        with at_strength(other, 2.0), torch.no_grad():
            found[strengths] = velocity_errors(other, Samples.of(images, noise, sigmas), 1.0).mean().item()
    assert found[0.5, 2.0] < found[1.0, 1.0] - 0.02, found
