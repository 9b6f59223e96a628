"""A database's tables, brought up to date by the revisions in migrations/, with Alembic."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

FIRST = "0001"  # the tables of databases from before there were revisions
LOCK = 8126372940  # any number that no other program takes in the same database


def migrate(connection: Connection) -> None:
    """Give the database the tables of this version, in the connection's transaction. What is in them stays.

    Raises:
        ValueError: a newer version has been at work in the database.
    """
    if connection.dialect.name == "postgresql":  # two may start at once; of SQLite's transactions one writes at a time anyway
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    config = config_of(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision not in {None, *known}:
        raise ValueError(f"DATABASE_URL: a newer version of this program has changed the database ({revision}). Start that.")
    if revision is None and inspect(connection).has_table("jobs"):
        command.stamp(config, FIRST)
    command.upgrade(config, "head")


def config_of(connection: Connection) -> Config:
    """What Alembic's commands ask for, to work in this connection's transaction."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "fleet.records:migrations")
    return config
