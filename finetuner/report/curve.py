"""The loss and the learning rate, step by step, as one figure: in a page's own colours, or in dark on white.

matplotlib is imported as the first is drawn: a training has no use for its memory, 20 MB.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from finetuner.training import History, Recipe, rate_factor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, ACCENT = "#1d2129", "#b9bfc9", "#2f6fde"
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", ACCENT: "var(--accent)"}  # of the page's style, light and dark
STYLE = {
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "",
}


def learning_rates(recipe: Recipe) -> list[float]:
    """One value a step, the base's scale included."""
    return [recipe.learning_rate * rate_factor(step, recipe) for step in range(recipe.steps)]


def draw_loss_curve(history: History, recipe: Recipe) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5, 3.6), layout="constrained")
        losses, rates = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        steps = range(1, len(history.losses) + 1)
        losses.plot(steps, history.losses, color=FAINT, linewidth=0.8, label="each step")
        losses.plot(steps, history.smoothed_losses, color=ACCENT, linewidth=1.6, label="smoothed")
        losses.set_ylabel("flow loss")
        losses.legend()
        rates.plot(steps, learning_rates(recipe), color=ACCENT, linewidth=1.6)
        rates.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
        rates.yaxis.set_major_formatter("{x:g}")
        rates.xaxis.get_major_locator().set_params(integer=True)
        figure.align_ylabels()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not once a file
    return figure


def as_svg(figure: Figure) -> str:
    """An ``<svg>`` element to put into a page."""
    import matplotlib

    svg = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(svg, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    element = svg.getvalue().partition("<svg")
    text = element[1] + element[2]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text
