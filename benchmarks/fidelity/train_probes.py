"""Train the probes and measure them: ``python -m benchmarks.fidelity.train_probes [style] [content]``, minutes on one core."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import nn
from tqdm import trange

from benchmarks.fidelity.drawings import FOLDER, LOOKS, SIDE, codes, scene
from benchmarks.fidelity.probes import (
    CONTENT_LOOKS,
    HELD_OUT_LOOK,
    HERE,
    ContentProbe,
    Probe,
    StyleProbe,
    contents,
    cut_out,
)
from finetuner.bases.base import BASES, WEIGHTS, Base
from script.embedded_base import pictures

HELD_OUT_SHARE = 5  # every so many-th content is kept from the style probe
SCENES = {"style": 2, "content": 3}  # of each drawing
STEPS = {"style": 1000, "content": 2000}
BATCH = 128
LEARNING_RATE = 3e-3
LABEL_SMOOTHING = 0.05
TESTED = 300  # pictures of each test: the VAE takes 50 ms for one


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
    return Bank(np.stack([random_scene(look, code, rng) for look, code in rows]), *np.array(rows).T)


@torch.inference_mode()
def through_vae(vae: AutoencoderKL, scenes: np.ndarray) -> np.ndarray:
    """As soft as what the base draws: uint8 [N, 64, 64, 3]."""
    soft = []
    for part in torch.from_numpy(pictures.to_tensor_range(scenes)).split(64):
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(vae.encode(part).latent_dist.sample()).sample
        soft.append(((decoded.float().clamp(-1, 1) + 1) * 127.5).round().byte())
    return torch.cat(soft).permute(0, 2, 3, 1).numpy()


def random_maps(count: int) -> torch.Tensor:
    """Turned, stretched, mirrored and moved a little, [count, 2, 3]: generated drawings are never quite the original."""
    angle = torch.randn(count) * 0.1
    stretch = 1 + 0.1 * torch.randn(2, count)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    moved = 0.05 * torch.randn(2, count)
    across = [mirror * stretch[0] * angle.cos(), -angle.sin(), moved[0]]
    down = [mirror * angle.sin(), stretch[1] * angle.cos(), moved[1]]
    return torch.stack(across + down).T.reshape(count, 2, 3)


def softened(images: torch.Tensor) -> torch.Tensor:
    if torch.rand(()) < 0.3:
        small = nn.functional.interpolate(images, scale_factor=float(torch.empty(()).uniform_(0.6, 0.95)), mode="area")
        images = nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return images + 0.04 * torch.rand(()) * torch.randn_like(images)


def jittered(images: torch.Tensor, padding: str) -> torch.Tensor:
    grid = nn.functional.affine_grid(random_maps(len(images)), list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def train_probe(
    kind: str, probe: Probe, inputs: torch.Tensor, labels: np.ndarray, scores_of: Callable[[torch.Tensor], torch.Tensor]
) -> Probe:
    """Fit ``scores_of``, a function of a batch of ``inputs`` [N, channels, H, W] through the probe, to ``labels``."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS[kind], pct_start=0.1)
    targets = torch.from_numpy(labels)
    progress = trange(STEPS[kind], desc=f"{kind} probe", mininterval=10)
    for _ in progress:
        rows = torch.from_numpy(rng.integers(len(labels), size=BATCH))
        scores = scores_of(inputs[rows].float())
        loss = nn.functional.cross_entropy(scores, targets[rows], label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return probe.eval()


def train_style() -> Probe:
    torch.manual_seed(0)
    bank = make_bank(LOOKS, SCENES["style"], 1, style_codes() - held_out_codes())
    rng = np.random.default_rng(0)  # as many of each look: the families draw different numbers of things
    rows = np.concatenate([rng.choice(np.flatnonzero(bank.looks == look), 2200) for look in LOOKS])
    bank = bank[rows]
    probe = StyleProbe(list(LOOKS)).to(memory_format=torch.channels_last)
    images = torch.from_numpy(pictures.to_tensor_range(bank.scenes))
    return train_probe("style", probe, images, labels_of(bank.looks, LOOKS), lambda i: probe(softened(jittered(i, "border"))))


def train_content() -> Probe:
    torch.manual_seed(0)
    named = contents()
    bank = make_bank(CONTENT_LOOKS, SCENES["content"], 2, named)
    images = torch.from_numpy(pictures.to_tensor_range(bank.scenes))
    drawn = torch.cat([cut_out(softened(part)).half() for part in images.split(BATCH)])
    probe = ContentProbe(list(named.values())).to(memory_format=torch.channels_last)

    def scores_of(batch: torch.Tensor) -> torch.Tensor:
        return probe.head(nn.functional.dropout(probe.trunk(jittered(batch, "zeros")), 0.2))

    return train_probe("content", probe, drawn, labels_of(bank.codes, named), scores_of)


def style_codes() -> set[str]:
    return {code for look in LOOKS for code in codes(look)}


def held_out_codes() -> set[str]:
    return set(sorted(style_codes())[::HELD_OUT_SHARE])


def labels_of(values: np.ndarray, classes: Container[str]) -> np.ndarray:
    index = {value: n for n, value in enumerate(classes)}
    return np.array([index[value] for value in values])


def accuracy(probe: Probe, scenes: np.ndarray, labels: np.ndarray, top: int = 1) -> float:
    """Share of pictures whose label is among the ``top`` likeliest."""
    likeliest = probe.judge(scenes)[0].topk(top).indices
    return (likeliest == torch.from_numpy(labels)[:, None]).any(1).float().mean().item()


def style_accuracy(probe: Probe, vae: AutoencoderKL) -> dict[str, float]:
    """On contents that it never saw in any look, as drawn and as soft as generated pictures are."""
    bank = sampled(make_bank(LOOKS, 1, 3, held_out_codes()))
    labels = labels_of(bank.looks, probe.classes)
    return {
        "style, contents held out": accuracy(probe, bank.scenes, labels),
        "style, contents held out, through the VAE": accuracy(probe, through_vae(vae, bank.scenes), labels),
    }


def content_accuracy(probe: Probe, vae: AutoencoderKL) -> dict[str, float]:
    """On new backgrounds and places, and on a look that it never saw."""
    named = contents()
    found = {}
    for what, looks in (("placements", CONTENT_LOOKS), ("look", (HELD_OUT_LOOK,))):
        bank = sampled(make_bank(looks, 1, 4, named))
        labels = labels_of(bank.codes, named)
        soft = through_vae(vae, bank.scenes)
        for top in (1, 5):
            found[f"content, {what} held out, top {top}"] = accuracy(probe, bank.scenes, labels, top)
            found[f"content, {what} held out, through the VAE, top {top}"] = accuracy(probe, soft, labels, top)
    return found


def sampled(bank: Bank) -> Bank:
    return bank[np.random.default_rng(0).permutation(len(bank.scenes))[:TESTED]]


def save_probe(kind: str, probe: Probe, found: dict[str, float]) -> None:
    """In float16; accuracies and class names as its metadata."""
    tensors = {name: t.half().contiguous() for name, t in probe.state_dict().items() if t.is_floating_point()}
    facts = {"classes": probe.classes, "accuracy": {name: round(value, 4) for name, value in found.items()}}
    save_file(tensors, HERE / f"{kind}.safetensors", {key: json.dumps(value) for key, value in facts.items()})


def main() -> None:
    pictures.fetch(FOLDER)
    vae = Base.open(WEIGHTS / BASES.embedded).load_vae()
    makers = {"style": (train_style, style_accuracy), "content": (train_content, content_accuracy)}
    for kind in sys.argv[1:] or makers:
        train, measure = makers[kind]
        probe = train()
        found = measure(probe, vae)
        save_probe(kind, probe, found)
        for name, value in found.items():
            print(f"{name}: {value:.1%}", flush=True)


if __name__ == "__main__":
    main()
