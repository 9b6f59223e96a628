"""What a fleet adds to a picture, how many it draws, and where they are best drawn: all against each other within one run."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.config import RequestRouterConfig

from benchmarks.predict import publish
from finetuner.bases import choose_base
from finetuner.generate import Generator
from finetuner.requests import ImageRequest
from finetuner.store import FolderStore
from fleet.cluster import ONGOING
from fleet.drawing import Drawing
from fleet.engine import Engine
from fleet.records import Job, Kind
from fleet.settings import Settings

STEPS = 4
PAIRS = 60  # of a picture of each kind, in turn
ROUNDS, PICTURES = 3, 20  # as many through the engine, all at once, and as many by the bare generator, in turn
FINETUNES, REPLICAS, REQUESTS = 20, 2, 150
CLIENTS = (2, 4)  # as many as replicas, so that none need wait; twice as many, so that all are busy
IN_MEMORY = 12  # finetunes that fit into a replica's cache: the whole is more than one holds, and less than both do
Draw = Callable[[], Awaitable[None]]  # one picture
POWER_OF_TWO = RequestRouterConfig()  # what the fleet has
BY_FINETUNE = RequestRouterConfig(
    request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",  # type: ignore[arg-type]
    request_router_kwargs={"num_fallback_replicas": sys.maxsize},  # all: a finetune that everyone wants is drawn by each
)


class Multiplexed(Drawing):
    """Tells Serve which finetunes it has in memory."""

    @serve.multiplexed(max_num_models_per_replica=IN_MEMORY)
    async def load(self, finetune_id: str) -> str:
        return finetune_id

    async def draw(self, inputs: dict, folder: str) -> dict:
        await self.load(serve.get_multiplexed_model_id())
        return await super().draw(inputs, folder)


@dataclass
class Way:
    """A way to choose the replica."""

    name: str
    kind: type[Drawing]
    router: RequestRouterConfig
    options: Callable[[str], dict]  # of the handle, by finetune


WAYS = [
    Way("the less busy of two", Drawing, POWER_OF_TWO, lambda _: {}),
    Way("multiplexing", Multiplexed, POWER_OF_TWO, lambda finetune_id: {"multiplexed_model_id": finetune_id}),
    Way("consistent hash", Drawing, BY_FINETUNE, lambda finetune_id: {"session_id": finetune_id}),
]


def run() -> str:
    """Measure on the base that BASE_MODEL chooses, a thread for each process. Returns a section in Markdown."""
    torch.set_num_threads(1)
    base = choose_base()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = FolderStore(folder / "finetunes")
        finetunes = [publish(store, base, seed) for seed in range(FINETUNES)]
        size = Generator(base, store).finetunes.get(finetunes[0]).adapter.nbytes
        os.environ |= {
            "FINETUNE_STORE": str(store.folder),
            "ADAPTER_CACHE_GB": str(IN_MEMORY * size / 1e9),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        ray.init(
            address="local", num_cpus=REPLICAS + 1, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20
        )
        try:
            added, ratios = asyncio.run(against_bare(Generator(base, store), folder, finetunes[0]))
            for app in serve.status().applications:
                serve.delete(app)  # the engine's replicas
            rows = [(clients, way, asyncio.run(route(way, clients, folder, finetunes))) for clients in CLIENTS for way in WAYS]
        finally:
            ray.shutdown()
    return "\n".join(
        [
            "## Fleet",
            "",
            f"A picture of {STEPS} steps through the engine, accepted on the disk and drawn by a replica, against the bare"
            f" `Generator` in one process, {PAIRS} of each in turn: the median is **{added[0]:.1f} ms** longer (target: 15 ms),"
            f" {added[1]:.2f} times {added[2]:.0f} ms.",
            "",
            f"Pictures in the same time, by the engine to the bare `Generator`, {ROUNDS} times {PICTURES} of each in turn; the"
            " engine is asked for all of them at once (in brackets the smallest and largest):",
            "",
            "| replicas | pictures, to the bare generator |",
            "|---|---|",
            *(
                f"| {replicas} | {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}) |"
                for replicas, found in ratios.items()
            ),
            "",
            f"{REQUESTS} requests over {FINETUNES} finetunes on {REPLICAS} replicas, each with room for {IN_MEMORY} in memory,"
            " by the number of clients and by the way in which Serve chooses the replica:",
            "",
            "| clients | way | finetune in memory | median | 95th percentile | all, to the first row |",
            "|---|---|---|---|---|---|",
            *(
                f"| {clients} | {way.name} | {hits:.0%} | {median:.0f} ms | {late:.0f} ms | {whole / rows[0][2][3]:.2f} |"
                for clients, way, (hits, median, late, whole) in rows
            ),
            "",
        ]
    )


async def against_bare(
    generator: Generator, folder: Path, finetune_id: str
) -> tuple[tuple[float, float, float], dict[int, list[float]]]:
    """What `overhead` gives with one replica, and what `throughput` gives by the number of replicas."""
    inputs = {"prompt": "a fox, TOK style", "finetune_id": finetune_id, "steps": STEPS, "seed": 0}
    ratios = {}

    async def bare() -> None:
        generator.generate(ImageRequest(**inputs), folder)

    for replicas in (1, REPLICAS):
        engine = await Engine.open(Settings(folder=folder / "fleet", replicas=(replicas, replicas)))

        async def through_engine(engine: Engine = engine) -> None:
            job = await engine.submit(Job("ann", Kind.DRAWING, "cog", "", inputs, finetune_id))
            ended = await engine.wait(job.id, 60)
            assert ended and ended.output, ended

        for _ in range(5):
            await together(through_engine, replicas)
            await bare()
        if replicas == 1:
            added = await overhead(through_engine, bare)
        ratios[replicas] = [await throughput(through_engine, bare) for _ in range(ROUNDS)]
        await engine.close()
    return added, ratios


async def overhead(through_engine: Draw, bare: Draw) -> tuple[float, float, float]:
    """Milliseconds that the engine adds at the median, its ratio to the bare generator, and what that takes."""
    times: dict[Draw, list[float]] = {through_engine: [], bare: []}
    for _ in range(PAIRS):
        for draw in (through_engine, bare):
            times[draw].append(await timed(draw()))
    ours, theirs = (1000 * statistics.median(times[draw]) for draw in (through_engine, bare))
    return ours - theirs, ours / theirs, theirs


async def throughput(through_engine: Draw, bare: Draw) -> float:
    """Pictures through the engine in the time in which the bare generator draws one."""

    async def one_by_one() -> None:
        for _ in range(PICTURES):
            await bare()

    ours = await timed(together(through_engine, PICTURES))
    return await timed(one_by_one()) / ours


async def together(draw: Draw, count: int) -> None:
    await asyncio.gather(*(draw() for _ in range(count)))


async def timed(work: Awaitable[None]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


async def route(way: Way, clients: int, folder: Path, finetunes: list[str]) -> tuple[float, float, float, float]:
    """Share of hits, median and 95th percentile of the milliseconds of a request, seconds of all."""
    deployment: Any = serve.deployment(way.kind)
    options = {"num_replicas": REPLICAS, "ray_actor_options": {"num_cpus": 1}, "max_ongoing_requests": ONGOING}
    app = deployment.options(request_router_config=way.router, **options).bind()
    handle = await asyncio.to_thread(lambda: serve.run(app, name="measured", route_prefix=None))
    chosen = random.Random(0).choices(finetunes, k=REQUESTS)
    waiting, hits, times = iter(chosen), [], []
    numbers = itertools.count()

    async def client() -> None:
        for finetune_id in waiting:
            inputs = {"prompt": "a fox, TOK style", "finetune_id": finetune_id, "steps": STEPS, "seed": 0}
            started = time.perf_counter()
            done = await handle.options(**way.options(finetune_id)).draw.remote(inputs, str(folder / f"r{next(numbers)}"))
            times.append(1000 * (time.perf_counter() - started))
            hits.append(done["metrics"]["adapter_cache_hit"])

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    whole = time.perf_counter() - started
    await asyncio.to_thread(serve.delete, "measured")
    return statistics.mean(hits), statistics.median(times), statistics.quantiles(times, n=20)[-1], whole
