"""The files of an archive that hold captions, in the layouts of the common trainers -> one caption an image.

Where several files have a caption for one image, the first of these counts, and a warning names the others:

1. ``photo.txt``, 2. ``photo.caption``, 3. ``photo.json`` beside the picture (``photo.jpg.txt`` and so on are read, too):
   text, or JSON: a string, or an object with one of `CAPTION_FIELDS`;
4. a table, in the order of the names: JSON lines or CSV with a column for the picture's file (Hugging Face's
   ``metadata.jsonl``), a JSON list of such objects, or a JSON object from file names to captions (kohya's ``meta_cap.json``).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from finetuner.data.kinds import JSON_SUFFIX, TEXT_SUFFIXES
from finetuner.data.names import Name, folded, stem, suffix_of
from finetuner.data.text import clean, decode_all

MAX_CAPTION_BYTES = 32 * 2**10  # ten times what any text encoder reads
MAX_TABLE_BYTES = 4 * 2**20  # of one table: 2000 captions of 2 KiB
MAX_ROWS = 50_000  # of one table; an archive has at most a fifth of that in files
# As kohya's, ai-toolkit's, OneTrainer's and Hugging Face's readers call them; the first that is there counts.
CAPTION_FIELDS = ("caption", "text", "prompt", "description", "long_caption", "captions", "tags")
FILE_FIELDS = ("file_name", "filename", "file", "image_file", "image_path", "path", "image", "img", "name")


TEXTS, TABLE = len(TEXT_SUFFIXES), len(TEXT_SUFFIXES) + 1  # orders


@dataclass
class CaptionFile:
    """A file that may hold captions."""

    name: Name
    content: bytes | None  # None where it is too large to be one
    text: str | None = None  # None where it is no text
    guessed: str | None = None  # the encoding, where nothing said it

    @property
    def order(self) -> int:
        suffix = suffix_of(self.name.path)
        return [*TEXT_SUFFIXES, JSON_SUFFIX].index(suffix) if suffix in (*TEXT_SUFFIXES, JSON_SUFFIX) else TABLE


@dataclass
class Captions:
    """What was found."""

    of: dict[str, str] = field(default_factory=dict)  # by an image's path
    problems: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # files that may hold captions and have none of these images
    outvoted: list[str] = field(default_factory=list)  # sources that another one was preferred to
    guessed: dict[str, str] = field(default_factory=dict)  # file to encoding
    tables: list[str] = field(default_factory=list)
    sources: dict[str, list[tuple[CaptionFile, str]]] = field(default_factory=lambda: defaultdict(list))  # by an image's path


def read_captions(files: list[CaptionFile], images: list[Name]) -> Captions:
    """Find the captions of the images.

    Args:
        files: the archive's texts, JSON files and tables.
        images: by the names that they have in the archive; several may have one name.
    """
    found = Captions()
    names = _Images(images)
    files = sorted(files, key=lambda file: (file.order, file.name.path if file.order == TABLE else ""))
    readable = [file for file in files if file.content is not None]
    for file, (text, encoding) in zip(readable, decode_all([file.content or b"" for file in readable]), strict=True):
        file.text, file.guessed = text, encoding
    waiting = files
    for exact in (True, False):  # a name that was guessed may look like another in other letters
        waiting = [file for file in waiting if not _read_file(file, names.beside(file.name, exact), names, found)]
    found.unused = sorted(file.name.path for file in waiting if file.text != "")
    for image, captions in found.sources.items():
        _choose(image, captions, found)
    return found


def _read_file(file: CaptionFile, beside: list[str], images: _Images, found: Captions) -> bool:
    """Note the captions of one file; whether it had any."""
    name = file.name.path
    if (file.order < TEXTS and not beside) or (file.order >= TEXTS and file.text is None):
        return False
    if file.content is None:
        found.problems.append(f"{name} is larger than {MAX_CAPTION_BYTES >> 10} KiB, too long for a caption")
        return True
    if file.text is None:
        found.problems.append(f"{name} is not text: save it as UTF-8")
        return True
    own, rows = (file.text, []) if file.order < TEXTS else _parsed(file.text, suffix_of(name))
    if own is not None and beside:
        captions = [(image, own) for image in beside]
    else:
        rows = rows if len(rows) <= MAX_ROWS else []
        captions = [(image, caption) for key, caption in rows for image in images.named(key, PurePosixPath(name).parent)]
        found.tables += [name] if captions else []
    for image, caption in captions:
        found.sources[image].append((file, clean(caption)))
    if captions and file.guessed:
        found.guessed[name] = file.guessed
    return bool(captions)


def _choose(image: str, captions: list[tuple[CaptionFile, str]], found: Captions) -> None:
    said = sorted(((file, text) for file, text in captions if text), key=lambda pair: pair[0].order)
    if not said:
        return
    first, caption = said[0]
    if len(caption.encode()) > MAX_CAPTION_BYTES:
        found.problems.append(f"{first.name.path} has a caption of more than {MAX_CAPTION_BYTES >> 10} KiB for {image}")
        return
    found.of[image] = caption
    for file, text in said[1:]:
        if text == caption:
            continue
        if file.order == first.order < TABLE:
            found.problems.append(f"{file.name.path} is for the same image as {first.name.path}: keep one")
        else:
            found.outvoted.append(f"{file.name.path} for {image} (that of {first.name.path} is used)")


class _Images:
    """The images by all that a caption's file may call them."""

    def __init__(self, images: list[Name]) -> None:
        paths = dict.fromkeys(image.path for image in images)
        self._paths = _index(paths, lambda path: [path, stem(path), *_any_stem(path)])
        self._folded = _index(paths, lambda path: map(folded, [path, stem(path), *_any_stem(path)]))
        self._bare = _index(paths, lambda path: [folded(PurePosixPath(p).name) for p in (path, stem(path))])
        self._claimed: set[str] = set()

    def beside(self, text: Name, exact: bool) -> list[str]:
        """The images that a text of this name lies beside. Letters must match where the encoding of the names is a guess,
        unless nothing else claimed the image."""
        whole = str(PurePosixPath(text.path).with_suffix(""))
        alike = self._folded.get(folded(whole), [])
        if not exact:
            return [image for image in alike if image not in self._claimed]
        found = self._paths.get(whole, []) if text.is_guessed else alike
        self._claimed.update(found)
        return found

    def named(self, key: str, folder: PurePosixPath) -> list[str]:
        """The images that a table in a folder calls so: by their path from there, from the root, or by name alone."""
        key = re.sub(r"\A(\./)+", "", key.strip().replace("\\", "/"))
        for path in (str(folder / key), key):
            if found := self._folded.get(folded(path)):
                return found
        bare = self._bare.get(folded(PurePosixPath(key).name), [])
        return bare if len({stem(image) for image in bare}) == 1 else []


