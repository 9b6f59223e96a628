"""The whole training job, top to bottom."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from finetuner import adapter, archive, captions, delta, encode, report
from finetuner.base import WEIGHTS, Base, choose_base
from finetuner.captioner import Captioner, choose_captioner
from finetuner.checkpoint import Checkpoint
from finetuner.distill import distill
from finetuner.extract import extract
from finetuner.flow import probe_velocities
from finetuner.optim import InBackwardOptimizer, LoraOptimizer
from finetuner.recipe import FinetuneRequest, Recipe, recipe_for
from finetuner.store import Finetune, Store
from finetuner.trainer import History, train

log = logging.getLogger(__name__)

JOBS = WEIGHTS / "jobs"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors")


def finetune(request: FinetuneRequest) -> Finetune:
    """Train a finetune and publish it.

    A job that was killed goes on from its checkpoint when the same request comes again, to the same weights.

    Raises:
        ValueError: an input, the archive or the base is not usable; said before anything heavy is loaded.
        FloatingPointError: the training diverged; nothing is published.
    """
    seconds: dict[str, float] = {}
    base = choose_base()
    with phase("archive", seconds):
        examples = archive.open_archive(request.input_images)
        data_fingerprint = encode.fingerprint(examples)
    uncaptioned = captions.wanted(examples, request.captioning)
    captioner = choose_captioner() if uncaptioned else None
    job = job_fingerprint(request, base, captioner, data_fingerprint)
    recipe = recipe_for(request, base, seed=int(job[:12], 16))
    log.info("Recipe: %s", recipe.describe())

    store = Store()
    with Checkpoint(JOBS / job) as checkpoint, store.staging(job) as staged:
        with phase("captions", seconds):
            written = captions.write(captioner, uncaptioned, request.mode, checkpoint.folder) if captioner else {}
            examples = captions.complete(examples, written, request, base)
        prompts = report.sheet_prompts(request.mode, request.trigger_word)
        with phase("encode", seconds):
            dataset, sheet_texts = encode.encode(examples, prompts, base, recipe.resolutions)
        with phase("load", seconds):
            transformer = base.load_transformer(recipe.plan.base_precision)
        with phase("train", seconds):
            learned = learn(transformer, dataset, base, recipe, checkpoint)
        with phase("report", seconds):
            adapter.save_adapter(learned.weights, recipe.rank, staged)
            save_captions(examples, staged / "captions")
            summary = {"images": len(examples), "final_loss": final_loss(learned.history), **learned.extraction}
            pipeline = sampling_pipeline(base, transformer)
            report.write_report(staged / "report", pipeline, base, request, prompts, sheet_texts, learned.history, summary)
        manifest = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "base": base.describe(),
            "captioner": captioner.describe() if captioner else None,
            "inputs": request.inputs(),
            "recipe": asdict(recipe),
            "data_fingerprint": data_fingerprint,
            **summary,
            "losses": [round(loss, 6) for loss in learned.history.losses],
            "seconds": {name: round(spent, 2) for name, spent in seconds.items()},
            "peak_memory_bytes": peak_memory_bytes(),
            "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        }
        published = store.publish(staged, manifest)
    log.info("Published finetune %s in %.0f s", published.id, sum(seconds.values()))
    return published


@dataclass(frozen=True)
class Learned:
    weights: dict[str, torch.Tensor]  # the LoRA, as `adapter.adapter_weights` names it
    history: History
    extraction: dict  # what the manifest says of it; empty where there was none


def learn(
    transformer: FluxTransformer2DModel, dataset: encode.Dataset, base: Base, recipe: Recipe, checkpoint: Checkpoint
) -> Learned:
    """Train a LoRA, or all block linears and a LoRA extracted from their change; it is left in the transformer."""
    if recipe.plan.checkpointing:
        transformer.enable_gradient_checkpointing()
    how = learn_lora if recipe.finetune_type == "lora" else learn_full
    return how(transformer, dataset, base.load_scheduler(), recipe, checkpoint)


def learn_lora(
    transformer: FluxTransformer2DModel,
    dataset: encode.Dataset,
    scheduler: FlowMatchEulerDiscreteScheduler,
    recipe: Recipe,
    checkpoint: Checkpoint,
) -> Learned:
    adapter.add_adapter(transformer, recipe.rank, recipe.seed)
    optimizer = LoraOptimizer(adapter.trainable_weights(transformer), recipe)
    history = train(transformer, optimizer, dataset, scheduler, recipe, checkpoint)
    return Learned(adapter.adapter_weights(transformer), history, {})


def learn_full(
    transformer: FluxTransformer2DModel,
    dataset: encode.Dataset,
    scheduler: FlowMatchEulerDiscreteScheduler,
    recipe: Recipe,
    checkpoint: Checkpoint,
) -> Learned:
    delta.add_deltas(transformer)
    optimizer = InBackwardOptimizer(delta.deltas(transformer), recipe)
    history = train(transformer, optimizer, dataset, scheduler, recipe, checkpoint)

    full = probe_velocities(transformer, dataset, recipe.guidance)
    trained = {name: parameter.requires_grad_(False) for name, parameter in delta.deltas(transformer).items()}
    extraction = extract(trained, recipe.rank, recipe.seed)
    slot = adapter.Slot(transformer, recipe.rank)
    slot.load(extraction.weights)
    distill(transformer, slot.parameters, dataset, scheduler, recipe)
    delta.remove_deltas(transformer)

    extracted = probe_velocities(transformer, dataset, recipe.guidance)
    adapter.set_strength(transformer, 0.0)
    before = probe_velocities(transformer, dataset, recipe.guidance)
    adapter.set_strength(transformer, 1.0)
    kept = 1 - ((full - extracted).norm() / (full - before).norm().clamp_min(1e-12)).item()
    log.info("The LoRA of rank %d keeps %.1f %% of the change in velocity", recipe.rank, 100 * kept)
    facts = {"energy_kept": extraction.total_energy, "velocity_kept": kept, "energy_by_linear": extraction.energy}
    return Learned(adapter.adapter_weights(transformer), history, facts)


def job_fingerprint(request: FinetuneRequest, base: Base, captioner: Captioner | None, data_fingerprint: str) -> str:
    """SHA-256 of all that decides a job's result: the recipe follows from it, so the seed and the checkpoint do too.

    Captions that are yet to be written are decided by the captioner and the images.
    """
    inputs = request.inputs()
    del inputs["input_images"]  # its content counts, not its name
    models = [base.fingerprint, captioner.fingerprint if captioner else None]
    facts = [inputs, asdict(recipe_for(request, base, seed=0)), models, data_fingerprint]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def save_captions(examples: list[archive.Example], folder: Path) -> None:
    """What each image was trained on, as the caption files that a next archive can carry."""
    for example in examples:
        path = folder / example.caption_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(example.caption + "\n")


def final_loss(history: History) -> float:
    """Mean loss over the last tenth of the steps."""
    last = history.losses[-max(1, len(history.losses) // 10) :]
    return sum(last) / len(last)


def sampling_pipeline(base: Base, transformer: FluxTransformer2DModel) -> FluxPipeline:
    """A pipeline around the trained transformer; prompts come to it as embeddings."""
    pipeline = FluxPipeline(base.load_scheduler(), base.load_vae(), None, None, None, None, transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def peak_memory_bytes() -> int:
    """The most that was in use at a time: of the GPU where there is one, else of this process since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


@contextmanager
def phase(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Name the phase in the log and note how long it took."""
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started
    log.info("Phase %s: %.1f s", name, seconds[name])
