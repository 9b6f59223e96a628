"""The APIs as clients reach them: on a port of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
import uvicorn

from fleet.apis.front import Served
from fleet.engine import Engine

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
