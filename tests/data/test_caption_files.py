"""Captions in the layouts of every trainer, in any encoding."""

import json

import pytest
from archives import photo, zipped

PICTURES = {"a.png": photo(), "x/b.jpg": photo((0, 0, 255), format="JPEG")}


@pytest.fixture
def captions(read):
    """The captions of an archive of two pictures and other files."""

    def captions(files: dict[str, bytes | str | object]) -> dict[str, str | None]:
        packed = {name: content if isinstance(content, bytes) else content.encode() for name, content in files.items()}
        return {example.name: example.caption for example in read(zipped(PICTURES | packed))}

    return captions


ROWS = [{"file_name": "a.png", "text": "a red thing"}, {"file_name": "x/b.jpg", "text": "a blue thing"}]
BOTH = {"a.png": "a red thing", "x/b.jpg": "a blue thing"}
LAYOUTS = {
    "caption files": {"a.caption": "a red thing", "x/b.caption": "a blue thing"},
    "whole names": {"a.png.txt": "a red thing", "x/b.jpg.txt": "a blue thing"},
    "strings in JSON": {"a.json": '"a red thing"', "x/b.json": '"a blue thing"'},
    "objects in JSON": {"a.json": '{"id": 1, "caption": "a red thing"}', "x/b.json": '{"Prompt": "a blue thing"}'},
    "tags in JSON": {"a.json": '{"tags": ["a red thing"]}', "x/b.json": '{"captions": ["a blue thing", "another"]}'},
    "Hugging Face's JSON lines": {"metadata.jsonl": "\n".join(map(json.dumps, ROWS))},
    "Hugging Face's CSV": {"metadata.csv": "\ufefffile_name,text\r\na.png,a red thing\r\nx/b.jpg,a blue thing\r\n"},
    "a table in each folder": {
        "metadata.csv": "file_name,text\na.png,a red thing",
        "x/metadata.csv": "file_name,text\nb.jpg,a blue thing",
    },
    "CSV with semicolons": {"captions.csv": 'image;caption\na.png;"a red thing"\nb.jpg;a blue thing\n'},
    "CSV without a header": {"captions.csv": "a.png,a red thing\nb.jpg,a blue thing\n"},
    "tabs": {"captions.tsv": "file\tcaption\na.png\ta red thing\nb.jpg\ta blue thing\n"},
    "a JSON list": {"dataset.json": json.dumps(ROWS)},
    "a JSON list inside": {"dataset.json": json.dumps({"version": 1, "images": ROWS})},
    "a JSON object of strings": {"captions.json": json.dumps(BOTH)},
    "kohya's": {
        "meta_cap.json": json.dumps(
            {"/content/train/a": {"caption": "a red thing"}, "C:\\t\\b.jpg": {"caption": "a blue thing"}}
        )
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_trainers_layout_is_read(captions, warnings, layout):
    assert captions(LAYOUTS[layout]) == BOTH
    assert warnings().count("\n") == 0 and warnings().startswith("input_images: few images (2)")


def test_the_nearest_source_counts_and_the_others_are_named(captions, warnings):
    files = {"a.txt": "one", "a.caption": "two", "a.json": '{"caption": "three"}', "metadata.jsonl": json.dumps(ROWS[0])}
    assert captions(files)["a.png"] == "one"
    assert "captions of one image in several files: a.caption for a.png (that of a.txt is used)" in warnings()
    assert "a.json for a.png" in warnings() and "metadata.jsonl for a.png" in warnings()
    assert captions({"a.txt": " ", "a.json": '"three"'})["a.png"] == "three"


def test_sources_that_say_the_same_are_not_spoken_of(captions, warnings):
    assert captions({"a.txt": "a red thing", "metadata.jsonl": json.dumps(ROWS[0])})["a.png"] == "a red thing"
    assert "several files" not in warnings()


@pytest.mark.parametrize(
    "files",
    [
        {"a.json": '{"width": 8, "height": 6}'},
        {"a.json": "{not JSON"},
        {"metadata.jsonl": '{"file_name": "other.png", "text": "x"}'},
        {"captions.csv": "file_name,size\nc.png,8\n"},
        {"metadata.parquet.json": "[1, 2, 3]"},
        {"a.yaml": "caption: a red thing"},
        {"a.md": "a red thing"},
        {"metadata.xml": "<captions/>"},
    ],
)
def test_what_is_there_and_not_used_is_named(captions, warnings, files):
    assert captions(files) == dict.fromkeys(BOTH)
    (name,) = files
    assert f": {name}" in warnings()


def test_a_name_that_two_folders_have_says_nothing(captions, warnings, read):
    files = PICTURES | {"y/b.jpg": photo((0, 1, 0), format="JPEG"), "captions.csv": b"file,caption\nb.jpg,a blue thing\n"}
    assert all(example.caption is None for example in read(zipped(files)))
    assert "no image has the name of these texts: captions.csv" in warnings()


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "1" * 100_000,
        '{"a": ' * 50_000,
        '"\\ud800"',
        "NaN",
        "null",
        "[[[[]]]]",
        '{"a.png": {"caption": 7}}',
        "\0" * 9,
    ],
    ids=range(9),
)
def test_json_that_is_meant_to_harm_harms_nobody(captions, content):
    for name in ("a.json", "captions.json", "metadata.jsonl"):
        assert captions({name: content})["a.png"] in (None, "")


