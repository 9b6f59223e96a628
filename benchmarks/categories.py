"""What of a prompt beside the concept is drawn, by category, and pictures by lot: the "Categories" part of RESULTS.md.

DreamBooth (Ruiz et al. 2023) and DreamBench++ (Peng et al. 2024) ask for their subjects in other places, with other attributes
and in other styles, and judge concept and prompt picture by picture. Here a character or a product that the base does not know
is asked for on backgrounds, in palettes and in ways of drawing that the base has words for. What a prompt should show is known
to the pixel: the real drawing, redrawn so.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.fidelity import cell, concepts
from benchmarks.fidelity.cell import SAMPLING_STEPS, Cell, the_base, trained
from benchmarks.fidelity.concepts import CONCEPTS, HELD_OUT_BACKGROUNDS, TRIGGER_WORD, Concept
from benchmarks.fidelity.drawings import FOLDER, SIDE, codes, drawing
from benchmarks.fidelity.pool import run_all
from benchmarks.fidelity.probes import contents
from benchmarks.fidelity.scores import background_of
from benchmarks.fidelity.sheets import grouped_sheet
from benchmarks.fidelity.variants import ALONE, FULL, OURS, PLAIN_LONG
from script.embedded_base import pictures
from script.embedded_base.captions import with_article
from script.embedded_base.composed.looks import PLAIN, Look, redraw
from script.embedded_base.evaluate import features

SHEET = Path("benchmarks/categories.png")
# Far apart enough to be told by a thumbnail, of which 64 px leave little.
LOOKS = {
    "background": (PLAIN,),
    "palette": tuple(Look(palette=word) for word in ("greyscale", "golden", "blue ink", "green ink", "rosy", "negative")),
    "way of drawing": tuple(Look(way=word) for word in ("line", "cut-out", "striped", "pixelated", "inked", "dotted")),
}
KNOWN = ("owl", "teapot", "castle", "guitar")  # to the base
REAL, KNOWN_HERE = "real drawings", "the base, things it knows"
ON = ("sloth", "peacock", "honey pot")
RECIPES = (OURS, ALONE, FULL, PLAIN_LONG)
PROMPTS = 12  # of each category
STRENGTH = 1.0
SHOWN = 3  # pictures of a category on the sheet
CELL = 80  # pixels of a picture there
THUMB = 32  # pixels: pictures are compared as thumbnails of this side, and by the differences of neighbours
OTHERS = 60  # things that a picture could show in place of the concept
SCALES, PLACES = (0.75, 0.85, 0.95), (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Asked:
    category: str
    look: Look
    background: str

    def of(self, word: str) -> str:
        style = f", {' '.join(self.look.words)} style" if self.look.words else ""
        return f"{word}{style} on {with_article(self.background)} background"

    @property
    def text(self) -> str:
        return self.of(TRIGGER_WORD)


def asked() -> list[Asked]:
    """As many prompts of each category, its looks in turn, and each on the next background."""
    found = []
    for category, looks in LOOKS.items():
        backgrounds = itertools.cycle(HELD_OUT_BACKGROUNDS)
        found += [Asked(category, look, next(backgrounds)) for look in looks * (PROMPTS // len(looks))]
    return found


def run() -> str:
    pictures.fetch(FOLDER)
    cells = [Cell(concept, variant, 0) for variant in RECIPES for concept in CONCEPTS if concept.name in ON]
    drawn: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for done, images in tqdm(run_all(draw, cells), total=len(cells), desc="categories"):
        drawn[done.variant.name][done.concept.name] = images
    sheet(drawn).save(SHEET, optimize=True)
    plain, palette, way = asked()[::PROMPTS]
    return f"""## Categories

What of a prompt beside the concept is drawn. {", ".join(ON)}, each taught as above (one seed), and asked for at strength
{STRENGTH:g} on backgrounds, in palettes and in ways of drawing that no picture of the archive has: "{plain.text}",
"{palette.text}", "{way.text}"; {PROMPTS} prompts of each.

- **concept**: share of pictures that are nearer to the real drawing, in the look that was named, than to {OTHERS} other things
  in it
- **prompt**: share with the background that was named and, of the looks of the category and none, nearest to the real drawing
  in the one that was named
- **both**: share with both

Nearest is by {THUMB} px thumbnails and the differences of their neighbours, at {len(SCALES) * len(PLACES)} places and scales.
*{REAL}* are what a perfect finetune would draw, through the base's VAE. *{KNOWN_HERE}* is the base without a finetune,
asked for {", ".join(KNOWN)}: what it makes of such prompts at best. {SAMPLING_STEPS} steps.

{table(drawn)}

Pictures by lot, {SHOWN} of each category, the same prompts in every row:

