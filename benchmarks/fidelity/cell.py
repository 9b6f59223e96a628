"""One cell of the measurement: train a concept by a variant and a seed, draw at every strength, judge."""

from __future__ import annotations

import hashlib
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

from benchmarks.fidelity import concepts, scores
from benchmarks.fidelity.concepts import Concept
from benchmarks.fidelity.drawings import SIDE
from benchmarks.fidelity.probes import load_probes
from benchmarks.fidelity.variants import Variant
from finetuner.bases import Base, TextEmbeddings, choose_base, family_of
from finetuner.data import complete_captions, open_archive
from finetuner.requests import FinetuneRequest
from finetuner.training import Recipe, encode_dataset, set_strength
from finetuner.training.dataset import Dataset

SAMPLING_STEPS = 12  # fewer than people use, enough to tell what is drawn
SHOWN = 4  # pictures kept of each strength with the trigger word, and as many without it, for people to look at


@dataclass(frozen=True)
class Cell:
    concept: Concept
    variant: Variant
    seed: int

    def key(self) -> str:
        """Of all that decides the result: a cell that was measured need not be again."""
        base = the_base()
        request = self.variant.request(self.concept.mode)
        recipe = self.variant.recipe_for(request, base, self.seed)
        asked = hashlib.sha256(" ".join(p.text for p in concepts.prompts(self.concept)).encode()).hexdigest()[:8]
        return f"{base.fingerprint[:16]}-{self.concept.name}-{asked}-{self.variant.fingerprint(recipe)}"


@cache
def the_base() -> Base:
    return choose_base()


@cache
def encoded(
    concept: Concept, request: FinetuneRequest, recipe: Recipe, asked: tuple[str, ...]
) -> tuple[Dataset, TextEmbeddings]:
    """The training data, and the embeddings of what is asked for."""
    with tempfile.TemporaryDirectory(prefix="fidelity-") as folder:
        packed = Path(folder) / "archive.zip"
        concepts.write_archive(concept, packed)
        examples = complete_captions(open_archive(packed), {}, request, the_base())
    return encode_dataset(examples, list(asked), the_base(), recipe)


@dataclass(frozen=True)
class Trained:
    pipeline: DiffusionPipeline
    texts: TextEmbeddings  # of what is asked for
    empty: TextEmbeddings
    recipe: Recipe
    loss: float
    seconds: float  # of the training

    def draw(self, strength: float) -> np.ndarray:
        """As `draw`."""
        set_strength(self.pipeline.transformer, strength)
        return draw(self.pipeline, self.texts, self.empty)


def trained(cell: Cell, asked: tuple[str, ...]) -> Trained:
    """The cell's concept, learned by its variant; ``asked``: the prompts that are to be drawn."""
    base, variant = the_base(), cell.variant
    request = variant.request(cell.concept.mode)
    recipe = variant.recipe_for(request, base, cell.seed)
    dataset, texts = encoded(cell.concept, request, recipe, asked)
    transformer = base.load_transformer()
    started = time.monotonic()
    learned = variant.learn(transformer, dataset, base, recipe)
    seconds = time.monotonic() - started
    pipeline = base.load_pipeline_around(transformer.requires_grad_(False))
    return Trained(pipeline, texts, dataset.texts[:1], recipe, learned.history.smoothed_losses[-1], seconds)


@torch.inference_mode()
def draw(pipeline: DiffusionPipeline, texts: TextEmbeddings, empty: TextEmbeddings) -> np.ndarray:
    """One picture a prompt, the n-th from seed n whatever the batch: uint8 [N, 64, 64, 3]."""
    family, guidance = family_of(pipeline.transformer), the_base().sampling_guidance
    options = {"steps": SAMPLING_STEPS, "guidance": guidance, "seeds": list(range(len(texts))), "empty": empty}
    options |= {"image_prompt": None, "image_prompt_strength": 1.0}
    latents = family.sample_latents(pipeline, texts, (SIDE, SIDE), **options)
    return np.stack([np.asarray(image) for image in family.decode_latents(pipeline, latents, (SIDE, SIDE))])


def run(cell: Cell) -> tuple[dict, np.ndarray]:
    """The figures as JSON values, and pictures to look at, drawn by lot: uint8 [strengths, 2 * SHOWN, 64, 64, 3]."""
    base, concept = the_base(), cell.concept
    asked = concepts.prompts(concept)  # with the trigger word; then without
    found = trained(cell, tuple(p.text for p in asked + concepts.plain_prompts()))
    references = concepts.references(concept)
    measured, shown, before = [], [], None
    lot = np.sort(np.random.default_rng(0).choice(len(asked), SHOWN, replace=False))
    for strength in scores.STRENGTHS:
        images = found.draw(strength)
        before = images if before is None else before
        of_concept, plain = images[: len(asked)], images[len(asked) :]
        measured.append(
            scores.Scores(
                **scores.score(concept, asked, load_probes(), strength, of_concept, references),
                change=scores.difference(of_concept, before[: len(asked)]),
                leak=scores.difference(plain, before[len(asked) :]),
            )
        )
        shown.append(np.concatenate([of_concept[lot], plain[lot]]))
    row = {
        "key": cell.key(),
        "variant": cell.variant.name,
        "concept": concept.name,
        "mode": concept.mode,
        "seed": cell.seed,
        "area": scores.area(measured),
        "leak_ratio": scores.leak_ratio(measured),
        "images_seen": found.recipe.steps * found.recipe.batch_size,
        "training_seconds": round(found.seconds, 1),
        "final_loss": found.loss,
        "base": f"{base.name} {base.version}",
        "scores": [asdict(s) for s in measured],
    }
    return row, np.stack(shown)
