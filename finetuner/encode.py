"""Images and captions -> cached latents and text embeddings, in buckets of one size each."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline
from PIL import Image, ImageOps
from tqdm import tqdm

from finetuner.archive import Example
from finetuner.base import Base, device

log = logging.getLogger(__name__)

# Width to height. Each image is cropped to the nearest: a few sizes, so that batches of one size can be filled.
ASPECTS = (1 / 1, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 21 / 9, 4 / 5, 3 / 4, 2 / 3, 9 / 16, 9 / 21)

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class TextEmbeddings:
    """Of one or more prompts: T5's embeddings [N, length, width] and CLIP's pooled ones [N, width]."""

    embeds: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True)
class Bucket:
    """All images of one size."""

    moments: torch.Tensor  # the VAE's mean and log variance: [N, 2 * channels, height, width] in latent pixels
    captions: torch.Tensor  # int64 [N]: index into the dataset's texts


@dataclass(frozen=True)
class Batch:
    """What one training step needs, on the transformer's device."""

    latents: torch.Tensor  # float32 [B, tokens, 4 * channels], normalised and packed
    image_ids: torch.Tensor  # [tokens, 3]
    text_ids: torch.Tensor  # [length, 3]
    text_embeds: torch.Tensor  # [B, length, width]
    pooled_embeds: torch.Tensor  # [B, width]

    def __getitem__(self, rows: slice) -> Batch:
        return replace(
            self,
            latents=self.latents[rows],
            text_embeds=self.text_embeds[rows],
            pooled_embeds=self.pooled_embeds[rows],
        )


@dataclass(frozen=True)
class Dataset:
    """The cached training data, on the CPU: of FLUX.1-dev each caption is 4 MiB, and 2,000 of them a tenth of a large card.
    ``texts`` holds the empty caption first (for caption dropout)."""

    buckets: dict[Size, Bucket]
    texts: TextEmbeddings
    shift_factor: float
    scaling_factor: float

    def batch(self, size: Size, rows: torch.Tensor, texts: torch.Tensor, generator: torch.Generator) -> Batch:
        """Draw latents from the moments of ``rows``, each with the text that ``texts`` (int64 [B]) says."""
        bucket, embeds = self.buckets[size], self.texts.embeds
        mean, log_variance = bucket.moments[rows].float().chunk(2, dim=1)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
        latents = (latents - self.shift_factor) * self.scaling_factor
        count, channels, height, width = latents.shape
        place = {"device": device(), "dtype": embeds.dtype}
        return Batch(
            latents=FluxPipeline._pack_latents(latents, count, channels, height, width).to(device()),
            image_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, **place),
            text_ids=torch.zeros(embeds.shape[1], 3, **place),
            text_embeds=embeds[texts].to(device()),
            pooled_embeds=self.texts.pooled[texts].to(device()),
        )


def encode(
    examples: list[Example], prompts: list[str], base: Base, resolutions: tuple[int, ...]
) -> tuple[Dataset, TextEmbeddings]:
    """Load the text encoders, use them once, free them; then the VAE the same way.

    Args:
        prompts: further texts to embed while the text encoders are here, for the report.
        resolutions: sides of the square areas to train at, in pixels.

    Returns:
        The training data, and the embeddings of ``prompts``.
    """
    captions = ["", *sorted({e.caption for e in examples})]
    index = {caption: n for n, caption in enumerate(captions)}
    embedded = encode_texts(base.load_text_encoders(), captions + prompts, base.max_sequence_length)
    texts, of_prompts = (
        TextEmbeddings(embedded.embeds[part].cpu(), embedded.pooled[part].cpu())
        for part in (slice(None, len(captions)), slice(len(captions), None))
    )
    vae = base.load_vae()
    found: dict[Size, list[tuple[torch.Tensor, int]]] = {}
    for example in tqdm(examples, desc="Encoding images", mininterval=1):
        for size in bucket_sizes(example.image.size, resolutions, base.size_multiple):
            row = encode_image(vae, fit(example.image, size)), index[example.caption]
            found.setdefault(size, []).append(row)
    buckets = {
        size: Bucket(torch.stack([moments for moments, _ in rows]), torch.tensor([caption for _, caption in rows]))
        for size, rows in sorted(found.items())
    }
    log.info("Buckets: %s", ", ".join(f"{w} x {h} px: {len(b.captions)}" for (w, h), b in buckets.items()))
    return Dataset(buckets, texts, vae.config.shift_factor, vae.config.scaling_factor), of_prompts


@torch.no_grad()
def encode_texts(encoders: FluxPipeline, prompts: list[str], max_sequence_length: int) -> TextEmbeddings:
    """One prompt at a time: T5-XXL's activations of a large batch would need more memory than its weights."""
    rows = [encoders.encode_prompt(p, None, max_sequence_length=max_sequence_length)[:2] for p in prompts]
    return TextEmbeddings(torch.cat([embeds for embeds, _ in rows]), torch.cat([pooled for _, pooled in rows]))


@torch.no_grad()
def encode_image(vae: AutoencoderKL, image: Image.Image) -> torch.Tensor:
    """The posterior's moments, on the CPU: [2 * channels, height / downscale, width / downscale]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.parameters[0].cpu()


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


def fit(image: Image.Image, size: Size) -> Image.Image:
    """Scale the image down over ``size`` and crop what stands out, evenly on both sides."""
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def fingerprint(examples: list[Example]) -> str:
    """SHA-256 of every pixel and caption."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.name}\0{example.caption}\0{example.image.size}\0".encode())
        digest.update(example.image.tobytes())
    return digest.hexdigest()


def schedule(buckets: dict[Size, Bucket], steps: int, batch_size: int, seed: int) -> list[tuple[Size, torch.Tensor]]:
    """Which images each step trains on: (size, int64 [batch_size]).

    Buckets come up as often as they have images; within one, every image comes up before any does again.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = list(buckets)
    counts = torch.tensor([len(buckets[size].captions) for size in sizes], dtype=torch.float64)
    drawn = torch.multinomial(counts, steps, replacement=True, generator=generator).tolist()
    rows = {}
    for index, batches in Counter(drawn).items():
        count, needed = int(counts[index]), batches * batch_size
        epochs = [torch.randperm(count, generator=generator) for _ in range(-(-needed // count))]
        rows[index] = iter(torch.cat(epochs)[:needed].split(batch_size))
    return [(sizes[index], next(rows[index])) for index in drawn]
