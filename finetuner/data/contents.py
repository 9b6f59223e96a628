"""What was found in an archive: pictures, what may hold their captions, and the rest.

Files are known by their numbers here: what their names say is only certain when all of them have been seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from PIL import Image

from finetuner.data.caption_files import MAX_CAPTION_BYTES, MAX_TABLE_BYTES, CaptionFile
from finetuner.data.entry import ArchiveError, Entry
from finetuner.data.images import decode_image
from finetuner.data.kinds import NOT_READ, OTHER_PICTURES, Kind, begins_archive, is_picture, is_text, kind_of, other_picture
from finetuner.data.names import MAX_PATH_BYTES, Name, ascii_name, is_hidden, is_too_long, safe_path, suffix_of

MAX_IMAGES = 2000  # 8 GB once decoded
MAX_TABLES_BYTES = 16 * 2**20  # of all JSON files and tables of one archive
CAPTION_SUFFIX = ".txt"
READ = (Kind.IMAGE, Kind.TEXT, Kind.ARCHIVE)


@dataclass(frozen=True)
class Picture:
    number: int
    digest: bytes  # SHA-256 of the file
    image: Image.Image  # as `decode_image` gives it


@dataclass(frozen=True)
class Problem:
    number: int
    sentence: str  # goes on from the file's name


@dataclass
class Contents:
    """Filled file by file."""

    raw_names: list[tuple[bytes, str | None]] = field(default_factory=list)  # by number, as `read_names` takes them
    pictures: list[Picture] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unread: list[Problem] = field(default_factory=list)  # pictures of formats that are not read
    hidden: list[int] = field(default_factory=list)  # pictures, too
    passed_over: list[int] = field(default_factory=list)
    other_archives: list[int] = field(default_factory=list)
    other_texts: list[int] = field(default_factory=list)  # which may have been meant as captions
    _texts: list[tuple[int, bytes | None]] = field(default_factory=list)
    _bytes_of_tables: int = 0

    def add(self, entry: Entry) -> None:
        """Note a file.

        Raises:
            ArchiveError: the damage, or a limit, ends the archive.
        """
        number = len(self.raw_names)
        raw, known = entry.raw_name, entry.unicode_name
        self.raw_names.append((raw[: MAX_PATH_BYTES + 1], known and known[: MAX_PATH_BYTES + 1]))
        certain = safe_path(known) if known else ascii_name(raw)
        suffix = suffix_of(certain)
        head = entry.head()
        kind = kind_of(suffix, head)
        if is_hidden(certain):
            (self.hidden if head and is_picture(head) else self.passed_over).append(number)
        elif kind is Kind.ELSE or (kind not in READ and not entry.is_file):
            self._pass_over(number, head)
        else:
            try:
                _check(certain, entry)
                self._add(number, entry, kind, suffix, head)
            except ArchiveError:
                raise
            except ValueError as error:
                self.problems.append(Problem(number, str(error)))

    def _pass_over(self, number: int, head: bytes | None) -> None:
        self.passed_over.append(number)
        if head and begins_archive(head):
            self.other_archives.append(number)
        elif head and is_text(head):
            self.other_texts.append(number)

    def _add(self, number: int, entry: Entry, kind: Kind, suffix: str, head: bytes | None) -> None:
        if kind is Kind.IMAGE:
            if len(self.pictures) == MAX_IMAGES:
                raise ArchiveError(f"the archive holds more than {MAX_IMAGES} images. Send fewer; 10 to 20 are usual")
            data = entry.read()
            self.pictures.append(Picture(number, hashlib.sha256(data).digest(), decode_image(data)))
        elif kind is Kind.OTHER_PICTURE:
            name = other_picture(head or b"") or OTHER_PICTURES[suffix]
            self.unread.append(Problem(number, f"is {name}, {NOT_READ}"))
        elif kind is Kind.ARCHIVE:
            raise ValueError("is an archive inside the archive: put the images themselves there")
        elif kind is Kind.TEXT:
            self._texts.append((number, entry.read() if entry.size <= MAX_CAPTION_BYTES else None))
        else:
            fits = entry.size <= MAX_TABLE_BYTES and self._bytes_of_tables + entry.size <= MAX_TABLES_BYTES
            self._bytes_of_tables += entry.size if fits else 0
            self._texts.append((number, entry.read() if fits else None))

    def caption_files(self, names: list[Name]) -> list[CaptionFile]:
        """What may hold captions, by the names that all files together have."""
        return [CaptionFile(names[number], content) for number, content in self._texts]


def _check(path: str, entry: Entry) -> None:
    if not entry.is_file:
        raise ValueError("is a link or a device, not a file: put the file itself into the archive")
    if is_too_long(path) or len(entry.raw_name) > MAX_PATH_BYTES:
        raise ValueError("has too long a name: shorten it")
    if any(suffix_of(folder) == CAPTION_SUFFIX for folder in path.split("/")[:-1]):  # where a caption's file may have to be
        raise ValueError(f"is in a folder whose name ends in {CAPTION_SUFFIX}: rename the folder")
