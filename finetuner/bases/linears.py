"""The linears of a transformer's blocks, by diffusers' names: which there are, and which a finetune changes."""

from __future__ import annotations

from torch import nn

from finetuner.bases.families import family_of

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")  # double and single ones, in every family


def block_linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    """The linears inside the double and single blocks, modulation included where it is theirs, by their full names (494 in
    FLUX.1)."""
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(BLOCKS)
    }


def target_names(transformer: nn.Module) -> list[str]:
    """Full names of the linears inside the double and single blocks, modulation left out (418 in FLUX.1,
    100 in FLUX.2 klein 4B, whose modulation lies outside them).

    Modulation acts on every token alike: trained on a few images, it moves every picture's colours. With it a finetune of
    flux-emoji comes out alike; of the image's attention alone, one of klein-emoji scores 0.232 ± 0.040 less of 0.604
    (benchmarks/RESULTS.md). Full names, since peft's suffix match on ``proj_out`` would also catch the transformer's own output
    layer.
    """
    return [name for name in block_linears(transformer) if not name.endswith(family_of(transformer).MODULATION)]
