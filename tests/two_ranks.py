"""Runs as one of two ranks: trains a tiny transformer and writes down what it had after every step.

python two_ranks.py RANK COUNT RENDEZVOUS OUTPUT [poisoned]
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import klein
import torch
import torch.distributed as dist
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers import PLAN, make_recipe

from finetuner.bases import LatentStatistics, TextEmbeddings, flux2
from finetuner.training import Checkpoint, adapter, delta
from finetuner.training.dataset import Bucket, Dataset
from finetuner.training.optim import InBackwardOptimizer, LoraOptimizer
from finetuner.training.ranks import Ranks, join
from finetuner.training.trainer import train

STEPS = 20
KINDS = ("lora", "full")


def tiny_dataset() -> Dataset:
    """Four images of one size, a caption each."""
    generator = torch.Generator().manual_seed(1)
    texts = TextEmbeddings(torch.randn(5, 5, 24, generator=generator))
    bucket = Bucket(torch.randn(4, 4, 4, 4, generator=generator), torch.arange(4) + 1, torch.zeros(4, dtype=torch.int64))
    return Dataset({(32, 32): bucket}, texts, torch.zeros(1, dtype=torch.int64), flux2, LatentStatistics(0.0, 1.0))


def train_noting_digests(kind: str, ranks: Ranks, *, poisoned: bool = False) -> dict:
    """``digests``: of the trained weights after each step; ``weights`` at the end; ``losses``; ``error``, if there was one.

    Args:
        poisoned: this rank's texts are not finite.
    """
    plan = PLAN if ranks.count == 1 else type(PLAN)(**vars(PLAN) | {"micro_batch": 4 // ranks.count, "ranks": ranks.count})
    recipe, transformer, dataset = make_recipe(steps=STEPS, plan=plan), klein.transformer(), tiny_dataset()
    if poisoned:
        dataset.texts.embeds.fill_(torch.nan)
    if kind == "lora":
        adapter.add_adapter(transformer, recipe.rank, seed=ranks.rank)  # as cards may draw otherwise: rank 0's is what counts
        trained = adapter.trainable_weights(transformer)
        optimizer = LoraOptimizer(trained, recipe, ranks)
    else:
        delta.add_deltas(transformer)
        trained = delta.deltas(transformer)
        optimizer = InBackwardOptimizer(trained, recipe, ranks)
    digests: list[str] = []
    step = optimizer.step

    def noting() -> float:
        norm = step()
        digest = hashlib.sha256()
        for parameter in trained.values():
            digest.update(parameter.detach().numpy().tobytes())
        digests.append(digest.hexdigest())
        return norm

    optimizer.step = noting
    found = {"digests": digests, "losses": [], "error": ""}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with tempfile.TemporaryDirectory() as folder, Checkpoint(Path(folder) / "job") as checkpoint:
        try:
            found["losses"] = train(transformer, optimizer, dataset, scheduler, recipe, checkpoint, ranks).losses
        except FloatingPointError as error:
            found["error"] = str(error)
    return found | {"weights": {name: p.detach().clone() for name, p in trained.items()}}


def main() -> None:
    rank, count, rendezvous, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    ranks = join(dist.FileStore(rendezvous, count), rank, count)
    poisoned = "poisoned" in sys.argv and rank == 1
    torch.save({kind: train_noting_digests(kind, ranks, poisoned=poisoned) for kind in KINDS}, output)


if __name__ == "__main__":
    main()
