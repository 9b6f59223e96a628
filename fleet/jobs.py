"""What the APIs ask of the machines behind them: jobs, their records, and an engine that does them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol


class Kind(StrEnum):
    TRAINING = "training"
    DRAWING = "drawing"


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_final(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELED)


class QueueFull(Exception):
    """As many jobs wait as may wait."""


class QuotaExceeded(Exception):
    """The owner has as many jobs at once as a key may have."""


@dataclass
class Job:
    """A training or a drawing that was asked for."""

    owner: str
    kind: Kind
    api: str  # replicate, bfl or cog
    model: str  # as the client named it
    inputs: dict[str, Any]  # the words of `finetuner.requests`; files as addresses, or as paths that every node reads
    finetune_id: str  # a training's is named when it is accepted; a drawing's is the one that it asks for
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    webhook: dict[str, Any] | None = None
    state: State = State.QUEUED
    progress: float = 0.0  # 0..1
    logs: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    output: dict[str, Any] | None = None  # of a drawing {"image": path, "seed": int}, of a training {"finetune_id": id}
    error: str | None = None
    moderated: bool = False
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    completed_at: datetime | None = None


class Records(Protocol):
    """Safe to call from several threads."""

    def get(self, owner: str, id: str) -> Job | None:
        """The owner's job; another's is None."""

    def find(self, id: str) -> Job | None:
        """Whoever's job it is: ids cannot be guessed."""

    def training_of(self, finetune_id: str) -> Job | None:
        """The job that makes, or made, a finetune."""

    def list(
        self, owner: str, *, kind: Kind | None = None, api: str | None = None, before: str | None = None, limit: int = 100
    ) -> list[Job]:
        """The newest first. ``before``: the id of the job that the page before ended with."""

    def change(self, id: str, **fields: Any) -> Job: ...

    def finetunes(self, owner: str) -> Iterable[str]:
        """Ids of the owner's finetunes that are published, the newest first."""

    def owner_of(self, finetune_id: str) -> str | None: ...

    def delete_finetune(self, owner: str, finetune_id: str) -> bool:
        """Take it out of the store and the records; False where the owner has none of this id."""

    def with_webhooks(self) -> Iterable[Job]:
        """Jobs whose webhook has not had its last call yet."""

    def files_in_use(self) -> Iterable[str]:
        """Paths that unfinished jobs name."""


class Engine(Protocol):
    records: Records

    async def submit(self, job: Job) -> Job:
        """Accept a job for good, and have it done; returns at once.

        Raises:
            QueueFull, QuotaExceeded: nothing was accepted.
        """

    async def wait(self, id: str, seconds: float) -> Job:
        """The job when it ends, or as it is when the time is over."""

    async def cancel(self, owner: str, id: str) -> Job | None: ...

    async def close(self) -> None: ...
