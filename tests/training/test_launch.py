from dataclasses import replace

import pytest
import torch
from helpers import PLAN, make_recipe

from finetuner.bases import LatentStatistics
from finetuner.training import launch
from finetuner.training.launch import OtherRanks, load_job, save_job

RECIPE = make_recipe(plan=replace(PLAN, micro_batch=2, ranks=2))


def test_a_rank_trains_the_same_job(base, dataset, tmp_path):
    dataset = replace(dataset, statistics=LatentStatistics(torch.ones(1, 4, 1, 1), 0.5))
    save_job(tmp_path / "job.pt", base, dataset, RECIPE)
    same_base, same, recipe = load_job(tmp_path / "job.pt")
    assert recipe == RECIPE and same_base.fingerprint == base.fingerprint and same.family is base.family
    assert same.buckets.keys() == dataset.buckets.keys()
    for size, bucket in dataset.buckets.items():
        assert torch.equal(same.buckets[size].latents, bucket.latents)
        assert torch.equal(same.buckets[size].captions, bucket.captions)
    assert torch.equal(same.texts.embeds, dataset.texts.embeds)
    assert (same.texts.pooled is None) == (dataset.texts.pooled is None)
    assert torch.equal(same.statistics.shift, dataset.statistics.shift) and same.statistics.scale == 0.5


def test_a_rank_that_cannot_begin_ends_the_job_with_its_reason(base, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "save_job", lambda path, *_: path.write_bytes(b"no job"))
    with (
        pytest.raises(RuntimeError, match=r"^rank 1 of 2 failed: \S*Error: .*\. Nothing was published"),
        OtherRanks(base, dataset, RECIPE, tmp_path) as others,
    ):
        others.join()
    assert all(process.poll() is not None for process in others.processes.values()) and not list(tmp_path.iterdir())


def test_an_error_of_rank_0_stays_its_own(base, dataset, tmp_path):
    with pytest.raises(ValueError, match="mine"), OtherRanks(base, dataset, RECIPE, tmp_path) as others:
        raise ValueError("mine")
    assert len(others.processes) == 1 and others.processes[1].poll() == -9


def test_one_rank_starts_no_process(base, dataset, tmp_path):
    with OtherRanks(base, dataset, replace(RECIPE, plan=PLAN), tmp_path) as others:
        assert others.join().count == 1 and not others.processes and not list(tmp_path.iterdir())
