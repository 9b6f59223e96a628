"""What a file is that a finetune cannot be made of: another kind of adapter, a whole model, or a LoRA for another model.

Each is told by the names and shapes of its tensors, so that the refusal can say what it is and what helps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from finetuner.bases import Family
from finetuner.loras.names import Shapes, parse_key
from finetuner.loras.opening import LoraFile

SHOWN = 3  # of the names that a refusal gives

# Kinds of adapters by what their tensors' names end with. LyCORIS' own names, peft's, and ComfyUI's (comfy/weight_adapter).
EXTRACT = "Train it again as a plain LoRA, or merge it and extract a LoRA of rank 32 (sd-scripts' flux_extract_lora.py)."
ADAPTERS: tuple[tuple[str, str, str], ...] = (
    (r"lokr_(w1|w2|t2)(_[ab])?", "a LoKr, which changes weights by a Kronecker product", EXTRACT),
    (r"hada_(w1|w2|t1|t2)(_[ab])?", "a LoHa, which changes weights by a Hadamard product", EXTRACT),
    (r"(oft_(blocks|diag|R|r)|boft_R|boft_s)(\.\w+)*", "an OFT, which turns weights", EXTRACT),
    (
        r"dora_scale|magnitude|lora_magnitude_vector(\.\w+)*|magnitude_vector",
        "a DoRA, which scales the base's weights as well",
        EXTRACT,
    ),
    (r"[ab][12]\.weight", "a GLoRA", EXTRACT),
    (r"on_input|ia3_l(\.\w+)*", "an IA3, which scales activations", EXTRACT),
    (r"vera_lambda_[bd](\.\w+)*", "a VeRA", EXTRACT),
    (r"lora_mid\.weight", "a LoCon with convolutions, which FLUX does not have", "Take a LoRA for FLUX."),
    (
        r"diff|diff_b|w_norm|b_norm|set_weight|reshape_weight",
        "differences of whole weights, which no rank bounds",
        EXTRACT,
    ),
)
EMBEDDING = re.compile(r"(emb_params|clip_[lg]|t5xxl|string_to_param.*|<.*>)")

# Models by names of modules that no other has.
MODELS: tuple[tuple[str, str], ...] = (
    (
        "FLUX.2",
        r"(double|single)_stream_modulation|to_qkv_mlp_proj|ff(_context)?[._]linear_(in|out)\b|time_guidance_embed",
    ),
    ("Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mlp[._]net|mod[._]1)"),
    ("HunyuanVideo", r"(img|txt)_mod[._]linear|single_blocks[._]\d+[._]modulation[._]linear|token_refiner"),
    ("Chroma", r"distilled_guidance_layer"),
    ("Stable Diffusion 3", r"joint_blocks[._]\d|(^|[._])pos_embed[._]proj"),
    ("Wan", r"(?<![a-z]_)blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]"),
    ("Z-Image or Lumina", r"layers[._]\d+[._](attention|feed_forward)[._]"),
    ("a language model", r"layers[._]\d+[._](self_attn|mlp)[._](q|k|v|o|gate|up|down)_proj"),
)
UNET = re.compile(r"(^|[._])(down|up|input|output|mid|middle)_blocks?[._]")
CROSS_ATTENTION = re.compile(r"attn2[._]to_[kv]$")
UNETS = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 2048: "SDXL"}  # by the width of the texts that it reads
WIDTHS = {
    192: "flux-emoji",
    1536: "Stable Diffusion 3",
    2432: "Stable Diffusion 3.5 Large",
    3072: "FLUX.1 (dev, schnell, Krea)",
    4096: "FLUX.2 klein 9B",
    6144: "FLUX.2 dev",
}
KLEIN = {
    18432: 3072,
    27648: 3072,
    24576: 4096,
    36864: 4096,
}  # FLUX.2's mlp_0 and linear1, wider by SwiGLU: out -> width
CHOOSES = "BASE_MODEL chooses the base."


def require_lora(file: LoraFile) -> None:
    """Raise ValueError where the file holds another kind of adapter, or none."""
    for pattern, kind, remedy in ADAPTERS:
        found = [key for key in file.shapes if re.search(rf"(^|\.)({pattern})$", key)]
        if found:
            raise ValueError(f"{file.name}: holds {kind} ({some(found)}). A finetune holds LoRAs alone. {remedy}")
    if any(parse_key(key) for key in file.shapes):
        return
    if not file.shapes:
        raise ValueError(f"{file.name}: has no LoRA in it: no tensor at all. Give the file that the training saved.")
    if all(EMBEDDING.fullmatch(key) for key in file.shapes):
        raise ValueError(f"{file.name}: is a textual inversion (an embedding), and has no LoRA in it. Give a LoRA.")
    if sum(key.endswith(".weight") for key in file.shapes) > len(file.shapes) / 4:
        raise ValueError(
            f"{file.name}: is a whole model, or a part of one ({some(file.shapes)}), and has no LoRA in it. Give the LoRA"
            " alone; a fine-tuned checkpoint becomes one by extraction (sd-scripts' networks/flux_extract_lora.py)."
        )
    raise ValueError(f"{file.name}: has no LoRA in it: what these are is not known here: {some(file.shapes)}.")


def refuse_other_model(file: LoraFile, family: Family, unknown: list[str], inputs: dict[str, int]) -> NoReturn:
    """Raise ValueError that says what model a LoRA is for.

    Args:
        unknown: its modules that this family of bases does not have.
        inputs: the inputs of each of the file's modules.
    """
    if any(UNET.search(module) for module in unknown):
        widths = {UNETS.get(width) for module, width in inputs.items() if CROSS_ATTENTION.search(module)}
        if any("te2_" in module or "text_encoder_2" in module for module in inputs):
            widths = {"SDXL"}
        (model,) = widths if len(widths) == 1 and None not in widths else ("Stable Diffusion or SDXL",)
        _refuse(file, family, str(model), unknown)
    for model, pattern in MODELS:
        signs = [module for module in unknown if re.search(pattern, module)]
        if signs and model != family.NAME:
            _refuse(file, family, model, signs)
    raise ValueError(
        f"{file.name}: {family.NAME} has no {some(unknown)}, so it is not a LoRA for it, or in names that are not known here."
        " Nothing was imported."
    )


def refuse_missing_blocks(file: LoraFile, shapes: Shapes, unknown: list[str], inputs: dict[str, int]) -> NoReturn:
    """Raise ValueError for modules that the base has, but in fewer blocks."""
    blocks = len({name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")})
    singles = len({name.split(".")[1] for name in shapes if name.startswith("single_transformer_blocks.")})
    width = next((WIDTHS[inputs[module]] for module in unknown if inputs.get(module) in WIDTHS), None)
    whose = f" Its width is that of {width}." if width else ""
    raise ValueError(
        f"{file.name}: it changes {some(unknown)}, and this base has {blocks} double and {singles} single blocks.{whose}"
        f" Is it for another base? {CHOOSES}"
    )


def misfit(file: LoraFile, module: str, down: tuple[int, ...], up: tuple[int, ...], place: tuple[int, int]) -> ValueError:
    """A module whose shapes are not those of the base; says whose they are where that can be told."""
    width = down[1] if len(down) == 2 else 0
    out = up[0] if len(up) == 2 else 0
    if KLEIN.get(out) == width and out != place[0] * width // place[1]:
        whose = f" These are FLUX.2's, at the width of klein {'4B' if width == 3072 else '9B'}."
    elif width != place[1] and width in WIDTHS:
        whose = f" A width of {width} is that of {WIDTHS[width]}."
    else:
        whose = ""
    return ValueError(
        f"{file.name}: {module} is of shape {up} x {down}, and this base has {place[0]} x {place[1]} there.{whose} Is the file"
        f" for another base? {CHOOSES}"
    )


def refuse_named_model(file: LoraFile, family: Family) -> None:
    """Raise ValueError where the file's own metadata names FLUX.2, whose attention has FLUX.1's names and shapes."""
    said = " ".join(file.metadata.get(key, "") for key in ("modelspec.architecture", "ss_base_model_version"))
    if family.NAME != "FLUX.2" and re.search(r"flux[-_. ]?2|klein", said, re.IGNORECASE):
        _refuse(file, family, "FLUX.2", [said.strip()])


def _refuse(file: LoraFile, family: Family, model: str, signs: list[str]) -> NoReturn:
    raise ValueError(
        f"{file.name}: is a LoRA for {model} ({some(signs)}), and this base is of {family.NAME}. A LoRA works with the model"
        f" alone that it was trained on: take one for {family.NAME}, or another base. {CHOOSES}"
    )


def some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
