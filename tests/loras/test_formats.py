"""Both ways through diffusers' and kohya's keys; what diffusers itself reads of a file is the judge."""

from itertools import chain

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file

from benchmarks.adapters import random_adapter
from finetuner.bases import flux1
from finetuner.loras.files import save_lora
from finetuner.loras.formats import fused_modules, read_foreign_lora, target_shapes, write_kohya
from script.plan import FLUX_DEV
from script.trace_step import on_meta

DEV = FLUX_DEV | {"num_layers": 1, "num_single_layers": 1}  # one block of each kind, at the widths of FLUX.1


@pytest.fixture
def shapes(transformer):
    return target_shapes(transformer)


@pytest.fixture
def weights(transformer) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in random_adapter(transformer, rank=4).items()}


def changes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Linear's name -> B A."""
    names = {name.rpartition(".lora_")[0] for name in weights}
    return {n: weights[f"{n}.lora_B.weight"].double() @ weights[f"{n}.lora_A.weight"].double() for n in names}


def assert_same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_every_linear_that_a_finetune_changes_has_its_place_in_kohyas_keys(shapes):
    modules = fused_modules(shapes.keys(), flux1)
    assert sorted(chain(*modules.values())) == sorted(shapes)
    assert len(modules) == 8 + 2


def test_kohyas_keys_and_back_are_the_same_bits(weights, shapes, tmp_path):
    write_kohya(weights, tmp_path / "kohya.safetensors")
    assert_same(read_foreign_lora(tmp_path / "kohya.safetensors", flux1, shapes, 32), weights)


def test_a_fused_module_makes_the_changes_of_its_linears(weights, tmp_path):
    write_kohya(weights, tmp_path / "kohya.safetensors")
    file, change = load_file(tmp_path / "kohya.safetensors"), changes(weights)
    for module, names in fused_modules(change.keys(), flux1).items():
        up, down = (file[f"{module}.lora_{part}.weight"].double() for part in ("up", "down"))
        assert file[f"{module}.alpha"] == down.shape[0] == up.shape[1] == 4 * len(names)
        assert torch.allclose(up @ down, torch.cat([change[name] for name in names]), atol=1e-12)


