"""What a training costs beside its steps, as ratios within one run: absolute seconds are this machine's alone."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn

from benchmarks import dreambooth
from benchmarks.examples import ARCHIVE, RANK, REPEATS, STEPS, examples_dataset, seconds_of, temporary_checkpoint
from benchmarks.ranks import overhead_rows, projection_table
from finetuner import finetune as job
from finetuner.bases import Base, target_names
from finetuner.report import sheet
from finetuner.requests import FinetuneRequest
from finetuner.serving import decode_latents, native_size, sample_latents
from finetuner.training import Recipe, adapter, delta, recipe_for
from finetuner.training.dataset import Bucket, Dataset
from finetuner.training.extract import extract_lora
from finetuner.training.flow import Samples
from finetuner.training.optim import InBackwardOptimizer, LoraOptimizer
from finetuner.training.trainer import accumulate_gradients, draw_batch, train

MANY, FEW = 2000, 10  # images
DELTA_STEPS = 25  # of a full fine-tune, for matrices to take apart
FLUX_SHAPE = (3072, 3072)  # FLUX.1-dev's attention


def run() -> str:
    bare, bare_spread = ours_to_bare()
    many, many_spread = many_to_few()
    linear, linear_spread = ours_to_peft()
    preserving, preserving_spread = preserving_to_not()
    return f"""## Training

Ratios of medians over {REPEATS} interleaved repeats of {STEPS} steps (in brackets the smallest and largest of the repeats), LoRA
of rank {RANK}, 64 px, batch 4.

| what | measured | target |
|---|---|---|
| a step of `trainer.train` to a bare step (same adapted transformer, fixed tensors: forward, backward, AdamW) | {bare:.3f} {bare_spread} | 1.10 |
| a step with {MANY:,} images to one with {FEW} | {many:.3f} {many_spread} | 1.02 |
| a bare step with our LoRA linears and fused AdamW to one with peft's and AdamW | {linear:.3f} {linear_spread} | 1.00 |
| a step of mode style, which preserves the rest, to one of mode general (no such step where the base hears no new words) | {preserving:.3f} {preserving_spread} | 1.35 |
{overhead_rows()}
{sheet_row()}
{job_rows()}

{dreambooth.table()}

{projection_table()}

{extraction_table()}

None of this is a GPU's figure: there, drawing a batch on the CPU runs beside the step, and copying it over is new.
"""


def interleaved(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, str]:
    """The first's median time in the second's, and the range of single ratios; both warmed up, in turns."""
    first(), second()
    pairs = [(seconds_of(first), seconds_of(second)) for _ in range(REPEATS)]
    ratios = [a / b for a, b in pairs]
    ratio = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
    return ratio, f"({min(ratios):.2f} to {max(ratios):.2f})"


def ours_to_bare() -> tuple[float, str]:
    base, recipe, dataset = examples_dataset()
    transformer, scheduler = base.load_transformer(recipe.plan.base_precision), base.load_scheduler()
    adapter.add_adapter(transformer, recipe.rank, recipe.seed)
    parameters = adapter.trainable_weights(transformer)
    size, bucket = next(iter(dataset.buckets.items()))
    rows = torch.arange(recipe.batch_size) % len(bucket.captions)
    samples = Samples.of(*draw_batch(dataset, size, rows, scheduler, recipe, seed=0))
    adamw = torch.optim.AdamW(parameters.values(), lr=1e-6)

    def bare() -> None:
        for _ in range(STEPS):
            accumulate_gradients(transformer, samples, recipe)
            adamw.step()
            adamw.zero_grad()

    def ours() -> None:
        with temporary_checkpoint() as checkpoint:
            train(transformer, LoraOptimizer(parameters, recipe), dataset, scheduler, recipe, checkpoint)

    return interleaved(ours, bare)


def ours_to_peft() -> tuple[float, str]:
    """Forward, backward and AdamW, on the same fixed batch."""
    base, recipe, dataset = examples_dataset()
    scheduler = base.load_scheduler()
    size, bucket = next(iter(dataset.buckets.items()))
    rows = torch.arange(recipe.batch_size) % len(bucket.captions)
    samples = Samples.of(*draw_batch(dataset, size, rows, scheduler, recipe, seed=0))

    def stepping(transformer: nn.Module, fused: bool) -> Callable[[], None]:
        adamw = torch.optim.AdamW([p for p in transformer.parameters() if p.requires_grad], lr=1e-6, fused=fused)

        def steps() -> None:
            for _ in range(STEPS):
                accumulate_gradients(transformer, samples, recipe)
                adamw.step()
                adamw.zero_grad()

        return steps

    ours, peft = base.load_transformer(), base.load_transformer()
    adapter.add_adapter(ours, recipe.rank, recipe.seed)
    peft.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=target_names(peft)))
    return interleaved(stepping(ours, fused=True), stepping(peft, fused=False))


def many_to_few() -> tuple[float, str]:
    """Both datasets of one size; of the captions' embeddings there are as many as images."""
    base, recipe, dataset = examples_dataset()
    size, bucket = next(iter(dataset.buckets.items()))

    def of(count: int) -> Dataset:
        rows = torch.arange(count) % len(bucket.captions)
        texts = dataset.texts[torch.cat([torch.zeros(1, dtype=torch.int64), bucket.captions[rows]])]  # the empty one first
        captions = torch.arange(count) + 1
        return replace(dataset, buckets={size: Bucket(bucket.latents[rows], captions, captions)}, texts=texts)

    return interleaved(training(base, recipe, of(MANY)), training(base, recipe, of(FEW)))


