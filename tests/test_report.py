from pathlib import Path

import yaml
from PIL import Image

from finetuner.recipe import FinetuneRequest
from finetuner.report import CELL, labelled_grid, model_card, sheet_prompts
from finetuner.sampling import ASPECT_RATIOS, native_size


def test_a_grid_shows_every_picture_in_its_place():
    colours = [["red", "green", "blue"], ["black", "yellow", "grey"]]
    rows = [[Image.new("RGB", (64, 64), colour) for colour in row] for row in colours]
    grid = labelled_grid(rows, ["first", "second"], ["a", "b", "c"])
    middles = [(12 + column * (CELL + 12) + CELL // 2) for column in range(3)]
    tops = [42 + row * (CELL + 42) + 30 + CELL // 2 for row in range(2)]
    shown = [[grid.getpixel((x, y)) for x in middles] for y in tops]
    assert shown == [[Image.new("RGB", (1, 1), c).getpixel((0, 0)) for c in row] for row in colours]


def test_the_model_card_says_what_the_hub_wants_to_know(base):
    summary = {"images": 16, "final_loss": 0.2, "velocity_kept": 0.93}
    card = model_card(base, FinetuneRequest(Path("photos.zip"), trigger_word="TOK", mode="product"), summary)
    _, front_matter, text = card.split("---\n", 2)
    facts = yaml.safe_load(front_matter)
    assert facts["instance_prompt"] == "TOK" and facts["base_model"] == base.name and "lora" in facts["tags"]
    assert "| images | 16 |" in text and "93.0%" in text and base.licence in text


def test_every_sheet_prompt_has_the_trigger_word():
    assert all("TOK" in p for mode in ("general", "character", "style", "product") for p in sheet_prompts(mode, "TOK"))


def test_native_sizes_of_flux_dev_are_about_a_megapixel_in_multiples_of_16():
    for width, height in (native_size(w / h, 1024, 16) for w, h in ASPECT_RATIOS.values()):
        assert width % 16 == height % 16 == 0
        assert 0.96 < width * height / 2**20 < 1.04
    assert native_size(16 / 9, 1024, 16) == (1360, 768)
