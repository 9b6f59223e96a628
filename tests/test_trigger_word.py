"""The trigger word as people send it."""

from pathlib import Path

import pytest

from finetuner.requests import LONGEST_WORD, FinetuneRequest, check_trigger_word

SENT = [" TOK", "TOK\n", '"TOK"', "'TOK' ", "\u201cTOK\u201d", "`TOK`", "\ufeffTOK", "「TOK」", "\t\"'TOK'\"\r\n"]


@pytest.mark.parametrize("sent", SENT)
def test_what_is_around_the_word_is_none_of_it(sent, caplog):
    caplog.set_level("INFO")
    request = FinetuneRequest(Path("photos.zip"), trigger_word=sent)
    assert request.trigger_word == request.inputs()["trigger_word"] == "TOK"
    assert "is taken as 'TOK'" in caplog.text


@pytest.mark.parametrize(
    "word", ["TOK", "d'Artagnan", "o'", '5"', "猫", "\u0645\u06cc\u200c\u062e", "C++", "<s1>", "x" * LONGEST_WORD]
)
def test_a_word_is_taken_as_it_is(word, caplog):
    caplog.set_level("INFO")
    assert check_trigger_word(word) == word and not caplog.text


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("", "is empty. Give a made-up word"),
        (' "" ', "is empty"),
        ("TO\x00K", r"cannot be seen \(U\+0000\)"),
        ("TO\x1bK", r"U\+001B"),
        ("TO\u202eK", r"U\+202E"),
        ("TO\ud800K", r"U\+D800"),
        ("TOK\nTIK", "more than one word. Join it"),
        ("TO\u00a0K", "more than one word"),
        ("x" * 10_000, "has 10000 characters, and at most 64 are taken"),
        ("a " * 10_000, "more than one word"),
    ],
)
def test_what_is_no_word_is_refused_in_a_short_sentence(word, sentence):
    with pytest.raises(ValueError, match=f"^trigger_word: .*{sentence}") as caught:
        check_trigger_word(word)
    assert len(str(caught.value)) < 300
