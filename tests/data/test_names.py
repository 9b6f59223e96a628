"""Names of files in any encoding: nothing vanishes, nothing is merged, captions find their pictures."""

import struct
import zlib

import pytest
from archives import member, photo, tar_of, zip_of

from finetuner.data.names import distinct, folded, read_names, safe_path, stem, suffix_of


def colours(count: int) -> list[bytes]:
    return [photo((n, 0, 0)) for n in range(count)]


def pictures_named(stems: list[str], encoding: str) -> list[tuple[bytes, bytes]]:
    """Pictures and their captions, as Windows packs them in a country."""
    files = []
    for name, content in zip(stems, colours(len(stems)), strict=True):
        files += [(f"{name}.png".encode(encoding), content), (f"{name}.txt".encode(encoding), f"of {name}".encode())]
    return files


COUNTRIES = {
    "cp932": ["表", "ソ", "機能", "予定表", "犬"],  # whose second byte is a backslash in the first four
    "gb18030": ["照片", "风景", "一只猫", "海滩"],
    "big5": ["照片", "風景", "許功蓋", "海灘"],
    "cp949": ["사진", "강아지", "해변", "고양이"],
    "cp866": ["фото", "кот", "Пляж"],
    "cp1251": ["фото", "кот", "Пляж"],
    "cp850": ["übung", "größe", "café"],
    "utf-8": ["表", "фото", "é"],
}


@pytest.mark.parametrize("encoding", COUNTRIES)
def test_names_of_every_countrys_windows_are_read(read, warnings, encoding):
    stems = COUNTRIES[encoding]
    examples = read(zip_of(pictures_named(stems, encoding)))
    assert {example.name: example.caption for example in examples} == {f"{name}.png": f"of {name}" for name in stems}
    assert ("names are in no Unicode encoding, and were read as" in warnings()) == (encoding != "utf-8")


def test_names_of_a_tar_are_guessed_alike(read):
    names = [name for name, _ in pictures_named(COUNTRIES["cp932"], "cp932")]
    members = [member(name.decode(errors="surrogateescape"), 0) for name in names]
    contents = [content for _, content in pictures_named(COUNTRIES["cp932"], "cp932")]
    for info, content in zip(members, contents, strict=True):
        info.size = len(content)
    examples = read(tar_of(members, contents, format=1))
    assert {example.name: example.caption for example in examples} == {f"{n}.png": f"of {n}" for n in COUNTRIES["cp932"]}


def test_names_in_no_encoding_at_all_are_printable_and_apart(read):
    stems = [b"\xff\x00\x01", b"\xff\x00\x02", b"\x81", b"\x8d\x81\xfe\\\xff", b"\xe0\x80", b"\xa0\xff", b"\xfc\xfc\\x"]
    files = [pair for stem, image in zip(stems, colours(len(stems)), strict=True) for pair in [(stem + b".png", image)]]
    captions = [(stem + b".txt", b"caption %d" % n) for n, stem in enumerate(stems)]
    examples = read(zip_of(files + captions))
    assert len({folded(example.name) for example in examples}) == len(stems)
    assert all(example.name.isprintable() for example in examples)
    by_red = {example.image.getpixel((0, 0))[0]: example.caption for example in examples}
    assert by_red == {n: f"caption {n}" for n in range(len(stems))}


def test_letters_that_a_wrong_guess_would_take_for_each_other_stay_apart(read):
    """One byte, which is a letter in two cases to who reads CP1251: two pictures, and each has its own caption."""
    files = [(b"\xc0.png", photo((1, 0, 0))), (b"\xe0.png", photo((2, 0, 0))), (b"\xc0.txt", b"one"), (b"\xe0.txt", b"two")]
    examples = read(zip_of(files))
    assert {e.image.getpixel((0, 0))[0]: e.caption for e in examples} == {1: "one", 2: "two"}
    assert len({folded(e.caption_name) for e in examples}) == 2


def unicode_path(raw: bytes, name: str, crc: int | None = None) -> bytes:
    field = b"\1" + struct.pack("<I", zlib.crc32(raw) if crc is None else crc) + name.encode()
    return struct.pack("<HH", 0x7075, len(field)) + field


def test_the_name_in_the_extra_field_wins(read, warnings):
    raw = "表.png".encode("cp932")
    assert [e.name for e in read(zip_of([(raw, photo())], unicode_path(raw, "猫.png")))] == ["猫.png"]
    assert "Unicode" not in warnings()


@pytest.mark.parametrize("extra", [unicode_path(b"?", "猫.png"), b"up\xff\xff\1", b"up\1\0\1", unicode_path(b"", "", 0)])
def test_an_extra_field_of_another_name_or_damaged_does_not_count(read, extra):
    if extra.startswith(b"up\xff\xff"):
        extra = struct.pack("<HH", 0x7075, 1) + b"\1"
    raw = b"dog.png"
    assert [e.name for e in read(zip_of([(raw, photo())], extra))] == ["dog.png"]


def test_a_name_marked_as_utf8_that_is_not_does_not_refuse_the_zip(read):
    assert [e.name for e in read(zip_of(pictures_named(COUNTRIES["cp932"], "cp932"), flags=0x800))] == sorted(
        f"{n}.png" for n in COUNTRIES["cp932"]
    )


def test_a_nul_in_a_name_hides_nothing(read):
    assert [e.name for e in read(zip_of([(b"a\0.png", photo()), (b"b.png\0.txt", photo((1, 2, 3)))]))] == [
        "a_00.png",
        "b.png_00.txt",
    ]


def test_folders_that_end_with_a_backslash_are_folders(read, log):
    assert [e.name for e in read(zip_of([(b"x\\", b""), (b"x\\a.png", photo())]))] == ["x/a.png"]
    assert "passed over" not in log.text


def test_one_guess_holds_for_all_names():
    raw = [(name.encode("cp932"), None) for name in ("犬.png", "赤い帽子の女の子.png")]
    names, encoding = read_names(raw)
    assert [name.path for name in names] == ["犬.png", "赤い帽子の女の子.png"] and encoding == "cp932"


@pytest.mark.parametrize(
    ("path", "wanted"),
    [("a.jpg", "a"), ("a.v2.png", "a.v2"), ("IMG.2024.01.05", "IMG.2024.01.05"), ("a.jpg?width=1024", "a"), ("x.y/a", "x.y/a")],
)
def test_only_an_images_suffix_is_no_part_of_its_stem(path, wanted):
    assert stem(path) == wanted


def test_what_an_address_has_after_a_suffix_is_none_of_it():
    assert suffix_of("x/a.JPG?width=1024&x=1.5") == ".jpg"


def test_a_path_is_relative_and_printable():
    assert safe_path("\\\\host\\c$\\..\\a\x1b.png") == "host/c$/a_1B.png"
    assert safe_path("C:") == "C:" and safe_path("c:/") == "_"


def test_distinct_names_are_counted():
    taken: set[str] = set()
    assert [distinct(name, taken) for name in ("a.png", "A.png", "a (2).png")] == ["a.png", "A (2).png", "a (2) (2).png"]
