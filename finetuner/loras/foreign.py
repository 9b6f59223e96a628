"""LoRA files of others -> a finetune's weights, without loss but for what the user allows.

Everywhere the weight is W + alpha / rank * up @ down. Of a fused LoRA's up [sum of outs, r] each linear gets its rows, and all
get the down. A part that changes nothing is dropped; what a finetune cannot hold is refused, or left out where that was asked
for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from finetuner.bases import Family
from finetuner.loras import kinds
from finetuner.loras.alpha import Alphas
from finetuner.loras.files import Weights
from finetuner.loras.names import TEXT_ENCODER, Names, Shapes, parse_key
from finetuner.loras.opening import LoraFile, opened
from finetuner.loras.rank import energy
from finetuner.loras.reading import Reading

TEXT = "text encoders"
OUTSIDE = "embedders and the output layer"
BIASES = "biases"


@dataclass(frozen=True)
class ForeignLora:
    """What was read of a file of another tool."""

    weights: Weights  # all of one rank; float16 where it holds them exactly, else float32
    facts: dict  # for the manifest: format, source of alpha, rank, and what was dropped, left out or cut


def read_foreign_lora(
    path: Path, family: Family, shapes: Shapes, largest_rank: int, *, resize: bool = False, blocks_only: bool = False
) -> ForeignLora:
    """Read a LoRA of any tool, alpha folded in, for a base of ``family``.

    Args:
        shapes: of all linears of the base's transformer, from `linear_shapes`.
        resize: cut a rank above ``largest_rank`` to it.
        blocks_only: leave out what is not in the transformer's blocks: text encoders, embedders, the output layer.

    Raises:
        ValueError: the file cannot be read, is none of a LoRA for this base, or holds more than a finetune can; says which.
    """
    with opened(path) as file:
        kinds.require_lora(file)
        kinds.refuse_named_model(file, family)
        names = Names(family, shapes)
        modules = _modules(file, names, shapes)
        alphas = Alphas(file, {keys["alpha"]: file.shapes[keys["down"]] for keys in _plain(modules, names)})
        reading = Reading(file.name, largest_rank)
        for module, keys in modules.items():
            _take(reading, file, module, keys, names, shapes, alphas)
        reading.judge(resize, blocks_only)
        alphas.warn(usually_said=any(_usually_says_alpha(module, keys) for module, keys in modules.items()))
        facts = {
            "member": file.member,
            "format": sorted({names.convention(module) for module in modules if names.of(module)}),
            "dtypes": sorted(set(file.dtypes.values())),
            "alpha": dict(sorted((+alphas.sources).items())),
            "rank": reading.rank,
            "energy_kept": reading.kept,
            "dropped_as_zero": dict(reading.zeros),
            "left_out": reading.shares_left_out,
        }
        return ForeignLora(reading.pack(family, shapes), facts)


def linear_shapes(transformer: nn.Module) -> Shapes:
    """Of every linear of a base's transformer; one on the meta device will do."""
    return {name: tuple(m.weight.shape) for name, m in transformer.named_modules() if isinstance(m, nn.Linear)}


def _modules(file: LoraFile, names: Names, shapes: Shapes) -> dict[str, dict[str, str]]:
    """The file's LoRAs: module -> role -> key. All of them are whole and known, or in text encoders."""
    modules: dict[str, dict[str, str]] = {}
    strange = []
    for key in file.shapes:
        if not (parsed := parse_key(key)):
            strange.append(key)
        elif parsed.role in (found := modules.setdefault(parsed.module, {})):
            raise ValueError(f"{file.name}: {parsed.module} is in it twice: {found[parsed.role]} and {key}.")
        else:
            found[parsed.role] = key
    unknown = [module for module in modules if not names.of(module) and not TEXT_ENCODER.match(module)]
    places = {module: _place(file, keys) for module, keys in modules.items()}
    beyond = [module for module in unknown if names.block_that_is_missing(module)]
    if len(unknown) > len(beyond):
        kinds.refuse_other_model(file, names.family, [m for m in unknown if m not in beyond], places)
    if beyond:
        kinds.refuse_missing_blocks(file, names.family, shapes, beyond, list(places.values()))
    if strange:
        raise ValueError(f"{file.name}: what these are is not known here: {kinds.some(strange)}. Nothing was imported.")
    for module, keys in modules.items():
        if not keys.keys() >= {"down", "up"}:
            raise ValueError(f"{file.name}: {module} has only {', '.join(keys)}. Is the file whole?")
    return modules


