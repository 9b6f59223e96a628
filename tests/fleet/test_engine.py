"""Jobs on a real cluster, whose parts are killed while they work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
from helpers import EXAMPLES
from PIL import Image

from finetuner.store import FolderStore
from fleet.engine import Engine
from fleet.records import Job, Kind, Limits, QueueFull, QuotaExceeded, Records, State
from fleet.settings import Settings
from fleet.tries import TRIES

STEPS = 4
TRAINING = {
    "input_images": str(EXAMPLES / "line-icons.zip"),
    "training_steps": STEPS,
    "finetune_type": "lora",
    "lora_rank": 16,
    "priority": "speed",
}
LONG = 400  # steps, half a minute: to be killed before they are over
SECONDS = 300  # two cores with other work start slowly


def training(owner: str = "ann", **inputs) -> Job:
    return Job(owner, Kind.TRAINING, "cog", "", TRAINING | inputs)


def drawing(finetune_id: str, owner: str = "ann", **inputs) -> Job:
    asked = {"prompt": "TOK fox", "finetune_id": finetune_id, "steps": 1, "output_format": "png"}
    return Job(owner, Kind.DRAWING, "cog", "", asked | inputs, finetune_id)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Iterator[Settings]:
    """Of a fleet with one replica and one training at once, whose cluster is up."""
    folder = tmp_path_factory.mktemp("fleet")
    environment = pytest.MonkeyPatch()
    environment.setenv("FINETUNE_STORE", str(folder / "finetunes"))
    environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
    environment.setenv("OMP_NUM_THREADS", "1")
    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20, "log_to_driver": False}
    # Its sockets lie there, and their paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as short:
        ray.init(address="local", _temp_dir=short, **options)
        limits = Limits(queue=30, trainings=3, drawings=20)
        yield Settings(folder=folder / "fleet", limits=limits, lease_seconds=2.0)
        ray.shutdown()
    environment.undo()


@pytest.fixture
def store(settings) -> FolderStore:
    return FolderStore(settings.folder.parent / "finetunes")


@pytest.fixture(scope="module")
def finetune_id(settings) -> str:
    """Of a finetune that `ann` has trained."""

    async def train(engine: Engine) -> str:
        job = await engine.submit(training())
        ended = await engine.wait(job.id, SECONDS)
        assert ended and ended.state is State.SUCCEEDED, ended
        assert ended.output == {"finetune_id": job.finetune_id}
        assert ended.progress == 1 and ended.metrics["train_seconds"] > 0
        assert "Published finetune" in ended.logs
        await until(lambda: not (settings.trainings_folder / job.id).exists())
        return job.finetune_id

    return run(settings, train)


def run(settings: Settings, use):
    async def main():
        engine = await Engine.open(settings)
        try:
            return await use(engine)
        finally:
            await engine.close()

    return asyncio.run(main())


def processes(name: str) -> list[psutil.Process]:
    """Of this test's own cluster, by how Ray names them."""
    return [process for process in psutil.Process().children(recursive=True) if name in " ".join(process.cmdline())]


async def until(condition, seconds: float = SECONDS):
    stop = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < stop
        await asyncio.sleep(0.05)
    return value


def published(store: FolderStore) -> set[str]:
    return {listing.id for listing in store.listings()}


def test_a_picture_is_drawn_with_a_finetune(settings, finetune_id):
    async def draw(engine: Engine) -> list[Job]:
        jobs = [await engine.submit(drawing(finetune_id, seed=seed)) for seed in (1, 2)]
        return [await engine.wait(job.id, SECONDS) for job in jobs]

    first, second = run(settings, draw)
    for job in (first, second):
        assert job.state is State.SUCCEEDED and job.metrics["sampling_seconds"] > 0
        assert Image.open(job.output["file"]).format == "PNG"
    assert first.output["seed"] == 1 and first.output["file"] != second.output["file"]


