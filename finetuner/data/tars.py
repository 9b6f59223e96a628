"""A tar archive, unpacked as it is read -> its files."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from finetuner.data.entry import CHUNK, MAX_ENTRIES, PACK_AGAIN, TOO_MANY, ArchiveError, Budget, Entry, damage_in_plain_words
from finetuner.data.kinds import HEAD_BYTES

MAX_TAR_EXTENSIONS = 8  # headers before a file's own; four kinds are in use
MAX_TAR_EXTENSION_BYTES = 64 * 2**10  # a long name, or what macOS notes of a file
TAR_EXTENSIONS_READ = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
TAR_EXTENSIONS = (*TAR_EXTENSIONS_READ, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE)


class Stream:
    """An unpacked tar: forward only, and never more of it than is asked for."""

    def __init__(self, file: BinaryIO, budget: Budget) -> None:
        self.position = 0
        self._file = file
        self._budget = budget

    def read(self, size: int) -> bytes:
        self._budget.spend(size)
        with damage_in_plain_words():
            data = self._file.read(size)
            if len(data) < size:
                raise EOFError
        self.position += size
        return data

    def skip_to(self, position: int) -> None:
        while self.position < position:
            self.read(min(CHUNK, position - self.position))

    def skip_rest(self) -> None:
        while data := self._file.read(CHUNK):
            self._budget.spend(len(data))


class _Content:
    """Of one file of a stream, from where the stream is."""

    def __init__(self, stream: Stream, size: int) -> None:
        self._stream = stream
        self._size = size
        self._start = b""

    def head(self) -> bytes:
        self._start = self._stream.read(min(self._size, HEAD_BYTES))
        return self._start

    def read(self) -> bytes:
        return self._start + self._stream.read(self._size - len(self._start))


def tar_entries(stream: Stream) -> Iterator[Entry]:
    count = 0
    while found := _next_header(stream):
        header, said = found
        count += 1
        if count > MAX_ENTRIES:
            raise ArchiveError(TOO_MANY)
        if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in said):
            raise ArchiveError("the tar holds sparse files. Pack it again without --sparse")
        size = int(said.get("size", header.size))
        end = stream.position + (_padded(size) if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES else 0)
        if not header.isdir():
            name = said.get("path", header.name).encode(errors="surrogateescape")
            content = _Content(stream, size)
            yield Entry(name, None, size, header.isreg(), content.head, content.read)
        stream.skip_to(end)
    stream.skip_rest()  # so that the checksum at the end is compared


def _next_header(stream: Stream) -> tuple[tarfile.TarInfo, dict[str, str]] | None:
    """A header, and what the extension headers before it say of the same file; None at the end."""
    said: dict[str, str] = {}
    for _ in range(MAX_TAR_EXTENSIONS + 1):
        begins = stream.position == 0
        block = stream.read(tarfile.BLOCKSIZE)
        if not block.strip(b"\0"):
            return None
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if begins:
                raise ArchiveError(f"this is a compressed file, but no tar archive is in it. {PACK_AGAIN}") from error
            raise
        if header.type not in TAR_EXTENSIONS:
            return header, said
        said |= _read_extension(header, stream)
    raise tarfile.HeaderError("too many extension headers")


def _padded(size: int) -> int:
    if size < 0:
        raise tarfile.HeaderError("a file of negative size")
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _read_extension(header: tarfile.TarInfo, stream: Stream) -> dict[str, str]:
    """What an extension header says of the file after it."""
    end = stream.position + _padded(header.size)
    said = {}
    if header.type in TAR_EXTENSIONS_READ:
        if header.size > MAX_TAR_EXTENSION_BYTES:
            raise ArchiveError(f"the tar holds a header of more than {MAX_TAR_EXTENSION_BYTES >> 10} KiB. {PACK_AGAIN}")
        data = stream.read(header.size)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            said = {"path": data.partition(b"\0")[0].decode(errors="surrogateescape")}
        else:
            said = dict(_pax_records(data))
    stream.skip_to(end)
    return said


def _pax_records(data: bytes) -> Iterator[tuple[str, str]]:
    """Each is its own length in decimal, a space, key=value, a line end."""
    start = 0
    while start < len(data):
        length = data[start : start + 8].partition(b" ")[0]
        end = start + int(length)
        if end <= start:
            raise tarfile.HeaderError("a pax record of no length")
        key, _, value = data[start + len(length) + 1 : end - 1].decode(errors="surrogateescape").partition("=")
        if key in ("path", "size") or key.startswith("GNU.sparse."):
            yield key, value
        start = end
