"""A zip archive -> its files."""

from __future__ import annotations

import bz2
import io
import lzma
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from finetuner.data.entry import CHUNK, LZMA_MEMORY, MAX_ENTRIES, MAX_FILE_BYTES, TOO_MANY, ArchiveError, Budget, Entry
from finetuner.data.kinds import HEAD_BYTES

MAX_ZIP_DIRECTORY_BYTES = 4 * 2**20  # ten thousand entries with names of 300 characters
BZIP2_BLOCK = 2**20  # a little more than its largest block
MARKED = 0x8000  # where `_without_marks` keeps the mark of a name in UTF-8
UNICODE_PATH = 0x7075  # the extra field's number


class _DirectoryFile(io.BufferedReader):
    """For zipfile, which reads a zip's whole directory at once, as long as the zip says that it is."""

    def read(self, size: int | None = -1) -> bytes:
        if (size or 0) > MAX_ZIP_DIRECTORY_BYTES:
            raise ArchiveError(TOO_MANY)
        data = super().read(size)
        return _without_marks(data) if data.startswith(b"PK\1\2") else data


def _without_marks(directory: bytes) -> bytes:
    """A zip's directory whose names are not marked as UTF-8: zipfile refuses the whole zip where such a mark is wrong."""
    unmarked = bytearray(directory)
    start = 0
    while unmarked[start : start + 4] == b"PK\1\2" and start + 46 <= len(unmarked):
        if unmarked[start + 9] & 0x08:  # bit 11 of the flags goes to bit 15, which nobody uses
            unmarked[start + 9] ^= 0x88
        start += 46 + sum(struct.unpack_from("<3H", unmarked, start + 28))
    return bytes(unmarked)


def zip_entries(path: Path, file: BinaryIO, budget: Budget) -> Iterator[Entry]:
    if not zipfile.is_zipfile(file):
        raise EOFError  # a zip's directory comes last
    with _DirectoryFile(io.FileIO(path)) as directory, zipfile.ZipFile(directory) as archive:
        infos = [info for info in archive.infolist() if not _is_folder(info)]
    if len(infos) > MAX_ENTRIES:
        raise ArchiveError(TOO_MANY)
    if any(info.flag_bits & 0x1 for info in infos):
        raise ArchiveError("the zip is encrypted. Pack it again without a password")
    for info in infos:
        head, unpack = partial(_unzip_head, file, info, budget), partial(_unzip, file, info, budget)
        yield Entry(_raw_name(info), _unicode_name(info), info.file_size, _is_file(info), head, unpack)


def _raw_name(info: zipfile.ZipInfo) -> bytes:
    """Not ``info.filename``, which zipfile cuts off at a NUL."""
    return info.orig_filename.encode("cp437")


def _is_folder(info: zipfile.ZipInfo) -> bool:
    """Some programs for Windows end a folder's name with a backslash, which may also be half a Japanese character."""
    name = _raw_name(info)
    return name.endswith(b"/") or (info.file_size == 0 and re.search(rb"[ -~]\\\Z", name) is not None)


def _unicode_name(info: zipfile.ZipInfo) -> str | None:
    """What Info-ZIP's extra field says, as long as its checksum is that of the name (APPNOTE.TXT, 4.6.9); else the name
    itself where it is marked as UTF-8 and is that."""
    extra = info.extra
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and field[:5] == b"\1" + struct.pack("<I", zlib.crc32(_raw_name(info))):
            return field[5:].decode(errors="ignore") or None
    try:
        return _raw_name(info).decode() if info.flag_bits & MARKED else None
    except UnicodeDecodeError:
        return None


def _is_file(info: zipfile.ZipInfo) -> bool:
    """False for what Unix calls a link or a device. Other systems put other things where Unix has its mode."""
    return info.create_system != 3 or stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)


def _unzip_head(file: BinaryIO, info: zipfile.ZipInfo, budget: Budget) -> bytes:
    bzip2 = info.compress_type == zipfile.ZIP_BZIP2
    packed_size = BZIP2_BLOCK if bzip2 else 8 * HEAD_BYTES
    budget.spend(BZIP2_BLOCK if bzip2 else HEAD_BYTES)  # bzip2 unpacks a whole block for the first byte of it
    try:
        return _unpacked(file, info, packed_size, HEAD_BYTES)
    except Exception as error:  # as in damage_in_plain_words
        raise ValueError("cannot be unpacked") from error


def _unzip(file: BinaryIO, info: zipfile.ZipInfo, budget: Budget) -> bytes:
    if info.compress_type not in ZIP_METHODS:
        raise ValueError(f"is packed by a method (number {info.compress_type}) that is not read here: make an ordinary zip")
    budget.spend(info.file_size)
    try:
        data = _unpacked(file, info, MAX_FILE_BYTES + CHUNK, info.file_size + 1)  # not 0, which would be no limit
        if zlib.crc32(data) != info.CRC:
            raise zipfile.BadZipFile("its checksum differs")
    except Exception as error:  # as in damage_in_plain_words
        raise ValueError(f"is damaged in the zip ({error}): pack it again") from error
    return data


def _unpacked(file: BinaryIO, info: zipfile.ZipInfo, packed_size: int, limit: int) -> bytes:
    """At most ``limit`` bytes of what a file's first ``packed_size`` bytes hold."""
    file.seek(info.header_offset)
    signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    if signature != b"PK\3\4":
        raise zipfile.BadZipFile("it does not begin where the zip says")
    file.seek(name_length + extra_length, io.SEEK_CUR)
    return ZIP_METHODS[info.compress_type](file.read(min(info.compress_size, packed_size)), limit)


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
