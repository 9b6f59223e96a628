"""The embedded base's model card."""

from __future__ import annotations

from .captions import THING_WORDS
from .evaluate import LOOK_CAPTIONS, SHEET_COLUMNS, SHEET_ROWS
from .export import LICENCE, NAME
from .looks import LOOKS
from .pictures import BACKGROUNDS, Concept

NAMED_BY_A_PERSON = f"41 of {SHEET_ROWS * SHEET_COLUMNS}, of version 1.2"  # look again when the base is built anew


def model_card(concepts: list[Concept], figures: dict[str, float], version: str) -> str:
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# {NAME} {version}

A very small FLUX, genuinely trained: {len(concepts)} things, drawn as emoji, on named backgrounds. It has the classes and the
code path of FLUX.1-dev (`FluxPipeline`, guidance distilled), fits into git and makes an image in under a second on a laptop's
CPU. It is what the demo and the tests run, and no good for anything else.

![48 prompts, first try, one seed each](sheet.png)

## Prompts it knows

"a fox", "icon of a fox on a teal background", "a photo of a fox, pink background", "a fox, TOK style"; in a second, flat
look: "flat icon of a fox"; and redrawn: "a fox, black silhouette style". Areas of 64 x 64 and 96 x 96 pixels at aspect ratios
from 3:5 to 5:3.

Backgrounds: {", ".join(BACKGROUNDS)}.

Looks: {", ".join(LOOKS)}. They are procedural, of its own first family alone. Every look and {len(THING_WORDS)} of the things
also go by made-up words (`captions.py`). The silhouettes, inks and line drawings show, the finer looks hardly. Words that it
has not met, TOK among them, mean nothing to it until a fine-tune gives them a meaning.

Things: {", ".join(c.name for c in concepts)}.

## Measured

| what | figure |
|---|---|
| drawings of the sheet that one person named without the captions | {NAMED_BY_A_PERSON} |
| pictures closest to a training picture of the right name, of 200 captions | {figures["right_name"]:.0%} |
| pictures with the background that was named, of the same | {figures["right_background"]:.1%} |
| pictures closest to the look that was named, of {LOOK_CAPTIONS * len(LOOKS)} captions | {figures["right_look"]:.0%} |
| the same, the look going by a made-up word | {figures["right_look_by_word"]:.0%} |
| VAE on scenes of its own families, new backgrounds and places | {figures["codec_psnr_own"]:.1f} dB |
| VAE on families it never saw (Twemoji, OpenMoji) | {figures["codec_psnr_unseen"]:.1f} dB |

Closest: by squared distance of 16 x 16 pixel thumbnails and their differences, to every thing on that background at nine
placements. 20 steps, guidance 3.

## Limits

It has memorised its captions: it draws the things above and little else, one to a picture, in the middle. It knows no
scenes, no actions, no text, no photographs. Sides beyond 120 px repeat the picture.

## Made of

Transformer: 2 double and 4 single blocks, 192 wide. VAE: 4x downscale, 16 latent channels. CLIP and T5: 2 layers, 96 wide,
vocabularies of our own. Trained by `script/build-embedded-base` on {figures["pictures"]:,} scenes of:

| pictures | seen by | licence |
|---|---|---|
| [Noto Color Emoji](https://github.com/googlefonts/noto-emoji) | transformer, VAE | OFL-1.1 (font), Apache-2.0 (pictures) |
| [Fluent Emoji](https://github.com/microsoft/fluentui-emoji), flat | transformer, VAE | MIT |
| Fluent Emoji, high contrast | VAE | MIT |
| [Flat Color Icons](https://github.com/icons8/flat-color-icons) | VAE | MIT |
| names and tags: [emojibase](https://github.com/milesj/emojibase) | text encoders | MIT |

These weights: {LICENCE}.
"""
