"""What a training step needs in memory, and the cheapest way to run it on the device that is here.

A closed formula, so that a job decides in a moment. Its constants count what the step keeps for its backward pass; they were
read off a trace of the step itself on fake tensors, and `script/plan --check` prints how far the two are apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from finetuner.adapter import target_names

GIB = 1 << 30
KINDS = ("double", "single")  # of blocks, in the order in which they run
STREAMS = {"double": 2, "single": 1}  # text and image apart, with linears of their own; then together

# Bytes per weight of a quantised linear. int8: a byte, and a float32 scale per row (counted apart). nf4: half a byte, a byte
# per 64 weights for their scale, and a float32 per 256 such scales; 0.516 is what bitsandbytes' weights take.
QUANTISED = {"int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}

# What a block keeps for backward, per token and in widths of the model: the inputs of LayerNorm, RMSNorm and GELU, and
# attention's q, k, v and output. Double blocks have a LayerNorm more, before the MLP.
KEPT = {"double": 12, "single": 11}
# Its linears' inputs, for the gradient of what is trained. Linears that read the same tensor share it; with a float32 LoRA
# on a bfloat16 base they do not, since peft makes each of them a float32 copy: most of what such a step keeps.
SHARED_INPUTS = {"double": 7, "single": 6}
COPIED_INPUTS = {"double": 9, "single": 9}
# What else is alive in the block that is being computed, per token and width: bytes, by bytes per value.
PASSING = {"lora": {2: 30, 4: 40}, "full": {2: 13, 4: 27}}
# Adafactor's temporaries, bytes per weight of the matrix in hand, by bytes per value: gradient and float32 copies.
ADAFACTOR = {2: 16, 4: 8}

# Memory that is not ours to fill. Both are allowances, not measurements: CUDA's context, its kernels and cuBLAS's workspaces
# take about half a GiB; the caching allocator hands out 2 MiB blocks and splits them, and buckets of several sizes (some
# 1 % larger than their square) leave gaps that fit nothing.
CONTEXT_BYTES = 3 * GIB // 4
FRAGMENTATION = 0.05


@dataclass(frozen=True)
class Job:
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


def usable_bytes(memory_bytes: int) -> int:
    """What of a device's memory tensors may take."""
    return int(memory_bytes * (1 - FRAGMENTATION)) - CONTEXT_BYTES


def choose(config: Mapping, job: Job, memory_bytes: int) -> Plan:
    """The cheapest way to run ``job`` in ``memory_bytes``, the device's total (what is free at the moment would make two runs
    of a job differ).

    In order of cost: the batch split into smaller ones whose gradients add up (the same FLOP, and a single image of 512 px is
    1,536 tokens, plenty for a matrix product), then gradient checkpointing (a second forward: 45 % more FLOP for a LoRA, 33 %
    for full), then a quantised base (another model: int8 rounds a weight to 1/127 of its row's largest, nf4 to one of 16
    levels). A full fine-tune's gradients are applied inside backward, so they cannot add up, and its result is the
    difference to the true base: splitting and quantising are for a LoRA only.

    Args:
        config: of the FluxTransformer2DModel.

    Raises:
        ValueError: nothing fits; says how much is needed, how much there is, and what would fit.
    """
    sizes = Sizes.of(config)
    usable = usable_bytes(memory_bytes)
    for plan in _plans(sizes, job):
        if plan.peak_bytes <= usable:
            return plan
    raise ValueError(_refusal(sizes, job, memory_bytes, needed=plan.peak_bytes))  # the last way needs the least