def test_a_users_error_is_a_sentence_and_is_not_tried_again(settings, finetune_id, store):
    before = published(store)

    async def fail(engine: Engine) -> list[Job]:
        wrong = [training(input_images="/nowhere.zip"), training(mode="none"), drawing(finetune_id[:-4] + "0000")]
        wrong.append(drawing(finetune_id, colour="red"))
        return [await engine.wait((await engine.submit(job)).id, SECONDS) for job in wrong]

    failed = run(settings, fail)
    assert [job.state for job in failed] == [State.FAILED] * 4
    for job, name in zip(failed, ("input_images", "mode", "finetune_id", "colour"), strict=True):
        assert job.error.startswith(f"{name}: "), job.error
    assert published(store) == before


def test_a_killed_replica_costs_no_picture(settings, finetune_id):
    async def draw(engine: Engine) -> list[Job]:
        jobs = [await engine.submit(drawing(finetune_id, steps=50, seed=seed)) for seed in range(4)]
        await until(lambda: engine.records.job(jobs[0].id).state is State.RUNNING)
        (replica,) = processes("ray::ServeReplica:drawing")
        replica.kill()
        return [await engine.wait(job.id, SECONDS) for job in jobs]

    ended = run(settings, draw)
    assert [job.state for job in ended] == [State.SUCCEEDED] * 4, ended
    assert all(Path(job.output["file"]).is_file() for job in ended)


def test_a_picture_that_kills_whatever_draws_it_ends(settings, finetune_id):
    async def draw(engine: Engine) -> tuple[Job, Job]:
        job = await engine.submit(drawing(finetune_id, steps=50, aspect_ratio="21:9"))
        folder, seen = settings.results_folder / job.id, set()
        for _ in range(TRIES):
            await until(lambda: folder.exists() and folder.stat().st_mtime_ns not in seen)  # each try makes it anew
            seen.add(folder.stat().st_mtime_ns)
            for replica in processes("ray::ServeReplica:drawing"):
                replica.kill()
        ended = await engine.wait(job.id, SECONDS)
        assert not engine.lost.is_set()
        after = await engine.submit(drawing(finetune_id))
        return ended, await engine.wait(after.id, SECONDS)

    ended, after = run(settings, draw)
    assert ended.state is State.FAILED and "through no fault of the request" in ended.error
    assert after.state is State.SUCCEEDED


def test_a_training_whose_worker_is_killed_makes_one_finetune(settings, finetune_id, store):
    before = published(store)

    async def train(engine: Engine) -> Job:
        job = await engine.submit(training(training_steps=60))
        await until(lambda: engine.records.job(job.id).progress)
        (worker,) = processes("ray::training")
        worker.kill()
        return await engine.wait(job.id, SECONDS)

    job = run(settings, train)
    assert job.state is State.SUCCEEDED, job
    assert job.logs.count("Phase archive") == 2  # it ran twice
    assert published(store) - before == {job.finetune_id}


def test_cancelled_jobs_make_nothing(settings, finetune_id, store):
    before = published(store)

    async def cancel(engine: Engine) -> tuple[list[Job], Job]:
        runs = await engine.submit(training(training_steps=LONG))
        waits = await engine.submit(training())
        await until(lambda: engine.records.job(runs.id).progress)
        canceled = [await engine.cancel("ann", job.id) for job in (waits, runs)]
        assert await engine.cancel("bob", runs.id) is None
        after = await engine.submit(training("bob"))  # starts when the cancelled one has let go
        ended = await engine.wait(after.id, SECONDS)
        await until(lambda: not list(settings.trainings_folder.glob("*")))
        return canceled, ended

    canceled, after = run(settings, cancel)
    assert [job.state for job in canceled] == [State.CANCELED] * 2
    assert after.state is State.SUCCEEDED
    assert published(store) - before == {after.finetune_id}


