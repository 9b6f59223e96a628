"""What the operator of a predict server chooses by the environment."""

from __future__ import annotations

import math
import os

import torch

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
    """Whether to compile the transformer's blocks: ``COMPILE``, 1 or 0. A GPU earns the minutes back, a CPU hardly.

    Raises:
        ValueError: it is neither.
    """
    return _switch("COMPILE", default=torch.cuda.is_available())


def safety_wanted() -> bool:
    """Whether pictures are checked before they are returned: ``SAFETY``, 1 or 0.

    Raises:
        ValueError: it is neither.
    """
    return _switch("SAFETY", default=True)


def _switch(variable: str, default: bool) -> bool:
    value = os.environ.get(variable, str(int(default)))
    if value not in ("0", "1"):
        raise ValueError(f"{variable}: {value!r} is neither 0 nor 1.")
    return value == "1"