![A row a recipe and concept](categories.png)"""


def draw(one: Cell) -> tuple[Cell, np.ndarray]:
    """uint8 [prompts, 64, 64, 3], and what they are of."""
    return one, trained(one, tuple(each.text for each in asked())).draw(STRENGTH)


def by_the_base(concept: Concept) -> np.ndarray:
    """What it draws for `asked` of a thing that it knows."""
    base = the_base()
    pipeline = base.load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    prompts = [each.of(with_article(str(concept.thing))) for each in asked()]
    texts = base.family.encode_texts(pipeline, [*prompts, ""], base.max_sequence_length)
    return cell.draw(pipeline, texts[: len(prompts)], texts[len(prompts) :])


@torch.inference_mode()
def real(concept: Concept) -> np.ndarray:
    """What `asked` asks for, drawn perfectly, as soft as the base's VAE makes it: uint8 [prompts, 64, 64, 3]."""
    scenes = [redrawn(concept.look, code_of(concept), each.look, each.background, [(0.875, 0.5)]) for each in asked()]
    vae = the_base().load_vae()
    pixels = torch.from_numpy(pictures.to_tensor_range(np.concatenate(scenes)))
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def redrawn(family: str, code: str, look: Look, background: str, places: Iterable[tuple[float, float]]) -> np.ndarray:
    """``places``: scale, and place from left to right. uint8 [places, 64, 64, 3]."""
    picture, colour = redraw(drawing(family, code), look), pictures.BACKGROUNDS[background]
    return np.stack([pictures.compose(picture, colour, (SIDE, SIDE), scale, (x, 0.5)) for scale, x in places])


@cache
def at_places(family: str, code: str, look: Look, background: str) -> np.ndarray:
    """A real drawing's features, [places, F]."""
    return features(redrawn(family, code, look, background, itertools.product(SCALES, PLACES)), THUMB)


def code_of(concept: Concept) -> str:
    return concepts.codes_by_name()[str(concept.thing)]


@cache
def things(concept: Concept) -> tuple[str, ...]:
    """The concept's code, and those that its pictures could be taken for."""
    others = sorted((set(contents()) & set(codes(concept.look))) - {code_of(concept)})
    return (code_of(concept), *np.random.default_rng(0).choice(others, OTHERS, replace=False))


def scored(concept: Concept, images: np.ndarray) -> dict[str, np.ndarray]:
    """By category, float [3, prompts]: the concept, the prompt, and both, picture by picture, 0 or 1."""
    shown, right = [], []
    for each, image, seen in zip(asked(), images, features(images, THUMB), strict=True):

        def distance(code: str, look: Look, seen: np.ndarray = seen, background: str = each.background) -> float:
            return ((at_places(concept.look, code, look, background) - seen) ** 2).sum(1).min()

        looks = dict.fromkeys((PLAIN, *LOOKS[each.category]))
        shown.append(min(things(concept), key=lambda code: distance(code, each.look)) == code_of(concept))
        nearest = min(looks, key=lambda look: distance(code_of(concept), look))
        right.append(nearest == each.look and background_of(image) == each.background)
    values = np.stack([shown, right, np.logical_and(shown, right)]).astype(float)
    return {category: values[:, [each.category == category for each in asked()]] for category in LOOKS}


def table(drawn: dict[str, dict[str, np.ndarray]]) -> str:
    """A line a recipe: concept, prompt and both by category; means over concepts and prompts."""
    taught = {concept.name: concept for concept in CONCEPTS if concept.name in ON}
    known = {name: Concept(name, "product", pictures.NOTO, name) for name in KNOWN}
    everything = {
        **drawn,
        KNOWN_HERE: {name: by_the_base(concept) for name, concept in known.items()},
        REAL: {name: real(concept) for name, concept in taught.items()},
    }
    lines = [
        f"| concept, prompt, **both** | {' | '.join(LOOKS)} |",
        "|---" * (len(LOOKS) + 1) + "|",
    ]
    for recipe, images in everything.items():
        found = [scored((taught | known)[name], those) for name, those in images.items()]
        means = [np.mean([each[category] for each in found], axis=(0, 2)) for category in LOOKS]
        lines.append(f"| {recipe} | {' | '.join(f'{c:.2f}, {p:.2f}, **{b:.2f}**' for c, p, b in means)} |")
    return "\n".join(lines)


def sheet(drawn: dict[str, dict[str, np.ndarray]]) -> Image.Image:
    """A row a concept and recipe, the prompts above; drawn by lot from each category, the same in every row."""
    rng = np.random.default_rng(1)
    lot = [
        n
        for category in LOOKS
        for n in np.sort(rng.choice([n for n, each in enumerate(asked()) if each.category == category], SHOWN, replace=False))
    ]
    heads = {
        column: f"{' '.join(asked()[n].look.words) or 'plain'}\non {asked()[n].background}" for column, n in enumerate(lot)
    }
    rows = {f"{name}\n{recipe}": drawn[recipe][name][lot] for name in ON for recipe in drawn}
    return grouped_sheet(rows, heads, SHOWN, CELL)
