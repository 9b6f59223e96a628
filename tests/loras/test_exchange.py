import pytest
import torch
from helpers import plain_picture, publish
from PIL import Image
from safetensors.torch import save_file

from benchmarks.adapters import random_adapter
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
