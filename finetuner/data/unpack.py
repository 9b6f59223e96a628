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
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

MAX_ENTRIES = 10_000  # a training set has tens of files; a bomb has millions
MAX_FILE_BYTES = 100 * 2**20  # the largest camera JPEGs and PNGs are below 60 MiB
MAX_TOTAL_BYTES = 4 * 2**30  # of all that is unpacked; at most one file of it is in memory at a time
MAX_RATIO = 200  # unpacked to packed: drawings reach it, and a bomb of deflate goes on to 1000, of bzip2 to 1000000 ...
HARMLESS_BYTES = 2**30  # ... but however well it is packed, this much is unpacked in a second or two
MAX_ZIP_DIRECTORY_BYTES = 4 * 2**20  # ten thousand entries with names of 300 characters
MAX_TAR_EXTENSIONS = 8  # headers before a file's own; four kinds are in use
MAX_TAR_EXTENSION_BYTES = 64 * 2**10  # a long name, or what macOS notes of a file
LZMA_MEMORY = 128 * 2**20  # xz -9 takes 65 MiB to unpack; a header may ask for 4 GiB

CHUNK = 64 * 2**10
PACK_AGAIN = "Pack the images into a zip again and send that"
SEND = "Send a .zip or .tar.gz of images"
TOO_MANY = f"the archive holds more than {MAX_ENTRIES} files. Send fewer images"


class ArchiveError(ValueError):
    """The archive as a whole is of no use; a sentence with its remedy."""


@dataclass(frozen=True)
class Entry:
    name: str  # as the archive has it, be it a path that leads anywhere
    size: int  # in bytes, as the archive has it
    is_file: bool  # and not a link or a device
    _unpack: Callable[[], bytes]

    def read(self) -> bytes:
        """The content. Only until the next entry is asked for: a tar is read in one go.

        Raises:
            ValueError: the file is too large or damaged; says so in words that go on from its name.
            ArchiveError: the damage, or a limit, ends the archive.
        """
        if self.size > MAX_FILE_BYTES:
            raise ValueError(f"is larger than {MAX_FILE_BYTES >> 20} MiB: save it smaller")
        return self._unpack()


def entries(path: Path) -> Iterator[Entry]:
    """All that is in a zip or tar archive, told by its content, except for folders.

    Raises:
        ArchiveError: it is no such archive, is damaged, encrypted, or larger than the limits.
    """
    with path.open("rb") as file, _damage_in_plain_words():
        head = file.read(tarfile.BLOCKSIZE)
        file.seek(0)
        budget = _Budget(min(MAX_TOTAL_BYTES, max(HARMLESS_BYTES, MAX_RATIO * path.stat().st_size)))
        unpacker = next((opened for magic, opened in UNPACKERS.items() if head.startswith(magic)), None)
        if head.startswith((b"PK\3\4", b"PK\5\6")):
            yield from _zip_entries(path, file, budget)
        elif unpacker:
            yield from _tar_entries(_Stream(unpacker(file), budget))
        elif _begins_a_tar(head):
            yield from _tar_entries(_Stream(file, budget))
        elif zipfile.is_zipfile(file):  # with a program before it that unpacks it
            yield from _zip_entries(path, file, budget)
        else:
            raise ArchiveError(_what_it_is(head))


@contextmanager
def _damage_in_plain_words() -> Iterator[None]:
    try:
        yield
    except ArchiveError:
        raise
    except EOFError as error:
        raise ArchiveError("the archive is cut short. Download or upload it again, whole") from error
    except Exception as error:  # parsing damaged headers ends in nearly every exception there is
        raise ArchiveError(f"the archive is damaged ({error}). {PACK_AGAIN}") from error


class _Budget:
    """How much may still be unpacked."""

    def __init__(self, size: int) -> None:
        self.left = size

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ArchiveError(
                f"the archive unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB, or to more than {MAX_RATIO} times its own size."
                " Send fewer images, saved as JPEG"
            )


# Zip


class _DirectoryFile(io.BufferedReader):
    """For zipfile, which reads a zip's whole directory at once, as long as the zip says that it is."""

    def read(self, size: int | None = -1) -> bytes:
        if (size or 0) > MAX_ZIP_DIRECTORY_BYTES:
            raise ArchiveError(TOO_MANY)
        return super().read(size)


