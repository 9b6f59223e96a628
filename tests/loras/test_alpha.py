"""The strength of an imported LoRA, from wherever its file says alpha."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetuner.bases import flux1
from finetuner.loras.foreign import ForeignLora, linear_shapes, read_foreign_lora

Q, PROJ = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_out.0"
RANK = 4


@pytest.fixture
def shapes(transformer) -> dict:
    return linear_shapes(transformer)


def write(path: Path, metadata: dict | None = None, names: tuple[str, ...] = (Q, PROJ), kohya: bool = False, **alphas) -> Path:
    """A file whose changes are all ones at scale 1; alphas by module."""
    down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    tensors = {f"transformer.{name}.{down}.weight": torch.ones(RANK, 32) / RANK for name in names}
    tensors |= {f"transformer.{name}.{up}.weight": torch.ones(32, RANK) for name in names}
    tensors |= {f"transformer.{name}.alpha": tensor for name, tensor in alphas.get("tensors", {}).items()}
    save_file(tensors, path, metadata)
    return path


def scales(lora: ForeignLora) -> list[float]:
    """Of to_q and of to_out."""
    changes = [lora.weights[f"{n}.lora_B.weight"].double() @ lora.weights[f"{n}.lora_A.weight"].double() for n in (Q, PROJ)]
    assert all((change == change[0, 0]).all() for change in changes)
    return [float(change[0, 0]) for change in changes]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_is_a_tensor_of_any_dtype(shapes, tmp_path, dtype, shape):
    alphas = {Q: torch.full(shape, 2, dtype=dtype), PROJ: torch.full(shape, 8, dtype=dtype)}
    path = write(tmp_path / "lora.safetensors", {"ss_network_alpha": "1"}, kohya=True, tensors=alphas)
    lora = read_foreign_lora(path, flux1, shapes, 32)
    assert scales(lora) == [0.5, 2.0] and lora.facts["alpha"] == {"tensors": 2}


HEADER = "lora_adapter_metadata of its header"


@pytest.mark.parametrize(
    ("fields", "wanted", "source"),
    [
        ({"lora_alpha": 2, "r": 4}, [0.5, 0.5], HEADER),
        ({"transformer.lora_alpha": 2, "transformer.r": 4, "text_encoder.lora_alpha": 64}, [0.5, 0.5], HEADER),
        ({"lora_alpha": 2, "alpha_pattern": {"to_q": 8}}, [2.0, 0.5], HEADER),
        ({"lora_alpha": 2, "alpha_pattern": {r"attn\.to_out\.\d": 8}}, [0.5, 2.0], HEADER),
        ({"lora_alpha": 2, "alpha_pattern": {"_q": 8, "o_q": 8}}, [0.5, 0.5], HEADER),  # peft takes whole parts of a name
        ({"lora_alpha": 2, "alpha_pattern": {r".*\.to_.*": 8}}, [2.0, 2.0], HEADER),
        ({"lora_alpha": 2, "alpha_pattern": {f"transformer.{Q}": 8}}, [2.0, 0.5], HEADER),
        ({"lora_alpha": 8, "r": 4, "use_rslora": True}, [4.0, 4.0], HEADER),
        ({"lora_alpha": None, "r": None, "alpha_pattern": None}, [1.0, 1.0], "assumed equal to the rank"),
    ],
)
def test_alpha_is_in_pefts_fields(shapes, tmp_path, fields, wanted, source):
    path = write(tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(fields)})
    lora = read_foreign_lora(path, flux1, shapes, 32)
    assert scales(lora) == wanted and lora.facts["alpha"] == {source: 2}
    if any("." in name for name in fields):
        return
    (tmp_path / "peft").mkdir()
    path = write(tmp_path / "peft" / "adapter_model.safetensors")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(fields))
    for given in (path, path.parent):
        lora = read_foreign_lora(given, flux1, shapes, 32)
        assert scales(lora) == wanted
        assert lora.facts["alpha"] == {"adapter_config.json" if source == HEADER else source: 2}


@pytest.mark.parametrize("key", ["lora_alpha", "alpha", "network_alpha", "ss_network_alpha"])
def test_alpha_is_a_bare_key_of_the_header(shapes, tmp_path, key):
    lora = read_foreign_lora(write(tmp_path / "lora.safetensors", {key: "2.0"}), flux1, shapes, 32)
    assert scales(lora) == [0.5, 0.5] and lora.facts["alpha"] == {f"{key} of its header": 2}
    lora = read_foreign_lora(write(tmp_path / "lora.safetensors", {key: "None"}), flux1, shapes, 32)
    assert scales(lora) == [1.0, 1.0]


@pytest.mark.parametrize(
    "metadata",
    [
        {"lora_adapter_metadata": "{"},
        {"lora_adapter_metadata": "[]"},
        {"lora_adapter_metadata": '{"lora_alpha": "much"}'},
        {"lora_adapter_metadata": '{"lora_alpha": 1e999}'},
        {"lora_adapter_metadata": '{"lora_alpha": 2, "alpha_pattern": {"(": 8}}'},
        {"lora_adapter_metadata": '{"lora_alpha": 2, "alpha_pattern": [8]}'},
        {"lora_adapter_metadata": '{"use_rslora": true}'},
        {"network_alpha": "sixteen"},
    ],
)
def test_an_alpha_that_cannot_be_read_is_refused(shapes, tmp_path, metadata):
    with pytest.raises(ValueError, match="^lora.safetensors: .*alpha"):
        read_foreign_lora(write(tmp_path / "lora.safetensors", metadata), flux1, shapes, 32)


def test_what_is_assumed_is_said_where_such_files_say_it(shapes, tmp_path, caplog):
    read_foreign_lora(write(tmp_path / "lora.safetensors"), flux1, shapes, 32)  # ai-toolkit's: it never says alpha
    assert "alpha" not in caplog.text
    path = write(tmp_path / "lora.safetensors", kohya=True)
    assert read_foreign_lora(path, flux1, shapes, 32).facts["alpha"] == {"assumed equal to the rank": 2}
    assert "nothing says alpha for 2 linears" in caplog.text
    caplog.clear()
    read_foreign_lora(write(tmp_path / "lora.safetensors", tensors={Q: torch.tensor(2.0)}), flux1, shapes, 32)
    assert "nothing says alpha for 1 linears" in caplog.text


def test_a_rank_in_the_header_that_is_not_the_files_is_said(shapes, tmp_path, caplog):
    fields = {"r": 16, "lora_alpha": 2, "rank_pattern": {"to_q": 4}}
    path = write(tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(fields)})
    assert scales(read_foreign_lora(path, flux1, shapes, 32)) == [0.5, 0.5]
    assert "another rank than they have" in caplog.text and "to_out.0: 16 there, 4 here" in caplog.text


@pytest.mark.parametrize(
    "metadata", [{"ss_network_args": '{"split_qkv": "True"}'}, {"ss_network_dim": "4", "ss_network_alpha": "2.0"}]
)
def test_the_alpha_of_split_qkv_is_that_of_each_piece(shapes, tmp_path, metadata, caplog):
    """sd-scripts trains the pieces at alpha / r and saves them as one module of rank 3r, with the alpha of r."""
    module = "lora_unet_double_blocks_0_img_attn_qkv"
    up = torch.block_diag(*[torch.ones(32, RANK)] * 3)
    tensors = {f"{module}.lora_down.weight": torch.ones(3 * RANK, 32) / RANK, f"{module}.lora_up.weight": up}
    tensors[f"{module}.alpha"] = torch.tensor(2.0)

    def scale() -> float:
        weights = read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32).weights
        return float((weights[f"{Q}.lora_B.weight"].double() @ weights[f"{Q}.lora_A.weight"].double())[0, 0])

    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    assert scale() == pytest.approx(2 / RANK) and "split_qkv" in caplog.text
    save_file(tensors, tmp_path / "lora.safetensors")
    assert scale() == pytest.approx(2 / (3 * RANK))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_held_exactly(shapes, tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(RANK, 32, generator=generator).to(dtype)
    up = torch.randn(32, RANK, generator=generator).to(dtype)
    save_file({f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    weights = read_foreign_lora(tmp_path / "lora.safetensors", flux1, shapes, 32).weights
    assert torch.equal(weights[f"{Q}.lora_A.weight"], down.half()) and torch.equal(weights[f"{Q}.lora_B.weight"], up.half())
