import dataclasses

import pytest
import torch
from helpers import make_recipe
from training_runs import KINDS, copy_of, make_trainable, run

from finetuner.training import checkpoint, trainer
from finetuner.training.flow import predict_velocity, velocity_errors
from finetuner.training.preserve import draw_preserved, preserved_samples
from finetuner.training.strength import at_strength

RECIPE = make_recipe(steps=80, preserved_images=2)
SIZE = (32, 32)


def velocities(transformer, dataset, texts) -> torch.Tensor:
    """Of the images of a bucket under some texts, all of one noise."""
    generator = torch.Generator().manual_seed(3)
    batch = dataset.batch(SIZE, torch.arange(4), torch.tensor(texts), generator)
    noise = torch.randn(batch.latents.shape, generator=generator)
    with torch.no_grad():
        return predict_velocity(transformer, torch.lerp(batch.latents, noise, 0.5), torch.full((4,), 0.5), batch, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_without_the_trigger_word_change_less(transformer, dataset, scheduler, tmp_path, kind):
    changes = {}
    for preserved in (0, 2):
        other = copy_of(transformer)
        recipe = dataclasses.replace(RECIPE, preserved_images=preserved)
        run(other, kind, dataset, scheduler, tmp_path / str(preserved), recipe)
        changes[preserved] = [
            (velocities(other, dataset, texts) - velocities(transformer, dataset, texts)).norm().item()
            for texts in ([1, 2, 3, 1], [4, 5, 6, 4], [7, 8, 7, 8])  # with the trigger word, without it, of other things
        ]
    shares = {n: max(plain, generic) / taught for n, (taught, plain, generic) in changes.items()}
    assert shares[2] < shares[0]  # hardly, of words that the random base was never taught to tell apart
    assert max(changes[2][1:]) < 0.9 * max(changes[0][1:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_the_base_itself(transformer, dataset, scheduler, kind):
    before = velocities(transformer, dataset, [4, 5, 6, 4])
    trained, _ = make_trainable(transformer, kind)
    drawn = draw_preserved(dataset, SIZE, torch.arange(4), scheduler, RECIPE, seed=0)
    samples = preserved_samples(transformer, *drawn, RECIPE)
    assert samples.weights.tolist() == [RECIPE.preservation_weight / 2] * 2
    assert not velocity_errors(transformer, samples, 1.0).any()  # nothing was learned yet
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.05)
    changed = velocities(transformer, dataset, [4, 5, 6, 4])
    assert not torch.equal(changed, before)
    with at_strength(transformer, 0.0):
        assert torch.equal(velocities(transformer, dataset, [4, 5, 6, 4]), before)
    assert torch.equal(velocities(transformer, dataset, [4, 5, 6, 4]), changed)
    again = preserved_samples(transformer, *drawn, RECIPE)
    assert torch.equal(again.wanted, samples.wanted) and not again.wanted.requires_grad
    errors = velocity_errors(transformer, again, 1.0)
    assert errors.min() > 0 and errors.requires_grad


def test_a_fifth_of_the_prompts_are_empty_and_of_the_rest_half_are_captions_without_the_trigger_word(dataset, scheduler):
    rows = torch.tensor([2, 0, 1, 3])
    drawn = [draw_preserved(dataset, SIZE, rows, scheduler, RECIPE, seed)[0].texts.embeds for seed in range(200)]
    found = [[int((dataset.texts.embeds == text).all((1, 2)).nonzero()) for text in texts] for texts in drawn]
    assert {first for first, _ in found} == {0, 6, 7, 8} and {second for _, second in found} == {0, 4, 7, 8}
    assert sum(n == 0 for texts in found for n in texts) / 400 == pytest.approx(0.2, abs=0.06)
    assert sum(n in (7, 8) for texts in found for n in texts) / 400 == pytest.approx(0.4, abs=0.08)
    again = draw_preserved(dataset, SIZE, rows, scheduler, RECIPE, 5)
    assert torch.equal(again[0].texts.embeds, drawn[5])
    assert again[1].shape == again[0].latents.shape and again[2].shape == (2,)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_training_that_preserves_ends_with_the_same_bits(
    transformer, dataset, scheduler, tmp_path, monkeypatch, kind
):
    through, _ = run(copy_of(transformer), kind, dataset, scheduler, tmp_path / "1", RECIPE)
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0)
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(trainer, "track", lambda step, **_: step == 20 and interrupt())
        run(copy_of(transformer), kind, dataset, scheduler, tmp_path / "2", RECIPE)
    resumed, _ = run(copy_of(transformer), kind, dataset, scheduler, tmp_path / "2", RECIPE)
    assert all(torch.equal(through[name], resumed[name]) for name in through)


def interrupt() -> None:
    raise InterruptedError
