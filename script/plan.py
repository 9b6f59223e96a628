"""Print what a training step of a base takes, traced without weights or GPU: peak memory and FLOP. Run it as script/plan.

A trace holds a bfloat16 base. The columns for quantised bases exchange its weights for theirs (`finetuner.training.plan`'s
`base_bytes`); a full fine-tune has none, since its result is the difference to the true base.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping

import torch
from diffusers.utils import logging

from finetuner.training.plan import GIB, QUANTISED, Sizes, StepSize, base_bytes, peak_bytes, token_count
from script.plan_drawing import print_drawing
from script.trace_step import on_meta, prepared, trace

# What transformer/config.json says of them. FLUX.1-dev's: black-forest-labs/FLUX.1-dev; klein's: diffusers'
# scripts/convert_flux2_to_diffusers.py, which wrote them. A distilled base has the shape of the one it was made from.
FLUX_DEV = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
KLEIN_4B = {
    "_class_name": "Flux2Transformer2DModel",
    "in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 20,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "guidance_embeds": False,
}
KLEIN_9B = KLEIN_4B | {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288}
BASES = {
    "FLUX.1-dev": FLUX_DEV,
    "FLUX.1-Krea-dev": FLUX_DEV,
    "FLUX.2-klein-base-4B": KLEIN_4B,
    "FLUX.2-klein-base-9B": KLEIN_9B,
}

SIZE_MULTIPLE = 16  # pixels: the VAE's 8 times the transformer's 2
TEXT_TOKENS = 512
RANK = 32

TYPES = ("lora", "full")
SIDES = (512, 768, 1024)
BATCHES = (1, 2, 4)


def main() -> None:
    options = parse()
    logging.set_verbosity_error()  # diffusers warns of the cast to bfloat16
    config = BASES[options.base]
    if options.drawing:
        return print_drawing(options.base, config)
    sizes = Sizes.of(on_meta(config))
    parameters = sizes.block_weights + sizes.other_weights
    print(f"{options.base}: {parameters / 1e9:.2f} B parameters. LoRA of rank {RANK}. Peaks in GiB.\n")
    heads = ["type", "side", "batch", "checkpointing", "TFLOP", "bfloat16", *QUANTISED] + ["formula"] * options.check
    print_row(heads)
    print_row(["---"] * len(heads))
    for case in itertools.product(options.types, options.sides, BATCHES, (False, True)):
        print_row(row(config, sizes, *case, options.check))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/plan", description="What a training step of a base takes, as a table.")
    parser.add_argument("base", nargs="?", default="FLUX.1-dev", choices=BASES, help="default: FLUX.1-dev")
    parser.add_argument("--type", dest="types", nargs=1, choices=TYPES, default=TYPES, help="default: both")
    parser.add_argument("--side", dest="sides", nargs=1, type=int, choices=SIDES, default=SIDES, help="pixels; default: all")
    parser.add_argument(
        "--check", action="store_true", help="show how far the formula that jobs decide by is from the trace, in percent"
    )
    parser.add_argument("--drawing", action="store_true", help="show what drawing takes, not training")
    return parser.parse_args()


def row(
    config: Mapping, sizes: Sizes, finetune_type: str, side: int, batch_size: int, checkpointing: bool, check: bool
) -> list[str]:
    transformer = prepared(config, finetune_type, RANK, torch.bfloat16)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
    size = StepSize(finetune_type, RANK, token_count(side, SIZE_MULTIPLE, TEXT_TOKENS), batch_size, torch.bfloat16)
    step = trace(transformer, size.tokens - TEXT_TOKENS, TEXT_TOKENS, batch_size)
    own = base_bytes(sizes, "bfloat16", size.dtype)
    quantised = [step.peak_bytes - own + base_bytes(sizes, precision, size.dtype) for precision in QUANTISED]
    cells = [finetune_type, str(side), str(batch_size), "on" if checkpointing else "off", f"{step.flop / 1e12:.0f}"]
    cells.append(f"{step.peak_bytes / GIB:.1f}")
    cells += [f"{peak / GIB:.1f}" if finetune_type == "lora" else "-" for peak in quantised]
    if check:
        cells.append(f"{100 * (peak_bytes(sizes, size, 'bfloat16', checkpointing) / step.peak_bytes - 1):+.1f} %")
    return cells


def print_row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
