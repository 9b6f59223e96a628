"""Mutated archives of mutated images: each is read or refused in words, whatever its bytes are.

script/fuzz-archive runs this for longer, and on other archives each time.
"""

import bz2
import gzip
import lzma
import os
import struct
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import pytest
from archives import encoded, member, nothing_written, peak_memory, photo, tar_of, tarred, zip_of, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from finetuner.data.archive import Example, open_archive

LONG_RUN = "FUZZ_ARCHIVES" in os.environ
ARCHIVES = int(os.environ.get("FUZZ_ARCHIVES", "400"))
GIBIBYTE = 2**30

EXIF = Image.Exif()
EXIF.update({0x0112: 6, 0x010E: "a description", 0x011A: 72.0})
METADATA = {"exif": EXIF, "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
NOISE = Image.effect_noise((24, 16), 90)
FRAMES = {"save_all": True, "append_images": [NOISE.convert("RGB").rotate(180)]}
FILES = {
    "a.jpg": encoded(NOISE.convert("RGB"), "JPEG", **METADATA),
    "b.jpg": encoded(NOISE.convert("CMYK"), "JPEG", progressive=True, **METADATA),
    "c.jpg": encoded(NOISE.convert("RGB"), "MPO", **FRAMES),
    "d.png": encoded(NOISE.convert("RGBA"), "PNG", **METADATA),
    "e.png": encoded(NOISE.convert("P"), "PNG", transparency=b"\0\x80", **METADATA),
    "f.png": encoded(Image.new("I;16", (24, 16), 40000), "PNG"),
    "g.webp": encoded(NOISE.convert("RGB"), "WEBP", **METADATA, **FRAMES),
    "h.gif": encoded(NOISE.convert("RGB"), "GIF", **FRAMES),
    "i.bmp": photo(format="BMP"),
    "j.tif": encoded(NOISE.convert("RGB"), "TIFF", compression="tiff_lzw", **METADATA),
    "k.tif": encoded(NOISE.convert("CMYK"), "TIFF", compression="tiff_adobe_deflate"),
    "l.tif": encoded(NOISE, "TIFF", compression="jpeg"),
    "m.avif": encoded(NOISE.convert("RGB"), "AVIF", speed=10, **METADATA),
    "x/a.txt": "a café".encode("utf-16"),
    "d.txt": b"a caption\r\n",
    "a.json": b'{"caption": "a thing"}',
    "metadata.jsonl": b'{"file_name": "a.jpg", "text": "a thing"}\n' * 3,
    "captions.csv": "file,caption\nd.png,\u732b\n".encode("gb18030"),
    "n": encoded(NOISE.convert("RGB"), "JPEG", restart_marker_blocks=1),
    "o.svg": b"<svg/>",
}
LINK = tar_of([member("link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), member("x", type=tarfile.DIRTYPE)], [b""] * 2)
ZIPS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
TARS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
TELLING = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\0\0\xff\xff", struct.pack("<I", 70000), b"PK\3\4"]


@st.composite
def mutated(draw, data: bytes) -> bytes:
    """Like ``data``, with a few bytes changed, overwritten by telling numbers, cut out, doubled or cut off."""
    mutant = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(mutant) - 1)))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(["flip", "telling", "cut out", "double", "cut off"])):
            case "flip":
                mutant[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "telling":
                mutant[at : at + 4] = draw(st.sampled_from(TELLING))
            case "cut out":
                del mutant[at : at + length]
            case "double":
                mutant[at:at] = mutant[at : at + length]
            case "cut off":
                del mutant[max(at, len(mutant) - 4 * length) :]
    return bytes(mutant)


@st.composite
def archives(draw) -> bytes:
    chosen = draw(st.lists(st.sampled_from(sorted(FILES)), min_size=1, max_size=4, unique=True))
    files = {name: draw(mutated(FILES[name])) if draw(st.booleans()) else FILES[name] for name in chosen}
    if draw(st.booleans()):
        files[draw(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)) + ".png"] = photo()
    if draw(st.booleans()):
        if draw(st.booleans()):
            raw = [(draw(st.binary(max_size=6)) + name.encode(), content) for name, content in files.items()]
            return draw(
                mutated(zip_of(raw, draw(st.sampled_from([b"", b"up\x05\0\1abcd"])), draw(st.sampled_from([0, 0x800]))))
            )
        return draw(mutated(zipped(files, draw(st.sampled_from(ZIPS)))))
    tar = draw(st.sampled_from([b"", LINK[:1024]])) + tarred(files, format=draw(st.sampled_from(TARS)))
    compress = draw(st.sampled_from([bytes, partial(gzip.compress, mtime=0), bz2.compress, lzma.compress]))
    return draw(mutated(compress(draw(mutated(tar)))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(
    max_examples=ARCHIVES,
    derandomize=not LONG_RUN,
    database=settings().database if LONG_RUN else None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=archives())
def test_any_bytes_are_read_or_refused_in_words(folder, data):
    path = folder / "archive"
    path.write_bytes(data)
    examples: list[Example] = []

    def read() -> None:
        try:
            with nothing_written():
                examples.extend(open_archive(path))
        except ValueError as error:
            assert str(error).startswith("input_images: ")

    assert peak_memory(read) < GIBIBYTE
    assert [path.name] == os.listdir(folder)
    for example in examples:
        assert example.image.mode == "RGB" and example.image.width * example.image.height <= 2**20 + 2**12
        assert (folder / example.caption_name).resolve().is_relative_to(folder)
