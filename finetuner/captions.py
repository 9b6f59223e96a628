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
    completed = []
    for example in examples:
        caption = with_trigger_word(example.caption or "", trigger_word, mode)
        log.info("Caption of %s: %s", example.name, caption)
        class_caption = without_trigger_word(caption, trigger_word, mode)
        completed.append(dataclasses.replace(example, caption=caption, class_caption=class_caption))
    return completed


def with_trigger_word(caption: str, trigger_word: str, mode: str) -> str:
    """The caption itself where it has the trigger word (as a word, in any letter case); else with it, in the place where
    people name a style, or a subject."""
    if names(caption, trigger_word):
        return caption
    if not caption:
        return trigger_word
    return f"{caption.rstrip(' .')}, {trigger_word} style" if mode == "style" else f"{trigger_word}, {caption}"


# What stands in for the trigger word where a caption is to mean anything but the concept.
CLASSES = {"character": "person", "product": "product", "style": "", "general": ""}


def without_trigger_word(caption: str, trigger_word: str, mode: str) -> str:
    """The caption with the concept's class in place of the trigger word, or with nothing there; empty if nothing is left."""
    article = r"(?:\b(?:an?|the)\s+)?" if mode in ("character", "product") else r"(?:\bin the style of\s+|\bin\s+)?"
    after = rf"(?:\s+{CLASSES[mode]}\b)?" if CLASSES[mode] else r"(?:\s+style\b)?"
    named = rf"{article}(?<!\w){re.escape(trigger_word)}(?!\w){after}"
    text = re.sub(named, f"a {CLASSES[mode]}" if CLASSES[mode] else "", caption, flags=re.IGNORECASE)
    text = re.sub(r"\s*,(?:\s*,)+", ",", re.sub(r"\s+", " ", text))
    return re.sub(r"\s+([,.])", r"\1", text).strip(" ,.")


def names(text: str, trigger_word: str) -> bool:
    """Whether the text has the trigger word, as a word, in any letter case."""
    return re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", text, re.IGNORECASE) is not None
