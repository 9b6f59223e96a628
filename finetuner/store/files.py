"""A finetune's files: its manifest, their checksums, and getting them onto the disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

MANIFEST = "finetune.json"
RACY_SECONDS = 1  # a file may change twice within one tick of the file system's clock and look the same


def staging_folder(folder: Path) -> Path:
    """Make ``folder`` for the files of a finetune that is to be: empty, unless what an earlier run sealed lies there."""
    if not is_sealed(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder


def seal(folder: Path, manifest: dict) -> dict:
    """Give what lies in ``folder`` a new random id and its manifest, with SHA-256 and size of every file; all of it is on
    the disk then. The manifest carries a SHA-256 of itself, too: it names the trigger word and the base.
    """
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    manifest = {
        "id": str(uuid.uuid4()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **manifest,
        "sha256": {name: sha256(path) for name, path in files.items()},
        "bytes": {name: path.stat().st_size for name, path in files.items()},
    }
    manifest["manifest_sha256"] = _digest(manifest)
    sync_tree(folder)
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(manifest, indent=2) + "\n")
    sync(partial)
    partial.rename(folder / MANIFEST)
    sync(folder)
    return manifest


def is_sealed(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def sealed_manifest(folder: Path) -> dict:
    """The manifest of a sealed folder.

    Raises:
        ValueError: it is not whole.
    """
    manifest = parse_manifest((folder / MANIFEST).read_bytes())
    if manifest is None or any(sha256(folder / name) != digest for name, digest in manifest["sha256"].items()):
        raise ValueError(f"{folder} is not what the training wrote. Delete it and train again.")
    return manifest


def parse_manifest(data: bytes) -> dict | None:
    """The manifest, or None where it is not as `seal` wrote it."""
    try:
        manifest = json.loads(data)
        return manifest if manifest["manifest_sha256"] == _digest(manifest) else None
    except (ValueError, KeyError, TypeError):
        return None


def _digest(manifest: dict) -> str:
    fields = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def needed(manifest: dict) -> dict[str, str]:
    """Name and SHA-256 of the files that a prediction reads. What people read lies in folders, captions/ and report/: a
    training of 2000 images has 2000 captions, which no prediction should wait for.
    """
    return {name: digest for name, digest in manifest["sha256"].items() if "/" not in name}


class Checker:
    """Tells whether a file is what its SHA-256 says, and hashes it again only where the file system says it was touched:
    hashing 300 MB takes longer than a sampling step.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, tuple] = {}

    def is_whole(self, path: Path, digest: str) -> bool:
        try:
            stat = path.stat()
            state = (digest, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            if self._seen.get(path) == state:
                return True
            if sha256(path) != digest:
                return False
        except FileNotFoundError:
            return False
        if time.time() - stat.st_ctime > RACY_SECONDS:
            self._seen[path] = state
        return True


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
