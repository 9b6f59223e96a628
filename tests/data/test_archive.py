"""Any archive a person sends: what is read of it, and what is said of the rest."""

import bz2
import gzip
import io
import logging
import lzma
import struct
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from pathlib import Path

import pytest
from archives import RED, encoded, member, peak_memory, photo, tar_of, tarred, zipped
from PIL import Image

from finetuner.data import contents, entry, unpack
from finetuner.data.archive import Example

PROJECT = Path(__file__).parents[2]
BLUE = (0, 0, 255)
MEBIBYTE = 2**20


def names(examples: list[Example]) -> list[str]:
    return [example.name for example in examples]


def captions(examples: list[Example]) -> dict[str, str | None]:
    return {example.name: example.caption for example in examples}


def patched(data: bytes, old: bytes, new: bytes, count: int = -1) -> bytes:
    assert old in data and len(old) == len(new)
    return data.replace(old, new, count)


# Formats

FILES = {"b.png": photo(), "a/a.jpg": photo(BLUE, format="JPEG"), "b.txt": b"a red thing"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_reads_a_zip_whatever_it_is_called(read, method):
    examples = read(zipped(FILES, method), name="photos.tar.gz")
    assert captions(examples) == {"a/a.jpg": None, "b.png": "a red thing"}
    assert [example.image.mode for example in examples] == ["RGB", "RGB"]
    assert examples[1].image.getpixel((0, 0)) == RED


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_reads_a_tar_whatever_it_is_called(read, compression, format):
    examples = read(tarred(FILES, compression, format), name="photos.zip")
    assert captions(examples) == {"a/a.jpg": None, "b.png": "a red thing"}
    assert examples[1].image.getpixel((0, 0)) == RED


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["x" * 150 + ".png", "d" * 90 + "/" + "e" * 90 + "/x.png", "фото 1.png", "PK.png"])
def test_reads_any_name_of_a_tar(read, format, name):
    assert names(read(tarred({name: photo()}, format=format))) == [name]


def test_reads_a_tar_with_a_header_for_all_files(read):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "of git"}) as archive:
        archive.addfile(member("a.png", len(photo())), io.BytesIO(photo()))
    assert names(read(data.getvalue())) == ["a.png"]


def test_reads_a_tar_whose_sizes_are_in_pax_records(read):
    size = b"%d" % len(photo())
    record = b"%d size=%s\n" % (len(size) + 9, size)
    data = header("x", len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0")
    data += header("a.png", 0, tarfile.REGTYPE) + photo().ljust(512, b"\0") + bytes(1024)
    assert len(record) == len(size) + 9 and names(read(data)) == ["a.png"]


def test_reads_an_xz_file_of_several_streams(read):
    data = tarred(FILES)
    assert len(read(lzma.compress(data[:700]) + lzma.compress(data[700:]))) == 2


def test_reads_a_zip_behind_a_program_that_unpacks_it(read):
    assert len(read(b"MZ" + bytes(1000) + zipped(FILES))) == 2


def test_a_tar_that_ends_with_a_zip_is_a_tar(refused):
    refused(tarred({"a.png": photo(), "inner.zip": zipped({"b.png": photo()}, zipfile.ZIP_STORED)}), "inner.zip is an archive")


def test_the_order_is_that_of_the_names(read):
    files = {name: photo((i, 0, 0)) for i, name in enumerate(["c.png", "a/z.png", "B.png", "a.png"])}
    backwards = dict(reversed(files.items()))
    assert names(read(zipped(files))) == names(read(tarred(backwards))) == ["B.png", "a.png", "a/z.png", "c.png"]


def test_importing_needs_no_torch():
    code = "import sys, finetuner.data.archive; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


# What is passed over


def test_what_is_no_image_is_passed_over_and_counted_in_one_line(read, log):
    junk = ["__MACOSX/._a.png", "x/__MACOSX/b.png", ".DS_Store", "x/Thumbs.db", "desktop.ini", ".hidden.png", ".git/c.png"]
    junk += ["notes.pdf", "video.mp4", "name"]
    assert names(read(zipped({"a.png": photo()} | dict.fromkeys(junk, b"junk")))) == ["a.png"]
    lines = [record.message for record in log.records if "passed over" in record.message]
    assert lines == ["input_images: files passed over, being neither images nor captions: 10"]


def test_folders_are_nothing_to_speak_of(read, log):
    read(tar_of([member("x", type=tarfile.DIRTYPE), member("x/a.png", len(photo()))], [b"", photo()]))
    assert "passed over" not in log.text


# Odd zips


def zip_with(name: str = "a.png", content: bytes | None = None, **fields) -> bytes:
    """A zip of one image, with a header field set to what other programs put there."""
    info = zipfile.ZipInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, photo() if content is None else content)
    return file.getvalue()


