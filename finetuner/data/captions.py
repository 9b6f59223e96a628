"""Every image gets a caption that carries the trigger word."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finetuner.data.archive import CaptionedExample, Example
from finetuner.requests import FinetuneRequest

if TYPE_CHECKING:  # a model's classes import torch, which reading an archive need not wait for
    from finetuner.bases import Base
    from finetuner.data.captioner import Captioner

log = logging.getLogger(__name__)

WRITTEN = "captions.json"
# A letter of a script that puts no spaces between words, or ties particles to them: Thai, Lao, Burmese, Khmer, Chinese,
# Japanese, Korean.
UNSPACED = (
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3031-\u3035\u303b\u3040-\u312f\u3131-\u318f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
# A name for the concept that no language has: models lose or mangle made-up trigger words, so a captioner is asked for this
# one, which is then replaced.
SUBJECT = "SUBJECT"
# What stands for the concept in a caption without the trigger word.
STAND_IN = {"character": "a character", "product": "an object"}
# What a captioner's text is left with where it had the trigger word a second time.
SECOND_MENTION = {"general": "the subject", "character": "the character", "product": "the object", "style": "the same"}
PLACEHOLDER = re.compile(r"\[(?:trigger|name)\]", re.IGNORECASE)  # where ai-toolkit's users leave room for the trigger word
# The words about a style's name: "in the style of TOK", ", TOK style", "in TOK style".
STYLE_BEFORE = re.compile(r"[,;]?\s*(\b(in|with)\s+((the|an?)\s+)?)?(\b(the\s+)?(style|look) of\s+(the\s+)?)?$", re.IGNORECASE)
STYLE_AFTER = re.compile(r"^[ -](style|look)d?\b", re.IGNORECASE)
SHOWN = 40  # characters of a caption that a warning shows before the cut


def examples_to_caption(examples: list[Example], captioning: str) -> list[Example]:
    """The examples that a captioner is to look at: of the images of one stem, which share one caption file, the first."""
    if captioning == "captioning-disabled":
        return []
    first: dict[str, Example] = {}
    for example in examples:
        if captioning == "captioning-enabled" or example.caption is None:
            first.setdefault(_key(example), example)
    return list(first.values())


def write_captions(captioner: Captioner, examples: list[Example], mode: str, job: Path) -> dict[str, str | None]:
    """Let the captioner caption the examples, by `_key`; None is a caption that failed.

    What it wrote is kept in the folder of the ``job``, and read from there when a killed job goes on: the captions are part
    of what its checkpoint was trained on.
    """
    saved = job / WRITTEN
    if not saved.exists():
        texts = captioner.caption([example.image for example in examples], mode)
        partial = saved.with_suffix(".partial")
        partial.write_text(json.dumps({_key(e): text for e, text in zip(examples, texts, strict=True)}))
        os.replace(partial, saved)
    return json.loads(saved.read_text())


def complete_captions(
    examples: list[Example], written: dict[str, str | None], request: FinetuneRequest, base: Base
) -> list[CaptionedExample]:
    """Give each example the caption it is trained on: the captioner's where there is one, else that of the archive.

    Args:
        written: what a captioner wrote, as `write_captions` returns it.
        base: what its text encoder does not read of a caption is cut off, with a warning.
    """
    trigger_word, mode = request.trigger_word, request.mode
    completed = []
    own = [example.caption or "" for example in examples if _key(example) not in written]
    if filled := sum(PLACEHOLDER.search(caption) is not None for caption in own):
        log.info("Captions in which [trigger] or [name] became %s: %d", trigger_word, filled)
    if replaced := [example.name for example in examples if example.caption and _key(example) in written]:
        log.warning(
            "captioning-enabled: the captions of the archive were replaced for %d images, the first %s. Send automatic to keep"
            " them",
            len(replaced),
            replaced[0],
        )
    for example in examples:
        caption = PLACEHOLDER.sub(lambda _: trigger_word, example.caption or "")
        if _key(example) in written:
            said = written[_key(example)]
            if said is None:
                log.warning(
                    "captioning: no usable caption of %s came out in two tries; it trains on the trigger word alone. A caption"
                    " of yours in %s would be better",
                    example.name,
                    example.caption_name,
                )
            caption = place_trigger_word(said or "", trigger_word, mode)
        kept = cut_to_length(caption, trigger_word, mode, base.characters_read)
        if kept != with_trigger_word(caption, trigger_word, mode):
            log.warning(
                "input_images: the text encoder reads %d tokens of a caption. That of %s is cut after: …%s",
                base.max_sequence_length,
                example.name,
                kept[-SHOWN:],
            )
        plain = without_trigger_word(kept, trigger_word, mode)
        completed.append(CaptionedExample(example.name, example.image, kept, example.shares_stem, plain))
        log.info("Caption of %s: %s", example.name, kept)
    return completed


def place_trigger_word(text: str, trigger_word: str, mode: str) -> str:
    """A captioner's text with the trigger word where it speaks of the concept, and at most once."""
    if mode in ("character", "product"):
        text = re.sub(rf"\b((the|an?) )?{SUBJECT}\b", lambda _: trigger_word, text, flags=re.IGNORECASE)
    text = re.sub(r"^(A|An|The) ", lambda article: article[0].lower(), text)  # it may not stay at the beginning
    found = list(mentions(text, trigger_word))
    for mention in reversed(found[1:]):
        text = text[: mention.start()] + SECOND_MENTION[mode] + text[mention.end() :]
    return text


