"""The two judges of a picture: a style probe (which look it has, whatever it shows) and a content probe (what it shows,
whatever its look). Small CNNs on 64 px pictures; their weights lie beside this file, `train_probes` makes them.

They stand in for the field's judges (CLIP, DINO), which were not made for pictures like these.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from benchmarks.fidelity.drawings import CORNER, FOLDER, LOOKS, SIDE, codes
from script.embedded_base import pictures

HERE = Path(__file__).parent

CONTENT_LOOKS = (*LOOKS, "emojione-monotone")
HELD_OUT_LOOK = "fxemoji"  # the content probe never sees it
NAMED_GROUPS = (3, 4, 6)  # emojibase's animals and plants, food, activities: named by the content probe beside the base's own

STANDS_OUT = 0.2  # of -1..1: a pixel further from the background than this belongs to the drawing
FEATURES = 192


class Probe(nn.Module):
    """float32 [B, 3, 64, 64] in -1..1 -> class scores [B, classes]. ``features``: [B, width], the penultimate layer."""

    classes: list[str]
    head: nn.Linear

    def features(self, images: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))

    @torch.inference_mode()
    def judge(self, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [N, 64, 64, 3] -> probabilities [N, classes] and features of unit length [N, F], both float32."""
        features = self.features(torch.from_numpy(pictures.to_tensor_range(images)))
        return self.head(features).softmax(1), nn.functional.normalize(features, dim=1)


def convolutions(*channels: int) -> list[nn.Module]:
    """Each halves the side."""
    blocks = []
    for before, after in itertools.pairwise(channels):
        blocks += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return blocks


class StyleProbe(Probe):
    """Pools over all places: where a thing stands and what it is says little of its look."""

    def __init__(self, classes: list[str]):
        super().__init__()
        self.classes = classes
        self.trunk = nn.Sequential(*convolutions(3, 24, 48, 96, 96), nn.Conv2d(96, 96, 1), nn.ReLU())
        self.head = nn.Linear(2 * 96, len(classes))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.trunk(images)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)


class ContentProbe(Probe):
    """Sees the drawing alone: cut out of its background and brought to one size, so that where and on what it stands is
    nothing to learn."""

    def __init__(self, classes: list[str]):
        super().__init__()
        self.classes = classes
        self.trunk = nn.Sequential(*convolutions(4, 32, 64, 64), nn.Flatten(), nn.Linear(64 * 16, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, len(classes))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.trunk(cut_out(images))


def cut_out(images: torch.Tensor) -> torch.Tensor:
    """The drawing over grey, filling the frame, with its mask: [B, 3, 64, 64] -> [B, 4, 32, 32]."""
    corners = torch.cat([images[..., :CORNER, :], images[..., -CORNER:, :]], dim=2)
    corners = torch.cat([corners[..., :CORNER], corners[..., -CORNER:]], dim=3)
    background = corners.flatten(2).median(2).values[..., None, None]
    mask = (images - background).abs().amax(1, keepdim=True) > STANDS_OUT
    columns, rows = mask.any(2).flatten(1).float(), mask.any(3).flatten(1).float()
    (left, right), (top, bottom) = _ends(columns), _ends(rows)
    half = torch.maximum(right - left, bottom - top) / 2 + 1 / SIDE
    frame = torch.zeros(len(images), 2, 3)
    frame[:, 0, 0] = frame[:, 1, 1] = half
    frame[:, 0, 2], frame[:, 1, 2] = (left + right) / 2, (top + bottom) / 2
    drawn = torch.cat([images * mask, mask.float()], dim=1)
    grid = nn.functional.affine_grid(frame, [len(images), 4, SIDE, SIDE], align_corners=False)
    return nn.functional.avg_pool2d(nn.functional.grid_sample(drawn, grid, align_corners=False), 2)


def _ends(filled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of 0 and 1, [B, side], where the first and the last 1 stand, in -1..1; all of it where there is none."""
    side = filled.shape[1]
    empty = filled.sum(1) == 0
    first = filled.argmax(1).masked_fill(empty, 0)
    last = side - 1 - filled.flip(1).argmax(1).masked_fill(empty, 0)
    return 2 * first / side - 1, 2 * (last + 1) / side - 1


KINDS: dict[str, type[Probe]] = {"style": StyleProbe, "content": ContentProbe}


@dataclass(frozen=True)
class Probes:
    style: Probe
    content: Probe
    accuracy: dict[str, float]  # on real pictures that were held out


@cache
def load_probes() -> Probes:
    probes, accuracy = {}, {}
    for kind, make in KINDS.items():
        with safe_open(HERE / f"{kind}.safetensors", "pt") as file:
            facts = {key: json.loads(value) for key, value in file.metadata().items()}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        probe = make(facts["classes"])
        probe.load_state_dict(weights, strict=False)  # BatchNorm's counts are not kept
        probes[kind] = probe.eval().requires_grad_(False)
        accuracy |= facts["accuracy"]
    return Probes(**probes, accuracy=accuracy)


def contents() -> dict[str, str]:
    """Code point -> name of what the content probe can name: the base's concepts, and things it never drew."""
    named = {concept.code: concept.name for concept in pictures.concepts(FOLDER)}
    drawn = [set(codes(look)) for look in CONTENT_LOOKS]
    for emoji in json.loads((FOLDER / "emoji.json").read_text()):
        code = emoji["hexcode"].lower().removesuffix("-fe0f").lstrip("0")
        if emoji.get("group") in NAMED_GROUPS and sum(code in of_look for of_look in drawn) >= 5:
            named.setdefault(code, emoji["label"])
    return named
