"""What serving costs: ratios of times measured side by side in one run, so that they hold on a busy or a slow machine too."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel
from peft import LoraConfig
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.adapters import random_adapter
from finetuner.bases import Base, Size, choose_base, target_names
from finetuner.generate import Generator
from finetuner.loras import WEIGHTS_NAME, load_lora, save_lora
from finetuner.requests import ImageRequest
from finetuner.serving.sampling import native_size
from finetuner.serving.slot import PackedAdapter, Slot
from finetuner.store import FolderStore, Store
from script.trace_serving import step_inputs

STEPS = 20
REQUESTS = 9
REPEATS = 40
RANK = 32
SIDES, BATCHES, MANY_STEPS, MANY_REPEATS = (64, 96), (1, 2, 4, 8), 8, 5
PROMPT = "a fox, TOK style"
# The counter does not know the in-place operation by itself.
IN_PLACE = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}


def run() -> str:
    """Measure on the base that BASE_MODEL chooses, on one thread. Returns a section in Markdown."""
    torch.set_num_threads(1)
    base = choose_base()
    with tempfile.TemporaryDirectory() as folder:
        store = FolderStore(Path(folder))
        finetunes = [publish(store, base, seed) for seed in (1, 2)]
        generator, bare = Generator(base, store), base.load_pipeline()
        bare.set_progress_bar_config(disable=True)
        batches = many_rows(generator, finetunes)
        rows = [
            *requests(generator, bare, finetunes[0]),
            *inputs(generator, finetunes[0]),
            *checks(generator, finetunes[0]),
            *steps(generator, bare, finetunes),
            *floating_point(bare),
        ]
    lines = [f"| {what} | {ratio:.3f} | {target} |" for what, ratio, target in rows]
    return "\n".join(
        [
            "## Prediction",
            "",
            f"{base.name} at {base.sampling_side} px on one thread of a {bare.device.type.upper()}, {STEPS} steps a request; medians"
            f" over {REQUESTS} requests and {REPEATS} steps, what is compared being measured in turn.",
            "",
            "| | ratio | target |",
            "|---|---|---|",
            *lines,
            "",
            f"Several requests in one batch, each with its own finetune (two in turn) at its own strength, to the same one after the"
            f" other: {MANY_STEPS} steps, medians over {MANY_REPEATS} repeats in turns (in brackets the smallest and largest).",
            "",
            f"| side | {' | '.join(f'{count} in a batch' for count in BATCHES)} |",
            f"|---|{'---|' * len(BATCHES)}",
            *batches,
            "",
        ]
    )


def publish(store: Store, base: Base, seed: int) -> str:
    """A finetune of random weights, small enough to leave a picture."""
    weights = random_adapter(base.load_transformer(), RANK, seed, deviations=(0.02, 0.02))
    with tempfile.TemporaryDirectory() as staged:
        save_lora(weights, Path(staged), base.family)
        return store.publish(Path(staged), {"base": base.describe(), "inputs": {"trigger_word": "TOK"}}).id


def requests(generator: Generator, bare: DiffusionPipeline, finetune_id: str) -> list[tuple[str, float, str]]:
    """Whole requests, from the prompt to the file, against the pipeline's own call, from the prompt to the image."""
    size = native_size(1.0, generator.base.sampling_side, generator.base.size_multiple)
    numbers = itertools.count()  # in the prompts, so that none is cached unless it is to be

    def ours(prompt: str) -> None:
        request = ImageRequest(prompt, finetune_id, steps=STEPS, seed=0, output_format="png")
        generator.generate(request).path.unlink()

    def theirs() -> None:
        bare(
            prompt=f"{PROMPT} {next(numbers)}",
            width=size[0],
            height=size[1],
            num_inference_steps=STEPS,
            guidance_scale=generator.base.sampling_guidance,
            max_sequence_length=generator.base.max_sequence_length,
            generator=torch.Generator().manual_seed(0),
        )

    fresh, cached, reference = interleaved(REQUESTS, lambda: ours(f"{PROMPT} {next(numbers)}"), lambda: ours(PROMPT), theirs)
    return [
        ("a request, to the bare call of diffusers' pipeline without a LoRA", ratio(fresh, reference), "1.10"),
        ("the same with a prompt that came before", ratio(cached, reference), ""),
    ]


def inputs(generator: Generator, finetune_id: str) -> list[tuple[str, float, str]]:
    """Whole requests with an input, against the same request without it, whose prompt came before."""
    with tempfile.TemporaryDirectory() as folder:
        shown = Path(folder) / "shown.png"
        Image.effect_noise((512, 512), 60).convert("RGB").save(shown)

        def draw(**fields) -> None:
            request = ImageRequest(PROMPT, finetune_id, steps=STEPS, seed=0, output_format="png", **fields)
            generator.generate(request).path.unlink()

        def fresh(**fields) -> None:
            generator.image_prompts.read.clear()
            draw(**fields)

        def rewritten() -> None:
            generator.upsampler.upsampled.clear()
            draw(prompt_upsampling=True)

        plain, weighed, first, full, upsampled, again = interleaved(
            REQUESTS,
            draw,
            lambda: draw(image_prompt=shown),
            lambda: fresh(image_prompt=shown),
            lambda: draw(image_prompt=shown, image_prompt_strength=1.0),
            rewritten,
            lambda: draw(prompt_upsampling=True),
        )
    return [
        ("with an image prompt that came before, to a request without", ratio(weighed, plain), ""),
        ("with one that is read for the first time", ratio(first, plain), ""),
        ("with one at strength 1, which needs no weight in attention", ratio(full, plain), ""),
        ("with prompt_upsampling", ratio(upsampled, plain), ""),
        ("with prompt_upsampling of a prompt that came before", ratio(again, plain), ""),
    ]


