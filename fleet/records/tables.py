"""The tables, for SQLite and PostgreSQL alike."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import JSON, Boolean, Column, DateTime, Float, Index, MetaData, String, Table, Text, TypeDecorator


class Utc(TypeDecorator):
    """A time with its zone: SQLite keeps none, and gives back the time alone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect) -> datetime | None:
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect) -> datetime | None:
        return value and (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)


METADATA = MetaData()

JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("api", String(16), nullable=False),
    Column("model", Text, nullable=False),
    Column("inputs", JSON, nullable=False),
    Column("finetune_id", Text, nullable=False),
    Column("comment", Text, nullable=False),
    Column("webhook", JSON(none_as_null=True)),
    Column("state", String(16), nullable=False),
    Column("progress", Float, nullable=False),
    Column("logs", Text, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("output", JSON(none_as_null=True)),
    Column("error", Text),
    Column("moderated", Boolean, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("started_at", Utc),
    Column("completed_at", Utc),
)
Index("jobs_by_owner", JOBS.c.owner, JOBS.c.created_at)
# Partial: ended jobs are all but a few, and what is counted before each job is accepted is the few.
UNENDED = JOBS.c.state.in_(["queued", "running"])
Index("jobs_unended", JOBS.c.owner, JOBS.c.kind, sqlite_where=UNENDED, postgresql_where=UNENDED)
Index("jobs_by_end", JOBS.c.completed_at)
Index("jobs_by_finetune", JOBS.c.finetune_id, JOBS.c.kind)

FINETUNES = Table(
    "finetunes",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("job_id", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("inputs", JSON, nullable=False),
    Column("comment", Text, nullable=False),
    Column("created_at", Utc, nullable=False),
)
