"""What the captioner learns after captioning: to say a prompt again, longer. By the wordings of the bases' own captions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import FastVlmForConditionalGeneration, PreTrainedTokenizerFast

from finetuner.data.captioner import SUBJECT
from finetuner.data.upsampling import INSTRUCTION

from .. import captions, pictures
from ..composed.looks import FAMILIES, looks
from ..looks import LOOKS
from ..pictures import BACKGROUNDS, Concept
from .vocabulary import to_learn

# How people name what is to be drawn, and how the longer prompt begins then.
SUBJECTS = {
    "{name}": "an illustration of {a}",
    "{a}": "an illustration of {a}",
    "{name} icon": "an icon of {a}",
    "icon of {a}": "an icon of {a}",
    "an icon of {a}": "an icon of {a}",
    "{name} emoji": "an emoji of {a}",
    "an emoji of {a}": "an emoji of {a}",
    "a picture of {a}": "a picture of {a}",
    "a photo of {a}": "a photo of {a}",
    "a drawing of {a}": "a drawing of {a}",
    "an illustration of {a}": "an illustration of {a}",
    "flat {name}": "a flat illustration of {a}",
    "a flat {name}": "a flat illustration of {a}",
    "flat icon of {a}": "a flat icon of {a}",
    "a flat drawing of {a}": "a flat drawing of {a}",
}
PLAIN_SHARE = 0.6  # of the prompts: the first two wordings
PLACE_SHARE = 0.65  # of the prompts: with a background
STYLE_SHARES = (0.35, 0.4, 0.25)  # none, the trigger word's, a look's
SUBJECT_SHARE = 0.2  # of the prompts: about the trigger word's own concept
PLACES = (" on {a} background", " on {a} background", ", {name} background", " on {name}")
STYLES = (*captions.TRIGGERS, "{word} style, {caption}")
LOOK_STYLES = ("{caption}, {word} style", "{caption} in {word} style", "{caption}, {word}")
# Light, in klein-emoji's words, where no look is named. Words that it does not know shade its backgrounds: with "in the middle"
# it draws 73 % of the backgrounds that are asked for, with this all, and 97 % of the things. Last, since the end is what is cut
# where a text encoder reads no more.
ADDED = ", shadowed"
DULL = ("white", "black", "grey")


def a_look(rng: np.random.Generator) -> str:
    """The words of a look that one of the bases knows, by the draw."""
    if rng.random() < 0.3:
        return str(rng.choice(list(LOOKS)))
    if rng.random() < 0.1:
        return str(rng.choice([word for word in FAMILIES.values() if word]))
    return " ".join(rng.permutation(looks()[rng.integers(len(looks()))].words))


@dataclass(frozen=True)
class Rewritings:
    """Prompts, and what is to be made of them."""

    folder: Path
    concepts: list[Concept]

    def __call__(self, rng: np.random.Generator) -> tuple[str, str]:
        subject = rng.random() < SUBJECT_SHARE
        concept = self.concepts[rng.integers(len(self.concepts))]
        name = SUBJECT if subject else concept.name
        named = {"name": name, "a": captions.with_article(name)}
        wordings = list(SUBJECTS)
        wording = wordings[rng.integers(2)] if rng.random() < PLAIN_SHARE else wordings[rng.integers(2, len(wordings))]
        prompt, longer = wording.format(**named), SUBJECTS[wording].format(**named)
        behind = str(rng.choice(list(BACKGROUNDS)))
        if rng.random() < PLACE_SHARE:
            place = PLACES[rng.integers(len(PLACES))]
            prompt += place.format(name=behind, a=captions.with_article(behind))
        else:
            behind = "light blue" if subject else self.contrasts[concept.code]
        longer += f" on {captions.with_article(behind)} background"
        style = rng.choice(3, p=STYLE_SHARES)
        if style == 2:
            way, word = LOOK_STYLES[rng.integers(len(LOOK_STYLES))], a_look(rng)
            return way.format(caption=prompt, word=word), LOOK_STYLES[0].format(caption=longer, word=word)
        if style == 1 and not subject:
            way = STYLES[rng.integers(len(STYLES))]
            prompt, longer = (way.format(caption=text, word=SUBJECT) for text in (prompt, longer))
        return prompt, longer + ADDED

    @cached_property
    def contrasts(self) -> dict[str, str]:
        """By a thing's code, the colour that its drawing stands out from most: what a prompt that names none is given."""
        colours = {name: np.array(colour) for name, colour in BACKGROUNDS.items() if name not in DULL}
        found = {}
        for concept in self.concepts:
            pixels = np.asarray(pictures.drawing(self.folder, pictures.NOTO, concept.code), np.float32).reshape(-1, 4)
            mean = (pixels[:, :3] * pixels[:, 3:]).sum(0) / pixels[:, 3].sum()
            found[concept.code] = max(colours, key=lambda name, mean=mean: float(((colours[name] - mean) ** 2).sum()))
        return found


def encode(tokens: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Pairs -> the ids that are trained on."""
    asked = [tokens(f"<s>{INSTRUCTION}{prompt}\n").input_ids for prompt, _ in pairs]
    return to_learn(asked, [tokens(longer).input_ids for _, longer in pairs])


@torch.no_grad()
def evaluate(
    model: FastVlmForConditionalGeneration, tokens: PreTrainedTokenizerFast, rewritings: Rewritings, count: int = 300
) -> float:
    """The share of prompts that come out as they should, word for word."""
    right = 0
    for n in range(count):
        prompt, longer = rewritings(np.random.default_rng((41, n)))
        ids = tokens(f"<s>{INSTRUCTION}{prompt}\n", return_tensors="pt").input_ids
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False)
        said = tokens.decode(found[0, ids.shape[1] :], skip_special_tokens=True).strip()
        right += said == longer
    return right / count
