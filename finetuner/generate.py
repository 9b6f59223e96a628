"""The whole prediction, top to bottom: a prompt, a finetune and a strength -> one image file."""

from __future__ import annotations

import logging
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps

from finetuner.bases import Base, Size, TextEmbeddings, choose_base
from finetuner.data import has_trigger_word
from finetuner.phases import Seconds
from finetuner.requests import RANKS, ImageRequest
from finetuner.serving import (
    FinetuneCache,
    PromptCache,
    ServedFinetune,
    Slot,
    adapter_cache_bytes,
    compile_wanted,
    decode_latents,
    native_size,
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
    seconds: dict[str, float]  # by phase: fetch, encode, sampling, decode
    adapter_hit: bool  # the LoRA was in memory
    prompt_hit: bool  # the prompt's embeddings were


class Generator:
    """The base in memory with one slot for an adapter, and the finetunes and prompts that were used last."""

    def __init__(self, base: Base, store: Store):
        budget, compiled = adapter_cache_bytes(), compile_wanted()  # what is wrong with them is said before anything loads
        self.base = base
        self.pipeline = base.load_pipeline()
        self.pipeline.set_progress_bar_config(desc="Sampling", unit="step")
        self.slot = Slot(self.pipeline.transformer, rank=max(RANKS))
        self.finetunes = FinetuneCache(store, base, self.slot, budget)
        self.prompts = PromptCache(base, self.pipeline)
        if compiled:
            self._compile()

    @classmethod
    def open(cls) -> Generator:
        """For the base that ``BASE_MODEL`` chooses and the store that ``FINETUNE_STORE`` names."""
        return cls(choose_base(), open_store())

    def generate(self, request: ImageRequest, folder: Path | None = None) -> Generated:
        """Make the image and write it to a new file in ``folder`` (the system's for temporary files where none is named),
        which is the caller's to delete.

        Raises:
            ValueError: the finetune does not exist, is damaged, or was made for another base.
            FloatingPointError: at this strength the finetune takes the base out of the range of its numbers.
        """
        phases = Seconds()
        log.info(
            "Inputs: finetune_strength %g, aspect_ratio %s, steps %d, guidance %g, output_format %s",
            request.finetune_strength,
            request.aspect_ratio,
            request.steps,
            request.guidance,
            request.output_format,
        )
        with phases.phase("fetch"):
            adapter_hit = request.finetune_id in self.finetunes
            served = self.finetunes.get(request.finetune_id)
        self._warn_of_prompt(request.prompt, served)
        size, output_size = sampling_and_output_size(request, self.base)
        steps, guidance = steps_and_guidance(request, self.base)
        seed = random.randrange(2**32) if request.seed is None else request.seed
        log.info("Seed: %d", seed)
        with phases.phase("encode"):
            prompt_hit = request.prompt in self.prompts
            texts, empty = self.prompts.get(request.prompt), self.prompts.empty
        with phases.phase("sampling"), self.slot.holding(served.adapter, request.finetune_strength):
            latents = sample_latents(self.pipeline, texts, size, steps=steps, guidance=guidance, seed=seed, empty=empty)
            _require_finite(latents, request, served)
        with phases.phase("decode"):
            (image,) = decode_latents(self.pipeline, latents, size)
            metadata = self._metadata(request, served, seed, steps, guidance)
            path = write_image(_in_size(image, output_size), folder, request.output_format, metadata)
        return Generated(path, seed, phases.seconds, adapter_hit, prompt_hit)

    def generate_many(self, requests: list[ImageRequest], folder: Path | None = None) -> list[Generated]:
        """Make the images of several requests in one batch, each with its own finetune at its own strength, as `generate` makes
        one: alike but for rounding. The seconds are the whole batch's.

        Raises:
            ValueError: as for `generate`, or the requests differ in their size, steps or guidance.
            FloatingPointError: as for `generate`; there is no image of any request then.
        """
        if len(requests) == 1:
            return [self.generate(requests[0], folder)]
        shapes = {(sampling_and_output_size(r, self.base), steps_and_guidance(r, self.base)) for r in requests}
        if len(shapes) != 1:
            raise ValueError("aspect_ratio, width, height, steps, guidance: requests of one batch must have the same.")
        (((size, output_size), (steps, guidance)),) = shapes
        seeds = [random.randrange(2**32) if request.seed is None else request.seed for request in requests]
        log.info("Seeds: %s", ", ".join(map(str, seeds)))
        phases = Seconds()
        with phases.phase("fetch"):
            adapter_hits = [request.finetune_id in self.finetunes for request in requests]
            served = [self.finetunes.get(request.finetune_id) for request in requests]
        for request, its in zip(requests, served, strict=True):
            self._warn_of_prompt(request.prompt, its)
        with phases.phase("encode"):
            prompt_hits = [request.prompt in self.prompts for request in requests]
            texts, empty = TextEmbeddings.cat([self.prompts.get(request.prompt) for request in requests]), self.prompts.empty
        rows = [(its.adapter, request.finetune_strength) for request, its in zip(requests, served, strict=True)]
        with phases.phase("sampling"), self.slot.holding_rows(rows):
            latents = sample_latents(self.pipeline, texts, size, steps=steps, guidance=guidance, seed=seeds, empty=empty)
            for own, request, its in zip(latents, requests, served, strict=True):
                _require_finite(own, request, its)
        with phases.phase("decode"):
            paths, pictures = [], decode_latents(self.pipeline, latents, size)
            for image, request, its, seed in zip(pictures, requests, served, seeds, strict=True):
                metadata = self._metadata(request, its, seed, steps, guidance)
                paths.append(write_image(_in_size(image, output_size), folder, request.output_format, metadata))
        facts = zip(paths, seeds, adapter_hits, prompt_hits, strict=True)
        return [Generated(path, seed, phases.seconds, adapter, prompt) for path, seed, adapter, prompt in facts]

    def _warn_of_prompt(self, prompt: str, served: ServedFinetune) -> None:
        read = self.base.characters_read(prompt)
        if read < len(prompt):
            log.warning(
                "prompt: the text encoder reads the first %d of its %d characters. Put what matters first, or shorten it",
                read,
                len(prompt),
            )
        if not has_trigger_word(prompt[:read], served.finetune.trigger_word):
            log.warning("The prompt lacks the trigger word %r, so the concept may not appear", served.finetune.trigger_word)

    def _metadata(self, request: ImageRequest, served: ServedFinetune, seed: int, steps: int, guidance: float | None) -> dict:
        """Everything needed to make the image again, and nothing that changes nothing: at strength 0 any finetune gives these
        bytes, and some bases take no guidance."""
        made = {"finetune_id": served.finetune.id, "steps": steps, "guidance": guidance, "seed": seed}
        fields = asdict(request) | made | {"base": self.base.describe()}
        if request.finetune_strength == 0:
            del fields["finetune_id"]
        if guidance is None:
            del fields["guidance"]
        return fields

    def _compile(self) -> None:
        """Compile the transformer's blocks, once for all sizes; the first picture is what does it."""
        log.info("Compiling the transformer's blocks, which takes minutes")
        self.pipeline.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)
        # Not a square: one of 1024 px is 4096 tokens, which a transformer 4096 wide (FLUX.2 klein 9B) does not tell from its
        # width. Dynamo takes equal sizes for one and the same, and would compile again for the next picture of another shape.
        size = native_size(3 / 2, self.base.sampling_side, self.base.size_multiple)
        sample_latents(
            self.pipeline,
            self.prompts.get(""),
            size,
            steps=1,
            guidance=self.base.sampling_guidance,
            seed=0,
            empty=self.prompts.empty,
        )


def _require_finite(latents: torch.Tensor, request: ImageRequest, served: ServedFinetune) -> None:
    if not latents.isfinite().all():
        raise FloatingPointError(
            f"finetune_strength: at {request.finetune_strength:g} finetune {served.finetune.id} takes the base out of"
            " the range of its numbers, and there is no image. Lower it."
        )


def _in_size(image: Image.Image, output_size: Size) -> Image.Image:
    if image.size == output_size:
        return image
    log.info("Made at %d x %d, the area that this base knows, and enlarged to %d x %d", *image.size, *output_size)
    # Cropped to the aspect that was asked for: in a few tokens a side, the one it was made at is a little off.
    return ImageOps.fit(image, output_size, Image.Resampling.LANCZOS)
