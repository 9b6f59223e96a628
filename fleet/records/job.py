"""A job, as clients ask for it and as it ends."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum


class Kind(StrEnum):
    TRAINING = "training"
    DRAWING = "drawing"


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


FINAL = (State.SUCCEEDED, State.FAILED, State.CANCELED)


@dataclass
class Job:
    """One training or one picture.

    A training's ``finetune_id`` is named here, before anyone is told of the job: whatever is tried again publishes under it. A
    drawing's is the one that it asks for.
    """

    owner: str  # the key's name
    kind: Kind
    api: str  # whose words the client speaks: replicate, bfl or cog
    model: str  # as the client named it
    inputs: dict  # fields of FinetuneRequest or ImageRequest as JSON values; files as paths that every node reads, or addresses
    finetune_id: str = ""
    comment: str = ""  # what its owner wrote of a training
    webhook: dict | None = None  # url, events and what signs its calls; None where none is due any more
    id: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    state: State = State.QUEUED
    progress: float = 0.0  # 0 to 1
    logs: str = ""
    metrics: dict = field(default_factory=dict)
    output: dict | None = None
    error: str | None = None  # a sentence for the client
    moderated: bool = False
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    completed_at: datetime | None = None

    def __post_init__(self) -> None:
        if not self.finetune_id:
            if self.kind != Kind.TRAINING:
                raise ValueError("finetune_id: a drawing has to name the finetune that it is drawn with.")
            self.finetune_id = str(uuid.uuid4())

    @property
    def ended(self) -> bool:
        return self.state in FINAL


@dataclass(frozen=True)
class OwnedFinetune:
    """A finetune of the store, and whose it is. It stays when the record of its training expires."""

    id: str
    owner: str
    job_id: str
    model: str
    inputs: dict  # of its training
    comment: str
    created_at: datetime
