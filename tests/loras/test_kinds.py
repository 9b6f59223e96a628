"""Each file that a finetune cannot be made of is named for what it is."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from finetuner.bases import flux1
from finetuner.loras.foreign import linear_shapes, read_foreign_lora

DOUBLE = "lora_unet_double_blocks_0"


@pytest.fixture
def shapes(transformer) -> dict:
    return linear_shapes(transformer)


def lora(module: str, out: int = 32, width: int = 32, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{module}.lora_down.weight": torch.ones(rank, width), f"{module}.lora_up.weight": torch.ones(out, rank)}


def tensors(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.ones(2, 2) for name in names}


SDXL = "lora_unet_input_blocks_4_1_transformer_blocks_0"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (tensors(f"{DOUBLE}_img_attn_qkv.lokr_w1", f"{DOUBLE}_img_attn_qkv.lokr_w2"), "holds a LoKr"),
        (tensors(f"{DOUBLE}_img_attn_qkv.lokr_w1", f"{DOUBLE}_img_attn_qkv.lokr_w2_a"), "holds a LoKr"),
        (tensors(f"{DOUBLE}_img_attn_qkv.hada_w1_a", f"{DOUBLE}_img_attn_qkv.hada_w1_b"), "holds a LoHa"),
        (tensors(f"{DOUBLE}_img_attn_qkv.oft_blocks"), "holds an OFT"),
        (tensors("base_model.model.transformer_blocks.0.attn.to_q.oft_R.default.weight"), "holds an OFT"),
        (lora(f"{DOUBLE}_img_attn_proj") | tensors(f"{DOUBLE}_img_attn_proj.dora_scale"), "holds a DoRA"),
        (
            lora("transformer_blocks.0.attn.to_q") | tensors("transformer_blocks.0.attn.to_q.lora_magnitude_vector"),
            "holds a DoRA",
        ),
        (lora("transformer_blocks.0.attn.to_q") | tensors("transformer_blocks.0.attn.to_q.magnitude"), "holds a DoRA"),
        (tensors("diffusion_model.double_blocks.0.img_attn.qkv.diff"), "holds differences of whole weights"),
        (lora("img_in", 32, 128) | tensors("double_blocks.0.img_attn.norm.key_norm.scale"), "holds a control LoRA"),
        (tensors("emb_params"), "is a textual inversion"),
        (tensors("double_blocks.0.img_attn.qkv.weight", "double_blocks.0.img_attn.qkv.bias"), "is a whole model"),
        (
            tensors("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"),
            "is a whole model",
        ),
        (tensors("transformer_blocks.0.attn.to_q.weight"), "is a whole model"),
        (tensors("something"), "has no LoRA in it: what these are"),
        ({}, "has no LoRA in it: no tensor at all"),
        (lora(f"{SDXL}_attn2_to_k", 640, 2048), "is a LoRA for SDXL"),
        (lora("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q") | lora("lora_te2_x"), "is a LoRA for SDXL"),
        (lora("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 768), "for Stable Diffusion 1.5"),
        (lora("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 1024), "for Stable Diffusion 2"),
        (lora("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"), "for Stable Diffusion or SDXL"),
        (lora("lora_unet_joint_blocks_0_x_block_attn_qkv"), "for Stable Diffusion 3"),
        (lora("transformer.transformer_blocks.0.attn.to_q", 1536, 1536), "width of 1536 is that of Stable Diffusion 3"),
        (lora("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"), "is a LoRA for FLUX.2"),
        (lora("transformer.transformer_blocks.0.ff.linear_in"), "is a LoRA for FLUX.2"),
        (lora("diffusion_model.double_stream_modulation_img.lin"), "is a LoRA for FLUX.2"),
        (lora("diffusion_model.single_blocks.0.linear1", 27648, 3072), "These are FLUX.2 klein's shapes"),
        (lora("diffusion_model.single_blocks.9.linear1", 27648, 3072), "1 single blocks. These are FLUX.2 klein's shapes"),
        (lora("lora_unet_double_blocks_0_img_mlp_0", 18432, 3072), "These are FLUX.2 klein's shapes"),
        (lora("lora_unet_double_blocks_0_img_mod_lin", 18432, 3072), "A width of 3072 is that of FLUX.1"),
        (lora("transformer.transformer_blocks.0.ff.linear_in") | lora("transformer_blocks.9.attn.to_q"), "for FLUX.2"),
        (lora("diffusion_model.blocks.0.self_attn.q"), "is a LoRA for Wan"),
        (lora("transformer_blocks.0.img_mlp.net.0.proj"), "is a LoRA for Qwen-Image"),
        (lora("lora_unet_double_blocks_0_img_mod_linear"), "is a LoRA for HunyuanVideo"),
        (lora("diffusion_model.layers.0.attention.to_q"), "is a LoRA for Z-Image"),
        (lora("base_model.model.model.layers.0.self_attn.q_proj"), "is a LoRA for a language model"),
        (lora("transformer.transformer_blocks.0.attn.to_q", 3072, 3072), "width of 3072 is that of FLUX.1 .dev"),
        (
            lora("transformer.transformer_blocks.18.attn.to_q", 3072, 3072),
            "has 1 double and 1 single blocks. A width of 3072 is that of FLUX.1",
        ),
        (lora("transformer.nowhere.at.all"), "FLUX.1 has no transformer.nowhere.at.all"),
    ],
)
def test_each_file_is_named_for_what_it_is(shapes, tmp_path, file, message):
    save_file(file, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=f"^lora.safetensors: .*{message}"):
        read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32)


def test_attention_of_flux2_fits_and_is_told_by_its_metadata(shapes, tmp_path):
    file = lora("transformer.transformer_blocks.0.attn.to_q")
    for metadata in ({"modelspec.architecture": "Flux.2-klein-4B/lora"}, {"ss_base_model_version": "flux2_klein_4b"}):
        save_file(file, tmp_path / "lora.safetensors", metadata)
        with pytest.raises(ValueError, match="(?i)is a LoRA for FLUX.2 .flux.?2"):
            read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32)
    save_file(file, tmp_path / "lora.safetensors", {"modelspec.architecture": "Flux.1-dev/lora"})
    assert read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32).weights


def test_a_base_of_the_family_that_a_file_names_does_not_refuse_it(shapes, tmp_path):
    family = SimpleNamespace(**vars(flux1) | {"NAME": "FLUX.2"})
    save_file(
        lora("transformer.transformer_blocks.0.attn.to_q"), tmp_path / "lora.safetensors", {"ss_base_model_version": "flux2"}
    )
    assert read_foreign_lora(tmp_path / "lora.safetensors", family, shapes, 32).weights