@pytest.mark.parametrize(
    "fields",
    [
        {"create_system": 0, "external_attr": 0},
        {"create_system": 0, "external_attr": 0xA1FF0020},  # MS-DOS, and at random what Unix calls a link
        {"create_system": 3, "external_attr": 0},
        {"create_system": 3, "external_attr": 0o100000 << 16},  # a file that nobody may read
        {"create_system": 10, "external_attr": 0xFFFFFFFF},
        {"date_time": (1980, 0, 0, 0, 0, 0)},
        {"extra": b"\x99\x99\x04\x00abcd"},
        {"comment": b"PK\x05\x06"},
    ],
)
def test_odd_attributes_of_a_zip_do_not_matter(read, fields):
    assert names(read(zip_with(**fields))) == ["a.png"]


def test_a_name_that_differs_between_a_zips_two_headers_does_not_matter(read):
    data = zip_with("abcd.png")
    assert names(read(patched(data, b"abcd.png", b"\xff\xfe?\\.png", count=1))) == ["abcd.png"]


def test_a_utf8_name_without_its_mark_is_read(read):
    data = zip_with("фото.png")
    for signature, at in (b"PK\3\4", 6), (b"PK\1\2", 8):
        start = data.index(signature) + at
        data = data[:start] + b"\0\0" + data[start + 2 :]
    assert names(read(data)) == ["фото.png"]


def test_a_name_in_an_old_encoding_is_read(read):
    assert names(read(patched(zip_with("abc.png"), b"abc.png", b"\x81bc.png"))) == ["übc.png"]


