"""As many jobs at once as there is room for, the others waiting in turn by owner."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fleet.queue import FairQueue
from fleet.records import Job

log = logging.getLogger(__name__)


class Lane:
    """The jobs of one kind, inside one event loop."""

    def __init__(self, room: int, work: Callable[[Job], Coroutine[Any, Any, None]]):
        self._room, self._work = room, work
        self._waiting = FairQueue()
        self._jobs: dict[str, Job] = {}  # that wait
        self._running: dict[str, asyncio.Task] = {}

    def add(self, job: Job) -> None:
        self._jobs[job.id] = job
        self._waiting.add(job.owner, job.id)
        self._fill()

    def cancel(self, job: Job) -> None:
        if task := self._running.get(job.id):
            task.cancel()
        elif self._jobs.pop(job.id, None):
            self._waiting.remove(job.owner, job.id)

    async def close(self) -> None:
        self._room = 0
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fill(self) -> None:
        while len(self._running) < self._room and self._waiting:
            job = self._jobs.pop(self._waiting.next())
            task = self._running[job.id] = asyncio.create_task(self._work(job))
            task.add_done_callback(functools.partial(self._done, job))

    def _done(self, job: Job, task: asyncio.Task) -> None:
        del self._running[job.id]
        if not task.cancelled() and (error := task.exception()):
            log.error("Job %s could not be noted as ended, and the next engine goes on with it", job.id, exc_info=error)
        self._fill()
