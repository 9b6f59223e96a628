"""What lies at a path, opened as a LoRA's file: its bytes tell what it is, and only safetensors is ever read.

A folder or an archive with one LoRA in it is opened, too.
"""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open

log = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"  # peft's, beside the weights
EXTENSION = ".safetensors"
LARGEST_MEMBER = 8 << 30  # bytes; rank 256 of every linear of FLUX.1 in float32 takes 6
LARGEST_HEADER = 100_000_000  # bytes, safetensors' own limit
START = 4096  # bytes that tell what a file is
AGAIN = "Download it again."

# The first bytes of what people take for a LoRA's file, and what to say of it.
PICKLE = "is a pickle (.pt, .ckpt, .bin), which is never opened: it could run code. Take its .safetensors."
STARTS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "is a Git-LFS pointer: it only names the file. Run git lfs pull where it was cloned, or download the file itself.",
    ),
    *((b"\x80" + bytes([protocol]), PICKLE) for protocol in (2, 3, 4, 5)),
    (b"GGUF", "is a GGUF, a quantised checkpoint, and not a LoRA. Take the LoRA's own .safetensors."),
    (b"7z\xbc\xaf", "is a 7z archive. Unpack it, and give the .safetensors in it."),
    (b"Rar!", "is a RAR archive. Unpack it, and give the .safetensors in it."),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd. Unpack it, and give the .safetensors in it."),
    (b"\x89PNG", "is a picture. Give the .safetensors that belongs to it."),
    (b"\xff\xd8\xff", "is a picture. Give the .safetensors that belongs to it."),
)
WEB_PAGE = "is a web page (HTML), as servers send it in a file's place. Download the file itself; it may take logging in first."
TEXT = "is text{}, and not a safetensors file. Is it a server's error message? Download the file itself."
BROKEN = (EOFError, LookupError, OSError, RuntimeError, ValueError, struct.error, zlib.error, lzma.LZMAError)
BROKEN_ARCHIVE = (*BROKEN, tarfile.TarError, zipfile.BadZipFile)
COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


@dataclass(frozen=True)
class LoraFile:
    """A safetensors file whose header was read, and what lies beside it."""

    path: Path
    name: str  # what the user gave, for errors
    member: str | None  # of a folder or an archive, which file was taken
    dtypes: dict[str, str]  # as the format names them: "F16"
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    adapter_config: Any  # what peft's file beside it holds; None without one

    def read(self, keys: list[str]) -> list[torch.Tensor]:
        """The tensors of these keys, as they are.

        Raises:
            ValueError: they cannot be read.
        """
        try:
            with safe_open(self.path, "pt") as file:
                return [file.get_tensor(key) for key in keys]
        except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.name}: {keys[0]} cannot be read ({error}). {AGAIN}") from None


@contextmanager
def opened(path: Path) -> Iterator[LoraFile]:
    """The LoRA's file at ``path``: itself, or the only one in a folder or an archive.

    Raises:
        ValueError: there is no such file, or none that can be read; says what it is instead, and the remedy.
    """
    if path.is_dir():
        member = _only(path.name, [file.name for file in path.iterdir() if file.is_file()], "folder")
        config = path / ADAPTER_CONFIG
        yield _lora_file(path / member, path.name, member, config.read_bytes() if config.is_file() else None)
        return
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    with path.open("rb") as file:
        start = file.read(START)
    if not _begins_a_header(start) and (start.startswith(b"PK\3\4") or _is_tar(path, start)):
        with tempfile.TemporaryDirectory() as folder:
            taken, config_bytes, member = _unpacked(path, Path(folder), start)
            yield _lora_file(taken, path.name, member, config_bytes)
        return
    config = path.with_name(ADAPTER_CONFIG)
    yield _lora_file(path, path.name, None, config.read_bytes() if config.is_file() else None)


def _lora_file(path: Path, name: str, member: str | None, config: bytes | None) -> LoraFile:
    shown = f"{name}: {member}" if member else name
    if member:
        log.warning("%s: %s was taken.", name, member)
    dtypes, shapes, metadata = _header(path, shown)
    adapter_config = None
    if config is not None:
        try:
            adapter_config = json.loads(config)
        except (ValueError, RecursionError):
            raise ValueError(
                f"{name}: {ADAPTER_CONFIG} beside it, which says its alpha, is no JSON. Mend or remove it."
            ) from None
    return LoraFile(path, name, member, dtypes, shapes, metadata, adapter_config)


def _only(name: str, files: list[str], kind: str) -> str:
    """The one LoRA among the files of a folder or an archive."""
    found = sorted(
        file for file in files if file.endswith(EXTENSION) and not PurePosixPath(file).name.startswith("._")
    )  # macOS keeps what is not data of a file in ._<file>
    if len(found) == 1:
        return found[0]
    if not found:
        if any(PurePosixPath(file).name == "data.pkl" for file in files):
            raise ValueError(f"{name}: {PICKLE}")
        raise ValueError(f"{name}: is a{'n' if kind[0] == 'a' else ''} {kind} without a {EXTENSION} file. Give that file.")
    raise ValueError(f"{name}: has {len(found)} {EXTENSION} files. Give the one that is meant: {', '.join(found[:20])}.")


