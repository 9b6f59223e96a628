"""What is taught, and what is asked for afterwards. All of it is drawn from openly licensed emoji, the same every time."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fidelity.drawings import FOLDER, SIDE, THERMAL, codes, scene
from benchmarks.fidelity.probes import contents
from script.embedded_base import pictures
from script.embedded_base.captions import with_article
from script.embedded_base.composed.things import things

TRIGGER_WORD = "TOK"
TRAINING_SIDE = 128  # pixels of the images in the archive
TRAINING_BACKGROUNDS = ("white", "yellow", "light blue", "pink", "green", "grey")
# Not orange, which names a thing, too: klein-emoji draws that one and not the concept.
HELD_OUT_BACKGROUNDS = ("teal", "blue", "purple", "red")
TRAINING_CONTENTS = (
    "dog", "owl", "penguin", "butterfly", "snail", "mushroom", "sunflower", "cactus",
    "banana", "pizza", "hamburger", "rocket", "sailboat", "house", "guitar", "camera",
)  # fmt: skip
HELD_OUT_CONTENTS = (
    "fox", "frog", "turtle", "strawberry", "castle", "bicycle", "key", "umbrella", "crown", "bell", "airplane", "cherries",
)  # fmt: skip
SUBJECT_IMAGES = 12
SUBJECT_PROMPTS = (
    "{word} on {a_background} background",
    "a picture of {word}, {background} background",
    "{word} icon on {background}",
)


@dataclass(frozen=True)
class Concept:
    """A style: many things in one look. A character or a product: one thing that the base does not know, in one look."""

    name: str
    mode: str
    look: str
    thing: str | None = None  # its name to the content probe
    images: int | None = None  # in the archive; without a number as many as there are of a kind above

    def with_images(self, count: int) -> Concept:
        return replace(self, name=f"{self.name}, {count} images", images=count)


@dataclass(frozen=True)
class Prompt:
    text: str
    content: str  # what the picture should show, as the content probe names it
    background: str


CONCEPTS = (
    Concept("line icons", "style", pictures.LINE),
    Concept("thermal", "style", THERMAL),
    Concept("Twemoji", "style", "twemoji"),
    Concept("OpenMoji", "style", "openmoji"),
    Concept("sloth", "character", pictures.NOTO, "sloth"),
    Concept("lobster", "character", pictures.NOTO, "lobster"),
    Concept("peacock", "character", pictures.FLUENT_FLAT, "peacock"),
    Concept("honey pot", "product", pictures.NOTO, "honey pot"),
    Concept("nesting dolls", "product", pictures.NOTO, "nesting dolls"),
    Concept("water pistol", "product", pictures.FLUENT_FLAT, "water pistol"),
)


def chosen(names: str) -> list[Concept]:
    """Of a comma-separated list of concepts and modes (``styles``, ``characters``, ``products``, ``all``).

    Raises:
        ValueError: a name that is none of them.
    """
    found = []
    for name in names.split(","):
        those = [c for c in CONCEPTS if name in ("all", c.name, c.mode, f"{c.mode}s")]
        if not those:
            raise ValueError(f"no concept {name!r}; there are {', '.join(c.name for c in CONCEPTS)}.")
        found += those
    return list(dict.fromkeys(found))


@cache
def codes_by_name() -> dict[str, str]:
    """Of the base's own, where two go by one name: it has "dog face" as "dog"."""
    return {name: code for code, name in reversed(contents().items())}


def training_things(concept: Concept) -> list[str]:
    """What the images show, one each."""
    if concept.thing is not None:
        return [concept.thing] * (concept.images or SUBJECT_IMAGES)
    drawn, taken = set(codes(concept.look)), TRAINING_CONTENTS + HELD_OUT_CONTENTS
    others = [name for name, code in codes_by_name().items() if code in drawn and name not in taken]
    known = {thing.name for thing in things(FOLDER)}
    others.sort(key=lambda name: name not in known)  # people's captions are in words that the base has
    return [*TRAINING_CONTENTS, *others][: concept.images or len(TRAINING_CONTENTS)]


def write_archive(concept: Concept, path: Path) -> None:
    """The training archive: 16 things in a style, or one thing 12 times, or as many as the concept says; captions beside."""
    rng = np.random.default_rng(0)
    shown = training_things(concept)
    with zipfile.ZipFile(path, "w") as archive:
        for n, thing in enumerate(shown):
            background = TRAINING_BACKGROUNDS[n % len(TRAINING_BACKGROUNDS)]
            place = tuple(rng.uniform(0.3, 0.7, 2))
            colour, code = pictures.BACKGROUNDS[background], codes_by_name()[thing]
            pixels = scene(concept.look, code, colour, TRAINING_SIDE, rng.uniform(0.75, 0.95), place)
            on = f"on {with_article(background)} background"
            named = f"{with_article(thing)} {on}, {TRIGGER_WORD} style" if concept.thing is None else f"{TRIGGER_WORD} {on}"
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            archive.writestr(f"{n:03}.png", png.getvalue())
            archive.writestr(f"{n:03}.txt", named)


def prompts(concept: Concept) -> list[Prompt]:
    """With the trigger word: things and backgrounds that are not in the archive."""
    if concept.thing is None:
        return [Prompt(f"{plain.text}, {TRIGGER_WORD} style", plain.content, plain.background) for plain in plain_prompts()]
    return [
        Prompt(
            wording.format(word=TRIGGER_WORD, background=background, a_background=with_article(background)),
            concept.thing,
            background,
        )
        for wording in SUBJECT_PROMPTS
        for background in HELD_OUT_BACKGROUNDS
    ]


def plain_prompts() -> list[Prompt]:
    """Without the trigger word: what must stay as the base draws it."""
    backgrounds = [HELD_OUT_BACKGROUNDS[n % len(HELD_OUT_BACKGROUNDS)] for n in range(len(HELD_OUT_CONTENTS))]
    return [
        Prompt(f"{with_article(content)} on {with_article(background)} background", content, background)
        for content, background in zip(HELD_OUT_CONTENTS, backgrounds, strict=True)
    ]


def references(concept: Concept) -> np.ndarray:
    """What a perfect finetune would draw for `prompts`: the real drawings, uint8 [N, 64, 64, 3]."""
    return np.stack(
        [
            scene(concept.look, codes_by_name()[p.content], pictures.BACKGROUNDS[p.background], SIDE, 0.875, (0.5, 0.5))
            for p in prompts(concept)
        ]
    )
