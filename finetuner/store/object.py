"""Finetunes in an object store, through fsspec: S3 and what speaks its protocol, or any other that a client is installed for.

    <URL>/<finetune_id>/<file>     as in a folder; finetune.json is written last, and without it there is no finetune
    <URL>/index/<summary>          an empty object for each finetune, its name saying what a list says: 1000 a request

An object appears whole or not at all, but objects appear one by one: hence the order. A fetch never lists: it knows the names.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from urllib.parse import quote, unquote

from botocore.exceptions import BotoCoreError
from fsspec.core import url_to_fs
from s3fs.core import S3_RETRYABLE_ERRORS

from finetuner.paths import CACHE
from finetuner.store.cache import Cache
from finetuner.store.files import MANIFEST, Checker, needed, parse_manifest, sealed_manifest, sha256
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

log = logging.getLogger(__name__)

CACHE_BYTES = 32 * 10**9  # about 100 finetunes of FLUX.1 at rank 32, and the disk that its base takes, once more
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each new try: a server that restarts is back within them
TRANSFERS = 8  # at a time: captions are many and small
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of this machine's disk: trying again does not help
INDEX_NAME_BYTES = 250  # S3 takes 1024 for a whole key, but servers that keep objects as files take 255 for a part of it

# For S3. botocore and s3fs would each try 5 times within each of our tries. botocore's own checksums: of a response it only
# raises where one is wrong, while we compare SHA-256 ourselves and ask again; of a request many servers that speak S3 refuse
# them, or store them in the file where they come as a trailer (boto3 issue 4392).
S3_OPTIONS = {
    "config_kwargs": {
        "retries": {"total_max_attempts": 1},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
}


class ObjectStore(Store):
    """Finetunes under an URL; those that are fetched come to this machine's cache, and from there the next time."""

    def __init__(self, url: str, cache: Cache | None = None):
        self.url = url.rstrip("/")
        options = S3_OPTIONS if url.startswith(("s3://", "s3a://")) else {}
        try:
            self._files, self._root = url_to_fs(self.url, use_listings_cache=False, **options)
        except (ValueError, ImportError) as error:
            raise ValueError(f"FINETUNE_STORE: {url} cannot be opened here: {error}") from error
        if options:
            self._files.retries = 1
        self._cache = cache or Cache(CACHE, cache_budget())
        self._cached_as = hashlib.sha256(self.url.encode()).hexdigest()[:12]  # stores share the cache, not its entries
        self._checker = Checker()

    def put(self, sealed: Path) -> Finetune:
        manifest = sealed_manifest(sealed)
        finetune_id, files = manifest["id"], list(manifest["sha256"])
        with self._sentence("written"):
            if not self._is_published(finetune_id):
                try:
                    for names in (files, [MANIFEST]):
                        _each(lambda name: self._upload(sealed / name, f"{finetune_id}/{name}"), names)
                except BaseException:
                    self._clear(finetune_id, files)
                    raise
            self._patiently(self._files.pipe_file, self._path(index_name(manifest)), b"")
        return Finetune(finetune_id, sealed, manifest)

    def fetch(self, finetune_id: str) -> Finetune:
        finetune_id = checked_id(finetune_id)
        entry = f"{self._cached_as}-{finetune_id}"
        for _ in range(3):  # no more: a disk that spoils what it is given would have us fetch for ever
            with self._sentence("read"):
                if finetune := self._cached(finetune_id, entry):
                    return finetune
                self._download(finetune_id, entry)
        raise StoreError(f"FINETUNE_STORE: {self._cache.folder} does not keep what is written to it. Is its disk failing?")

    def manifest(self, finetune_id: str) -> dict:
        return json.loads(self._manifest_bytes(checked_id(finetune_id)))

    def listings(self) -> list[Listing]:
        with self._sentence("listed"):
            paths = self._patiently(self._files.find, self._path("index/"))
        entries = (path.rpartition("/")[2].split(",") for path in paths)
        # Some servers show an upload under way, under a name of their own.
        return newest_first(Listing(*map(unquote, entry)) for entry in entries if len(entry) == len(fields(Listing)))

    def delete(self, finetune_id: str) -> None:
        manifest = self.manifest(finetune_id)
        with self._sentence("changed"):
            self._patiently(self._remove, index_name(manifest))
            for name in (MANIFEST, *manifest["sha256"]):
                self._patiently(self._remove, f"{manifest['id']}/{name}")

    def check(self) -> None:
        probe = f"probe-{uuid.uuid4()}"
        with self._sentence("written"):
            self._patiently(self._files.pipe_file, self._path(probe), b"")
            self._patiently(self._remove, probe)

    def _cached(self, finetune_id: str, entry: str) -> Finetune | None:
        """The finetune from the cache; a damaged copy is thrown away."""
        if not (opened := self._cache.open(entry)):
            return None
        folder, hold = opened
        manifest = parse_manifest((folder / MANIFEST).read_bytes())
        if manifest and all(self._checker.is_whole(folder / name, digest) for name, digest in needed(manifest).items()):
            return Finetune(finetune_id, folder, manifest, hold)
        log.warning("The cached copy of finetune %s is damaged; it is fetched again", finetune_id)
        self._cache.drop(entry)
        return None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _upload(self, local: Path, name: str) -> None:
        """Write an object and read it back: what was spoilt on the way must not be published, as no one could repair it."""

        def write_and_compare() -> None:
            self._files.put_file(str(local), self._path(name))
            with tempfile.TemporaryDirectory() as folder:
                back = Path(folder, "back")
                self._files.get_file(self._path(name), str(back))
                if sha256(back) != sha256(local):
                    raise OSError(f"{name} does not arrive as it was sent")

        self._patiently(write_and_compare)

    def _download(self, finetune_id: str, entry: str) -> None:
        data = self._manifest_bytes(finetune_id)
        manifest = json.loads(data)
        files = needed(manifest)
        with self._cache.filling(entry, sum(manifest["bytes"][name] for name in files)) as folder:
            for name, digest in files.items():
                if not any(self._arrives(f"{finetune_id}/{name}", folder / name, digest) for _ in range(2)):
                    raise damaged_finetune(finetune_id, name)
            (folder / MANIFEST).write_bytes(data)

    def _arrives(self, name: str, local: Path, digest: str) -> bool:
        """Download a file; whether it came as it was published."""
        try:
            self._patiently(self._files.get_file, self._path(name), str(local))
        except FileNotFoundError:
            return False
        return sha256(local) == digest

    def _manifest_bytes(self, finetune_id: str) -> bytes:
        """A manifest that was checked, as it stands in the store."""
        with self._sentence("read"):
            for _ in range(2):
                with tempfile.TemporaryDirectory() as folder:
                    local = Path(folder, MANIFEST)
                    try:
                        self._patiently(self._files.get_file, self._path(f"{finetune_id}/{MANIFEST}"), str(local))
                    except FileNotFoundError:
                        raise unknown_finetune(finetune_id) from None
                    if parse_manifest(data := local.read_bytes()):
                        return data
        raise damaged_finetune(finetune_id, MANIFEST)

    def _is_published(self, finetune_id: str) -> bool:
        try:
            self._manifest_bytes(finetune_id)
        except ValueError:
            return False
        return True

    def _clear(self, finetune_id: str, files: Iterable[str]) -> None:
        """Remove what a failed upload left, where the store lets us: without its manifest nobody sees it anyway, and that
        goes first.
        """
        try:
            for name in (MANIFEST, *files):
                self._remove(f"{finetune_id}/{name}")
        except Exception as error:
            log.warning("%s/%s holds files of a finetune that was not published: %s", self.url, finetune_id, error)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def _patiently(self, operation: Callable, *arguments):
        """Do it; where the store fails in a way that may pass, again after each of WAITS."""
        for wait in WAITS:
            try:
                return operation(*arguments)
            except (FileNotFoundError, PermissionError):
                raise
            except (OSError, *S3_RETRYABLE_ERRORS) as error:
                if getattr(error, "errno", None) in FULL:
                    raise
                log.warning("%s: %s. Trying again in %g s", self.url, error, wait)
            time.sleep(wait)
        return operation(*arguments)

    @contextmanager
    def _sentence(self, done: str) -> Iterator[None]:
        try:
            yield
        except (OSError, BotoCoreError, *S3_RETRYABLE_ERRORS) as error:
            raise StoreError(f"FINETUNE_STORE: {self.url} could not be {done}: {error}") from error


