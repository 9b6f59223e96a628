import copy

import pytest
import torch
from diffusers import FluxTransformer2DModel
from helpers import velocity

from benchmarks.adapters import random_adapter
from finetuner.bases import target_names
from finetuner.loras import WEIGHTS_NAME, in_half, load_lora, save_lora
from finetuner.training import adapter
from script.plan import KLEIN_4B, KLEIN_9B
from script.trace_step import on_meta


def test_targets_are_all_linears_of_the_blocks_of_flux_but_modulation():
    with torch.device("meta"):
        flux = FluxTransformer2DModel(num_layers=19, num_single_layers=38, guidance_embeds=True)
    names = target_names(flux)
    assert len(names) == 418  # 19 double blocks x 12 and 38 single blocks x 5
    assert "proj_out" not in names and "single_transformer_blocks.0.proj_out" in names
    assert not [name for name in names if "norm" in name]


@pytest.mark.parametrize(("config", "count"), [(KLEIN_4B, 5 * 12 + 20 * 2), (KLEIN_9B, 8 * 12 + 24 * 2)])
def test_targets_are_all_linears_of_the_blocks_of_klein(config, count):
    names = target_names(on_meta(config))
    assert len(names) == count and "proj_out" not in names
    assert not [name for name in names if "modulation" in name or "norm" in name]


def test_a_new_adapter_changes_nothing_and_trains_in_float32(transformer, batch):
    before = velocity(transformer, batch)
    transformer.to(torch.bfloat16)
    adapter.add_adapter(transformer, rank=4, seed=0)
    trainable = [p for p in transformer.parameters() if p.requires_grad]
    assert trainable and all(p.dtype == torch.float32 for p in trainable)
    transformer.float()
    assert torch.allclose(velocity(transformer, batch), before, atol=0.05)  # the base was rounded to bfloat16


def test_strength_scales_the_change_of_a_trained_adapter(transformer, batch):
    before, weights = velocity(transformer, batch), random_adapter(transformer, 8)
    adapter.add_adapter(transformer, rank=8, seed=0)
    adapter.load_adapter_state_dict(transformer, weights)
    adapter.set_strength(transformer, 1.0)
    assert not torch.equal(velocity(transformer, batch), before)
    adapter.set_strength(transformer, 0.0)
    assert torch.equal(velocity(transformer, batch), before)


def test_a_saved_adapter_loads_in_plain_diffusers_and_computes_the_same(transformer, family, batch, tmp_path):
    plain = copy.deepcopy(transformer)
    weights = random_adapter(transformer, 8)
    adapter.add_adapter(transformer, rank=8, seed=0)
    adapter.load_adapter_state_dict(transformer, {name: tensor.half().float() for name, tensor in weights.items()})
    save_lora(in_half(adapter.adapter_state_dict(transformer)), tmp_path, family)
    assert load_lora(tmp_path / WEIGHTS_NAME).keys() == weights.keys()

    parts = dict.fromkeys(("scheduler", "vae", *family.TEXT_PARTS))
    pipeline = family.PIPELINE(**parts, transformer=plain)
    pipeline.load_lora_weights(tmp_path)
    assert torch.equal(velocity(plain, batch), velocity(transformer, batch))


def test_each_row_of_a_batch_may_have_a_strength_of_its_own(transformer, batch):
    base = velocity(transformer, batch)
    adapter.add_adapter(transformer, 4, seed=0)
    for parameter in adapter.trainable_weights(transformer).values():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    alone = []
    for row, strength in enumerate((0.0, 1.5)):
        adapter.set_strength(transformer, strength)
        alone.append(velocity(transformer, batch)[row])
    adapter.set_strength(transformer, torch.tensor([0.0, 1.5]))
    first, second = velocity(transformer, batch)
    assert torch.equal(first, base[0]) and not torch.equal(second, base[1])
    torch.testing.assert_close(second, alone[1])
