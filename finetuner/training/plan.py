"""What a training step needs in memory, and the cheapest way to run it on the device that is here.

A closed formula, so that a job decides in a moment. Its constants count what the step keeps for its backward pass; they were
read off a trace of the step itself on fake tensors, and `script/plan --check` prints how far the two are apart. Those of a
block are its family's (`finetuner.bases`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from finetuner.bases import (
    QUANTISED,
    BlockMemory,
    block_linears,
    device_for,
    family_of,
    quantised_bytes,
    target_names,
    usable_bytes,
)

GIB = 1 << 30
KINDS = ("double", "single")  # of blocks, in the order in which they run

# Adafactor's temporaries, bytes per weight of the matrix in hand, by bytes per value: gradient and float32 copies.
ADAFACTOR = {2: 16, 4: 8}


@dataclass(frozen=True)
class StepSize:
    """What decides how much memory a training step takes, but for the transformer."""

    finetune_type: str
    rank: int
    tokens: int  # of the largest image, text included
    batch_size: int
    dtype: torch.dtype  # the base's weights as they are loaded


@dataclass(frozen=True)
class Plan:
    """How to run a training step: ``accumulation`` times ``micro_batch`` images make the recipe's batch."""

    base_precision: str  # the base's own ("bfloat16", "float32"), or "int8", or "nf4"
    checkpointing: bool
    micro_batch: int
    accumulation: int
    peak_bytes: int  # of all tensors alive at once, by the formula; the margin comes on top


def token_count(side: int, size_multiple: int, text_tokens: int) -> int:
    """Tokens of an image with the area of a square of ``side`` pixels, and of its prompt."""
    return round(side / size_multiple) ** 2 + text_tokens


def choose_plan(transformer: nn.Module, step: StepSize, memory_bytes: int) -> Plan:
    """The cheapest way to run ``step`` in ``memory_bytes``, the device's total (what is free at the moment would make two runs
    of a job differ).

    In order of cost: the batch split into smaller ones whose gradients add up (the same FLOP, and a single image of 512 px is
    1,536 tokens, plenty for a matrix product), then gradient checkpointing (a second forward: 45 % more FLOP for a LoRA, 33 %
    for full), then a quantised base (another model: int8 rounds a weight to 1/127 of its row's largest, nf4 to one of 16
    levels). A full fine-tune's gradients are applied inside backward, so they cannot add up, and its result is the
    difference to the true base: splitting and quantising are for a LoRA only.

    Args:
        transformer: the base's; on the meta device will do.

    Raises:
        ValueError: nothing fits; says how much is needed, how much there is, and what would fit.
    """
    sizes = Sizes.of(transformer)
    usable = usable_bytes(memory_bytes)
    for plan in _plans(sizes, step):
        if plan.peak_bytes <= usable:
            return plan
    raise ValueError(_refusal(sizes, step, memory_bytes, needed=plan.peak_bytes))  # the last way needs the least


