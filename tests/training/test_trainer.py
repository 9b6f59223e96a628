import dataclasses

import pytest
import torch
from helpers import PLAN
from training_runs import KINDS, RECIPE, copy_of, make_trainable, run

from finetuner.training import checkpoint, trainer
from finetuner.training.checkpoint import Checkpoint
from finetuner.training.flow import Samples
from finetuner.training.trainer import accumulate_gradients, choose_texts


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_touches_nothing_but_what_is_trained(transformer, dataset, scheduler, tmp_path, kind):
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    recipe = dataclasses.replace(RECIPE, steps=150)
    _, history = run(transformer, kind, dataset, scheduler, tmp_path / "job", recipe)
    first, last = sum(history.losses[:30]) / 30, sum(history.losses[-30:]) / 30
    assert last < 0.9 * first
    assert len(history.gradient_norms) == len(history.smoothed_losses) == 150
    after = transformer.state_dict()
    frozen = {
        name.replace(".base_layer", "").replace(".parametrizations.weight.original", ".weight"): t for name, t in after.items()
    }
    assert all(torch.equal(before[name], frozen[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_give_the_same_bits(transformer, dataset, scheduler, tmp_path, kind):
    first, _ = run(copy_of(transformer), kind, dataset, scheduler, tmp_path / "1")
    second, _ = run(copy_of(transformer), kind, dataset, scheduler, tmp_path / "2")
    other, _ = run(copy_of(transformer), kind, dataset, scheduler, tmp_path / "3", dataclasses.replace(RECIPE, seed=8))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop_after", [1, 13, 39])
def test_an_interrupted_training_ends_with_the_same_bits(
    transformer, dataset, scheduler, tmp_path, monkeypatch, kind, stop_after
):
    through, history = run(copy_of(transformer), kind, dataset, scheduler, tmp_path / "1")
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0)
    save = Checkpoint.save_when_due

    def save_and_stop(self, **parts):
        save(self, **parts)
        if len(parts["history"].losses) == stop_after:
            raise Stopped

    monkeypatch.setattr(Checkpoint, "save_when_due", save_and_stop)
    with pytest.raises(Stopped):
        run(copy_of(transformer), kind, dataset, scheduler, tmp_path / "2")
    monkeypatch.setattr(Checkpoint, "save_when_due", save)
    resumed, resumed_history = run(copy_of(transformer), kind, dataset, scheduler, tmp_path / "2")
    assert resumed_history == history
    assert all(torch.equal(through[name], resumed[name]) for name in through)


def test_a_job_goes_on_on_another_device_in_its_own_way(transformer, dataset, scheduler, tmp_path, monkeypatch):
    """There the batch may be split: the weights come out alike, and the history tells of both devices."""
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0)
    monkeypatch.setattr(trainer, "device_name", lambda: "a large card")
    through, _ = run(copy_of(transformer), "lora", dataset, scheduler, tmp_path / "1")

    def stop(*arguments):
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(trainer, "track", lambda step, **_: step == 20 and stop())
        run(copy_of(transformer), "lora", dataset, scheduler, tmp_path / "2")
    monkeypatch.setattr(trainer, "device_name", lambda: "a small card")
    split = dataclasses.replace(RECIPE, plan=dataclasses.replace(RECIPE.plan, micro_batch=1, accumulation=4))
    resumed, history = run(copy_of(transformer), "lora", dataset, scheduler, tmp_path / "2", split)
    assert history.devices == ["a large card", "a small card"]
    assert all(torch.allclose(through[name], resumed[name], atol=1e-4) for name in through)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_that_is_not_finite_stops_the_job_with_the_step_and_the_remedy(transformer, dataset, scheduler, tmp_path, kind):
    dataset.texts.embeds[1, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"^learning_rate: .* step \d+ of 40.*Nothing was published"):
        run(transformer, kind, dataset, scheduler, tmp_path / "job")
    assert not list(tmp_path.iterdir())


def test_a_batch_larger_than_the_dataset_is_filled(transformer, dataset, scheduler, tmp_path):
    recipe = dataclasses.replace(RECIPE, steps=3, batch_size=9)
    _, history = run(transformer, "lora", dataset, scheduler, tmp_path / "job", recipe)
    assert len(history.losses) == 3


def test_a_batch_in_parts_has_the_gradient_of_the_whole(transformer, dataset):
    gradients = []
    for micro_batch in (4, 3, 2, 1):
        trained, _ = make_trainable(other := copy_of(transformer), "lora")
        with torch.no_grad():
            for parameter in trained.values():
                parameter.add_(0.05)
        plan = dataclasses.replace(PLAN, micro_batch=micro_batch, accumulation=-(-4 // micro_batch))
        recipe = dataclasses.replace(RECIPE, plan=plan)
        generator = torch.Generator().manual_seed(0)
        rows = torch.arange(4)
        batch = dataset.batch((32, 32), rows, choose_texts(dataset.buckets[(32, 32)], rows, recipe, generator), generator)
        noise = torch.randn(batch.latents.shape, generator=generator)
        samples = Samples.of(batch, noise, torch.tensor([0.1, 0.4, 0.6, 0.9]))
        errors = accumulate_gradients(other, samples, recipe)
        gradients.append((errors, [parameter.grad for parameter in trained.values()]))
    (whole_errors, whole), *parts = gradients
    assert any(gradient.abs().max() > 0 for gradient in whole)
    for errors, part in parts:
        torch.testing.assert_close(errors, whole_errors)
        torch.testing.assert_close(part, whole)


def test_some_images_come_without_a_caption(dataset):
    recipe = dataclasses.replace(RECIPE, caption_dropout=0.25)
    bucket, rows = dataset.buckets[(32, 32)], torch.arange(4)
    drawn = [choose_texts(bucket, rows, recipe, torch.Generator().manual_seed(seed)) for seed in range(200)]
    texts = torch.stack(drawn)
    assert [set(column.tolist()) for column in texts.T] == [{0, 1}, {0, 2}, {0, 3}, {0, 1}]
    assert (texts == 0).float().mean() == pytest.approx(0.25, abs=0.05)
