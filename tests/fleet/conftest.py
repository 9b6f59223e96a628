"""A database for each test of the records: of SQLite, and of a PostgreSQL that is started for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import INITDB, Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if INITDB is None:
        pytest.skip("no PostgreSQL is here: apt-get install postgresql")
    with Postgres() as server:
        yield server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'records' / 'fleet.sqlite3'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, sqlite_url) -> str:
    return sqlite_url if request.param == "sqlite" else request.getfixturevalue("postgres").url
