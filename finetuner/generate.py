"""The whole prediction, top to bottom: a prompt, a finetune and a strength -> one image file."""

from __future__ import annotations

import logging
import random
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, ImageOps

from finetuner.bases import Base, Placement, Size, TextEmbeddings, choose_base, device
from finetuner.data import ImageFile, PromptUpsampler, has_trigger_word
from finetuner.phases import Seconds
from finetuner.requests import RANKS, ImageRequest
from finetuner.serving import (
    FinetuneCache,
    ImagePromptCache,
    PromptCache,
    ServedFinetune,
    Slot,
    adapter_cache_bytes,
    bytes_left,
    choose_placement,
    compile_blocks,
    compile_wanted,
    decode_latents,
    load_safety_checker,
    raw_look,
    require_raw,
    safety_wanted,
    sample_latents,
    sampling_and_output_size,
    steps_and_guidance,
    write_image,
)
from finetuner.store import Store, open_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generated:
    """An image file, and what making it took."""

    path: Path
    seed: int
    seconds: dict[str, float]  # by phase: fetch, upsample where that is asked for, encode, sampling, decode, safety, write
    adapter_hit: bool  # the LoRA was in memory
    prompt_hit: bool  # the prompt's embeddings were
    image_prompt_hit: bool | None  # the image prompt's were; None where there is none
    safety_score: float | None  # how sensitive the image is, 0 to 1; None where the check is off


@dataclass(frozen=True)
class Drawing:
    """A request, and what was made of it before anything is drawn."""

    request: ImageRequest
    served: ServedFinetune
    adapter_hit: bool
    prompt: str  # as it is drawn: upsampled, with the words of the raw look
    picture: ImageFile | None  # the image prompt, where it counts
    size: Size  # that is drawn
    output_size: Size  # that was asked for
    steps: int
    guidance: float | None  # that was asked for; None where the base takes none
    drawn_guidance: float | None  # the raw look takes less
    seed: int


