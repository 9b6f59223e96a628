"""A PostgreSQL of the test's own, from Debian's package or wherever its programs are on the PATH."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # Debian keeps them off the PATH
INITDB = shutil.which("initdb", path=os.pathsep.join([os.environ["PATH"], *map(str, PLACES)]))


class Postgres:
    """Started as a context manager; stopped, and its data thrown away, at the end."""

    def __enter__(self) -> Postgres:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))  # its user cannot enter pytest's folders
        self.user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        if self.user:
            shutil.chown(self.folder, self.user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://fleet@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "--auth=trust", "--username=fleet", "--no-sync", "-D", str(self.folder / "data"))
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        self._run("pg_ctl", "-w", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, how: str = "fast") -> None:
        """``fast`` closes every connection; ``immediate`` is a kill."""
        self._run("pg_ctl", "-w", "-D", str(self.folder / "data"), "-m", how, "stop")

    def _run(self, program: str, *arguments: str) -> None:
        assert INITDB
        command = [str(Path(INITDB).resolve().parent / program), *arguments]
        subprocess.run(command, user=self.user, cwd="/tmp", check=True, stdout=subprocess.DEVNULL)
