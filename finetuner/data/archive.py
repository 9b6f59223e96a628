"""``input_images``: an archive of images and captions -> verified examples."""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from finetuner.data.images import decode_image
from finetuner.data.unpack import ArchiveError, Entry, entries

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
CAPTION_SUFFIX = ".txt"
ARCHIVE_SUFFIXES = {".zip", ".tar", ".tgz", ".gz", ".tbz2", ".bz2", ".txz", ".xz", ".7z", ".rar"}
MAX_IMAGES = 2000  # 8 GB once decoded
MAX_CAPTION_BYTES = 32 * 2**10  # ten times what any text encoder reads
MAX_NAME_BYTES = 255  # of each part of a path, as in most file systems
MAX_PATH_BYTES = 1000
FEW_IMAGES = 5
LISTED = 10  # files named in one message


@dataclass(frozen=True)
class Example:
    name: str  # the file's path in the archive: relative, of parts that every file system takes
    image: Image.Image  # RGB, at most a megapixel
    caption: str | None  # None where the archive has none

    @property
    def caption_name(self) -> str:
        """The path of the caption file beside this image."""
        return str(PurePosixPath(self.name).with_suffix(CAPTION_SUFFIX))


@dataclass(frozen=True)
class CaptionedExample(Example):
    """An example with what it is trained on."""

    caption: str


def open_archive(path: Path) -> list[Example]:
    """Read every image of a zip or tar archive (also compressed), with the captions beside them, by name.

    Raises:
        ValueError: it is no such archive, is damaged, holds no image, or holds an image that cannot be read. All
            problems that were found are in the one message, by file name.
    """
    contents = _Contents()
    problems = []
    try:
        for entry in entries(path):
            contents.add(entry)
    except ArchiveError as error:
        problems.append(f"{error}.")
    if contents.passed_over:
        log.info("input_images: files passed over, being neither images nor captions: %d", contents.passed_over)
    examples = contents.examples()
    if contents.problems:
        problems.append(f"{_listed(contents.problems)}. Mend or remove what is named and send the archive again.")
    if not examples and not problems:
        problems.append("the archive holds no image. Put JPG, PNG or WebP files into it, captions as .txt files beside them.")
    if problems:
        raise ValueError(f"input_images: {' '.join(problems)}")
    contents.warn()
    log.info(
        "input_images: images: %d, of them with a caption: %d", len(examples), sum(e.caption is not None for e in examples)
    )
    return examples