def cut_to_length(caption: str, trigger_word: str, mode: str, characters_read: Callable[[str], int]) -> str:
    """The caption with the trigger word, shortened by words from its end until the text encoder reads all of it."""
    text = with_trigger_word(caption, trigger_word, mode)
    while caption and (excess := len(text) - characters_read(text)):
        caption = caption[:-excess]
        caption = (caption.rpartition(" ")[0] or caption).rstrip(" ,;:")  # not every script has spaces
        text = with_trigger_word(caption, trigger_word, mode)
    return text


def with_trigger_word(caption: str, trigger_word: str, mode: str) -> str:
    """The caption itself where it has the trigger word (as a word, in any letter case); else with it, in the place where
    people name a style, or a subject."""
    if has_trigger_word(caption, trigger_word):
        return caption
    if not caption:
        return trigger_word
    return f"{caption.rstrip(' .')}, {trigger_word} style" if mode == "style" else f"{trigger_word}, {caption}"


def has_trigger_word(text: str, trigger_word: str) -> bool:
    """Whether the text has the trigger word, as a word, in any letter case."""
    return next(mentions(text, trigger_word), None) is not None


def without_trigger_word(caption: str, trigger_word: str, mode: str) -> str:
    """What a prompt for the same picture would say that knows nothing of the concept: a style is not mentioned, a character or
    a product is one of its kind. In mode general the trigger word stays: what it stands for, only the caption knows."""
    if mode == "general":
        return caption
    for mention in reversed(list(mentions(caption, trigger_word))):
        before, after = caption[: mention.start()], caption[mention.end() :]
        if mode == "style":
            before, after = re.sub(STYLE_BEFORE, "", before), re.sub(STYLE_AFTER, "", after)
        else:
            before = re.sub(r"\b(the|an?) $", "", before, flags=re.IGNORECASE)
        caption = before + STAND_IN.get(mode, "") + after
    return re.sub(r"\s+", " ", caption).strip(" ,;")


def mentions(text: str, trigger_word: str) -> Iterator[re.Match[str]]:
    """Matches that are no part of a longer word, as far as the script has spaces that would show it."""
    before = "" if re.match(UNSPACED, trigger_word) else rf"(?<!(?!{UNSPACED})\w)"
    after = "" if re.match(UNSPACED, trigger_word[-1]) else rf"(?!(?!{UNSPACED})\w)"
    return re.finditer(before + re.escape(trigger_word) + after, text, re.IGNORECASE)


def _key(example: Example) -> str:
    """The same for images of one stem."""
    return example.caption_name.casefold()
