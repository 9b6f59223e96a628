"""The APIs as clients reach them: on a port of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import uvicorn
from local_engine import Idle, engine_of

from fleet.apis import build_app
from fleet.apis.front import Served
from fleet.engine import Engine
from fleet.keys import Keys, sha256
from fleet.records import Limits

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


@pytest.fixture(scope="session")
def start_api(tmp_path_factory) -> Iterator[Callable[..., Api]]:
    """Call it with what does the work, or nothing; the keys are Ann's and Bob's, unless others are named."""
    with ExitStack() as open_ones:

        def start(cluster=None, served: Served = EMOJI, keys: Keys | None = None, limits: Limits | None = None) -> Api:
            folder = tmp_path_factory.mktemp("shared")
            keys = keys if keys is not None else Keys({"ann": sha256(ANN), "bob": sha256(BOB)})
            engine = engine_of(cluster or Idle(), folder, limits)
            return Api(open_ones.enter_context(running(build_app(engine, served, keys))), engine, folder)

        yield start


@pytest.fixture
def api(start_api) -> Api:
    """In front of an engine whose jobs wait for the test."""
    return start_api()
