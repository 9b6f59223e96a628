"""LoRA files of others -> a finetune's weights, without loss but for what the user allows.

Everywhere the weight is W + alpha / rank * up @ down. Of a fused LoRA's up [sum of outs, r] each linear gets its rows, and all
get the down. A part that changes nothing is dropped; what a finetune cannot hold is refused, or left out where that was asked
for.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from finetuner.bases import Family
from finetuner.loras import kinds
from finetuner.loras.alpha import Alphas
from finetuner.loras.files import Weights
from finetuner.loras.names import TEXT_ENCODER, Names, Shapes, fused_modules, parse_key
from finetuner.loras.opening import LoraFile, opened
from finetuner.loras.rank import cut, energy, is_rounding, without_zeros

log = logging.getLogger(__name__)

TEXT = "text encoders"
OUTSIDE = "embedders and the output layer"
BIASES = "biases"
ENERGY = "measured by the squares of its entries (Frobenius norm)"


@dataclass(frozen=True)
class ForeignLora:
    """What was read of a file of another tool."""

    weights: Weights  # all of one rank; float16 where it holds them exactly, else float32
    facts: dict  # for the manifest: format, source of alpha, rank, and what was dropped, left out or cut


@dataclass
class _Reading:
    """What was taken of a file so far."""

    weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # linear -> down, up, in float32
    whole: float = 0.0  # energy of what a finetune holds
    lost: float = 0.0  # energy beyond the largest rank
    rank: int = 0  # the largest in the file, after ranks of zeros
    left_out: dict[str, float] = field(default_factory=dict)  # what a finetune cannot hold -> its energy
    examples: dict[str, list[str]] = field(default_factory=dict)  # of its modules' names
    zeros: Counter[str] = field(default_factory=Counter)  # what was dropped as it changes nothing -> modules


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
        reading = _Reading()
        for module, keys in modules.items():
            _take(reading, file, module, keys, names, shapes, alphas, largest_rank)
        _report(reading, file, alphas, modules, resize, blocks_only, largest_rank)
        weights = _packed(reading, file, family, shapes)
        return ForeignLora(weights, _facts(reading, file, names, modules, alphas, resize))


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
    reading: _Reading,
    file: LoraFile,
    module: str,
    keys: dict[str, str],
    names: Names,
    shapes: Shapes,
    alphas: Alphas,
    largest_rank: int,
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
            _leave_out(reading, BIASES, module, float(bias.double().square().sum()))
    rank = down.shape[0]
    if _is_block_diagonal(up, outs) and alphas.is_of_one_piece(module, rank // len(outs), tensors.get("alpha")):
        rank //= len(outs)
    scales = [alphas.scale(module, name, rank, tensors.get("alpha")) for name in linears or (module,)]
    if not held:
        what = OUTSIDE if linears else TEXT
        _leave_out(reading, what, module, energy(down, up * scales[0]))
        return
    for name, rows, scale in zip(linears, up.split(outs), scales, strict=True):
        if name in reading.weights:
            raise ValueError(f"{file.name}: it changes {name} twice.")
        _hold(reading, name, down, rows * scale, largest_rank, tensors["up"].dtype)


def _hold(reading: _Reading, name: str, down: torch.Tensor, up: torch.Tensor, largest_rank: int, dtype: torch.dtype) -> None:
    """Take a linear's change, cut to the largest rank where it has more; what that costs is counted unless it is rounding."""
    down, up = without_zeros(down, up)
    whole = energy(down, up)
    rank, lost = down.shape[0], 0.0
    if rank > largest_rank:
        down, up, lost = cut(down, up, largest_rank)
        if is_rounding(lost, whole, dtype):
            rank, lost = largest_rank, 0.0
    reading.weights[name] = (down.float(), up.float())
    reading.rank = max(reading.rank, rank)
    reading.whole += whole
    reading.lost += lost


def _leave_out(reading: _Reading, what: str, module: str, amount: float) -> None:
    if amount:
        reading.left_out[what] = reading.left_out.get(what, 0.0) + amount
        reading.examples.setdefault(what, []).append(module)
    else:
        reading.zeros[what] += 1


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


