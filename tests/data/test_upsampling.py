"""prompt_upsampling by the embedded captioner's language model."""

import logging
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetuner.bases.base import WEIGHTS
from finetuner.data import upsampling as module
from finetuner.data.captioner import CAPTIONERS, Captioner
from finetuner.data.upsampling import PASSING_BYTES, PromptUpsampler, lost_words, replace_mentions

ROOM = 2 * PASSING_BYTES  # for all of the embedded captioner


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.open(WEIGHTS / CAPTIONERS.embedded)


@pytest.fixture(scope="module")
def upsampler(base, captioner) -> PromptUpsampler:
    return PromptUpsampler(base, captioner, ROOM)


@pytest.mark.parametrize(
    ("prompt", "mode"),
    [
        ("a fox, TOK style", "style"),
        ("a fox on a teal background, TOK style", "style"),
        ("TOK, icon of a rocket on purple", "general"),
        ("TOK on a yellow background", "character"),
        ("a drawing of an owl in the style of TOK, red background", "style"),
    ],
)
def test_a_prompt_becomes_longer_and_keeps_what_it_asks_for(upsampler, caplog, prompt, mode):
    caplog.set_level(logging.WARNING, "finetuner")
    longer = upsampler.upsample(prompt, "TOK", mode)
    assert not caplog.records, caplog.text
    assert len(longer.split()) > len(prompt.split()) and not lost_words(prompt, longer)
    assert longer.count("TOK") == 1 and "background" in longer and "SUBJECT" not in longer
    assert upsampler.base.characters_read(longer) == len(longer)


def test_it_says_the_same_every_time(base, captioner, upsampler):
    prompt = "a castle, ZXWV style"
    again = PromptUpsampler(base, captioner, ROOM)
    assert again.upsample(prompt, "ZXWV", "style") == upsampler.upsample(prompt, "ZXWV", "style")


def test_a_model_without_room_on_the_device_is_loaded_when_it_is_asked_and_says_the_same(base, captioner, upsampler):
    roomy, tight = PromptUpsampler(base, captioner, ROOM), PromptUpsampler(base, captioner, PASSING_BYTES)
    for each in (roomy, tight):
        each.prepare()
    assert "_loaded" in roomy.__dict__ and "_loaded" not in tight.__dict__
    prompt = "a snail, TOK style"
    assert tight.upsample(prompt, "TOK", "style") == upsampler.upsample(prompt, "TOK", "style") != prompt
    model, _ = tight._loaded
    assert any(getattr(module, "_diffusers_hook", None) is not None for module in model.modules())


def test_the_model_is_asked_once_for_a_prompt(upsampler, monkeypatch):
    asked = []
    generate = module.generate_texts
    monkeypatch.setattr(module, "generate_texts", lambda *given: asked.append(1) or generate(*given))
    assert upsampler.upsample("a key, TOK style", "TOK", "style") == upsampler.upsample("a key, TOK style", "TOK", "style")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("mode", "ending"), [("style", "light, TOK style"), ("general", "light"), ("character", "light"), ("product", "light")]
)
def test_a_trigger_word_that_is_lost_is_put_back(upsampler, monkeypatch, mode, ending):
    monkeypatch.setattr(module, "generate_texts", lambda *_: ["a photo of a fox in soft light"])
    upsampler.upsampled.clear()
    longer = upsampler.upsample("a fox", "TOK", mode)
    assert longer.count("TOK") == 1 and longer.endswith(ending)


def test_a_trigger_word_that_is_said_twice_stays_once(upsampler, monkeypatch):
    monkeypatch.setattr(module, "generate_texts", lambda *_: ["SUBJECT on a hill, the sun behind SUBJECT"])
    assert upsampler.upsample("TOK on a hill", "TOK", "character") == "TOK on a hill, the sun behind the character"
    monkeypatch.setattr(module, "generate_texts", lambda *_: ["SUBJECT on a lake, TOK in the water, tok"])
    assert upsampler.upsample("TOK on a lake", "TOK", "product").casefold().count("tok") == 1


