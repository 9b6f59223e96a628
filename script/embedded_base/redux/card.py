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
        shares = " | ".join(f"{figures[f'{family}_{name}']:.0%}" for name in ("thing", "named", "background"))
        return f"| {what} | {shares} | {figures[f'{family}_colour']:.2f} |"

    twemoji, openmoji = pictures.UNSEEN_FAMILIES
    return f"""---
license: apache-2.0
library_name: diffusers
---
# {NAME} {VERSION}

What makes image prompts readable to flux-emoji, as FLUX.1-Redux does for FLUX.1-dev: SigLIP sees {SIDE} x {SIDE} pixels, and a
projection makes 36 tokens of T5's width of what it sees, which come behind the prompt's. It has the classes of FLUX.1-Redux
(`FluxPriorReduxPipeline`, `SiglipVisionModel`, `ReduxImageEncoder`), genuinely trained. It brings a picture's colours and
background along, and not the thing: see below.

## Measured

Of {COUNT} image prompts each, with the empty prompt, at strength 1, {STEPS} steps: the right thing is that of the nearest
training picture of flux-emoji; the colour is the correlation of the mean colours drawn with those shown.

| drawings | right thing | the image prompts themselves | right background | colour |
|---|---|---|---|---|
{row(twemoji, "Twemoji, which neither it nor flux-emoji ever saw")}
{row(openmoji, "OpenMoji, the same")}
{row(pictures.NOTO, "Noto, at places, scales and turns by the draw")}

## Limits

flux-emoji reads from CLIP's vector what to draw: of 60 prompts whose tokens alone were T5's it drew none right. FLUX.1-Redux
adds tokens to T5's and leaves that vector as the text has it, and so does this one: no training of it makes flux-emoji draw
another thing. klein-emoji, which reads pictures by itself, does. No good for photographs.

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
