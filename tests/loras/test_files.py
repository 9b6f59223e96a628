"""A finetune's own file. That plain diffusers loads it is tested with the adapter that it comes from."""

import json

import torch
from safetensors import safe_open

from benchmarks.adapters import random_adapter
from finetuner.bases import flux1
from finetuner.loras.files import in_half, load_lora, save_lora


def test_the_same_weights_give_the_same_bytes(transformer, tmp_path):
    weights = random_adapter(transformer, rank=4)
    files = {save_lora(weights, tmp_path / str(n), flux1).read_bytes() for n in range(8)}
    assert len(files) == 1


def test_what_is_saved_is_read_again_and_says_its_rank(transformer, tmp_path):
    weights = in_half(random_adapter(transformer, rank=4))
    path = save_lora(weights, tmp_path, flux1)
    read = load_lora(path)
    assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in weights)
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert said["transformer.r"] == said["transformer.lora_alpha"] == 4
