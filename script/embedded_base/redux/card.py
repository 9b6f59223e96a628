"""The embedded Redux's model card."""

from __future__ import annotations

from .. import pictures
from .evaluate import COUNT, STEPS
from .export import LICENCE, NAME, VERSION
from .training import BATCH, SIGHT_BATCH, SIGHT_STEPS, WIDTH
from .training import STEPS as REDUX_STEPS
from .views import SIDE


def model_card(figures: dict[str, float]) -> str:
    def row(family: str, what: str) -> str:
        shares = figures[f"{family}_thing"], figures[f"{family}_background"]
        return f"| {what} | {shares[0]:.0%} | {shares[1]:.0%} | {figures[f'{family}_colour']:.2f} |"

    twemoji, openmoji = pictures.UNSEEN_FAMILIES
    return f"""---
license: apache-2.0
library_name: diffusers
---
# {NAME} {VERSION}

What makes image prompts readable to flux-emoji, as FLUX.1-Redux does for FLUX.1-dev: SigLIP sees {SIDE} x {SIDE} pixels, and a
projection makes 36 tokens of T5's width of what it sees, which come behind the prompt's. It has the classes of FLUX.1-Redux
(`FluxPriorReduxPipeline`, `SiglipVisionModel`, `ReduxImageEncoder`), genuinely trained, and is no good for photographs.

## Measured

Of {COUNT} image prompts each, with the empty prompt, at strength 1, {STEPS} steps: the right thing is that of the nearest
training picture of flux-emoji; the colour is the correlation of the mean colours drawn with those shown.

| drawings | right thing | right background | colour |
|---|---|---|---|
{row(twemoji, "Twemoji, which neither it nor flux-emoji ever saw")}
{row(openmoji, "OpenMoji, the same")}
{row(pictures.NOTO, "Noto, at places, scales and turns by the draw")}

## Made of

SigLIP: 5 layers, {WIDTH} wide. First trained to name what it sees, on {SIGHT_STEPS * SIGHT_BATCH:,} views; then with the
projection, through flux-emoji, which stays as it is, on {REDUX_STEPS * BATCH:,} more, to do what the picture's
caption does, by `script/build-embedded-base {NAME}`. The drawings:

| pictures | licence |
|---|---|
| [Noto Color Emoji](https://github.com/googlefonts/noto-emoji) | OFL-1.1 (font), Apache-2.0 (pictures) |
| [Noto Emoji](https://github.com/googlefonts/noto-emoji), version 1 | Apache-2.0 |
| [Fluent Emoji](https://github.com/microsoft/fluentui-emoji), flat and in colour | MIT |

These weights: {LICENCE}.
"""