def test_a_zip_that_was_streamed_is_read(read):
    """Its sizes are in its directory alone: a server that packs on the fly does not know them before."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self):
            raise io.UnsupportedOperation

    file = Pipe()
    with zipfile.ZipFile(file, "w") as archive, archive.open("a.png", "w", force_zip64=True) as entry:
        entry.write(photo())
    assert names(read(file.getvalue())) == ["a.png"]


def test_backslashes_are_slashes(read):
    assert names(read(patched(zip_with("x-a.png"), b"x-a.png", b"x\\a.png"))) == ["x/a.png"]


# Captions


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("photo.jpg", "photo.txt"),
        ("photo.jpg", "PHOTO.TXT"),
        ("PHOTO.JPEG", "photo.txt"),
        ("x/photo.png", "X/Photo.Txt"),
        ("photo.v2.webp", "photo.v2.txt"),
        ("cafe\u0301.jpg", "caf\u00e9.txt"),  # as macOS and as others write it
    ],
)
def test_a_caption_lies_beside_its_image_in_any_letter_case(read, image, text):
    assert [example.caption for example in read(zipped({image: photo(), text: b"a thing"}))] == ["a thing"]


def test_a_caption_in_another_folder_is_not_the_images(read, log):
    assert captions(read(zipped({"x/a.png": photo(), "a.txt": b"a thing"}))) == {"x/a.png": None}
    assert "no image has the name of these texts: a.txt" in log.text


def test_two_images_of_one_stem_share_their_caption(read):
    files = {"a.png": photo(), "a.jpg": photo(format="JPEG"), "a.txt": b"a thing"}
    assert captions(read(tarred(files))) == {"a.jpg": "a thing", "a.png": "a thing"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"])
def test_a_caption_is_read_in_any_encoding(read, encoding):
    assert captions(read(zipped({"a.png": photo(), "a.txt": "a café".encode(encoding)}))) == {"a.png": "a café"}


def test_a_caption_in_big_endian_utf16_with_its_mark_is_read(read):
    assert captions(read(zipped({"a.png": photo(), "a.txt": b"\xfe\xff" + "фото".encode("utf-16-be")}))) == {"a.png": "фото"}


def test_windows_quotation_marks_are_read(read):
    text = "a dog\u2019s \u201cbone\u201d"
    assert captions(read(zipped({"a.png": photo(), "a.txt": text.encode("cp1252")}))) == {"a.png": text}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a red\r\nthing\r\n\r\n", "a red thing"),
        ("a\tred\x0bthing\x00\x1b\x7f\x85", "a red thing"),
        ("\ufeffa\u200b red\u00ad \u202ething", "a red thing"),
        ("a\u00a0red\u2028thing", "a red thing"),
        ("می‌خواهم 👩‍🎨", "می‌خواهم 👩‍🎨"),
    ],
)
def test_captions_are_cleaned(read, text, cleaned):
    assert captions(read(zipped({"a.png": photo(), "a.txt": text.encode()}))) == {"a.png": cleaned}


@pytest.mark.parametrize("text", [b"", b" \r\n\t", b"\xef\xbb\xbf", b"\xff\xfe", b"\0\0"])
def test_an_empty_caption_is_a_missing_one(read, text):
    assert captions(read(zipped({"a.png": photo(), "a.txt": text}))) == {"a.png": None}


def test_two_different_texts_for_one_image_are_refused(refused):
    refused(zipped({"a.png": photo(), "a.txt": b"one", "A.TXT": b"two"}), r"A\.TXT is for the same image as a\.txt")


def test_a_caption_that_is_no_text_is_refused(refused):
    refused(zipped({"a.png": photo(), "a.txt": b"\xff\xfe\0\xd8"}), "a.txt is not text: save it as UTF-8")


def test_a_caption_as_long_as_a_book_is_refused_and_a_book_alone_is_not(read, refused):
    book = b"word " * 100_000
    refused(zipped({"a.png": photo(), "a.txt": book}), "a.txt is larger than 32 KiB")
    assert names(read(zipped({"a.png": photo(), "LICENSE.txt": book}))) == ["a.png"]


# Names and paths


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("/a.png", "a.png"),
        ("//host/a.png", "host/a.png"),
        ("../a.png", "a.png"),
        ("x/../../a.png", "x/a.png"),
        ("C:/x/a.png", "x/a.png"),
        ("..\\a.png", "a.png"),
        ("C:\\Users\\me\\a.png", "Users/me/a.png"),
        ("..", "_"),
        ("/ ../\0/.. /a.png", "_00/a.png"),
    ],
)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_path_that_leads_out_of_the_archive_loses_what_leads_there(read, pack, name, inside):
    """Nothing is unpacked to where it leads, and what is published is named after it."""
    if pack is tarred and "\0" in name:
        return
    caption = name.replace(".png", "") + ".txt"
    examples = read(renamed(pack({"ok.png": photo(), "?" * len(name): photo()}), name))
    assert names(examples) == sorted(["ok.png", inside])
    if name != "..":
        both = renamed(renamed(pack({"?" * len(name): photo(), "!" * len(caption): b"a thing"}), name), caption, "!")
        assert captions(read(both)) == {inside: "a thing"}


def renamed(data: bytes, name: str, mark: str = "?") -> bytes:
    """An archive in which the file whose name is all marks has a name that no packer here would write."""
    old, new = (mark * len(name)).encode(), name.encode()
    data = patched(data, old, new)
    if data.startswith(b"PK"):
        return data
    tar, at = bytearray(data), data.index(new) // 512 * 512
    tar[at + 148 : at + 156] = b"%06o\0 " % (sum(tar[at : at + 148]) + sum(tar[at + 156 : at + 512]) + 8 * 32)
    return bytes(tar)


def test_a_path_from_here_is_read(read):
    assert names(read(tarred({"./x/a.png": photo()}))) == ["x/a.png"]


LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]


@pytest.mark.parametrize("type", LINKS)
def test_links_and_devices_of_a_tar_are_refused_where_an_image_should_be(refused, type):
    members = [member("ok.png", len(photo())), member("a.png", type=type, linkname="/etc/passwd")]
    refused(tar_of(members, [photo(), b""]), "a.png is a link or a device, not a file: put the file itself")


@pytest.mark.parametrize("type", LINKS)
def test_other_links_and_devices_of_a_tar_are_passed_over(read, log, type):
    members = [member("latest", type=type, linkname="ok.png"), member("ok.png", len(photo()))]
    assert names(read(tar_of(members, [b"", photo()]))) == ["ok.png"]
    assert "neither images nor captions: 1" in log.text


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o060666, 0o010666])
def test_links_and_devices_of_a_zip_are_refused_where_an_image_should_be(refused, mode):
    data = zip_with(content=b"/etc/passwd", create_system=3, external_attr=mode << 16)
    refused(data, "a.png is a link or a device, not a file")


def test_names_that_no_file_could_have_are_refused(refused):
    refused(zipped({"x" * 300 + ".png": photo()}), "has too long a name: shorten it")
    refused(zipped({"x/" * 1000 + "a.png": photo()}), "has too long a name: shorten it")
    refused(zipped({"x.txt/a.png": photo()}), "is in a folder whose name ends in .txt: rename the folder")


@pytest.mark.parametrize(
    "name", ["a.png", "x/y/a.png", "a b.c.png", "\u202eevil\x1b[2J.png", "~.png", "$(reboot).png", "con.png", "é.png", "-.png"]
)
def test_a_captions_file_stays_in_its_folder(read, tmp_path, name):
    (example,) = read(zipped({name: photo()}))
    folder = tmp_path / "captions"
    file = folder / example.caption_name
    file.parent.mkdir(parents=True)
    file.write_text("a caption")
    assert file.resolve().is_relative_to(folder)
    assert file.suffix == ".txt" and file.stem == Path(example.name).stem
    assert example.name.isprintable()


def test_captions_written_beside_their_images_are_read_again(read):
    files = {"x/a.png": photo(), "b.c.jpg": photo(BLUE, format="JPEG")}
    written = {example.caption_name: f"of {example.name}".encode() for example in read(zipped(files))}
    assert captions(read(zipped(files | written))) == {name: f"of {name}" for name in files}


def test_a_name_that_comes_twice_with_the_same_content_is_taken_once(read, log):
    assert names(read(tar_of([member("a.png", len(photo()))] * 2, [photo()] * 2))) == ["a.png"]
    assert "in the archive more than once, with the same content, and taken once: a.png" in log.text


def test_a_name_that_comes_twice_for_two_images_is_two_names(read, log):
    blue = photo(BLUE)
    data = tar_of([member("a.png", len(photo())), member("a.png", len(blue)), member("a.txt", 3)], [photo(), blue, b"one"])
    examples = read(data)
    assert captions(examples) == {"a (2).png": "one", "a.png": "one"}
    assert [example.image.getpixel((0, 0)) for example in examples] == [BLUE, RED]
    assert "the later one is called anew: a.png = a (2).png" in log.text


@pytest.mark.parametrize(("one", "other"), [("Dog.png", "dog.png"), ("x/É.jpg", "X/e\u0301.jpg"), ("ß.png", "SS.png")])
def test_names_that_a_file_system_may_take_for_one_have_caption_files_of_their_own(read, one, other):
    examples = read(tarred({one: photo(), other: photo(BLUE)}))
    assert len({unicodedata.normalize("NFC", e.caption_name.casefold()) for e in examples}) == len(examples) == 2


def test_images_of_one_stem_with_captions_of_their_own_have_caption_files_of_their_own(read):
    files = {"a.png": photo(), "a.jpg": photo(BLUE, format="JPEG")}
    table = {"metadata.csv": b"file_name,text\na.png,a red thing\na.jpg,a blue thing\n"}
    examples = read(zipped(files | table))
    assert [(e.caption_name, e.caption) for e in examples] == [("a.jpg.txt", "a blue thing"), ("a.png.txt", "a red thing")]
    assert captions(read(zipped(files | {e.caption_name: e.caption.encode() for e in examples}))) == captions(examples)


# What is said of what is no archive of images


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the file is empty"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "a web page, not an archive.*direct link"),
        (photo(), "a single image"),
        (photo(format="JPEG"), "a single image"),
        (photo(format="WEBP"), "a single image"),
        (photo(format="AVIF"), "a single image"),
        (photo(format="BMP"), "a single image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a single image"),
        (b"Rar!\x1a\x07\x01\0", "RAR.*Send a .zip or .tar.gz"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip.*Send a .zip or .tar.gz"),
        (b"some text", "neither a zip nor a tar archive. Send a .zip or .tar.gz of images"),
        (gzip.compress(b"x" * 2000), "a compressed file, but no tar archive is in it. Pack the images into a zip"),
        (zipped({}), "holds no image. Put"),
        (tarred({}), "holds no image. Put"),
        (tarred({}, "gz"), "holds no image. Put"),
        (zipped({"notes.pdf": b"x"}), "holds no image. Put JPG"),
        (
            zipped({"a.png": photo(), "inner.zip": zipped({"b.png": photo()})}),
            "inner.zip is an archive inside the archive: put",
        ),
        (tarred({"inner.tar.gz": b""}), "inner.tar.gz is an archive inside the archive: put"),
        (
            zipped({"a.heic": b"\0\0\0\x18ftypheic\0\0\0\0"}),
            "a.heic is a HEIC file that is damaged, or of a kind that is not read here: save it as JPEG",
        ),
        (
            zipped({"a.jpg": b"\0\0\0\x18ftypheic\0\0\0\0"}),
            "a.jpg is a HEIC file that is damaged, or of a kind that is not read here: save it as JPEG",
        ),
        (zipped({"a.jpg": b""}), "a.jpg is an empty file: replace it"),
        (zipped({"a.jpg": b"<html>"}), "a.jpg is not an image that can be read here: save it as JPEG or PNG"),
    ],
)
def test_each_mistake_has_its_own_sentence(refused, data, sentence):
    refused(data, sentence)


def test_an_encrypted_zip_has_its_own_sentence(refused):
    data = bytearray(zip_with())
    for signature, at in (b"PK\3\4", 6), (b"PK\1\2", 8):
        data[data.index(signature) + at] |= 1
    refused(bytes(data), "the zip is encrypted. Pack it again without a password")


@pytest.mark.parametrize("method", [9, 93, 97, 255])
def test_an_unknown_method_of_packing_has_its_own_sentence(refused, method):
    data = bytearray(zip_with())
    for signature, at in (b"PK\3\4", 8), (b"PK\1\2", 10):
        data[data.index(signature) + at] = method
    refused(bytes(data), rf"a.png is packed by a method \(number {method}\) that is not read here: make an ordinary zip")


NOISE = {f"{i}.png": encoded(Image.effect_noise((64, 64), 50)) for i in range(3)}


@pytest.mark.parametrize("part", [0.3, 0.6, 0.99])
@pytest.mark.parametrize(
    "data",
    [zipped(NOISE), *(tarred(NOISE, compression) for compression in ("", "gz", "bz2", "xz"))],
    ids=["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"],
)
def test_a_truncated_archive_has_its_own_sentence(refused, data, part):
    length = len(data.rstrip(b"\0"))  # a tar ends with zeros, of which one block would do
    refused(data[: int(length * part)], "the archive is cut short. Download or upload it again, whole")


def test_a_tar_cut_between_two_files_is_cut_short(refused):
    data = tarred({"a.png": photo(), "b.png": photo()})
    refused(data[: 512 + 512], "the archive is cut short")


def test_a_zip_whose_content_has_another_checksum_is_refused(refused):
    data = zipped(FILES, zipfile.ZIP_STORED)
    refused(patched(data, FILES["b.png"][-9:], b"123456789"), r"b\.png is damaged in the zip \(its checksum differs\): pack it")


def test_a_zip_whose_directory_points_elsewhere_is_refused(refused):
    refused(patched(zipped(FILES), b"PK\3\4", b"PK\3\5", count=1), "is damaged in the zip .it does not begin where")


def test_a_tar_whose_header_has_another_checksum_is_refused(refused):
    data = tarred({"a.png": photo(), "b.png": photo()})
    refused(patched(data, b"b.png", b"c.png"), "the archive is damaged.*Pack the images into a zip again")


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_compressed_tar_whose_end_is_damaged_is_refused(refused, compression):
    data = tarred(FILES, compression)
    end = {"gz": 8, "bz2": 10, "xz": 24}[compression]
    refused(data[:-end] + bytes(byte ^ 0xFF for byte in data[-end:]), "the archive is (damaged|cut short)")


def test_all_problems_are_reported_together(refused):
    files = {
        "a.heic": b"\0\0\0\x18ftypheic\0\0\0\0",
        "b.jpg": b"junk",
        "c.zip": zipped({}),
        "good.png": photo(),
        "good.txt": b"\xff\xfe\0\xd8",
        "d.svg": b"<svg/>",
    }
    for pack in (zipped, tarred):
        message = refused(pack(files))
        assert all(f"{name} " in message for name in ["a.heic", "b.jpg", "c.zip", "good.txt", "d.svg"])
        assert message.endswith("Mend or remove what is named and send the archive again.")
    message = refused(tarred(files | NOISE)[:10000])
    assert "cut short" in message and "a.heic" in message


def test_a_hundred_problems_are_a_message_that_can_be_read(refused):
    message = refused(zipped({f"{i:03}.png": b"junk" for i in range(100)}))
    assert "and 90 more" in message and len(message) < 2000
    assert len(refused(zipped({"x" * 60000 + ".png": b"junk"}))) < 1000


def test_one_bad_image_fails_the_job(refused):
    refused(zipped({f"{i}.png": photo((i, 0, 0)) for i in range(20)} | {"bad.png": photo()[:50]}), "bad.png cannot be read")


# How many


def test_one_image_works_and_is_warned_of(read, log):
    assert len(read(zipped({"a.png": photo()}))) == 1
    assert "few images (1)" in log.text


@pytest.mark.parametrize("count", [5, 40])
def test_five_images_and_more_are_welcome(read, log, count):
    assert len(read(zipped({f"{i}.png": photo((i, 0, 0)) for i in range(count)}))) == count
    assert not [record for record in log.records if record.levelno >= logging.WARNING]


def test_exact_copies_are_warned_of(read, log):
    files = {f"{i}.png": photo((i, 0, 0)) for i in range(5)}
    read(zipped(files | {"copy.bmp": photo((3, 0, 0), format="BMP"), "other size.png": photo((3, 0, 0), size=(6, 8))}))
    warnings = [record.message for record in log.records if record.levelno >= logging.WARNING]
    assert warnings == ["input_images: the same pixels twice, which weighs them double: copy.bmp = 3.png"]


# Limits


def test_more_entries_than_the_limit_are_refused(refused):
    many = entry.MAX_ENTRIES + 1
    refused(zip_of_packed(b"", zipfile.ZIP_STORED, 0, names=("a",) * many), "more than 10000 files")
    refused(gzip.compress(member("a").tobuf() * many), "more than 10000 files")


def test_more_images_than_the_limit_are_refused(refused, monkeypatch):
    monkeypatch.setattr(contents, "MAX_IMAGES", 3)
    refused(zipped({f"{i}.png": photo() for i in range(4)}), "input_images: the archive holds more than 3 images")


def test_a_directory_of_a_million_entries_takes_no_memory(refused):
    central = b"PK\1\2" + bytes(42)
    count = 1_000_000
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, count * len(central), 0, 0)
    data = central * count + end
    assert peak_memory(lambda: refused(data, "more than 10000 files")) < 30 * MEBIBYTE


def test_a_zip_that_declares_a_directory_of_exabytes_is_refused(refused):
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 2**62, 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 0, 1)
    refused(b"PK\3\4" + end64 + locator + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def zeros(mebibytes: int, packer) -> bytes:
    one = bytes(MEBIBYTE)
    return b"".join(packer.compress(one) for _ in range(mebibytes)) + packer.flush()


def deflate(window_bits: int = -15):
    return zlib.compressobj(1, zlib.DEFLATED, window_bits)


def zip_of_packed(packed: bytes, method: int, size: int, crc: int = 0, names: tuple[str, ...] = ("a.png",)) -> bytes:
    """A zip of entries that share the same packed bytes, and that declares of them what is wished."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, method, 0, 0, crc, len(packed), size, 0, 0)
    entry = struct.pack("<4s6H3I", b"PK\1\2", 20, 20, 0, method, 0, 0, crc, len(packed), size)
    directory = b"".join(entry + struct.pack("<5H2I", len(name), *[0] * 6) + name.encode() for name in names)
    counts = len(names), len(names), len(directory)
    return local + packed + directory + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *counts, len(local) + len(packed), 0)


