"""The families that are known here, and which one a base or a transformer belongs to."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from finetuner.bases import flux1, flux2
from finetuner.bases.family import Family

FAMILIES: tuple[Family, ...] = (flux1, flux2)


def family_named(pipeline_class: str) -> Family:
    """The family of a base, by the ``_class_name`` of its ``model_index.json``.

    Raises:
        ValueError: no family here has such a pipeline.
    """
    for family in FAMILIES:
        if family.PIPELINE.__name__ == pipeline_class:
            return family
    known = ", ".join(family.PIPELINE.__name__ for family in FAMILIES)
    raise ValueError(f"BASE_MODEL: its model_index.json names {pipeline_class}, and the bases known here are of {known}.")


def family_of(transformer: nn.Module) -> Family:
    """The family of a transformer, whatever adapters are in it."""
    return next(family for family in FAMILIES if isinstance(transformer, family.TRANSFORMER))


def family_with_linears(names: Iterable[str]) -> Family:
    """The family whose blocks have all of these linears, by the full names that diffusers gives them.

    Raises:
        ValueError: no family here has them all.
    """
    places = {tuple(name.split(".", 2)[::2]) for name in names}  # without the block's number
    for family in FAMILIES:
        blocks = family.KOHYA_BLOCKS.values()
        if places <= {(b.prefix, linear) for b in blocks for fused in b.linears.values() for linear in fused}:
            return family
    raise ValueError(f"no base known here has linears like {min(names)}.")
