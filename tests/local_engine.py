"""The fleet's engine and records, with the work done inside of this process: what the APIs need, in a second and not in ten."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

from finetuner.generate import Generator
from finetuner.store import FolderStore
from fleet.drawing import draw
from fleet.engine import Engine
from fleet.interruptible import interruptible
from fleet.records import Limits, Records
from fleet.settings import Settings
from fleet.training import TrainingFolder, train


class Idle:
    """Does nothing: jobs run until a test changes their records."""

    async def draw(self, inputs: dict, folder: str) -> dict:
        return await asyncio.Event().wait()

    async def train(self, finetune_id: str, inputs: dict, folder: TrainingFolder) -> dict:
        return await asyncio.Event().wait()

    async def is_alive(self) -> bool:
        return True


class Inside:
    """Trains and draws as the tasks of the cluster do."""

    def __init__(self) -> None:
        self.generator: Generator | None = None

    async def draw(self, inputs: dict, folder: str) -> dict:
        self.generator = self.generator or await asyncio.to_thread(Generator.open)
        return await interruptible(functools.partial(draw, self.generator, inputs, Path(folder)))

    async def train(self, finetune_id: str, inputs: dict, folder: TrainingFolder) -> dict:
        return await interruptible(functools.partial(train, finetune_id, inputs, str(folder.folder)))

    async def is_alive(self) -> bool:
        return True


def engine_of(cluster: Idle | Inside, folder: Path, limits: Limits | None = None) -> Engine:
    """What is idle has room for any number of jobs at once: none of them ends by itself."""
    room = {"replicas": (1, 1000), "trainings": 1000} if isinstance(cluster, Idle) else {}
    settings = Settings(folder=folder, limits=limits or Limits(queue=10**6, trainings=1000, drawings=1000), **room)
    return Engine(settings, Records(settings.records_url, settings.limits), cluster, FolderStore(folder / "finetunes"))