@pytest.mark.parametrize("said", [None, "an owl on a teal background, SUBJECT style", "a fox, SUBJECT style, in soft light"])
def test_a_rewriting_that_fails_is_not_taken(upsampler, monkeypatch, caplog, said):
    monkeypatch.setattr(module, "generate_texts", lambda *_: [said])
    upsampler.upsampled.clear()
    assert upsampler.upsample("a fox on teal, TOK style", "TOK", "style") == "a fox on teal, TOK style"
    assert "prompt_upsampling: the rewriting " in caplog.text and "drawn as it was sent" in caplog.text


def test_what_the_language_model_does_not_know_is_drawn_as_it_was_sent(upsampler, caplog):
    prompt = "a sloth that reads a newspaper on the moon, TOK style"
    assert upsampler.upsample(prompt, "TOK", "style") == prompt
    assert "prompt_upsampling: the rewriting lost " in caplog.text


def test_numbers_that_are_not_finite_make_no_prompt(base, captioner, tmp_path, caplog):
    broken = shutil.copytree(captioner.folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if name.endswith("model.norm.weight"))
    weights[name].fill_(torch.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert PromptUpsampler(base, Captioner.open(broken), ROOM).upsample("a fox, TOK", "TOK", "style") == "a fox, TOK"
    assert "not finite" in caplog.text


def test_a_long_rewriting_is_cut_to_what_the_text_encoder_reads(upsampler, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "finetuner")
    more = ", with every hair and leaf in the morning light" * 6
    monkeypatch.setattr(module, "generate_texts", lambda *_: [f"a fox on a teal background, SUBJECT style{more}"])
    upsampler.upsampled.clear()
    longer = upsampler.upsample("a fox on teal, TOK style", "TOK", "style")
    assert longer.startswith("a fox on a teal background, TOK style, with every")
    assert upsampler.base.characters_read(longer) == len(longer) < 120 and not caplog.records
    monkeypatch.setattr(module, "generate_texts", lambda *_: [f"a fox{more} on teal, SUBJECT style"])
    upsampler.upsampled.clear()
    assert upsampler.upsample("a fox on teal, TOK style", "TOK", "style") == "a fox on teal, TOK style"
    assert "lost teal where it was cut" in caplog.text


def test_the_longer_prompt_is_in_the_log(upsampler, caplog):
    caplog.set_level(logging.INFO)
    longer = upsampler.upsample("a bell, TOK style", "TOK", "style")
    assert f"Prompt, upsampled by emoji-captioner: {longer}" in caplog.messages


def test_a_language_model_of_other_pictures_is_refused_with_the_remedy(base, monkeypatch, caplog):
    photographic = replace(base, name="FLUX.1-dev", pictures="photographs")
    monkeypatch.delenv("CAPTION_MODEL", raising=False)
    with pytest.raises(ValueError, match="^prompt_upsampling: FLUX.1-dev .*script/download-weights granite.*false"):
        PromptUpsampler.open(photographic, ROOM)
    monkeypatch.setenv("CAPTION_MODEL", CAPTIONERS.embedded)
    caplog.set_level(logging.INFO)
    assert PromptUpsampler.open(photographic, ROOM).captioner.name == CAPTIONERS.embedded
    assert "Prompts are upsampled by emoji-captioner" in caplog.text


def test_mentions_are_whole_words_in_any_letter_case():
    assert replace_mentions("Tok and TOKEN and tok", "TOK", "A", "B") == "A and TOKEN and B"


@pytest.mark.parametrize(
    ("prompt", "longer", "lost"),
    [
        ("a photo of two running dogs", "A photograph of two dogs that run", ["running"]),
        ("a painted house", "the painting of a house by a lake", []),
        ("a red fox on the snow", "an owl", ["red", "fox", "snow"]),
        ("a car in a rose", "cars on a carpet", ["rose"]),
        ("a car", "a carpet", ["car"]),
        ("of the", "", []),
    ],
)
def test_a_word_is_kept_in_any_of_its_forms(prompt, longer, lost):
    assert lost_words(prompt, longer) == lost
