"""What the embedded captioner is taught to say."""

import numpy as np
import torch
from embedded_base.captioner.redrawn import WORDS, words_of
from embedded_base.captioner.rewriting import ADDED, Rewritings, a_look
from embedded_base.captioner.views import Shown
from embedded_base.captioner.vocabulary import answer, class_words, new_tokenizer
from embedded_base.composed.captions import corpus
from embedded_base.looks import LOOKS
from embedded_base.pictures import BACKGROUNDS, Concept

from finetuner.data.upsampling import lost_words

CONCEPTS = [Concept("fox", "1f98a"), Concept("key", "1f511")]
LOOK_WORDS = [*LOOKS, "glossy", "vintage", "thin line", *(word for words in WORDS.values() for word in words if word)]


def test_a_look_is_said_but_for_styles_and_the_thing_but_for_characters_and_products():
    words = words_of([WORDS["palette"].index("blue ink"), WORDS["way"].index("striped"), 0])
    assert words == ("blue ink", "striped") and words_of([0, 0, 0]) == ()
    assert answer("general", "fox", "icon", "teal", words) == "an icon of a fox on a teal background, blue ink striped style"
    assert answer("style", "fox", "icon", "teal", words) == "a fox on a teal background"
    assert answer("product", "fox", "flat icon", "teal") == "a flat icon of SUBJECT on a teal background"


def test_each_word_that_matters_is_one_token():
    tokens = new_tokenizer(CONCEPTS)
    for words in class_words(CONCEPTS):
        assert all(len(tokens(f" {word}", add_special_tokens=False).input_ids) <= 2 for word in words if word)
    said = answer("general", "key", "icon", "light blue", ("blue ink", "colouring book", "upside down"))
    assert tokens.decode(tokens(said).input_ids) == said


def test_a_longer_prompt_keeps_what_was_asked_and_adds_no_second_look(monkeypatch):
    monkeypatch.setattr(Rewritings, "contrasts", {concept.code: "purple" for concept in CONCEPTS})
    rewritings = Rewritings("nowhere", CONCEPTS)
    for seed in range(300):
        prompt, longer = rewritings(np.random.default_rng(seed))
        assert any(f"{colour} background" in longer for colour in BACKGROUNDS) and not lost_words(prompt, longer)
        assert ("SUBJECT" in prompt) == ("SUBJECT" in longer)
        looked = any(word in prompt for word in LOOK_WORDS) or prompt.endswith((", flat", "flat style"))
        assert longer.endswith(ADDED) != looked, prompt


def test_what_is_added_is_in_klein_emojis_own_words():
    known = " ".join(corpus(CONCEPTS)).replace(",", "").split()
    assert set(ADDED.replace(",", "").split()) <= set(known)
    assert all(a_look(np.random.default_rng(seed)) for seed in range(50))


def test_some_rows_of_a_batch_are_of_the_other_kind():
    first, second = (Shown(*(torch.full((3,), n) for _ in range(5)), torch.full((3, 3), n)) for n in (1, 2))
    mixed = first.with_some_of(second, torch.tensor([False, True, False]))
    assert mixed.rows.tolist() == [1, 2, 1] and mixed.words.tolist() == [[1] * 3, [2] * 3, [1] * 3]
