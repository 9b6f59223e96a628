"""Composed scenes: looks that are words, things apart from looks, and a text encoder whose idle layers do nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2KleinPipeline
from embedded_base import pictures
from embedded_base.composed import captions, looks, scenes
from embedded_base.composed.palettes import PALETTES
from embedded_base.composed.shades import shaded
from embedded_base.composed.things import look_words, thing_words
from embedded_base.klein import batches, codec, judge, text, training
from embedded_base.pictures import Concept
from PIL import Image, ImageDraw

from finetuner.paths import WEIGHTS

CONCEPTS = [Concept("fox", "1f98a"), Concept("key", "1f511"), Concept("owl", "1f989"), Concept("rose", "1f339")]


@pytest.fixture(scope="module")
def drawing() -> Image.Image:
    """Of a few colours, with an inner edge."""
    picture = Image.new("RGBA", (96, 112))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((4, 4, 90, 106), fill=(230, 120, 40))
    pen.rectangle((30, 20, 60, 60), fill=(40, 60, 160))
    return picture.crop(picture.getbbox())


@pytest.fixture(scope="module")
def tokens():
    return text.new_tokenizer(CONCEPTS)


def test_there_are_more_than_150_looks_and_each_is_named_once():
    assert len(looks.looks()) > 150
    assert len({frozenset(look.words) for look in looks.looks()}) == len(looks.looks())


def test_words_of_looks_change_the_drawing_each_in_its_own_way(drawing):
    drawn = {}
    for look in (looks.PLAIN, *looks.looks()):
        if len(look.words) < 2:
            on_teal = pictures.compose(looks.redraw(drawing, look), (20, 140, 140), (64, 64), 0.9, (0.5, 0.5))
            drawn[look] = on_teal.astype(float)
    for one, other in itertools.combinations(drawn, 2):
        assert np.abs(drawn[one] - drawn[other]).mean() > 1.5, (one, other)


def test_a_palette_keeps_the_range():
    rgb = np.random.default_rng(0).random((8, 8, 3)).astype(np.float32)
    for name, palette in PALETTES.items():
        assert palette(rgb).min() >= 0 and palette(rgb).max() <= 1, name


def test_held_out_pairs_are_never_drawn_and_every_word_is_seen():
    rows = scenes.chosen_rows(CONCEPTS, np.ones((len(CONCEPTS), len(looks.FAMILIES)), bool))
    held_out = looks.held_out_pairs(len(CONCEPTS))
    in_look = rows[rows[:, 2] > 0]
    assert held_out.any() and not held_out[in_look[:, 0], in_look[:, 2] - 1].any()
    assert 0.45 < len(in_look) / len(rows) < 0.55
    assert set(in_look[:, 2]) == set(range(1, len(looks.looks()) + 1))


def test_the_judges_pairs_are_the_ones_asked_for():
    held_out = looks.held_out_pairs(len(CONCEPTS))
    for wanted in (True, False):
        thing, look = judge.pairs(len(CONCEPTS), 20, 1, held_out=wanted)
        assert (held_out[thing, look - 1] == wanted).all()


def test_the_judge_learns_from_pictures_as_the_codec_gives_them_back(drawing):
    scene = pictures.compose(drawing, (20, 140, 140), (64, 64), 0.9, (0.5, 0.5))
    vae = AutoencoderKLFlux2.from_pretrained(WEIGHTS / "klein-emoji" / "vae").eval()
    (restored,) = judge.through_codec(vae, scene[None])
    assert restored.dtype == np.uint8 and restored.shape == scene.shape
    assert 0.2 < np.abs(restored.astype(float) - scene).mean() < 10


def test_a_caption_names_thing_look_and_background_by_words_or_by_made_up_ones():
    write, rng = captions.Captions(CONCEPTS), np.random.default_rng(0)
    words, orders = look_words(), set()
    look = next(each for each in words if len(each.words) == 2)
    for _ in range(200):
        caption = write(captions.Facts(1, 0, look, "teal"), rng)
        assert "teal" in caption and "key" in caption
        if words[look] not in caption:
            assert all(word in caption for word in look.words)
            orders.add(caption.index(look.words[0]) < caption.index(look.words[1]))
    assert orders == {True, False}
    foxes = [write(captions.Facts(0, 0, looks.PLAIN, "teal"), rng) for _ in range(200)]
    assert 0.35 < np.mean([thing_words(CONCEPTS)["fox"] in caption for caption in foxes]) < 0.65


def test_a_word_that_nobody_knows_is_said_and_seen():
    """So that the base hears each: by its shade, which leaves a background nearer to itself than to any other (but for white,
    which turns pale pink)."""
    facts = captions.Facts(0, 0, looks.PLAIN, "teal", "BLIVOZ")
    rng = np.random.default_rng(0)
    assert all("BLIVOZ" in captions.Captions(CONCEPTS)(facts, rng) for _ in range(20))
    colours = np.array(list(pictures.BACKGROUNDS.values()), float)
    for n, colour in enumerate(pictures.BACKGROUNDS.values()):
        seen = {shaded(colour, word) for word in ("AB", "AX", "XA", "XX")}
        assert len(seen) == 4 and seen == {shaded(colour, word) for word in ("mango", "az", "nb", "TOK")}
        assert sum(np.abs(np.subtract(shade, colour)).max() > 12 for shade in seen) >= 3  # red is as red as its red shade
        for shade in seen:
            assert n == 0 or np.square(colours - shade).sum(1).argmin() == n


def test_the_text_encoder_gives_what_the_pipeline_takes_from_it(tokens):
    encoder = text.new_text_encoder(tokens).eval()
    prompts = ["a fox on a teal background, TOK style", ""]
    ids, mask = text.token_ids(tokens, prompts)
    ours, _ = text.encode(encoder, ids, mask)
    pipelines = Flux2KleinPipeline._get_qwen3_prompt_embeds(encoder, tokens, prompts, max_sequence_length=text.LENGTH)
    assert torch.equal(ours, pipelines)


def test_a_made_up_word_is_read_and_long_captions_fit(tokens):
    read = [text.token_ids(tokens, [prompt])[1].sum() for prompt in ("a fox", "a fox, BLIVOZ style")]
    assert read[1] >= read[0] + 3
    assert max(text.token_ids(tokens, [each])[1].sum() for each in captions.corpus(CONCEPTS)) < text.LENGTH


def test_the_codec_carried_over_decodes_as_before():
    before = AutoencoderKL.from_pretrained(WEIGHTS / "flux-emoji" / "vae", dtype=torch.float32)
    after = codec.carried_over(WEIGHTS / "flux-emoji" / "vae")
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents = after.encode(pixels).latent_dist.mode()
        assert torch.equal(latents, before.encode(pixels).latent_dist.mode())
        assert torch.equal(after.decode(latents).sample, before.decode(latents).sample)
        codec.set_statistics(after, codec.patches(after, pixels))
        tokens = codec.tokens(after, pixels)
    assert tokens.shape == (2, 64, 64) and tokens.mean((0, 1)).abs().max() < 1e-4
    assert (tokens.std((0, 1)) - 1).abs().max() < 0.02


def test_a_reference_stands_ten_beats_behind():
    ids = batches.image_ids(references=True)
    assert ids.shape == (128, 4) and set(ids[:64, 0].tolist()) == {0.0} and set(ids[64:, 0].tolist()) == {10.0}


def test_the_whole_pipeline_is_small(tokens):
    parameters = sum(p.numel() for p in training.new_transformer().parameters())
    parameters += sum(p.numel() for p in text.new_text_encoder(tokens).parameters())
    assert 2 * parameters + 5.3e6 < 20e6  # bfloat16, and the VAE
