"""Both ways through diffusers' and kohya's keys; what diffusers itself reads of a file is the judge."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file

from benchmarks.adapters import random_adapter
from finetuner.bases import flux1, target_names
from finetuner.loras.export import kohya_tensors
from finetuner.loras.files import Weights, save_lora
from finetuner.loras.foreign import linear_shapes, read_foreign_lora
from finetuner.loras.names import fused_modules
from script.plan import FLUX_DEV
from script.trace_step import on_meta

DEV = FLUX_DEV | {"num_layers": 1, "num_single_layers": 1}  # one block of each kind, at the widths of FLUX.1


@pytest.fixture
def shapes(transformer):
    return linear_shapes(transformer)


@pytest.fixture
def weights(transformer) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in random_adapter(transformer, rank=4).items()}


def read(path: Path, shapes: dict, **options) -> Weights:
    return read_foreign_lora(path, flux1, shapes, 32, **options).weights


def write_kohya(weights: Weights, path: Path) -> None:
    save_file(kohya_tensors(weights, flux1), path)


def changes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Linear's name -> B A."""
    names = {name.rpartition(".lora_")[0] for name in weights}
    return {n: weights[f"{n}.lora_B.weight"].double() @ weights[f"{n}.lora_A.weight"].double() for n in names}


def assert_same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_every_linear_that_a_finetune_changes_has_its_place_in_kohyas_keys(transformer):
    names = target_names(transformer)
    modules = fused_modules(names, flux1)
    assert sorted(chain(*modules.values())) == sorted(names)
    assert len(modules) == 8 + 2


