"""What Redux looks at while it learns: drawings of four families, turned, scaled and moved, on the named backgrounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from .. import pictures
from ..pictures import BACKGROUNDS, Concept

SIDE = 72  # pixels
# Each with the family that the base draws it as: the one whose colours and shapes are nearest. Twemoji and OpenMoji are left
# out: a drawing that Redux never saw is one of theirs.
DRAWN_AS = {
    pictures.NOTO: pictures.NOTO,
    pictures.FLUENT_FLAT: pictures.FLUENT_FLAT,
    pictures.FLUENT: pictures.FLUENT_FLAT,
    pictures.NOTO_V1: pictures.NOTO,
}
SHARES = (0.35, 0.35, 0.15, 0.15)
SCALES = (0.6, 1.0)  # of the longer side
TURN = math.radians(8)
STRETCH = 0.1
BACKGROUND_JITTER, COLOUR_JITTER = 14, 20  # grey levels: neither "teal" nor a banana's yellow is one colour


@dataclass(frozen=True)
class Views:
    """float32 [B, 3, 72, 72] in -1..1, and int64 [B]: concept, family (index into `DRAWN_AS`), background."""

    pixels: torch.Tensor
    concepts: torch.Tensor
    families: torch.Tensor
    backgrounds: torch.Tensor

    def __getitem__(self, rows: slice) -> Views:
        return Views(*(part[rows] for part in vars(self).values()))

    @property
    def labels(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.concepts, self.families, self.backgrounds


class ViewMaker:
    def __init__(self, folder: Path, concepts: list[Concept]):
        codes = [set(pictures.family_codes(folder, family)) for family in DRAWN_AS]
        rows, self.rows = [], {}
        for number, concept in enumerate(concepts):
            for family, name in enumerate(DRAWN_AS):
                if concept.code in codes[family]:
                    self.rows[family, number] = len(rows)
                    rows.append(_squared(pictures.drawing(folder, name, concept.code)))
        self.sources = torch.stack(rows)  # uint8 [N, 4, 72, 72], RGB times alpha, alpha
        self.concepts = len(concepts)
        self.colours = torch.tensor(list(BACKGROUNDS.values())) / 255

    def family_for(self, concept: int, generator: torch.Generator) -> int:
        """A family that has a drawing of the thing."""
        while True:
            family = int(torch.multinomial(torch.tensor(SHARES), 1, generator=generator))
            if (family, concept) in self.rows:
                return family

    def batch(self, count: int, generator: torch.Generator) -> Views:
        def uniform(*shape: int, low: float = -1.0, high: float = 1.0) -> torch.Tensor:
            return low + (high - low) * torch.rand(*shape, generator=generator)

        concepts = torch.randint(self.concepts, (count,), generator=generator)
        families = torch.tensor([self.family_for(concept, generator) for concept in concepts.tolist()])
        rows = [self.rows[pair] for pair in zip(families.tolist(), concepts.tolist(), strict=True)]
        backgrounds = torch.randint(len(self.colours), (count,), generator=generator)
        behind = self.colours[backgrounds] + uniform(count, 3) * BACKGROUND_JITTER / 255

        scale, stretch = uniform(count, low=SCALES[0], high=SCALES[1]), 1 + uniform(count) * STRETCH
        across, down, angle = scale * stretch, scale / stretch, uniform(count) * TURN
        turn = torch.stack([angle.cos() / across, angle.sin() / across, -angle.sin() / down, angle.cos() / down], 1)
        turn = turn.reshape(-1, 2, 2)
        place = torch.stack([uniform(count) * (1 - scale), uniform(count) * (1 - scale)], 1)
        where = torch.cat([turn, -turn @ place[:, :, None]], 2)
        sources = self.sources[rows].float() / 255
        grid = functional.affine_grid(where, list(sources.shape), align_corners=False)
        drawn = functional.grid_sample(sources, grid, align_corners=False)
        colour, alpha = drawn[:, :3], drawn[:, 3:]
        colour = colour + alpha * uniform(count, 3, 1, 1) * COLOUR_JITTER / 255
        pixels = (colour + (1 - alpha) * behind[:, :, None, None]).clamp(0, 1)
        return Views(2 * pixels - 1, concepts, families, backgrounds)


def _squared(picture: Image.Image) -> torch.Tensor:
    """Scaled to the side of a view on the longer side, in the middle of a square."""
    factor = SIDE / max(picture.size)
    picture = picture.resize([max(1, round(side * factor)) for side in picture.size], Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    pixels = np.array(square, np.uint16)
    pixels[..., :3] = pixels[..., :3] * pixels[..., 3:] // 255
    return torch.from_numpy(pixels.astype(np.uint8)).permute(2, 0, 1).contiguous()