def _place(file: LoraFile, keys: dict[str, str]) -> tuple[int, int]:
    """Out and in of a module, 0 where the file does not say them."""
    down, up = (file.shapes.get(keys.get(part, ""), ()) for part in ("down", "up"))
    return up[0] if len(up) == 2 else 0, down[1] if len(down) == 2 else 0


def _take(
    reading: Reading,
    file: LoraFile,
    module: str,
    keys: dict[str, str],
    names: Names,
    shapes: Shapes,
    alphas: Alphas,
) -> None:
    """Read one module, and add it to what is held, left out, or nothing at all."""
    tensors = dict(zip(keys, file.read(list(keys.values())), strict=True))
    linears = names.of(module)
    held = bool(linears) and names.are_held(linears)
    _require_numbers(file, module, tensors)
    if linears and held:
        _require_fit(file, module, tensors, linears, shapes)
    down, up = tensors["down"].double(), tensors["up"].double()
    if down.ndim != 2 or up.ndim != 2 or not 0 < down.shape[0] == up.shape[1]:
        raise ValueError(
            f"{file.name}: {module} is no LoRA of a linear: its shapes are {tuple(up.shape)} and {tuple(down.shape)}."
        )
    outs = [shapes[name][0] for name in linears] if held else [up.shape[0]]
    for part in ("up", "down"):
        if (bias := tensors.get(f"{part} bias")) is not None:  # adds the same to every token
            reading.leave_out(BIASES, module, float(bias.double().square().sum()))
    rank = down.shape[0]
    if _is_block_diagonal(up, outs) and alphas.is_of_one_piece(module, rank // len(outs), tensors.get("alpha")):
        rank //= len(outs)
    scales = [alphas.scale(module, name, rank, tensors.get("alpha"), held) for name in linears or (module,)]
    if not held:
        reading.leave_out(OUTSIDE if linears else TEXT, module, energy(down, up * scales[0]))
        return
    for name, rows, scale in zip(linears, up.split(outs), scales, strict=True):
        reading.hold(name, down, rows * scale, tensors["up"].dtype)


def _plain(modules: dict[str, dict[str, str]], names: Names) -> list[dict[str, str]]:
    """The keys of the modules that are one linear, and say their alpha."""
    return [keys for module, keys in modules.items() if len(names.of(module)) == 1 and "alpha" in keys]


def _is_block_diagonal(up: torch.Tensor, outs: list[int]) -> bool:
    """Whether each linear of a fused up [sum of outs, r] uses an equal share of the ranks, of its own."""
    if len(outs) == 1 or up.shape[1] % len(outs):
        return False
    blocks = torch.block_diag(*(torch.ones(out, up.shape[1] // len(outs)) for out in outs)).bool()
    return not up[~blocks].any()


def _require_numbers(file: LoraFile, module: str, tensors: dict[str, torch.Tensor]) -> None:
    for role, tensor in tensors.items():
        if role == "alpha":
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{file.name}: {module} holds {tensor.dtype}, and not plain numbers. Take it as it was before.")
        if not tensor.double().isfinite().all():
            raise ValueError(f"{file.name}: {module} holds what is not a finite number: its training broke down.")


def _require_fit(
    file: LoraFile, module: str, tensors: dict[str, torch.Tensor], linears: tuple[str, ...], shapes: Shapes
) -> None:
    down, up = (tuple(tensors[part].shape) for part in ("down", "up"))
    out, width = sum(shapes[name][0] for name in linears), shapes[linears[0]][1]
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or down[1] != width or up[0] != out:
        raise kinds.misfit(file, module, down, up, (out, width))


def _usually_says_alpha(module: str, keys: dict[str, str]) -> bool:
    """Of the trainers that leave alpha out, none writes lora_down (but XLabs', whose scale is 1), and peft's own files say it
    beside them; those that fal makes have Black Forest Labs' names in peft's place."""
    return ".lora_down." in keys["down"] or (module.startswith("base_model.") and "transformer_blocks" in module)