def _plans(sizes: Sizes, job: Job) -> Iterator[Plan]:
    """All ways to run the job, cheapest first."""
    lora = job.finetune_type == "lora"
    own = native_precision(job.dtype)
    ways = [(own, False), (own, True)] + [(precision, True) for precision in QUANTISED if lora]
    micro_batches = [n for n in range(job.batch_size, 0, -1) if job.batch_size % n == 0] if lora else [job.batch_size]
    for precision, checkpointing in ways:
        for micro_batch in micro_batches:
            part = replace(job, batch_size=micro_batch)
            peak = peak_bytes(sizes, part, precision, checkpointing)
            if not lora:
                peak = max(peak, distillation_bytes(sizes, part, checkpointing))
            yield Plan(precision, checkpointing, micro_batch, job.batch_size // micro_batch, peak)


def _refusal(sizes: Sizes, job: Job, memory_bytes: int, needed: int) -> str:
    usable = usable_bytes(memory_bytes)

    def fits(job: Job) -> bool:
        return any(plan.peak_bytes <= usable for plan in _plans(sizes, job))

    refusal = (
        f"finetune_type: {job.finetune_type} needs {needed / GIB:.1f} GiB at the least, and of this device's"
        f" {memory_bytes / GIB:.1f} GiB {usable / GIB:.1f} GiB can be used."
    )
    if job.finetune_type != "lora" and fits(replace(job, finetune_type="lora")):
        return f"{refusal} finetune_type lora would fit."
    if fits(replace(job, tokens=job.tokens // 2)):
        return f"{refusal} Images of half the area would fit: try priority speed."
    device = math.ceil((needed + CONTEXT_BYTES) / (1 - FRAGMENTATION) / GIB)
    return f"{refusal} Use a device with {device} GiB or more."


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

    @classmethod
    def of(cls, config: Mapping) -> Sizes:
        """Count on the meta device: right for whatever diffusers makes of the configuration, in a tenth of a second."""
        with torch.device("meta"):
            transformer = FluxTransformer2DModel.from_config(config)
        linears = {n: m.weight for n, m in transformer.named_modules() if isinstance(m, nn.Linear) and "blocks." in n}
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
        )


def base_bytes(sizes: Sizes, precision: str, dtype: torch.dtype) -> int:
    """The frozen base's weights. A model for the quantised ones: no such base is traced.

    The backends expand one linear at a time to ``dtype``, forward and backward, so that one such copy counts with them.
    """
    if precision not in QUANTISED:
        return (sizes.block_weights + sizes.other_weights) * dtype.itemsize
    scales = 4 * sizes.block_rows if precision == "int8" else 0
    quantised = math.ceil(sizes.block_weights * QUANTISED[precision]) + scales
    return quantised + (sizes.other_weights + sizes.largest) * dtype.itemsize


def peak_bytes(sizes: Sizes, job: Job, precision: str, checkpointing: bool) -> int:
    """All tensors alive at once in a training step of ``job.batch_size`` images, at the moment when that is most."""
    trained, gradients, state = _trained_bytes(sizes, job)
    static = base_bytes(sizes, precision, job.dtype) + sum(trained.values()) + state
    kept, passing = _block_bytes(sizes, job)
    if not checkpointing:
        return static + sum(sizes.blocks[kind] * kept[kind] for kind in KINDS) + passing["single"]
    # Only each block's input is kept. Backward goes from the last single block to the first double one: inputs go, a LoRA's
    # gradients come.
    inputs = job.batch_size * job.tokens * sizes.width * job.dtype.itemsize
    doubles, singles = sizes.blocks["double"], sizes.blocks["single"]
    return static + max(
        (doubles + singles + 1) * inputs + kept["single"] + passing["single"],
        (doubles + 1) * inputs + gradients["single"] + kept["double"] + passing["double"],
        inputs + gradients["single"] + gradients["double"] + kept["double"] + passing["double"],
        2 * (gradients["single"] + gradients["double"]),  # AdamW's step, with a temporary for each
    )


def distillation_bytes(sizes: Sizes, job: Job, checkpointing: bool) -> int:
    """The step that trains an extracted LoRA against the full fine-tune: a LoRA's step, with the deltas beside it."""
    deltas = sum(_matrix_bytes(sizes, job, kind) for kind in KINDS)
    return deltas + peak_bytes(sizes, replace(job, finetune_type="lora"), native_precision(job.dtype), checkpointing)


def _trained_bytes(sizes: Sizes, job: Job) -> tuple[dict[str, int], dict[str, int], int]:
    """By kind of block the trained weights and the gradients that pile up; and the optimizer's state."""
    if job.finetune_type == "lora":  # all float32, Adam's two moments as well
        lora = {kind: 4 * job.rank * sum(out + in_ for out, in_ in sizes.targets[kind]) for kind in KINDS}
        return lora, lora, 2 * sum(lora.values())
    # Gradients are applied one by one. Adafactor's state, a row and a column per matrix, is nothing beside them.
    return {kind: _matrix_bytes(sizes, job, kind) for kind in KINDS}, dict.fromkeys(KINDS, 0), 0


def _block_bytes(sizes: Sizes, job: Job) -> tuple[dict[str, int], dict[str, int]]:
    """What one block of each kind keeps for backward, and what else is alive while it is computed."""
    value, tokens = job.dtype.itemsize, job.batch_size * job.tokens
    unit = tokens * sizes.width
    passing = PASSING[job.finetune_type][value] * unit
    kept, alive = {}, {}
    for kind in KINDS:
        if job.finetune_type == "lora":
            inputs = 4 * (COPIED_INPUTS if value < 4 else SHARED_INPUTS)[kind]
            linears = len(sizes.targets[kind]) // sizes.blocks[kind] // STREAMS[kind]  # that a token meets
            own, alive[kind] = 4 * job.rank * linears * tokens, passing  # each LoRA's A x
        else:
            inputs = value * SHARED_INPUTS[kind]
            own = _matrix_bytes(sizes, job, kind) // sizes.blocks[kind]  # W + delta, for the gradient of its input
            alive[kind] = max(passing, ADAFACTOR[value] * max(out * in_ for out, in_ in sizes.targets[kind]))
        kept[kind] = (value * KEPT[kind] + inputs) * unit + own
    return kept, alive


def _matrix_bytes(sizes: Sizes, job: Job, kind: str) -> int:
    return job.dtype.itemsize * sum(out * in_ for out, in_ in sizes.targets[kind])
