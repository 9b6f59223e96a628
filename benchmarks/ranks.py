"""What training on several ranks costs: measured on two processes of one thread each, and projected for cards.

As a program it is the second of the two processes: python -m benchmarks.ranks RENDEZVOUS.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.examples import RANK, REPEATS, examples_dataset, seconds_of, temporary_checkpoint
from finetuner.training import adapter, delta
from finetuner.training.optim import InBackwardOptimizer, LoraOptimizer
from finetuner.training.plan import Sizes
from finetuner.training.ranks import ALONE, Ranks, join
from finetuner.training.recipe import Recipe
from finetuner.training.trainer import train
from script.plan import FLUX_DEV, SIZE_MULTIPLE, TEXT_TOKENS
from script.trace_step import on_meta, prepared, trace

TYPES = ("lora", "full")
CARDS = (1, 2, 4, 8)
STEPS, SIDE = 300, 512  # of the projected job: the documented steps, priority speed
# Assumed, not measured. An H100 at a quarter of its 989 TFLOP/s in bfloat16, which eager FLUX comes to; what a ring moves
# between H100s over NVLink, and between cards over PCIe 4 x16, each way.
FLOPS = 250e12
LINKS = {"NVLink": 300e9, "PCIe 4": 15e9}


def overhead_rows() -> str:
    """The second process does as it is told by the order of the program, which is the same in both."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        with subprocess.Popen([sys.executable, "-m", "benchmarks.ranks", rendezvous]) as other:
            try:
                found = measure(join(dist.FileStore(rendezvous, 2), 0, 2))
                dist.destroy_process_group()
            finally:
                other.kill()
    torch.set_num_threads(threads)
    what = "a step of 4 images on two ranks of a thread each"
    return "\n".join(
        f"| {what} ({finetune_type}), to one of {images} images in one process | {ratio} | {target} |"
        for finetune_type, images, ratio, target in found
    )


def measure(ranks: Ranks) -> list[tuple[str, int, str, str]]:
    """(finetune type, images of the step that is compared with, ratio of the steps' times, what it would be for nothing)."""
    rows = []
    for finetune_type in TYPES:
        half, whole, shared = trainings(finetune_type, ranks)
        seconds: list[list[float]] = []
        for _ in range(REPEATS + 1):  # the first is not counted
            dist.barrier()
            alone = [seconds_of(half), seconds_of(whole)] if ranks.rank == 0 else [1.0, 1.0]
            dist.barrier()
            seconds.append([seconds_of(shared), *alone])
        for images, column, target in ((2, 1, "1.00"), (4, 2, "0.50")):
            ratios = [times[0] / times[column] for times in seconds[1:]]
            text = f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"
            rows.append((finetune_type, images, text, target))
    return rows


def trainings(finetune_type: str, ranks: Ranks) -> list[Callable[[], None]]:
    """Steps of half a batch in this process, of a whole one, and of a whole one shared out."""
    base, recipe, dataset = examples_dataset(finetune_type)
    scheduler = base.load_scheduler()
    batch = recipe.batch_size

    def of(images: int, among: Ranks) -> Callable[[], None]:
        transformer = base.load_transformer()
        plan = replace(recipe.plan, micro_batch=images // among.count, accumulation=1, ranks=among.count)
        own: Recipe = replace(recipe, batch_size=images, plan=plan)
        if finetune_type == "lora":
            adapter.add_adapter(transformer, recipe.rank, recipe.seed)
            optimizer = LoraOptimizer(adapter.trainable_weights(transformer), own, among)
        else:
            delta.add_deltas(transformer)
            optimizer = InBackwardOptimizer(delta.deltas(transformer), own, among)

        def steps() -> None:
            with temporary_checkpoint() as checkpoint:
                train(transformer, optimizer, dataset, scheduler, own, checkpoint, among)

        return steps

    return [of(batch // 2, ALONE), of(batch, ALONE), of(batch, ranks)]


def projection_table() -> str:
    lines = []
    for finetune_type in TYPES:
        transformer = prepared(FLUX_DEV, finetune_type, RANK, torch.bfloat16)
        flop = trace(transformer, (SIDE // SIZE_MULTIPLE) ** 2, TEXT_TOKENS, 1).flop
        size = gradient_bytes(finetune_type)
        for link, bandwidth in LINKS.items():
            cells = [f"{projected_seconds(flop, size, bandwidth, cards):.0f}" for cards in CARDS]
            lines.append(f"| {finetune_type} | {flop / 1e12:.0f} | {size / 1e6:,.0f} MB | {link} | {' | '.join(cells)} |")
    links = " and ".join(f"{speed / 1e9:.0f} GB/s ({link})" for link, speed in LINKS.items())
    batch = Recipe.batch_size
    return "\n".join(
        [
            f"**Projected, not measured**: seconds of the steps of a job on FLUX.1-dev, {STEPS} steps of {batch} images at"
            f" {SIDE} px, by number of cards. From the FLOP of the traced step, at an assumed {FLOPS / 1e12:.0f} TFLOP/s each,"
            " and from the bytes of the gradients, which a ring of N cards moves 2 (N - 1) / N times, at an assumed"
            f" {links}; nothing overlaps. A batch of {batch} has shares for no more than {batch} cards: the others idle.",
            "",
            f"| type | TFLOP an image | gradients | link | {' | '.join(f'{cards}' for cards in CARDS)} |",
            f"|---|---|---|---|{'---|' * len(CARDS)}",
            *lines,
        ]
    )


def gradient_bytes(finetune_type: str) -> int:
    """float32 of a LoRA, bfloat16 of the deltas."""
    matrices = [shape for shapes in Sizes.of(on_meta(FLUX_DEV)).targets.values() for shape in shapes]
    if finetune_type == "lora":
        return 4 * RANK * sum(out + in_ for out, in_ in matrices)
    return 2 * sum(out * in_ for out, in_ in matrices)


def projected_seconds(flop: float, size: int, bandwidth: float, cards: int) -> float:
    """Of all steps: what a card computes of a step, and the reduction of its gradients."""
    used = min(cards, Recipe.batch_size)
    return STEPS * (flop * Recipe.batch_size / used / FLOPS + 2 * (used - 1) / used * size / bandwidth)


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure(join(dist.FileStore(sys.argv[1], 2), 1, 2))
