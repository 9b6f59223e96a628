"""The cached training data: latents and text embeddings in buckets of one size each, and the order they are trained in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch

from finetuner.bases import Family, Grid, LatentStatistics, Size, TextEmbeddings, device


@dataclass(frozen=True)
class Bucket:
    """All images of one size."""

    latents: torch.Tensor  # what the family caches of each image: [N, values, height, width]
    captions: torch.Tensor  # int64 [N]: index into the dataset's texts
    plain: torch.Tensor  # the same, of each caption without the trigger word


@dataclass(frozen=True)
class Batch:
    """What one training step needs, on the transformer's device."""

    latents: torch.Tensor  # float32 [B, tokens, channels], normalised and packed
    grid: Grid  # of the tokens
    texts: TextEmbeddings  # of B prompts

    def __getitem__(self, rows: slice) -> Batch:
        return replace(self, latents=self.latents[rows], texts=self.texts[rows])

    @classmethod
    def cat(cls, parts: list[Batch]) -> Batch:
        """All of the parts' images, of one size."""
        texts = TextEmbeddings.cat([part.texts for part in parts])
        return cls(torch.cat([part.latents for part in parts]), parts[0].grid, texts)


@dataclass(frozen=True)
class Dataset:
    """The cached training data, on the CPU: of FLUX.1-dev each caption is 4 MiB, and 2,000 of them a tenth of a large card.
    ``texts`` holds the empty caption first (for caption dropout)."""

    buckets: dict[Size, Bucket]
    texts: TextEmbeddings
    generic: torch.Tensor  # int64: which of the texts are of everyday things, none of them the concept
    family: Family
    statistics: LatentStatistics

    def batch(self, size: Size, rows: torch.Tensor, texts: torch.Tensor, generator: torch.Generator) -> Batch:
        """Draw latents of the images ``rows`` of a bucket, each with the text that ``texts`` (int64 [B]) says."""
        latents, grid = self.family.draw_latents(self.buckets[size].latents[rows], self.statistics, generator)
        return Batch(latents.to(device()), grid, self.texts[texts].to(device()))


def batch_schedule(buckets: dict[Size, Bucket], steps: int, batch_size: int, seed: int) -> list[tuple[Size, torch.Tensor]]:
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
