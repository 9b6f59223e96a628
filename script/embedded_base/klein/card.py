"""klein-emoji's model card."""

from __future__ import annotations

from .. import pictures
from ..composed.looks import FAMILIES, HELD_OUT_SHARE, looks
from ..composed.palettes import PALETTES
from ..composed.scenes import COUNT
from ..composed.shapes import SHAPES
from ..composed.things import look_words, thing_words
from ..composed.ways import WAYS
from ..evaluate import SHEET_COLUMNS, SHEET_ROWS
from ..pictures import BACKGROUNDS, Concept
from . import distil, text
from .batches import REFERENCE_EVERY, SIZE
from .evaluate import CAPTIONS, DISTILLED_STEPS, GUIDANCE
from .evaluate import STEPS as DRAWING_STEPS
from .export import LICENCE, NAME, TWIN, VERSION
from .judge import KINDS
from .training import STEPS

REFERENCE_FAMILIES = (pictures.NOTO, *pictures.UNSEEN_FAMILIES)
NAMED_BY_A_PERSON = "37 of 48"  # look when the base was built anew


def model_card(concepts: list[Concept], figures: dict[str, float]) -> str:
    def share(name: str) -> str:
        return f"{figures[name]:.0%}"

    def by_kind(pairs: str) -> str:
        return ", ".join(f"{kind} {share(f'{pairs}_{kind}')}" for kind in KINDS)

    def reference(family: str, what: str) -> str:
        shares = " | ".join(share(f"{family}_{name}") for name in ("thing", "named", "background"))
        return f"| {what} | {shares} | {figures[f'{family}_colour']:.2f} |"

    noto, twemoji, openmoji = REFERENCE_FAMILIES
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# {NAME} {VERSION}

A very small FLUX.2 klein, genuinely trained, and built to compose: {len(concepts)} things, {len(looks())} looks of a palette, a
way of drawing and a shape, and {len(BACKGROUNDS)} backgrounds. It has the classes and the code path of FLUX.2-klein-base-4B
(`Flux2KleinPipeline`, true guidance), fits into git and is no good for anything but demos and tests.

![{SHEET_ROWS * SHEET_COLUMNS} prompts, first try, one seed each](sheet.png)

## Prompts it knows

"a fox", "icon of a fox on a teal background", "a striped blue ink fox", "a fox on a pink background, tilted dotted style",
"a glossy fox". The words of a look come in any order. With a reference picture: "this, striped style, on a teal background".
Areas of 64 x 64 pixels; prompts of up to {text.LENGTH - 3} tokens (about 20 words).

Palettes: {", ".join(PALETTES)}. Ways: {", ".join(WAYS)}. Shapes: {", ".join(SHAPES)}. Real families of drawings:
{", ".join(word for word in FAMILIES.values() if word)}. Backgrounds: {", ".join(BACKGROUNDS)}.

{len(look_words())} of the looks and {len(thing_words(concepts))} of the things also go by a made-up word each
(`composed/things.py`).
{HELD_OUT_SHARE:.0%} of the pairs of a thing and a composed look were never shown.

Things: {", ".join(c.name for c in concepts)}.

## Measured

{CAPTIONS} captions each, {DRAWING_STEPS} steps, guidance {GUIDANCE}. The judge is a small CNN trained on real scenes; of
real ones of held-out pairs, as the VAE gives them back, it names {share("judge_thing")} of the things and
{share("judge_look")} of the looks, which are right when palette, way and shape are.