def _plans(sizes: Sizes, step: StepSize) -> Iterator[Plan]:
    """All ways to run the job, cheapest first."""
    lora = step.finetune_type == "lora"
    own = native_precision(step.dtype)
    ways = [(own, False), (own, True)] + [(precision, True) for precision in QUANTISED if lora]
    micro_batches = [n for n in range(step.batch_size, 0, -1) if step.batch_size % n == 0] if lora else [step.batch_size]
    for precision, checkpointing in ways:
        for micro_batch in micro_batches:
            part = replace(step, batch_size=micro_batch)
            peak = peak_bytes(sizes, part, precision, checkpointing)
            if not lora:
                peak = max(peak, distillation_bytes(sizes, part, checkpointing))
            yield Plan(precision, checkpointing, micro_batch, step.batch_size // micro_batch, peak)


def _refusal(sizes: Sizes, step: StepSize, memory_bytes: int, needed: int) -> str:
    usable = usable_bytes(memory_bytes)

    def fits(step: StepSize) -> bool:
        return any(plan.peak_bytes <= usable for plan in _plans(sizes, step))

    refusal = (
        f"finetune_type: {step.finetune_type} needs {needed / GIB:.1f} GiB at the least, and of this device's"
        f" {memory_bytes / GIB:.1f} GiB {usable / GIB:.1f} GiB can be used."
    )
    if step.finetune_type != "lora" and fits(replace(step, finetune_type="lora")):
        return f"{refusal} finetune_type lora would fit."
    if fits(replace(step, tokens=step.tokens // 2)):
        return f"{refusal} Images of half the area would fit: try priority speed."
    return f"{refusal} Use a device with {math.ceil(device_for(needed) / GIB)} GiB or more."


def native_precision(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Sizes:
    """Counts of a transformer's weights."""

    width: int
    blocks: dict[str, int]  # by kind
    block_weights: int  # of the blocks' linears without biases, modulation included: what a quantised base rounds
    block_rows: int  # their output features
    other_weights: int
    largest: int  # weights of the largest of those linears
    targets: dict[str, list[tuple[int, int]]]  # by kind: out and in features of each linear that is trained

    memory: BlockMemory

    @classmethod
    def of(cls, transformer: nn.Module) -> Sizes:
        linears = {name: linear.weight for name, linear in block_linears(transformer).items()}
        targets: dict[str, list[tuple[int, int]]] = {kind: [] for kind in KINDS}
        for name in target_names(transformer):
            targets["single" if name.startswith("single") else "double"].append(tuple(linears[name].shape))
        block_weights = sum(weight.numel() for weight in linears.values())
        return cls(
            width=transformer.inner_dim,
            blocks={"double": len(transformer.transformer_blocks), "single": len(transformer.single_transformer_blocks)},
            block_weights=block_weights,
            block_rows=sum(weight.shape[0] for weight in linears.values()),
            other_weights=sum(p.numel() for p in transformer.parameters()) - block_weights,
            largest=max(weight.numel() for weight in linears.values()),
            targets=targets,
            memory=family_of(transformer).MEMORY,
        )


def base_bytes(sizes: Sizes, precision: str, dtype: torch.dtype) -> int:
    """The frozen base's weights. A model for the quantised ones: no such base is traced.

    The backends expand one linear at a time to ``dtype``, forward and backward, so that one such copy counts with them.
    """
    if precision not in QUANTISED:
        return (sizes.block_weights + sizes.other_weights) * dtype.itemsize
    quantised = quantised_bytes(sizes.block_weights, sizes.block_rows, precision)
    return quantised + (sizes.other_weights + sizes.largest) * dtype.itemsize


def peak_bytes(sizes: Sizes, step: StepSize, precision: str, checkpointing: bool) -> int:
    """All tensors alive at once in a training step of ``step.batch_size`` images, at the moment when that is most."""
    trained, gradients, state = _trained_bytes(sizes, step)
    static = base_bytes(sizes, precision, step.dtype) + sum(trained.values()) + state
    kept, passing = _block_bytes(sizes, step)
    if not checkpointing:
        return static + sum(sizes.blocks[kind] * kept[kind] for kind in KINDS) + passing["single"]
    # Only each block's input is kept. Backward goes from the last single block to the first double one: inputs go, a LoRA's
    # gradients come.
    inputs = step.batch_size * step.tokens * sizes.width * step.dtype.itemsize
    doubles, singles = sizes.blocks["double"], sizes.blocks["single"]
    return static + max(
        (doubles + singles + 1) * inputs + kept["single"] + passing["single"],
        (doubles + 1) * inputs + gradients["single"] + kept["double"] + passing["double"],
        inputs + gradients["single"] + gradients["double"] + kept["double"] + passing["double"],
        2 * (gradients["single"] + gradients["double"]),  # AdamW's step, with a temporary for each
    )


def distillation_bytes(sizes: Sizes, step: StepSize, checkpointing: bool) -> int:
    """The step that trains an extracted LoRA against the full fine-tune: a LoRA's step, with the deltas beside it."""
    deltas = sum(_matrix_bytes(sizes, step, kind) for kind in KINDS)
    return deltas + peak_bytes(sizes, replace(step, finetune_type="lora"), native_precision(step.dtype), checkpointing)


def _trained_bytes(sizes: Sizes, step: StepSize) -> tuple[dict[str, int], dict[str, int], int]:
    """By kind of block the trained weights and the gradients that pile up; and the optimizer's state."""
    if step.finetune_type == "lora":  # all float32, Adam's two moments as well
        lora = {kind: 4 * step.rank * sum(out + in_ for out, in_ in sizes.targets[kind]) for kind in KINDS}
        return lora, lora, 2 * sum(lora.values())
    # Gradients are applied one by one. Adafactor's state, a row and a column per matrix, is nothing beside them.
    return {kind: _matrix_bytes(sizes, step, kind) for kind in KINDS}, dict.fromkeys(KINDS, 0), 0


def _block_bytes(sizes: Sizes, step: StepSize) -> tuple[dict[str, int], dict[str, int]]:
    """What one block of each kind keeps for backward, and what else is alive while it is computed."""
    value, tokens = step.dtype.itemsize, step.batch_size * step.tokens
    unit = tokens * sizes.width
    passing = sizes.memory.passing[step.finetune_type][value] * unit
    kept, alive = {}, {}
    for kind in KINDS:
        if step.finetune_type == "lora":
            linears = sizes.targets[kind][: len(sizes.targets[kind]) // sizes.blocks[kind]]  # of one block
            met = len(linears) // sizes.memory.streams[kind]  # by a token
            own = value * step.rank * met * tokens  # each LoRA's A x
            if value < 4:
                own += value * step.rank * sum(out + in_ for out, in_ in linears)  # A and B as they are cast
            alive[kind] = passing
        else:
            own = _matrix_bytes(sizes, step, kind) // sizes.blocks[kind]  # W + delta, for the gradient of its input
            alive[kind] = max(passing, ADAFACTOR[value] * max(out * in_ for out, in_ in sizes.targets[kind]))
        kept[kind] = value * (sizes.memory.kept[kind] + sizes.memory.inputs[kind]) * unit + own
    return kept, alive


def _matrix_bytes(sizes: Sizes, step: StepSize, kind: str) -> int:
    return step.dtype.itemsize * sum(out * in_ for out, in_ in sizes.targets[kind])
