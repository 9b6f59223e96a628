"""What a base draws of image prompts that it never saw: the right thing, and the colours. For both families."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from finetuner.bases import Base, ImagePrompt, TextEmbeddings
from finetuner.serving import decode_latents, sample_latents

from .. import pictures
from ..evaluate import features, training_pictures
from ..pictures import BACKGROUNDS, Concept

COUNT = 200
BATCH = 20
STEPS = 12
SIZE = (96, 96)  # pixels of a prompt


class Drawing:
    """A base that draws many pictures at once, each from its own prompt and image prompt."""

    def __init__(self, base: Base):
        self.base, self.pipeline = base, base.load_pipeline()
        self.pipeline.set_progress_bar_config(disable=True)
        self.reader = base.load_image_reader(self.pipeline)

    def texts(self, prompts: list[str]) -> TextEmbeddings:
        return self.base.family.encode_texts(self.pipeline, prompts, self.base.max_sequence_length)

    def read(self, images: list[Image.Image]) -> ImagePrompt:
        """Of each picture, [N, tokens, width]."""
        read = [self.base.read_image(self.reader, image) for image in images]
        return replace(read[0], tokens=torch.cat([prompt.tokens for prompt in read]))

    def __call__(self, prompts: list[str], read: ImagePrompt | None, strength: float = 1.0, seed: int = 0) -> np.ndarray:
        """uint8 [N, side, side, 3], every picture from the noise of one seed."""
        side = self.base.sampling_side
        images = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            latents = sample_latents(
                self.pipeline,
                self.texts(prompts[part]),
                (side, side),
                steps=STEPS,
                guidance=self.base.sampling_guidance,
                seed=seed + start,
                empty=self.texts([""]) if self.base.guidance == "cfg" else None,
                image_prompt=None if read is None else replace(read, tokens=read.tokens[part]),
                image_prompt_strength=strength,
            )
            images += decode_latents(self.pipeline, latents, (side, side))
        return np.stack([np.asarray(image) for image in images])


def held_out(folder: Path, concepts: list[Concept], family: str, seed: int) -> tuple[list[Image.Image], np.ndarray, np.ndarray]:
    """Pictures of a family's drawings, each with its thing and its background, by number."""
    rng = np.random.default_rng(seed)
    codes = set(pictures.family_codes(folder, family))
    known = [number for number, concept in enumerate(concepts) if concept.code in codes]
    things, backgrounds = rng.choice(known, COUNT), rng.integers(len(BACKGROUNDS), size=COUNT)
    colours = list(BACKGROUNDS.values())
    images = [
        Image.fromarray(
            pictures.compose(
                pictures.drawing(folder, family, concepts[t].code),
                colours[b],
                SIZE,
                rng.uniform(0.65, 0.95),
                tuple(rng.uniform(0.3, 0.7, 2)),
            )
        )
        for t, b in zip(things, backgrounds, strict=True)
    ]
    return images, things, backgrounds


class Names:
    """Names a picture by the nearest training picture on its background."""

    def __init__(self, folder: Path, concepts: list[Concept]):
        self.banks = [features(training_pictures(folder, concepts, background)) for background in BACKGROUNDS]
        self.colours = np.array(list(BACKGROUNDS.values()), np.float32)

    def backgrounds(self, images: np.ndarray) -> np.ndarray:
        """Of each picture, the background colour nearest to its corners, by number."""
        corners = np.median(images[:, [0, 0, -1, -1], [0, -1, 0, -1]].astype(np.float32), axis=1)
        return ((corners[:, None] - self.colours) ** 2).sum(2).argmin(1)

    def things(self, images: np.ndarray, backgrounds: np.ndarray) -> np.ndarray:
        seen = features(images)
        return np.array([((self.banks[b] - one) ** 2).sum(1).argmin() // 9 for b, one in zip(backgrounds, seen, strict=True)])


def colours_of(images: np.ndarray, backgrounds: np.ndarray) -> np.ndarray:
    """The mean colour of what is drawn, float32 [N, 3]: of the pixels that are not the background."""
    behind = np.array(list(BACKGROUNDS.values()), np.float32)[backgrounds]
    pixels = images.astype(np.float32)
    drawn = np.abs(pixels - behind[:, None, None]).max(3, keepdims=True) > 40
    return (pixels * drawn).sum((1, 2)) / np.maximum(drawn.sum((1, 2)), 1)


def evaluate(folder: Path, base: Base, concepts: list[Concept], families: tuple[str, ...]) -> dict[str, float]:
    """With the empty prompt, at strength 1: shares of the pictures with the right thing and the right background, and the
    correlation of the drawn colours with those of the image prompts; and the share of the image prompts themselves that are
    named right. By family of drawings."""
    draws, names, figures = Drawing(base), Names(folder, concepts), {}
    for number, family in enumerate(families):
        shown, things, backgrounds = held_out(folder, concepts, family, 71 + number)
        images = draws([""] * COUNT, draws.read(shown))
        asked = np.stack([np.asarray(image.resize(images.shape[1:3])) for image in shown])
        wanted, drawn = (colours_of(pixels, backgrounds) for pixels in (asked, images))
        figures[f"{family}_thing"] = float((names.things(images, backgrounds) == things).mean())
        figures[f"{family}_named"] = float((names.things(asked, backgrounds) == things).mean())
        figures[f"{family}_background"] = float((names.backgrounds(images) == backgrounds).mean())
        figures[f"{family}_colour"] = float(np.corrcoef(wanted.ravel(), drawn.ravel())[0, 1])
    return figures
