"""Keep the rest of the model: some images of each batch come without the trigger word, and with the base's own velocity as
their target (the class images of DreamBooth, Ruiz et al. 2023, without a second set of pictures)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import FluxTransformer2DModel

from finetuner.adapter import set_strength
from finetuner.delta import set_deltas


@contextmanager
def as_the_base(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """The transformer without its adapter or its deltas, and without gradients: the teacher, at no memory of its own."""
    set_strength(transformer, 0.0)
    set_deltas(transformer, on=False)
    try:
        with torch.no_grad():
            yield
    finally:
        set_strength(transformer, 1.0)
        set_deltas(transformer, on=True)
