"""Every image gets a caption that carries the trigger word."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from finetuner.archive import Example
from finetuner.base import Base
from finetuner.captioner import SUBJECT, Captioner
from finetuner.recipe import FinetuneRequest

log = logging.getLogger(__name__)

WRITTEN = "captions.json"
# What a captioner's text is left with where it had the trigger word a second time.
SECOND_MENTION = {"general": "the subject", "character": "the character", "product": "the object", "style": "the same"}
SHOWN = 40  # characters of a caption that a warning shows before the cut


def wanted(examples: list[Example], captioning: str) -> list[Example]:
    """The examples that a captioner is to look at: of the images of one stem, which share one caption file, the first."""
    if captioning == "captioning-disabled":
        return []
    first: dict[str, Example] = {}
    for example in examples:
        if captioning == "captioning-enabled" or example.caption is None:
            first.setdefault(_key(example), example)
    return list(first.values())


def write(captioner: Captioner, examples: list[Example], mode: str, job: Path) -> dict[str, str | None]:
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


def complete(examples: list[Example], written: dict[str, str | None], request: FinetuneRequest, base: Base) -> list[Example]:
    """Give each example the caption it is trained on: the captioner's where there is one, else that of the archive.

    Args:
        written: what a captioner wrote, as `write` returns it.
        base: what its text encoder does not read of a caption is cut off, with a warning.
    """
    trigger_word, mode = request.trigger_word, request.mode
    tokenizer, max_tokens = base.load_tokenizer(), base.max_sequence_length
    completed = []
    for example in examples:
        caption = example.caption or ""
        if _key(example) in written:
            caption = written[_key(example)]
            if caption is None:
                log.warning(
                    "captioning: no usable caption of %s came out in two tries; it trains on the trigger word alone. A caption"
                    " of yours in %s would be better",
                    example.name,
                    example.caption_name,
                )
            caption = place_trigger_word(caption or "", trigger_word, mode)
        kept = cut(caption, trigger_word, mode, tokenizer, max_tokens)
        if kept != with_trigger_word(caption, trigger_word, mode):
            log.warning(
                "input_images: the text encoder reads %d tokens of a caption. That of %s is cut after: …%s",
                max_tokens,
                example.name,
                kept[-SHOWN:],
            )
        completed.append(replace(example, caption=kept))
        log.info("Caption of %s: %s", example.name, kept)
    return completed


def place_trigger_word(text: str, trigger_word: str, mode: str) -> str:
    """A captioner's text with the trigger word where it speaks of the concept, and at most once."""
    if mode in ("character", "product"):
        text = re.sub(rf"\b((the|an?) )?{SUBJECT}\b", lambda _: trigger_word, text, flags=re.IGNORECASE)
    text = re.sub(r"^(A|An|The) ", lambda article: article[0].lower(), text)  # it may not stay at the beginning
    mentions = list(_mentions(text, trigger_word))
    for mention in reversed(mentions[1:]):
        text = text[: mention.start()] + SECOND_MENTION[mode] + text[mention.end() :]
    return text


def cut(caption: str, trigger_word: str, mode: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> str:
    """The caption with the trigger word, shortened by words from its end until the text encoder reads all of it."""
    text = with_trigger_word(caption, trigger_word, mode)
    while caption and (excess := len(text) - _read(text, tokenizer, max_tokens)):
        caption = caption[:-excess]
        caption = (caption.rpartition(" ")[0] or caption).rstrip(" ,;:")  # not every script has spaces
        text = with_trigger_word(caption, trigger_word, mode)
    return text


def _read(text: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> int:
    """How many characters of the text fit into so many tokens."""
    ends = [end for _, end in tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]]
    return len(text) if len(ends) <= max_tokens else max(ends[: max_tokens - 1])  # the last token is the end's own


def with_trigger_word(caption: str, trigger_word: str, mode: str) -> str:
    """The caption itself where it has the trigger word (as a word, in any letter case); else with it, in the place where
    people name a style, or a subject."""
    if names(caption, trigger_word):
        return caption
    if not caption:
        return trigger_word
    return f"{caption.rstrip(' .')}, {trigger_word} style" if mode == "style" else f"{trigger_word}, {caption}"


def names(text: str, trigger_word: str) -> bool:
    """Whether the text has the trigger word, as a word, in any letter case."""
    return next(_mentions(text, trigger_word), None) is not None


def _mentions(text: str, trigger_word: str):
    return re.finditer(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", text, re.IGNORECASE)


def _key(example: Example) -> str:
    """The same for images of one stem."""
    return example.caption_name.casefold()
