"""Pictures of composed scenes, with what they show: half in a look, half as one of the real families has them."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import pictures
from ..pictures import BACKGROUNDS, Concept
from .captions import Facts
from .looks import FAMILIES, PLAIN, Look, held_out_pairs, looks, redraw
from .shades import Colour, shaded
from .things import made_up_word

SIDE = 64  # pixels
COUNT = 30_000
LOOK_SHARE = 0.5
SINGLE_SHARE = 0.35  # of the scenes in a look: a palette, a way or a shape alone, from which its word is learned
FAMILY_SHARES = (0.5, 0.125, 0.125, 0.125, 0.125)  # of the scenes in none
WORD_SHARE = 0.15  # of the scenes: their captions have a word that is nobody's name, which shades the background
WHITE_SHARE = 0.25  # of the scenes in no look: white is what prompts without a background mean
SCALES = (0.78, 0.95)  # of the longer side
PLACES = (0.3, 0.7)  # of the free room: a thing stands about the middle
CONTRAST = 60  # grey levels: a drawing whose colours are nearer to the background than this cannot be seen on it
CHUNK = 500


@dataclass(frozen=True)
class Scenes:
    """int16 [N] each, ``look`` an index into (PLAIN, *looks()); ``word`` is mostly empty; ``pixels`` uint8 [N, 64, 64, 3]."""

    thing: np.ndarray
    family: np.ndarray
    look: np.ndarray
    background: np.ndarray
    word: np.ndarray
    pixels: np.ndarray

    def facts(self, n: int) -> Facts:
        look, background = all_looks()[self.look[n]], list(BACKGROUNDS)[self.background[n]]
        return Facts(int(self.thing[n]), int(self.family[n]), look, background, str(self.word[n]))


def all_looks() -> tuple[Look, ...]:
    return (PLAIN, *looks())


def draw(folder: Path, concept: Concept, family: str, look: Look, background: Colour, rng: np.random.Generator) -> np.ndarray:
    """One scene, uint8 [64, 64, 3]."""
    drawn = redraw(pictures.drawing(folder, family, concept.code), look)
    return pictures.compose(drawn, background, (SIDE, SIDE), rng.uniform(*SCALES), tuple(rng.uniform(*PLACES, 2)))


def stands_out(scene: np.ndarray, background: Colour) -> bool:
    """Whether a drawing can be seen: the upper quartile of its pixels' distance from the background."""
    distance = np.abs(scene.astype(np.int16) - background).max(2)
    drawn = distance[distance > 12]
    return len(drawn) > 0.04 * distance.size and np.quantile(drawn, 0.75) > CONTRAST


def chosen_rows(concepts: list[Concept], have: np.ndarray) -> np.ndarray:
    """(thing, family, look) of every scene, int16 [COUNT, 3]: the same every time, held-out pairs left out.

    Args:
        have: bool [things, families], whether the family has a drawing of the thing.
    """
    rng = np.random.default_rng(44)
    held_out = held_out_pairs(len(concepts))
    single = np.array([len(look.words) == 1 for look in looks()])
    rows = []
    while len(rows) < COUNT:
        thing = int(rng.integers(len(concepts)))
        if rng.random() < LOOK_SHARE:
            look = int(rng.choice(np.flatnonzero(single == (rng.random() < SINGLE_SHARE))))
            if not held_out[thing, look]:
                rows.append((thing, 0, look + 1))
        else:
            family = int(rng.choice(len(FAMILIES), p=FAMILY_SHARES))
            if have[thing, family]:
                rows.append((thing, family, 0))
    return np.array(rows, np.int16)


def render(folder: Path, concepts: list[Concept], cache: Path) -> Scenes:
    """Draw all, or load those that were drawn before."""
    if not cache.exists():
        families = [set(pictures.family_codes(folder, family)) for family in FAMILIES]
        have = np.array([[concept.code in codes for codes in families] for concept in concepts])
        rows = chosen_rows(concepts, have)
        parts = [(folder, concepts, rows[start : start + CHUNK], start) for start in range(0, len(rows), CHUNK)]
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            drawn = pool.starmap(_render_part, parts)
        backgrounds, words, pixels = (np.concatenate(part) for part in zip(*drawn, strict=True))
        facts = {"thing": rows[:, 0], "family": rows[:, 1], "look": rows[:, 2], "background": backgrounds, "word": words}
        np.savez(cache, **facts, pixels=pixels)
    with np.load(cache) as saved:
        return Scenes(**{name: saved[name] for name in saved.files})


def _render_part(folder: Path, concepts: list[Concept], rows: np.ndarray, start: int) -> tuple[np.ndarray, ...]:
    """The backgrounds, words and pictures of some rows."""
    rng = np.random.default_rng((45, start))
    names, families = list(BACKGROUNDS), list(FAMILIES)
    backgrounds, words, scenes = [], [], []
    for thing, family, look in rows:
        word = made_up_word(rng) if rng.random() < WORD_SHARE else ""
        for _ in range(6):  # then as it is: blurred white on white stays rare
            white = look == 0 and rng.random() < WHITE_SHARE
            background = 0 if white else int(rng.integers(len(names)))
            colour = BACKGROUNDS[names[background]]
            if word:
                colour = shaded(colour, word)
            scene = draw(folder, concepts[thing], families[family], all_looks()[look], colour, rng)
            if stands_out(scene, colour):
                break
        backgrounds.append(background)
        words.append(word)
        scenes.append(scene)
    return np.array(backgrounds, np.int16), np.array(words, "U8"), np.stack(scenes)
