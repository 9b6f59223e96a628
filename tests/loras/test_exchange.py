import re

import numpy as np
import pytest
import torch
from helpers import plain_picture, publish
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.adapters import random_adapter
from finetuner.bases import block_linears, target_names
from finetuner.generate import Generator
from finetuner.loras.exchange import export_lora, import_lora
from finetuner.requests import ImageRequest
from finetuner.store import Finetune, FolderStore


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FolderStore:
    return FolderStore(tmp_path_factory.mktemp("finetunes"))


@pytest.fixture(scope="module")
def finetune(store, base) -> Finetune:
    return store.fetch(publish(store, base, random_adapter(base.load_transformer(), 16), 16))


def picture(generator: Generator, finetune: Finetune) -> bytes:
    path = generator.generate(ImageRequest("a fox, TOK style", finetune.id, steps=2, seed=5, output_format="png")).path
    with Image.open(path) as image:
        pixels = image.tobytes()
    path.unlink()
    return pixels


def test_exported_files_give_the_picture_of_the_finetune(store, finetune, base, tmp_path):
    """diffusers reads the one, and we the other: of kohya's keys diffusers knows the widths of FLUX.1 only."""
    generator = Generator(base, store)
    ours = picture(generator, finetune)
    export_lora(finetune, "diffusers", tmp_path / "diffusers.safetensors")
    image = plain_picture(base, "a fox, TOK style", steps=2, seed=5, lora=tmp_path / "diffusers.safetensors")
    assert image.tobytes() == ours

    export_lora(finetune, "kohya", tmp_path / "kohya.safetensors")
    for name in ("kohya", "diffusers"):
        imported = import_lora(tmp_path / f"{name}.safetensors", "TOK", store)
        assert imported.id != finetune.id and imported.base == base.describe() and imported.trigger_word == "TOK"
        assert imported.manifest["imported"]["file"] == f"{name}.safetensors"
        assert picture(generator, imported) == ours


def test_an_export_says_what_other_tools_ask_for(finetune, tmp_path):
    """The same in both formats. Forge tells the model by modelspec.implementation or modelspec.architecture
    (sd_forge_lora/network.py), InvokeAI by modelspec.architecture (configs/lora.py), and sd-scripts writes the rest
    (library/sai_model_spec.py, train_network.py)."""
    for name in ("diffusers", "kohya"):
        path = tmp_path / f"{name}.safetensors"
        export_lora(finetune, name, path)
        with safe_open(path, "pt") as file:
            metadata, keys = file.metadata(), list(file.keys())
        assert metadata["modelspec.sai_model_spec"] == "1.0.1"
        assert metadata["modelspec.architecture"] == "flux-1-dev/lora"
        assert metadata["modelspec.implementation"] == "https://github.com/black-forest-labs/flux"
        assert metadata["modelspec.trigger_phrase"] == "TOK" and "TOK" in metadata["modelspec.title"]
        assert metadata["modelspec.date"] == finetune.manifest["created"]
        assert metadata["ss_base_model_version"] == "flux1" and metadata["ss_network_module"] == "networks.lora_flux"
        assert metadata["ss_network_dim"] == "16" and float(metadata["ss_network_alpha"]) == 16
        assert ("lora_adapter_metadata" in metadata) == (name == "diffusers")
        again = tmp_path / f"{name}-again.safetensors"
        export_lora(finetune, name, again)
        assert again.read_bytes() == path.read_bytes()
        if name == "kohya":  # InvokeAI takes a file for kohya's where all of its keys are of this pattern
            pattern = (
                r"lora_unet_(\w+_blocks)_(\d+)_(img_attn|img_mlp|img_mod|txt_attn|txt_mlp|txt_mod|linear1|linear2|modulation)"
            )
            assert all(re.match(pattern + r"_?\w*\.(lora_down\.weight|lora_up\.weight|alpha)$", key) for key in keys)


def test_modulation_is_imported_drawn_and_exported_without_loss(store, base, tmp_path):
    """plain diffusers draws with the file, too: a judge of what the slot makes of it."""
    transformer, generator = base.load_transformer(), torch.Generator().manual_seed(0)
    tensors, mine = random_adapter(transformer, 4), set(target_names(transformer))
    for name in sorted(block_linears(transformer).keys() - mine):
        linear = transformer.get_submodule(name)
        tensors[f"{name}.lora_A.weight"] = 0.1 * torch.randn(4, linear.in_features, generator=generator)
        tensors[f"{name}.lora_B.weight"] = 0.05 * torch.randn(linear.out_features, 4, generator=generator)
    file = {f"transformer.{name}": tensor.half() for name, tensor in sorted(tensors.items())}
    save_file(file, tmp_path / "theirs.safetensors")
    imported = import_lora(tmp_path / "theirs.safetensors", "TOK", store)
    assert imported.manifest["imported"]["format"] == ["diffusers, behind transformer."]
    image = plain_picture(base, "a fox, TOK style", steps=2, seed=5, lora=tmp_path / "theirs.safetensors")
    drawn = np.frombuffer(picture(Generator(base, store), imported), np.uint8).astype(int)
    assert abs(drawn - np.asarray(image, int).ravel()).max() <= 1  # modulation is one row a picture: another kernel's rounding
    export_lora(imported, "diffusers", tmp_path / "ours.safetensors")
    ours = load_file(tmp_path / "ours.safetensors")
    assert ours.keys() == file.keys() and all(torch.equal(ours[name], file[name]) for name in file)


def test_an_imported_file_that_does_not_fit_publishes_nothing(store, tmp_path):
    before = store.listings()
    file = {f"lora_te1_x.lora_{side}.weight": torch.ones(1, 1) for side in ("down", "up")}
    save_file(file, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="text encoder"):
        import_lora(tmp_path / "lora.safetensors", "TOK", store)
    with pytest.raises(ValueError, match="^trigger_word: "):
        import_lora(tmp_path / "lora.safetensors", "two words", store)
    assert store.listings() == before


def test_an_export_is_written_whole_or_not_at_all(finetune, tmp_path, full_disk):
    with pytest.raises(ValueError, match="^--format: 'flax' is not one of diffusers, kohya"):
        export_lora(finetune, "flax", tmp_path / "x.safetensors")
    (tmp_path / "there.safetensors").write_text("precious")
    with pytest.raises(ValueError, match="there already"):
        export_lora(finetune, "diffusers", tmp_path / "there.safetensors")
    (full_disk / "filler").write_bytes(bytes(1_000_000))
    for file_format in ("diffusers", "kohya"):
        with pytest.raises(Exception, match="No space left"):
            export_lora(finetune, file_format, full_disk / "x.safetensors")
    assert [path.name for path in full_disk.iterdir()] == ["filler"]