class Generator:
    """The base in memory with one slot for an adapter, and the finetunes and prompts that were used last."""

    def __init__(self, base: Base, store: Store, placement: Placement | None = None):
        """``placement``: how the base is held; without it, the fastest way that fits into the device's memory."""
        # What is wrong with the settings is said before anything loads.
        budget, compiled, checked = adapter_cache_bytes(), compile_wanted(), safety_wanted()
        self.base = base
        self.placement = placement or choose_placement(base)
        self.pipeline = base.load_pipeline(self.placement)
        self.pipeline.set_progress_bar_config(desc="Sampling", unit="step")
        self.slot = Slot(self.pipeline.transformer, rank=max(RANKS), device=device())
        self.finetunes = FinetuneCache(store, base, self.slot, budget)
        self.prompts = PromptCache(base, self.pipeline)
        self.image_prompts = ImagePromptCache(base, self.pipeline, self.placement)
        self.safety = load_safety_checker(checked)
        with suppress(ValueError):  # nothing here upsamples for this base: whoever asks for it is told
            self.upsampler.prepare()
        if compiled and self.placement.precision is None and not self.placement.transformer_streamed:
            compile_blocks(self.pipeline, base, self.prompts)
        elif compiled:
            log.warning("The transformer is not compiled: only one that is resident in its own precision is")

    @classmethod
    def open(cls) -> Generator:
        """For the base that ``BASE_MODEL`` chooses and the store that ``FINETUNE_STORE`` names."""
        return cls(choose_base(), open_store())

    def generate(self, request: ImageRequest, folder: Path | None = None) -> Generated:
        """Make the image and write it to a new file in ``folder`` (the system's for temporary files where none is named),
        which is the caller's to delete.

        Raises:
            ValueError: the finetune does not exist, is damaged, or was made for another base; the image prompt cannot be
                read, or not by this base; nothing here can upsample a prompt for it; or it has no raw look.
            FlaggedError: the image or the image prompt is more sensitive than safety_tolerance allows; no file is written.
            FloatingPointError: at this strength the finetune takes the base out of the range of its numbers.
        """
        phases = Seconds()
        drawing = self._decide(request, phases)
        with phases.phase("encode"):
            picture = drawing.picture
            prompt_hit, image_prompt_hit = drawing.prompt in self.prompts, picture in self.image_prompts if picture else None
            texts, empty = self.prompts.get(drawing.prompt), self.prompts.empty
            seen = self.image_prompts.get(picture) if picture else None
        with phases.phase("sampling"), self.slot.holding(drawing.served.adapter, request.finetune_strength):
            latents = sample_latents(
                self.pipeline,
                texts,
                drawing.size,
                steps=drawing.steps,
                guidance=drawing.drawn_guidance,
                seed=drawing.seed,
                empty=empty,
                image_prompt=seen,
                image_prompt_strength=request.image_prompt_strength,
            )
            _require_finite(latents, drawing)
        with phases.phase("decode"):
            (image,) = decode_latents(self.pipeline, latents, drawing.size)
        with phases.phase("safety"):
            score = self._check(image, request)
        with phases.phase("write"):
            path = self._write(image, drawing, folder)
        return Generated(path, drawing.seed, phases.seconds, drawing.adapter_hit, prompt_hit, image_prompt_hit, score)

    def generate_many(self, requests: list[ImageRequest], folder: Path | None = None) -> list[Generated]:
        """Make the images of several requests in one batch, each with its own finetune at its own strength, as `generate` makes
        one: alike but for rounding. The seconds are the whole batch's.

        Raises:
            ValueError: as for `generate`; or the requests differ in their size, steps or guidance, or have an image prompt.
            FlaggedError, FloatingPointError: as for `generate`; there is no image of any request then.
        """
        if len(requests) == 1:
            return [self.generate(requests[0], folder)]
        if any(request.image_prompt for request in requests):
            raise ValueError("image_prompt: the requests of one batch cannot have one. Draw those by themselves.")
        phases = Seconds()
        drawings = [self._decide(request, phases) for request in requests]
        if len({(d.size, d.output_size, d.steps, d.drawn_guidance) for d in drawings}) != 1:
            raise ValueError("aspect_ratio, width, height, steps, guidance: requests of one batch must have the same.")
        first = drawings[0]
        with phases.phase("encode"):
            prompt_hits = [drawing.prompt in self.prompts for drawing in drawings]
            texts, empty = TextEmbeddings.cat([self.prompts.get(drawing.prompt) for drawing in drawings]), self.prompts.empty
        rows = [(drawing.served.adapter, drawing.request.finetune_strength) for drawing in drawings]
        with phases.phase("sampling"), self.slot.holding_rows(rows):
            latents = sample_latents(
                self.pipeline,
                texts,
                first.size,
                steps=first.steps,
                guidance=first.drawn_guidance,
                seed=[drawing.seed for drawing in drawings],
                empty=empty,
            )
            for own, drawing in zip(latents, drawings, strict=True):
                _require_finite(own, drawing)
        with phases.phase("decode"):
            images = decode_latents(self.pipeline, latents, first.size)
        with phases.phase("safety"):  # all of them before any is written
            scores = [self._check(image, drawing.request) for image, drawing in zip(images, drawings, strict=True)]
        with phases.phase("write"):
            paths = [self._write(image, drawing, folder) for image, drawing in zip(images, drawings, strict=True)]
        return [
            Generated(path, drawing.seed, phases.seconds, drawing.adapter_hit, prompt_hit, None, score)
            for path, drawing, prompt_hit, score in zip(paths, drawings, prompt_hits, scores, strict=True)
        ]

    def _decide(self, request: ImageRequest, phases: Seconds) -> Drawing:
        """Check the request against the base and the store, and settle all that it leaves open."""
        log.info(
            "Inputs: finetune_strength %g, aspect_ratio %s, steps %d, guidance %g, raw %s, safety_tolerance %d, output_format"
            " %s",
            request.finetune_strength,
            request.aspect_ratio,
            request.steps,
            request.guidance,
            str(request.raw).lower(),
            request.safety_tolerance,
            request.output_format,
        )
        if request.raw:
            require_raw(self.base)
        picture = self._image_prompt(request)
        with phases.phase("fetch"):
            adapter_hit = request.finetune_id in self.finetunes
            served = self.finetunes.get(request.finetune_id)
        prompt = request.prompt
        if request.prompt_upsampling:
            with phases.phase("upsample"):
                prompt = self.upsampler.upsample(prompt, served.finetune.trigger_word, served.finetune.mode)
        size, output_size = sampling_and_output_size(request, self.base)
        steps, guidance = steps_and_guidance(request, self.base)
        prompt, drawn_guidance = raw_look(prompt, guidance) if request.raw else (prompt, guidance)
        self._warn_of(prompt, served.finetune.trigger_word)
        seed = random.randrange(2**32) if request.seed is None else request.seed
        log.info("Seed: %d", seed)
        return Drawing(request, served, adapter_hit, prompt, picture, size, output_size, steps, guidance, drawn_guidance, seed)

    def _image_prompt(self, request: ImageRequest) -> ImageFile | None:
        """The request's image prompt, where it counts. One that does not is checked all the same.

        Raises:
            ValueError: this base reads no pictures, or the file is none that is read here.
            FlaggedError: it is more sensitive than safety_tolerance allows.
        """
        if request.image_prompt is None:
            return None
        self.base.require_reads_images()
        picture = ImageFile.read(request.image_prompt)
        log.info("Image prompt: %s, at image_prompt_strength %g", picture.sha256, request.image_prompt_strength)
        if self.safety:
            self.safety.check_image_prompt(picture, request.safety_tolerance)
        elif picture not in self.image_prompts:
            _ = picture.image  # decoded here, so that a bad one is refused before anything is loaded for it
        return picture if request.image_prompt_strength else None

    def _warn_of(self, prompt: str, trigger_word: str) -> None:
        """What of the prompt that is drawn is not read, or is missing."""
        read = self.base.characters_read(prompt)
        if read < len(prompt):
            log.warning(
                "prompt: the text encoder reads the first %d of its %d characters. Put what matters first, or shorten it",
                read,
                len(prompt),
            )
        if not has_trigger_word(prompt[:read], trigger_word):
            log.warning("The prompt lacks the trigger word %r, so the concept may not appear", trigger_word)

    @cached_property
    def upsampler(self) -> PromptUpsampler:
        return PromptUpsampler.open(self.base, bytes_left(self.base, self.placement))

    def _check(self, image: Image.Image, request: ImageRequest) -> float | None:
        return self.safety.check("The image", image, request.safety_tolerance) if self.safety else None

    def _write(self, image: Image.Image, drawing: Drawing, folder: Path | None) -> Path:
        """Bring the image to the size that was asked for, and write it."""
        if image.size != drawing.output_size:
            sizes = *image.size, *drawing.output_size
            log.info("Made at %d x %d, the area that this base knows, and enlarged to %d x %d", *sizes)
            # Cropped to the aspect that was asked for: in a few tokens a side, the one it was made at is a little off.
            image = ImageOps.fit(image, drawing.output_size, Image.Resampling.LANCZOS)
        return write_image(image, folder, drawing.request.output_format, self._metadata(drawing))

    def _metadata(self, drawing: Drawing) -> dict:
        """Everything needed to make the image again, and nothing that changes nothing: at strength 0 any finetune and any image
        prompt give these bytes, and some bases take no guidance. What was drawn in place of a field is beside it, as
        ``drawn_`` and its name."""
        request = drawing.request
        made = {"seed": drawing.seed, "steps": drawing.steps, "guidance": drawing.guidance}
        fields = asdict(request) | made | {"finetune_id": drawing.served.finetune.id, "base": self.base.describe()}
        drawn = {"prompt": drawing.prompt, "guidance": drawing.drawn_guidance}
        fields |= {f"drawn_{name}": value for name, value in drawn.items() if value != fields[name]}
        del fields["safety_tolerance"]
        if self.placement.precision:
            fields["base_precision"] = self.placement.precision
        if drawing.picture:
            fields["image_prompt"] = f"sha256:{drawing.picture.sha256}"
        else:
            del fields["image_prompt"], fields["image_prompt_strength"]
        if request.finetune_strength == 0:
            del fields["finetune_id"]
        if drawing.guidance is None:
            del fields["guidance"]
        return fields


def _require_finite(latents: torch.Tensor, drawing: Drawing) -> None:
    if not latents.isfinite().all():
        raise FloatingPointError(
            f"finetune_strength: at {drawing.request.finetune_strength:g} finetune {drawing.served.finetune.id} takes the base"
            " out of the range of its numbers, and there is no image. Lower it."
        )
