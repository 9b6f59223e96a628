"""The strength sheet: what a finetune draws, from strength 0 (the base) up; and pictures in rows under their labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from finetuner.bases import Base, Size, TextEmbeddings
from finetuner.requests import FinetuneRequest
from finetuner.serving import decode_latents, native_size, sample_latents
from finetuner.training import Recipe, set_strength

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
# A sheet may take a twentieth of the job. A LoRA step of FLUX.1-dev costs 45 TFLOP an image at 512 px, a forward 20, so that
# 150 steps of 4 images cost 1,350 forwards; a prompt at 4 strengths in 8 steps each costs 32 of them, 2.4 % (1.2 % of a full
# training; twice that where guidance is a second forward). Both grow alike with the area, so that pictures of the smallest
# area trained on keep the share. The whole report takes up to 4.6 % of a job on flux-emoji (benchmarks/RESULTS.md), where
# steps are cheap beside it. At 1024 px a forward takes 0.23 s on an H100 (28 of them: 6.57 s, published), and a fifth more
# with the LoRA: three prompts take 27 s.
SAMPLING_STEPS = 8  # the finetuned pictures look as they do in 20
STEPS_A_PROMPT = 150  # of training
SEED = 0
# Pictures drawn at once for each image that training had at once: all 12 where it had the batch of 4. Where every block was
# checkpointed, three without a backward pass take 0.9 of the memory of one image in training (FLUX.2 klein 4B at 1024 px, 1.79
# of 1.99 GiB beside the weights, by a trace as script/plan's; FLUX.1-dev: 1.37 of 3.23).
PICTURES_AN_IMAGE = 3
CELL = 192  # pixels: small pictures are enlarged, large ones reduced


@dataclass(frozen=True)
class Sheet:
    """A row a prompt, a column a strength, one seed: what differs in a row is the strength alone."""

    prompts: list[str]
    rows: list[list[Image.Image]]

    @property
    def size(self) -> Size:
        return self.rows[0][0].size

    def picture(self) -> Image.Image:
        return labelled_grid(self.rows, self.prompts, [f"strength {s:g}" for s in STRENGTHS])


def sheet_prompts(request: FinetuneRequest) -> list[str]:
    """Prompts that show what was learned, on subjects and backgrounds that no training set dictates; the first says most.
    A short training pays for fewer."""
    word = request.trigger_word
    prompts = [word, f"{word} on a blue background", f"a drawing of {word}"]
    if request.mode == "style":
        prompts = [f"a {subject}, {word} style" for subject in ("cat", "house", "red apple")]
    return prompts[: max(1, request.training_steps // STEPS_A_PROMPT)]


@torch.no_grad()
def strength_sheet(
    pipeline: DiffusionPipeline,
    base: Base,
    recipe: Recipe,
    prompts: list[str],
    texts: TextEmbeddings,
    empty: TextEmbeddings,
) -> Sheet:
    """Draw it.

    Args:
        texts: the embeddings of ``prompts``, in order.
        empty: that of the empty prompt.
    """
    side = min(base.sampling_side, *recipe.resolutions)
    size = native_size(1.0, side, base.size_multiple)
    texts, empty = texts.to(pipeline.device), empty.to(pipeline.device)
    guidance = base.sampling_guidance
    pipeline.vae.enable_slicing()  # decoding all of a batch at once would need more memory than training did
    strengths = torch.tensor(STRENGTHS, device=pipeline.device).repeat(len(prompts))
    numbers = torch.arange(len(prompts)).repeat_interleave(len(STRENGTHS))  # of the prompts, picture by picture
    at_once = PICTURES_AN_IMAGE * recipe.plan.micro_batch
    pictures: list[Image.Image] = []
    for prompt, strength in zip(numbers.split(at_once), strengths.split(at_once), strict=True):
        set_strength(pipeline.transformer, strength)
        latents = sample_latents(pipeline, texts[prompt], size, steps=SAMPLING_STEPS, guidance=guidance, seed=SEED, empty=empty)
        pictures += decode_latents(pipeline, latents, size)
    set_strength(pipeline.transformer, 1.0)
    columns = len(STRENGTHS)
    return Sheet(prompts, [pictures[start : start + columns] for start in range(0, len(pictures), columns)])


def labelled_grid(
    rows: list[list[Image.Image]], row_labels: list[str], column_labels: list[str], cell: int = CELL
) -> Image.Image:
    """Square pictures in rows, each row under its label, columns under theirs."""
    margin, label = 12, 30
    font = ImageFont.load_default(16)
    width = len(column_labels) * (cell + margin) + margin
    grid = Image.new("RGB", (width, label + margin + len(rows) * (cell + label + margin)), "white")
    draw = ImageDraw.Draw(grid)
    for column, text in enumerate(column_labels):
        draw.text((margin + column * (cell + margin) + cell / 2, margin), text, "black", font, anchor="ma")
    for row, (images, text) in enumerate(zip(rows, row_labels, strict=True)):
        top = label + margin + row * (cell + label + margin)
        draw.text((margin, top + label / 2), text, "dimgrey", font, anchor="lm")
        for column, image in enumerate(images):
            smaller = image.width < cell
            scaled = image.resize((cell, cell), Image.Resampling.NEAREST if smaller else Image.Resampling.LANCZOS)
            grid.paste(scaled, (margin + column * (cell + margin), top + label))
    return grid


def contact_sheet(images: list[Image.Image], columns: int = 6, cell: int = 128) -> Image.Image:
    """Pictures of any shape, whole, in a grid of square cells."""
    gap = 8
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + gap) + gap), "white")
    for number, image in enumerate(images):
        small = thumbnail(image, cell)
        row, column = divmod(number, columns)
        left, top = (gap + place * (cell + gap) for place in (column, row))
        sheet.paste(small, (left + (cell - small.width) // 2, top + (cell - small.height) // 2))
    return sheet


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """The whole image, at most ``side`` pixels long; never enlarged."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small
