"""A prompt, a finetune and a strength -> one image file."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from cachetools import LRUCache
from diffusers import FluxPipeline
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from finetuner import captions
from finetuner.adapter import WEIGHTS_NAME, read_adapter
from finetuner.base import Base, choose_base
from finetuner.encode import Size, TextEmbeddings, encode_texts
from finetuner.recipe import RANKS
from finetuner.sampling import ASPECT_RATIOS, DEFAULT_GUIDANCE, DEFAULT_STEPS, decode, native_size, sample_latents
from finetuner.slot import PackedAdapter, Slot
from finetuner.store import Finetune, Store, open_store

log = logging.getLogger(__name__)

CUSTOM = "custom"
CUSTOM_MULTIPLE = 32  # documented: width and height are rounded to it
EXIF_USER_COMMENT = 0x9286
EXIF_IFD = 0x8769
ADAPTER_CACHE_GB = 8  # thirty LoRAs of rank 32 for FLUX.1-dev (262 MB each); on CUDA it is memory that cannot be swapped out
PROMPT_CACHE_BYTES = 2**27  # on the device; thirty prompts of FLUX.1-dev (4 MiB each)


@dataclass(frozen=True)
class ImageRequest:
    """The documented prediction inputs. Bounds are the server's schema's; what it cannot express is checked here.

    Raises:
        ValueError: the prompt is empty, the size is not said, or the seed is too large; the sentence names the field and the
            remedy.
    """

    prompt: str
    finetune_id: str
    finetune_strength: float = 1.0
    aspect_ratio: str = "1:1"
    width: int | None = None
    height: int | None = None
    steps: int = DEFAULT_STEPS
    guidance: float = DEFAULT_GUIDANCE
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
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed: {self.seed} does not fit into 64 bits. Send a smaller one, or none.")


@dataclass(frozen=True)
class Generated:
    """An image file, and what making it took."""

    path: Path
    seed: int
    seconds: dict[str, float]  # by phase: fetch, encode, sampling, decode
    adapter_hit: bool  # the LoRA was in memory
    prompt_hit: bool  # the prompt's embeddings were


class Generator:
    """The base in memory with one slot for an adapter, and the adapters and prompts that were used last."""

    def __init__(self, base: Base, store: Store):
        compiled = compiles()
        self.base = base
        self.store = store
        self.adapters = LRUCache(adapter_cache_bytes(), getsizeof=lambda served: served[1].nbytes)
        self.prompts = LRUCache(PROMPT_CACHE_BYTES, getsizeof=lambda text: text.embeds.nbytes + text.pooled.nbytes)
        self.pipeline: FluxPipeline = base.load_pipeline()
        self.pipeline.set_progress_bar_config(desc="Sampling", unit="step")
        self.slot = Slot(self.pipeline.transformer, rank=max(RANKS))
        if compiled:
            log.info("Compiling the transformer's blocks, which takes minutes")
            self.pipeline.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)  # one compilation for all sizes
            # The first call compiles.
            size = native_size(1.0, base.sampling_side, base.size_multiple)
            sample_latents(self.pipeline, self._embeddings(""), size, steps=1, guidance=DEFAULT_GUIDANCE, seed=0)

    @classmethod
    def open(cls) -> Generator:
        return cls(choose_base(), open_store())

    def generate(self, request: ImageRequest, folder: Path | None = None) -> Generated:
        """Make the image and write it to a new file in ``folder`` (the system's for temporary files where none is named),
        which is the caller's to delete.

        Raises:
            ValueError: the finetune does not exist, is damaged, or was made for another base.
            FloatingPointError: at this strength the finetune takes the base out of the range of its numbers.
        """
        seconds: dict[str, float] = {}
        with timed("fetch", seconds):
            adapter_hit = request.finetune_id.lower() in self.adapters
            finetune, adapter = self._adapter(request.finetune_id)
        if not captions.names(request.prompt, finetune.trigger_word):
            log.warning("The prompt lacks the trigger word %r, so the concept may not appear", finetune.trigger_word)
        size, output_size = self._sizes(request)
        seed = random.randrange(2**32) if request.seed is None else request.seed
        log.info("Seed: %d", seed)
        with timed("encode", seconds):
            prompt_hit = request.prompt in self.prompts
            text = self._embeddings(request.prompt)
        try:
            with timed("sampling", seconds):
                self.slot.load(adapter, request.finetune_strength)
                latents = sample_latents(self.pipeline, text, size, steps=request.steps, guidance=request.guidance, seed=seed)
                if not latents.isfinite().all():
                    raise FloatingPointError(
                        f"finetune_strength: at {request.finetune_strength:g} finetune {finetune.id} takes the base out of the"
                        " range of its numbers, and there is no image. Lower it."
                    )
        except BaseException:  # Cog cancels with one of its own, and the next request is to find nothing half done
            self.slot.clear()
            raise
        with timed("decode", seconds):
            (image,) = decode(self.pipeline, latents, size)
            if output_size != size:
                log.info("Made at %d x %d, the area that this base knows, and enlarged to %d x %d", *size, *output_size)
                # Cropped to the aspect that was asked for: in a few tokens a side, the one it was made at is a little off.
                image = ImageOps.fit(image, output_size, Image.Resampling.LANCZOS)
            path = write_image(image, folder, request.output_format, self._metadata(request, seed))
        return Generated(path, seed, seconds, adapter_hit, prompt_hit)

    def _metadata(self, request: ImageRequest, seed: int) -> dict:
        """Everything needed to make the image again. At strength 0 that is the base alone: any finetune gives these bytes."""
        fields = asdict(request) | {"seed": seed, "base": self.base.describe()}
        if request.finetune_strength == 0:
            del fields["finetune_id"]
        return fields

    def _adapter(self, finetune_id: str) -> tuple[Finetune, PackedAdapter]:
        """The finetune and its LoRA, from memory or else from the store."""
        if served := self.adapters.get(finetune_id.lower()):
            return served
        finetune = self.store.fetch(finetune_id)
        self._require_same_base(finetune)
        try:
            adapter = self.slot.pack(read_adapter(finetune.folder / WEIGHTS_NAME))
        except ValueError as error:
            raise ValueError(f"finetune_id: {finetune.id} does not fit {self.base.name}: {error}") from error
        in_memory = replace(finetune, hold=None)  # its files may go from the store's cache
        return _remember(self.adapters, finetune.id, (in_memory, adapter))

    def _require_same_base(self, finetune: Finetune) -> None:
        if finetune.base["fingerprint"] != self.base.fingerprint:
            trained, here = finetune.base, self.base
            raise ValueError(
                f"finetune_id: {finetune.id} was trained on {trained['name']} {trained['version']}, and this server runs"
                f" {here.name} {here.version}. Set BASE_MODEL to the base it was trained on, or train it again."
            )

    def _embeddings(self, prompt: str) -> TextEmbeddings:
        """Of the prompt, from memory or else from the text encoders."""
        text = self.prompts.get(prompt)
        if text is None:
            text = encode_texts(self.pipeline, [prompt], self.base.max_sequence_length)
            _remember(self.prompts, prompt, text)
        return text

    def _sizes(self, request: ImageRequest) -> tuple[Size, Size]:
        """The size to sample at and the size to return, in pixels."""
        multiple = self.base.size_multiple
        if request.aspect_ratio != CUSTOM:
            width, height = ASPECT_RATIOS[request.aspect_ratio]
            size = native_size(width / height, self.base.sampling_side, multiple)
            return size, size
        asked = tuple(math.floor(side / CUSTOM_MULTIPLE + 0.5) * CUSTOM_MULTIPLE for side in (request.width, request.height))
        area_side = min(self.base.largest_side, (asked[0] * asked[1]) ** 0.5)
        return native_size(asked[0] / asked[1], area_side, multiple), asked


def adapter_cache_bytes() -> int:
    """How much memory recently used adapters may take: ``ADAPTER_CACHE_GB``.

    Raises:
        ValueError: it is no such number.
    """
    value = os.environ.get("ADAPTER_CACHE_GB", str(ADAPTER_CACHE_GB))
    try:
        gigabytes = float(value)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < math.inf:
        raise ValueError(f"ADAPTER_CACHE_GB: {value!r} is no number of gigabytes. Set one, such as {ADAPTER_CACHE_GB}.")
    return int(gigabytes * 10**9)


def compiles() -> bool:
    """Whether to compile the transformer's blocks: ``COMPILE``, 1 or 0. A GPU earns the minutes back, a CPU hardly.

    Raises:
        ValueError: it is neither.
    """
    value = os.environ.get("COMPILE", str(int(torch.cuda.is_available())))
    if value not in ("0", "1"):
        raise ValueError(f"COMPILE: {value!r} is neither 0 nor 1.")
    return value == "1"


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _remember(cache: LRUCache, key: str, value):
    if cache.getsizeof(value) <= cache.maxsize:  # a larger one is used, not kept
        cache[key] = value
    return value


def write_image(image: Image.Image, folder: Path | None, output_format: str, metadata: dict) -> Path:
    """Write a JPEG or PNG that carries, as JSON, everything needed to make it again."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="image-", suffix=f".{output_format}", delete=False) as file:
        if output_format == "png":
            text = PngInfo()
            text.add_text("finetune", json.dumps(metadata))
            image.save(file, "PNG", pnginfo=text)
        else:
            exif = Image.Exif()
            exif.get_ifd(EXIF_IFD)[EXIF_USER_COMMENT] = b"ASCII\0\0\0" + json.dumps(metadata).encode()
            image.save(file, "JPEG", quality=95, subsampling=0, exif=exif)  # 4:4:4: no colour fringes on flat areas
    return Path(file.name)