def test_kohyas_keys_and_back_are_the_same_bits(weights, shapes, tmp_path):
    write_kohya(weights, tmp_path / "kohya.safetensors")
    assert_same(read(tmp_path / "kohya.safetensors", shapes), weights)


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
    for name in target_names(on_meta(DEV)):
        out, width = on_meta(DEV).get_submodule(name).weight.shape
        weights[f"{name}.lora_A.weight"] = torch.randn(2, width, generator=generator).half()
        weights[f"{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator).half()
    write_kohya(weights, tmp_path / "kohya.safetensors")
    found = FluxPipeline.lora_state_dict(tmp_path / "kohya.safetensors")
    assert_same({name.removeprefix("transformer."): tensor for name, tensor in found.items()}, weights)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_diffusers_keys_are_read_with_and_without_their_prefix(weights, shapes, tmp_path, prefix):
    save_file({prefix + name: tensor for name, tensor in weights.items()}, tmp_path / "lora.safetensors")
    assert_same(read(tmp_path / "lora.safetensors", shapes), weights)


def test_what_we_write_for_diffusers_we_read(weights, shapes, tmp_path):
    save_lora(dict(weights), tmp_path, flux1)
    assert_same(read(tmp_path / "pytorch_lora_weights.safetensors", shapes), weights)


@pytest.mark.parametrize("names", ["lora_unet_double_blocks_0_img_attn_qkv", "diffusion_model.double_blocks.0.img_attn.qkv"])
def test_a_fused_lora_is_split_into_its_rows_with_alpha_folded_in(shapes, tmp_path, names):
    down, up = torch.randn(6, 32), torch.randn(96, 6)
    file = {f"{names}.lora_down.weight": down, f"{names}.lora_up.weight": up, f"{names}.alpha": torch.tensor(2.0)}
    save_file(file, tmp_path / "lora.safetensors")
    change = changes(read(tmp_path / "lora.safetensors", shapes))
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
    found = changes(read(tmp_path / "pytorch_lora_weights.safetensors", shapes))
    name = "transformer_blocks.0.attn.to_q"
    assert torch.equal(found[name], scale * changes(own)[name])


def test_a_smaller_rank_beside_a_larger_one_is_padded_and_a_missing_sibling_filled_in(weights, shapes, tmp_path):
    q, proj = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_out.0"
    own = {name: tensor for name, tensor in weights.items() if name.startswith((q, proj))}
    for part, rows in (("A", own[f"{q}.lora_A.weight"][:2]), ("B", own[f"{q}.lora_B.weight"][:, :2])):
        own[f"{q}.lora_{part}.weight"] = rows.contiguous()
    save_file(own, tmp_path / "lora.safetensors")
    found = read(tmp_path / "lora.safetensors", shapes)
    assert {min(tensor.shape) for tensor in found.values()} == {4}
    assert all(torch.equal(changes(found)[name], changes(own)[name]) for name in (q, proj))
    assert not changes(found)["transformer_blocks.0.attn.to_k"].any()
    write_kohya(found, tmp_path / "kohya.safetensors")
    assert_same(read(tmp_path / "kohya.safetensors", shapes), found)


QKV = "lora_unet_double_blocks_0_img_attn_qkv"


def kohya(module: str, out: int, width: int = 32, rank: int = 4) -> dict[str, torch.Tensor]:
    return {f"{module}.lora_down.weight": torch.ones(rank, width), f"{module}.lora_up.weight": torch.ones(out, rank)}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1", 4), "text encoders .lora_te1_.*4.00% .*--blocks-only"),
        (kohya("text_encoder.layers.0", 4), "text encoders .text_encoder.layers"),
        (kohya("transformer.x_embedder", 32, 16), "embedders and the output layer .transformer.x_embedder"),
        ({f"{QKV}.lora_B.bias": torch.ones(96)}, "biases"),
        (kohya(QKV, 96, width=3072), "this base has 96 x 32 there. A width of 3072 is that of FLUX.1"),
        ({f"{QKV}.lora_up.weight": torch.full((96, 4), torch.nan)}, "not a finite number"),
        ({f"{QKV}.alpha": torch.tensor(torch.inf)}, "the alpha of lora_unet.* is not one finite number"),
        ({"transformer_blocks.0.attn.to_out.0.lora_A.weight": torch.ones(4, 32)}, "has only down"),
        (kohya("transformer_blocks.7.attn.to_q", 32), "changes transformer_blocks.7.attn.to_q, and this base has 1 double"),
        (kohya("transformer_blocks.0.attn.to_q", 32), "to_q twice"),
        ({f"{QKV}.lora_A.default.weight": torch.ones(4, 32)}, "is in it twice"),
        ({"lora_unet_double_blocks_0_img_attn_proj.scale_weight": torch.ones(4)}, "not known here: lora_unet.*scale_weight"),
        ({f"{QKV}.lora_up.weight": torch.ones(96, 4, dtype=torch.int8)}, "holds torch.int8"),
        ({f"{QKV}.lora_up.weight": torch.zeros(96, 4)}, "changes nothing"),
    ],
)
def test_what_a_finetune_cannot_hold_is_refused_by_name(shapes, tmp_path, extra, message):
    save_file(kohya(QKV, 96), tmp_path / "lora.safetensors")
    read(tmp_path / "lora.safetensors", shapes)
    save_file(kohya(QKV, 96) | extra, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=f"^lora.safetensors: .*{message}"):
        read(tmp_path / "lora.safetensors", shapes)


def test_what_is_left_out_is_named_with_its_share_and_zeros_are_dropped(weights, shapes, tmp_path, caplog):
    te, zero = ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te1_text_model_encoder_layers_1_mlp_fc1")
    ours = kohya_tensors(weights, flux1)
    energy = sum(float((change**2).sum()) for change in changes(weights).values())
    down, up = torch.randn(4, 8), torch.randn(8, 4)
    file = ours | {f"{te}.lora_down.weight": down, f"{te}.lora_up.weight": up, f"{te}.alpha": torch.tensor(2)}
    share = float((0.5 * up.double() @ down.double()).square().sum())
    share /= share + energy
    file |= {f"{zero}.lora_down.weight": torch.ones(4, 8), f"{zero}.lora_up.weight": torch.zeros(8, 4)}
    save_file(file, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=f"{share:.2%} of its change"):
        read(tmp_path / "lora.safetensors", shapes)
    caplog.clear()
    lora = read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32, blocks_only=True)
    assert_same(lora.weights, weights)
    assert "1 parts of text encoders are all zero and were dropped" in caplog.text
    assert f"text encoders were left out, as asked: {share:.2%}" in caplog.text
    assert lora.facts["left_out"]["text encoders"] == pytest.approx(share)
    assert lora.facts["dropped_as_zero"] == {"text encoders": 1}
    assert "nothing says alpha" not in caplog.text  # of what is left out, it matters to nobody


