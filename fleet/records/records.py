"""Jobs and finetunes in a database, by SQLAlchemy."""

from __future__ import annotations

import builtins
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, delete, event, func, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from fleet.records.job import FINAL, Job, Kind, OwnedFinetune, State
from fleet.records.schema import migrate
from fleet.records.tables import FINETUNES, JOBS, UNENDED

log = logging.getLogger(__name__)

T = TypeVar("T")

WAITS = (0.1, 0.4, 1.0, 2.0, 4.0, 8.0)  # seconds before each new try: a database that restarts is back within them
# What a client may still ask for: a picture's record goes with the picture, a training is looked up for longer.
KEPT = {Kind.DRAWING: timedelta(days=1), Kind.TRAINING: timedelta(days=30)}
PORTION = 10_000  # jobs of a kind that are forgotten at once: SQLite takes 32,766 values in a query


class QueueFull(RuntimeError):
    """As many jobs as may wait are waiting already; come again later."""


class QuotaExceeded(RuntimeError):
    """The owner has as many unfinished jobs of this kind as a key may have."""


@dataclass(frozen=True)
class Limits:
    """How many jobs may be unfinished at once."""

    queue: int = 1000  # of everyone's
    trainings: int = 10  # of one key's
    drawings: int = 100

    def of_owner(self, kind: Kind) -> int:
        return self.trainings if kind == Kind.TRAINING else self.drawings


