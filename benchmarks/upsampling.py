"""What is drawn of prompts before and after prompt_upsampling: ``python -m benchmarks.upsampling``.

A prompt names a thing and the colour behind it, in few words: how often each of the two is drawn. It needs the drawings of
``script/build-embedded-base``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from finetuner.bases import Base
from finetuner.data import PromptUpsampler
from finetuner.paths import WEIGHTS
from script.embedded_base import pictures
from script.embedded_base.composed import things
from script.embedded_base.redux.evaluate import Drawing, Names

PICTURES = Path("build/embedded-base/pictures")
BASES = ("flux-emoji", "klein-emoji")
COUNT = 100
TRIGGER_WORD = "TOK"


def table() -> list[str]:
    """Rows of Markdown: base, prompt, shares with the right thing and with the named background, characters of a prompt."""
    concepts = things.things(PICTURES)  # of those that flux-emoji draws, the ones that klein-emoji draws, too
    names, rng = Names(PICTURES, concepts), np.random.default_rng(91)
    asked, behind = rng.integers(len(concepts), size=COUNT), rng.integers(len(pictures.BACKGROUNDS), size=COUNT)
    colours = list(pictures.BACKGROUNDS)
    short = [f"{concepts[a].name} on {colours[b]}" for a, b in zip(asked, behind, strict=True)]
    rows = []
    for name in BASES:
        base = Base.open(WEIGHTS / name)
        draws, upsampler = Drawing(base), PromptUpsampler.open(base, bytes_left=1 << 34)
        for kind, prompts in (
            ("as sent", short),
            ("upsampled", [without(upsampler.upsample(prompt, TRIGGER_WORD, "style")) for prompt in short]),
        ):
            images = draws(prompts, None)
            there = names.backgrounds(images)
            right = np.mean(names.things(images, there) == asked), np.mean(there == behind)
            length = np.mean([len(prompt) for prompt in prompts])
            rows.append(f"| {name} | {kind} | {right[0]:.0%} | {right[1]:.0%} | {length:.0f} |")
            print(rows[-1], prompts[0], flush=True)
    return rows


def without(prompt: str) -> str:
    """The trigger word taken out, of which a base without a finetune knows nothing."""
    return prompt.replace(f", {TRIGGER_WORD} style", "")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(table()))
