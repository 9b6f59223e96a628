"""The APIs as clients reach them: on a port of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import requests
import uvicorn
from PIL import Image

from fleet.apis.front import Served
from fleet.engine import Engine
from fleet.records import Job, Kind, State

ANN, BOB = "ann-has-a-long-key-0001", "bob-has-a-long-key-0002"
EMOJI = Served("flux-emoji", guidance_is_documented=True)


@dataclass
class Api:
    url: str
    engine: Engine
    folder: Path
    key: str = ANN

    def ask(self, method: str, path: str, key: str | None = ANN, **arguments) -> requests.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        headers |= arguments.pop("headers", {})
        return requests.request(method, self.url + path, headers=headers, timeout=60, **arguments)

    def get(self, path: str, key: str | None = ANN, **arguments) -> requests.Response:
        return self.ask("GET", path, key, **arguments)

    def post(self, path: str, json: dict | None = None, key: str | None = ANN, **arguments) -> requests.Response:
        return self.ask("POST", path, key, json=json, **arguments)


@contextmanager
def running(app) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def own_a_finetune(api: Api, owner: str = "ann", **inputs) -> str:
    """A finetune that the owner has trained, as far as the records know."""
    asked = {"trigger_word": "TOK", "mode": "style", "training_steps": 300, "priority": "quality", "captioning": "automatic"}
    asked |= {"finetune_type": "full", "lora_rank": 32, **inputs}
    job = api.engine.records.accept(Job(owner, Kind.TRAINING, "bfl", "finetune", asked, comment="mine"))
    api.engine.records.change(job.id, state=State.SUCCEEDED, output={"finetune_id": job.finetune_id})
    return job.finetune_id


def job_of(api: Api, id: str) -> Job:
    job = api.engine.records.job(id)
    assert job is not None
    return job


def drawn(api: Api, id: str, **changes) -> Path:
    """Let a drawing have ended with a picture."""
    picture = api.folder / f"{id}.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    values = {"state": State.SUCCEEDED, "output": {"file": str(picture), "seed": 3}, "started_at": datetime.now(UTC)}
    wait_for(lambda: job_of(api, id).state is State.RUNNING)
    api.engine.records.change(id, **values | changes)
    return picture


def wait_for(seen: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.02)
