"""Zip and tar archives -> their files, one after another, in memory. Nothing is ever extracted to disk.

The standard library parses the headers; the bytes are unpacked here, because its own readers can be made to take any
amount of memory or time (bzip2 and LZMA members of a zip; pax records, sparse maps and negative sizes of a tar), and refuse
zips whose two headers spell a name differently. An archive's word is never taken for a size: what is unpacked is counted.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from finetuner.data.entry import (
    CHUNK,
    HARMLESS_BYTES,
    LZMA_MEMORY,
    MAX_RATIO,
    MAX_TOTAL_BYTES,
    ArchiveError,
    Budget,
    Entry,
    damage_in_plain_words,
)
from finetuner.data.kinds import what_it_is
from finetuner.data.tars import Stream, tar_entries
from finetuner.data.zips import zip_entries


def entries(path: Path) -> Iterator[Entry]:
    """All that is in a zip or tar archive, told by its content, except for folders.

    Raises:
        ArchiveError: it is no such archive, is damaged, encrypted, or larger than the limits.
    """
    with path.open("rb") as file, damage_in_plain_words():
        head = file.read(tarfile.BLOCKSIZE)
        file.seek(0)
        budget = Budget(min(MAX_TOTAL_BYTES, max(HARMLESS_BYTES, MAX_RATIO * path.stat().st_size)))
        unpacker = next((opened for magic, opened in UNPACKERS.items() if head.startswith(magic)), None)
        if head.startswith((b"PK\3\4", b"PK\5\6")):
            yield from zip_entries(path, file, budget)
        elif unpacker:
            yield from tar_entries(Stream(unpacker(file), budget))
        elif _begins_a_tar(head):
            yield from tar_entries(Stream(file, budget))
        elif zipfile.is_zipfile(file):  # with a program before it that unpacks it
            yield from zip_entries(path, file, budget)
        else:
            raise ArchiveError(what_it_is(head))


class _XzReader(io.RawIOBase):
    """What lzma.open gives, but the memory that the file may ask for has a limit."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = lzma.LZMADecompressor(memlimit=LZMA_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader hands over nothing else
        data = b""
        while not data:
            packed = b""
            if self._decompressor.eof:  # of one stream: an xz file may be several
                packed = self._decompressor.unused_data or self._file.read(CHUNK)
                if not packed:
                    return 0
                self._decompressor = lzma.LZMADecompressor(memlimit=LZMA_MEMORY)
            elif self._decompressor.needs_input and not (packed := self._file.read(CHUNK)):
                raise EOFError
            data = self._decompressor.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)


UNPACKERS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lambda file: io.BufferedReader(_XzReader(file)),
}


def _begins_a_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return len(head) == tarfile.BLOCKSIZE and not head.strip(b"\0")  # an empty tar is all zeros
    return True
