"""Names of an archive's files: bytes in any encoding -> relative paths that every file system takes, no two alike."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath

from finetuner.data.encodings import NAME_ENCODINGS, guess_unknown
from finetuner.data.kinds import IMAGE_SUFFIXES

MAX_NAME_BYTES = 255  # of each part of a path, as in most file systems
MAX_PATH_BYTES = 1000


@dataclass(frozen=True)
class Name:
    path: str  # relative, of printable characters, leads nowhere else
    is_guessed: bool = False  # its encoding is


def read_names(raw: list[tuple[bytes, str | None]]) -> tuple[list[Name], str | None]:
    """The names of all files of an archive, guessed together where they are not in UTF-8.

    Args:
        raw: of each file, its name as bytes, and in Unicode where the archive says that, too.

    Returns:
        The names, and the encoding that was guessed, if one was.
    """
    unknown, guessed = guess_unknown([name for name, unicode in raw if unicode is None], NAME_ENCODINGS)
    names = []
    for name, unicode in raw:
        if unicode is None and name in unknown:
            names.append(Name(safe_path(_decoded(name, guessed)), is_guessed=True))
        else:
            names.append(Name(safe_path(name.decode() if unicode is None else unicode)))
    return names, (guessed or "cp437") if unknown else None


def _decoded(name: bytes, encoding: str | None) -> str:
    if encoding is None:  # a backslash after such a byte may be half a character, and not what divides folders
        return re.sub(rb"([\x80-\xff])\\", rb"\1_5C", name).decode("cp437")
    return name.decode(encoding)


def safe_path(name: str) -> str:
    """Relative and in printable characters, spelt in one way: macOS takes accents apart, others do not.

    Nothing is ever unpacked to where a name leads, so a path from the root or from a drive loses that beginning, and what
    leads upwards loses that step.
    """
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    name = re.sub(r"\A/*([A-Za-z]:(?=/))?", "", "".join(c if c.isprintable() else f"_{ord(c):02X}" for c in name))
    parts = [part for part in name.split("/") if part.strip() not in ("", ".", "..")]
    return "/".join(parts) or "_"


def ascii_name(raw: bytes) -> str:
    """What is certain of a name in any encoding: good for its suffix, and for whether it is hidden."""
    return re.sub(rb"(?<![\x80-\xff])\\", b"/", raw).decode("latin-1")


def suffix_of(path: str) -> str:
    """In small letters, without what an address has after it (``.jpg?width=1024``)."""
    return _split(path)[1].lower()


def _split(path: str) -> tuple[str, str]:
    """The path before its suffix, and the suffix."""
    if match := re.fullmatch(r"(.*[^/])(\.[A-Za-z]{2,5})\?[^/]*", path):
        return match[1], match[2]
    whole = PurePosixPath(path)
    return path.removesuffix(whole.suffix) if whole.suffix else path, whole.suffix.rstrip()


def is_hidden(path: str) -> bool:
    """Whether its name says so, or macOS put it there."""
    return any(part.startswith((".", "__MACOSX")) and part.strip() not in (".", "..") for part in path.split("/"))


def is_too_long(path: str) -> bool:
    """Whether a file system would not take it."""
    parts = path.split("/")
    return len(path.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES - len(" (2).txt") for part in parts)


def stem(path: str) -> str:
    """The path without an image's suffix: ``photo.v2.jpg`` is ``photo.v2``, and a name without suffix is whole."""
    before, suffix = _split(path)
    return before if suffix.lower() in IMAGE_SUFFIXES else path


def folded(path: str) -> str:
    """The same for names that a file system may take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def distinct(path: str, taken: set[str]) -> str:
    """The path, or one like it that is not in ``taken``; adds it there, folded."""
    whole, number = PurePosixPath(path), 1
    while folded(path) in taken:
        number += 1
        path = str(whole.with_name(f"{whole.stem} ({number}){whole.suffix}"))
    taken.add(folded(path))
    return path
