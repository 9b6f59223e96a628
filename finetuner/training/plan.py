"""The cheapest way to run a training step on the device that is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from finetuner.bases import QUANTISED, device_for, usable_bytes
from finetuner.training.costs import (
    Sizes,
    StepSize,
    compiled_extra_bytes,
    distillation_bytes,
    native_precision,
    peak_bytes,
    step_flop,
)

GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """How to run a training step: ``accumulation`` parts of ``micro_batch`` images, the last perhaps of fewer."""

    base_precision: str  # the base's own ("bfloat16", "float32"), or "int8", or "nf4"
    checkpointed_blocks: int  # from the first; the others keep what backward needs
    micro_batch: int
    accumulation: int
    compiled: bool  # the blocks
    peak_bytes: int  # of all tensors alive at once, by the formula; the margin comes on top
    step_flop: int  # of the whole batch at the largest resolution
    ranks: int = 1  # processes, a card each, that run such a step at once, each on its share of the recipe's batch


def never(eager_flop: float, compiled_flop: float) -> bool:
    """Compile nothing."""
    return False


def choose_plan(
    transformer: nn.Module,
    step: StepSize,
    memory_bytes: int,
    token_counts: tuple[int, ...] = (),
    worth_compiling: Callable[[float, float], bool] = never,
) -> Plan:
    """The cheapest way to run ``step`` in ``memory_bytes``, the device's total (what is free at the moment would make two runs
    of a job differ).

    In order of cost: the batch split into smaller ones whose gradients add up (the same FLOP, and a single image of 512 px is
    1,536 tokens, plenty for a matrix product), then one checkpointed block after another (each is a second forward; all of them
    45 % more FLOP for a LoRA, 33 % for full), then a quantised base (another model: int8 rounds a weight to 1/127 of its row's
    largest, nf4 to one of 16 levels). A full fine-tune's gradients are applied inside backward, so they cannot add up, and its
    result is the difference to the true base: splitting and quantising are for a LoRA only.

    Args:
        transformer: the base's; on the meta device will do.
        step: of the whole batch, at the largest resolution.
        token_counts: of all resolutions that are trained at, which come up equally often.
        worth_compiling: says whether compiled blocks pay, from the mean FLOP of a step without and with them.

    Raises:
        ValueError: nothing fits; says how much is needed, how much there is, and what would fit.
    """
    sizes = Sizes.of(transformer)
    eager = _cheapest(sizes, step, usable_bytes(memory_bytes))
    if eager is None:
        raise ValueError(_refusal(sizes, step, memory_bytes))
    compiled = _cheapest(sizes, step, usable_bytes(memory_bytes, compiled=True) - compiled_extra_bytes(sizes, step))
    if compiled is None or compiled.base_precision != eager.base_precision:
        return eager

    def mean_flop(plan: Plan) -> float:
        steps = [replace(step, tokens=tokens) for tokens in token_counts or (step.tokens,)]
        return sum(step_flop(sizes, step, plan.checkpointed_blocks) for step in steps) / len(steps)

    return replace(compiled, compiled=True) if worth_compiling(mean_flop(eager), mean_flop(compiled)) else eager


def _cheapest(sizes: Sizes, step: StepSize, usable: int) -> Plan | None:
    fitting = (plan for plan in _plans(sizes, step) if plan.peak_bytes <= usable)
    precisions = [native_precision(step.dtype), *QUANTISED]
    return min(
        fitting,
        key=lambda plan: (precisions.index(plan.base_precision), plan.step_flop, plan.accumulation),
        default=None,
    )


def _plans(sizes: Sizes, step: StepSize) -> Iterator[Plan]:
    """All ways to run the job."""
    lora = step.finetune_type == "lora"
    precisions = [native_precision(step.dtype), *(QUANTISED if lora else ())]
    parts = range(1, step.batch_size + 1) if lora else (1,)
    splits = {math.ceil(step.batch_size / count): count for count in reversed(parts)}  # the fewest parts of each size
    for precision in precisions:
        for micro_batch, accumulation in sorted(splits.items(), reverse=True):
            part = replace(step, batch_size=micro_batch)
            for checkpointed in range(len(sizes.order)):  # never the last: it would be computed again at once
                peak = peak_bytes(sizes, part, precision, checkpointed)
                if not lora:
                    peak = max(peak, distillation_bytes(sizes, part, checkpointed))
                flop = step_flop(sizes, step, checkpointed)
                yield Plan(precision, checkpointed, micro_batch, accumulation, False, peak, flop)


def _least(sizes: Sizes, step: StepSize) -> int:
    """The bytes of the way that needs the least."""
    return min(plan.peak_bytes for plan in _plans(sizes, step))


def _refusal(sizes: Sizes, step: StepSize, memory_bytes: int) -> str:
    usable, needed = usable_bytes(memory_bytes), _least(sizes, step)
    refusal = (
        f"finetune_type: {step.finetune_type} needs {needed / GIB:.1f} GiB at the least, and of this device's"
        f" {memory_bytes / GIB:.1f} GiB {usable / GIB:.1f} GiB can be used."
    )
    if step.finetune_type != "lora" and _least(sizes, replace(step, finetune_type="lora")) <= usable:
        return f"{refusal} finetune_type lora would fit."
    if _least(sizes, replace(step, tokens=step.tokens // 2)) <= usable:
        return f"{refusal} Images of half the area would fit: try priority speed."
    return f"{refusal} Use a device with {math.ceil(device_for(needed) / GIB)} GiB or more."