def test_diffusers_reads_the_same_bits_from_a_kohya_file_of_flux(tmp_path):
    """Its reader knows only the widths of FLUX.1, so that these are."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, (out, width) in target_shapes(on_meta(DEV)).items():
        weights[f"{name}.lora_A.weight"] = torch.randn(2, width, generator=generator).half()
        weights[f"{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator).half()
    write_kohya(weights, tmp_path / "kohya.safetensors")
    read = FluxPipeline.lora_state_dict(tmp_path / "kohya.safetensors")
    assert_same({name.removeprefix("transformer."): tensor for name, tensor in read.items()}, weights)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_diffusers_keys_are_read_with_and_without_their_prefix(weights, shapes, tmp_path, prefix):
    save_file({prefix + name: tensor for name, tensor in weights.items()}, tmp_path / "lora.safetensors")
    assert_same(read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32), weights)


def test_what_we_write_for_diffusers_we_read(weights, shapes, tmp_path):
    save_lora(dict(weights), tmp_path, flux1)
    assert_same(read_foreign_lora(tmp_path / "pytorch_lora_weights.safetensors", flux1, shapes, 32), weights)


@pytest.mark.parametrize("names", ["lora_unet_double_blocks_0_img_attn_qkv", "diffusion_model.double_blocks.0.img_attn.qkv"])
def test_a_fused_lora_is_split_into_its_rows_with_alpha_folded_in(shapes, tmp_path, names):
    down, up = torch.randn(6, 32), torch.randn(96, 6)
    file = {f"{names}.lora_down.weight": down, f"{names}.lora_up.weight": up, f"{names}.alpha": torch.tensor(2.0)}
    save_file(file, tmp_path / "lora.safetensors")
    change = changes(read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32))
    assert list(change) and len(change) == 3
    whole = 2 / 6 * up.double() @ down.double()
    for name, rows in zip(("to_q", "to_k", "to_v"), whole.split(32), strict=True):
        assert torch.allclose(change[f"transformer_blocks.0.attn.{name}"], rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"lora_alpha": 2, "r": 4}, 0.5),
        ({"lora_alpha": 2, "r": 4, "alpha_pattern": {"transformer_blocks.0.attn.to_q": 8}}, 2.0),
        ({"lora_alpha": 8, "r": 4, "use_rslora": True}, 4.0),
    ],
)
def test_the_alpha_of_the_metadata_is_folded_in(weights, shapes, tmp_path, fields, scale):
    own = {name: tensor for name, tensor in weights.items() if name.startswith("transformer_blocks.0.attn.to_q.")}
    FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=dict(own), transformer_lora_adapter_metadata=fields)
    read = changes(read_foreign_lora(tmp_path / "pytorch_lora_weights.safetensors", flux1, shapes, 32))
    name = "transformer_blocks.0.attn.to_q"
    assert torch.equal(read[name], scale * changes(own)[name])


def test_a_smaller_rank_beside_a_larger_one_is_padded_and_a_missing_sibling_filled_in(weights, shapes, tmp_path):
    q, proj = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_out.0"
    own = {name: tensor for name, tensor in weights.items() if name.startswith((q, proj))}
    for part, rows in (("A", own[f"{q}.lora_A.weight"][:2]), ("B", own[f"{q}.lora_B.weight"][:, :2])):
        own[f"{q}.lora_{part}.weight"] = rows.contiguous()
    save_file(own, tmp_path / "lora.safetensors")
    read = read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32)
    assert {min(tensor.shape) for tensor in read.values()} == {4}
    assert all(torch.equal(changes(read)[name], changes(own)[name]) for name in (q, proj))
    assert not changes(read)["transformer_blocks.0.attn.to_k"].any()
    write_kohya(read, tmp_path / "kohya.safetensors")
    assert_same(read_foreign_lora(tmp_path / "kohya.safetensors", flux1, shapes, 32), read)


QKV = "lora_unet_double_blocks_0_img_attn_qkv"


def kohya(module: str, out: int, width: int = 32, rank: int = 4) -> dict[str, torch.Tensor]:
    return {f"{module}.lora_down.weight": torch.ones(rank, width), f"{module}.lora_up.weight": torch.ones(out, rank)}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1", 4), "text encoder, too .lora_te1_"),
        (kohya("text_encoder.layers.0", 4), "text encoder, too .text_encoder.layers"),
        ({"lora_unet_double_blocks_0_img_attn_proj.dora_scale": torch.ones(4)}, "not known here: lora_unet.*dora_scale"),
        (kohya(QKV, 96, rank=40), "its rank is 40"),
        (kohya(QKV, 96, width=3072), "this base has 96 x 32 there"),
        ({f"{QKV}.lora_up.weight": torch.full((96, 4), torch.nan)}, "not a finite number"),
        ({"transformer_blocks.0.attn.to_out.0.lora_A.weight": torch.ones(4, 32)}, "has only down"),
        (kohya("transformer_blocks.7.attn.to_q", 32), "changes transformer_blocks.7.attn.to_q, which"),
        (kohya("lora_unet_double_blocks_0_img_mod_lin", 192), "norm1.linear, which a finetune"),
        (kohya("transformer_blocks.0.attn.to_q", 32), "to_q twice"),
    ],
)
def test_what_a_finetune_cannot_hold_is_refused_by_name(shapes, tmp_path, extra, message):
    save_file(kohya(QKV, 96), tmp_path / "lora.safetensors")
    read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32)
    save_file(kohya(QKV, 96) | extra, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=f"^lora.safetensors: .*{message}"):
        read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32)


@pytest.mark.parametrize(
    "write", [lambda path: torch.save(kohya(QKV, 96), path), lambda path: save_file({}, path), lambda path: path]
)
def test_only_safetensors_with_a_lora_are_read(shapes, tmp_path, write):
    write(tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="^lora.safetensors: (is not a safetensors file|has no LoRA)"):
        read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32)
