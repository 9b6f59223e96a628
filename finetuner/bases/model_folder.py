"""Models in folders of ``weights/``: which are there, which one the environment chooses, and what tells one from another.

A base and a captioner are found alike: each is a folder with a manifest of ours and the files that diffusers or transformers
load.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from finetuner.paths import WEIGHTS

EDGE_BYTES = 1 << 20  # hashed at each end of a weight file: all 24 GB would take a minute

# What diffusers and transformers load from a folder, beside the weights.
LOADED = (
    "config.json",
    "generation_config.json",
    "scheduler_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "chat_template.jinja",
)
WEIGHT_FILES = ("model.safetensors", "diffusion_pytorch_model.safetensors")  # of transformers, of diffusers


@dataclass(frozen=True)
class ModelKind:
    """A kind of model: how its folders are told, and how one is chosen."""

    noun: str  # with its article
    variable: str  # of the environment: names a folder of ``weights/``, or a path
    manifest: str
    downloaded_last: str  # without this file the weights are not there, or not all of them
    production: tuple[str, ...]  # the first of these that was downloaded is the default
    embedded: str  # the default elsewhere

    def choose(self, weights: Path) -> tuple[Path, str]:
        """The folder of the model to use, and why this one."""
        if name := os.environ.get(self.variable):
            folder = weights / name if (weights / name).is_dir() else Path(name)
            return folder, f"chosen by {self.variable}"
        downloaded = (weights / name for name in self.production if self.is_downloaded(weights / name))
        return next(downloaded, weights / self.embedded), "default"

    def is_chosen(self) -> bool:
        """Whether the environment names one."""
        return bool(os.environ.get(self.variable))

    def read_manifest(self, folder: Path) -> dict:
        """What the folder's manifest says.

        Raises:
            ValueError: there is no such model in the folder, or its weights were not downloaded.
        """
        if not (folder / self.manifest).is_file():
            raise ValueError(
                f"{self.variable}: {folder} has no {self.manifest}, so it is not {self.noun}."
                f" Known here: {', '.join(self.known(WEIGHTS))}."
            )
        if not self.is_downloaded(folder):
            raise ValueError(
                f"{self.variable}: the weights of {folder.name} are not here. Run script/download-weights {folder.name}."
            )
        return json.loads((folder / self.manifest).read_text())

    def is_downloaded(self, folder: Path) -> bool:
        return (folder / self.downloaded_last).is_file()

    def known(self, weights: Path) -> list[str]:
        """Names of the folders that have a manifest, whether their weights were downloaded or not."""
        return sorted(manifest.parent.name for manifest in weights.glob(f"*/{self.manifest}"))


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model in it."""

    folder: Path
    name: str
    version: str
    licence: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the name, size and both ends of every file that is loaded: tells one model from another at once.

        A file that lies in the folder and is not loaded changes nothing.
        """
        digest = hashlib.sha256()
        for path in sorted(self.loaded_files()):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(self.folder)} {size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(EDGE_BYTES))
                file.seek(max(0, size - EDGE_BYTES))
                digest.update(file.read())
        return digest.hexdigest()

    def loaded_files(self) -> Iterable[Path]:
        return loaded_files(self.folder)

    def describe(self) -> dict:
        """What a finetune's manifest says of it."""
        return {"name": self.name, "version": self.version, "fingerprint": self.fingerprint}


def loaded_files(folder: Path) -> list[Path]:
    """The files that diffusers or transformers load from a folder: configurations, vocabularies, and the weights that the
    index names, or the one file that they are in."""
    files = [folder / name for name in LOADED]
    for name in WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = set(json.loads(index.read_text())["weight_map"].values())
            files += [index, *(folder / shard for shard in shards)]
        else:
            files.append(folder / name)
    return [path for path in files if path.is_file()]
