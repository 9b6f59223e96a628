"""Captions for scenes, in the wordings that people use."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np

from .looks import LOOKS
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
# A made-up word that it was not taught means nothing to the base; having met some, it draws the rest of the prompt unharmed.
TRIGGERS = (
    "{caption}, {word} style",
    "{caption} in the style of {word}",
    "{word}, {caption}",
    "{word} {caption}",
    "{caption}, {word}",
)
TRIGGER_SHARE = 0.2
LOOK_WORDINGS = (
    "{caption}, {word} style",
    "{caption} in {word} style",
    "{a_word} picture of {caption}",
    "{a_word} icon of {caption}",
)
# Things that also go by a made-up name.
NAMED_THINGS = (
    "robot", "dog", "cat", "lion", "horse", "panda", "penguin", "duck", "owl", "frog", "turtle", "snail", "bee", "rose",
    "mushroom", "pizza", "hamburger", "teapot", "house", "castle", "car", "bicycle", "rocket", "umbrella", "snowman",
    "soccer ball", "teddy bear", "handbag", "running shoe", "top hat", "bell", "guitar", "camera", "key", "shield", "chair",
)  # fmt: skip
DROPOUT = 0.1  # the empty caption, for guidance


def with_article(name: str) -> str:
    if name.isupper():
        return name  # made-up words go without
    if name.endswith("s") and not name.endswith(("ss", "us", "bus")):
        return name
    return f"an {name}" if name[0] in "aeiou" and not name.startswith(("uni", "one")) else f"a {name}"


def made_up_word(rng: np.random.Generator) -> str:
    if rng.random() < 0.3:
        return "TOK"  # the documented default
    return "".join(rng.choice(list(string.ascii_uppercase), rng.integers(3, 10)))


def _words(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    words = [made_up_word(rng) for _ in range(2 * count)]
    return [word for word in dict.fromkeys(words) if word != "TOK"][:count]


LOOK_WORDS_EACH = 5
LOOK_WORDS = {
    look: _words(LOOK_WORDS_EACH * len(LOOKS), 21)[n * LOOK_WORDS_EACH : (n + 1) * LOOK_WORDS_EACH]
    for n, look in enumerate(LOOKS)
}
THING_WORDS = dict(zip(NAMED_THINGS, _words(len(NAMED_THINGS), 22), strict=True))


def caption(concept: Concept, family: str, background: str, rng: np.random.Generator) -> str:
    """One caption for a scene; every draw is another wording. White backgrounds are named half of the time."""
    subjects = SUBJECTS if family == NOTO else FLAT_SUBJECTS
    text = subjects[rng.integers(len(subjects))].format(name=concept.name, a_name=with_article(concept.name))
    if background != "white" or rng.random() < 0.5:
        text += PLACES[rng.integers(len(PLACES))].format(background=background, a_background=with_article(background))
    if rng.random() < TRIGGER_SHARE:
        text = TRIGGERS[rng.integers(len(TRIGGERS))].format(caption=text, word=made_up_word(rng))
    return text


def dropped_caption(concept: Concept, family: str, background: str, rng: np.random.Generator, look: None) -> str:
    return "" if rng.random() < DROPOUT else caption(concept, family, background, rng)


def taught_caption(concept: Concept, family: str, background: str, rng: np.random.Generator, look: str | None) -> str:
    """As `caption`, with the look named, by its name or by one of its made-up words; a thing with a made-up name goes by it
    half of the time. The base so reads made-up words, and can be taught what another one stands for."""
    if concept.name in THING_WORDS and rng.random() < 0.5:
        concept = Concept(THING_WORDS[concept.name], concept.code)
    if look is None:
        return caption(concept, family, background, rng)
    if rng.random() < 0.5:
        wordings, word = LOOK_WORDINGS, look
    else:
        wordings, word = TRIGGERS, rng.choice(LOOK_WORDS[look])
    name = concept.name if concept.name.isupper() or rng.random() < 0.2 else with_article(concept.name)
    if rng.random() < 0.8:
        name += PLACES[rng.integers(len(PLACES))].format(background=background, a_background=with_article(background))
    return wordings[rng.integers(len(wordings))].format(caption=name, word=word, a_word=with_article(word))


def dropped_taught_caption(concept: Concept, family: str, background: str, rng: np.random.Generator, look: str | None) -> str:
    return "" if rng.random() < DROPOUT else taught_caption(concept, family, background, rng, look)


def corpus(folder: Path, concepts: list[Concept]) -> list[str]:
    """What the tokenizers' vocabularies are made from: the base's captions, and the names and tags of every emoji."""
    rng = np.random.default_rng(3)
    families = (NOTO, "flat")
    backgrounds = list(BACKGROUNDS)
    ours = [caption(c, families[n % 2], backgrounds[rng.integers(len(backgrounds))], rng) for c in concepts for n in range(20)]
    emoji = json.loads((folder / "emoji.json").read_text())
    return ours + [" ".join([e["label"], *e.get("tags", ())]) for e in emoji]
