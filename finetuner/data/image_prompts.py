"""A request's image prompt: a file -> its bytes and its pixels, within the documented limits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from finetuner.data.images import SMALLER, ImageError, decode_image

# As Black Forest Labs' API takes pictures (docs.bfl.ai).
MOST_BYTES = 20 * 10**6
MOST_PIXELS = 20 * 10**6


@dataclass(frozen=True)
class ImageFile:
    """A picture that a request sent."""

    data: bytes

    @classmethod
    def read(cls, path: Path) -> ImageFile:
        """Read the file; decodes nothing.

        Raises:
            ValueError: it is larger than is taken.
        """
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(
                f"image_prompt: has {size / 10**6:.1f} MB, and at most {MOST_BYTES // 10**6} are taken: {SMALLER}."
            )
        return cls(path.read_bytes())

    @cached_property
    def sha256(self) -> str:
        """Of the bytes: tells one picture from another."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def image(self) -> Image.Image:
        """RGB, upright, scaled down to a megapixel: by the decoder that reads the training's archives.

        Raises:
            ValueError: it is no picture of a format read here, is damaged, or has more pixels than are taken.
        """
        try:
            return decode_image(self.data, MOST_PIXELS)
        except ImageError as error:
            raise ValueError(f"image_prompt: {error}.") from error
