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
    (
        r"(query|key)_norm\.scale",
        "a control LoRA, which draws after another picture",
        "Take one that changes how a prompt is drawn.",
    ),
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
    192: "flux-emoji or klein-emoji",
    1536: "Stable Diffusion 3",
    2432: "Stable Diffusion 3.5 Large",
    3072: "FLUX.1 (dev, schnell, Krea), and of FLUX.2 klein 4B",
    4096: "FLUX.2 klein 9B",
    6144: "FLUX.2 dev",
}
Place = tuple[int, int]  # (out, in) of a linear
KLEIN = {(27648, 3072), (36864, 4096)}  # linear1 of FLUX.2, whose SwiGLU makes it 9 widths wide, where FLUX.1's has 7
KLEIN_MLP = {18432: 3072, 24576: 4096}  # its mlp_0, as wide as FLUX.1's modulation
FLUX2 = " These are FLUX.2 klein's shapes."
CHOOSES = "BASE_MODEL chooses the base."


def require_lora(file: LoraFile) -> None:
    """Raise ValueError where the file holds another kind of adapter, or none."""
    for pattern, kind, remedy in ADAPTERS:
        found = [key for key in file.shapes if re.search(rf"(^|\.)({pattern})$", key)]
        if found:
            raise ValueError(f"{file.name}: holds {kind} ({some(found)}). A finetune cannot hold that. {remedy}")
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


def refuse_other_model(file: LoraFile, family: Family, unknown: list[str], found: dict[str, Place]) -> NoReturn:
    """Raise ValueError that says what model a LoRA is for.

    Args:
        unknown: its modules that this family of bases does not have.
        found: (out, in) of all of the file's modules.
    """
    if any(UNET.search(module) for module in unknown):
        widths = {UNETS.get(width) for module, (_, width) in found.items() if CROSS_ATTENTION.search(module)}
        if any("te2_" in module or "text_encoder_2" in module for module in found):
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


def refuse_missing_blocks(file: LoraFile, family: Family, shapes: Shapes, beyond: list[str], found: list[Place]) -> NoReturn:
    """Raise ValueError for modules that the base has, but in fewer blocks; ``found``: (out, in) of the file's modules."""
    counts = [
        f"{len({name.split('.')[1] for name in shapes if name.startswith(f'{blocks.prefix}.')})} {kind}"
        for kind, blocks in family.KOHYA_BLOCKS.items()
    ]
    raise ValueError(
        f"{file.name}: it changes {some(beyond)}, and this base has {' and '.join(counts)} blocks.{_whose(found)}"
        f" Is it for another base? {CHOOSES}"
    )


def misfit(file: LoraFile, module: str, down: tuple[int, ...], up: tuple[int, ...], place: Place) -> ValueError:
    """A module whose shapes are not those of the base; says whose they are where that can be told."""
    found = (up[0], down[1]) if len(down) == len(up) == 2 else place
    wider = KLEIN_MLP.get(found[0]) == found[1] and found[0] * place[1] != place[0] * found[1]  # FLUX.1's has 4 widths
    whose = _whose([found]) if found[1] != place[1] or found in KLEIN else ""
    return ValueError(
        f"{file.name}: {module} is of shape {up} x {down}, and this base has {place[0]} x {place[1]} there."
        f"{FLUX2 if wider else whose} Is the file for another base? {CHOOSES}"
    )


def _whose(found: list[Place]) -> str:
    if any(place in KLEIN for place in found):
        return FLUX2
    widths = {WIDTHS[width]: width for _, width in found if width in WIDTHS}
    return "".join(f" A width of {width} is that of {model}." for model, width in widths.items())


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
