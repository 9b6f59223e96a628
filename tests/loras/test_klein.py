"""FLUX.2 klein's LoRAs in other tools' keys; diffusers' own reader is the judge."""

import pytest
import torch
from diffusers import Flux2KleinPipeline
from helpers import publish

from benchmarks.adapters import random_adapter
from finetuner.bases import target_names
from finetuner.loras import WEIGHTS_NAME, export_lora, import_lora, in_half, load_lora
from finetuner.store import Finetune, FolderStore


@pytest.fixture
def store(tmp_path) -> FolderStore:
    return FolderStore(tmp_path / "finetunes")


@pytest.fixture
def finetune(store, klein_base, monkeypatch) -> Finetune:
    monkeypatch.setenv("BASE_MODEL", str(klein_base.folder))
    weights = in_half(random_adapter(klein_base.load_transformer(), 16))
    return store.fetch(publish(store, klein_base, weights, 16))


@pytest.mark.parametrize("file_format", ["diffusers", "kohya"])
def test_an_exported_file_is_read_by_diffusers_and_by_us_to_the_same_bits(store, klein_base, finetune, tmp_path, file_format):
    published = load_lora(finetune.folder / WEIGHTS_NAME)
    assert {name.rpartition(".lora_")[0] for name in published} == set(target_names(klein_base.meta_transformer()))
    export_lora(finetune, file_format, tmp_path / "lora.safetensors")
    read = Flux2KleinPipeline.lora_state_dict(tmp_path / "lora.safetensors")
    read = {name.removeprefix("transformer."): tensor for name, tensor in read.items()}
    imported = load_lora(import_lora(tmp_path / "lora.safetensors", "TOK", store).folder / WEIGHTS_NAME)
    for weights in (read, imported):
        assert weights.keys() == published.keys()
        assert all(torch.equal(weights[name], published[name]) for name in published)
