"""Inputs that the APIs document and `ImageRequest` may not have yet: passed on where it has them, else refused in words.

Of a value that changes nothing, nobody needs to be told: the documented default, or one that asks for less care than it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from finetuner.requests import ImageRequest
from fleet.apis.problems import refused

CHANGES_NOTHING: dict[str, Callable[[Any], bool]] = {
    "image_prompt": lambda value: value is None,
    "image_prompt_strength": lambda value: True,  # of an image prompt, which is refused by itself
    "prompt_upsampling": lambda value: not value,
    "raw": lambda value: not value,
    "safety_tolerance": lambda value: value >= 2,
}


def known_to_the_library(words: dict[str, Any], within: tuple[str, ...] = ()) -> dict[str, Any]:
    """``words`` without those that the library has no field for.

    Raises:
        Problem: one of them would have changed the picture.
    """
    known = {field.name for field in fields(ImageRequest)}
    for name, changes_nothing in CHANGES_NOTHING.items():
        if name in words and name not in known and not changes_nothing(words[name]):
            raise refused(name, f"{name}: this server cannot do that yet. Leave {name} out.", within)
    return {name: value for name, value in words.items() if name in known or name not in CHANGES_NOTHING}
