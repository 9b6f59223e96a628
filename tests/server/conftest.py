"""The container's own servers, started with script/serve. Tests here talk to them over HTTP, as clients do."""

import base64
import mimetypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from finetuner.base import EMBEDDED

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent


class Server:
    """One running server. Use it as a context manager; it is ready inside and stopped after."""

    def __init__(self, mode: str, log: Path, environment: dict[str, str]) -> None:
        self.mode = mode
        self.log = log
        self.environment = environment
        self.url = f"http://127.0.0.1:{free_port()}"
        self.endpoint = f"{self.url}/{'trainings' if mode == 'train' else 'predictions'}"

    def __enter__(self) -> "Server":
        port = self.url.rpartition(":")[2]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [PROJECT / "script/serve", self.mode],
                env=os.environ | self.environment | {"HOST": "127.0.0.1", "PORT": port},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def wait_until_ready(self, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while (status := self.health()) != "READY":
            dead = self.process.poll() is not None or status in ("SETUP_FAILED", "DEFUNCT")
            if dead or time.monotonic() > deadline:
                raise RuntimeError(f"script/serve {self.mode} is {status}, not ready:\n{self.log.read_text()[-5000:]}")
            time.sleep(0.1)

    def health(self) -> str:
        try:
            return self.get("/health-check")["status"]
        except requests.ConnectionError:
            return "NOT_LISTENING"

    def get(self, path: str) -> dict:
        return requests.get(f"{self.url}{path}", timeout=10).json()

    def run(self, **inputs) -> requests.Response:
        """Send the inputs and wait for the answer. A Path is sent as the file's content."""
        body = {"input": {name: data_uri(value) if isinstance(value, Path) else value for name, value in inputs.items()}}
        # A server is still busy for a moment after it has answered.
        for _ in range(100):
            response = requests.post(self.endpoint, json=body, timeout=1800)
            if response.status_code != 409:
                break
            time.sleep(0.05)
        return response

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def data_uri(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


@pytest.fixture(scope="session")
def start_server(tmp_path_factory) -> Iterator[Callable[..., Server]]:
    """Call it with train, predict or trainer, and with environment variables; the server lives until the tests end."""
    store = tmp_path_factory.mktemp("store")
    with ExitStack() as running:

        def start(mode: str, **environment: str) -> Server:
            log = tmp_path_factory.mktemp(mode) / "server.log"
            defaults = {"BASE_MODEL": os.environ.get("BASE_MODEL", EMBEDDED), "FINETUNE_STORE": str(store)}
            return running.enter_context(Server(mode, log, defaults | environment))

        yield start


@pytest.fixture(scope="session")
def train_server(start_server) -> Server:
    return start_server("train")


@pytest.fixture(scope="session")
def predict_server(start_server) -> Server:
    return start_server("predict")


@pytest.fixture(scope="session")
def trainer_server(start_server) -> Server:
    return start_server("trainer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow tests of this folder after all others."""
    items.sort(key=lambda item: HERE in item.path.parents)
