"""A prompt, a finetune and a strength -> one image file."""

from __future__ import annotations

import json
import logging
import random
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from diffusers import FluxPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from finetuner import adapter, captions
from finetuner.base import Base, choose_base
from finetuner.encode import Size, encode_texts
from finetuner.recipe import RANKS
from finetuner.sampling import ASPECT_RATIOS, native_size, sample
from finetuner.store import Finetune, Store, open_store

log = logging.getLogger(__name__)

CUSTOM = "custom"
CUSTOM_MULTIPLE = 32  # documented: width and height are rounded to it
EXIF_USER_COMMENT = 0x9286
EXIF_IFD = 0x8769


@dataclass(frozen=True)
class ImageRequest:
    """The documented prediction inputs. Bounds are the server's schema's; what it cannot express is checked here.

    Raises:
        ValueError: the prompt is empty, or the size is not said; the sentence names the field and the remedy.
    """

    prompt: str
    finetune_id: str
    finetune_strength: float = 1.0
    aspect_ratio: str = "1:1"
    width: int | None = None
    height: int | None = None
    steps: int = 40
    guidance: float = 3.0
    seed: int | None = None
    output_format: str = "jpg"

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("prompt: is empty. Say what to draw, with the finetune's trigger word.")
        sized = self.width is not None and self.height is not None
        if self.aspect_ratio == CUSTOM and not sized:
            raise ValueError("width, height: aspect_ratio 'custom' needs both. Send both, or choose another aspect_ratio.")
        if self.aspect_ratio not in (CUSTOM, *ASPECT_RATIOS):
            raise ValueError(f"aspect_ratio: {self.aspect_ratio!r} is not one of {', '.join([*ASPECT_RATIOS, CUSTOM])}.")
        if self.aspect_ratio != CUSTOM and (self.width or self.height):
            log.warning("width and height count with aspect_ratio 'custom' only; this image is %s", self.aspect_ratio)


class Generator:
    """The base in memory with one slot for an adapter: finetunes are swapped in it, strength is a scale on it."""

    def __init__(self, base: Base, store: Store):
        self.base = base
        self.store = store
        self.pipeline: FluxPipeline = base.load_pipeline()
        self.slot = adapter.Slot(self.pipeline.transformer, rank=max(RANKS))
        self.loaded: Finetune | None = None  # the one in the slot

    @classmethod
    def open(cls) -> Generator:
        return cls(choose_base(), open_store())

    def generate(self, request: ImageRequest) -> Path:
        """Make the image and write it to a new temporary file, which is the caller's to delete.

        Raises:
            ValueError: the finetune does not exist, is damaged, or was made for another base.
        """
        finetune = self._put_in_slot(request.finetune_id)
        if not captions.names(request.prompt, finetune.trigger_word):
            log.warning("The prompt lacks the trigger word %r, so the concept may not appear", finetune.trigger_word)
        adapter.set_strength(self.slot.transformer, request.finetune_strength)

        size, output_size = self._sizes(request)
        seed = random.randrange(2**32) if request.seed is None else request.seed
        log.info("Seed: %d", seed)
        text = encode_texts(self.pipeline, [request.prompt], self.base.max_sequence_length)
        image = sample(self.pipeline, text, size, steps=request.steps, guidance=request.guidance, seed=seed)
        if output_size != size:
            log.info("Made at %d x %d, the area that this base knows, and enlarged to %d x %d", *size, *output_size)
            image = image.resize(output_size, Image.Resampling.LANCZOS)
        return write_image(image, request.output_format, self._metadata(request, seed))

    def _metadata(self, request: ImageRequest, seed: int) -> dict:
        """Everything needed to make the image again. At strength 0 that is the base alone: any finetune gives these bytes."""
        fields = asdict(request) | {"seed": seed, "base": self.base.describe()}
        if request.finetune_strength == 0:
            del fields["finetune_id"]
        return fields

    def _require_same_base(self, finetune: Finetune) -> None:
        if finetune.base["fingerprint"] != self.base.fingerprint:
            trained, here = finetune.base, self.base
            raise ValueError(
                f"finetune_id: {finetune.id} was trained on {trained['name']} {trained['version']}, and this server runs"
                f" {here.name} {here.version}. Set BASE_MODEL to the base it was trained on, or train it again."
            )

    def _put_in_slot(self, finetune_id: str) -> Finetune:
        """Fetch the finetune and copy it into the slot, unless it is there already."""
        if self.loaded and self.loaded.id == finetune_id.lower():
            return self.loaded
        finetune = self.store.fetch(finetune_id)
        self._require_same_base(finetune)
        weights = adapter.read_adapter(finetune.folder / adapter.WEIGHTS_NAME)
        self.loaded = None  # until all of it is in: a half-filled slot must not pass for any finetune
        self.slot.load(weights)
        self.loaded = finetune
        return finetune

    def _sizes(self, request: ImageRequest) -> tuple[Size, Size]:
        """The size to sample at and the size to return, in pixels."""
        multiple = self.base.size_multiple
        if request.aspect_ratio != CUSTOM:
            width, height = ASPECT_RATIOS[request.aspect_ratio]
            size = native_size(width / height, self.base.sampling_side, multiple)
            return size, size
        asked = tuple(round(side / CUSTOM_MULTIPLE) * CUSTOM_MULTIPLE for side in (request.width, request.height))
        area_side = min(self.base.largest_side, (asked[0] * asked[1]) ** 0.5)
        return native_size(asked[0] / asked[1], area_side, multiple), asked


def write_image(image: Image.Image, output_format: str, metadata: dict) -> Path:
    """Write a JPEG or PNG that carries, as JSON, everything needed to make it again."""
    with tempfile.NamedTemporaryFile(prefix="image-", suffix=f".{output_format}", delete=False) as file:
        if output_format == "png":
            text = PngInfo()
            text.add_text("finetune", json.dumps(metadata))
            image.save(file, "PNG", pnginfo=text)
        else:
            exif = Image.Exif()
            exif.get_ifd(EXIF_IFD)[EXIF_USER_COMMENT] = b"ASCII\0\0\0" + json.dumps(metadata).encode()
            image.save(file, "JPEG", quality=95, subsampling=0, exif=exif)  # 4:4:4: no colour fringes on flat areas
    return Path(file.name)
