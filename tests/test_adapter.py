import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from helpers import random_adapter

from finetuner import adapter
from finetuner.flow import predict_velocity


@pytest.fixture
def batch(dataset):
    return dataset.batch((32, 32), torch.tensor([0, 1]), torch.tensor([1, 2]), torch.Generator().manual_seed(0))


@torch.no_grad()
def velocity(transformer, batch):
    return predict_velocity(transformer, batch.latents, torch.tensor([0.3, 0.8]), batch, guidance=1.0)


def test_targets_are_all_linears_of_the_blocks_of_flux_but_modulation():
    with torch.device("meta"):
        flux = FluxTransformer2DModel(num_layers=19, num_single_layers=38, guidance_embeds=True)
    names = adapter.target_names(flux)
    assert len(names) == 418  # 19 double blocks x 12 and 38 single blocks x 5
    assert "proj_out" not in names and "single_transformer_blocks.0.proj_out" in names
    assert not [name for name in names if "norm" in name]


def test_a_new_adapter_changes_nothing_and_trains_in_float32(transformer, batch):
    before = velocity(transformer, batch)
    transformer.to(torch.bfloat16)
    adapter.add_adapter(transformer, rank=4, seed=0)
    trainable = [p for p in transformer.parameters() if p.requires_grad]
    assert trainable and all(p.dtype == torch.float32 for p in trainable)
    transformer.float()
    assert torch.allclose(velocity(transformer, batch), before, atol=0.05)  # the base was rounded to bfloat16


def test_strength_zero_is_the_base_bit_for_bit(transformer, batch):
    before = velocity(transformer, batch)
    weights = random_adapter(transformer, 8)
    adapter.Slot(transformer, rank=8).load(weights)
    adapter.set_strength(transformer, 1.0)
    assert not torch.equal(velocity(transformer, batch), before)
    adapter.set_strength(transformer, 0.0)
    assert torch.equal(velocity(transformer, batch), before)


@pytest.mark.parametrize("strength", [0.3, 1.0, 1.7])
def test_strength_scales_the_change_of_every_weight(transformer, batch, strength):
    """W + s B A, written into the weights, is the same function."""
    weights = random_adapter(transformer, 4)
    merged = FluxTransformer2DModel.from_config(transformer.config).eval()
    merged.load_state_dict(transformer.state_dict())
    for name in adapter.target_names(merged):
        change = weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
        merged.get_submodule(name).weight.data += strength * change
    adapter.Slot(transformer, rank=8).load(weights)
    adapter.set_strength(transformer, strength)
    assert torch.allclose(velocity(transformer, batch), velocity(merged, batch), atol=1e-5)


def test_what_was_in_the_slot_before_leaves_no_trace(transformer, batch):
    small, large = random_adapter(transformer, 4, seed=1), random_adapter(transformer, 8, seed=2)
    slot = adapter.Slot(transformer, rank=8)
    slot.load(small)
    fresh = velocity(transformer, batch)
    slot.load(large)
    adapter.set_strength(transformer, 1.5)
    slot.load(small)
    adapter.set_strength(transformer, 1.0)
    assert torch.equal(velocity(transformer, batch), fresh)


def test_weights_that_do_not_fit_are_refused_and_the_slot_is_as_it_was(transformer, batch):
    fitting, too_large = random_adapter(transformer, 4), random_adapter(transformer, 8)
    slot = adapter.Slot(transformer, rank=4)
    slot.load(fitting)
    before = velocity(transformer, batch)
    with pytest.raises(ValueError, match="no place for"):
        slot.load({"text_encoder.lora_A.weight": torch.zeros(4, 4)})
    with pytest.raises(ValueError, match="has shape"):
        slot.load(too_large)
    assert torch.equal(velocity(transformer, batch), before)


def test_a_saved_adapter_loads_in_plain_diffusers_and_computes_the_same(transformer, batch, tmp_path):
    plain = FluxTransformer2DModel.from_config(transformer.config).eval()
    plain.load_state_dict(transformer.state_dict())
    weights = random_adapter(transformer, 8)
    slot = adapter.Slot(transformer, rank=8)
    slot.load(weights)
    adapter.save_adapter(adapter.adapter_weights(transformer), 8, tmp_path)

    slot.load(adapter.read_adapter(tmp_path / adapter.WEIGHTS_NAME))
    pipeline = FluxPipeline(None, None, None, None, None, None, plain)
    pipeline.load_lora_weights(tmp_path)
    assert torch.equal(velocity(plain, batch), velocity(transformer, batch))
