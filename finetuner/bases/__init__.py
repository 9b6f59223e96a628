"""Which base to build on, its parts, and what differs between families of bases.

In: a folder of ``weights/``, named by ``BASE_MODEL``. Out: a `Base`, whose parts load one at a time, and whose `Family` knows
how its texts, latents and velocities are made. Begin with base.py; a new family is a module like flux1.py.
"""

# Before anything imports diffusers.
import finetuner.libraries  # noqa: F401

# isort: split
from finetuner.bases.base import Base, choose_base
from finetuner.bases.device import (
    device,
    device_for,
    device_memory_bytes,
    device_name,
    switch,
    usable_bytes,
    weight_dtype,
)
from finetuner.bases.families import family_of, family_with_linears
from finetuner.bases.family import (
    BlockMemory,
    Family,
    Grid,
    Guidance,
    ImagePrompt,
    KohyaBlocks,
    LatentStatistics,
    Size,
    TextEmbeddings,
)
from finetuner.bases.linears import block_linears, target_names
from finetuner.bases.model_folder import ModelFolder, ModelKind
from finetuner.bases.placement import RESIDENT, Placement, streamed_to
from finetuner.bases.quantise import PRECISIONS, QUANTISED, quantised_bytes
from finetuner.bases.warm import WarmParts

__all__ = [
    "PRECISIONS",
    "QUANTISED",
    "RESIDENT",
    "Base",
    "BlockMemory",
    "Family",
    "Grid",
    "Guidance",
    "ImagePrompt",
    "KohyaBlocks",
    "LatentStatistics",
    "ModelFolder",
    "ModelKind",
    "Placement",
    "Size",
    "TextEmbeddings",
    "WarmParts",
    "block_linears",
    "choose_base",
    "device",
    "device_for",
    "device_memory_bytes",
    "device_name",
    "family_of",
    "family_with_linears",
    "quantised_bytes",
    "streamed_to",
    "switch",
    "target_names",
    "usable_bytes",
    "weight_dtype",
]