def _any_stem(path: str) -> list[str]:
    """``photo`` of ``photo.bin``, which is a picture under a wrong suffix, and not ``2024.01`` of ``2024.01.05``."""
    return [str(PurePosixPath(path).with_suffix(""))] if re.fullmatch(r"\.[a-z][a-z0-9]{0,4}", suffix_of(path)) else []


def _index(images: Iterable[str], names_of: Callable[[str], Iterable[str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for image in images:
        for name in dict.fromkeys(names_of(image)):
            found[name].append(image)
    return found


def _parsed(text: str, suffix: str) -> tuple[str | None, list[tuple[str, str]]]:
    """The one caption that a text is, or what it says of files by name."""
    if suffix == JSON_SUFFIX:
        value = _json(text)
        return _caption(value), _rows(value)
    if suffix in (".csv", ".tsv"):
        return None, _csv_rows(text)
    return None, _rows([_json(line) for line in text.split("\n")])  # JSON may hold any other line end


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or nested without end
        return None


def _caption(value: object) -> str | None:
    """What a JSON value says as a caption."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return value[0] if " " in value[0] else ", ".join(value)  # several captions, of which trainers take one; or tags
    if isinstance(value, dict):
        fields = {str(key).lower(): item for key, item in value.items()}
        for name in CAPTION_FIELDS:
            if isinstance(fields.get(name), str | list) and (said := _caption(fields[name])):
                return said
    return None


def _rows(value: object) -> list[tuple[str, str]]:
    """(file, caption) of all that a JSON value says of files."""
    if isinstance(value, list):
        rows = []
        for item in value:
            fields = {str(key).lower(): content for key, content in item.items()} if isinstance(item, dict) else {}
            file = next((fields[name] for name in FILE_FIELDS if isinstance(fields.get(name), str)), None)
            if file is not None and (caption := _caption(item)) is not None:
                rows.append((file, caption))
        return rows
    if isinstance(value, dict):
        rows = [(key, said) for key, item in value.items() if (said := _caption(item)) is not None]
        return rows + [row for item in value.values() if isinstance(item, list) for row in _rows(item)]
    return []


def _csv_rows(text: str) -> list[tuple[str, str]]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t|", key=first.count)
    try:
        rows = [
            row
            for row in csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""), delimiter=delimiter, skipinitialspace=True)
            if row
        ]
    except csv.Error:  # a field without end
        return []
    if not rows:
        return []
    header = [cell.strip().lower() for cell in rows[0]]
    file = next((header.index(name) for name in FILE_FIELDS if name in header), None)
    caption = next((header.index(name) for name in CAPTION_FIELDS if name in header), None)
    if file is None or caption is None:  # no header: the file, then its caption, which may hold the delimiter
        return [(row[0], delimiter.join(row[1:])) for row in rows if len(row) > 1]
    return [(row[file], row[caption]) for row in rows[1:] if len(row) > max(file, caption)]
