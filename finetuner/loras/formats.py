"""LoRA files of others -> a finetune's weights, and back, without loss.

diffusers names a linear as its transformer does. Black Forest Labs' own code, and with it kohya's sd-scripts,
fuses q, k and v (and the MLP's first linear in the single blocks) into one. Of a fused LoRA's up [sum of outs, r] each linear
gets its rows, and all get the down. The other way round the downs are stacked and the ups put on a block diagonal, of rank 3r
or 4r. Everywhere the weight is W + alpha / rank * up @ down.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from finetuner.bases import Family, family_with_linears, target_names
from finetuner.loras.files import Weights

Shapes = dict[str, tuple[int, int]]  # linear's name in diffusers -> (out, in)

FORMATS = ("diffusers", "kohya")
DOWN_UP = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".alpha": "alpha",
}
TEXT_ENCODERS = ("lora_te", "text_encoder")
SHOWN = 3  # of the keys that a refusal names


@dataclass(frozen=True)
class Part:
    """One LoRA of a file, as it stands there: what it changes may be several of our linears."""

    down: torch.Tensor  # [rank, in]
    up: torch.Tensor  # [out, rank]
    scale: float  # alpha / rank


def read_foreign_lora(path: Path, family: Family, shapes: Shapes, largest_rank: int) -> Weights:
    """The weights of a LoRA in diffusers' or kohya's keys, alpha folded in, all of one rank (smaller ones padded with zeros).

    They keep float16 where it holds them exactly, else they are float32.

    Raises:
        ValueError: the file is no safetensors file, changes something that a finetune cannot, does not fit the base's
            ``shapes``, or has a rank above ``largest_rank`` that is not zeros in part.
    """
    weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for module, part in _read_parts(path).items():
        names = linear_names(module, family)
        missing = [name for name in names if name not in shapes]
        if missing:
            raise ValueError(f"{path.name}: it changes {missing[0]}, which a finetune of this base does not.")
        outs = [shapes[name][0] for name in names]
        _require_fit(path, module, part, outs, shapes[names[0]][1])
        for name, up in zip(names, part.up.split(outs), strict=True):
            if name in weights:
                raise ValueError(f"{path.name}: it changes {name} twice.")
            weights[name] = without_zeros(part.down.double(), up.double() * part.scale)
    for name in chain(*fused_modules(weights.keys(), family).values()):  # what is fused with another is written with it
        out, width = shapes[name]
        weights.setdefault(name, (torch.zeros(0, width), torch.zeros(out, 0)))
    rank = max(1, *(down.shape[0] for down, _ in weights.values()))
    if rank > largest_rank:
        raise ValueError(
            f"{path.name}: its rank is {rank}, and a server has room for {largest_rank}. Resize it first: what is cut off is"
            " lost, so that this is for you to judge by looking."
        )
    tensors = {}
    for name, (down, up) in weights.items():
        padding = rank - down.shape[0]
        tensors[f"{name}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, padding))
        tensors[f"{name}.lora_B.weight"] = torch.nn.functional.pad(up, (0, padding))
    exact_in_half = all(torch.equal(tensor.half().double(), tensor.double()) for tensor in tensors.values())
    dtype = torch.float16 if exact_in_half else torch.float32
    return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}


def write_kohya(weights: Weights, path: Path) -> None:
    """Write the weights in kohya's keys, which ComfyUI and Forge read too; linears that Black Forest Labs fuses, fused."""
    linears = {name.rpartition(".lora_")[0] for name in weights}
    family = family_with_linears(linears)
    tensors = {}
    for module, names in fused_modules(linears, family).items():
        down = torch.cat([weights[f"{name}.lora_A.weight"] for name in names])
        tensors[f"{module}.lora_down.weight"] = down
        tensors[f"{module}.lora_up.weight"] = torch.block_diag(*(weights[f"{name}.lora_B.weight"] for name in names))
        tensors[f"{module}.alpha"] = torch.tensor(float(down.shape[0]))
    ranks = {str(tensor.shape[0]) for name, tensor in weights.items() if name.endswith("lora_A.weight")}
    save_file(tensors, path, {"format": "pt", "ss_network_module": family.KOHYA_MODULE, "ss_network_dim": ranks.pop()})


