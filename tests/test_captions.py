import pytest
from PIL import Image

from finetuner.archive import Example
from finetuner.captions import complete, with_trigger_word, without_trigger_word

IMAGE = Image.new("RGB", (8, 8))
CAPTIONED, BARE = Example("a.png", IMAGE, "a red ball"), Example("b.png", IMAGE, None)


def test_captions_of_the_archive_are_kept_and_carry_the_trigger_word():
    assert [e.caption for e in complete([CAPTIONED], "automatic", "TOK", "product")] == ["TOK, a red ball"]


def test_an_image_without_a_caption_trains_on_the_trigger_word_alone():
    captions = [e.caption for e in complete([CAPTIONED, BARE], "captioning-disabled", "TOK", "general")]
    assert captions == ["TOK, a red ball", "TOK"]


@pytest.mark.parametrize(("captioning", "examples"), [("automatic", [CAPTIONED, BARE]), ("captioning-enabled", [CAPTIONED])])
def test_what_would_need_a_captioner_is_refused_with_the_remedy(captioning, examples):
    with pytest.raises(ValueError, match=r"^captioning: .*captioning-disabled"):
        complete(examples, captioning, "TOK", "general")


@pytest.mark.parametrize("caption", ["a TOK ball", "a ball of tok.", "TOK"])
def test_a_caption_that_has_the_trigger_word_is_left_alone(caption):
    assert with_trigger_word(caption, "TOK", "style") == caption


def test_a_part_of_another_word_is_not_the_trigger_word():
    assert with_trigger_word("a token", "TOK", "general") == "TOK, a token"


def test_a_style_is_named_where_people_name_styles():
    assert with_trigger_word("a red ball.", "TOK", "style") == "a red ball, TOK style"


@pytest.mark.parametrize(
    ("caption", "mode", "expected"),
    [
        ("a red ball, TOK style", "style", "a red ball"),
        ("a red ball in the style of TOK", "style", "a red ball"),
        ("a red ball in tok style, on grass", "style", "a red ball, on grass"),
        ("TOK", "style", ""),
        ("TOK", "general", ""),
        ("TOK, a red ball.", "general", "a red ball"),
        ("TOK", "character", "a person"),
        ("a photo of TOK on a beach", "character", "a photo of a person on a beach"),
        ("a TOK person, smiling", "character", "a person, smiling"),
        ("the TOK on a table", "product", "a product on a table"),
        ("a token", "general", "a token"),
    ],
)
def test_without_the_trigger_word_a_caption_names_the_class(caption, mode, expected):
    assert without_trigger_word(caption, "TOK", mode) == expected