def _zip_entries(path: Path, file: BinaryIO, budget: _Budget) -> Iterator[Entry]:
    if not zipfile.is_zipfile(file):
        raise EOFError  # a zip's directory comes last
    with _DirectoryFile(io.FileIO(path)) as directory, zipfile.ZipFile(directory) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
    if len(infos) > MAX_ENTRIES:
        raise ArchiveError(TOO_MANY)
    if any(info.flag_bits & 0x1 for info in infos):
        raise ArchiveError("the zip is encrypted. Pack it again without a password")
    for info in infos:
        yield Entry(_zip_name(info), info.file_size, _is_file(info), partial(_unzip, file, info, budget))


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Names in UTF-8 are to be marked so; many programs leave the mark out."""
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _is_file(info: zipfile.ZipInfo) -> bool:
    """False for what Unix calls a link or a device. Other systems put other things where Unix has its mode."""
    return info.create_system != 3 or stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)


def _unzip(file: BinaryIO, info: zipfile.ZipInfo, budget: _Budget) -> bytes:
    if info.compress_type not in ZIP_METHODS:
        raise ValueError(f"is packed by a method (number {info.compress_type}) that is not read here: make an ordinary zip")
    budget.spend(info.file_size)
    try:
        file.seek(info.header_offset)
        signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
        if signature != b"PK\3\4":
            raise zipfile.BadZipFile("it does not begin where the zip says")
        file.seek(name_length + extra_length, io.SEEK_CUR)
        packed = file.read(min(info.compress_size, MAX_FILE_BYTES + CHUNK))
        data = ZIP_METHODS[info.compress_type](packed, info.file_size + 1)  # not 0, which would be no limit
        if zlib.crc32(data) != info.CRC:
            raise zipfile.BadZipFile("its checksum differs")
    except Exception as error:  # as in _damage_in_plain_words
        raise ValueError(f"is damaged in the zip ({error}): pack it again") from error
    return data


def _unpack_lzma(packed: bytes, limit: int) -> bytes:
    """A .lzma file, but for a version number before it and no size in its header."""
    header = packed[4:9] + b"\xff" * 8
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, LZMA_MEMORY).decompress(header + packed[9:], limit)


ZIP_METHODS: dict[int, Callable[[bytes, int], bytes]] = {
    zipfile.ZIP_STORED: lambda packed, limit: packed[:limit],
    zipfile.ZIP_DEFLATED: lambda packed, limit: zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, limit),
    zipfile.ZIP_BZIP2: lambda packed, limit: bz2.BZ2Decompressor().decompress(packed, limit),
    zipfile.ZIP_LZMA: _unpack_lzma,
}


# Tar


class _Stream:
    """An unpacked tar: forward only, and never more of it than is asked for."""

    def __init__(self, file: BinaryIO, budget: _Budget) -> None:
        self.position = 0
        self._file = file
        self._budget = budget

    def read(self, size: int) -> bytes:
        self._budget.spend(size)
        with _damage_in_plain_words():
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


def _tar_entries(stream: _Stream) -> Iterator[Entry]:
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
            yield Entry(said.get("path", header.name), size, header.isreg(), partial(stream.read, size))
        stream.skip_to(end)
    stream.skip_rest()  # so that the checksum at the end is compared


def _next_header(stream: _Stream) -> tuple[tarfile.TarInfo, dict[str, str]] | None:
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


def _read_extension(header: tarfile.TarInfo, stream: _Stream) -> dict[str, str]:
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


TAR_EXTENSIONS_READ = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
TAR_EXTENSIONS = (*TAR_EXTENSIONS_READ, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE)

UNPACKERS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lambda file: io.BufferedReader(_XzReader(file)),
}


# Anything else

KINDS = {  # what a file is, by how it begins
    rb"\Z": f"the file is empty. {SEND}",
    rb"(\xef\xbb\xbf)?\s*<": (
        "this is a web page, not an archive; the address may need a login, or not be the file's own. Send a direct link"
    ),
    rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0|....ftyp(hei|mif|avi)": (
        f"this is a single image, not an archive. {SEND}"
    ),
    rb"Rar!|7z\xbc\xaf|\x28\xb5\x2f\xfd": f"this is a RAR, 7-Zip or Zstandard archive, which is not read here. {SEND}",
}


def _begins_a_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return len(head) == tarfile.BLOCKSIZE and not head.strip(b"\0")  # an empty tar is all zeros
    return True


def _what_it_is(head: bytes) -> str:
    for beginning, what in KINDS.items():
        if re.match(beginning, head, re.DOTALL):
            return what
    return f"this is neither a zip nor a tar archive. {SEND}"