def target_shapes(transformer: nn.Module) -> Shapes:
    """What a finetune changes in a base; its transformer on the meta device will do."""
    return {name: tuple(transformer.get_submodule(name).weight.shape) for name in target_names(transformer)}


def linear_names(module: str, family: Family) -> list[str]:
    """Our linears behind a file's module: one, or those that it fuses. The name itself where it is none of kohya's."""
    match = re.fullmatch(r"(?:lora_unet_|diffusion_model\.)(double|single)_blocks[._](\d+)[._](.+)", module)
    if not match:
        return [module.removeprefix("transformer.")]
    kind, number, part = match.groups()
    blocks = family.KOHYA_BLOCKS[kind]
    return [f"{blocks.prefix}.{number}.{name}" for name in blocks.linears.get(part.replace(".", "_"), [part])]


def fused_modules(names: Iterable[str], family: Family) -> dict[str, list[str]]:
    """Kohya's modules that hold these linears, with all the linears of each, in their order."""
    modules = {}
    for name in sorted(names):
        prefix, number, linear = name.split(".", 2)
        kind, blocks = next((kind, blocks) for kind, blocks in family.KOHYA_BLOCKS.items() if blocks.prefix == prefix)
        part, linears = next((part, linears) for part, linears in blocks.linears.items() if linear in linears)
        modules[f"lora_unet_{kind}_blocks_{number}_{part}"] = [f"{prefix}.{number}.{linear}" for linear in linears]
    return modules


def without_zeros(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Drop the ranks that add nothing, as a row of the down or a column of the up is zero: a block diagonal has many."""
    used = down.any(1) & up.any(0)
    return down[used], up[:, used]


def _read_parts(path: Path) -> dict[str, Part]:
    """The file's LoRAs by the name of their module, with what says their alpha."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path.name}: is not a safetensors file ({error}). No other kind is read: it could run code."
        ) from None
    found: dict[str, dict[str, torch.Tensor]] = {}
    strange = []
    for name, tensor in tensors.items():
        suffix = next((suffix for suffix in DOWN_UP if name.endswith(suffix)), None)
        if suffix is None or name.startswith(TEXT_ENCODERS):
            strange.append(name)
        else:
            found.setdefault(name.removesuffix(suffix), {})[DOWN_UP[suffix]] = tensor
    _refuse_strange(path, strange)
    adapter = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    parts = {}
    for module, tensors in found.items():
        if not tensors.keys() >= {"down", "up"}:
            raise ValueError(f"{path.name}: {module} has only {', '.join(tensors)}. Is the file whole?")
        if not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError(f"{path.name}: {module} holds what is not a finite number.")
        parts[module] = Part(tensors["down"], tensors["up"], _scale(module, tensors, adapter))
    if not parts:
        raise ValueError(f"{path.name}: has no LoRA in it.")
    return parts


def _refuse_strange(path: Path, names: list[str]) -> None:
    text = [name for name in names if name.startswith(TEXT_ENCODERS)]
    if text:
        raise ValueError(
            f"{path.name}: it changes a text encoder, too ({_some(text)}), which a finetune does not. Without that part it is"
            " another LoRA: take one that was trained on the transformer alone."
        )
    if names:
        raise ValueError(f"{path.name}: what these are is not known here: {_some(names)}. Nothing was imported.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _scale(module: str, tensors: dict[str, torch.Tensor], adapter: dict) -> float:
    """alpha / rank: alpha is a tensor in kohya's files, and in diffusers' the metadata's, where neither is it the rank."""
    rank = tensors["down"].shape[0]
    if "alpha" in tensors:
        return tensors["alpha"].item() / rank
    fields = {name.removeprefix("transformer."): value for name, value in adapter.items()}
    patterns = {name.removeprefix("transformer."): alpha for name, alpha in (fields.get("alpha_pattern") or {}).items()}
    alpha = patterns.get(module.removeprefix("transformer."), fields.get("lora_alpha", rank))
    return alpha / math.sqrt(rank) if fields.get("use_rslora") else alpha / rank


def _require_fit(path: Path, module: str, part: Part, outs: list[int], width: int) -> None:
    down, up = tuple(part.down.shape), tuple(part.up.shape)
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or down[1] != width or up[0] != sum(outs):
        raise ValueError(
            f"{path.name}: {module} is of shape {up} x {down}, and this base has {sum(outs)} x {width} there. Is the file for"
            " another base? BASE_MODEL chooses it."
        )
