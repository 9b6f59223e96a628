"""Every tool's names for the same weights are read as the same bits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import Pair, Tensors, in_bfl_names, in_diffusers_names, in_pieces, in_xlabs_names, pairs, written
from safetensors.torch import save_file

from finetuner.bases import block_linears, flux1
from finetuner.loras.foreign import linear_shapes, read_foreign_lora
from finetuner.loras.names import Names, parse_key

RANK = 4


@pytest.fixture
def shapes(transformer) -> dict:
    return linear_shapes(transformer)


@pytest.fixture
def weights(transformer) -> Tensors:
    """Of every linear in the blocks, modulation included, as most tools train them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, linear in block_linears(transformer).items():
        tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, linear.in_features, generator=generator).half()
        tensors[f"{name}.lora_B.weight"] = torch.randn(linear.out_features, RANK, generator=generator).half()
    return tensors


def underscored(modules: dict[str, Pair], prefix: str) -> dict[str, Pair]:
    return {prefix + module.replace(".", "_"): pair for module, pair in modules.items()}


def fused(prefix: str, spelling: str) -> Callable:
    """Black Forest Labs' names, with the alpha of the whole rank where the tool writes one."""

    def write(weights: Tensors) -> Tensors:
        tensors = written(in_bfl_names(weights, prefix), spelling)
        if spelling == "kohya":
            downs = [name for name in tensors if name.endswith(".lora_down.weight")]
            tensors |= {n.replace(".lora_down.weight", ".alpha"): torch.tensor(float(len(tensors[n]))) for n in downs}
        return tensors

    return write


FILES: dict[str, Callable[[Tensors], Tensors]] = {
    "kohya": lambda w: (
        written(underscored(in_bfl_names(w, ""), "lora_unet_"), "kohya")
        | {
            f"{name}.alpha": torch.tensor(float(len(pair[0])), dtype=torch.bfloat16)
            for name, pair in underscored(in_bfl_names(w, ""), "lora_unet_").items()
        }
    ),
    "kohya with split_qkv": lambda w: written(underscored(in_bfl_names(w, ""), "lora_unet_"), "kohya", torch.tensor(RANK)),
    "ai-toolkit 2024, Replicate": lambda w: written(in_diffusers_names(w, "transformer."), "peft"),
    "ai-toolkit 2025": fused("diffusion_model.", "peft"),
    "SimpleTuner for ComfyUI": fused("diffusion_model.", "kohya"),
    "fal": fused("base_model.model.", "peft"),
    "PEFT": lambda w: written(in_diffusers_names(w, "base_model.model."), "peft"),
    "SimpleTuner's infix": lambda w: written(in_diffusers_names(w, "transformer.base_model.model."), "peft"),
    "OneTrainer": lambda w: written(in_diffusers_names(w, "lora_transformer_", "_"), "kohya", torch.tensor(float(RANK))),
    "OneTrainer, BFL": lambda w: written(in_pieces(w, "transformer."), "kohya", torch.tensor(float(RANK))),
    "convert_state_dict_to_kohya": lambda w: written(in_diffusers_names(w, "lora_unet_", "_"), "kohya", torch.tensor(RANK)),
    "LyCORIS' LoCon": lambda w: written(in_diffusers_names(w, "lycoris_", "_"), "kohya", torch.tensor(RANK)),
    "saved out of a wrapper": lambda w: written(in_diffusers_names(w, "module."), "peft"),
    "no prefix": lambda w: written(in_diffusers_names(w, ""), "peft"),
    "BFL, no prefix": fused("", "peft"),
    "checkpoint's prefix": fused("model.diffusion_model.", "peft"),
    "lora.down": lambda w: written(in_diffusers_names(w, "transformer."), "lora"),
    "lora_linear_layer": lambda w: written(in_diffusers_names(w, "transformer."), "lora_linear_layer"),
    "lora_A.default": lambda w: written(in_diffusers_names(w, "base_model.model."), "default"),
}


@pytest.mark.parametrize("tool", FILES)
def test_each_tools_names_give_the_same_bits(weights, shapes, tmp_path: Path, tool):
    save_file({name: tensor.contiguous() for name, tensor in FILES[tool](weights).items()}, tmp_path / "lora.safetensors")
    found = read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32).weights
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_xlabs_processors_give_the_bits_of_attention(weights, shapes, tmp_path):
    tensors = {}
    for module, (down, up) in in_xlabs_names(weights).items():
        tensors |= {f"{module}.down.weight": down.contiguous(), f"{module}.up.weight": up.contiguous()}
    save_file(tensors, tmp_path / "lora.safetensors")
    lora = read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32)
    found, ours = pairs(lora.weights), pairs(weights)
    attention = [name for name in ours if ".attn." in name or name.endswith(".proj_out")]
    assert len(attention) == 12
    for name in attention:
        assert all(map(torch.equal, found[name], ours[name]))
    mlp = found.keys() - set(attention)
    assert mlp == {"single_transformer_blocks.0.proj_mlp"} and not any(found[name][1].any() for name in mlp)
    assert lora.facts["format"] == ["XLabs"]


def test_what_is_fused_with_one_down_is_split_into_rows(weights, shapes, tmp_path):
    """As a trainer of the fused linear makes it, in contrast to a file that was fused by a conversion."""
    down, up = torch.randn(RANK, 32), torch.randn(32 * 3 + 128, RANK)
    tensors = {"diffusion_model.single_blocks.0.linear1.lora_A.weight": down}
    save_file(tensors | {"diffusion_model.single_blocks.0.linear1.lora_B.weight": up}, tmp_path / "lora.safetensors")
    found = pairs(read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32).weights)
    rows = [found[f"single_transformer_blocks.0.{name}"] for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    assert torch.equal(torch.cat([u for _, u in rows]), up) and all(torch.equal(d, down) for d, _ in rows)


def test_a_name_that_ends_like_one_of_ours_is_not_ours(shapes):
    """SDXL's attention is in transformer_blocks, too, and single blocks end as double ones do."""
    names = Names(flux1, shapes)
    assert names.of("transformer.single_transformer_blocks.0.attn.to_q") == ("single_transformer_blocks.0.attn.to_q",)
    assert names.of("transformer.transformer_blocks.0.attn.to_q") == ("transformer_blocks.0.attn.to_q",)
    assert not names.of("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj")
    assert not names.of("transformer_blocks.7.attn.to_q") and names.block_that_is_missing("transformer_blocks.7.attn.to_q")


def test_a_key_says_its_module_and_role():
    assert parse_key("a.b.lora_A.default.weight").role == "down" and parse_key("a.b.lora_A.default.weight").module == "a.b"
    assert parse_key("a.processor.qkv_lora1.up.weight").module == "a.processor.qkv_lora1"
    assert parse_key("a.lora_B.bias").role == "up bias" and parse_key("a.alpha").role == "alpha"
    assert parse_key("a.weight") is None
