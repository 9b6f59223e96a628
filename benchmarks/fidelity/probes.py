"""The two judges of a picture: a style probe (which look it has, whatever it shows) and a content probe (what it shows,
whatever its look). Small CNNs on 64 px pictures; their weights lie beside this file.

They stand in for the field's judges (CLIP, DINO), which were not made for pictures like these. ``python -m
benchmarks.fidelity.probes`` trains them anew and prints their accuracies on real pictures that they never saw.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import trange

from benchmarks.fidelity.drawings import FOLDER, LOOKS, SIDE, codes, scene
from finetuner.base import EMBEDDED, WEIGHTS, Base
from script.embedded_base import pictures

HERE = Path(__file__).parent

CONTENT_LOOKS = (*LOOKS, "emojione-monotone")
HELD_OUT_LOOK = "fxemoji"  # the content probe never sees it
NAMED_GROUPS = (3, 4, 6)  # emojibase's animals and plants, food, activities: named by the content probe beside the base's own
HELD_OUT_SHARE = 5  # every so many-th content is kept from the style probe

SCENES = {"style": 2, "content": 3}  # of each drawing
STEPS = {"style": 1000, "content": 1000}
WIDTH = {"style": 96, "content": 160}
BATCH = 128
TESTED = 300  # pictures of each test: the VAE takes 50 ms for one
LEARNING_RATE = 3e-3
LABEL_SMOOTHING = 0.05


class Probe(nn.Module):
    """float32 [B, 3, 64, 64] in -1..1 -> class scores [B, classes]. ``features``: [B, width], the penultimate layer."""

    def __init__(self, classes: list[str], width: int):
        super().__init__()
        self.classes = classes
        channels = (3, 24, 48, 96, width)
        blocks = []
        for before, after in itertools.pairwise(channels):
            blocks += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.trunk = nn.Sequential(*blocks, nn.Conv2d(width, width, 1), nn.ReLU())
        self.head = nn.Linear(2 * width, len(classes))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.trunk(images)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))

    @torch.inference_mode()
    def judge(self, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [N, 64, 64, 3] -> probabilities [N, classes] and features of unit length [N, F], both float32."""
        features = self.features(torch.from_numpy(pictures.to_tensor_range(images)))
        return self.head(features).softmax(1), nn.functional.normalize(features, dim=1)


@dataclass(frozen=True)
class Probes:
    style: Probe
    content: Probe
    accuracy: dict[str, float]  # on real pictures that were held out


@cache
def load_probes() -> Probes:
    probes, accuracy = {}, {}
    for kind in ("style", "content"):
        with safe_open(HERE / f"{kind}.safetensors", "pt") as file:
            facts = {key: json.loads(value) for key, value in file.metadata().items()}
            probe = Probe(facts["classes"], WIDTH[kind])
            probe.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()}, strict=False)  # noqa: SIM118
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


def random_scene(look: str, code: str, rng: np.random.Generator) -> np.ndarray:
    """The drawing on a named background or any bright one (black drawings must show), at any place: uint8 [64, 64, 3]."""
    named = [colour for name, colour in pictures.BACKGROUNDS.items() if name != "black"]
    background = named[rng.integers(len(named))] if rng.random() < 0.7 else tuple(int(c) for c in rng.integers(60, 256, 3))
    return scene(look, code, background, SIDE, rng.uniform(0.6, 1.0), tuple(rng.uniform(0.2, 0.8, 2)))


@dataclass(frozen=True)
class Bank:
    """Scenes with what they are: uint8 [N, 64, 64, 3], and of each its look and code."""

    scenes: np.ndarray
    looks: np.ndarray
    codes: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Bank:
        return Bank(self.scenes[rows], self.looks[rows], self.codes[rows])


def make_bank(looks: tuple[str, ...], scenes: int, seed: int, wanted: Container[str]) -> Bank:
    rng = np.random.default_rng(seed)
    rows = [(look, code) for look in looks for code in codes(look) if code in wanted for _ in range(scenes)]
    found = np.stack([random_scene(look, code, rng) for look, code in rows])
    return Bank(found, *np.array(rows).T)


