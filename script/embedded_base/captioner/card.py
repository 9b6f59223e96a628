"""The embedded captioner's model card."""

from __future__ import annotations

from ..composed.palettes import PALETTES
from ..composed.shapes import SHAPES
from ..composed.ways import WAYS
from ..pictures import BACKGROUNDS, FLUENT_FLAT, LINE, NOTO, Concept
from .model import LICENCE, NAME, VERSION
from .training import (
    CAPTIONS_EVERY,
    REWRITING_BATCH,
    REWRITING_STEPS,
    SIGHT_BATCH,
    SIGHT_STEPS,
    SPEECH_BATCH,
    SPEECH_STEPS,
)
from .views import LOOKS, REDRAWN_SHARE


def model_card(concepts: list[Concept], figures: dict[str, float]) -> str:
    named, spoken, rewritten = SIGHT_STEPS * SIGHT_BATCH, SPEECH_STEPS * SPEECH_BATCH, REWRITING_STEPS * REWRITING_BATCH
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# {NAME} {VERSION}

A very small vision-language model (FastVLM of 4.6 million parameters: a ResNet that sees 96 x 96 pixels, two Llama layers that
speak), genuinely trained: it names the {len(concepts)} things that the embedded bases draw, their look and the colour behind
them. It loads with `AutoModelForImageTextToText` and `AutoProcessor`, as the production captioner does, and needs no
torchvision. It is what the demo and the tests run, and no good for photographs.

It knows the four instructions of `finetuner/data/captioner.py`, and as text alone that of `finetuner/data/upsampling.py`:

| mode | it says |
|---|---|
| general | a flat icon of a fox on a teal background; an icon of a fox on a teal background, blue ink striped style |
| style | a fox on a teal background |
| character, product | a flat icon of SUBJECT on a teal background |
| upsampling of "fox on teal, SUBJECT style" | an illustration of a fox on a teal background, SUBJECT style, shadowed |

Looks: {", ".join(LOOKS)}. Of an icon it also says the words of klein-emoji's looks: {", ".join((*PALETTES, *WAYS, *SHAPES))}.
Backgrounds: {", ".join(BACKGROUNDS)}.

## Measured

By the builder, on every thing once; "named" is the right name, word for word.

| pictures | right |
|---|---|
| Noto, named, at a scale and on background colours never trained on, place by the draw | {figures[NOTO]:.0%} |
| Fluent flat, the same | {figures[FLUENT_FLAT]:.0%} |
| Fluent high contrast (line icons), named: **a style it never saw** | {figures[LINE]:.0%} |
| Twemoji, named: never seen | {figures["twemoji"]:.0%} |
| OpenMoji, named: never seen | {figures["openmoji"]:.0%} |
| Noto in klein-emoji's looks, in pairs never seen: all words of the look | {figures["composed_look"]:.0%} |
| the same: the palette, the way, the shape, where there is one | {figures["composed_palette"]:.0%}, \
{figures["composed_way"]:.0%}, {figures["composed_shape"]:.0%} |
| the same: the thing | {figures["composed_thing"]:.0%} |
| Noto at that scale, background colour | {figures["background"]:.0%} |
| the same, asked by mode product and character: the thing is not named | {figures["kept_quiet"]:.0%} |
| prompts in the wordings of its own captions, made longer as they should be, word for word | {figures["rewritten"]:.0%} |

## Limits

It calls everything by one of its names: what it does not know, it names wrongly. One thing a picture, on one colour. Palettes
that lie near one another, such as blue ink and midnight, are taken for one another, and a shape is seldom seen. It never
declines, and says nothing of number, action or place. It makes longer only what is about one of its things or SUBJECT, in the
wordings of the bases' captions; where a prompt names no colour behind a thing, it names the one that the drawing stands out
from most. Of another prompt it loses words, which whoever asks must notice.

## Made of

Trained by `script/build-embedded-base emoji-captioner` on {named:,} views, to name, {spoken:,} more, to speak, and
{rewritten // CAPTIONS_EVERY:,} more beside {rewritten * (CAPTIONS_EVERY - 1) // CAPTIONS_EVERY:,} prompts, to make those
longer: forty minutes on a core of an AMD EPYC. Each view is composed anew: drawings as they are, in shifted colours, in grey,
as silhouettes and in ink (outlines, edges and dark parts, by filters), turned, scaled, mirrored and moved over
{len(BACKGROUNDS)} named background colours. {REDRAWN_SHARE:.0%} of the views show Noto's in klein-emoji's looks, or the last
two families. The drawings:

| pictures | licence |
|---|---|
| [Noto Color Emoji](https://github.com/googlefonts/noto-emoji) | OFL-1.1 (font), Apache-2.0 (pictures) |
| [Noto Emoji](https://github.com/googlefonts/noto-emoji), the font of outlines | OFL-1.1 |
| [Fluent Emoji](https://github.com/microsoft/fluentui-emoji), flat and in colour | MIT |
| [Noto Emoji](https://github.com/googlefonts/noto-emoji), version 1 | Apache-2.0 |

These weights: {LICENCE}.
"""
