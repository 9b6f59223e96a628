"""Starts the container's own servers on this machine, for the demo and the tests."""

from __future__ import annotations

import base64
import mimetypes
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import requests

PROJECT = Path(__file__).resolve().parent.parent


class Server:
    """One running server. Use it as a context manager; it is ready inside and stopped after."""

    def __init__(self, mode: str, log: Path, environment: dict[str, str]) -> None:
        self.mode = mode
        self.log = log
        self.environment = environment
        self.url = f"http://127.0.0.1:{free_port()}"
        self.endpoint = f"{self.url}/{'trainings' if mode == 'train' else 'predictions'}"

    def __enter__(self) -> Server:
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
