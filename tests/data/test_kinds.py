"""What a file is, its bytes say."""

import io
import struct
import zipfile

import pytest
from archives import encoded, photo, tarred, zipped
from PIL import Image

NAMES = ["a.jpe", "a.jpg?width=1024&v=1.5", "a", "a.bin", "a.txt", "a.PNG", "a.json", "a.mp4", "IMG.2024.01.05", "a.jpg.part"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_picture_is_one_under_any_name(read, name, format):
    (example,) = read(zipped({name: photo(format=format)}))
    assert example.name == name and example.image.size == (8, 6)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("a.jpe", "a.txt"),
        ("a.jpg?width=1024", "a.txt"),
        ("a", "a.txt"),
        ("a.bin", "a.txt"),
        ("a.bin", "a.bin.txt"),
        ("IMG.2024.01.05", "IMG.2024.01.05.txt"),
    ],
)
def test_its_caption_is_found_and_is_found_again(read, image, text):
    (example,) = read(zipped({image: photo(), text: b"a thing"}))
    assert example.caption == "a thing"
    (again,) = read(zipped({image: photo(), example.caption_name: b"a thing"}))
    assert again.caption == "a thing"


def test_dates_in_names_do_not_share_a_caption(read):
    files = {"IMG.2024.01.05": photo(), "IMG.2024.01.06": photo((1, 2, 3)), "IMG.2024.01.05.txt": b"one"}
    examples = read(zipped(files))
    assert [example.caption for example in examples] == ["one", None]
    assert len({example.caption_name for example in examples}) == 2


def raw(model: bytes) -> bytes:
    return {
        b"CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(99),
        b"CR3": b"\0\0\0\x18ftypcrx " + bytes(99),
        b"RAF": b"FUJIFILMCCD-RAW " + bytes(99),
        b"ORF": b"IIRO\x08\0\0\0" + bytes(99),
        b"DNG": tiff({254: 1, 330: 8, 50706: 1}),
        b"NEF": tiff({254: 1, 330: 8}),
    }[model]


def tiff(more: dict[int, int]) -> bytes:
    """A raw file: a picture that says of itself that it is a preview of others."""
    tags = {256: 8, 257: 6, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 6, 279: 48} | more
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + 48) + bytes(48) + struct.pack("<H", len(tags)) + directory + bytes(4)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        *((raw(model), "a camera's raw file") for model in (b"CR2", b"CR3", b"RAF", b"ORF", b"DNG", b"NEF")),
        (b"\xff\x0a" + bytes(99), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\0\1" + bytes(99), "a Photoshop document"),
        (b'<?xml version="1.0"?>\n<!-- of Inkscape -->\n<svg xmlns="x"/>', "a vector drawing"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".jpg", ".dat"])
def test_a_picture_that_is_not_read_is_refused_by_name_and_format(refused, data, name, suffix):
    refused(zipped({"ok.png": photo(), f"a{suffix}": data}), rf"a{suffix} is {name}, which is not read here: save it as JPEG")


@pytest.mark.parametrize("suffix", [".dng", ".nef", ".arw"])
def test_a_raw_file_is_told_by_its_suffix_where_it_is_a_plain_tiff(refused, suffix):
    refused(zipped({f"a{suffix}": photo(format="TIFF")}), "is a camera's raw file")


@pytest.mark.parametrize("name", ["IMG_1.psd", "IMG_1.CR2"])
def test_beside_the_same_picture_it_is_left_out_with_a_warning(read, warnings, name):
    assert [e.name for e in read(zipped({"IMG_1.jpg": photo(format="JPEG"), name: b"8BPS" + bytes(99)}))] == ["IMG_1.jpg"]
    assert f"the same picture lies beside it in a format that is read: {name}" in warnings()


def test_what_is_neither_is_named_in_the_log(read, log):
    read(zipped({"a.png": photo(), "clip.mov": b"\0\0\0\x14ftypqt  ", "x/notes.pdf": b"%PDF-1.7"}))
    assert "input_images: these are neither: clip.mov; x/notes.pdf" in log.text


@pytest.mark.parametrize("name", [".a.png", ".thumbnails/a.png", "__MACOSX/a.png"])
def test_a_hidden_picture_is_named_in_a_warning(read, warnings, name):
    assert [e.name for e in read(zipped({"ok.png": photo(), name: photo()}))] == ["ok.png"]
    assert f"left out, being hidden, although it is a picture (rename it, if it is meant): {name}" in warnings()


def test_nothing_but_hidden_pictures_says_so(refused):
    refused(zipped({".a.png": photo()}), r"holds no image. What is hidden was left out: \.a\.png. Put")


@pytest.mark.parametrize("name", ["more", "more.jpg", "more.txt"])
@pytest.mark.parametrize("inner", [zipped({"b.png": photo()}), tarred({"b.png": photo()}), tarred({"b.png": photo()}, "gz")])
def test_an_archive_inside_is_told_under_any_name(refused, name, inner):
    refused(zipped({"a.png": photo(), name: inner}), f"{name} is an archive inside the archive: put the images")


def test_a_document_that_is_a_zip_is_passed_over_with_a_warning(read, warnings):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as document:
        document.writestr("[Content_Types].xml", "<Types/>")
    read(zipped({"a.png": photo(), "notes.docx": file.getvalue()}))
    assert "left out, being an archive inside (put its images there, if it has any): notes.docx" in warnings()


def test_a_picture_under_a_captions_name_is_no_caption(read):
    examples = read(zipped({"a.png": photo(), "a.txt": encoded(Image.new("RGB", (4, 4)))}))
    assert [(e.name, e.caption) for e in examples] == [("a.png", None), ("a.txt", None)]
    assert len({e.caption_name for e in examples}) == 2
