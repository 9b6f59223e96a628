"""What the tests of the report make: all that a training hands over to it, without the training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from helpers import make_recipe
from PIL import Image

from finetuner.bases.base import Base
from finetuner.data.archive import Example
from finetuner.report.sheet import STRENGTHS, Sheet
from finetuner.report.summary import Summary, summarise
from finetuner.requests import FinetuneRequest
from finetuner.training.recipe import Recipe
from finetuner.training.trainer import History

NASTY = """<script>alert("x")</script> & it's | a *bold* `$(id)` [link](http://x.example) \\ "quoted" """.strip()


@dataclass
class Made:
    manifest: dict
    request: FinetuneRequest
    base: Base
    recipe: Recipe
    examples: list[Example]
    history: History
    sheet: Sheet

    @property
    def summary(self) -> Summary:
        return summarise(self.manifest, self.request, self.base, self.recipe, self.sheet)


def make(base: Base, *, trigger_word: str = "TOK", captions: tuple[str, ...] = ("a fox, TOK",), **changes) -> Made:
    """A small full finetune's, of one plain picture a caption."""
    recipe = make_recipe(finetune_type="full", distillation_steps=4, seed=3)
    request = FinetuneRequest(Path("photos.zip"), training_steps=recipe.steps, trigger_word=trigger_word, mode="product")
    examples = [Example(f"{number}.png", Image.new("RGB", (60, 40), "red"), text) for number, text in enumerate(captions)]
    history = History()
    for step in range(recipe.steps):
        history.append(loss=1 / (step + 1), gradient_norm=0.5)
    colours = ["white", "silver", "grey", "black"]
    sheet = Sheet([f"{trigger_word} on a beach"], [[Image.new("RGB", (64, 64), colour) for colour in colours]])
    assert len(colours) == len(STRENGTHS)
    manifest = {
        "recipe": asdict(recipe),
        "images": len(examples),
        "final_loss": 0.25,
        "energy_kept": 0.5,
        "velocity_kept": 0.93,
        "seconds": {"encode": 1.5, "train": 60.25},
        "peak_memory_bytes": {"encode": 1 << 30, "train": 2 << 30},
    }
    return Made(**{**vars(Made(manifest, request, base, recipe, examples, history, sheet)), **changes})