def preserving_to_not() -> tuple[float, str]:
    return interleaved(*(training(*examples_dataset(mode=mode)) for mode in ("style", "general")))


def training(base: Base, recipe: Recipe, dataset: Dataset) -> Callable[[], None]:
    """Trains a LoRA on, with an optimizer of its own, each time that it is called."""
    transformer, scheduler = base.load_transformer(recipe.plan.base_precision), base.load_scheduler()
    adapter.add_adapter(transformer, recipe.rank, recipe.seed)

    def once() -> None:
        with temporary_checkpoint() as checkpoint:
            optimizer = LoraOptimizer(adapter.trainable_weights(transformer), recipe)
            train(transformer, optimizer, dataset, scheduler, recipe, checkpoint)

    return once


def sheet_row() -> str:
    """The report's strength sheet, as many prompts as 300 steps pay for."""
    base, recipe, _ = examples_dataset()
    transformer = base.load_transformer(recipe.plan.base_precision)
    adapter.add_adapter(transformer, recipe.rank, recipe.seed)
    pipeline = base.load_pipeline_around(transformer)
    prompts = sheet.sheet_prompts(FinetuneRequest(ARCHIVE, mode="style"))
    texts = base.family.encode_texts(base.load_text_encoders(), ["", *prompts], base.max_sequence_length)
    size = native_size(1.0, min(base.sampling_side, *recipe.resolutions), base.size_multiple)

    def at_once() -> None:
        sheet.strength_sheet(pipeline, base, recipe, prompts, texts[1:], texts[:1])

    @torch.no_grad()
    def in_turn() -> None:
        for strength in sheet.STRENGTHS:
            adapter.set_strength(transformer, strength)
            drawn = {"steps": sheet.SAMPLING_STEPS, "guidance": base.sampling_guidance, "seed": sheet.SEED, "empty": texts[:1]}
            decode_latents(pipeline, sample_latents(pipeline, texts[1:], size, **drawn), size)

    ratio, spread = interleaved(at_once, in_turn)
    return f"| the strength sheet of {len(prompts)} prompts, all strengths at once, to one strength after another | {ratio:.3f} {spread} | 1.00 |"


def job_rows() -> str:
    """Whole jobs at the documented 300 steps, the cheapest steps there are (the share of the rest is largest with them)."""
    lines = []
    for finetune_type in ("lora", "full"):
        with tempfile.TemporaryDirectory() as folder, environment(FINETUNE_STORE=str(Path(folder) / "store")):
            request = FinetuneRequest(ARCHIVE, mode="style", finetune_type=finetune_type, priority="speed")
            started = time.monotonic()
            manifest = job.finetune(request).manifest
            whole = time.monotonic() - started
        seconds = manifest["seconds"]
        which = f"of a 300-step job ({finetune_type}, priority speed, {whole:.0f} s)"
        lines.append(f"| share {which} that is not the phase `train` | {1 - seconds['train'] / whole:.1%} | 15 % |")
        lines.append(f"| share {which} that is the phase `report` | {seconds['report'] / whole:.1%} | 5 % |")
    return "\n".join(lines)


def extraction_table() -> str:
    rows = [extraction_row("all block linears of this base, after a short full fine-tune", trained_deltas())]
    rows.append(extraction_row(f"one matrix of {FLUX_SHAPE[0]} x {FLUX_SHAPE[1]} (FLUX.1-dev's attention)", decaying()))
    return "\n".join(
        [
            f"Extraction of a LoRA of rank {RANK}: the randomized SVD of `extract.extract_lora` against `torch.linalg.svd`, cut to the rank.",
            "",
            "| matrices | randomized | full | times faster | energy kept | of the best possible |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def extraction_row(what: str, deltas: dict[str, torch.Tensor]) -> str:
    found = []
    randomized = seconds_of(lambda: found.append(extract_lora(deltas, RANK, seed=0).total_energy))
    spectra = []
    full = seconds_of(lambda: spectra.extend(torch.linalg.svd(d, full_matrices=False).S for d in deltas.values()))
    best = sum(s[:RANK].square().sum().item() for s in spectra) / sum(s.square().sum().item() for s in spectra)
    return f"| {what} | {randomized:.2f} s | {full:.2f} s | {full / randomized:.1f} | {found[0]:.2%} | {found[0] / best:.2%} |"


def trained_deltas() -> dict[str, torch.Tensor]:
    base, _, dataset = examples_dataset()
    request = FinetuneRequest(ARCHIVE, mode="general", finetune_type="full", priority="speed", training_steps=DELTA_STEPS)
    recipe = replace(recipe_for(request, base), seed=1)
    transformer = base.load_transformer()
    delta.add_deltas(transformer)
    optimizer = InBackwardOptimizer(delta.deltas(transformer), recipe)
    with temporary_checkpoint() as checkpoint:
        train(transformer, optimizer, dataset, base.load_scheduler(), recipe, checkpoint)
    return delta.remove_deltas(transformer)


def decaying() -> dict[str, torch.Tensor]:
    """Singular values that fall as one over the root of their index, over 512 directions, and a little noise: a stand-in, as
    there is no full fine-tune of FLUX.1-dev here."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = FLUX_SHAPE
    scale = torch.arange(1, 513).float().rsqrt()
    low = (torch.randn(rows, 512, generator=generator) * scale) @ torch.randn(512, columns, generator=generator)
    return {"attention": low / 512 + 1e-3 * torch.randn(rows, columns, generator=generator)}


@contextmanager
def environment(**values: str):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
