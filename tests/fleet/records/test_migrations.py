"""Databases of every age get the tables of this version, and lose nothing."""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import asdict
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, MetaData, Table, create_engine, insert, text

from fleet.records import Job, Kind, Records
from fleet.records.schema import FIRST, config_of
from fleet.records.tables import METADATA

PROJECT = Path(__file__).parents[3]
DEFINITIONS = {
    "sqlite": "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
    "postgresql": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
}
OPEN = """
import sys
from fleet.records import Records
print("here", flush=True)
sys.stdin.readline()
Records(sys.argv[1])
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request, tmp_path):
    """Makes an empty database at each call, and returns its address."""

    def make() -> str:
        name = f"d{uuid.uuid4().hex}"
        if request.param == "sqlite":
            return f"sqlite:///{tmp_path / name}"
        postgres = request.getfixturevalue("postgres")
        with engine(postgres.url).connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        return postgres.url.rpartition("/")[0] + f"/{name}"

    return make


def engine(url: str) -> Engine:
    return create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def indexes(url: str) -> set[str]:
    with (database := engine(url)).connect() as connection:
        return set(connection.scalars(text(DEFINITIONS[database.dialect.name])))


def test_a_new_database_gets_the_tables(new_database):
    """Whoever changes a table without a revision sees this fail: .venv/bin/python -m alembic revision makes one."""
    url, old = new_database(), new_database()
    Records(url).close()
    with engine(url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    METADATA.create_all(engine(old))
    assert indexes(url) == indexes(old)  # with their conditions, which are not compared above


def test_a_database_from_before_the_revisions_keeps_its_rows(new_database):
    url = new_database()
    job = Job("ann", Kind.TRAINING, "bfl", "flux-pro-trainer", {"trigger_word": "SKS"})
    with engine(url).begin() as connection:
        command.upgrade(config_of(connection), FIRST)
        connection.execute(text("DROP TABLE alembic_version"))
        jobs = Table("jobs", MetaData(), autoload_with=connection)
        connection.execute(insert(jobs).values({column.name: asdict(job)[column.name] for column in jobs.c}))
    assert Records(url).unended() == [job]
    assert Records(url).unended() == [job]


def test_several_processes_begin_at_once(new_database):
    url = new_database()
    program = [sys.executable, "-c", OPEN, url]
    started = [subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT) for _ in range(4)]
    for process in started:
        assert process.stdout and process.stdout.readline() == b"here\n"
    for process in started:
        assert process.stdin
        process.stdin.close()  # now
    assert [process.wait(60) for process in started] == [0] * 4


def test_a_database_of_a_newer_version_is_refused(new_database):
    url = new_database()
    Records(url).close()
    with engine(url).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ValueError, match="DATABASE_URL: a newer version of this program has changed the database"):
        Records(url)
