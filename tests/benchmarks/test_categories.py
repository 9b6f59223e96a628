"""What a perfect finetune would draw is judged right, and what shows another thing, look or background is not."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks import categories
from benchmarks.fidelity.concepts import CONCEPTS

PEACOCK = next(concept for concept in CONCEPTS if concept.name == "peacock")


def drawing(family: str, code: str) -> Image.Image:
    """Some coloured blobs, others for each code: the emoji themselves are fetched by the benchmark."""
    rng = np.random.default_rng(int(code))
    picture = Image.new("RGBA", (128, 128))
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y, width, height = rng.integers(0, 80), rng.integers(0, 80), rng.integers(15, 48), rng.integers(15, 48)
        pen.ellipse([x, y, x + width, y + height], fill=(*rng.integers(0, 256, 3).tolist(), 255))
    return picture.crop(picture.getbbox())


@pytest.fixture(autouse=True, scope="module")
def blobs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(categories, "drawing", drawing)
        patch.setattr(categories, "code_of", lambda _: "0")
        patch.setattr(categories, "things", lambda _: ("0", "1", "2", "3"))
        yield
    categories.at_places.cache_clear()


def scores(code: str, asked: list[categories.Asked]) -> dict[str, list[float]]:
    """Concept, prompt and both, by category, of pictures that show the drawing of that code, each as it is asked for."""
    images = [categories.redrawn(PEACOCK.look, code, each.look, each.background, [(0.8, 0.45)]) for each in asked]
    return {name: values.mean(1).tolist() for name, values in categories.scored(PEACOCK, np.concatenate(images)).items()}


def changed(**to) -> list[categories.Asked]:
    return [categories.Asked(**vars(each) | to) for each in categories.asked()]


def test_what_is_asked_for_is_right():
    assert all(values == [1.0, 1.0, 1.0] for values in scores("0", categories.asked()).values())


def test_another_thing_is_not_the_concept():
    assert all(values[0] == values[2] == 0.0 for values in scores("3", categories.asked()).values())


def test_another_look_or_background_is_not_what_the_prompt_says():
    found = scores("0", changed(look=categories.PLAIN))
    assert found["background"] == [1.0, 1.0, 1.0]
    assert found["palette"][1:] == found["way of drawing"][1:] == [0.0, 0.0]
    assert all(values[1:] == [0.0, 0.0] for values in scores("0", changed(background="green")).values())


def test_each_category_is_asked_for_as_often():
    texts = [each.text for each in categories.asked()]
    assert len(set(texts)) >= 28 and all(text.startswith("TOK") for text in texts)
    assert [sum(each.category == name for each in categories.asked()) for name in categories.LOOKS] == [12, 12, 12]
