"""What the base can do, measured on what it makes and shown as a sheet of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from . import captions, codec, pictures, text
from .looks import LOOKS, redraw
from .scenes import FAMILIES, SHAPES

STEPS = 20
GUIDANCE = 3.0
FEATURE_SIDE = 16  # pictures are compared as blurred thumbnails: shape and colour count, fine detail does not
NAMED_CAPTIONS = 200
LOOK_CAPTIONS = 4  # of each look
SHEET_ROWS, SHEET_COLUMNS = 6, 8


@torch.no_grad()
def draw(pipeline: FluxPipeline, prompts: list[str], size: tuple[int, int] = (64, 64), seed: int = 0) -> list[Image.Image]:
    images = []
    for n, prompt in enumerate(tqdm(prompts, desc="drawing", mininterval=5)):
        images += pipeline(
            prompt,
            width=size[0],
            height=size[1],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            max_sequence_length=text.T5_LENGTH,
            generator=torch.Generator().manual_seed(seed + n),
        ).images
    return images


def features(images: np.ndarray, side: int = FEATURE_SIDE) -> np.ndarray:
    """uint8 N x H x W x 3 -> float32 N x F: thumbnails of that side, and their differences between neighbours."""
    small = [Image.fromarray(i).resize((side, side), Image.Resampling.BOX) for i in images]
    thumbs = np.stack([np.asarray(s, np.float32) / 255 for s in small])
    parts = [thumbs, np.diff(thumbs, axis=1), np.diff(thumbs, axis=2)]
    return np.concatenate([part.reshape(len(thumbs), -1) for part in parts], axis=1)


def training_pictures(folder: Path, concepts: list[pictures.Concept], background: str) -> np.ndarray:
    """Every concept on one background, as trained on, at nine places and scales: uint8 [9 * concepts, 64, 64, 3]."""
    return np.stack(
        [
            pictures.compose(
                pictures.drawing(folder, pictures.NOTO, concept.code),
                pictures.BACKGROUNDS[background],
                (64, 64),
                scale,
                (x, 0.5),
            )
            for concept in concepts
            for scale in (0.78, 0.86, 0.95)
            for x in (0.3, 0.5, 0.7)
        ]
    )


def naming(folder: Path, pipeline: FluxPipeline, concepts: list[pictures.Concept]) -> tuple[float, float]:
    """Shares of captions whose picture has the right name (that of the nearest training picture) and background colour."""
    rng = np.random.default_rng(11)
    names = list(pictures.BACKGROUNDS)
    asked = [(int(rng.integers(len(concepts))), names[rng.integers(len(names))]) for _ in range(NAMED_CAPTIONS)]
    images = draw(
        pipeline, [f"{captions.with_article(concepts[c].name)} on {captions.with_article(b)} background" for c, b in asked]
    )
    banks = {b: features(training_pictures(folder, concepts, b)) for b in names}
    colours = np.array(list(pictures.BACKGROUNDS.values()), np.float32)
    right_name = right_background = 0
    for (concept, background), image in zip(asked, images, strict=True):
        pixels = np.asarray(image)
        distance = ((banks[background] - features(pixels[None])) ** 2).sum(1)
        right_name += int(distance.argmin()) // 9 == concept
        corners = np.median(pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(np.float32), axis=0)
        right_background += names[((colours - corners) ** 2).sum(1).argmin()] == background
    return right_name / NAMED_CAPTIONS, right_background / NAMED_CAPTIONS


def look_naming(folder: Path, pipeline: FluxPipeline, concepts: list[pictures.Concept], words: dict[str, str]) -> float:
    """Share of captions, each of a thing in a look that goes by its word of ``words``, whose picture is nearest to that thing
    in that look, of all looks and none."""
    rng = np.random.default_rng(13)
    asked = [(concepts[i], look) for look in words for i in rng.choice(len(concepts), LOOK_CAPTIONS, replace=False)]
    prompts = [f"{captions.with_article(c.name)} on a teal background, {words[look]} style" for c, look in asked]
    right = 0
    for (concept, look), image in zip(asked, draw(pipeline, prompts), strict=True):
        drawn = pictures.drawing(folder, pictures.NOTO, concept.code)
        candidates = [(other, redraw(drawn, other), scale) for other in (None, *LOOKS) for scale in (0.8, 0.88, 0.95)]
        scenes = [
            pictures.compose(picture, pictures.BACKGROUNDS["teal"], image.size, scale, (0.5, 0.5))
            for _, picture, scale in candidates
        ]
        distance = ((features(np.stack(scenes)) - features(np.asarray(image)[None])) ** 2).sum(1)
        right += candidates[int(distance.argmin())][0] == look
    return right / len(asked)


def sheet_prompts(concepts: list[pictures.Concept]) -> list[str]:
    """48 prompts, every fifth concept or so: each third one on a named background, a few in the flat look."""
    rng = np.random.default_rng(12)
    chosen = [concepts[i] for i in sorted(rng.choice(len(concepts), SHEET_ROWS * SHEET_COLUMNS, replace=False))]
    backgrounds = list(pictures.BACKGROUNDS)
    prompts = []
    for n, concept in enumerate(chosen):
        subject = captions.with_article(concept.name)
        if n % 8 == 7:
            subject = f"flat icon of {subject}"
        if n % 3 == 2:
            subject += f" on {captions.with_article(backgrounds[n % len(backgrounds)])} background"
        prompts.append(subject)
    return prompts


def sheet(images: list[Image.Image], labels: list[str] | None, cell: int = 128) -> Image.Image:
    """The pictures in rows, with what was asked for under each, or without."""
    room = 20 if labels else 0
    columns = SHEET_COLUMNS
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * (cell + 8) + 8, rows * (cell + room + 8) + 8), "white")
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default(11)
    for n, image in enumerate(images):
        x, y = 8 + n % columns * (cell + 8), 8 + n // columns * (cell + room + 8)
        grid.paste(image.resize((cell, cell), Image.Resampling.LANCZOS), (x, y))
        if labels:
            pen.text((x, y + cell + 3), _shortened(labels[n].removeprefix("a ").removeprefix("an "), font, cell), "black", font)
    return grid


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text


def evaluate(folder: Path, pipeline: FluxPipeline, concepts: list[pictures.Concept], out: Path) -> dict[str, float]:
    """Draw ``sheet.png`` and ``sheet-unnamed.png`` into ``out`` and return the figures for the model card."""
    prompts = sheet_prompts(concepts)
    images = draw(pipeline, prompts)
    sheet(images, prompts).save(out / "sheet.png", optimize=True)
    sheet(images, None).save(out.parent / "sheet-unnamed.png")
    right_name, right_background = naming(folder, pipeline, concepts)
    return {
        "codec_psnr_own": codec.measure(folder, pipeline.vae, (pictures.NOTO, pictures.FLUENT_FLAT)),
        "codec_psnr_unseen": codec.measure(folder, pipeline.vae, pictures.UNSEEN_FAMILIES),
        "right_name": right_name,
        "right_background": right_background,
        "right_look": look_naming(folder, pipeline, concepts, {look: look for look in LOOKS}),
        "right_look_by_word": look_naming(folder, pipeline, concepts, {k: w[0] for k, w in captions.LOOK_WORDS.items()}),
        "pictures": sum(s.scenes * len(FAMILIES) + s.look_scenes * len(LOOKS) for s in SHAPES) * len(concepts),
    }
