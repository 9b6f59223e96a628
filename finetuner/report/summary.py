"""What a report says of a finetune, in words and figures, whatever the form it is written in."""

from __future__ import annotations

from dataclasses import dataclass

from finetuner.bases import Base
from finetuner.report.sheet import SAMPLING_STEPS, SEED, Sheet
from finetuner.report.usage import Call, usage_examples
from finetuner.requests import FinetuneRequest
from finetuner.training import Recipe

LEARNED = {
    "general": "a concept",
    "character": "a character",
    "style": "a style",
    "product": "a product",
}
PRESERVED = "Each step also held prompts without the trigger word to what the base says of them."


@dataclass(frozen=True)
class Summary:
    trigger_word: str
    title: str
    facts: dict[str, str]  # the first that people ask for
    strength: str
    sheet: str  # how its pictures were made
    recipe: list[str]  # sentences
    numbers: dict[str, str]  # all of the recipe's
    cost: list[tuple[str, str, str]]  # phase, seconds, peak memory
    calls: list[Call]
    licences: list[str]


def summarise(manifest: dict, request: FinetuneRequest, base: Base, recipe: Recipe, sheet: Sheet) -> Summary:
    """``manifest``: of the finetune, as far as it is known before its report is written."""
    return Summary(
        trigger_word=request.trigger_word,
        title=f"{request.trigger_word}, {LEARNED[request.mode]}",
        facts=_facts(manifest, request, base),
        strength="Begin with finetune_strength 1 and go by the pictures: up towards 2 where the concept is too weak, down"
        " towards 0.5 where it overpowers the prompt. 0 is the base alone, bit for bit.",
        sheet=f"One prompt a row, one strength a column, all from seed {SEED}: {sheet.size[0]} x {sheet.size[1]} pixels,"
        f" {SAMPLING_STEPS} steps, guidance {base.guidance_scale:g}. Predictions take {base.sampling_steps} steps, and are"
        " finer.",
        recipe=_sentences(manifest["images"], base, recipe),
        numbers=_flat(manifest["recipe"]),
        cost=_cost(manifest),
        calls=usage_examples(base, sheet.prompts[0], sheet.size),
        licences=[
            f"The base, {base.name}, and so this finetune of it: {base.licence}.",
            "The training images belong to whoever owned them before; the report's page and the captions show them.",
        ],
    )


def _facts(manifest: dict, request: FinetuneRequest, base: Base) -> dict[str, str]:
    facts = {
        "base": f"{base.name} {base.version}",
        "finetune type": request.finetune_type,
        "LoRA rank": f"{request.lora_rank}",
        "mode": request.mode,
        "priority": request.priority,
        "images": f"{manifest['images']:,}",
        "steps": f"{request.training_steps:,}",
        "loss, last tenth": f"{manifest['final_loss']:.4f}",
    }
    for key, name in {
        "energy_kept": "energy kept by the extraction",
        "velocity_kept": "change in velocity kept by the LoRA",
    }.items():
        if key in manifest:
            facts[name] = f"{manifest[key]:.1%}"
    return facts


def _sentences(images: int, base: Base, recipe: Recipe) -> list[str]:
    shown = recipe.steps * recipe.batch_size
    sides = [f"{side} x {side}" for side in recipe.resolutions]
    if recipe.finetune_type == "full":
        how = (
            "Every linear layer of the transformer's blocks learned, modulation left out. The change was then extracted as a"
            f" LoRA of rank {recipe.rank}, which {recipe.distillation_steps} steps more taught to act like it."
        )
    else:
        how = f"A LoRA of rank {recipe.rank} learned on every linear layer of the transformer's blocks, modulation left out."
    return [
        how,
        f"{recipe.steps:,} steps of {recipe.batch_size} images, {shown / images:.3g} for each of the {images:,} given, at an"
        f" area of {' and '.join(sides)} pixels: each in its shape, none enlarged.",
        f"The learning rate rose to {recipe.learning_rate:.2g} over the first {recipe.warmup_share:.0%} of the steps and fell"
        f" along a cosine to {recipe.final_rate:.0%} of that; it is {base.learning_rate_scale[recipe.finetune_type]:g} times"
        " what was asked for, as suits this base.",
        f"Each step was trained at a strength of its own: {recipe.strengths[0]:g} to {recipe.strengths[1]:g}, evenly spread.",
        *([PRESERVED] if recipe.preserved_images else []),
        f"Noise levels: the logistic function of a normal of mean {recipe.logit_mean:g} and deviation {recipe.logit_std:g},"
        f" shifted for the resolution. The guidance was {recipe.guidance:g}; {recipe.caption_dropout:.0%} of the captions were"
        " left empty.",
    ]


def _flat(values: dict, prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else _plain(value)
    return flat


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _cost(manifest: dict) -> list[tuple[str, str, str]]:
    peaks = manifest["peak_memory_bytes"]
    return [(name, f"{spent:.1f}", f"{peaks[name] / (1 << 30):.2f} GiB") for name, spent in manifest["seconds"].items()]
