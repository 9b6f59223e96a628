from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make_recipe
from PIL import Image

from finetuner.report import sheet as sheets
from finetuner.report.sheet import CELL, SEED, STRENGTHS, contact_sheet, labelled_grid, sheet_prompts, strength_sheet
from finetuner.requests import DEFAULT_GUIDANCE, MODES, FinetuneRequest
from finetuner.serving import decode_latents, sample_latents
from finetuner.training.adapter import add_adapter, set_strength, trainable_weights


def test_a_grid_shows_every_picture_in_its_place():
    colours = [["red", "green", "blue"], ["black", "yellow", "grey"]]
    rows = [[Image.new("RGB", (64, 64), colour) for colour in row] for row in colours]
    grid = labelled_grid(rows, ["first", "second"], ["a", "b", "c"])
    middles = [(12 + column * (CELL + 12) + CELL // 2) for column in range(3)]
    tops = [42 + row * (CELL + 42) + 30 + CELL // 2 for row in range(2)]
    shown = [[grid.getpixel((x, y)) for x in middles] for y in tops]
    assert shown == [[Image.new("RGB", (1, 1), c).getpixel((0, 0)) for c in row] for row in colours]


def test_a_contact_sheet_shows_every_picture_whole():
    wide, tall, small = (Image.new("RGB", size, "red") for size in ((400, 100), (100, 400), (10, 10)))
    sheet = contact_sheet([wide, tall, small, small], columns=3, cell=100)
    red = np.all(np.array(sheet) == (255, 0, 0), axis=-1)
    areas = [red[8 + y * 108 :, 8 + x * 108 :][:100, :100].sum() for y, x in ((0, 0), (0, 1), (0, 2), (1, 0))]
    assert areas == [100 * 25, 25 * 100, 100, 100] and red.sum() == sum(areas)


@pytest.mark.parametrize("mode", MODES)
def test_every_prompt_has_the_trigger_word_and_a_short_training_pays_for_fewer(mode):
    prompts = {
        steps: sheet_prompts(FinetuneRequest(Path("x.zip"), mode=mode, training_steps=steps)) for steps in (1, 300, 6000)
    }
    assert {steps: len(p) for steps, p in prompts.items()} == {1: 1, 300: 2, 6000: 3}
    assert all("TOK" in prompt for prompt in prompts[6000]) and prompts[300] == prompts[6000][:2]


@pytest.fixture(scope="module")
def pipeline(base):
    pipeline = base.load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_sheet_shows_what_predictions_draw_at_each_strength_beginning_with_the_base(base, pipeline, monkeypatch):
    monkeypatch.setattr(sheets, "SAMPLING_STEPS", 4)
    prompts = ["a fox on a teal background", "a house on a pink background"]
    texts = base.family.encode_texts(pipeline, prompts, base.max_sequence_length)

    def drawn(row: int) -> np.ndarray:
        text = texts[row : row + 1]
        latents = sample_latents(pipeline, text, (64, 64), steps=4, guidance=DEFAULT_GUIDANCE, seed=SEED)
        return np.array(decode_latents(pipeline, latents, (64, 64))[0], dtype=int)

    before = [drawn(row) for row in range(2)]
    add_adapter(pipeline.transformer, rank=4, seed=0)
    for parameter in trainable_weights(pipeline.transformer).values():
        torch.nn.init.normal_(parameter, std=0.07, generator=torch.Generator().manual_seed(0))
    sheet = strength_sheet(pipeline, base, make_recipe(resolutions=(64, 96)), prompts, texts, texts[:1])
    assert sheet.size == (64, 64) and sheet.prompts == prompts and [len(row) for row in sheet.rows] == [len(STRENGTHS)] * 2

    set_strength(pipeline.transformer, STRENGTHS[-1])
    last = [drawn(row) for row in range(2)]
    for row, images in enumerate(sheet.rows):
        first, *_, end = (np.array(image, dtype=int) for image in images)
        assert abs(first - before[row]).max() <= 2 and abs(end - last[row]).max() <= 2  # a batch rounds otherwise
        assert abs(end - first).mean() > 5


def test_the_sheet_is_no_larger_than_what_was_trained_on(base, pipeline, monkeypatch):
    monkeypatch.setattr(sheets, "SAMPLING_STEPS", 1)
    texts = base.family.encode_texts(pipeline, ["TOK"], base.max_sequence_length)
    assert strength_sheet(pipeline, base, make_recipe(resolutions=(32, 96)), ["TOK"], texts, texts).size == (32, 32)
