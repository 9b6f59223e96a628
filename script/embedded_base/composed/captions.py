"""Captions of composed scenes: the thing, the words of its look in any order, and the background, in the wordings of people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..captions import with_article
from ..pictures import BACKGROUNDS, Concept
from .looks import FAMILIES, PLAIN, Look, looks
from .things import look_words, made_up_word, thing_words

DROPOUT = 0.1  # the empty caption, for guidance
COPY_SHARE = 0.3  # of the captions beside a reference picture: empty, which asks for the reference itself
THIS = "this"  # what a caption calls the thing that a reference picture shows

SUBJECTS = (
    "{a}", "{a}", "{a}", "{a}", "{name}", "icon of {a}", "{name} icon", "{name} emoji", "an emoji of {a}", "a picture of {a}",
    "a photo of {a}", "a drawing of {a}", "an illustration of {a}",
)  # fmt: skip
PLACES = (" on {a} background", " on {a} background", " on {a} background", ", {name} background", " on {name}")
STYLES = ("{caption}, {words} style", "{caption}, {words} style", "{caption} in {words} style", "{caption}, {words}")
LOOK_PLACES = (0.3, 0.3, 0.4)  # "a striped fox on teal", "a fox, striped style, on teal", "a fox on teal, striped style"
TRIGGERS = ("{caption}, {words} style", "{caption} in the style of {words}", "{words}, {caption}", "{caption}, {words}")


@dataclass(frozen=True)
class Facts:
    """What a scene shows."""

    thing: int
    family: int
    look: Look
    background: str
    word: str = ""  # a made-up word that is nobody's name, by which the background is shaded


class Captions:
    """Facts -> a caption; every draw is another wording."""

    def __init__(self, concepts: list[Concept]):
        self.names = [concept.name for concept in concepts]
        self.thing_words, self.look_words = thing_words(concepts), look_words()
        self.family_words = list(FAMILIES.values())

    def __call__(self, facts: Facts, rng: np.random.Generator) -> str:
        """Half of the things and looks that have a made-up word go by it. White is named half of the time."""
        return self._caption(facts, rng, self._thing(facts.thing, rng))

    def dropped(self, facts: Facts, rng: np.random.Generator) -> str:
        return "" if rng.random() < DROPOUT else self(facts, rng)

    def of_reference(self, facts: Facts, rng: np.random.Generator) -> str:
        """For a scene beside which a reference picture of its thing is shown: half of those that are not empty say "this"."""
        if rng.random() < COPY_SHARE:
            return ""
        return self._caption(facts, rng, THIS if rng.random() < 0.5 else self._thing(facts.thing, rng))

    def _thing(self, thing: int, rng: np.random.Generator) -> str:
        name = self.names[thing]
        return self.thing_words[name] if name in self.thing_words and rng.random() < 0.5 else name

    def _caption(self, facts: Facts, rng: np.random.Generator, name: str) -> str:
        look, place = self._look(facts, rng), self._place(facts.background, rng)
        where = rng.choice(3, p=LOOK_PLACES) if look else None
        if where == 0:
            name = f"{look} {name}"
        a = name if name.isupper() or name.endswith(THIS) else with_article(name)
        caption = str(rng.choice(SUBJECTS)).format(name=name, a=a)
        if where == 1:
            caption = str(rng.choice(STYLES)).format(caption=caption, words=look)
        caption += place
        if where == 2:
            caption = str(rng.choice(STYLES)).format(caption=caption, words=look)
        if facts.word:
            caption = str(rng.choice(TRIGGERS)).format(caption=caption, words=facts.word)
        return caption

    def _look(self, facts: Facts, rng: np.random.Generator) -> str:
        if facts.look == PLAIN:
            return self.family_words[facts.family] or ""
        if facts.look in self.look_words and rng.random() < 0.5:
            return self.look_words[facts.look]
        return " ".join(rng.permutation(facts.look.words))

    def _place(self, background: str, rng: np.random.Generator) -> str:
        if background == "white" and rng.random() < 0.5:
            return ""
        return str(rng.choice(PLACES)).format(name=background, a=with_article(background))


def corpus(concepts: list[Concept]) -> list[str]:
    """What the tokenizer's vocabulary is made from: every word that captions use."""
    rng, write, backgrounds = np.random.default_rng(3), Captions(concepts), list(BACKGROUNDS)
    facts = [
        Facts(
            thing,
            int(rng.integers(len(FAMILIES))),
            look,
            str(rng.choice(backgrounds)),
            made_up_word(rng) if thing % 7 == 0 else "",
        )
        for thing in range(len(concepts))
        for look in (PLAIN, *looks())
    ]
    return [write(each, rng) for each in facts]
