"""``script/fleet`` as it is started for people: old clients' code, many of them at once, and everything that can be killed."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import replicate
import torch
from helpers import EXAMPLES, publish
from local_server import data_uri
from PIL import Image
from running_fleet import Fleet

from finetuner.bases import Base, block_linears
from finetuner.bases.base import WEIGHTS
from finetuner.store import FolderStore
from fleet.records import Job, Kind, Records, State

KEYS = {"ann": "ann-has-a-long-key-0001", "bob": "bob-has-a-long-key-0002"}
FINETUNES = 20
TRAINING = {"mode": "style", "trigger_word": "LINEICON", "priority": "speed", "finetune_type": "lora", "lora_rank": 16}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet"), KEYS) as fleet:
        yield fleet


def test_the_old_clients_code_trains_and_draws(fleet):
    """The README's example."""
    client = replicate.Client(KEYS["ann"], base_url=fleet.url)
    with (EXAMPLES / "line-icons.zip").open("rb") as archive:
        finetune_id = client.run(
            "black-forest-labs/flux-pro-trainer", input={"input_images": archive, "training_steps": 3, **TRAINING}
        )
    asked = {"prompt": "an owl, LINEICON style", "finetune_id": finetune_id, "steps": 2}
    image = client.run("black-forest-labs/flux-pro-finetuned", input=asked)
    assert Image.open(io.BytesIO(image.read())).size == (64, 64)


def owned(fleet: Fleet, owner: str, count: int) -> list[str]:
    """Finetunes of random weights that the owner has, as far as the records know."""
    base, records = Base.open(WEIGHTS / "flux-emoji"), Records(f"sqlite:///{fleet.folder / 'fleet' / 'records.sqlite3'}")
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(count):
        weights = {}
        for name, linear in list(block_linears(base.meta_transformer()).items())[:2]:
            weights[f"{name}.lora_A.weight"] = torch.randn(4, linear.in_features, generator=generator)
            weights[f"{name}.lora_B.weight"] = torch.randn(linear.out_features, 4, generator=generator) / 100
        job = Job(owner, Kind.TRAINING, "cog", "training", {}, publish(FolderStore(fleet.store), base, weights, 4))
        records.accept(job)
        records.change(job.id, state=State.SUCCEEDED, output={"finetune_id": job.finetune_id})
        found.append(job.finetune_id)
    records.close()
    return found


def test_fifty_clients_at_once_are_served_in_turn(fleet):
    """Ann's 45 send 225 requests, Bob's 5 send 25: whoever asks for little does not wait behind whoever asks for much."""
    finetunes = {owner: owned(fleet, owner, FINETUNES // 2) for owner in KEYS}

    def draw(owner: str, number: int) -> tuple[str, str, float]:
        started = time.monotonic()
        asked = {"prompt": "a fox", "finetune_id": finetunes[owner][number % len(finetunes[owner])], "steps": 1, "seed": number}
        answer = fleet.ask("POST", "/predictions", owner, json={"input": asked}).json()
        return owner, answer.get("status", str(answer)), time.monotonic() - started

    with ThreadPoolExecutor(45) as anns, ThreadPoolExecutor(5) as bobs:
        waiting = [anns.submit(draw, "ann", n) for n in range(225)] + [bobs.submit(draw, "bob", n) for n in range(25)]
        answers = [each.result() for each in waiting]
    assert {status for _, status, _ in answers} == {"succeeded"}
    waited = {owner: statistics.median(seconds for who, _, seconds in answers if who == owner) for owner in KEYS}
    assert waited["bob"] < waited["ann"] / 2, waited


def until(condition: Callable[[], object], seconds: float = 600) -> None:
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop
        time.sleep(0.2)


def test_every_accepted_job_ends_once_whatever_is_killed(tmp_path, postgres):
    """20 jobs, during which a replica, a training, the APIs, the database and at last everything are killed."""
    fleet = Fleet(tmp_path, KEYS, DATABASE_URL=postgres.url, TRAININGS_PER_KEY="20")
    archive = data_uri(EXAMPLES / "line-icons.zip")
    with fleet:
        finetune_id = _trained(fleet, archive, steps=3)
        jobs = {}
        for n in range(20):
            kind = "trainings" if n % 7 == 0 else "predictions"
            inputs = {"prompt": "a fox", "finetune_id": finetune_id, "steps": 30, "seed": n}
            if kind == "trainings":
                inputs = _inputs(archive, steps=20 + n)
            answer = fleet.ask("POST", f"/{kind}", "ann", json={"input": inputs}, headers={"Prefer": "respond-async"})
            jobs[answer.json()["id"]] = kind
        seen: dict[str, set[str]] = {id: set() for id in jobs}

        def ask(id: str) -> None:
            """Note what the job was said to have come to, where it is over."""
            answer = fleet.ask("GET", f"/{jobs[id]}/{id}", "ann")
            if answer.status_code == 200 and answer.json()["status"] in ("succeeded", "failed", "canceled"):
                told = answer.json()
                seen[id].add(f"{told['status']} {told['error']} {told['output'] if jobs[id] == 'trainings' else ''}")

        def ended(count: int) -> Callable[[], bool]:
            def look() -> bool:
                for id in jobs:
                    if not seen[id]:
                        ask(id)
                return sum(map(bool, seen.values())) >= count

            return look

        for count, name in ((1, "ray::ServeReplica:drawing"), (3, "ray::training"), (6, "-m fleet")):
            until(ended(count))
            until(lambda name=name: fleet.processes(name))
            for process in fleet.processes(name):
                process.kill()
        until(fleet.is_ready)
        until(ended(9))
        postgres.stop("immediate")
        postgres.start()
        until(ended(12))
        fleet.kill()
        postgres.stop("immediate")
        postgres.start()
        fleet.start()
        until(ended(20))
        for id in jobs:  # again: what was told before the kills is still so
            ask(id)
    assert [said for found in seen.values() for said in found if not said.startswith("succeeded")] == []
    assert all(len(found) == 1 for found in seen.values()), seen
    made = {said.split()[-1] for id, found in seen.items() if jobs[id] == "trainings" for said in found}
    assert len(made) == 3 and {listing.id for listing in FolderStore(fleet.store).listings()} == made | {finetune_id}


def _inputs(archive: str, steps: int) -> dict:
    return {"input_images": archive, "training_steps": steps, **TRAINING}


def _trained(fleet: Fleet, archive: str, steps: int) -> str:
    answer = fleet.ask("POST", "/trainings", "ann", json={"input": _inputs(archive, steps)}).json()
    assert answer["status"] == "succeeded", answer
    return answer["output"]
