"""finetune_id -> files. A finetune is published whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetuner.paths import ROOT
from finetuner.store_files import MANIFEST, Checker, needed, parse_manifest, seal, sealed_manifest, sync, sync_tree

STAGING = ".staging-"


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
    def base(self) -> dict:
        return self.manifest["base"]


@dataclass(frozen=True)
class Summary:
    """What a list says of a finetune."""

    id: str
    created: str  # ISO 8601, UTC
    base: str
    trigger_word: str

    @classmethod
    def of(cls, manifest: dict) -> Summary:
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
    def summaries(self) -> list[Summary]:
        """Every published finetune, the newest first."""

    @abstractmethod
    def delete(self, finetune_id: str) -> None:
        """Take a finetune out, at once for whoever comes next; raises ValueError as `fetch` does."""

    @abstractmethod
    def check(self) -> None:
        """Fail now where publishing would fail: a training may take hours before it gets there."""


class FolderStore(Store):
    """Finetunes in a folder, each in one of its own, named by its id."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._checker = Checker()

    def put(self, sealed: Path) -> Finetune:
        manifest = sealed_manifest(sealed)
        home, staged = self.folder / manifest["id"], self.folder / f"{STAGING}{manifest['id']}"
        with self._sentence("written"):
            if not home.exists():
                shutil.rmtree(staged, ignore_errors=True)  # of a killed run
                try:
                    for name in [*manifest["sha256"], MANIFEST]:
                        (staged / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(sealed / name, staged / name)
                    sync_tree(staged)
                    staged.rename(home)
                    sync(self.folder)
                finally:
                    shutil.rmtree(staged, ignore_errors=True)
        return Finetune(manifest["id"], home, manifest)

    def fetch(self, finetune_id: str) -> Finetune:
        manifest = self.manifest(finetune_id)
        folder = self.folder / manifest["id"]
        with self._sentence("read"):
            for name, digest in needed(manifest).items():
                if not self._checker.is_whole(folder / name, digest):
                    raise damaged(manifest["id"], name)
        return Finetune(manifest["id"], folder, manifest)

    def manifest(self, finetune_id: str) -> dict:
        finetune_id = checked_id(finetune_id)
        with self._sentence("read"):
            try:
                data = (self.folder / finetune_id / MANIFEST).read_bytes()
            except FileNotFoundError:
                raise unknown(finetune_id) from None
        manifest = parse_manifest(data)
        if manifest is None:
            raise damaged(finetune_id, MANIFEST)
        return manifest

    def summaries(self) -> list[Summary]:
        with self._sentence("listed"):
            summaries = map(_summary, self.folder.glob(f"[!.]*/{MANIFEST}"))
            return newest_first(summary for summary in summaries if summary)

    def delete(self, finetune_id: str) -> None:
        finetune_id = checked_id(finetune_id)
        gone = self.folder / f"{STAGING}{finetune_id}"
        with self._sentence("changed"):
            if not (self.folder / finetune_id / MANIFEST).exists():
                raise unknown(finetune_id)
            (self.folder / finetune_id).rename(gone)
            shutil.rmtree(gone)

    def check(self) -> None:
        with self._sentence("written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f"{STAGING}{uuid.uuid4()}"
            probe.mkdir()
            probe.rmdir()

    @contextmanager
    def _sentence(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"FINETUNE_STORE: {self.folder} could not be {done}: {error}") from error


def open_store() -> Store:
    """The store that ``FINETUNE_STORE`` names: a folder, or an URL of any file system that fsspec knows.

    Raises:
        ValueError: nothing here speaks the URL's protocol.
    """
    home = os.environ.get("FINETUNE_STORE") or "weights/finetunes"
    if "://" not in home:
        return FolderStore(ROOT / home)
    from finetuner.store_object import ObjectStore  # takes two seconds, which a folder need not wait for

    return ObjectStore(home)


def checked_id(finetune_id: str) -> str:
    """The id in the form that names files. Raises ValueError before it touches a path."""
    try:
        if str(uuid.UUID(finetune_id)) == finetune_id.lower():
            return finetune_id.lower()
    except ValueError:
        pass
    raise ValueError(
        f"finetune_id: {finetune_id!r} is not an id. Send the id that the training returned, such as"
        " 8f14e45f-ceea-467f-a8f0-1d0a1a3f1c2b."
    )


def unknown(finetune_id: str) -> ValueError:
    return ValueError(f"finetune_id: there is no finetune {finetune_id} in this server's store. Is it another server's?")


def damaged(finetune_id: str, name: str) -> ValueError:
    return ValueError(f"finetune_id: {name} of {finetune_id} is missing or damaged. Train it again or restore the file.")


def _summary(manifest: Path) -> Summary | None:
    """None where it is damaged, or deleted meanwhile. Its SHA-256 is left to whoever opens it: a list reads thousands."""
    try:
        return Summary.of(json.loads(manifest.read_bytes()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def newest_first(summaries: Iterable[Summary]) -> list[Summary]:
    return sorted(summaries, key=lambda summary: summary.created, reverse=True)
