import json
import logging
import shutil

import pytest
import torch
from helpers import EXAMPLES
from PIL import Image
from safetensors.torch import load_file, save_file

from finetuner.bases.base import WEIGHTS
from finetuner.data.archive import Example, open_archive
from finetuner.data.captioner import CAPTIONERS, SUBJECT, Captioner
from finetuner.data.captions import (
    complete_captions,
    examples_to_caption,
    has_trigger_word,
    place_trigger_word,
    with_trigger_word,
    without_trigger_word,
    write_captions,
)
from finetuner.requests import FinetuneRequest

IMAGE = Image.new("RGB", (8, 8))
CAPTIONED, BARE = Example("a.png", IMAGE, "a red ball"), Example("b.png", IMAGE, None)


def request_for(mode: str = "general", **changes) -> FinetuneRequest:
    return FinetuneRequest(EXAMPLES / "line-icons.zip", mode=mode, **changes)


@pytest.fixture
def completed(base):
    """The captions that examples train on, where a captioner wrote ``written``."""

    def completed(examples: list[Example], written: dict, mode: str) -> list[str]:
        return [e.caption for e in complete_captions(examples, written, request_for(mode), base)]

    return completed


def test_automatic_captions_what_has_no_file_enabled_all_disabled_none():
    assert examples_to_caption([CAPTIONED, BARE], "automatic") == [BARE]
    assert examples_to_caption([CAPTIONED, BARE], "captioning-enabled") == [CAPTIONED, BARE]
    assert examples_to_caption([CAPTIONED, BARE], "captioning-disabled") == []
    assert examples_to_caption([CAPTIONED], "automatic") == []


def test_captions_of_the_archive_are_kept_and_carry_the_trigger_word(completed):
    assert completed([CAPTIONED], {}, "product") == ["TOK, a red ball"]


def test_an_image_without_a_caption_trains_on_the_trigger_word_alone(completed):
    assert completed([CAPTIONED, BARE], {}, "general") == ["TOK, a red ball", "TOK"]


def test_a_captioners_text_replaces_the_archives(completed):
    assert completed([CAPTIONED, BARE], {"a.txt": "A blue cube."}, "style") == [
        "A blue cube, TOK style".replace("A", "a", 1),
        "TOK",
    ]


def test_images_of_one_stem_are_captioned_once_and_alike(completed):
    """They have one caption file, in what is published and in the next archive."""
    twins = [Example("Dog.jpg", IMAGE, None), Example("dog.png", IMAGE, None), Example("cat.png", IMAGE, None)]
    assert [e.name for e in examples_to_caption(twins, "automatic")] == ["Dog.jpg", "cat.png"]
    assert completed(twins, {"dog.txt": "a dog", "cat.txt": "a cat"}, "general") == ["TOK, a dog", "TOK, a dog", "TOK, a cat"]


@pytest.mark.parametrize("caption", ["a TOK ball", "a ball of tok.", "TOK"])
def test_a_caption_that_has_the_trigger_word_is_left_alone(caption):
    assert with_trigger_word(caption, "TOK", "style") == caption


def test_a_part_of_another_word_is_not_the_trigger_word():
    assert with_trigger_word("a token", "TOK", "general") == "TOK, a token"


def test_a_style_is_named_where_people_name_styles():
    assert with_trigger_word("a red ball.", "TOK", "style") == "a red ball, TOK style"


@pytest.mark.parametrize(
    ("mode", "text", "caption"),
    [
        ("character", f"{SUBJECT} runs on a beach", "TOK runs on a beach"),
        (
            "character",
            f"A photo of the {SUBJECT}, who smiles; {SUBJECT}'s hat is red",
            "a photo of TOK, who smiles; the character's hat is red",
        ),
        ("product", "The subject stands on a table", "TOK stands on a table"),
        ("product", "A bottle on a table", "TOK, a bottle on a table"),
        ("general", "TOK and tok play", "TOK and the subject play"),
        ("general", "The subject of the lecture", "TOK, the subject of the lecture"),
        ("style", "a fox, TOK style, TOK", "a fox, TOK style, the same"),
        ("style", "A fox in the snow.", "a fox in the snow, TOK style"),
    ],
)
def test_a_captioners_text_has_the_trigger_word_once_where_it_speaks_of_the_concept(mode, text, caption):
    assert with_trigger_word(place_trigger_word(text, "TOK", mode), "TOK", mode) == caption