def data_fingerprint(examples: list[Example]) -> str:
    """SHA-256 of every pixel and caption."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.name}\0{example.caption}\0{example.image.size}\0".encode())
        digest.update(example.image.tobytes())
    return digest.hexdigest()


@dataclass
class _Contents:
    """What was found in an archive so far."""

    images: dict[str, Image.Image] = field(default_factory=dict)  # by name
    texts: dict[str, tuple[str, bytes | None]] = field(default_factory=dict)  # by stem: name, content if not too much
    problems: list[str] = field(default_factory=list)
    passed_over: int = 0

    def add(self, entry: Entry) -> None:
        path = _path(entry.name)
        suffix = path.suffix.lower()
        if _is_hidden(path) or suffix not in IMAGE_SUFFIXES | ARCHIVE_SUFFIXES | {CAPTION_SUFFIX}:
            self.passed_over += 1
            return
        try:
            _check(path, entry)
            if suffix in IMAGE_SUFFIXES:
                self._add_image(str(path), entry)
            elif suffix == CAPTION_SUFFIX:
                self._add_text(str(path), entry)
            else:
                raise ValueError("is an archive inside the archive: put the images themselves there")
        except ArchiveError:
            raise
        except ValueError as error:
            self.problems.append(f"{str(path)[:MAX_NAME_BYTES]} {error}")

    def _add_image(self, name: str, entry: Entry) -> None:
        if name in self.images:
            raise ValueError("is in the archive more than once: keep one")
        if len(self.images) == MAX_IMAGES:
            raise ArchiveError(f"the archive holds more than {MAX_IMAGES} images. Send fewer; 10 to 20 are usual")
        self.images[name] = decode_image(entry.read())

    def _add_text(self, name: str, entry: Entry) -> None:
        """Keep it as it is: whether it is a caption shows when all images are known."""
        content = entry.read() if entry.size <= MAX_CAPTION_BYTES else None
        other, its_content = self.texts.setdefault(_stem(name), (name, content))
        if its_content != content:
            raise ValueError(f"is for the same image as {other}: keep one")

    def examples(self) -> list[Example]:
        return [Example(name, image, self._caption(name)) for name, image in sorted(self.images.items())]

    def _caption(self, image_name: str) -> str | None:
        name, content = self.texts.get(_stem(image_name), (None, b""))
        try:
            return _text(content) or None
        except ValueError as error:
            self.problems.append(f"{name} {error}")
            return None

    def warn(self) -> None:
        """Of what works, and is hardly meant."""
        if len(self.images) < FEW_IMAGES:
            log.warning("input_images: few images (%d): 10 or more, all different, teach a concept better", len(self.images))
        if copies := self._copies():
            log.warning("input_images: the same pixels twice, which weighs them double: %s", _listed(copies))
        stems = {_stem(name) for name in self.images}
        if unused := sorted(name for stem, (name, _) in self.texts.items() if stem not in stems):
            log.warning("input_images: no image has the name of these texts: %s", _listed(unused))

    def _copies(self) -> list[str]:
        first: dict[bytes, str] = {}
        copies = []
        for name, image in sorted(self.images.items()):
            original = first.setdefault(hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest(), name)
            if original != name:
                copies.append(f"{name} = {original}")
        return copies


def _path(name: str) -> PurePosixPath:
    """In printable characters, spelt in one way: macOS takes accents apart, others do not."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    return PurePosixPath("".join(c if c.isprintable() else "_" for c in name))


def _stem(name: str) -> str:
    """What an image and its caption have in common."""
    return str(PurePosixPath(name).with_suffix("")).casefold()


def _is_hidden(path: PurePosixPath) -> bool:
    """Whether its name says so, or macOS put it there: such files may be called .jpg and be none."""
    return any(part.startswith((".", "__MACOSX")) and part != ".." for part in path.parts)


def _check(path: PurePosixPath, entry: Entry) -> None:
    if not entry.is_file:
        raise ValueError("is a link or a device, not a file: put the file itself into the archive")
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:/", str(path)):
        raise ValueError("has a path that leads out of the archive: pack the folder that holds it")
    if len(str(path).encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in path.parts):
        raise ValueError("has too long a name: shorten it")
    if any(folder.suffix == CAPTION_SUFFIX for folder in path.parents):  # where a caption's file may have to be
        raise ValueError(f"is in a folder whose name ends in {CAPTION_SUFFIX}: rename the folder")


def _text(content: bytes | None) -> str:
    """In any encoding that people save captions in, all white space and control characters as single spaces."""
    if content is None:
        raise ValueError(f"is larger than {MAX_CAPTION_BYTES >> 10} KiB, too long for a caption")
    text = _decoded(content)
    # Of the characters that are not seen, only the two that join letters (in Persian, in emoji) belong to a text.
    kept = (c for c in text if c in "\u200c\u200d" or unicodedata.category(c) != "Cf")
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in kept).split())


def _decoded(content: bytes) -> str:
    encoding = _unicode_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-16"):
            raise ValueError("is not text: save it as UTF-8") from error
    return content.decode("cp1252", errors="ignore")  # Latin-1 as Windows has it, with quotation marks and dashes


def _unicode_encoding(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for encoding, high_bytes in ("utf-16-le", content[1::2]), ("utf-16-be", content[::2]):
        if high_bytes.count(0) > len(high_bytes) / 2:
            return encoding
    return "utf-8"


def _listed(items: list[str]) -> str:
    more = len(items) - LISTED
    return "; ".join(items[:LISTED]) + (f"; and {more} more" if more > 0 else "")
