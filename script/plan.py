"""Print how a training of a base runs on cards of several sizes, without weights or GPU: peak memory and FLOP. Run it as
script/plan.

`--check` holds the formulas that say so against a trace of the step on fake tensors, for several numbers of checkpointed
blocks. An int8 base is traced as it is; of an nf4 one only the weights are known, since bitsandbytes quantises no fake tensor.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping

import torch
from diffusers.utils import logging

from finetuner.training.activations import checkpoint_blocks
from finetuner.training.costs import Sizes, StepSize, peak_bytes, step_flop, token_count
from finetuner.training.plan import GIB, Plan, choose_plan
from finetuner.training.recipe import Recipe
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
# GiB that cards report as their whole memory, the smallest of each class, by the GB that they are sold with: H100, L40S, L4,
# RTX 4080, RTX 3060.
CARDS = {80: 79.1, 48: 44.4, 24: 22.0, 16: 15.6, 12: 11.7}


def main() -> None:
    options = parse()
    logging.set_verbosity_error()  # diffusers warns of the cast to bfloat16
    config = BASES[options.base]
    if options.drawing:
        return print_drawing(options.base, config)
    sizes = Sizes.of(on_meta(config))
    billions, blocks = (sizes.block_weights + sizes.other_weights) / 1e9, len(sizes.order)
    print(f"{options.base}: {billions:.2f} B parameters, {blocks} blocks. LoRA of rank {RANK}, {Recipe.batch_size} images.\n")
    cases = itertools.product(options.types, options.sides)
    if options.check:
        print_row(["type", "base", "side", "images", "checkpointed", "peak GiB", "formula", "TFLOP", "formula"], head=True)
        for finetune_type, side in cases:
            for precision in ("bfloat16", "int8") if finetune_type == "lora" else ("bfloat16",):
                for checkpointed in (0, blocks // 3, 2 * blocks // 3, blocks - 1):
                    print_row(checked(config, sizes, step_of(finetune_type, side, 1), precision, checkpointed))
    else:
        print_row(["type", "side", *(f"{card} GB" for card in CARDS), "TFLOP a step"], head=True)
        for finetune_type, side in cases:
            print_row([finetune_type, str(side), *planned(config, step_of(finetune_type, side, Recipe.batch_size))])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="script/plan", description="How a training of a base runs, as a table.")
    parser.add_argument("base", nargs="?", default="FLUX.1-dev", choices=BASES, help="default: FLUX.1-dev")
    parser.add_argument("--type", dest="types", nargs=1, choices=TYPES, default=TYPES, help="default: both")
    parser.add_argument("--side", dest="sides", nargs=1, type=int, choices=SIDES, default=SIDES, help="pixels; default: all")
    parser.add_argument(
        "--check", action="store_true", help="show how far the formulas that jobs decide by are from a trace, in percent"
    )
    parser.add_argument("--drawing", action="store_true", help="show what drawing takes, not training")
    return parser.parse_args()


def step_of(finetune_type: str, side: int, batch_size: int) -> StepSize:
    return StepSize(finetune_type, RANK, token_count(side, SIZE_MULTIPLE, TEXT_TOKENS), batch_size, torch.bfloat16)


def planned(config: Mapping, step: StepSize) -> Iterator[str]:
    """A cell for each card, and the FLOP of a step on the largest and on the smallest card that runs it."""
    transformer, flop = on_meta(config), []
    for gib in CARDS.values():
        try:
            plan = choose_plan(transformer, step, int(gib * GIB))
        except ValueError:
            yield "refused"
            continue
        flop.append(plan.step_flop / 1e12)
        yield in_words(plan)
    yield " to ".join(f"{teraflop:.0f}" for teraflop in dict.fromkeys((flop[0], flop[-1]))) if flop else "-"


def in_words(plan: Plan) -> str:
    parts = [plan.base_precision] if plan.base_precision in ("int8", "nf4") else []
    parts += [f"{plan.checkpointed_blocks} checkpointed"] if plan.checkpointed_blocks else []
    parts += [f"{plan.micro_batch} x {plan.accumulation}"] if plan.accumulation > 1 else []
    return f"{', '.join(parts) or 'as it is'} ({plan.peak_bytes / GIB:.1f} GiB)"


def checked(config: Mapping, sizes: Sizes, step: StepSize, precision: str, checkpointed: int) -> list[str]:
    transformer = prepared(config, step.finetune_type, RANK, step.dtype, precision)
    checkpoint_blocks(transformer, checkpointed)
    traced = trace(transformer, step.tokens - TEXT_TOKENS, TEXT_TOKENS, step.batch_size)
    peak, flop = peak_bytes(sizes, step, precision, checkpointed), step_flop(sizes, step, checkpointed)
    side = SIZE_MULTIPLE * math.isqrt(step.tokens - TEXT_TOKENS)
    cells = [step.finetune_type, precision, str(side), str(step.batch_size), str(checkpointed)]
    cells += [f"{traced.peak_bytes / GIB:.2f}", f"{100 * (peak / traced.peak_bytes - 1):+.1f} %"]
    return [*cells, f"{traced.flop / 1e12:.1f}", f"{100 * (flop / traced.flop - 1):+.1f} %"]


def print_row(cells: list[str], head: bool = False) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)
    if head:
        print_row(["---"] * len(cells))


if __name__ == "__main__":
    main()
