"""What people send -> examples with captions.

In: an archive of images and captions. Out: a list of `Example`, every image decoded and every caption complete. Files are told
by their bytes; whatever is wrong is said by file name before anything is trained. Begin with archive.py, then captions.py.
"""

from typing import TYPE_CHECKING

from finetuner.data.archive import CaptionedExample, Example, data_fingerprint, open_archive
from finetuner.data.captions import complete_captions, examples_to_caption, has_trigger_word, write_captions
from finetuner.data.image_prompts import ImageFile

if TYPE_CHECKING:
    from finetuner.data.captioner import Captioner, choose_captioner
    from finetuner.data.upsampling import PromptUpsampler

__all__ = [
    "CaptionedExample",
    "Captioner",
    "Example",
    "ImageFile",
    "PromptUpsampler",
    "choose_captioner",
    "complete_captions",
    "data_fingerprint",
    "examples_to_caption",
    "has_trigger_word",
    "open_archive",
    "write_captions",
]


def __getattr__(name: str) -> object:
    """The captioner is a model: only who asks for it, or for its language model, imports torch."""
    if name in ("Captioner", "choose_captioner"):
        from finetuner.data import captioner

        return getattr(captioner, name)
    if name == "PromptUpsampler":
        from finetuner.data import upsampling

        return upsampling.PromptUpsampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