@pytest.mark.parametrize("declared", [1000, 2 * MEBIBYTE])
@pytest.mark.parametrize(("method", "packer"), [(zipfile.ZIP_DEFLATED, deflate), (zipfile.ZIP_BZIP2, bz2.BZ2Compressor)])
def test_a_bomb_that_declares_little_takes_no_memory(refused, method, packer, declared):
    data = zip_of_packed(zeros(50, packer()), method, declared)
    assert peak_memory(lambda: refused(data, "a.png is damaged in the zip")) < 30 * MEBIBYTE


def test_a_bomb_of_lzma_that_declares_little_takes_no_memory(refused):
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": MEBIBYTE}]
    packed = zeros(50, lzma.LZMACompressor(lzma.FORMAT_ALONE, filters=filters))
    data = zip_of_packed(b"\x09\x14\x05\0" + packed[:5] + packed[13:], zipfile.ZIP_LZMA, 1000)
    assert peak_memory(lambda: refused(data, "a.png is damaged in the zip")) < 30 * MEBIBYTE


def test_a_file_larger_than_the_limit_is_refused(refused):
    data = zip_of_packed(b"", zipfile.ZIP_DEFLATED, entry.MAX_FILE_BYTES + 1)
    refused(data, "a.png is larger than 100 MiB: save it smaller")