def test_a_part_of_zeros_alone_is_dropped_without_an_option(weights, shapes, tmp_path, caplog):
    zeros = {"lora_te1_x.lora_down.weight": torch.ones(4, 8), "lora_te1_x.lora_up.weight": torch.zeros(8, 4)}
    zeros |= {"transformer.proj_out.lora_A.weight": torch.ones(2, 32), "transformer.proj_out.lora_B.weight": torch.zeros(16, 2)}
    zeros |= {f"{QKV.replace('attn_qkv', 'mod_lin')}.lora_down.weight": torch.ones(2, 32)}
    zeros |= {f"{QKV.replace('attn_qkv', 'mod_lin')}.lora_up.weight": torch.zeros(192, 2)}
    save_file(kohya_tensors(weights, flux1) | zeros, tmp_path / "lora.safetensors")
    assert_same(read(tmp_path / "lora.safetensors", shapes), weights)
    for what in ("text encoders", "embedders and the output layer", "the transformer's blocks"):
        assert f"1 parts of {what} are all zero and were dropped" in caplog.text


def low_rank(rank: int, true_rank: int, out: int = 192, width: int = 96, dtype: torch.dtype = torch.float32) -> tuple:
    """Factors of a formal and a true rank, each rounded to the dtype."""
    generator = torch.Generator().manual_seed(rank)
    mixing = torch.randn(rank, true_rank, generator=generator, dtype=torch.float64) / true_rank**0.5
    down = mixing @ torch.randn(true_rank, width, generator=generator, dtype=torch.float64)
    return down.to(dtype), torch.randn(out, rank, generator=generator, dtype=torch.float64).to(dtype)


WIDE = {f"single_transformer_blocks.0.{name}": (192, 96) for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
MLP = "single_transformer_blocks.0.proj_mlp"


def write_factors(path: Path, down: torch.Tensor, up: torch.Tensor) -> Path:
    save_file({f"{MLP}.lora_A.weight": down, f"{MLP}.lora_B.weight": up}, path)
    return path


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float16, 2.0**-10), (torch.bfloat16, 2.0**-7)])
def test_a_rank_that_is_in_truth_small_enough_is_read_to_rounding(tmp_path, dtype, error):
    down, up = low_rank(64, 32, dtype=dtype)
    lora = read_foreign_lora(write_factors(tmp_path / "lora.safetensors", down, up), flux1, WIDE, 32)
    whole = up.double() @ down.double()
    assert (changes(lora.weights)[MLP] - whole).norm() <= error * whole.norm()
    assert lora.weights[f"{MLP}.lora_A.weight"].shape == (32, 96) and lora.facts["energy_kept"] == 1


def test_a_rank_that_is_larger_is_refused_with_what_a_cut_keeps_and_cut_if_asked(tmp_path, caplog):
    down, up = low_rank(64, 40)
    path, whole = write_factors(tmp_path / "lora.safetensors", down, up), up.double() @ down.double()
    values = torch.linalg.svdvals(whole) ** 2
    kept = float(values[:32].sum() / values.sum())
    assert 0.9 < kept < 0.999
    with pytest.raises(ValueError, match=f"its rank is 64, .* keep {kept:.4%} of its change.*--resize"):
        read_foreign_lora(path, flux1, WIDE, 32)
    lora = read_foreign_lora(path, flux1, WIDE, 32, resize=True)
    change = changes(lora.weights)[MLP]
    assert 1 - ((change - whole).norm() / whole.norm()) ** 2 == pytest.approx(kept, abs=1e-6)
    assert lora.facts["energy_kept"] == pytest.approx(kept) and f"keeps {100 * kept:.4f} %" in caplog.text
