"""What a training step costs, in bytes and in FLOP.

Closed formulas, so that a job decides in a moment. The constants of the memory count what the step keeps for its backward pass;
they were read off a trace of the step itself on fake tensors, and `script/plan --check` prints how far the two are apart. Those
of a block are its family's (`finetuner.bases`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from finetuner.bases import QUANTISED, BlockMemory, block_linears, family_of, quantised_bytes, target_names

KINDS = ("double", "single")  # of blocks, in the order in which they run

# Adafactor's temporaries, bytes per weight of the matrix in hand, by bytes per value: gradient and float32 copies.
ADAFACTOR = {2: 16, 4: 8}


@dataclass(frozen=True)
class StepSize:
    """What decides what a training step takes, but for the transformer."""

    finetune_type: str
    rank: int
    tokens: int  # of an image, text included
    batch_size: int
    dtype: torch.dtype  # the base's weights as they are loaded


def token_count(side: int, size_multiple: int, text_tokens: int) -> int:
    """Tokens of an image with the area of a square of ``side`` pixels, and of its prompt."""
    return round(side / size_multiple) ** 2 + text_tokens


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

    @property
    def order(self) -> list[str]:
        """The kind of each block, in the order in which they run."""
        return [kind for kind in KINDS for _ in range(self.blocks[kind])]

    def of_one_block(self, kind: str) -> list[tuple[int, int]]:
        """Out and in features of the linears that are trained in it."""
        return self.targets[kind][: len(self.targets[kind]) // self.blocks[kind]]


def base_bytes(sizes: Sizes, precision: str, dtype: torch.dtype) -> int:
    """The frozen base's weights. A quantised linear is expanded to ``dtype`` for each product, forward and backward, so that
    one such copy counts with them."""
    if precision not in QUANTISED:
        return (sizes.block_weights + sizes.other_weights) * dtype.itemsize
    quantised = quantised_bytes(sizes.block_weights, sizes.block_rows, precision)
    return quantised + (sizes.other_weights + sizes.largest) * dtype.itemsize


def peak_bytes(sizes: Sizes, step: StepSize, precision: str, checkpointed: int) -> int:
    """All tensors alive at once in a training step of ``step.batch_size`` images, at the moment when that is most.

    Args:
        checkpointed: how many of the blocks keep their input alone, from the first.
    """
    trained, gradients, state = _trained_bytes(sizes, step)
    static = base_bytes(sizes, precision, step.dtype) + sum(trained.values()) + state
    kept, passing = _block_bytes(sizes, step)
    inputs = step.batch_size * step.tokens * sizes.width * step.dtype.itemsize  # of a block
    order = sizes.order
    held = sum(kept[kind] for kind in order[checkpointed:])
    piled = 0  # a LoRA's gradients, which come as backward goes from the last block to the first
    moments = []
    for index in reversed(range(len(order))):
        kind = order[index]
        if index >= checkpointed:
            moments.append(checkpointed * inputs + held + piled + passing[kind])
            held -= kept[kind]
        else:  # its input and those before it, the gradient of its output, and what it computes anew
            moments.append((index + 2) * inputs + piled + kept[kind] + passing[kind])
        piled += gradients[kind] // sizes.blocks[kind]
    return static + max(*moments, 2 * piled)  # at last AdamW's step, with a temporary for each gradient


def distillation_bytes(sizes: Sizes, step: StepSize, checkpointed: int) -> int:
    """The step that trains an extracted LoRA against the full fine-tune: a LoRA's step, with the deltas beside it."""
    deltas = sum(_matrix_bytes(sizes, step, kind) for kind in KINDS)
    return deltas + peak_bytes(sizes, replace(step, finetune_type="lora"), native_precision(step.dtype), checkpointed)


def compiled_extra_bytes(sizes: Sizes, step: StepSize) -> int:
    """What compiled blocks are known to need beyond eager ones: a block's backward gives all of its gradients at once, which a
    full fine-tune applies one by one."""
    if step.finetune_type == "lora":
        return 0
    return max(_matrix_bytes(sizes, step, kind) // sizes.blocks[kind] for kind in KINDS)


def step_flop(sizes: Sizes, step: StepSize, checkpointed: int) -> int:
    """Floating-point operations of a training step of ``step.batch_size`` images: those of its blocks' linears and attention.

    A product of an [n, in] and an [in, out] matrix takes 2 n in out. Attention's two take 4 tokens^2 width, and its backward
    two and a half times that, since flash attention computes its scores again (Dao et al. 2022).
    """
    tokens = step.tokens
    forward, backward = {}, {}
    for kind in KINDS:
        linears = sizes.of_one_block(kind)
        met = 2 * tokens * sum(out * in_ for out, in_ in linears) // sizes.memory.streams[kind]
        attention = 4 * tokens**2 * sizes.width
        if step.finetune_type == "lora":  # of the frozen linears only their input's gradient is taken
            lora = 2 * tokens * step.rank * sum(out + in_ for out, in_ in linears) // sizes.memory.streams[kind]
            forward[kind], backward[kind] = met + lora + attention, met + 2 * lora + 5 * attention // 2
        else:
            forward[kind], backward[kind] = met + attention, 2 * met + 5 * attention // 2
    order = sizes.order
    flop = sum(forward[kind] + backward[kind] for kind in order) + sum(forward[kind] for kind in order[:checkpointed])
    return step.batch_size * flop


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
        linears = sizes.of_one_block(kind)
        if step.finetune_type == "lora":
            met = len(linears) // sizes.memory.streams[kind]  # by a token
            own = value * step.rank * met * tokens  # each LoRA's A x
            if value < 4:
                own += value * step.rank * sum(out + in_ for out, in_ in linears)  # A and B as they are cast
            alive[kind] = passing
        else:
            own = _matrix_bytes(sizes, step, kind) // sizes.blocks[kind]  # W + delta, for the gradient of its input
            alive[kind] = max(passing, ADAFACTOR[value] * max(out * in_ for out, in_ in linears))
        kept[kind] = value * (sizes.memory.kept[kind] + sizes.memory.inputs[kind]) * unit + own
    return kept, alive


def _matrix_bytes(sizes: Sizes, step: StepSize, kind: str) -> int:
    return step.dtype.itemsize * sum(out * in_ for out, in_ in sizes.targets[kind])