def test_a_zip_that_says_more_than_it_has_is_refused(refused):
    refused(zip_of_packed(zlib.compress(b"x"), zipfile.ZIP_DEFLATED, 90 * MEBIBYTE), "a.png is damaged in the zip")


def test_entries_that_overlap_are_stopped_by_the_ratio(refused, monkeypatch):
    monkeypatch.setattr(unpack, "HARMLESS_BYTES", 8 * MEBIBYTE)
    names = tuple(f"{i}.png" for i in range(9))
    data = zip_of_packed(zeros(1, deflate()), zipfile.ZIP_DEFLATED, MEBIBYTE, zlib.crc32(bytes(MEBIBYTE)), names)
    assert len(data) * unpack.MAX_RATIO < 8 * MEBIBYTE
    refused(data, "unpacks to more than 4 GiB, or to more than 200 times its own size")


@pytest.mark.parametrize("name", ["a.png", "video.mp4"])
@pytest.mark.parametrize("packer", [lambda: deflate(31), bz2.BZ2Compressor, lzma.LZMACompressor], ids=["gz", "bz2", "xz"])
def test_a_bomb_in_a_compressed_tar_is_stopped_by_the_ratio(refused, monkeypatch, packer, name):
    monkeypatch.setattr(unpack, "HARMLESS_BYTES", 16 * MEBIBYTE)
    first = packer()
    data = first.compress(member(name, 2**33 if name == "video.mp4" else 90 * MEBIBYTE).tobuf()) + first.flush()
    data += zeros(30, packer())
    assert peak_memory(lambda: refused(data, "200 times its own size")) < 60 * MEBIBYTE


