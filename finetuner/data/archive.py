"""``input_images``: an archive of images and captions -> verified examples."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from finetuner.data.caption_files import Captions, read_captions
from finetuner.data.contents import Contents, Picture, Problem
from finetuner.data.entry import ArchiveError
from finetuner.data.names import Name, distinct, folded, read_names, stem
from finetuner.data.unpack import entries

log = logging.getLogger(__name__)

FEW_IMAGES = 5
LISTED = 10  # files named in one message
SHOWN = 255  # characters of a name in a message


@dataclass(frozen=True)
class Example:
    name: str  # the file's path in the archive: relative, of parts that every file system takes, unlike all others
    image: Image.Image  # RGB, at most a megapixel
    caption: str | None  # None where the archive has none
    shares_stem: bool = False  # with an image of another caption, so that its caption's file needs the whole name

    @property
    def caption_name(self) -> str:
        """The path of the caption file beside this image."""
        return f"{self.name if self.shares_stem else stem(self.name)}.txt"


@dataclass(frozen=True)
class CaptionedExample(Example):
    """An example with what it is trained on."""

    caption: str
    plain: str = ""  # the caption without the trigger word; the caption itself in mode general, which preserves nothing


def open_archive(path: Path) -> list[Example]:
    """Read every image of a zip or tar archive (also compressed), with the captions that it has for them, by name.

    Raises:
        ValueError: it is no such archive, is damaged, holds no image, or holds an image that cannot be read. All
            problems that were found are in the one message, by file name.
    """
    contents = Contents()
    problems = []
    try:
        for entry in entries(path):
            contents.add(entry)
    except ArchiveError as error:
        problems.append(f"{error}.")
    names, encoding = read_names(contents.raw_names)
    if contents.passed_over:
        log.info("input_images: files passed over, being neither images nor captions: %d", len(contents.passed_over))
        log.info("input_images: these are neither: %s", _names_listed(contents.passed_over, names))
    pictures = _once(contents.pictures, names)
    found = read_captions(contents.caption_files(names), [names[picture.number] for picture in pictures])
    lost = [problem for problem in contents.unread if not _has_twin(problem, pictures, names)]
    named = [f"{names[problem.number].path[:SHOWN]} {problem.sentence}" for problem in contents.problems + lost]
    named += found.problems
    if named:
        problems.append(f"{_listed(named)}. Mend or remove what is named and send the archive again.")
    if not pictures and not problems:
        hidden = f" What is hidden was left out: {_names_listed(contents.hidden, names)}." if contents.hidden else ""
        problems.append(
            f"the archive holds no image.{hidden} Put JPG, PNG or WebP files into it, captions as .txt files beside them."
        )
    if problems:
        raise ValueError(f"input_images: {' '.join(problems)}")
    examples = _examples(pictures, names, found)
    if encoding:
        guessed = [name.path for name in names if name.is_guessed]
        _warn(f"these names are in no Unicode encoding, and were read as {encoding} (pack the files as UTF-8 names)", guessed)
    _warn_of_what_is_left_out(contents, names, pictures, found)
    _warn_of_images(examples)
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


def _once(pictures: list[Picture], names: list[Name]) -> list[Picture]:
    """The pictures without those that come again under the same name, with the same bytes."""
    seen: dict[tuple[str, bytes], Picture] = {}
    again = []
    for picture in pictures:
        key = names[picture.number].path, picture.digest
        if seen.setdefault(key, picture) is not picture:
            again.append(key[0])
    _warn("in the archive more than once, with the same content, and taken once", again)
    return list(seen.values())


def _examples(pictures: list[Picture], names: list[Name], found: Captions) -> list[Example]:
    """Every name as the archive has it, unless a file system could take two of them for one."""
    taken: set[str] = set()
    examples, renamed = [], []
    for picture in sorted(pictures, key=lambda picture: (names[picture.number].path, picture.number)):
        path = names[picture.number].path
        name = distinct(path, taken)
        if name != path:
            renamed.append(f"{path} = {name}")
        examples.append(Example(name, picture.image, found.of.get(path)))
    _warn("names that are the same, or differ only by letter case, for different images; the later one is called anew", renamed)
    captions = defaultdict(set)
    for example in examples:
        captions[folded(example.caption_name)].add(example.caption)
    examples = [replace(e, shares_stem=len(captions[folded(e.caption_name)]) > 1) for e in examples]
    return sorted(examples, key=lambda example: example.name)


def _has_twin(problem: Problem, pictures: list[Picture], names: list[Name]) -> bool:
    """Whether a picture that is not read lies beside one of the same stem that is, as cameras save them."""
    own = folded(names[problem.number].path.rpartition(".")[0])
    return any(folded(stem(names[picture.number].path)) == own for picture in pictures)


def _warn_of_what_is_left_out(contents: Contents, names: list[Name], pictures: list[Picture], found: Captions) -> None:
    _warn("left out, for the same picture lies beside it in a format that is read", _paths(contents.unread, names))
    _warn("left out, being hidden, although it is a picture (rename it, if it is meant)", _of(contents.hidden, names))
    _warn("left out, being an archive inside (put its images there, if it has any)", _of(contents.other_archives, names))
    _warn("no image has the name of these texts", found.unused)
    stems = {folded(stem(names[picture.number].path)) for picture in pictures} | {"metadata", "captions"}
    other = [path for path in _of(contents.other_texts, names) if folded(path.rpartition(".")[0]) in stems]
    _warn("not read as captions (save them as .txt beside the images, or as metadata.jsonl)", other)
    _warn("captions of one image in several files", found.outvoted)
    _warn(
        "these captions are in no Unicode encoding, and were read as said; save them as UTF-8, if this is wrong",
        [f"{name} ({encoding})" for name, encoding in sorted(found.guessed.items())],
    )
    if found.tables:
        log.info("input_images: captions were read from %s", _listed(found.tables))


def _warn_of_images(examples: list[Example]) -> None:
    """Of what works, and is hardly meant."""
    if len(examples) < FEW_IMAGES:
        log.warning("input_images: few images (%d): 10 or more, all different, teach a concept better", len(examples))
    first: dict[bytes, str] = {}
    copies = []
    for example in examples:
        digest = hashlib.sha256(f"{example.image.size}".encode() + example.image.tobytes()).digest()
        original = first.setdefault(digest, example.name)
        if original != example.name:
            copies.append(f"{example.name} = {original}")
    _warn("the same pixels twice, which weighs them double", copies)


def _warn(what: str, files: list[str]) -> None:
    if files:
        log.warning("input_images: %s: %s", what, _listed(files))


def _of(numbers: list[int], names: list[Name]) -> list[str]:
    return [names[number].path for number in numbers]


def _paths(problems: list[Problem], names: list[Name]) -> list[str]:
    return _of([problem.number for problem in problems], names)


def _names_listed(numbers: list[int], names: list[Name]) -> str:
    return _listed(_of(numbers, names))


def _listed(items: list[str]) -> str:
    more = len(items) - LISTED
    return "; ".join(item[: 2 * SHOWN] for item in items[:LISTED]) + (f"; and {more} more" if more > 0 else "")
