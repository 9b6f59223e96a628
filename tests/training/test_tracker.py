import pytest
import torch
from helpers import make_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetuner.report.curve import learning_rates
from finetuner.training import adapter, tracker
from finetuner.training.checkpoint import Checkpoint
from finetuner.training.optim import LoraOptimizer
from finetuner.training.tracker import track, tracking
from finetuner.training.trainer import train


@pytest.fixture(autouse=True)
def no_trackers(monkeypatch):
    for variable in tracker.LIBRARIES:
        monkeypatch.delenv(variable, raising=False)


def events(folder) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_tensorboard_gets_what_the_training_had_at_each_step(transformer, dataset, scheduler, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGDIR", str(tmp_path / "board"))
    recipe = make_recipe(steps=5)
    adapter.add_adapter(transformer, recipe.rank, recipe.seed)
    optimizer = LoraOptimizer(adapter.trainable_weights(transformer), recipe)
    with tracking("run", {"rank": 4}), Checkpoint(tmp_path / "job") as checkpoint:
        history = train(transformer, optimizer, dataset, scheduler, recipe, checkpoint)
    board = events(tmp_path / "board" / "run")
    expected = {"loss": history.losses, "gradient_norm": history.gradient_norms, "learning_rate": learning_rates(recipe)}
    assert set(board.Tags()["scalars"]) == {*expected, "images_per_second"}
    for name, values in expected.items():
        assert [event.step for event in board.Scalars(name)] == [1, 2, 3, 4, 5]
        assert [event.value for event in board.Scalars(name)] == pytest.approx(values, rel=1e-6)
    (text,) = board.Tensors("recipe/text_summary")
    assert b"rank: 4" in text.tensor_proto.string_val[0]


def test_a_run_ends_with_its_training_even_one_that_broke(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGDIR", str(tmp_path))
    with pytest.raises(FloatingPointError), tracking("broken", {}):
        track(1, loss=2.0)
        raise FloatingPointError
    files = set(tmp_path.rglob("*"))
    track(2, loss=3.0)
    assert set(tmp_path.rglob("*")) == files
    assert [event.value for event in events(tmp_path / "broken").Scalars("loss")] == [2.0]


def test_nothing_is_written_where_nothing_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tracking("run", {}):
        track(1, loss=torch.pi)
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_asked_for_and_missing_is_said(monkeypatch):
    monkeypatch.setitem(tracker.LIBRARIES, "WANDB_PROJECT", "wandb_is_not_here")
    monkeypatch.setenv("WANDB_PROJECT", "portraits")
    with pytest.raises(ValueError, match=r"^WANDB_PROJECT: .* pip install wandb_is_not_here"), tracking("run", {}):
        raise AssertionError("it went on")
