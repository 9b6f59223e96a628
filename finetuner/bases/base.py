"""Which FLUX base to build on, and its parts, loaded one at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetuner.bases.device import default_dtype_kept, device, weight_dtype
from finetuner.bases.families import Family, family_named
from finetuner.bases.family import Guidance, ImagePrompt
from finetuner.bases.model_folder import ModelFolder, ModelKind, loaded_files
from finetuner.bases.placement import RESIDENT, Placement, place
from finetuner.bases.quantise import PRECISIONS, quantise
from finetuner.bases.warm import Part, WarmParts
from finetuner.paths import WEIGHTS
from finetuner.requests import DEFAULT_GUIDANCE, DEFAULT_SAMPLING_STEPS

log = logging.getLogger(__name__)

INDEX = "model_index.json"
BASES = ModelKind(
    noun="a base",
    variable="BASE_MODEL",
    manifest="base.json",
    downloaded_last=INDEX,
    # No one chose the default, so it must not bind anyone: FLUX.2-klein-base-4B is Apache-2.0 and trains on a card of 12 GB,
    # FLUX.1-dev is for non-commercial use and takes twice that.
    production=("FLUX.2-klein-base-4B", "FLUX.1-dev"),
    embedded="klein-emoji",
)


@dataclass(frozen=True)
class Base(ModelFolder):
    """A folder in diffusers' layout, and what its ``base.json`` says of it."""

    source: str  # what diffusers loads it by: its name on the Hugging Face Hub, or its folder in this repository
    refusal: str | None  # why it must not be trained, with the remedy; None where it may be
    serves_finetunes_of: tuple[str, ...]  # names of other bases whose finetunes it draws with, too
    resolutions: dict[str, tuple[int, ...]]  # by priority: sides of the square areas trained on, in pixels
    sampling_side: int  # side of the square area that images are made at, in pixels
    sampling_steps: int  # what a request that leaves its steps at the documented default gets
    guidance_scale: float  # likewise, where the base takes guidance at all
    largest_side: int  # side of the largest square area that the base makes well, in pixels
    max_sequence_length: int  # tokens of a text: FLUX has no text mask, so training and use must pad alike
    training_guidance: float
    learning_rate_scale: dict[str, float]  # by finetune_type: what the documented rates are multiplied by
    learning_rate_scale_reason: str
    caption_form: str
    # Whether a word that it never saw changes its pictures. Where not, a prompt with the trigger word cannot be told from one
    # without it, and there is nothing to preserve.
    hears_new_words: bool
    pictures: str  # the kind that it draws and is trained on, which a captioner has to know
    # The folder of ``weights/`` with what makes image prompts readable to it, where its family does not read them by itself.
    image_reader: str | None
    # Whether guidance raises an image prompt as it raises the prompt. Else the empty prompt that it leads away from comes with
    # the image prompt, as diffusers has it for FLUX.2.
    image_prompt_guided: bool
    warm: WarmParts | None = None  # where its parts stay for the next job; None reads them anew each time

    @classmethod
    def open(cls, folder: Path) -> Base:
        """Read a base's manifest; loads no weights.

        Raises:
            ValueError: there is no base in the folder, its weights were not downloaded, or its family is not known.
        """
        fields = BASES.read_manifest(folder)
        sampling = fields["sampling"]
        base = cls(
            folder=folder,
            name=fields["name"],
            version=fields["version"],
            licence=fields["licence"],
            source=fields["source"],
            refusal=None if fields["trains"] is True else fields["trains"],
            serves_finetunes_of=tuple(fields["serves_finetunes_of"]),
            resolutions={priority: tuple(sides) for priority, sides in fields["resolutions"].items()},
            sampling_side=sampling["side"],
            sampling_steps=sampling.get("steps", DEFAULT_SAMPLING_STEPS),
            guidance_scale=float(sampling.get("guidance", DEFAULT_GUIDANCE)),
            largest_side=sampling["largest_side"],
            max_sequence_length=fields["max_sequence_length"],
            training_guidance=fields["training_guidance"],
            learning_rate_scale=fields["learning_rate_scale"],
            learning_rate_scale_reason=fields["learning_rate_scale_reason"],
            caption_form=fields["caption_form"],
            hears_new_words=fields["hears_new_words"],
            pictures=fields["pictures"],
            image_reader=fields.get("image_reader"),
            image_prompt_guided=fields.get("image_prompt_guided", False),
        )
        _ = base.family  # an unknown one is refused here
        return base

    @cached_property
    def family(self) -> Family:
        return family_named(self.model_index["_class_name"])

    @cached_property
    def model_index(self) -> dict:
        return json.loads((self.folder / INDEX).read_text())

    @cached_property
    def transformer_config(self) -> dict:
        return json.loads((self.folder / "transformer" / "config.json").read_text())

    @property
    def guidance(self) -> Guidance:
        return self.family.guidance_of(self.model_index, self.transformer_config)

    @property
    def sampling_guidance(self) -> float | None:
        """What a request that leaves its guidance at the documented default gets; None where the base takes none."""
        return None if self.guidance == "none" else self.guidance_scale

    def loaded_files(self) -> Iterable[Path]:
        """What ``model_index.json`` names, and no more."""
        yield self.folder / INDEX
        for component, parts in self.model_index.items():
            if isinstance(parts, list) and parts[0]:  # [library, class]; [null, null] is a part that the base lacks
                yield from loaded_files(self.folder / component)

    def require_trains(self) -> None:
        """Raise ValueError with the remedy where this base must not be trained."""
        if self.refusal:
            raise ValueError(f"BASE_MODEL: {self.refusal}")

    def require_serves(self, finetune_id: str, trained_on: dict) -> None:
        """Raise ValueError where this base does not draw with the finetunes of the base that ``trained_on`` describes."""
        if trained_on["fingerprint"] == self.fingerprint:
            return
        if trained_on["name"] not in self.serves_finetunes_of:
            raise ValueError(
                f"finetune_id: {finetune_id} was trained on {trained_on['name']} {trained_on['version']}, and this server runs"
                f" {self.name} {self.version}. Set BASE_MODEL to the base it was trained on, or train it again."
            )
        log.info("Finetune %s was trained on %s; %s draws with it", finetune_id, trained_on["name"], self.name)

    def require_reads_images(self) -> None:
        """Raise ValueError with the remedy where this base cannot be given an image prompt."""
        if self.family.IMAGE_READER is None:
            return
        if self.image_reader is None:
            raise ValueError(
                f"image_prompt: {self.name} has nothing to read a picture with. Leave image_prompt out, or run the server with"
                " another BASE_MODEL."
            )
        if not (WEIGHTS / self.image_reader / INDEX).is_file():
            raise ValueError(
                f"image_prompt: {self.name} reads pictures by {self.image_reader}, whose weights are not here. Run"
                f" script/download-weights {self.image_reader}, or leave image_prompt out."
            )

    @property
    def image_prompt_tokens(self) -> int:
        """The most that an image prompt takes; 0 where this base cannot be given one."""
        if self.family.IMAGE_READER is not None and self.image_reader is None:
            return 0
        return self.family.image_prompt_tokens(self.sampling_side, self.size_multiple)

    @property
    def image_reader_bytes(self) -> int:
        """Of weights that read image prompts beside the base's own; 0 where there are none, or they were not downloaded."""
        if self.family.IMAGE_READER is None or self.image_reader is None:
            return 0
        return sum(path.stat().st_size for path in (WEIGHTS / self.image_reader).glob("*/*.safetensors"))

    @property
    def size_multiple(self) -> int:
        """Image sides are multiples of this, in pixels: the VAE's downscale, times the transformer's 2x2 patches."""
        config = json.loads((self.folder / "vae" / "config.json").read_text())
        return 2 ** len(config["block_out_channels"])

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the text encoder which reads the whole prompt; takes no time."""
        return AutoTokenizer.from_pretrained(self.folder / self.family.TOKENIZER)

    def characters_read(self, text: str) -> int:
        """How many characters of a text the text encoder reads, from the first."""
        return self.family.characters_read(self.tokenizer, text, self.max_sequence_length)

    def load_text_encoders(self) -> DiffusionPipeline:
        """Text encoders and tokenizers, as a pipeline with nothing else in it."""
        load = self.family.PIPELINE.from_pretrained
        encoders = self._part("text encoders", lambda: load(self.folder, transformer=None, vae=None, dtype=weight_dtype()))
        return encoders.to(device())

    def load_vae(self) -> nn.Module:
        vae = self._part("VAE", lambda: self.family.VAE.from_pretrained(self.folder / "vae", dtype=weight_dtype()))
        return vae.requires_grad_(False).to(device())

    def load_transformer(self, precision: str | None = None) -> nn.Module:
        """The transformer, frozen; its block linears quantised where ``precision`` is one of `quantise.PRECISIONS`."""
        load = self.family.TRANSFORMER.from_pretrained
        model = self._part("transformer", lambda: load(self.folder / "transformer", dtype=weight_dtype()))
        model.requires_grad_(False)
        if precision in PRECISIONS:
            return quantise(model, precision, device())
        return model.eval().to(device())

    def _part(self, name: str, load: Callable[[], Part]) -> Part:
        with default_dtype_kept():
            return self.warm.part(self.fingerprint, name, load) if self.warm else load()

    def meta_transformer(self) -> nn.Module:
        """The transformer on the meta device: every shape and no weight, in a tenth of a second."""
        with torch.device("meta"):
            return self.family.TRANSFORMER.from_config(self.transformer_config)

    def meta_parts(self) -> dict[str, nn.Module]:
        """The pipeline's models on the meta device, by the names of ``model_index.json``."""
        parts = {name: found for name, found in self.model_index.items() if isinstance(found, list) and found[0]}
        models = {}
        for name, (library, kind) in parts.items():
            config = self.folder / name / "config.json"
            if not config.is_file():  # a tokenizer, a scheduler
                continue
            with torch.device("meta"):
                if library == "transformers":
                    model_class = getattr(transformers, kind)
                    models[name] = model_class(model_class.config_class.from_pretrained(self.folder / name))
                else:
                    models[name] = getattr(diffusers, kind).from_config(json.loads(config.read_text()))
        return models

    def load_scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        return FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder / "scheduler")

    def load_pipeline(self, placement: Placement = RESIDENT) -> DiffusionPipeline:
        """Everything, for sampling."""
        with default_dtype_kept():
            pipeline = self.family.PIPELINE.from_pretrained(self.folder, dtype=weight_dtype())
        place(pipeline, self.family.TEXT_PARTS, placement, device())
        return pipeline

    def read_image(self, reader: DiffusionPipeline, image: Image.Image) -> ImagePrompt:
        """What the base sees of a picture, upright and in RGB, of any size."""
        read = self.family.encode_image_prompt(reader, image, self.sampling_side)
        return replace(read, guided=self.image_prompt_guided)

    def load_image_reader(self, pipeline: DiffusionPipeline, placement: Placement = RESIDENT) -> DiffusionPipeline:
        """What `Family.encode_image_prompt` reads with: a pipeline of its own, loaded here and held as ``placement`` holds the
        text encoders, or else the base's ``pipeline``.

        Raises:
            ValueError: this base has none, or its weights were not downloaded.
        """
        self.require_reads_images()
        if self.family.IMAGE_READER is None or self.image_reader is None:
            return pipeline
        with default_dtype_kept():
            reader = self.family.IMAGE_READER.from_pretrained(WEIGHTS / self.image_reader, dtype=weight_dtype())
        place(reader, tuple(reader.components), placement, device())
        return reader

    def load_pipeline_around(self, transformer: nn.Module) -> DiffusionPipeline:
        """A pipeline for sampling with a transformer that is there already; prompts come to it as embeddings."""
        parts = {"scheduler": self.load_scheduler(), "vae": self.load_vae(), "transformer": transformer}
        facts = {name: value for name, value in self.model_index.items() if name[0] != "_" and not isinstance(value, list)}
        pipeline = self.family.PIPELINE(**parts, **dict.fromkeys(self.family.TEXT_PARTS), **facts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def choose_base(weights: Path = WEIGHTS) -> Base:
    """The base that ``BASE_MODEL`` names (a folder under ``weights/``, or a path); without it, FLUX.2-klein-base-4B where it
    was downloaded, else FLUX.1-dev where that was, else the embedded base. The log says which.

    Raises:
        ValueError: ``BASE_MODEL`` names no base, or one that was not downloaded.
    """
    folder, reason = BASES.choose(weights)
    base = Base.open(folder)
    log.info("Base: %s %s (%s)", base.name, base.version, reason)
    return base
