"""Which FLUX base to build on, and its parts, loaded one at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetuner.quantise import PRECISIONS, quantise

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "weights"
PRODUCTION = "FLUX.1-dev"
EMBEDDED = "flux-emoji"
MANIFEST = "base.json"
EDGE_BYTES = 1 << 20  # hashed at each end of a weight file: all 24 GB would take a minute


@dataclass(frozen=True)
class Base:
    """A folder in diffusers' layout, and what its ``base.json`` says of it."""

    folder: Path
    name: str
    version: str
    resolutions: dict[str, tuple[int, ...]]  # by priority: sides of the square areas trained on, in pixels
    sampling_side: int  # side of the square area that images are made at, in pixels
    largest_side: int  # side of the largest square area that the base makes well, in pixels
    max_sequence_length: int  # T5 tokens: FLUX has no text mask, so training and use must pad alike
    training_guidance: float
    learning_rate_scale: float
    learning_rate_scale_reason: str
    caption_form: str
    licence: str

    @classmethod
    def open(cls, folder: Path) -> Base:
        """Read a base's manifest; loads no weights.

        Raises:
            ValueError: there is no base in the folder, or its weights were not downloaded.
        """
        manifest = folder / MANIFEST
        if not manifest.is_file():
            raise ValueError(f"BASE_MODEL: {folder} has no base.json, so it is not a base. Known here: {', '.join(known())}.")
        if not (folder / "model_index.json").is_file():
            raise ValueError(
                f"BASE_MODEL: the weights of {folder.name} are not here. Run script/download-weights {folder.name}."
            )
        fields = json.loads(manifest.read_text())
        return cls(
            folder=folder,
            name=fields["name"],
            version=fields["version"],
            resolutions={priority: tuple(sides) for priority, sides in fields["resolutions"].items()},
            sampling_side=fields["sampling"]["side"],
            largest_side=fields["sampling"]["largest_side"],
            max_sequence_length=fields["max_sequence_length"],
            training_guidance=fields["training_guidance"],
            learning_rate_scale=fields["learning_rate_scale"],
            learning_rate_scale_reason=fields["learning_rate_scale_reason"],
            caption_form=fields["caption_form"],
            licence=fields["licence"],
        )

    @cached_property
    def fingerprint(self) -> str:
        return weights_fingerprint(self.folder, MANIFEST)

    def describe(self) -> dict:
        return {"name": self.name, "version": self.version, "fingerprint": self.fingerprint}

    @cached_property
    def vae_config(self) -> dict:
        return json.loads((self.folder / "vae" / "config.json").read_text())

    @cached_property
    def transformer_config(self) -> dict:
        return json.loads((self.folder / "transformer" / "config.json").read_text())

    @property
    def size_multiple(self) -> int:
        """Image sides are multiples of this, in pixels: the VAE's downscale, times the transformer's 2x2 patches."""
        return 2 ** len(self.vae_config["block_out_channels"])

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """T5's alone, which takes no time."""
        return AutoTokenizer.from_pretrained(self.folder / "tokenizer_2")

    def load_text_encoders(self) -> FluxPipeline:
        """CLIP, T5 and their tokenizers, as a FluxPipeline with nothing else in it."""
        return FluxPipeline.from_pretrained(self.folder, transformer=None, vae=None, dtype=weight_dtype()).to(device())

    def load_vae(self) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self.folder / "vae", dtype=weight_dtype()).requires_grad_(False).to(device())

    def load_transformer(self, precision: str | None = None) -> FluxTransformer2DModel:
        """The transformer, frozen; its block linears quantised where ``precision`` is one of `quantise.PRECISIONS`."""
        model = FluxTransformer2DModel.from_pretrained(self.folder / "transformer", dtype=weight_dtype()).requires_grad_(False)
        if precision in PRECISIONS:
            return quantise(model, precision, device())
        return model.eval().to(device())

    def load_scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        return FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder / "scheduler")

    def load_pipeline(self) -> FluxPipeline:
        """Everything, for sampling."""
        pipeline = FluxPipeline.from_pretrained(self.folder, dtype=weight_dtype()).to(device())
        for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            part.requires_grad_(False).eval()
        return pipeline


def weights_fingerprint(folder: Path, manifest: str) -> str:
    """SHA-256 over the name, size and both ends of every file of a model but its manifest: tells one from another at once."""
    digest = hashlib.sha256()
    suffixes = (".json", ".safetensors", ".txt", ".model", ".jinja")  # configurations, weights, vocabularies, templates
    for path in sorted(p for p in folder.rglob("*") if p.suffix in suffixes and p.name != manifest):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE_BYTES))
            file.seek(max(0, size - EDGE_BYTES))
            digest.update(file.read())
    return digest.hexdigest()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_memory_bytes() -> int:
    """All of the device's memory: what is free at the moment would make two runs of a job differ."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def weight_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32  # most CPUs emulate bf16


def known(weights: Path = WEIGHTS) -> list[str]:
    return sorted(manifest.parent.name for manifest in weights.glob(f"*/{MANIFEST}"))


def choose_base(weights: Path = WEIGHTS) -> Base:
    """The base that ``BASE_MODEL`` names (a folder under ``weights/``, or a path); without it, FLUX.1-dev where it was
    downloaded, else the embedded base. The log says which.

    Raises:
        ValueError: ``BASE_MODEL`` names no base, or one that was not downloaded.
    """
    name = os.environ.get("BASE_MODEL")
    if name:
        folder = weights / name if (weights / name).is_dir() else Path(name)
    else:
        downloaded = (weights / PRODUCTION / "model_index.json").is_file()
        folder = weights / (PRODUCTION if downloaded else EMBEDDED)
    base = Base.open(folder)
    log.info("Base: %s %s (%s)", base.name, base.version, "chosen by BASE_MODEL" if name else "default")
    return base