def _report(
    reading: _Reading,
    file: LoraFile,
    alphas: Alphas,
    modules: dict[str, dict[str, str]],
    resize: bool,
    blocks_only: bool,
    largest_rank: int,
) -> None:
    """Refuse what may not go unsaid, and say in the log what may."""
    everything = reading.whole + sum(reading.left_out.values())
    shares = {what: f"{amount / everything:.2%}" for what, amount in reading.left_out.items()}
    for what, count in reading.zeros.items():
        log.warning("%s: %d modules of %s are all zero and were dropped: they change nothing.", file.name, count, what)
    if reading.left_out and not blocks_only:
        parts = [f"{what} ({kinds.some(reading.examples[what])}), {shares[what]} of its change" for what in shares]
        raise ValueError(
            f"{file.name}: it changes {' and '.join(parts)}, {ENERGY}. A finetune holds the transformer's blocks alone."
            " --blocks-only leaves the rest out."
        )
    for what, share in shares.items():
        log.warning("%s: %s were left out, as asked: %s of its change, %s.", file.name, what, share, ENERGY)
    if not reading.whole:
        raise ValueError(f"{file.name}: it changes nothing in the transformer's blocks: all of it there is zero.")
    if reading.rank > largest_rank and not resize:
        raise ValueError(
            f"{file.name}: its rank is {reading.rank}, and a finetune has room for {largest_rank}. A cut to that would"
            f" keep {_kept(reading):.4%} of its change, {ENERGY}: --resize makes it. The rest is lost, so look at its pictures."
        )
    if reading.rank > largest_rank:
        log.warning(
            "%s: was cut from rank %d to %d, which keeps %.4f %% of its change, %s.",
            file.name,
            reading.rank,
            largest_rank,
            100 * _kept(reading),
            ENERGY,
        )
    alphas.warn(usually_said=any(_usually_says_alpha(module, keys) for module, keys in modules.items()))


def _kept(reading: _Reading) -> float:
    return 1 - reading.lost / reading.whole


def _usually_says_alpha(module: str, keys: dict[str, str]) -> bool:
    """Of the trainers that leave alpha out, none writes lora_down (but XLabs', whose scale is 1), and peft's own files say it
    beside them; those that fal makes have Black Forest Labs' names in peft's place."""
    return ".lora_down." in keys["down"] or (module.startswith("base_model.") and "transformer_blocks" in module)


def _packed(reading: _Reading, file: LoraFile, family: Family, shapes: Shapes) -> Weights:
    """All of one rank, smaller ones padded with zeros; what is fused with another in kohya's names stands beside it."""
    changed = {name: factors for name, factors in reading.weights.items() if len(factors[0])}
    rank = max(len(down) for down, _ in changed.values())
    tensors = {}
    for name in sorted(chain(*fused_modules(changed, family).values())):
        out, width = shapes[name]
        down, up = changed.get(name, (torch.zeros(0, width), torch.zeros(out, 0)))
        padding = rank - len(down)
        tensors[f"{name}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, padding))
        tensors[f"{name}.lora_B.weight"] = torch.nn.functional.pad(up, (0, padding))
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError(f"{file.name}: its alpha makes numbers that float32 does not hold.")
    exact_in_half = all(torch.equal(tensor.half().float(), tensor) for tensor in tensors.values())
    dtype = torch.float16 if exact_in_half else torch.float32
    return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}


def _facts(
    reading: _Reading, file: LoraFile, names: Names, modules: dict[str, dict[str, str]], alphas: Alphas, resize: bool
) -> dict:
    everything = reading.whole + sum(reading.left_out.values())
    return {
        "member": file.member,
        "format": sorted({names.convention(module) for module in modules if names.of(module)}),
        "dtypes": sorted(set(file.dtypes.values())),
        "alpha": dict(sorted(alphas.sources.items())),
        "rank": reading.rank,
        "energy_kept": _kept(reading),
        "dropped_as_zero": dict(reading.zeros),
        "left_out": {what: amount / everything for what, amount in reading.left_out.items()},
    }
