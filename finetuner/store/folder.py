"""Finetunes in a folder, each in one of its own, named by its id."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetuner.store.files import MANIFEST, Checker, needed, parse_manifest, sealed_manifest, sync, sync_tree
from finetuner.store.store import (
    Finetune,
    Listing,
    Store,
    StoreError,
    checked_id,
    damaged_finetune,
    newest_first,
    unknown_finetune,
)

STAGING = ".staging-"


class FolderStore(Store):
    """One rename publishes a finetune; several processes, and machines that share the file system, may use one folder."""

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
                    raise damaged_finetune(manifest["id"], name)
        return Finetune(manifest["id"], folder, manifest)

    def manifest(self, finetune_id: str) -> dict:
        finetune_id = checked_id(finetune_id)
        with self._sentence("read"):
            try:
                data = (self.folder / finetune_id / MANIFEST).read_bytes()
            except FileNotFoundError:
                raise unknown_finetune(finetune_id) from None
        manifest = parse_manifest(data)
        if manifest is None:
            raise damaged_finetune(finetune_id, MANIFEST)
        return manifest

    def listings(self) -> list[Listing]:
        with self._sentence("listed"):
            listings = map(_listing, self.folder.glob(f"[!.]*/{MANIFEST}"))
            return newest_first(listing for listing in listings if listing)

    def delete(self, finetune_id: str) -> None:
        finetune_id = checked_id(finetune_id)
        gone = self.folder / f"{STAGING}{finetune_id}"
        with self._sentence("changed"):
            if not (self.folder / finetune_id / MANIFEST).exists():
                raise unknown_finetune(finetune_id)
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


def _listing(manifest: Path) -> Listing | None:
    """None where it is damaged, or deleted meanwhile. Its SHA-256 is left to whoever opens it: a list reads thousands."""
    try:
        return Listing.of(json.loads(manifest.read_bytes()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
