"""What a file is, by how its bytes begin; its name counts only where bytes of that kind say nothing."""

from __future__ import annotations

import re
from enum import Enum, auto

HEAD_BYTES = 512  # of a file: enough for every signature here
NOT_READ = "which is not read here: save it as JPEG"
SEND = "Send a .zip or .tar.gz of images"

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif", ".hif"),
)
TEXT_SUFFIXES = (".txt", ".caption")  # OneTrainer's and ai-toolkit's; kohya's default is .caption
JSON_SUFFIX = ".json"
TABLE_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".tbz2", ".bz2", ".txz", ".xz", ".7z", ".rar", ".zst")
RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef"),
    *(".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
OTHER_PICTURES = {  # by suffix: what no trainer reads, although it is a picture
    ".jxl": "JPEG XL",
    ".jp2": "JPEG 2000",
    ".j2k": "JPEG 2000",
    ".psd": "a Photoshop document",
    ".psb": "a Photoshop document",
    ".xcf": "a GIMP document",
    ".svg": "a vector drawing",
    ".svgz": "a vector drawing",
    ".exr": "OpenEXR",
    ".tga": "a Targa image",
    **dict.fromkeys(RAW_SUFFIXES, "a camera's raw file"),
}

HEIF = rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)"  # HEIC, as iPhones save photographs
IMAGE = (
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II[*+]\0|MM\0[*+]|....ftyp.{0,60}?avi[fs]|" + HEIF
)
ARCHIVE = (
    rb"PK\x03\x04|PK\x05\x06|Rar!\x1a\x07|7z\xbc\xaf\x27\x1c|\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ\0|\x28\xb5\x2f\xfd|.{257}ustar"
)
OTHER = {
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"8BPS": "a Photoshop document",
    rb"gimp xcf": "a GIMP document",
    rb"II\*\0....CR|....ftypcrx |FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|FOVb|\0MRM": "a camera's raw file",
    rb"(\xef\xbb\xbf)?\s*(<\?xml.*?)?(<!--.*?-->\s*)?(<!DOCTYPE svg.*?)?<svg": "a vector drawing",
    rb"\x76\x2f\x31\x01": "OpenEXR",
}


class Kind(Enum):
    """What a file is to a trainer."""

    IMAGE = auto()
    OTHER_PICTURE = auto()  # that is not read here
    TEXT = auto()  # under a caption's suffix
    JSON = auto()
    TABLE = auto()
    ARCHIVE = auto()
    ELSE = auto()


def kind_of(suffix: str, head: bytes | None) -> Kind:
    """What a file is.

    Args:
        suffix: of its name, in small letters.
        head: its first `HEAD_BYTES`; None where they cannot be had, so that the name alone decides.
    """
    if head:
        if other_picture(head):
            return Kind.OTHER_PICTURE
        if re.match(IMAGE, head, re.DOTALL):
            is_raw = suffix in RAW_SUFFIXES and head.startswith((b"II", b"MM"))  # most raw files are TIFF files, too
            return Kind.OTHER_PICTURE if is_raw else Kind.IMAGE
        if begins_archive(head) and (not suffix or suffix in _READ or suffix in ARCHIVE_SUFFIXES):
            return Kind.ARCHIVE  # and not a document or a model, many of which are zips inside
    if suffix in IMAGE_SUFFIXES:
        return Kind.IMAGE
    if suffix in OTHER_PICTURES:
        return Kind.OTHER_PICTURE
    if suffix in ARCHIVE_SUFFIXES:
        return Kind.ARCHIVE
    if suffix in TEXT_SUFFIXES:
        return Kind.TEXT
    if suffix == JSON_SUFFIX:
        return Kind.JSON
    return Kind.TABLE if suffix in TABLE_SUFFIXES else Kind.ELSE


_READ = {*IMAGE_SUFFIXES, *TEXT_SUFFIXES, JSON_SUFFIX, *TABLE_SUFFIXES}


def is_picture(head: bytes) -> bool:
    """Whether the bytes are those of a picture, read here or not."""
    return re.match(IMAGE, head, re.DOTALL) is not None or other_picture(head) is not None


def other_picture(head: bytes) -> str | None:
    """The name of a picture's format that is not read here; None for anything else."""
    return next((name for begins, name in OTHER.items() if re.match(begins, head, re.DOTALL)), None)


def begins_archive(head: bytes) -> bool:
    """Whether the bytes are those of an archive, read here or not, or of a document or model that is one inside."""
    return re.match(ARCHIVE, head, re.DOTALL) is not None


def is_text(head: bytes) -> bool:
    """Whether a person could read it."""
    return bool(head.strip()) and not re.search(rb"[\0-\x08\x0e-\x1a]", head)


WHOLE_FILES = {  # what is sent in place of an archive, by how it begins
    rb"\Z": f"the file is empty. {SEND}",
    rb"(\xef\xbb\xbf)?\s*<": (
        "this is a web page, not an archive; the address may need a login, or not be the file's own. Send a direct link"
    ),
    IMAGE: f"this is a single image, not an archive. {SEND}",
    rb"Rar!|7z\xbc\xaf|\x28\xb5\x2f\xfd": f"this is a RAR, 7-Zip or Zstandard archive, which is not read here. {SEND}",
    rb"version https://git-lfs\.github\.com": (
        "this is a Git-LFS pointer, not the archive itself. Fetch the file with `git lfs pull` and send that"
    ),
}


def what_it_is(head: bytes) -> str:
    """A sentence with its remedy about a file that is no archive."""
    for begins, what in WHOLE_FILES.items():
        if re.match(begins, head, re.DOTALL):
            return what
    return f"this is neither a zip nor a tar archive. {SEND}"
