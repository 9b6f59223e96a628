"""How a job's record ends, with the work done in a moment and not on a cluster."""

from __future__ import annotations

import asyncio
import time

from local_engine import engine_of

from finetuner.store import StoreError
from fleet import engine as engine_module
from fleet.engine import Engine
from fleet.records import Job, Kind, State
from fleet.training import TrainingFolder


def training() -> Job:
    return Job("ann", Kind.TRAINING, "cog", "", {})


class Telling:
    """A training that is soon over, and says so last."""

    def __init__(self, done: dict, seconds: float = 0.0):
        self.done, self.seconds, self.trained = done, seconds, []

    async def train(self, finetune_id: str, inputs: dict, folder: TrainingFolder) -> dict:
        self.trained.append(finetune_id)
        await asyncio.sleep(self.seconds)
        folder.folder.mkdir(parents=True)
        folder.log.write_text("the last line\n")
        folder.write({"progress": 0.5, "loss": 0.25})
        return dict(self.done)


def ended(done: dict, tmp_path) -> Job:
    async def main() -> Job | None:
        engine: Engine = engine_of(Telling(done), tmp_path)
        job = await engine.submit(training())
        ended = await engine.wait(job.id, 30)
        await engine.close()
        return ended

    job = asyncio.run(main())
    assert job is not None
    return job


def test_the_last_lines_of_a_training_are_in_its_record(tmp_path):
    job = ended({"finetune_id": "f", "metrics": {"train_seconds": 1.0}}, tmp_path)
    assert (job.state, job.logs) == (State.SUCCEEDED, "the last line\n")


def test_the_last_lines_of_a_training_that_failed_are_in_its_record(tmp_path):
    job = ended({"error": "mode: is none."}, tmp_path)
    assert (job.state, job.error, job.logs) == (State.FAILED, "mode: is none.", "the last line\n")


def test_a_store_that_is_away_stops_no_tidying(tmp_path, monkeypatch):
    async def main() -> bool:
        engine = engine_of(Telling({}), tmp_path)
        for job_id in ("one", "two"):
            (engine.settings.trainings_folder / job_id).mkdir(parents=True)
            engine.records.accept(Job("ann", Kind.TRAINING, "cog", "", {}, id=job_id))
            engine.records.change(job_id, state=State.FAILED)

        def away(_: str) -> None:
            raise StoreError("away")

        monkeypatch.setattr(engine._store, "delete", away)
        tidying = asyncio.create_task(engine._tidy_up())
        await asyncio.sleep(1.0)
        still = not tidying.done()
        tidying.cancel()
        await engine.close()
        return still

    assert asyncio.run(main())


def test_an_accepted_job_that_nobody_works_on_is_taken_on(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "ADOPT_SECONDS", 0.05)

    async def main() -> Job | None:
        engine = engine_of(Telling({"finetune_id": "f"}), tmp_path)
        adopting = asyncio.create_task(engine._adopt())
        job = await asyncio.to_thread(engine.records.accept, training())  # by an engine whose time was over
        for _ in range(100):
            if engine.records.job(job.id).ended:
                break
            await asyncio.sleep(0.05)
        adopting.cancel()
        await engine.close()
        return engine.records.job(job.id)

    job = asyncio.run(main())
    assert job and job.state is State.SUCCEEDED


def test_a_job_that_is_just_being_accepted_is_worked_on_once(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_module, "ADOPT_SECONDS", 0.01)
    telling = Telling({"finetune_id": "f"}, seconds=0.3)

    async def main() -> Job:
        engine = engine_of(telling, tmp_path)
        engine._lanes[Kind.TRAINING]._room = 2  # for a second try of the same job
        accept = engine.records.accept

        def slowly(job: Job) -> Job:
            accepted = accept(job)
            time.sleep(0.3)
            return accepted

        monkeypatch.setattr(engine.records, "accept", slowly)
        adopting = asyncio.create_task(engine._adopt())
        job = await engine.submit(training())
        await engine.wait(job.id, 30)
        await asyncio.sleep(0.2)
        adopting.cancel()
        await engine.close()
        return job

    job = asyncio.run(main())
    assert telling.trained == [job.finetune_id]
