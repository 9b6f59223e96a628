"""A rank but the first, a process of its own: python -m finetuner.training.worker JOB RANK PORT, which launch.py starts.

It does what rank 0 does, from the same numbers, and keeps nothing of it: rank 0 checkpoints, reports and publishes.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from finetuner.training.checkpoint import Checkpoint, Stateful
from finetuner.training.launch import HOST, load_job, ready
from finetuner.training.learn import learn
from finetuner.training.ranks import join


class RanksCheckpoint(Checkpoint):
    """The job's checkpoint, to read: all ranks go on from it. Rank 0 saves none before the first step, to which all come."""

    def save_when_due(self, **parts: Stateful) -> None:
        pass


def main() -> None:
    try:
        train_along(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except Exception as error:
        traceback.print_exc()
        sys.exit(
            f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        )  # rank 0 gives the last line as the reason


def train_along(job: Path, rank: int, port: int) -> None:
    threading.Thread(target=_end_with_rank_0, daemon=True).start()
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    base, dataset, recipe = load_job(job)
    transformer = base.load_transformer(recipe.plan.base_precision)
    store = dist.TCPStore(HOST, port, is_master=False)
    store.set(ready(rank), "")
    ranks = join(store, rank, recipe.plan.ranks)
    with suppress(FloatingPointError):  # rank 0 has the same numbers, and tells of it
        learn(transformer, dataset, base.load_scheduler(), recipe, RanksCheckpoint(job.parent.parent), ranks)


def _end_with_rank_0() -> None:
    """The pipe ends when rank 0 does, however it does. NCCL would not notice for minutes."""
    while os.read(sys.stdin.fileno(), 1):  # not through sys.stdin, whose lock a process cannot end without
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
