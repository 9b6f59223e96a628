"""One base in memory, any finetune at any strength.

In: a pipeline, a finetune of the store, a request. Out: latents and pictures, and an image file. A `Slot` is made once in the
base's transformer; finetunes are copied in and out of it, never merged. Begin with slot.py.
"""

from finetuner.serving.caches import FinetuneCache, ImagePromptCache, PromptCache, ServedFinetune
from finetuner.serving.compiling import compile_blocks
from finetuner.serving.image_file import write_image
from finetuner.serving.plan import bytes_left, choose_placement
from finetuner.serving.raw import raw_look, require_raw
from finetuner.serving.safety import FlaggedError, load_safety_checker
from finetuner.serving.sampling import (
    decode_latents,
    native_size,
    sample_latents,
    sampling_and_output_size,
    steps_and_guidance,
)
from finetuner.serving.settings import adapter_cache_bytes, compile_wanted, safety_wanted
from finetuner.serving.slot import PackedAdapter, Slot

__all__ = [
    "FinetuneCache",
    "FlaggedError",
    "ImagePromptCache",
    "PackedAdapter",
    "PromptCache",
    "ServedFinetune",
    "Slot",
    "adapter_cache_bytes",
    "bytes_left",
    "choose_placement",
    "compile_blocks",
    "compile_wanted",
    "decode_latents",
    "load_safety_checker",
    "native_size",
    "raw_look",
    "require_raw",
    "safety_wanted",
    "sample_latents",
    "sampling_and_output_size",
    "steps_and_guidance",
    "write_image",
]
