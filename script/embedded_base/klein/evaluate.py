"""What the base can do, measured on what it draws and shown as a sheet of 48 pictures."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, Flux2KleinPipeline
from PIL import Image
from tqdm import tqdm

from .. import evaluate as flux_emoji
from ..captions import with_article
from ..composed.captions import Captions
from ..composed.looks import FAMILIES, looks
from ..composed.scenes import SIDE, all_looks
from ..evaluate import SHEET_COLUMNS, SHEET_ROWS, sheet
from ..pictures import BACKGROUNDS, Concept
from . import judge, text
from .batches import image_ids
from .training import velocity_of

FLUX_EMOJI = Path("weights/flux-emoji")
STEPS, DISTILLED_STEPS = 20, 4
GUIDANCE = 4.0
CAPTIONS = 200
BATCH = 20
HEARD_AT = 0.9  # noise level at which words are compared
HEARD_THINGS = 24


@torch.no_grad()
def draw(pipeline: Flux2KleinPipeline, prompts: list[str], seed: int = 0) -> np.ndarray:
    """uint8 [N, 64, 64, 3]; each picture has a seed of its own, whatever the batch. A distilled pipeline takes no guidance."""
    pipeline.set_progress_bar_config(disable=True)
    steps = DISTILLED_STEPS if pipeline.config.is_distilled else STEPS
    images = []
    for start in tqdm(range(0, len(prompts), BATCH), desc="drawing", mininterval=5):
        part = prompts[start : start + BATCH]
        images += pipeline(
            prompt=part,
            width=SIDE,
            height=SIDE,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            max_sequence_length=text.LENGTH,
            generator=[torch.Generator().manual_seed(seed + start + n) for n in range(len(part))],
        ).images
    return np.stack([np.asarray(image) for image in images])


def nearest_background(images: np.ndarray) -> np.ndarray:
    """Index into `BACKGROUNDS` of the colour in the corners, [N]."""
    colours = np.array(list(BACKGROUNDS.values()), np.float32)
    corners = np.median(images[:, [0, 0, -1, -1], [0, -1, 0, -1]].astype(np.float32), axis=1)
    return ((corners[:, None] - colours) ** 2).sum(2).argmin(1)


def naming(pipeline: Flux2KleinPipeline, concepts: list[Concept], judged: judge.Judge) -> dict[str, float]:
    """Captions without a look: shares with the right thing and with the named background; and how sharp they are."""
    rng = np.random.default_rng(11)
    thing, background = rng.integers(len(concepts), size=CAPTIONS), rng.integers(len(BACKGROUNDS), size=CAPTIONS)
    names = list(BACKGROUNDS)
    prompts = [
        f"{with_article(concepts[t].name)} on {with_article(names[b])} background"
        for t, b in zip(thing, background, strict=True)
    ]
    images = draw(pipeline, prompts)
    before = flux_emoji.draw(DiffusionPipeline.from_pretrained(FLUX_EMOJI, dtype=torch.float32), prompts)
    return {
        "right_thing": float((judged.answers(images)["thing"] == thing).mean()),
        "right_background": float((nearest_background(images) == background).mean()),
        "sharpness": sharpness(images),
        "sharpness_of_flux_emoji": sharpness(np.stack([np.asarray(image) for image in before])),
    }


def sharpness(images: np.ndarray) -> float:
    """Mean absolute Laplacian of the brightness, in grey levels."""
    grey = images.astype(np.float32).mean(3)
    middle = grey[:, 1:-1, 1:-1]
    return float(np.abs(4 * middle - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1] - grey[:, 1:-1, :-2] - grey[:, 1:-1, 2:]).mean())


def look_naming(
    pipeline: Flux2KleinPipeline, concepts: list[Concept], judged: judge.Judge, *, held_out: bool, by_word: bool = False
) -> dict[str, float]:
    """Shares of (thing, look) captions whose picture has the right look, by kind and in all, and the right thing."""
    thing, look = judge.pairs(len(concepts), CAPTIONS, 13, held_out=held_out)
    words = Captions(concepts).look_words
    prompts, kept = [], []
    for n, (t, k) in enumerate(zip(thing, look, strict=True)):
        called = words.get(all_looks()[k]) if by_word else " ".join(all_looks()[k].words)
        if called:
            prompts.append(f"{with_article(concepts[t].name)} on a {'grey' if n % 2 else 'teal'} background, {called} style")
            kept.append(n)
    found = judged.answers(draw(pipeline, prompts, seed=1000))
    wanted = judge.targets(thing[kept], look[kept])
    figures = {"look": judge.right_look(found, wanted).mean(), "thing": (found["thing"] == wanted["thing"]).mean()}
    for kind in judge.KINDS:
        named = wanted[kind] > 0
        figures[kind] = (found[kind] == wanted[kind])[named].mean()
    return {name: float(share) for name, share in figures.items()}


@torch.no_grad()
def heard(pipeline: Flux2KleinPipeline, concepts: list[Concept]) -> dict[str, float]:
    """How much words change the velocity, as a share of what another thing changes."""
    generator = torch.Generator().manual_seed(14)
    noisy = torch.randn(HEARD_THINGS, 64, 64, generator=generator) * HEARD_AT
    plain = [f"{with_article(concept.name)} on a teal background" for concept in concepts[:: len(concepts) // HEARD_THINGS]]
    plain = plain[:HEARD_THINGS]

    def velocity(prompts: list[str]) -> torch.Tensor:
        embeds, _ = pipeline.encode_prompt(prompts, max_sequence_length=text.LENGTH)
        sigmas = torch.full((len(prompts),), HEARD_AT)
        return velocity_of(pipeline.transformer, noisy, sigmas, image_ids(references=False), embeds)

    before = velocity(plain)
    another = (velocity(plain[1:] + plain[:1]) - before).norm()
    return {
        name: float((velocity([f"{prompt}, {word} style" for prompt in plain]) - before).norm() / another)
        for name, word in (("heard_unseen_word", "BLIVOZ"), ("heard_tok", "TOK"), ("heard_striped", "striped"))
    }


def sheet_prompts(concepts: list[Concept]) -> list[str]:
    """48 prompts of as many things: a third plain, a third on a named background, a third in a look or a real family."""
    rng = np.random.default_rng(12)
    chosen = [concepts[i] for i in sorted(rng.choice(len(concepts), SHEET_ROWS * SHEET_COLUMNS, replace=False))]
    backgrounds, families = list(BACKGROUNDS), [word for word in FAMILIES.values() if word]
    prompts = []
    for n, concept in enumerate(chosen):
        prompt = with_article(concept.name)
        if n % 3:
            prompt += f" on {with_article(backgrounds[n % len(backgrounds)])} background"
        if n % 3 == 2:
            look = looks()[rng.integers(len(looks()))]
            prompt += f", {families[n % len(families)] if n % 4 == 0 else ' '.join(look.words)} style"
        prompts.append(prompt)
    return prompts


def seconds_a_picture(pipeline: Flux2KleinPipeline) -> float:
    """CPU time of one picture, alone."""
    began = time.process_time()
    draw(pipeline, ["a fox on a teal background"])
    return time.process_time() - began


def evaluate(pipeline: Flux2KleinPipeline, concepts: list[Concept], judged: judge.Judge, out: Path) -> dict[str, float]:
    """Draw ``sheet.png`` into ``out``, and beside ``out`` the same without the prompts; the figures for the model card."""
    prompts = sheet_prompts(concepts)
    images = [Image.fromarray(image) for image in draw(pipeline, prompts)]
    sheet(images, prompts, cell=96).save(out / "sheet.png", optimize=True)
    sheet(images, None).save(out.with_name(f"{out.name}-unnamed.png"))
    figures = naming(pipeline, concepts, judged) | heard(pipeline, concepts)
    for name, options in (
        ("seen", {"held_out": False}),
        ("unseen", {"held_out": True}),
        ("word", {"held_out": False, "by_word": True}),
    ):
        figures |= {f"{name}_{kind}": share for kind, share in look_naming(pipeline, concepts, judged, **options).items()}
    return figures | {"seconds": seconds_a_picture(pipeline)}