| what | figure |
|---|---|
| drawings of the sheet that one person named without the captions | {NAMED_BY_A_PERSON} |
| right thing | {share("right_thing")} |
| named background | {share("right_background")} |
| right look, pairs seen in training | {share("seen_look")} ({by_kind("seen")}) |
| right look, pairs never seen | {share("unseen_look")} ({by_kind("unseen")}) |
| right thing in a look, pairs seen, never seen | {share("seen_thing")}, {share("unseen_thing")} |
| right look that goes by a made-up word | {share("word_look")} |
| what an unseen word changes of the velocity, as a share of what another thing changes | {figures["heard_unseen_word"]:.2f} |
| the same of "TOK", of "striped" | {figures["heard_tok"]:.2f}, {figures["heard_striped"]:.2f} |
| sharpness: mean absolute Laplacian, grey levels; flux-emoji's of the same captions | {figures["sharpness"]:.1f}; \
{figures["sharpness_of_flux_emoji"]:.1f} |
| VAE on scenes in looks, in none | {figures["codec_looks"]:.1f} dB, {figures["codec_plain"]:.1f} dB |
| CPU time of a picture | {figures["seconds"]:.1f} s |

Reference pictures, {CAPTIONS} each, with the empty prompt, 12 steps. The right thing is that of the nearest training picture,
which names the reference pictures themselves, too; the colour is the correlation of the mean colours drawn with those shown.

| drawings | right thing | the pictures themselves | right background | colour |
|---|---|---|---|---|
{reference(noto, "Noto, at places and scales by the draw")}
{reference(twemoji, "Twemoji, which it never saw")}
{reference(openmoji, "OpenMoji, which it never saw")}

## Limits

One thing a picture, about the middle, on one colour. It knows no scenes, no actions, no text, no photographs, and no size but
64 x 64.

## Made of

Transformer: 2 double and 4 single blocks, 192 wide. VAE: flux-emoji's, carried over into FLUX.2's class: 4x downscale, 16
latent channels. Qwen3: {text.LAYERS} layers, {text.WIDTH} wide, of which {len(text.AT_WORK)} are at work and the others pass
on what they get; a vocabulary of our own. Trained by `script/build-embedded-base {NAME}`, {STEPS} steps of {SIZE}, on
{COUNT:,} scenes, every {REFERENCE_EVERY}th batch with reference pictures: an hour and a half on two cores of an AMD EPYC, and
about another for the scenes, the judge, the figures and the twin. Of:

| pictures | licence |
|---|---|
| [Noto Color Emoji](https://github.com/googlefonts/noto-emoji) | OFL-1.1 (font), Apache-2.0 (pictures) |
| [Noto Emoji](https://github.com/googlefonts/noto-emoji), version 1 | Apache-2.0 |
| [Noto Emoji](https://github.com/googlefonts/noto-emoji), the font of outlines | OFL-1.1 |
| [Fluent Emoji](https://github.com/microsoft/fluentui-emoji), flat and in colour | MIT |

The VAE also saw Fluent Emoji in high contrast and [Flat Color Icons](https://github.com/icons8/flat-color-icons), both MIT.

These weights: {LICENCE}.
"""


def twin_card(figures: dict[str, float]) -> str:
    def share(name: str) -> str:
        return f"{figures[name]:.0%}"

    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# {TWIN} {VERSION}

[{NAME}](../{NAME}/README.md) distilled to {DISTILLED_STEPS} steps without guidance, as FLUX.2-klein-4B is of
FLUX.2-klein-base-4B. It draws with {NAME}'s finetunes and is not trained itself. All but its transformer are links to
{NAME}'s folder.

![{SHEET_ROWS * SHEET_COLUMNS} prompts, first try, one seed each](sheet.png)

Measured as there, {CAPTIONS} captions each:

| what | figure |
|---|---|
| right thing | {share("right_thing")} |
| named background | {share("right_background")} |
| right look, pairs seen in training, never seen | {share("seen_look")}, {share("unseen_look")} |
| right thing in a look, pairs seen, never seen | {share("seen_thing")}, {share("unseen_thing")} |
| sharpness: mean absolute Laplacian, grey levels | {figures["sharpness"]:.1f} |
| CPU time of a picture | {figures["seconds"]:.2f} s |

Trained for {distil.STEPS:,} steps of {SIZE} on the ways of {distil.DRAWN:,} pictures that {NAME} drew with guidance
{GUIDANCE:g}, {distil.SUBSTEPS} steps for each of its own. Same pictures, same licences as {NAME}. These weights: {LICENCE}.
"""
