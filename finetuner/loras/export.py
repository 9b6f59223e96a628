"""A finetune's LoRA as a file for other tools.

Who reads what was looked up in their source:

- diffusers (loaders/lora_conversion_utils.py) reads both formats; in kohya's keys it splits a block-diagonal up into blocks.
- ComfyUI (comfy/lora.py, model_lora_keys_unet) maps ``lora_unet_`` and Black Forest Labs' names, and for Flux ``transformer.``
  and diffusers' names; Forge (packages_3rdparty/comfyui_lora_collection/lora.py) does the same. Neither reads diffusers' own
  metadata: alpha is the rank there, as it is in our files.
- InvokeAI takes a file for kohya's where every key is one of its pattern
  (flux_kohya_lora_conversion_utils.py: lora_unet_(double|single)_blocks_<n>_<part>.<tensor>), and for diffusers' where every
  key is a lora_A or lora_B (flux_diffusers_lora_conversion_utils.py).
- Forge tells the model by ``modelspec.implementation`` or ``modelspec.architecture`` (sd_forge_lora/network.py), InvokeAI asks
  for ``<architecture>/lora`` (model_manager/configs/lora.py), and both show ``ss_`` keys to people.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from finetuner.bases import Family, family_with_linears
from finetuner.loras.files import WEIGHTS_NAME, Weights, load_lora, sort_metadata
from finetuner.loras.names import fused_modules
from finetuner.store import Finetune

FORMATS = ("diffusers", "kohya")


def write_export(finetune: Finetune, file_format: str, path: Path) -> None:
    """Write a finetune's weights in one of `FORMATS`, with what other tools show of it; the same finetune, the same bytes."""
    published = finetune.folder / WEIGHTS_NAME
    weights = load_lora(published)
    family = family_with_linears(linears(weights))
    tensors = kohya_tensors(weights, family) if file_format == "kohya" else load_file(published)
    with safe_open(published, "pt") as file:
        own = file.metadata() or {}  # which diffusers reads: of its own format only
    metadata = (own if file_format == "diffusers" else {}) | {"format": "pt"} | describe(finetune, family, rank(weights))
    save_file(tensors, path, metadata)
    sort_metadata(path)


def kohya_tensors(weights: Weights, family: Family) -> dict[str, torch.Tensor]:
    """In kohya's keys. What Black Forest Labs fuses is fused: the downs are stacked and the ups put on a block diagonal, of
    rank 3r or 4r, and alpha is that rank."""
    tensors = {}
    for module, names in fused_modules(linears(weights), family).items():
        down = torch.cat([weights[f"{name}.lora_A.weight"] for name in names])
        tensors[f"{module}.lora_down.weight"] = down
        tensors[f"{module}.lora_up.weight"] = torch.block_diag(*(weights[f"{name}.lora_B.weight"] for name in names))
        tensors[f"{module}.alpha"] = torch.tensor(float(down.shape[0]))
    return tensors


def describe(finetune: Finetune, family: Family, rank: int) -> dict[str, str]:
    """The header's words on a finetune: ModelSpec (github.com/Stability-AI/ModelSpec) and sd-scripts' own."""
    word, base = finetune.trigger_word, finetune.base["name"]
    return family.KOHYA_METADATA | {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": f"{word} ({base})",
        "modelspec.date": finetune.manifest["created"],
        "modelspec.trigger_phrase": word,
        "modelspec.usage_hint": f"Name {word} in the prompt.",
        "modelspec.prediction_type": "flow matching",
        "ss_output_name": f"{word}-{finetune.id[:8]}",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_sd_model_name": base,
    }


def linears(weights: Weights) -> set[str]:
    return {name.rpartition(".lora_")[0] for name in weights}


def rank(weights: Weights) -> int:
    """The largest of its linears."""
    return max(tensor.shape[0] for name, tensor in weights.items() if name.endswith("lora_A.weight"))
