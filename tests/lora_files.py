"""LoRA files as the tools write them, made of one set of weights in diffusers' names (see finetuner/loras/names.py)."""

from __future__ import annotations

import torch

from finetuner.bases import flux1
from finetuner.loras.names import fused_modules

Tensors = dict[str, torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]  # down, up

OLD_SPELLINGS = {
    "lora": ("lora.down.weight", "lora.up.weight"),
    "lora_linear_layer": ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "default": ("lora_A.default.weight", "lora_B.default.weight"),
    "peft": ("lora_A.weight", "lora_B.weight"),
    "kohya": ("lora_down.weight", "lora_up.weight"),
}


def pairs(weights: Tensors) -> dict[str, Pair]:
    names = {name.rpartition(".lora_")[0] for name in weights}
    return {name: (weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]) for name in sorted(names)}


def written(modules: dict[str, Pair], spelling: str, alpha: torch.Tensor | None = None) -> Tensors:
    """Tensors under the names of a spelling, each module with its alpha where one is given."""
    down, up = OLD_SPELLINGS[spelling]
    tensors = {f"{module}.{down}": pair[0] for module, pair in modules.items()}
    tensors |= {f"{module}.{up}": pair[1] for module, pair in modules.items()}
    return tensors | ({} if alpha is None else {f"{module}.alpha": alpha.clone() for module in modules})


def in_diffusers_names(weights: Tensors, prefix: str, separator: str = ".") -> dict[str, Pair]:
    return {prefix + name.replace(".", separator): pair for name, pair in pairs(weights).items()}


def in_bfl_names(weights: Tensors, prefix: str) -> dict[str, Pair]:
    """Fused, with dots: the downs stacked, the ups on a block diagonal, of rank 3r or 4r."""
    ours = pairs(weights)
    modules = {}
    for module, names in fused_modules(ours, flux1).items():
        found = [ours[name] for name in names if name in ours]
        pair = torch.cat([down for down, _ in found]), torch.block_diag(*(up for _, up in found))
        modules[prefix + bfl_name(module)] = pair
    return modules


def in_pieces(weights: Tensors, prefix: str) -> dict[str, Pair]:
    """OneTrainer's: each linear that Black Forest Labs fuses by itself, by number."""
    ours = pairs(weights)
    modules = {}
    for module, names in fused_modules(ours, flux1).items():
        for number, name in enumerate(names):
            piece = f".{number}" if len(names) > 1 else ""
            modules[f"{prefix}{bfl_name(module)}{piece}"] = ours[name]
    return modules


def bfl_name(module: str) -> str:
    """lora_unet_double_blocks_0_img_attn_qkv -> double_blocks.0.img_attn.qkv"""
    kind, _, number, part = module.removeprefix("lora_unet_").split("_", 3)
    for end in ("qkv", "proj", "0", "2", "lin"):
        part = part.removesuffix(f"_{end}") + f".{end}" if part.endswith(f"_{end}") else part
    return f"{kind}_blocks.{number}.{part}"


def in_xlabs_names(weights: Tensors) -> dict[str, Pair]:
    """Attention alone: q, k and v fused, the MLP's part of a single block's linear1 left out."""
    ours = pairs(weights)
    streams = {
        "double_blocks.0.processor.qkv_lora1": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "double_blocks.0.processor.qkv_lora2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "double_blocks.0.processor.proj_lora1": ("attn.to_out.0",),
        "double_blocks.0.processor.proj_lora2": ("attn.to_add_out",),
        "single_blocks.0.processor.qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "single_blocks.0.processor.proj_lora": ("proj_out",),
    }
    modules = {}
    for module, linears in streams.items():
        blocks = "transformer_blocks" if module.startswith("double") else "single_transformer_blocks"
        found = [ours[f"{blocks}.0.{linear}"] for linear in linears]
        modules[module] = torch.cat([down for down, _ in found]), torch.block_diag(*(up for _, up in found))
    return modules