class Records:
    """What every method raises where the database stays away: SQLAlchemy's ``OperationalError``. Safe to use from any thread;
    one process at a time accepts jobs."""

    def __init__(self, url: str, limits: Limits | None = None):
        self.limits = limits or Limits()
        self._database = _open(url)
        self._accepting = Lock()
        self._patiently(migrate)

    def close(self) -> None:
        self._database.dispose()

    def accept(self, job: Job) -> Job:
        """Keep a job. When this returns it is on the database's disk. The same job again is accepted once.

        Raises:
            QueueFull, QuotaExceeded: nothing was kept.
        """

        def accepted(connection: Connection) -> Job:
            if connection.scalar(select(JOBS.c.id).where(JOBS.c.id == job.id)):
                return job  # kept by a try whose answer was lost
            unended = select(func.count()).select_from(JOBS).where(UNENDED)
            if connection.execute(unended).scalar_one() >= self.limits.queue:
                raise QueueFull(f"{self.limits.queue} jobs wait already, and no more are taken. Send the request again later.")
            own = unended.where(JOBS.c.owner == job.owner, JOBS.c.kind == job.kind)
            if connection.execute(own).scalar_one() >= (most := self.limits.of_owner(job.kind)):
                raise QuotaExceeded(
                    f"A key may have {most} unfinished {job.kind}s at once, and yours has. Wait for one to end, or cancel one."
                )
            connection.execute(insert(JOBS).values(asdict(job)))
            return job

        with self._accepting:
            return self._patiently(accepted)

    def get(self, owner: str, job_id: str) -> Job | None:
        """The owner's job; None where there is none, or it is another's."""
        job = self.job(job_id)
        return job if job and job.owner == owner else None

    def job(self, job_id: str) -> Job | None:
        """Anyone's job: for the engine."""
        found = self._jobs(select(JOBS).where(JOBS.c.id == job_id))
        return found[0] if found else None

    def training_of(self, finetune_id: str) -> Job | None:
        """Anyone's training that makes this finetune, or made it; None where there is none, or its record has expired."""
        found = self._jobs(select(JOBS).where(JOBS.c.finetune_id == finetune_id, JOBS.c.kind == Kind.TRAINING))
        return found[0] if found else None

    def with_webhook(self) -> builtins.list[Job]:
        """Everyone's jobs whose webhook is still due."""
        return self._jobs(select(JOBS).where(JOBS.c.webhook.is_not(None)))

    def webhook_done(self, job_id: str) -> None:
        """Its last call has been made: it is not due any more."""
        query = update(JOBS).where(JOBS.c.id == job_id).values(webhook=None)
        self._patiently(lambda connection: connection.execute(query))

    def list(
        self, owner: str, kind: Kind | None = None, api: str | None = None, before: str | None = None, limit: int = 100
    ) -> list[Job]:
        """The owner's jobs, the newest first; ``before``: the id of the job where the page before ended."""
        query = select(JOBS).where(JOBS.c.owner == owner).order_by(JOBS.c.created_at.desc(), JOBS.c.id.desc()).limit(limit)
        if kind:
            query = query.where(JOBS.c.kind == kind)
        if api:
            query = query.where(JOBS.c.api == api)
        if before:
            last = self.get(owner, before)
            if last is None:
                return []
            earlier, alike = JOBS.c.created_at < last.created_at, JOBS.c.created_at == last.created_at
            query = query.where(earlier | (alike & (JOBS.c.id < last.id)))
        return self._jobs(query)

    def newer(self, owner: str, job_id: str, places: int, api: str) -> str | None:
        """The id of the owner's job so many places before this one in such a list; None where there are fewer."""
        job = self.get(owner, job_id)
        if job is None:
            return None
        later, alike = JOBS.c.created_at > job.created_at, JOBS.c.created_at == job.created_at
        query = select(JOBS.c.id).where(JOBS.c.owner == owner, JOBS.c.api == api, later | (alike & (JOBS.c.id > job_id)))
        query = query.order_by(JOBS.c.created_at, JOBS.c.id).offset(places - 1).limit(1)
        return self._patiently(lambda connection: connection.scalar(query))

    def unended(self) -> builtins.list[Job]:
        """Everyone's, the oldest first: what a new engine goes on with, and whose files are in use."""
        return self._jobs(select(JOBS).where(UNENDED).order_by(JOBS.c.created_at, JOBS.c.id))

    def change(self, job_id: str, **changes: Any) -> bool:
        """Note what became of a job. Whether it was noted: a job that has ended is changed no more.

        A training that succeeds gives its owner the finetune in the same transaction.
        """
        if changes.get("state") in FINAL:
            changes.setdefault("completed_at", datetime.now(UTC))

        def changed(connection: Connection) -> bool:
            query = update(JOBS).where(JOBS.c.id == job_id, UNENDED).values(**changes)
            if not connection.execute(query).rowcount:
                return False
            if changes.get("state") == State.SUCCEEDED:
                job = connection.execute(select(JOBS).where(JOBS.c.id == job_id)).one()
                if job.kind == Kind.TRAINING:
                    owned = OwnedFinetune(
                        job.finetune_id, job.owner, job.id, job.model, job.inputs, job.comment, job.completed_at
                    )
                    connection.execute(insert(FINETUNES).values(asdict(owned)))
            return True

        return self._patiently(changed)

    def expire(self, now: datetime) -> builtins.list[Job]:
        """Forget jobs that ended long ago. Returns them: the files of their results are nobody's any more."""
        expired: builtins.list[Job] = []
        for kind, kept in KEPT.items():
            old = (JOBS.c.kind == kind) & JOBS.c.state.in_(FINAL) & (JOBS.c.completed_at < now - kept)
            expired += self._jobs(select(JOBS).where(old).limit(PORTION))
        query = delete(JOBS).where(JOBS.c.id.in_([job.id for job in expired]))
        self._patiently(lambda connection: connection.execute(query))
        return expired

    def finetunes(self, owner: str) -> builtins.list[OwnedFinetune]:
        """The owner's finetunes, the newest first."""
        query = select(FINETUNES).where(FINETUNES.c.owner == owner).order_by(FINETUNES.c.created_at.desc())
        rows = self._patiently(lambda connection: connection.execute(query).all())
        return [OwnedFinetune(**row._mapping) for row in rows]

    def owner_of(self, finetune_id: str) -> str | None:
        query = select(FINETUNES.c.owner).where(FINETUNES.c.id == finetune_id)
        return self._patiently(lambda connection: connection.scalar(query))

    def delete_finetune(self, owner: str, finetune_id: str) -> bool:
        """Take the finetune from its owner; its files are the store's. Whether there was one."""
        query = delete(FINETUNES).where(FINETUNES.c.id == finetune_id, FINETUNES.c.owner == owner)
        return self._patiently(lambda connection: bool(connection.execute(query).rowcount))

    def _jobs(self, query) -> builtins.list[Job]:
        rows = self._patiently(lambda connection: connection.execute(query).all())
        return [_job(row._mapping) for row in rows]

    def _patiently(self, transaction: Callable[[Connection], T]) -> T:
        """Run the transaction; where the connection is lost, again after each of WAITS."""
        for wait in WAITS:
            try:
                with self._database.begin() as connection:
                    return transaction(connection)
            except IntegrityError:
                raise
            except DBAPIError as error:
                if not (isinstance(error, OperationalError) or error.connection_invalidated):
                    raise
                log.warning("The database cannot be reached: %s. Trying again in %g s", error.orig, wait)
            time.sleep(wait)
        with self._database.begin() as connection:
            return transaction(connection)


def _open(said: str) -> Engine:
    """The database of an URL. PostgreSQL's own spelling, postgresql://, is taken for the client that is here.

    Raises:
        ValueError: it is neither SQLite nor PostgreSQL.
    """
    url = make_url(said)
    if url.get_backend_name() in ("postgresql", "postgres"):
        # Ours is the only load: a few connections are enough, and one that the server closed is found out before its use.
        return create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    if url.get_backend_name() != "sqlite":
        raise ValueError(f"DATABASE_URL: {url.get_backend_name()} is neither sqlite nor postgresql.")
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    database = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(database, "connect")
    def prepare(connection, _) -> None:
        connection.isolation_level = None  # BEGIN is ours: Python's own comes late, and lets two readers both turn writers
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # in WAL mode, NORMAL loses the last commits with the power

    @event.listens_for(database, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return database


def _job(row) -> Job:
    values = {field.name: row[field.name] for field in fields(Job)}
    return Job(**values | {"kind": Kind(row["kind"]), "state": State(row["state"])})
