"""Rank 0's side of a training on several ranks: it starts the others, notices when one dies, and ends them with itself."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from finetuner.bases import Base, LatentStatistics, TextEmbeddings
from finetuner.paths import ROOT
from finetuner.training.dataset import Bucket, Dataset
from finetuner.training.plan import Plan
from finetuner.training.ranks import ALONE, Ranks, join
from finetuner.training.recipe import Recipe

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
NOTICE_SECONDS = 10  # a rank's connection closes first; Python and CUDA may take a while to end what remains of it
LAST_WORDS = 20  # lines of a dead rank's output


class OtherRanks:
    """The processes of ranks 1 and up, a card each; none where the plan has one rank.

    As a context manager it starts them, so that they load the base while this process does, and ends them whatever happens.
    They end by themselves when this process dies.

    Raises:
        RuntimeError: one of them died; says of what.
    """

    def __init__(self, base: Base, dataset: Dataset, recipe: Recipe, job: Path):
        self.base, self.dataset, self.recipe = base, dataset, recipe
        self.count = recipe.plan.ranks
        self.folder = job / "ranks"
        self.processes: dict[int, subprocess.Popen] = {}
        self.died: dict[int, int] = {}  # rank -> exit status, in the order in which it was noticed
        self.watchers: list[threading.Thread] = []
        self.ending = False

    def __enter__(self) -> OtherRanks:
        if self.count > 1:
            log.info("Training on %d ranks, each with %d images of a step", self.count, self.recipe.batch_size // self.count)
            self.folder.mkdir(exist_ok=True)
            save_job(self.folder / "job.pt", self.base, self.dataset, self.recipe)
            self.store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
            try:
                for rank in range(1, self.count):
                    self._start(rank)
            except BaseException:
                self._end()
                raise
        return self

    def join(self) -> Ranks:
        """Meet the others, once they have loaded the base."""
        if self.count == 1:
            return ALONE
        while not self.store.check([ready(rank) for rank in self.processes]):
            if self.died:
                raise RuntimeError("not all ranks came")  # __exit__ says why
            time.sleep(0.02)
        return join(self.store, 0, self.count)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_) -> None:
        if isinstance(error, RuntimeError):  # it may come of a rank that is about to be noticed
            deadline = time.monotonic() + NOTICE_SECONDS
            while self.count > 1 and not self.died and time.monotonic() < deadline:
                time.sleep(0.02)
        reason = self._reason() if self.died and isinstance(error, Exception) else None
        self._end()
        if reason:
            raise RuntimeError(reason) from error

    def _start(self, rank: int) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # Its progress is ours; as many threads as here, so that a kernel sums in the same order on every rank.
        changes = {"PYTHONPATH": path, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
        command: list[str | Path] = [sys.executable, "-m", "finetuner.training.worker", self.folder / "job.pt"]
        command += [str(rank), str(self.store.port)]
        with self._output(rank).open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=os.environ | changes
            )  # nothing is written to its stdin, whose end tells it that we are gone
        self.processes[rank] = process
        self.watchers.append(threading.Thread(target=self._watch, args=(rank, process), daemon=True))
        self.watchers[-1].start()

    def _watch(self, rank: int, process: subprocess.Popen) -> None:
        status = process.wait()
        if status == 0 or self.ending:
            return
        self.died[rank] = status
        if dist.is_initialized():
            dist.group.WORLD.abort()  # what waits for the dead rank fails now; NCCL would wait for its timeout

    def _reason(self) -> str:
        rank, status = next(iter(self.died.items()))
        words = self._output(rank).read_text(errors="replace").strip().splitlines()
        log.error("The last that rank %d wrote:\n%s", rank, "\n".join(words[-LAST_WORDS:]))
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"failed: {words[-1] if words else status}"
        return (
            f"rank {rank} of {self.count} {how}. Nothing was published. The same request goes on from the job's last"
            " checkpoint; GPUS=1 trains on one card."
        )

    def _output(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.log"

    def _end(self) -> None:
        """The others hold nothing that is not here as well."""
        self.ending = True
        for process in self.processes.values():
            process.kill()
            process.communicate()  # waits for it, and closes its pipe
        for watcher in self.watchers:
            watcher.join()
        if dist.is_initialized():
            dist.group.WORLD.abort()  # NCCL would wait for the others before it lets go
            dist.destroy_process_group()
        shutil.rmtree(self.folder, ignore_errors=True)


def ready(rank: int) -> str:
    """The key by which a rank says that it has loaded the base."""
    return f"ready/{rank}"


def save_job(path: Path, base: Base, dataset: Dataset, recipe: Recipe) -> None:
    """Write what another process needs to train the same."""
    facts = {
        "base": str(base.folder.resolve()),
        "recipe": asdict(recipe),
        "buckets": {size: (bucket.latents, bucket.captions, bucket.plain) for size, bucket in dataset.buckets.items()},
        "texts": (dataset.texts.embeds, dataset.texts.pooled),
        "generic": dataset.generic,
        "statistics": (dataset.statistics.shift, dataset.statistics.scale),
    }
    torch.save(facts, path)


def load_job(path: Path) -> tuple[Base, Dataset, Recipe]:
    """What `save_job` wrote. The tensors stay in the file, one copy in memory for all ranks."""
    facts = torch.load(path, weights_only=True, mmap=True)
    base = Base.open(Path(facts["base"]))
    buckets = {size: Bucket(*tensors) for size, tensors in facts["buckets"].items()}
    texts, statistics = TextEmbeddings(*facts["texts"]), LatentStatistics(*facts["statistics"])
    dataset = Dataset(buckets, texts, facts["generic"], base.family, statistics)
    return base, dataset, Recipe(**facts["recipe"] | {"plan": Plan(**facts["recipe"]["plan"])})