def test_a_cancelled_picture_is_given_up(settings, finetune_id):
    async def cancel(engine: Engine) -> tuple[Job, Job]:
        slow = await engine.submit(drawing(finetune_id, steps=50, aspect_ratio="21:9"))
        await until(lambda: engine.records.job(slow.id).state is State.RUNNING)
        canceled = await engine.cancel("ann", slow.id)
        again = await engine.submit(drawing(finetune_id))
        return canceled, await engine.wait(again.id, SECONDS)

    canceled, again = run(settings, cancel)
    assert (canceled.state, again.state) == (State.CANCELED, State.SUCCEEDED)


def test_what_is_too_much_is_refused(settings, finetune_id):
    async def fill(engine: Engine) -> None:
        trainings = [await engine.submit(training("carl")) for _ in range(3)]
        with pytest.raises(QuotaExceeded):
            await engine.submit(training("carl"))
        for job in trainings:
            await engine.cancel("carl", job.id)
        engine.records.limits = replace(settings.limits, queue=0)
        with pytest.raises(QueueFull):
            await engine.submit(drawing(finetune_id, "carl"))

    run(settings, fill)


def test_a_deleted_finetune_is_gone(settings, finetune_id, store):
    async def delete(engine: Engine) -> None:
        job = await engine.submit(training())
        await engine.wait(job.id, SECONDS)
        assert not await engine.delete_finetune("bob", job.finetune_id)
        assert job.finetune_id in published(store)
        assert await engine.delete_finetune("ann", job.finetune_id)
        assert job.finetune_id not in published(store)
        assert await engine.health() is None

    run(settings, delete)


ENGINE = """
import asyncio, json, sys
import ray
from pathlib import Path
from fleet.engine import Engine
from fleet.records import Job
from fleet.settings import Settings
from fleet.tries import TRIES

async def main():
    engine = await Engine.open(Settings(folder=Path(sys.argv[1]), lease_seconds=2.0))
    for job in json.loads(sys.argv[2]):
        await engine.submit(Job(**job))
        print("accepted", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_jobs_of_a_killed_engine_go_on(settings, finetune_id, store):
    before = published(store)
    jobs = [training(training_steps=60), training(), drawing(finetune_id, steps=50), drawing(finetune_id, owner="bob")]
    said = [
        {name: getattr(job, name) for name in ("id", "owner", "kind", "api", "model", "inputs", "finetune_id")} for job in jobs
    ]
    address = ray.get_runtime_context().gcs_address
    engine = subprocess.Popen(
        [sys.executable, "-c", ENGINE, str(settings.folder), json.dumps(said)],
        stdout=subprocess.PIPE,
        env=os.environ | {"RAY_ADDRESS": address},
        cwd=Path(__file__).parent.parent.parent,
    )
    assert engine.stdout
    for _ in jobs:
        assert engine.stdout.readline() == b"accepted\n"
    records = Records(settings.records_url)
    asyncio.run(until(lambda: records.job(jobs[0].id).progress))
    engine.send_signal(signal.SIGKILL)
    engine.wait()

    async def go_on(next_engine: Engine) -> list[Job]:
        ended = [await next_engine.wait(job.id, SECONDS) for job in jobs]
        await until(lambda: not list(settings.trainings_folder.glob("*")))
        return ended

    ended = run(settings, go_on)
    assert [job.state for job in ended] == [State.SUCCEEDED] * 4, ended
    assert published(store) - before == {jobs[0].finetune_id, jobs[1].finetune_id}


def test_replicas_stay_until_a_setting_changes(settings, finetune_id, monkeypatch):
    async def draw(engine: Engine) -> tuple[Job, set[int]]:
        job = await engine.submit(drawing(finetune_id))
        return await engine.wait(job.id, SECONDS), {process.pid for process in processes("ray::ServeReplica:drawing")}

    _, first = run(settings, draw)
    _, again = run(settings, draw)
    assert first == again
    job, more = run(replace(settings, replicas=(1, 2)), draw)
    assert job.state is State.SUCCEEDED and more.isdisjoint(first)
    monkeypatch.setenv("BASE_MODEL", "klein-emoji")
    job, other = run(replace(settings, replicas=(1, 2)), draw)
    assert job.error and "this server runs klein-emoji" in job.error and other.isdisjoint(more)
