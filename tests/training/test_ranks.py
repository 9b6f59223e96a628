"""Several processes train one finetune: the same bits on each, and what one alone comes to but for rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_ranks import KINDS, STEPS, train_noting_digests

from finetuner.training.ranks import ALONE, Ranks, rank_count

TESTS = Path(__file__).parents[1]


def run_two(folder: Path, *extra: str) -> list[dict]:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    outputs = [folder / f"{rank}.pt" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, TESTS / "two_ranks.py", str(rank), "2", folder / "rendezvous", output, *extra],
            env=os.environ | {"PYTHONPATH": path},
        )
        for rank, output in enumerate(outputs)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [torch.load(output, weights_only=True) for output in outputs]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict]:
    return run_two(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_are_equal_bit_for_bit_after_every_step(both, kind):
    first, second = (found[kind] for found in both)
    assert len(set(first["digests"])) == STEPS and first["digests"] == second["digests"]
    assert first["losses"] == second["losses"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_come_to_what_one_comes_to(both, kind):
    alone, shared = train_noting_digests(kind, ALONE), both[0][kind]
    assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    difference = sum((alone["weights"][name] - shared["weights"][name]).square().sum() for name in alone["weights"])
    assert difference.sqrt() < 1e-3 * sum(tensor.square().sum() for tensor in alone["weights"].values()).sqrt()


def test_what_is_not_finite_on_one_rank_stops_both_at_the_same_step(tmp_path):
    both = run_two(tmp_path, "poisoned")
    for kind in KINDS:
        first, second = (found[kind] for found in both)
        assert "training broke at step 1 " in first["error"] and first["error"] == second["error"]


def test_the_rows_of_all_ranks_are_the_batch():
    assert ALONE.rows(4) == slice(0, 4)
    assert [Ranks(rank, 2).rows(4) for rank in range(2)] == [slice(0, 2), slice(2, 4)]


@pytest.mark.parametrize(
    ("gpus", "visible", "count"),
    [("", 0, 1), ("2", 0, 2), ("", 1, 1), ("", 4, 4), ("2", 4, 2), ("", 3, 2), ("", 8, 4), ("3", 8, 2)],
)
def test_all_cards_that_divide_the_batch_train_or_fewer(monkeypatch, caplog, gpus, visible, count):
    monkeypatch.setenv("GPUS", gpus)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert rank_count(4) == count
    wanted = int(gpus or visible or 1)
    assert (f"Training on {count} of {wanted} cards" in caplog.text) == (count < wanted)


@pytest.mark.parametrize(
    ("gpus", "words"), [("0", "no number of cards"), ("two", "no number"), ("-1", "no number"), ("9", "8 can be seen")]
)
def test_gpus_that_are_not_there_are_refused(monkeypatch, gpus, words):
    monkeypatch.setenv("GPUS", gpus)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(ValueError, match=f"^GPUS: .*{words}"):
        rank_count(4)
