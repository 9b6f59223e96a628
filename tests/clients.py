"""The packages of npm that tests run as clients."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent / "fleet" / "clients"


def install_node_modules() -> None:
    """As the lock file says, once for a checkout; the test is skipped where there is no npm."""
    if shutil.which("npm") is None:
        pytest.skip("no npm is here: apt-get install npm")
    if not (CLIENTS / "node_modules" / ".package-lock.json").is_file():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=CLIENTS, check=True, capture_output=True)
