import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from reports import make

from finetuner.report.report import write_report
from finetuner.report.sheet import STRENGTHS


@pytest.fixture(scope="module")
def made(base):
    return make(base)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    write_report(folder, **vars(made))
    return folder


def test_a_report_is_a_page_a_card_and_their_pieces(folder):
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    pictures = {f"report/sheet/1-strength-{strength}.png" for strength in ("0", "0.5", "1", "1.5")}
    pieces = {"curve.png", "strengths.png", "training.png", "history.json", "sheet.json", "index.html"}
    assert files == {"README.md", *(f"report/{name}" for name in pieces), *pictures}


def test_the_cards_gallery_is_what_is_drawn_at_strength_1(folder, made):
    (shown,) = ModelCard((folder / "README.md").read_text()).data.widget
    drawn = Image.open(folder / shown["output"]["url"])
    assert drawn.getpixel((0, 0)) == made.sheet.rows[0][STRENGTHS.index(1.0)].getpixel((0, 0))


def test_the_history_has_a_value_a_step_of_everything(folder, made):
    history = json.loads((folder / "report" / "history.json").read_text())
    assert history.keys() == {"losses", "smoothed_losses", "gradient_norms", "learning_rates"}
    assert {len(values) for values in history.values()} == {made.recipe.steps}
    assert history["losses"] == made.history.losses


def test_the_sheet_says_which_picture_is_which(folder, made):
    sheet = json.loads((folder / "report" / "sheet.json").read_text())
    assert sheet["prompts"] == made.sheet.prompts and sheet["strengths"] == list(STRENGTHS)
    (names,) = sheet["pictures"]
    drawn = [Image.open(folder / "report" / name).getpixel((0, 0)) for name in names]
    assert drawn == [image.getpixel((0, 0)) for image in made.sheet.rows[0]]