def test_bytes_are_limited_whatever_the_ratio(refused, monkeypatch):
    monkeypatch.setattr(unpack, "MAX_TOTAL_BYTES", 3000)
    files = {f"{i}.png": encoded(Image.effect_noise((40, 40), 50)) for i in range(3)}
    assert sum(map(len, files.values())) > 3000
    refused(zipped(files), "unpacks to more than")
    refused(tarred(files), "unpacks to more than")


# Tars that would take tarfile any amount of memory, or all time


def header(name: str, size: int, type: bytes, format: int = tarfile.GNU_FORMAT) -> bytes:
    return member(name, size, type=type).tobuf(format)


@pytest.mark.parametrize("type", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_header_of_gigabytes_takes_no_memory(refused, type):
    data = gzip.compress(header("x", 2**33, type)) + zeros(50, deflate(31))
    assert peak_memory(lambda: refused(data, "holds a header of more than 64 KiB")) < 30 * MEBIBYTE


@pytest.mark.parametrize("type", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_without_end_are_refused(refused, type):
    refused(header("x", 0, type) * 5000, "the archive is damaged")


@pytest.mark.parametrize(
    "records", [b"0 path=x\n", b"-9 path=x\n", b"99999999999 path=x\n", b"9" * 5000, b"path=x\n", b"\xff", b"12 size=-99\n"]
)
def test_damaged_pax_records_are_refused(refused, records):
    padded = records.ljust(-(-len(records) // 512) * 512, b"\0")
    data = header("x", len(records), tarfile.XHDTYPE) + padded + header("a.png", 0, tarfile.REGTYPE) + bytes(1024)
    refused(data)


def test_a_negative_size_is_refused(refused):
    data = bytearray(header("a.mp4", 0, tarfile.REGTYPE))
    data[124:136] = b"\xff" * 11 + b"\0"  # -256
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:]) + 8 * 32)
    refused(bytes(data) + bytes(1024), "the archive is damaged")


@pytest.mark.parametrize("how", ["GNU", "PAX"])
def test_sparse_files_have_their_own_sentence(refused, how):
    if how == "GNU":
        data = header("a.png", 0, tarfile.GNUTYPE_SPARSE) + bytes(1024)
    else:
        sparse = member("a.png", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
        data = sparse.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    refused(data, "sparse files. Pack it again without --sparse")


def test_an_xz_file_that_asks_for_gigabytes_is_refused(refused):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**30, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3, "nice_len": 10}]
    small = lzma.compress(tarred(FILES), filters=[filters[0] | {"dict_size": 2**20}])
    # Dictionary sizes are one byte in the block header, whose checksum follows it.
    start = 12
    size = (small[start] + 1) * 4
    block = bytearray(small[start : start + size - 4])
    block[block.index(b"\x21\x01") + 2] = 36  # 1 GiB
    refused(small[:start] + block + struct.pack("<I", zlib.crc32(block)) + small[start + size :], "[Mm]emory")


def test_memory_over_the_images_kept_is_bounded(read):
    data = zipped(dict.fromkeys(map("{}.jpg".format, range(12)), photo(size=(3000, 2000), format="JPEG")))
    examples = []
    assert peak_memory(lambda: examples.extend(read(data))) < 100 * MEBIBYTE
    assert sum(example.image.width * example.image.height for example in examples) == pytest.approx(12 * 2**20, rel=0.01)