def cache_budget() -> int:
    """``FINETUNE_CACHE_BYTES``, or its default.

    Raises:
        ValueError: it is no number of bytes.
    """
    said = os.environ.get("FINETUNE_CACHE_BYTES") or str(CACHE_BYTES)
    if not said.isdecimal():
        raise ValueError(f"FINETUNE_CACHE_BYTES: {said!r} is not a number of bytes. Set it to one, for example {CACHE_BYTES}.")
    return int(said)


def index_name(manifest: dict) -> str:
    """``index/<id>,<created>,<base>,<trigger word>``, each quoted as in an URL; the trigger word cut where it is too long."""
    listing = Listing.of(manifest)
    *parts, word = (quote(part, safe="") for part in (listing.id, listing.created, listing.base, listing.trigger_word))
    room = INDEX_NAME_BYTES - len(",".join([*parts, ""]))
    if len(word) > room:
        kept = listing.trigger_word
        while len(word := quote(kept + "…", safe="")) > room:
            kept = kept[:-1]
    return "index/" + ",".join([*parts, word])


def _each(do: Callable[[str], None], names: Iterable[str]) -> None:
    """Do it for every name, several at a time; after a failure no more are begun, and none is under way when it raises."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        try:
            for result in [pool.submit(do, name) for name in names]:
                result.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