def _is_tar(path: Path, start: bytes) -> bool:
    """Whether it is a tar, compressed or not."""
    for magic, open_compressed in COMPRESSED.items():
        if start.startswith(magic):
            try:
                with open_compressed(path) as file:
                    return bytes(file.read(512)[257:262]) == b"ustar"
            except BROKEN_ARCHIVE:
                return False
    return start[257:262] == b"ustar"


def _unpacked(path: Path, folder: Path, start: bytes) -> tuple[Path, bytes | None, str]:
    """The only LoRA of an archive, copied into ``folder``; peft's configuration beside it; the LoRA's name."""
    try:
        if start.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
                return _taken(path.name, sizes, archive.open, folder)
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar if member.isfile()}
            return _taken(path.name, {n: m.size for n, m in members.items()}, lambda n: tar.extractfile(members[n]), folder)
    except _Refused:
        raise
    except BROKEN_ARCHIVE as error:
        raise ValueError(f"{path.name}: the archive is damaged or locked ({error}). {AGAIN}") from None


class _Refused(ValueError):
    """Of an archive that is whole."""


def _taken(name: str, sizes: dict[str, int], open_member: Any, folder: Path) -> tuple[Path, bytes | None, str]:
    try:
        member = _only(name, list(sizes), "archive")
    except ValueError as error:
        raise _Refused(str(error)) from None
    if sizes[member] > LARGEST_MEMBER:
        raise _Refused(f"{name}: {member} is {sizes[member] / 2**30:.0f} GiB large, and no LoRA is. Is it a whole checkpoint?")
    config = str(PurePosixPath(member).with_name(ADAPTER_CONFIG))
    source: IO[bytes]
    with open_member(member) as source, (folder / "lora").open("wb") as copy:
        shutil.copyfileobj(source, copy)
    if config not in sizes:
        return folder / "lora", None, member
    with open_member(config) as source:
        return folder / "lora", source.read(START * START), member


def _header(path: Path, name: str) -> tuple[dict[str, str], dict[str, tuple[int, ...]], dict[str, str]]:
    """Dtype and shape of each tensor, and the metadata; what is not a whole safetensors file is named."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(START)
        if not _begins_a_header(start):
            _refuse_others(name, start)
        (length,) = struct.unpack("<Q", start[:8])
        if length > min(LARGEST_HEADER, size - 8):
            if _begins_a_header(start):
                raise ValueError(f"{name}: is cut short: its header alone has {length} bytes, the file {size}. {AGAIN}")
            raise ValueError(f"{name}: is not a safetensors file. No other kind is read: it could run code.")
        file.seek(8)
        header = _parsed(name, file.read(length))
    metadata = header.pop("__metadata__", {})
    try:
        data = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        dtypes = {key: str(entry["dtype"]) for key, entry in header.items()}
        shapes = {key: tuple(map(int, entry["shape"])) for key, entry in header.items()}
        whole = 8 + length + int(data)
    except (TypeError, KeyError, ValueError, IndexError, AttributeError, OverflowError):
        raise ValueError(f"{name}: its header is damaged. {AGAIN}") from None
    if whole > size:
        raise ValueError(f"{name}: is cut short: {size} of {whole} bytes are there. {AGAIN}")
    try:
        with safe_open(path, "pt"):
            pass  # its own checks: offsets, sizes, dtypes
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{name}: its header is damaged ({error}). {AGAIN}") from None
    return dtypes, shapes, metadata


def _begins_a_header(start: bytes) -> bool:
    """Whether it may be a safetensors file. Asked first: a header of 640 bytes begins as a pickle, one of 35,615 as a gzip."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LARGEST_HEADER


def _refuse_others(name: str, start: bytes) -> None:
    """Name what is no safetensors file by its first bytes."""
    if not start:
        raise ValueError(f"{name}: is empty. {AGAIN}")
    for magic, sentence in STARTS:
        if start.startswith(magic):
            raise ValueError(f"{name}: {sentence}")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")) or (text.startswith(b"<") and b"<html" in text):
        raise ValueError(f"{name}: {WEB_PAGE}")
    if text.startswith((b"<", b"{", b"[")):
        raise ValueError(f"{name}: {TEXT.format(' (XML)' if text.startswith(b'<') else ' (JSON)')}")
    if len(start) < 8:
        raise ValueError(f"{name}: is cut short: it has {len(start)} bytes. {AGAIN}")
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start[:64]):
        raise ValueError(f"{name}: {TEXT.format('')}")


def _parsed(name: str, data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key stands in it twice")
        return dict(pairs)

    try:
        header = json.loads(data, object_pairs_hook=unique)
        if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: its header is damaged ({error}). {AGAIN}") from None
    return header
