"""What the operator of a predict server chooses by the environment."""

from __future__ import annotations

import math
import os

import torch

from finetuner.bases import switch

ADAPTER_CACHE_GB = 8  # thirty LoRAs of rank 32 for FLUX.1-dev (262 MB each); on CUDA it is memory that cannot be swapped out


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


def compile_wanted() -> bool:
    """Whether a predict server compiles the transformer's blocks: as ``COMPILE`` says, else on a GPU, which earns the minutes
    back; a CPU hardly does.

    Raises:
        ValueError: it is neither.
    """
    asked = switch("COMPILE")
    return torch.cuda.is_available() if asked is None else asked


def safety_wanted() -> bool:
    """Whether pictures are checked before they are returned: ``SAFETY``, 1 or 0.

    Raises:
        ValueError: it is neither.
    """
    return switch("SAFETY") is not False
