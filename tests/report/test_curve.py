from xml.etree import ElementTree

import pytest
from helpers import make_recipe

from finetuner.report.curve import as_svg, draw_loss_curve, learning_rates
from finetuner.training.trainer import History


def test_the_learning_rate_rises_to_the_recipes_and_falls_to_its_share():
    recipe = make_recipe(steps=100, learning_rate=2e-3)
    rates = learning_rates(recipe)
    assert len(rates) == 100 and max(rates) == rates[4] == pytest.approx(2e-3)
    assert rates[0] == pytest.approx(2e-3 / 5) and rates[-1] == pytest.approx(2e-4, rel=0.01)


@pytest.mark.parametrize("steps", [1, 6000])
def test_the_curve_is_an_element_with_its_text_as_text(steps):
    history = History()
    for step in range(steps):
        history.append(loss=1 / (step + 1), gradient_norm=1.0)
    svg = as_svg(draw_loss_curve(history, make_recipe(steps=steps)))
    element = ElementTree.fromstring(svg)
    texts = {text.text for text in element.iter("{http://www.w3.org/2000/svg}text")}
    assert {"step", "flow loss", "learning rate", "smoothed"} <= texts
    assert len(svg) < 200_000
