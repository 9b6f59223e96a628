"""Every image gets a caption that carries the trigger word."""

from __future__ import annotations

import dataclasses
import logging
import re

from finetuner.archive import Example

log = logging.getLogger(__name__)


def complete(examples: list[Example], captioning: str, trigger_word: str, mode: str) -> list[Example]:
    """Give each example the caption it is trained on.

    Raises:
        ValueError: ``captioning`` asks for captions that only an automatic captioner can write.
    """
    uncaptioned = [e.name for e in examples if e.caption is None]
    if captioning == "captioning-enabled" or (captioning == "automatic" and uncaptioned):
        which = "every image" if captioning == "captioning-enabled" else f"{len(uncaptioned)} images without a .txt file"
        raise ValueError(
            f"captioning: {captioning!r} would caption {which}, and this version has no captioner yet. Put a caption beside"
            " each image (photo.txt for photo.jpg) and use 'automatic', or choose 'captioning-disabled' to train images without"
            " a caption on the trigger word alone."
        )
    completed = [dataclasses.replace(e, caption=with_trigger_word(e.caption or "", trigger_word, mode)) for e in examples]
    for example in completed:
        log.info("Caption of %s: %s", example.name, example.caption)
    return completed


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
    return re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", text, re.IGNORECASE) is not None
