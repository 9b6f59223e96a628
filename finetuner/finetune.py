"""The whole training job, top to bottom."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

from finetuner.bases import Base, WarmParts, choose_base
from finetuner.data import (
    CaptionedExample,
    Captioner,
    choose_captioner,
    complete_captions,
    data_fingerprint,
    examples_to_caption,
    open_archive,
    write_captions,
)
from finetuner.loras import in_half, save_lora
from finetuner.paths import JOBS
from finetuner.phases import Phases
from finetuner.report import sheet_prompts, strength_sheet, write_report
from finetuner.requests import FinetuneRequest
from finetuner.store import MANIFEST, Finetune, Store, StoreError, is_sealed, open_store, seal, staging_folder
from finetuner.training import (
    Checkpoint,
    History,
    OtherRanks,
    Recipe,
    Writer,
    encode_dataset,
    learn,
    recipe_for,
    remove_old,
    tracking,
)

log = logging.getLogger(__name__)

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors")


def finetune(
    request: FinetuneRequest,
    finetune_id: str | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Writer | None = None,
    warm: WarmParts | None = None,
) -> Finetune:
    """Train a finetune and publish it.

    When the same request comes again, a job that was killed or cancelled goes on from its checkpoint to the same weights, and
    one that was published gives its finetune, as long as the store has it.

    Args:
        finetune_id, checkpoint: of whoever keeps account of the jobs, and names the finetune and the folder of each; then the
            same request is another job. Left out, the id is random and the folder the one of what is asked for.
        progress: is called with the figures of every step and its number, from 1.
        warm: where the base's parts stay for the next job of this process.

    Raises:
        ValueError: an input, the archive or the base is not usable; said before anything heavy is loaded.
        FloatingPointError: the training diverged; nothing is published.
        RuntimeError: one of several processes that train together died; the job goes on from its checkpoint.
        StoreError: the store cannot be written; where the training is done by then, its result is kept.
    """
    phases = Phases()
    log.info("Inputs: %s", ", ".join(f"{name} {value}" for name, value in request.inputs().items()))
    base = replace(choose_base(), warm=warm)
    base.require_trains()
    with phases.phase("archive"):
        examples = open_archive(request.input_images)
        data = data_fingerprint(examples)
    uncaptioned = examples_to_caption(examples, request.captioning)
    captioner = choose_captioner(base) if uncaptioned else None
    recipe = recipe_for(request, base)
    job = job_fingerprint(request, recipe, base, captioner, data)
    recipe = replace(recipe, seed=int(job[:12], 16))
    log.info("Recipe: %s", recipe.describe())

    store = open_store()
    store.check()
    remove_old(JOBS)
    with tracking(job[:12], asdict(recipe), progress), checkpoint or Checkpoint(JOBS / job) as checkpoint:
        if published := published_before(store, checkpoint, finetune_id):
            return published
        staged = staging_folder(checkpoint.result)
        if is_sealed(staged):
            log.info("An earlier run of this job did the training and could not publish it")
            return publish_result(store, checkpoint)
        with phases.phase("captions"):
            written = write_captions(captioner, uncaptioned, request.mode, checkpoint.folder) if captioner else {}
            captioned = complete_captions(examples, written, request, base)
        prompts = sheet_prompts(request)
        with phases.phase("encode"):
            dataset, sheet_texts = encode_dataset(captioned, prompts, base, recipe)
        with OtherRanks(base, dataset, recipe, checkpoint.folder) as others:
            with phases.phase("load"):
                transformer = base.load_transformer(recipe.plan.base_precision)
                ranks = others.join()
            with phases.phase("train"):
                learned = learn(transformer, dataset, base.load_scheduler(), recipe, checkpoint, ranks)
        facts = {
            **({"id": finetune_id} if finetune_id else {}),
            "base": base.describe(),
            "captioner": captioner.describe() if captioner else None,
            "inputs": request.inputs(),
            "recipe": asdict(recipe),
            "devices": learned.history.devices,
            "data_fingerprint": data,
            "images": len(captioned),
            "final_loss": final_loss(learned.history),
            **learned.extraction,
            "losses": [round(loss, 6) for loss in learned.history.losses],
            "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        }
        with phases.phase("report"):
            save_lora(in_half(learned.weights), staged, base.family)
            save_captions(captioned, staged / "captions")
            pipeline = base.load_pipeline_around(transformer)
            sheet = strength_sheet(pipeline, base, recipe, prompts, sheet_texts, dataset.texts[:1])
            so_far = facts | phases.facts()
            write_report(staged, so_far, request, base, recipe, captioned, learned.history, sheet)
        seal(staged, facts | phases.facts())
        return publish_result(store, checkpoint)


def published_before(store: Store, checkpoint: Checkpoint, finetune_id: str | None) -> Finetune | None:
    """What this same job published, where the store still has it: its answer may have been lost. ``finetune_id``: the one that
    the job publishes under, where that was named."""
    noted = checkpoint.published()
    if (finetune_id := noted or finetune_id) is None:
        return None
    try:
        published = store.fetch(finetune_id)
    except ValueError as error:
        if noted:
            log.info("This same job made finetune %s, which is not to be had any more, and trains again: %s", noted, error)
            checkpoint.forget_published()
        return None
    log.info("This same job made finetune %s already; nothing is trained again", finetune_id)
    return published


def publish_result(store: Store, checkpoint: Checkpoint) -> Finetune:
    try:
        published = store.put(checkpoint.result)
    except StoreError as error:
        raise StoreError(
            f"{error}. The training is done and its result kept in {checkpoint.result}. To publish it, send the same request"
            f" again, or run: python -m finetuner publish {checkpoint.folder.name}"
        ) from error
    checkpoint.note_published(published.id)
    log.info("Published finetune %s", published.id)
    return published


def publish(job: str) -> Finetune:
    """Publish what a job made and could not publish.

    Raises:
        ValueError: there is no such result.
        StoreError: the store still cannot be written; the result stays.
    """
    waiting = [path.parent.parent.name for path in JOBS.glob(f"*/result/{MANIFEST}")]
    if job not in waiting:
        raise ValueError(f"JOB: no result of {job!r} waits to be published. Those that do: {', '.join(waiting) or 'none'}.")
    with Checkpoint(JOBS / job) as checkpoint:
        return publish_result(open_store(), checkpoint)


def job_fingerprint(request: FinetuneRequest, recipe: Recipe, base: Base, captioner: Captioner | None, data: str) -> str:
    """SHA-256 of all that decides a job's result: the seed and the checkpoint follow from it.

    Captions that are yet to be written are decided by the captioner and the images. How this device runs the recipe is left
    out: the same job goes on from its checkpoint on another card.
    """
    inputs, numbers = request.inputs(), asdict(recipe)
    del inputs["input_images"]  # its content counts, not its name
    del numbers["plan"]
    models = [base.fingerprint, captioner.fingerprint if captioner else None]
    facts = [inputs, numbers, models, data]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def save_captions(examples: list[CaptionedExample], folder: Path) -> None:
    """What each image was trained on, as the caption files that a next archive can carry."""
    for example in examples:
        path = folder / example.caption_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(example.caption + "\n")


def final_loss(history: History) -> float:
    """Mean loss over the last tenth of the steps."""
    last = history.losses[-max(1, len(history.losses) // 10) :]
    return sum(last) / len(last)