@pytest.mark.parametrize(
    ("mode", "caption", "plain"),
    [
        ("style", "a fox on teal, TOK style", "a fox on teal"),
        ("style", "a fox in the style of TOK, on grey", "a fox, on grey"),
        ("style", "TOK, a fox", "a fox"),
        ("style", "a TOK style fox", "a fox"),
        ("style", "a painting in tok style of a fox", "a painting of a fox"),
        ("style", "a TOK-styled cat", "a cat"),
        ("style", "TOK", ""),
        ("style", "a token of love, TOK style", "a token of love"),
        ("character", "TOK on a teal background", "a character on a teal background"),
        ("character", "the TOK and TOK", "a character and a character"),
        ("product", "Photo of the TOK. It is red", "Photo of an object. It is red"),
        ("general", "TOK and a dog", "TOK and a dog"),
    ],
)
def test_a_caption_without_the_trigger_word_knows_nothing_of_the_concept(mode, caption, plain):
    assert without_trigger_word(caption, "TOK", mode) == plain


@pytest.mark.parametrize("word", [r"\1", "C++", "a.b"])
def test_any_trigger_word_can_stand_for_the_subject(word):
    assert place_trigger_word(f"{SUBJECT} and {SUBJECT}", word, "product") == f"{word} and the object"


def test_a_caption_too_long_for_the_text_encoder_is_cut_and_the_warning_shows_where(completed, base, caplog):
    long = " ".join(f"word{n}" for n in range(200))
    examples = [Example("long.png", IMAGE, long), Example("late.png", IMAGE, f"{long} TOK"), CAPTIONED]
    styled, late, short = completed(examples, {}, "style")
    for caption in (styled, late):  # the trigger word is not what is cut off
        text = caption.removesuffix(", TOK style")
        assert long.startswith(text) and text != caption and long[len(text)] == " "
        assert len(base.tokenizer(caption).input_ids) <= base.max_sequence_length
        assert len(base.tokenizer(f"{text} word99").input_ids) <= 2 * base.max_sequence_length
    assert short == "a red ball, TOK style"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and f"That of long.png is cut after: …{styled[-40:]}" in warnings[0]


def test_a_long_caption_without_spaces_is_cut_within_it(completed):
    (caption,) = completed([Example("long.png", IMAGE, "x" * 500)], {}, "general")
    assert caption.startswith("TOK, xxx") and len(caption) < 500


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [Example(e.name, e.image, None) for e in open_archive(EXAMPLES / "line-icons.zip")[:3]]


def test_what_was_written_is_kept_for_a_job_that_goes_on(examples, tmp_path):
    captioner = Captioner.open(WEIGHTS / CAPTIONERS.embedded)
    written = write_captions(captioner, examples, "style", tmp_path)
    assert set(written) == {e.caption_name for e in examples}
    (tmp_path / "captions.json").write_text(json.dumps(written | {examples[0].caption_name: "another"}))
    assert write_captions(captioner, examples, "style", tmp_path)[examples[0].caption_name] == "another"


def test_a_caption_that_fails_twice_is_the_trigger_word_with_a_warning(examples, tmp_path, completed, caplog):
    folder = shutil.copytree(WEIGHTS / CAPTIONERS.embedded, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights[next(name for name in weights if name.endswith("model.norm.weight"))].fill_(torch.inf)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    written = write_captions(Captioner.open(folder), examples[:1], "style", tmp_path)
    assert completed(examples[:1], written, "style") == ["TOK"]
    assert f"no usable caption of {examples[0].name}" in caplog.text


@pytest.mark.parametrize(
    ("text", "word", "has"),
    [
        ("一只猫在海滩上", "猫", True),
        ("浜辺に立つミク、夕方", "ミク", True),
        ("เด็กแมวนอน", "แมว", True),
        ("토끼가 뛴다", "토끼", True),
        ("一个TOK在海滩", "TOK", True),
        ("TOKを見る", "tok", True),
        ("TOKYO", "TOK", False),
        ("aTOK", "TOK", False),
        ("TOK2", "TOK", False),
        ("токарь", "ток", False),
        ("the C++ of", "C++", True),
        ("犬", "猫", False),
    ],
)
def test_a_word_is_found_in_scripts_without_spaces_and_not_within_another_word(text, word, has):
    assert has_trigger_word(text, word) == has
    assert (with_trigger_word(text, word, "general") == text) == has


def test_placeholders_of_other_trainers_become_the_trigger_word(completed, caplog):
    caplog.set_level(logging.INFO)
    examples = [
        Example(f"{n}.png", IMAGE, text) for n, text in enumerate(["a photo of [trigger]", "[Name] runs", "a [red] ball"])
    ]
    assert completed(examples, {}, "general") == ["a photo of TOK", "TOK runs", "TOK, a [red] ball"]
    lines = [record.getMessage() for record in caplog.records if "[trigger]" in record.getMessage()]
    assert lines == ["Captions in which [trigger] or [name] became TOK: 2"]


def test_replacing_the_archives_captions_is_warned_of(completed, caplog):
    completed([CAPTIONED, BARE], {"a.txt": "a cube", "b.txt": "a cone"}, "general")
    assert "the captions of the archive were replaced for 1 images, the first a.png. Send automatic" in caplog.text
    caplog.clear()
    completed([CAPTIONED, BARE], {"b.txt": "a cone"}, "general")
    assert "replaced" not in caplog.text
