"""What several tests make: archives, and adapters of random weights."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from finetuner import adapter

EXAMPLES = Path(__file__).parent.parent / "examples"


def make_archive(path: Path, files: dict[str, Image.Image | str]) -> Path:
    """A zip of images (as PNG) and texts."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            if isinstance(content, Image.Image):
                png = io.BytesIO()
                content.save(png, "PNG")
                content = png.getvalue()
            archive.writestr(name, content)
    return path


def random_adapter(transformer: FluxTransformer2DModel, rank: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A LoRA that changes every layer, for a transformer that has none yet, by its names in a file."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in adapter.target_names(transformer):
        linear = transformer.get_submodule(name)
        weights[f"{name}.lora_A.weight"] = 0.1 * torch.randn(rank, linear.in_features, generator=generator)
        weights[f"{name}.lora_B.weight"] = 0.05 * torch.randn(linear.out_features, rank, generator=generator)
    return weights
