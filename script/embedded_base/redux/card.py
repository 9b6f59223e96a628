"""The embedded Redux's model card."""

from __future__ import annotations

from .. import pictures
from ..export import READING_VERSION
from . import reading
from .evaluate import COUNT, STEPS
from .export import LICENCE, NAME, VERSION
from .training import GRID, LAYERS, WIDTH
from .views import SIDE


def model_card(figures: dict[str, float]) -> str:
    def row(family: str, what: str) -> str:
        shares = " | ".join(f"{figures[f'{family}_{name}']:.0%}" for name in ("thing", "named", "background"))
        return f"| {what} | {shares} | {figures[f'{family}_colour']:.2f} |"

    twemoji, openmoji = pictures.UNSEEN_FAMILIES
    views = sum(stage.steps * stage.shown for stage in (reading.READING, reading.SETTLING))
    return f"""---
license: apache-2.0
library_name: diffusers
---
# {NAME} {VERSION}

What makes image prompts readable to flux-emoji, as FLUX.1-Redux does for FLUX.1-dev: SigLIP sees {SIDE} x {SIDE} pixels, and a
projection makes {GRID**2} tokens of T5's width of what it sees, which come behind the prompt's. It has the classes of
FLUX.1-Redux (`FluxPriorReduxPipeline`, `SiglipVisionModel`, `ReduxImageEncoder`), genuinely trained. What it shows is drawn in
its place, in its size and in its colours.

## Measured

Of {COUNT} image prompts each, with the empty prompt, at strength 1, {STEPS} steps: the right thing is that of the nearest
training picture of flux-emoji; the colour is the correlation of the mean colours drawn with those shown.

| drawings | right thing | the image prompts themselves | right background | colour |
|---|---|---|---|---|
{row(twemoji, "Twemoji, which neither it nor flux-emoji ever saw")}
{row(openmoji, "OpenMoji, the same")}
{row(pictures.NOTO, "Noto, at places, scales and turns by the draw")}

## Limits

FLUX.1-dev stayed as it was while FLUX.1-Redux was trained. flux-emoji could not: it takes what it draws from CLIP's vector,
which Redux leaves as the text has it, and with it frozen no training of Redux brought more along than the colours. So
flux-emoji {READING_VERSION} learned to read it, held to what it drew before of prompts alone. No good for photographs.

## Made of

SigLIP: {LAYERS} layers, {WIDTH} wide. Trained with the projection and flux-emoji's transformer on
{views:,} views, by `script/build-embedded-base {NAME}`. The drawings:

| pictures | licence |
|---|---|
| [Noto Color Emoji](https://github.com/googlefonts/noto-emoji) | OFL-1.1 (font), Apache-2.0 (pictures) |
| [Noto Emoji](https://github.com/googlefonts/noto-emoji), version 1 | Apache-2.0 |
| [Fluent Emoji](https://github.com/microsoft/fluentui-emoji), flat and in colour | MIT |

These weights: {LICENCE}.
"""
