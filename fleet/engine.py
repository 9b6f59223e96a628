"""Accepted jobs -> the cluster -> their records. What the APIs talk to, inside one process."""

from __future__ import annotations

import asyncio
import functools
import logging
import shutil
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.exc import OperationalError

from finetuner.store import Store, StoreError, open_store
from fleet.cluster import Cluster
from fleet.fetching import Fetcher, FetchError, file_name
from fleet.lane import Lane
from fleet.lease import Lease, LeaseLost
from fleet.records import Job, Kind, Records, State
from fleet.settings import Settings
from fleet.training import TrainingFolder

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # between looks at what a training has written
PUBLISH_SECONDS = 60.0  # between tries of a training whose result waits for the store
PUBLISH_TRIES = 24 * 60  # a day of them: a whole training waits there, and is lost after
TIDY_SECONDS = 3600.0
ADOPT_SECONDS = 60.0
DATABASE_SECONDS = 5.0  # between tries of a database that is away
FILES = ("input_images", "image_prompt")  # the inputs that may be addresses


class Engine:
    """Runs every job of the records to its end: also those of an engine that was killed. One at a time.

    `open` it in the event loop that uses it.
    """

    def __init__(self, settings: Settings, records: Records, cluster: Cluster, store: Store):
        self.settings, self.records = settings, records
        self._cluster, self._store = cluster, store
        self._at_the_end = ExitStack()
        self._caring: list[asyncio.Task] = []
        self._fetcher = Fetcher()
        self._lanes = {
            Kind.TRAINING: Lane(settings.trainings, self._train),
            # One for each replica: who else waits, waits in turn by owner.
            Kind.DRAWING: Lane(settings.replicas[1], self._draw),
        }
        self._closed = False
        self.lost = asyncio.Event()  # set where this engine can do no more, and its process should end
        self._ended: dict[str, asyncio.Event] = {}  # of jobs that are not over

    @classmethod
    async def open(cls, settings: Settings | None = None) -> Engine:
        """Connect to the records and the cluster, and go on with what is unfinished.

        Raises:
            ValueError: a setting of the environment is none.
        """
        settings = settings or Settings.open()
        lease = await asyncio.to_thread(_take, settings)
        records = await asyncio.to_thread(Records, settings.records_url, settings.limits)
        cluster = await asyncio.to_thread(Cluster, settings)
        engine = cls(settings, records, cluster, open_store())
        engine._at_the_end.callback(lease.close)
        for job in await asyncio.to_thread(records.unended):
            engine._enqueue(job)
        engine._caring = [asyncio.create_task(care) for care in (engine._keep(lease), engine._tidy_up(), engine._adopt())]
        return engine

    async def health(self) -> str | None:
        """What is wrong, in a sentence; None where all is well."""
        if self._closed:
            return "This engine has stopped, for another works with the same folder, or it was told to."
        if not await self._cluster.is_alive():
            return "The cluster does not answer, or has no replica that draws."
        try:
            await asyncio.to_thread(self.records.job, "")
        except OperationalError:
            return "The database does not answer."
        return None

    async def submit(self, job: Job) -> Job:
        """Accept a job: from here on it ends in a result or a reason, whatever is lost.

        Raises:
            QueueFull, QuotaExceeded: it was not accepted.
        """
        self._ended[job.id] = asyncio.Event()  # before it is kept, or `_adopt` would take it for one that nobody works on
        try:
            await asyncio.to_thread(self.records.accept, job)
        except BaseException:
            del self._ended[job.id]
            raise
        self._lanes[job.kind].add(job)
        return job

    async def wait(self, job_id: str, seconds: float) -> Job | None:
        """The job, when it has ended or the time is over; None where there is none."""
        if ended := self._ended.get(job_id):
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), seconds)
        return await asyncio.to_thread(self.records.job, job_id)

    async def cancel(self, owner: str, job_id: str) -> Job | None:
        """The owner's job, which is over: cancelled now, or ended before; None where there is none."""
        job = await asyncio.to_thread(self.records.get, owner, job_id)
        if job is None:
            return None
        canceled = functools.partial(self.records.change, job_id, state=State.CANCELED)
        if await asyncio.to_thread(canceled):
            self._lanes[job.kind].cancel(job)
            self._over(job_id)
        return await asyncio.to_thread(self.records.job, job_id)

    async def delete_finetune(self, owner: str, finetune_id: str) -> bool:
        """Whether the owner had it."""
        if await asyncio.to_thread(self.records.owner_of, finetune_id) != owner:
            return False
        with suppress(ValueError):  # its files are gone already
            await asyncio.to_thread(self._store.delete, finetune_id)
        return await asyncio.to_thread(self.records.delete_finetune, owner, finetune_id)

    async def close(self) -> None:
        """Stop working. Unfinished jobs stay so, for the next engine."""
        self._closed = True
        for task in self._caring:
            task.cancel()
        for lane in self._lanes.values():
            await lane.close()
        self.records.close()
        await asyncio.to_thread(self._at_the_end.close)

    def _enqueue(self, job: Job) -> None:
        self._ended[job.id] = asyncio.Event()
        self._lanes[job.kind].add(job)

    def _over(self, job_id: str) -> None:
        if ended := self._ended.pop(job_id, None):
            ended.set()

    async def _draw(self, job: Job) -> None:
        folder = self.settings.results_folder / job.id
        await self._run(job, self._with_files(job, lambda inputs: self._cluster.draw(inputs, str(folder))))

    async def _train(self, job: Job) -> None:
        folder = self._folder_of(job)
        watching = asyncio.create_task(self._watch(job.id, folder))
        try:
            await self._run(job, self._with_files(job, lambda inputs: self._train_and_publish(job, inputs, folder)))
        finally:
            watching.cancel()
            await self._clear_training(job.id)

    async def _train_and_publish(self, job: Job, inputs: dict, folder: TrainingFolder) -> dict:
        for _ in range(PUBLISH_TRIES):
            done = await self._cluster.train(job.finetune_id, inputs, folder)
            if not done.pop("again", False):
                break
            log.warning("Training %s waits for the store: %s", job.id, done["error"])
            await asyncio.sleep(PUBLISH_SECONDS)
        return done

    async def _with_files(self, job: Job, work: Callable[[dict], Coroutine[Any, Any, dict]]) -> dict:
        """Do the work with the files that lie elsewhere: fetched before it to where every node reads them, gone after it."""
        folder = self.settings.fetched_folder / job.id
        try:
            inputs = dict(job.inputs)
            for name in FILES:
                if (address := str(inputs.get(name, ""))).startswith(("http://", "https://")):
                    folder.mkdir(parents=True, exist_ok=True)
                    try:
                        inputs[name] = str(await self._fetcher.fetch(address, folder / file_name(address)))
                    except FetchError as error:
                        return {"error": f"{name}: {error}"}
            return await work(inputs)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _run(self, job: Job, work: Coroutine[Any, Any, dict]) -> None:
        """Do the work of a job and note its end."""
        try:
            if not await self._note(job.id, state=State.RUNNING, started_at=job.started_at or datetime.now(UTC)):
                self._over(job.id)  # cancelled meanwhile
                return
            done = await work
        except Exception:
            if not await self._cluster.is_alive():
                # No fault of the job's: it stays unfinished, for the engine of a cluster that is there again.
                log.critical("The cluster is lost; start it and this process anew")
                self.lost.set()
                return
            log.exception("Job %s failed", job.id)
            done = {"error": f"The {job.kind} failed on the server, through no fault of the request. Send it again later."}
        finally:
            work.close()
        metrics = done.pop("metrics", {})
        last = await asyncio.to_thread(self._folder_of(job).read)  # the lines since `_watch` looked; of a drawing none
        if error := done.get("error"):
            ending = {"state": State.FAILED, "error": error, "moderated": done.get("moderated", False)}
        else:
            ending = {"state": State.SUCCEEDED, "progress": 1.0, "output": done, "metrics": metrics}
        await self._note(job.id, **last | ending)
        self._over(job.id)

    async def _watch(self, job_id: str, folder: TrainingFolder) -> None:
        """Note what a training writes, as it comes."""
        before: dict = {}
        while True:
            await asyncio.sleep(POLL_SECONDS)
            news = await asyncio.to_thread(folder.read)
            if changes := {name: value for name, value in news.items() if before.get(name) != value}:
                await self._note(job_id, **changes)
                before = news

    def _folder_of(self, job: Job) -> TrainingFolder:
        return TrainingFolder(self.settings.trainings_folder / job.id)

    async def _clear_training(self, job_id: str) -> None:
        """Of a training that is over, remove the folder, and what it published where it was cancelled as it did."""
        job = await asyncio.to_thread(self.records.job, job_id)
        if job and not job.ended:
            return
        if job and job.state != State.SUCCEEDED:
            try:
                await asyncio.to_thread(self._store.delete, job.finetune_id)
            except ValueError:
                pass  # there is none, as a rule
            except StoreError as error:
                log.warning("What training %s may have published cannot be deleted yet: %s", job_id, error)
                return  # the folder stays, and `_tidy_up` tries again
        await asyncio.to_thread(shutil.rmtree, self.settings.trainings_folder / job_id, ignore_errors=True)

    async def _tidy_up(self) -> None:
        """Every hour, clear away what was left behind, and what is past its time."""
        while True:
            try:
                for folder in self.settings.trainings_folder.glob("*"):
                    await self._clear_training(folder.name)
                for job in await asyncio.to_thread(self.records.expire, datetime.now(UTC)):
                    await asyncio.to_thread(shutil.rmtree, self.settings.results_folder / job.id, ignore_errors=True)
            except OperationalError as error:
                log.warning("Old jobs cannot be cleared away: %s. It is tried again in an hour", error.orig)
            await asyncio.sleep(TIDY_SECONDS)

    async def _adopt(self) -> None:
        """Every minute, take on jobs that were accepted and that nobody works on: an engine whose time was over took them in
        its last second, or the request was broken off between the record and the queue."""
        while True:
            await asyncio.sleep(ADOPT_SECONDS)
            with suppress(OperationalError):  # it is away, and `_note` says so
                for job in await asyncio.to_thread(self.records.unended):
                    if job.id not in self._ended:
                        self._enqueue(job)

    async def _keep(self, lease: Lease) -> None:
        """Stop where another engine has taken over: this process was held up for long."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                lease.require_held()
            except LeaseLost as error:
                log.critical("%s This engine stops", error)
                self._closed = True
                self.lost.set()
                for lane in self._lanes.values():
                    await lane.close()
                return

    async def _note(self, job_id: str, **changes: Any) -> bool:
        """Change the job's record, however long the database is away: what is done must not be lost."""
        while True:
            try:
                return await asyncio.to_thread(functools.partial(self.records.change, job_id, **changes))
            except OperationalError as error:
                log.error("What became of job %s cannot be noted yet: %s", job_id, error.orig)
                await asyncio.sleep(DATABASE_SECONDS)


def _take(settings: Settings) -> Lease:
    folder = settings.folder / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    return Lease(folder, settings.lease_seconds)