def many_rows(generator: Generator, finetunes: list[str]) -> list[str]:
    rows = []
    for side in SIDES:
        cells = []
        for count in BATCHES:
            wanted = [
                ImageRequest(
                    PROMPT,
                    finetunes[number % 2],
                    finetune_strength=1 + number / 10,
                    aspect_ratio="custom",
                    width=side,
                    height=side,
                    steps=MANY_STEPS,
                    seed=number,
                    output_format="png",
                )
                for number in range(count)
            ]

            def at_once(wanted: list[ImageRequest] = wanted) -> None:
                for made in generator.generate_many(wanted):
                    made.path.unlink()

            def in_turn(wanted: list[ImageRequest] = wanted) -> None:
                for request in wanted:
                    generator.generate(request).path.unlink()

            together, alone = interleaved(MANY_REPEATS, at_once, in_turn)
            ratios = [a / b for a, b in zip(together, alone, strict=True)]
            cells.append(f"{ratio(together, alone):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append(f"| {side} px | {' | '.join(cells)} |")
    return rows


def checks(generator: Generator, finetune_id: str) -> list[tuple[str, float, str]]:
    """What the safety check and the raw look cost a request."""
    checker, photographer = generator.safety, copy.copy(generator)
    # As a base of photographs: the look takes the same work on any.
    photographer.base = dataclasses.replace(generator.base, pictures="photographs")

    def plain() -> None:
        generate(generator)

    def unchecked() -> None:
        generator.safety = None
        generate(generator)
        generator.safety = checker

    def generate(chosen: Generator, **changes) -> None:
        request = ImageRequest(PROMPT, finetune_id, steps=STEPS, seed=0, output_format="png", **changes)
        chosen.generate(request).path.unlink()

    with_check, without, raw = interleaved(REQUESTS, plain, unchecked, lambda: generate(photographer, raw=True))
    return [
        ("a request that is checked, to one with SAFETY=0", ratio(with_check, without), ""),
        ("a raw request, to one that is not", ratio(raw, with_check), "1.00"),
    ]


def steps(generator: Generator, bare: DiffusionPipeline, finetunes: list[str]) -> list[tuple[str, float, str]]:
    """One step of the transformer with the slot and with peft's layers, and what changes between requests, to a bare step."""
    peft = copy.deepcopy(bare.transformer)
    peft.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=target_names(peft)))
    peft.requires_grad_(False)
    size = native_size(1.0, generator.base.sampling_side, generator.base.size_multiple)
    inputs = step_inputs(bare.transformer, tokens(bare, size), generator.base.max_sequence_length)
    slot, adapters = generator.slot, [fetch(generator, finetune) for finetune in finetunes]
    strengths = (1 + number / 1000 for number in itertools.count(1))

    with torch.no_grad():
        bare_step, with_slot, with_peft, switched, _, strength, cold = interleaved(
            REPEATS,
            lambda: bare.transformer(**inputs),
            lambda: generator.pipeline.transformer(**inputs),
            lambda: peft(**inputs),
            lambda: slot.load(adapters[1], 1.0),
            lambda: slot.load(adapters[0], 1.0),
            lambda: slot.load(adapters[0], next(strengths)),
            lambda: fetch(generator, finetunes[0]),
        )
    return [
        ("a step with the slot, to a bare step", ratio(with_slot, bare_step), ""),
        ("a step with peft's layers, to a bare step", ratio(with_peft, bare_step), ""),
        ("another strength, to a bare step", ratio(strength, bare_step), "0.05"),
        ("another finetune from memory, to a bare step", ratio(switched, bare_step), "0.05"),
        ("another finetune from the disk, checked, to a bare step", ratio(cold, bare_step), ""),
    ]


def fetch(generator: Generator, finetune_id: str) -> PackedAdapter:
    """The finetune's LoRA, from the store's folder: checked, read and laid out."""
    finetune = generator.finetunes.store.fetch(finetune_id)
    return generator.slot.pack(load_lora(finetune.folder / WEIGHTS_NAME))


def floating_point(bare: DiffusionPipeline) -> list[tuple[str, float, str]]:
    """Floating-point operations of a step with the slot, to those of a bare one. FLUX.1-dev without weights, at 1024 px."""
    with torch.device("meta"):
        flux = FluxTransformer2DModel(num_layers=19, num_single_layers=38, guidance_embeds=True).requires_grad_(False)
    small = copy.deepcopy(bare.transformer).to("meta")
    return [
        ("FLOPs with the slot, this base", flops_ratio(small, 64, 32), ""),
        ("FLOPs with the slot, FLUX.1-dev at 1024 px", flops_ratio(flux, 4096, 512), ""),
    ]


def flops_ratio(transformer: nn.Module, image_tokens: int, text_tokens: int) -> float:
    counts = []
    for prepare in (lambda: None, lambda: Slot(transformer, RANK)):
        prepare()
        with (
            FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter,
            torch.no_grad(),
        ):
            transformer(**step_inputs(transformer, image_tokens, text_tokens))
        counts.append(counter.get_total_flops())
    return counts[1] / counts[0]


def tokens(pipeline: DiffusionPipeline, size: Size) -> int:
    return size[0] * size[1] // (2 * pipeline.vae_scale_factor) ** 2


def interleaved(repeats: int, *calls: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call, one after the other in every repeat; a first round is not counted.

    Without a GPU they are seconds of the processor, in which other programs do not count.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, spent in zip(calls, seconds, strict=True):
            started = clock()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                spent.append(clock() - started)
    return seconds


def ratio(times: list[float], reference: list[float]) -> float:
    """The median of the ratios of each repeat: a machine that slows down for a while slows both."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


if __name__ == "__main__":
    print(run())
