"""Images and captions -> the cached training data: text encoders and VAE are loaded, used once, and freed."""

from __future__ import annotations

import logging
import math

import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from finetuner.bases import Base, Size, TextEmbeddings
from finetuner.data import CaptionedExample
from finetuner.training.dataset import Bucket, Dataset
from finetuner.training.preserve import GENERIC
from finetuner.training.recipe import Recipe

log = logging.getLogger(__name__)

# Width to height. Each image is cropped to the nearest: a few sizes, so that batches of one size can be filled.
ASPECTS = (1 / 1, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 21 / 9, 4 / 5, 3 / 4, 2 / 3, 9 / 16, 9 / 21)


def encode_dataset(
    examples: list[CaptionedExample], prompts: list[str], base: Base, recipe: Recipe
) -> tuple[Dataset, TextEmbeddings]:
    """Load the text encoders, use them once, free them; then the VAE the same way.

    Args:
        prompts: further texts to embed while the text encoders are here, for the report.

    Returns:
        The training data, and the embeddings of ``prompts``.
    """
    generic = GENERIC if recipe.preserved_images else ()
    plain = [e.plain if recipe.preserved_images else e.caption for e in examples]
    captions = ["", *sorted({e.caption for e in examples}.union(plain, generic) - {""})]
    index = {caption: n for n, caption in enumerate(captions)}
    embedded = base.family.encode_texts(base.load_text_encoders(), captions + prompts, base.max_sequence_length).to("cpu")
    vae = base.load_vae()
    found: dict[Size, list[tuple[torch.Tensor, int, int]]] = {}
    for example, without in zip(tqdm(examples, desc="Encoding images", mininterval=1), plain, strict=True):
        for size in bucket_sizes(example.image.size, recipe.resolutions, base.size_multiple):
            latents = base.family.encode_image(vae, crop_to(example.image, size))
            found.setdefault(size, []).append((latents, index[example.caption], index[without]))
    buckets = {}
    for size, rows in sorted(found.items()):
        latents, said, unsaid = zip(*rows, strict=True)
        buckets[size] = Bucket(torch.stack(latents), torch.tensor(said), torch.tensor(unsaid))
    log.info("Buckets: %s", ", ".join(f"{w} x {h} px: {len(b.captions)}" for (w, h), b in buckets.items()))
    texts, of_prompts = embedded[: len(captions)], embedded[len(captions) :]
    everyday = torch.tensor([index[prompt] for prompt in generic], dtype=torch.int64)
    return Dataset(buckets, texts, everyday, base.family, base.family.latent_statistics(vae)), of_prompts


def bucket_sizes(image_size: Size, resolutions: tuple[int, ...], multiple: int) -> list[Size]:
    """The sizes at which an image is trained on: one for each resolution that it has the pixels for.

    An image too small for all of them is used at its own size. No size is larger than the image in either direction,
    unless the image is smaller than the base's smallest patch.
    """
    width, height = image_size
    aspect = min(ASPECTS, key=lambda a: abs(math.log(a * height / width)))
    sizes = [_size_of_area(aspect, side, multiple) for side in resolutions]
    fitting = [(w, h) for w, h in sizes if w <= width and h <= height]
    if not fitting:
        scale = min(width / aspect**0.5, height * aspect**0.5)  # side of the largest square area inside the image
        fitting = [_size_of_area(aspect, scale, multiple, round_=math.floor)]
    return sorted(set(fitting))


def _size_of_area(aspect: float, side: float, multiple: int, round_=round) -> Size:
    width, height = side * aspect**0.5, side / aspect**0.5
    return max(1, round_(width / multiple)) * multiple, max(1, round_(height / multiple)) * multiple


def crop_to(image: Image.Image, size: Size) -> Image.Image:
    """Scale the image down over ``size`` and crop what stands out, evenly on both sides."""
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
