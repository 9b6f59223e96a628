"""The whole fleet as its operator starts it, in processes that a test may kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import requests
from local_server import PROJECT, free_port

READY_SECONDS = 240  # a machine whose cores have other work starts slowly


class Fleet:
    """``script/fleet`` with its records and results in ``folder``. Started and stopped as a context manager, or by hand."""

    def __init__(self, folder: Path, keys: dict[str, str], **environment: str):
        self.folder, self.keys = folder, keys
        self.url = f"http://127.0.0.1:{free_port()}"
        self.store = folder / "finetunes"
        self.environment = environment | {
            "PORT": self.url.rpartition(":")[2],
            "METRICS_PORT": str(free_port()),
            "API_KEYS": ",".join(f"{name}:{key}" for name, key in keys.items()),
            "FLEET_FOLDER": str(folder / "fleet"),
            "FINETUNE_STORE": str(self.store),
            "BASE_MODEL": "flux-emoji",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Fleet:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.script.send_signal(signal.SIGTERM)
        try:
            self.script.wait(60)
        finally:
            self.kill()

    def start(self) -> None:
        # Ray's sockets lie there, and their paths may have 107 bytes.
        self.short = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        with (self.folder / "fleet.log").open("ab") as log:
            self.script = subprocess.Popen(
                [PROJECT / "script/fleet"],
                env=os.environ | self.environment | {"RAY_TMPDIR": str(self.short)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        stop = time.monotonic() + READY_SECONDS
        while not self.is_ready():
            assert self.script.poll() is None and time.monotonic() < stop, (self.folder / "fleet.log").read_text()[-5000:]
            time.sleep(0.2)

    def is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/healthz", timeout=30).status_code == 200
        except requests.RequestException:
            return False

    def processes(self, name: str = "") -> list[psutil.Process]:
        """All of them, or those whose command line has ``name``."""
        found = []
        for process in psutil.Process(self.script.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self) -> None:
        """Every process at once, as a machine loses its power."""
        found = self.processes() if self.script.poll() is None else []
        self.script.kill()
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.script.wait()
        shutil.rmtree(self.short, ignore_errors=True)

    def ask(self, method: str, path: str, owner: str, **arguments) -> requests.Response:
        """As a client that tries again where nobody listens for a moment."""
        headers = {"Authorization": f"Bearer {self.keys[owner]}"} | arguments.pop("headers", {})
        stop = time.monotonic() + READY_SECONDS
        while True:
            try:
                return requests.request(method, self.url + path, headers=headers, timeout=READY_SECONDS, **arguments)
            except requests.ConnectionError:
                assert method == "GET" and time.monotonic() < stop
                time.sleep(0.2)