@torch.inference_mode()
def through_vae(vae: AutoencoderKL, scenes: np.ndarray) -> np.ndarray:
    """As soft as what the base draws: uint8 [N, 64, 64, 3]."""
    soft = []
    for part in torch.from_numpy(pictures.to_tensor_range(scenes)).split(64):
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(vae.encode(part).latent_dist.sample()).sample
        soft.append(((decoded.float().clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(soft).permute(0, 2, 3, 1).numpy()


def augment(images: torch.Tensor) -> torch.Tensor:
    """Turn, stretch, mirror and soften a little: generated drawings are never quite the original. [B, 3, H, W]."""
    count = len(images)
    angle = torch.randn(count) * 0.1
    stretch = 1 + 0.1 * torch.randn(2, count)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    zero = 0.05 * torch.randn(count)
    turn = torch.stack(
        [mirror * stretch[0] * angle.cos(), -angle.sin(), zero, mirror * angle.sin(), stretch[1] * angle.cos(), zero]
    )
    grid = nn.functional.affine_grid(turn.T.reshape(count, 2, 3), list(images.shape), align_corners=False)
    images = nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if torch.rand(()) < 0.3:
        small = nn.functional.interpolate(images, scale_factor=float(torch.empty(()).uniform_(0.6, 0.95)), mode="area")
        images = nn.functional.interpolate(small, size=images.shape[2:], mode="bilinear", align_corners=False)
    return images + 0.04 * torch.rand(()) * torch.randn_like(images)


def train_probe(kind: str, bank: Bank, labels: np.ndarray, classes: list[str]) -> Probe:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    probe = Probe(classes, WIDTH[kind]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS[kind])
    targets = torch.from_numpy(labels)
    progress = trange(STEPS[kind], desc=f"{kind} probe", mininterval=10)
    for _ in progress:
        rows = rng.integers(len(labels), size=BATCH)
        images = augment(torch.from_numpy(pictures.to_tensor_range(bank.scenes[rows])))
        with torch.autocast("cpu", torch.bfloat16):
            scores = probe(images.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(scores.float(), targets[rows], label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return probe.eval()


def accuracy(probe: Probe, scenes: np.ndarray, labels: np.ndarray, top: int = 1) -> float:
    """Share of pictures whose label is among the ``top`` likeliest."""
    found = torch.cat([probe.judge(part)[0].topk(top).indices for part in np.array_split(scenes, -(-len(scenes) // 256))])
    return (found == torch.from_numpy(labels)[:, None]).any(1).float().mean().item()


def train_style() -> Probe:
    bank = make_bank(LOOKS, SCENES["style"], 1, style_codes() - held_out_codes())
    rng = np.random.default_rng(0)  # as many of each look: the families draw different numbers of things
    rows = np.concatenate([rng.choice(np.flatnonzero(bank.looks == look), 2200) for look in LOOKS])
    bank = bank[rows]
    return train_probe("style", bank, labels_of(bank.looks, {look: n for n, look in enumerate(LOOKS)}), list(LOOKS))


def train_content() -> Probe:
    named = contents()
    bank = make_bank(CONTENT_LOOKS, SCENES["content"], 2, named)
    index = {code: n for n, code in enumerate(named)}
    return train_probe("content", bank, labels_of(bank.codes, index), list(named.values()))


def style_codes() -> set[str]:
    return {code for look in LOOKS for code in codes(look)}


def held_out_codes() -> set[str]:
    return set(sorted(style_codes())[::HELD_OUT_SHARE])


def style_accuracy(probe: Probe, vae: AutoencoderKL, scenes: int = TESTED) -> dict[str, float]:
    """On contents that it never saw in any look, as drawn and as soft as generated pictures are."""
    bank = sampled(make_bank(LOOKS, 1, 3, held_out_codes()), scenes)
    labels = labels_of(bank.looks, {look: n for n, look in enumerate(probe.classes)})
    return {
        "style, contents held out": accuracy(probe, bank.scenes, labels),
        "style, contents held out, through the VAE": accuracy(probe, through_vae(vae, bank.scenes), labels),
    }


def content_accuracy(probe: Probe, vae: AutoencoderKL, scenes: int = TESTED) -> dict[str, float]:
    """On new backgrounds and places, and on a look that it never saw."""
    named = contents()
    index = {code: n for n, code in enumerate(named)}
    found = {}
    for what, looks in (("placements", CONTENT_LOOKS), ("look", (HELD_OUT_LOOK,))):
        bank = sampled(make_bank(looks, 1, 4, named), scenes)
        labels = labels_of(bank.codes, index)
        soft = through_vae(vae, bank.scenes)
        for top in (1, 5):
            found[f"content, {what} held out, top {top}"] = accuracy(probe, bank.scenes, labels, top)
            found[f"content, {what} held out, through the VAE, top {top}"] = accuracy(probe, soft, labels, top)
    return found


def sampled(bank: Bank, count: int) -> Bank:
    return bank[np.random.default_rng(0).permutation(len(bank.scenes))[:count]]


def labels_of(values: np.ndarray, index: dict[str, int]) -> np.ndarray:
    return np.array([index[value] for value in values])


def save_probe(kind: str, probe: Probe, found: dict[str, float]) -> None:
    """In float16; accuracies and class names as its metadata."""
    tensors = {name: t.half().contiguous() for name, t in probe.state_dict().items() if t.is_floating_point()}
    facts = {"classes": probe.classes, "accuracy": {name: round(value, 4) for name, value in found.items()}}
    save_file(tensors, HERE / f"{kind}.safetensors", {key: json.dumps(value) for key, value in facts.items()})


def main() -> None:
    kinds = sys.argv[1:] or ["style", "content"]
    pictures.fetch(FOLDER)
    vae = Base.open(WEIGHTS / EMBEDDED).load_vae()
    makers = {"style": (train_style, style_accuracy), "content": (train_content, content_accuracy)}
    for kind in kinds:
        train, measure = makers[kind]
        probe = train()
        found = measure(probe, vae)
        save_probe(kind, probe, found)
        for name, value in found.items():
            print(f"{name}: {value:.1%}", flush=True)


if __name__ == "__main__":
    main()
