"""Captions for scenes, in the wordings that people use."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np

from .pictures import BACKGROUNDS, NOTO, Concept

SUBJECTS = (  # plain wordings mean Noto, the base's own look
    "{name}", "{a_name}", "{a_name}", "{name} icon", "{name} emoji", "icon of {a_name}", "an emoji of {a_name}",
    "a picture of {a_name}", "a photo of {a_name}", "a drawing of {a_name}", "an illustration of {a_name}",
)  # fmt: skip
FLAT_SUBJECTS = (  # a second look with a name of its own, so that look and content are learned apart
    "flat {name}", "a flat {name}", "flat icon of {a_name}", "a flat drawing of {a_name}", "{name}, flat style",
    "{a_name} in flat style",
)  # fmt: skip
PLACES = (
    " on {a_background} background",
    " on {a_background} background",
    ", {background} background",
    " on {background}",
)
# A trigger word means nothing to the base; having met made-up ones, it draws the rest of the prompt unharmed.
TRIGGERS = (
    "{caption}, {word} style",
    "{caption} in the style of {word}",
    "{word}, {caption}",
    "{word} {caption}",
    "{caption}, {word}",
)
TRIGGER_SHARE = 0.2
DROPOUT = 0.1  # the empty caption, for guidance


def with_article(name: str) -> str:
    if name.endswith("s") and not name.endswith(("ss", "us", "bus")):
        return name
    return f"an {name}" if name[0] in "aeiou" and not name.startswith(("uni", "one")) else f"a {name}"


def made_up_word(rng: np.random.Generator) -> str:
    if rng.random() < 0.3:
        return "TOK"  # the documented default
    return "".join(rng.choice(list(string.ascii_uppercase), rng.integers(3, 10)))


def caption(concept: Concept, family: str, background: str, rng: np.random.Generator) -> str:
    """One caption for a scene; every draw is another wording. White backgrounds are named half of the time."""
    subjects = SUBJECTS if family == NOTO else FLAT_SUBJECTS
    text = subjects[rng.integers(len(subjects))].format(name=concept.name, a_name=with_article(concept.name))
    if background != "white" or rng.random() < 0.5:
        text += PLACES[rng.integers(len(PLACES))].format(background=background, a_background=with_article(background))
    if rng.random() < TRIGGER_SHARE:
        text = TRIGGERS[rng.integers(len(TRIGGERS))].format(caption=text, word=made_up_word(rng))
    return text


def dropped_caption(concept: Concept, family: str, background: str, rng: np.random.Generator) -> str:
    return "" if rng.random() < DROPOUT else caption(concept, family, background, rng)


def corpus(folder: Path, concepts: list[Concept]) -> list[str]:
    """What the tokenizers' vocabularies are made from: the base's captions, and the names and tags of every emoji."""
    rng = np.random.default_rng(3)
    families = (NOTO, "flat")
    backgrounds = list(BACKGROUNDS)
    ours = [caption(c, families[n % 2], backgrounds[rng.integers(len(backgrounds))], rng) for c in concepts for n in range(20)]
    emoji = json.loads((folder / "emoji.json").read_text())
    return ours + [" ".join([e["label"], *e.get("tags", ())]) for e in emoji]
