"""finetune_id -> files. A finetune is published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetuner.base import ROOT

MANIFEST = "finetune.json"
STAGING = ".staging-"


@dataclass(frozen=True)
class Finetune:
    """A published finetune, on this machine's disk."""

    id: str
    folder: Path
    manifest: dict

    @property
    def trigger_word(self) -> str:
        return self.manifest["inputs"]["trigger_word"]

    @property
    def base(self) -> dict:
        return self.manifest["base"]


class Store:
    """Finetunes in a folder, each in one of its own, named by its id."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder or ROOT / os.environ.get("FINETUNE_STORE", "weights/finetunes")

    @contextmanager
    def staging(self, job: str) -> Iterator[Path]:
        """A folder on the store's own disk to put a finetune's files into; gone at the end unless it was published.

        It is the job's own, so that what a killed run left there goes when the job is run again.
        """
        folder = self.folder / f"{STAGING}{job}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, manifest: dict) -> Finetune:
        """Publish what lies in ``staged`` under a new random id: manifest last, everything on the disk, then one rename."""
        finetune_id = str(uuid.uuid4())
        files = {str(p.relative_to(staged)): _sha256(p) for p in sorted(staged.rglob("*")) if p.is_file()}
        manifest = {"id": finetune_id, **manifest, "sha256": files}
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for path in [*staged.rglob("*"), staged]:
            _sync(path)
        staged.rename(self.folder / finetune_id)
        _sync(self.folder)
        return Finetune(finetune_id, self.folder / finetune_id, manifest)

    def fetch(self, finetune_id: str) -> Finetune:
        """Open a finetune, its files checked against the manifest.

        Raises:
            ValueError: the id is not one that a training returns, there is no such finetune, or a file of it is damaged.
        """
        try:
            if str(uuid.UUID(finetune_id)) != finetune_id.lower():
                raise ValueError
        except ValueError:
            raise ValueError(
                f"finetune_id: {finetune_id!r} is not an id. Send the id that the training returned, such as"
                " 8f14e45f-ceea-467f-a8f0-1d0a1a3f1c2b."
            ) from None
        folder = self.folder / finetune_id.lower()
        if not (folder / MANIFEST).is_file():
            raise ValueError(f"finetune_id: there is no finetune {finetune_id} in this server's store. Is it another server's?")
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in manifest["sha256"].items():
            path = folder / name
            if not path.is_file() or _sha256(path) != expected:
                raise ValueError(
                    f"finetune_id: {name} of {finetune_id} is missing or damaged. Train it again or restore the file."
                )
        return Finetune(finetune_id.lower(), folder, manifest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
