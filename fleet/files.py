"""Files that clients send, in a folder that every node reads.

In: an owner and bytes. Out: a path that a job's inputs can name, and what clients ask of a file. Each lies in a folder of its
own, ``<folder>/<owner>/<id>/``, with its name and checksums beside it, which appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

SECONDS = 24 * 3600.0  # a file is kept so long, and as long as an unfinished job names it
QUOTA_BYTES = 10 * 10**9  # of one owner's files at once: five archives of the largest size
CHUNK = 1 << 20
FACTS = "facts.json"
SENT = "sent"  # the folder of the file itself, under the name that the client gave it
PARTIAL = ".partial-"


class NoRoom(ValueError):
    """The owner's files would be more than the quota."""


@dataclass(frozen=True)
class Upload:
    """A file that a client sent."""

    id: str
    owner: str
    name: str
    content_type: str
    size: int  # bytes
    sha256: str
    md5: str
    created: float  # seconds since 1970
    metadata: dict = field(default_factory=dict)

    @property
    def expires(self) -> float:
        return self.created + SECONDS


class Files:
    def __init__(self, folder: Path, quota: int | None = None):
        self.folder = folder
        self._quota = quota if quota is not None else quota_bytes()

    def keep(self, owner: str, content: BinaryIO, name: str, content_type: str, metadata: dict | None = None) -> Upload:
        """Copy ``content`` to a new file.

        Raises:
            NoRoom: with it the owner would have more than the quota.
        """
        room = self._quota - self._used(owner)
        partial = self.folder / owner / f"{PARTIAL}{secrets.token_hex(8)}"
        (partial / SENT).mkdir(parents=True)
        sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        try:
            with (partial / "content").open("wb") as file:
                while chunk := content.read(CHUNK):
                    size += len(chunk)
                    if size > room:
                        raise NoRoom(
                            f"Your files would be more than the {self._quota // 10**6} MB that a key has. Delete some; each is"
                            f" deleted after {SECONDS / 3600:g} hours."
                        )
                    sha256.update(chunk)
                    md5.update(chunk)
                    file.write(chunk)
            upload = Upload(
                id=secrets.token_urlsafe(24),
                owner=owner,
                name=safe_name(name),
                content_type=content_type,
                size=size,
                sha256=sha256.hexdigest(),
                md5=md5.hexdigest(),
                created=time.time(),
                metadata=metadata or {},
            )
            (partial / "content").rename(partial / SENT / upload.name)
            (partial / FACTS).write_text(json.dumps(asdict(upload)))
            partial.rename(self.folder / owner / upload.id)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return upload

    def get(self, owner: str, file_id: str) -> Upload | None:
        """The owner's file of this id; None where there is none, or it is another's."""
        if not file_id.replace("-", "").replace("_", "").isalnum():
            return None
        return self._read(self.folder / owner / file_id)

    def path(self, upload: Upload) -> Path:
        return self.folder / upload.owner / upload.id / SENT / upload.name

    def list(self, owner: str) -> list[Upload]:
        """The owner's files, the newest first."""
        uploads = filter(None, map(self._read, (self.folder / owner).glob("[!.]*")))
        return sorted(uploads, key=lambda upload: upload.created, reverse=True)

    def delete(self, upload: Upload) -> None:
        shutil.rmtree(self.folder / upload.owner / upload.id, ignore_errors=True)

    def expire(self, in_use: Iterable[str]) -> None:
        """Delete what is past its time. ``in_use``: the paths that unfinished jobs name, which stay."""
        needed = {str(Path(path).parent.parent) for path in in_use}
        for folder in self.folder.glob("*/*"):
            try:
                old = time.time() - folder.stat().st_mtime > SECONDS
            except FileNotFoundError:
                continue
            if old and str(folder) not in needed:
                shutil.rmtree(folder, ignore_errors=True)

    def _read(self, folder: Path) -> Upload | None:
        try:
            return Upload(**json.loads((folder / FACTS).read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _used(self, owner: str) -> int:
        return sum(upload.size for upload in self.list(owner))


def quota_bytes() -> int:
    """``UPLOAD_QUOTA_GB``: how much one key may have here at once.

    Raises:
        ValueError: it is no number.
    """
    value = os.environ.get("UPLOAD_QUOTA_GB", str(QUOTA_BYTES / 10**9))
    try:
        return int(float(value) * 10**9)
    except (ValueError, OverflowError):
        raise ValueError(f"UPLOAD_QUOTA_GB: {value!r} is no number of gigabytes. Set one, such as 10.") from None


def safe_name(name: str) -> str:
    """The name without what a path, a header or a shell could take for more than a name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-100:].lstrip(".") or "file"
