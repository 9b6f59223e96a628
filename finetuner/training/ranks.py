"""Several processes, one training: what they share, and what of a step's batch each of them takes.

Every rank draws the whole step from the same generator and takes its rows; the gradients are averaged before they are applied,
so that all ranks hold the same weights, bit for bit. By hand, since DistributedDataParallel's hooks and buckets are in the way
of checkpointing, compiled blocks, and gradients that are applied inside backward.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)

SETTINGS = {
    "GLOO_SOCKET_IFNAME": "lo",  # all ranks are on this machine, whose name a container need not be able to look up
    # One order of summing, so that two runs give the same bits: by itself NCCL chooses by what it measures of the machine.
    "NCCL_ALGO": "Ring",
    "NCCL_PROTO": "Simple",
    # A rank that died is rank 0's to deal with (launch.py): NCCL's own watchdog would end this process, a server's worker.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "2",
}


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; by itself where nothing is said."""

    rank: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> slice:
        """This rank's rows of a step's batch."""
        share = batch_size // self.count
        return slice(self.rank * share, (self.rank + 1) * share)

    def average(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over all ranks, in place: the same bits on each. All ranks must come to it in the same order."""
        if self.count > 1:
            dist.all_reduce(tensor)
            tensor /= self.count
        return tensor

    def agree(self, tensors: Iterable[torch.Tensor]) -> None:
        """Take rank 0's values, in place: what is random, or comes of a decomposition, may differ between cards."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


ALONE = Ranks()


def rank_count(batch_size: int) -> int:
    """How many ranks train: as many as divide the batch, of the cards that can be seen, or of ``GPUS`` cards. Without a card it
    is one process, or what of ``GPUS`` divides the batch.

    Raises:
        ValueError: ``GPUS`` is no number of the cards that are here.
    """
    visible = torch.cuda.device_count()
    asked = os.environ.get("GPUS") or str(max(1, visible))
    wanted = int(asked) if asked.isascii() and asked.isdigit() else 0
    if wanted < 1:
        raise ValueError(f"GPUS: {asked!r} is no number of cards. Set 1 or more, or leave it out to train on all of them.")
    if visible and wanted > visible:
        raise ValueError(f"GPUS: {wanted} are asked for, and {visible} can be seen. Set {visible} or fewer.")
    count = max(n for n in range(1, wanted + 1) if batch_size % n == 0)
    if count < wanted:
        log.warning("Training on %d of %d cards: the %d images of a step are shared out evenly", count, wanted, batch_size)
    return count


def join(store: dist.Store, rank: int, count: int) -> Ranks:
    """Become one of ``count`` ranks, which meet at ``store``; comes back when all are there."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if torch.cuda.is_available():
        dist.init_process_group("nccl", store=store, rank=rank, world_size=count, device_id=torch.device("cuda", rank))
    else:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    return Ranks(rank, count)
