"""An engine for the APIs inside of one process: it keeps its records in memory, and trains and draws by the library itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from finetuner import finetune as training
from finetuner.generate import Generator
from finetuner.requests import FinetuneRequest, ImageRequest
from finetuner.store import Store, seal
from fleet.fetching import Fetcher
from fleet.jobs import Job, Kind, QueueFull, QuotaExceeded, State


class MemoryRecords:
    def __init__(self, store: Store | None = None):
        self.jobs: dict[str, Job] = {}
        self.store = store
        self.lock = threading.RLock()

    def get(self, owner, id):
        job = self.find(id)
        return job if job and job.owner == owner else None

    def find(self, id):
        with self.lock:
            return replace(self.jobs[id]) if id in self.jobs else None

    def training_of(self, finetune_id):
        with self.lock:
            jobs = [job for job in self.jobs.values() if job.kind is Kind.TRAINING and job.finetune_id == finetune_id]
            return replace(jobs[0]) if jobs else None

    def list(self, owner, *, kind=None, api=None, before=None, limit=100):
        with self.lock:
            jobs = [replace(job) for job in reversed(self.jobs.values()) if job.owner == owner]
        jobs = [job for job in jobs if (kind is None or job.kind is kind) and (api is None or job.api == api)]
        if before is not None:
            jobs = jobs[[job.id for job in jobs].index(before) + 1 :]
        return jobs[:limit]

    def change(self, id, **fields):
        with self.lock:
            job = self.jobs[id]
            if not (job.state.is_final and "state" in fields):
                self.jobs[id] = replace(job, **fields)
            return replace(self.jobs[id])

    def finetunes(self, owner):
        return [job.finetune_id for job in self.list(owner, kind=Kind.TRAINING) if job.state is State.SUCCEEDED]

    def owner_of(self, finetune_id):
        job = self.training_of(finetune_id)
        return job.owner if job else None

    def delete_finetune(self, owner, finetune_id):
        if finetune_id not in self.finetunes(owner):
            return False
        if self.store:
            self.store.delete(finetune_id)
        with self.lock:
            self.jobs = {id: job for id, job in self.jobs.items() if job.finetune_id != finetune_id or job.kind is Kind.DRAWING}
        return True

    def with_webhooks(self):
        with self.lock:
            return [replace(job) for job in self.jobs.values() if job.webhook and not job.webhook.get("done")]

    def files_in_use(self):
        with self.lock:
            jobs = [job for job in self.jobs.values() if not job.state.is_final]
        return [str(value) for job in jobs for value in job.inputs.values() if str(value).startswith("/")]


class MemoryEngine:
    """Jobs wait until a test changes their records."""

    def __init__(self, records: MemoryRecords | None = None, most: int = 1000, most_of_one: int = 1000):
        self.records = records or MemoryRecords()
        self.most, self.most_of_one = most, most_of_one

    async def submit(self, job):
        unfinished = [other for other in self.records.jobs.values() if not other.state.is_final]
        if len(unfinished) >= self.most:
            raise QueueFull("The queue is full. Send it again later.")
        if sum(other.owner == job.owner for other in unfinished) >= self.most_of_one:
            raise QuotaExceeded("Your key has as many jobs at once as it may have. Wait for one of them.")
        with self.records.lock:
            self.records.jobs[job.id] = replace(job)
        return replace(job)

    async def wait(self, id, seconds):
        end = time.monotonic() + seconds
        while not (job := self.records.find(id)).state.is_final and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return job

    async def cancel(self, owner, id):
        if self.records.get(owner, id) is None:
            return None
        return self.records.change(id, state=State.CANCELED, completed_at=datetime.now(UTC))

    async def close(self):
        pass


class LibraryEngine(MemoryEngine):
    """Jobs are done, one after the other, by the library."""

    def __init__(self, records: MemoryRecords, pictures: Path, ready: Callable[[], Generator]):
        super().__init__(records)
        self.pictures, self.ready = pictures, ready
        self.pool = ThreadPoolExecutor(1)

    async def submit(self, job):
        job = await super().submit(job)
        self.pool.submit(self.do, job)
        return job

    def do(self, job):
        if self.records.find(job.id).state.is_final:
            return
        self.records.change(job.id, state=State.RUNNING, started_at=datetime.now(UTC))
        try:
            output = self.train(job) if job.kind is Kind.TRAINING else self.draw(job)
            self.records.change(job.id, state=State.SUCCEEDED, output=output, progress=1.0, completed_at=datetime.now(UTC))
        except Exception as error:
            self.records.change(job.id, state=State.FAILED, error=str(error), completed_at=datetime.now(UTC))

    def train(self, job):
        archive = job.inputs["input_images"]
        if not archive.startswith("/"):
            archive = asyncio.run(Fetcher().fetch(archive, self.pictures / f"{job.id}.zip"))
        # The library names a finetune as it is sealed; the records named it before.
        training.seal = lambda folder, facts: seal(folder, {**facts, "id": job.finetune_id})
        published = training.finetune(FinetuneRequest(**job.inputs | {"input_images": Path(archive)}))
        return {"finetune_id": published.id}

    def draw(self, job):
        made = self.ready().generate(ImageRequest(**job.inputs), self.pictures)
        return {"image": str(made.path), "seed": made.seed}
