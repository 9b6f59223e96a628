"""What was used last, kept in memory within a budget of bytes: finetunes ready for the slot, and prompts as embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from cachetools import LRUCache
from diffusers import DiffusionPipeline

from finetuner.bases import Base, ImagePrompt, Placement, TextEmbeddings
from finetuner.data import ImageFile
from finetuner.loras import WEIGHTS_NAME, load_lora
from finetuner.serving.slot import PackedAdapter, Slot
from finetuner.store import Finetune, Store, checked_id

PROMPT_CACHE_BYTES = 2**27  # on the device; thirty prompts of FLUX.1-dev (4 MiB each), or 16 of FLUX.2 klein 4B

IMAGE_PROMPT_CACHE_BYTES = 2**26  # likewise; eleven of FLUX.1-dev (5.7 MiB each), or 64 of FLUX.2 klein


@dataclass(frozen=True)
class ServedFinetune:
    """A finetune whose LoRA is in memory; its files may go from the store's cache."""

    finetune: Finetune
    adapter: PackedAdapter


class FinetuneCache:
    """Finetunes of a store, for one base and its slot."""

    def __init__(self, store: Store, base: Base, slot: Slot, budget: int):
        self.store, self.base, self.slot = store, base, slot
        self.served: LRUCache[str, ServedFinetune] = LRUCache(budget, getsizeof=lambda served: served.adapter.nbytes)

    def __contains__(self, finetune_id: str) -> bool:
        return checked_id(finetune_id) in self.served

    def get(self, finetune_id: str) -> ServedFinetune:
        """The finetune, from memory or else from the store.

        Raises:
            ValueError: it does not exist, is damaged, or this base does not draw with it.
        """
        finetune_id = checked_id(finetune_id)
        if served := self.served.get(finetune_id):
            return served
        finetune = self.store.fetch(finetune_id)
        self.base.require_serves(finetune.id, finetune.base)
        try:
            adapter = self.slot.pack(load_lora(finetune.folder / WEIGHTS_NAME))
        except ValueError as error:
            raise ValueError(f"finetune_id: {finetune.id} does not fit {self.base.name}: {error}") from error
        served = ServedFinetune(replace(finetune, hold=None), adapter)
        _remember(self.served, finetune.id, served)
        return served


class PromptCache:
    """Embeddings of prompts, by the text encoders of a pipeline."""

    def __init__(self, base: Base, pipeline: DiffusionPipeline):
        self.base, self.pipeline = base, pipeline
        self.texts: LRUCache[str, TextEmbeddings] = LRUCache(PROMPT_CACHE_BYTES, getsizeof=lambda texts: texts.nbytes)

    def __contains__(self, prompt: str) -> bool:
        return prompt in self.texts

    def get(self, prompt: str) -> TextEmbeddings:
        """Of one prompt, from memory or else from the text encoders."""
        texts = self.texts.get(prompt)
        if texts is None:
            texts = self._encode(prompt)
            _remember(self.texts, prompt, texts)
        return texts

    @cached_property
    def empty(self) -> TextEmbeddings | None:
        """Of the empty prompt, encoded once for good, where the base's guidance leads away from it."""
        return self._encode("") if self.base.guidance == "cfg" else None

    def _encode(self, prompt: str) -> TextEmbeddings:
        return self.base.family.encode_texts(self.pipeline, [prompt], self.base.max_sequence_length)


class ImagePromptCache:
    """Image prompts as a base reads them, by its reader, which is loaded when the first is asked for."""

    def __init__(self, base: Base, pipeline: DiffusionPipeline, placement: Placement):
        self.base, self.pipeline, self.placement = base, pipeline, placement
        self.read: LRUCache[str, ImagePrompt] = LRUCache(IMAGE_PROMPT_CACHE_BYTES, getsizeof=lambda prompt: prompt.nbytes)

    def __contains__(self, file: ImageFile) -> bool:
        return file.sha256 in self.read

    def get(self, file: ImageFile) -> ImagePrompt:
        """Of one picture, from memory or else from the reader.

        Raises:
            ValueError: this base reads no pictures, or the file is none that is read here.
        """
        prompt = self.read.get(file.sha256)
        if prompt is None:
            prompt = self.base.read_image(self._reader, file.image)
            _remember(self.read, file.sha256, prompt)
        return prompt

    @cached_property
    def _reader(self) -> DiffusionPipeline:
        return self.base.load_image_reader(self.pipeline, self.placement)


def _remember(cache: LRUCache, key: str, value) -> None:
    if cache.getsizeof(value) <= cache.maxsize:  # a larger one is used, not kept
        cache[key] = value
