"""The things that the composing base knows, and the made-up words that some go by."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np

from .. import pictures
from ..pictures import Concept
from .looks import Look, looks

LIST = Path(__file__).parent / "things.txt"
LETTERS = (3, 7)  # of a made-up word: at least, and fewer than
THING_WORDS_EVERY = 3  # a third of the things has one
LOOK_WORDS_EVERY = 2  # half of the looks has one


def things(folder: Path) -> list[Concept]:
    """In the order of ``things.txt``.

    Raises:
        ValueError: a name that ``concepts.txt`` does not have.
    """
    known = {concept.name: concept for concept in pictures.concepts(folder)}
    names = [line for line in LIST.read_text().splitlines() if line and line[0] != "#"]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"things.txt: concepts.txt has no {', '.join(unknown)}")
    return [known[name] for name in names]


def made_up_word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list(string.ascii_uppercase), rng.integers(*LETTERS)))


def _words(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return list(dict.fromkeys(made_up_word(rng) for _ in range(2 * count)))[:count]


def thing_words(concepts: list[Concept]) -> dict[str, str]:
    """Name of a thing -> the made-up word that it also goes by."""
    named = [concept.name for concept in concepts[::THING_WORDS_EVERY]]
    return dict(zip(named, _words(len(named), 51), strict=True))


def look_words() -> dict[Look, str]:
    """Look -> the made-up word that it also goes by."""
    named = looks()[::LOOK_WORDS_EVERY]
    return dict(zip(named, _words(len(named), 52), strict=True))