def test_a_table_that_is_too_large_is_named_and_not_read(captions, warnings):
    rows = json.dumps(ROWS[0]) + "\n"
    assert captions({"metadata.jsonl": rows * (5 * 2**20 // len(rows))})["a.png"] is None
    assert "metadata.jsonl" in warnings()
    assert captions({"captions.csv": 'file_name,text\na.png,"' + "x" * 200_000})["a.png"] is None


def test_a_caption_as_long_as_a_book_is_refused_in_a_table_too(refused):
    table = json.dumps({"file_name": "a.png", "text": "word " * 10_000}).encode()
    refused(zipped(PICTURES | {"metadata.jsonl": table}), "metadata.jsonl has a caption of more than 32 KiB for a.png")


TEXTS = {
    "gb18030": ["一个穿红色裙子的女孩站在海滩上", "猫"],
    "cp932": ["赤い帽子をかぶった女の子", "犬"],
    "cp1251": ["девушка стоит на пляже в красном платье", "кот"],
    "big5": ["一個女孩站在海灘上穿著紅色的裙子", "狗在海灘"],
    "cp949": ["빨간 모자를 쓴 소녀", "개"],
    "cp1252": ["a café \u2013 \u201cnaïve\u201d and dog\u2019s", "größe"],
    "cp1250": ["dziewczyna stoi na plaży w czerwonej sukience, źródło", "łódź"],
    "koi8_r": ["девушка стоит на пляже в красном платье", "рыжий кот"],
    "cp1254": ["k\u0131rm\u0131z\u0131 şapkal\u0131 bir k\u0131z çocuğu", "güneş"],
    "cp1253": ["ένα κορίτσι στην παραλία", "γάτα"],
    "cp1255": ["ילדה עומדת על החוף", "חתול"],
    "cp1256": ["فتاة تقف على الشاطئ", "قطة"],
    "cp874": ["เด็กผู้หญิงยืนอยู่บนชายหาด", "แมว"],
    "euc_jp": ["赤い帽子をかぶった女の子", "犬と猫"],
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_texts_in_old_encodings_are_guessed_together_and_the_guess_is_said(captions, warnings, encoding):
    one, other = TEXTS[encoding]
    found = captions({"a.txt": one.encode(encoding), "x/b.txt": other.encode(encoding), "readme.txt": b"plain"})
    assert found == {"a.png": one, "x/b.jpg": other}
    assert f"a.txt ({encoding}); x/b.txt ({encoding})" in warnings() and "save them as UTF-8" in warnings()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32", "utf-32-le", "utf-32-be", "utf-8-sig"])
def test_unicode_is_no_guess(captions, warnings, encoding):
    text = "девушка, 赤い帽子" if encoding != "utf-16-le" else "a café in the rain"
    assert captions({"a.txt": text.encode(encoding)})["a.png"] == text
    assert "Unicode" not in warnings()


def test_utf8_cut_in_the_middle_of_a_character_stays_utf8(captions, warnings):
    assert captions({"a.txt": "девушка на пляже".encode()[:-1]})["a.png"] == "девушка на пляж"
    assert "a.txt (utf-8)" in warnings()


def test_one_chinese_character_is_not_korean(captions):
    assert captions({"a.txt": "画".encode("gb18030")})["a.png"] == "画"


def test_degrees_and_fractions_make_no_text_russian_or_japanese(captions):
    text = "20°C, ½ cup, © 2020"
    assert captions({"a.txt": text.encode("cp1252")})["a.png"] == text


def test_tables_are_guessed_with_the_texts(captions):
    assert captions({"captions.csv": "file,caption\na.png,赤い帽子をかぶった女の子\n".encode("cp932")})["a.png"].startswith(
        "赤い"
    )
