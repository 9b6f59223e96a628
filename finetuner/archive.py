"""``input_images``: an archive of images and captions -> verified examples. Nothing is ever extracted to disk."""

from __future__ import annotations

import io
import logging
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageCms, ImageOps

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
UNREADABLE_SUFFIXES = (".heic", ".heif")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")
MAX_ENTRIES = 10_000  # a training set has tens of files; a bomb has millions
MAX_FILE_BYTES = 100 * 2**20  # the largest camera JPEGs and PNGs are below 60 MB
MAX_TOTAL_BYTES = 4 * 2**30  # unpacked; at most one file's bytes are in memory at a time
MAX_PIXELS = 100_000_000  # medium-format cameras reach this; beyond it a small file can fill the memory
KEPT_PIXELS = 2**20  # FLUX.1 trains on at most a megapixel: more is scaled down at once
FEW_IMAGES = 5
REPORTED_PROBLEMS = 10


@dataclass(frozen=True)
class Example:
    name: str  # the file's name in the archive
    image: Image.Image  # RGB, at most a megapixel
    caption: str | None  # None where the archive has none

    @property
    def caption_name(self) -> str:
        """The caption file's name beside this image: a relative path, of parts that every file system takes."""
        parts = PurePosixPath(self.name).with_suffix("").parts
        return "/".join(part.encode()[:200].decode(errors="ignore") for part in parts) + ".txt"


@dataclass(frozen=True)
class Entry:
    path: PurePosixPath
    size: int
    read: Callable[[int], bytes]  # read(limit) -> at most that many bytes

    @property
    def stem(self) -> str:
        return str(self.path.with_suffix("")).lower()

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()


def open_archive(path: Path) -> list[Example]:
    """Read every image of a zip or tar archive (also compressed), with the captions beside them, by name.

    Raises:
        ValueError: it is no such archive, is damaged, holds no image, or holds an image that cannot be read. All
            problems that were found are in the one sentence, by file name.
    """
    images: dict[str, Image.Image] = {}
    texts: dict[str, str] = {}
    problems: list[str] = []
    passed_over = 0
    for entry in _entries(path):
        try:
            if entry.suffix in IMAGE_SUFFIXES:
                images[str(entry.path)] = _read_image(entry)
            elif entry.suffix == ".txt":
                texts[entry.stem] = _read_caption(entry)
            elif entry.suffix in UNREADABLE_SUFFIXES:
                raise ValueError("is HEIC, which is not read here; save it as JPEG")
            elif entry.suffix in ARCHIVE_SUFFIXES:
                raise ValueError("is an archive inside the archive; unpack it and pack its images themselves")
            else:
                passed_over += 1
        except ValueError as error:
            problems.append(f"{entry.path} {error}")
    if passed_over:
        log.info("input_images: passed over %d files that are neither images nor captions", passed_over)
    if problems:
        more = len(problems) - REPORTED_PROBLEMS
        listed = "; ".join(problems[:REPORTED_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(f"input_images: {listed}. Mend or remove what is named and send the archive again.")
    if not images:
        raise ValueError(
            "input_images: the archive holds no image. Put JPG, PNG or WebP files into it, captions as .txt files beside them."
        )
    if len(images) < FEW_IMAGES:
        log.warning("input_images: only %d images; 10 or more of them, all different, teach a concept better", len(images))
    examples = [
        Example(name, image, texts.get(str(PurePosixPath(name).with_suffix("")).lower()) or None)
        for name, image in sorted(images.items())
    ]
    log.info("input_images: %d images, %d with a caption", len(examples), sum(e.caption is not None for e in examples))
    return examples


def _entries(path: Path) -> Iterator[Entry]:
    """The archive's regular files, without what macOS and Windows leave in archives."""
    total = 0
    for count, entry in enumerate(_open(path)):
        total += entry.size
        if count >= MAX_ENTRIES or total > MAX_TOTAL_BYTES:
            raise ValueError(
                f"input_images: the archive holds more than {MAX_ENTRIES} files or {MAX_TOTAL_BYTES >> 30} GiB."
                " Send fewer images."
            )
        hidden = any(part.startswith((".", "__MACOSX")) for part in entry.path.parts)
        if not hidden and entry.path.name.lower() not in ("thumbs.db", "desktop.ini"):
            yield entry


def _open(path: Path) -> Iterator[Entry]:
    try:
        if zipfile.is_zipfile(path):
            yield from _zip_entries(path)
        elif tarfile.is_tarfile(path):
            yield from _tar_entries(path)
        else:
            raise ValueError(f"input_images: {_what_it_is(path)}. Send a .zip or .tar.gz of images.")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"input_images: the archive is damaged ({error}). Pack and send it again.") from error


def _zip_entries(path: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 0x1:
                raise ValueError("input_images: the zip is encrypted. Pack it again without a password.")

            def read(limit: int, info: zipfile.ZipInfo = info) -> bytes:
                with archive.open(info) as file:
                    return file.read(limit)

            yield Entry(_clean_path(info.filename), info.file_size, read)


def _tar_entries(path: Path) -> Iterator[Entry]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile():  # links and devices are passed over
                yield Entry(
                    _clean_path(member.name),
                    member.size,
                    lambda limit, member=member: archive.extractfile(member).read(limit),
                )


def _clean_path(name: str) -> PurePosixPath:
    """A relative path that leads nowhere else, of printable characters."""
    name = "".join(c if c.isprintable() else "_" for c in name.replace("\\", "/"))
    return PurePosixPath(*[part for part in PurePosixPath(name).parts if part.strip("/") not in ("", "..")])


def _what_it_is(path: Path) -> str:
    head = path.read_bytes()[:512] if path.stat().st_size < MAX_FILE_BYTES else b""
    if not head:
        return "the file is empty"
    if head.lstrip()[:1] == b"<":
        return "this is a web page, not an archive; the address may need a login or a direct download link"
    try:
        with Image.open(path) as image:
            return f"this is a single {image.format} image, not an archive"
    except OSError:
        return "this is neither a zip nor a tar archive"


def _read(entry: Entry) -> bytes:
    if entry.size > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES >> 20} MiB")
    data = entry.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"unpacks to more than {MAX_FILE_BYTES >> 20} MiB")
    return data


def _read_image(entry: Entry) -> Image.Image:
    """RGB as a person would see it: upright, in sRGB, over white, its first frame."""
    data = _read(entry)
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns of large images; the limit below refuses them
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"has {image.width} x {image.height} pixels; {MAX_PIXELS // 10**6} megapixels are read at most"
                )
            image.draft("RGB", (2048, 2048))  # a JPEG decodes at a fraction of its size where that is enough
            image = ImageOps.exif_transpose(image)
            return _scaled_down(_over_white(_in_srgb(image)))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read as an image ({error})") from error


def _in_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    try:
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except ImageCms.PyCMSError:  # a profile that does not fit its image: every viewer ignores it too
        return image


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 bits a channel; Pillow's own conversion clips them at 255
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _scaled_down(image: Image.Image) -> Image.Image:
    factor = (KEPT_PIXELS / (image.width * image.height)) ** 0.5
    if factor >= 1:
        return image
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def _read_caption(entry: Entry) -> str:
    """Text in any encoding people save it in, its white space and control characters as single spaces."""
    data = _read(entry)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
