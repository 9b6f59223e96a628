"""What a store of finetunes does, whatever holds the files: finetune_id -> files, published whole or not at all."""

from __future__ import annotations

import string
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetuner.store.files import seal

# What stands around an id that was copied, or read from a file: white space, quotation marks, brackets, a byte order mark.
AROUND_IDS = string.whitespace + "\u00a0\u2028\u2029\u3000\u200b\ufeff" + "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb{}()<>[],;"


class StoreError(RuntimeError):
    """The store cannot be reached, is full, or refuses: nothing is wrong with what was asked for."""


@dataclass(frozen=True)
class Finetune:
    """A published finetune, its weights on this machine's disk."""

    id: str
    folder: Path
    manifest: dict
    hold: Any = field(default=None, repr=False, compare=False)  # while it lives, no cache evicts the folder

    @property
    def trigger_word(self) -> str:
        return self.manifest["inputs"]["trigger_word"]

    @property
    def mode(self) -> str:
        """That of the training; an imported LoRA, of which nobody said, counts as "general"."""
        return self.manifest["inputs"].get("mode", "general")

    @property
    def base(self) -> dict:
        return self.manifest["base"]


@dataclass(frozen=True)
class Listing:
    """What a list says of a finetune."""

    id: str
    created: str  # ISO 8601, UTC
    base: str
    trigger_word: str

    @classmethod
    def of(cls, manifest: dict) -> Listing:
        return cls(manifest["id"], manifest["created"], manifest["base"]["name"], manifest["inputs"]["trigger_word"])


class Store(ABC):
    """Finetunes by their id. Several processes, on several machines, may use one store at once.

    Every method raises `StoreError` where the store itself fails.
    """

    def publish(self, staged: Path, manifest: dict) -> Finetune:
        """Publish what lies in ``staged`` under a new random id. Where that fails, ``staged`` is sealed: `put` it later."""
        seal(staged, manifest)
        return self.put(staged)

    @abstractmethod
    def put(self, sealed: Path) -> Finetune:
        """Publish a sealed folder, whole or not at all; again and again, if need be, to the same end.

        The finetune that is returned lies where it lay, or in the store.
        """

    @abstractmethod
    def fetch(self, finetune_id: str) -> Finetune:
        """Open a finetune: its manifest and weights, checked.

        Raises:
            ValueError: the id is not one that a training returns, there is no such finetune, or a file of it is damaged.
        """

    @abstractmethod
    def manifest(self, finetune_id: str) -> dict:
        """What a finetune's manifest says; raises ValueError as `fetch` does."""

    @abstractmethod
    def listings(self) -> list[Listing]:
        """Every published finetune, the newest first."""

    @abstractmethod
    def delete(self, finetune_id: str) -> None:
        """Take a finetune out, at once for whoever comes next; raises ValueError as `fetch` does."""

    @abstractmethod
    def check(self) -> None:
        """Fail now where publishing would fail: a training may take hours before it gets there."""


def checked_id(finetune_id: str) -> str:
    """The id in the form that names files: without what files, shells, `jq` and UUID libraries put around it.

    Raises:
        ValueError: it is none; before it touches a path.
    """
    bare = finetune_id.strip(AROUND_IDS).lower().removeprefix("urn:uuid:").strip(AROUND_IDS)
    try:
        if str(uuid.UUID(bare)) == bare:
            return bare
    except ValueError:
        pass
    raise ValueError(
        f"finetune_id: {finetune_id[:80]!r} is not an id. Send the id that the training returned, such as"
        " 8f14e45f-ceea-467f-a8f0-1d0a1a3f1c2b."
    )


def unknown_finetune(finetune_id: str) -> ValueError:
    return ValueError(f"finetune_id: there is no finetune {finetune_id} in this server's store. Is it another server's?")


def damaged_finetune(finetune_id: str, name: str) -> ValueError:
    return ValueError(f"finetune_id: {name} of {finetune_id} is missing or damaged. Train it again or restore the file.")


def newest_first(listings: Iterable[Listing]) -> list[Listing]:
    return sorted(listings, key=lambda listing: listing.created, reverse=True)
