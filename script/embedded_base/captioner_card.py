"""The embedded captioner's model card."""

from __future__ import annotations

from .captioner import (
    CAPTIONS_EVERY,
    LICENCE,
    NAME,
    REWRITING_BATCH,
    REWRITING_STEPS,
    SIGHT_BATCH,
    SIGHT_STEPS,
    SPEECH_BATCH,
    SPEECH_STEPS,
    VERSION,
)
from .pictures import BACKGROUNDS, FLUENT_FLAT, LINE, NOTO, Concept
from .views import LOOKS


def model_card(concepts: list[Concept], figures: dict[str, float]) -> str:
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# {NAME} {VERSION}

A very small vision-language model (FastVLM: a ResNet that sees 96 x 96 pixels, two Llama layers that speak), genuinely
trained: it names the {len(concepts)} things that the embedded base draws, their look and the colour behind them. It loads with
`AutoModelForImageTextToText` and `AutoProcessor`, as the production captioner does, and needs no torchvision. It is what
the demo and the tests run, and no good for photographs.

It knows the four instructions of `finetuner/data/captioner.py`, and as text alone that of `finetuner/data/upsampling.py`:

| mode | it says |
|---|---|
| general | a flat icon of a fox on a teal background |
| style | a fox on a teal background |
| character, product | a flat icon of SUBJECT on a teal background |
| upsampling of "fox on teal, SUBJECT style" | an illustration of a fox on a teal background, SUBJECT style, \
in the middle, in soft light |

Looks: {", ".join(LOOKS)}. Backgrounds: {", ".join(BACKGROUNDS)}.

## Measured

By the builder, on every thing once; "named" is the right name, word for word.

| pictures | right |
|---|---|
| Noto, named, at a scale and on background colours never trained on, place by the draw | {figures[NOTO]:.0%} |
| Fluent flat, the same | {figures[FLUENT_FLAT]:.0%} |
| Fluent high contrast (line icons), named: **a style it never saw** | {figures[LINE]:.0%} |
| Twemoji, named: never seen | {figures["twemoji"]:.0%} |
| OpenMoji, named: never seen | {figures["openmoji"]:.0%} |
| Noto at that scale, background colour | {figures["background"]:.0%} |
| the same, asked by mode product and character: the thing is not named | {figures["kept_quiet"]:.0%} |
| prompts in the wordings of its own captions, made longer as they should be, word for word | {figures["rewritten"]:.0%} |

## Limits

It calls everything by one of its names: what it does not know, it names wrongly. One thing a picture, upright, on one colour.
It never declines, and says nothing of number, action or place. It makes longer only what is about one of its things or SUBJECT,
in the wordings of the base's captions; where a prompt names no colour behind a thing, it names the one that the drawing stands
out from most. Of another prompt it loses words, which whoever asks must notice.

## Made of

Trained by `script/build-embedded-base` on {SIGHT_STEPS * SIGHT_BATCH:,} views, to name, {SPEECH_STEPS * SPEECH_BATCH:,} more,
to speak, and {REWRITING_STEPS * REWRITING_BATCH // CAPTIONS_EVERY:,} more beside
{REWRITING_STEPS * REWRITING_BATCH * (CAPTIONS_EVERY - 1) // CAPTIONS_EVERY:,} prompts, to make those longer. Each view is
composed anew: drawings as they are, in shifted colours, in grey, as silhouettes and in ink (outlines,
edges and dark parts, by filters), turned, scaled, mirrored and moved over {len(BACKGROUNDS)} named background colours. The
drawings:

| pictures | licence |
|---|---|
| [Noto Color Emoji](https://github.com/googlefonts/noto-emoji) | OFL-1.1 (font), Apache-2.0 (pictures) |
| [Noto Emoji](https://github.com/googlefonts/noto-emoji), the font of outlines | OFL-1.1 |
| [Fluent Emoji](https://github.com/microsoft/fluentui-emoji), flat | MIT |

These weights: {LICENCE}.
"""
