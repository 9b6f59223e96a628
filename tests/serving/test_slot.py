import copy

import pytest
import torch
from helpers import velocity

from benchmarks.adapters import random_adapter
from finetuner.bases import TextEmbeddings, block_linears, flux1, target_names
from finetuner.serving.slot import Slot
from finetuner.training.dataset import Batch
from finetuner.training.flow import predict_velocity


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    pooled = batch.texts.pooled
    texts = TextEmbeddings(batch.texts.embeds.to(dtype), None if pooled is None else pooled.to(dtype))
    return Batch(batch.latents.to(dtype), batch.grid, texts)


def change(linear: torch.nn.Module, weights: dict, name: str, strength: float) -> torch.Tensor:
    """W + s B A, in float64."""
    a, b = (weights[f"{name}.lora_{matrix}.weight"].double() for matrix in "AB")
    return linear.weight.double() + strength * b @ a


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_is_the_base_bit_for_bit(transformer, batch, dtype):
    transformer.to(dtype)
    batch = in_dtype(batch, dtype)
    before = velocity(transformer, batch)
    weights = random_adapter(transformer, 8)
    slot = Slot(transformer, rank=8)
    assert torch.equal(velocity(transformer, batch), before)
    slot.load(slot.pack(weights), 1.0)
    assert not torch.equal(velocity(transformer, batch), before)
    slot.load(slot.pack(weights), 0.0)
    assert torch.equal(velocity(transformer, batch), before)


def test_at_strength_zero_even_a_damaged_adapter_is_the_base(transformer, batch):
    before = velocity(transformer, batch)
    weights = {name: torch.full_like(tensor, torch.nan) for name, tensor in random_adapter(transformer, 8).items()}
    slot = Slot(transformer, rank=8)
    slot.load(slot.pack(weights), 0.0)
    assert torch.equal(velocity(transformer, batch), before)


@pytest.mark.parametrize("strength", [0.3, 1.0, 1.7])
def test_the_velocity_is_that_of_the_merged_weights_in_float64(transformer, batch, strength):
    weights = random_adapter(transformer, 4)
    merged = copy.deepcopy(transformer).double()
    for name in target_names(merged):
        linear = merged.get_submodule(name)
        linear.weight.data = change(linear, weights, name, strength)
    slot = Slot(transformer, rank=8)
    slot.load(slot.pack(weights), strength)
    reference = velocity(merged, in_dtype(batch, torch.float64))
    assert (velocity(transformer, batch) - reference).abs().max() < 1e-5 * reference.abs().max()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_each_linear_has_the_effective_weight_to_rounding(transformer, dtype, rounding):
    """bfloat16 rounds the result, the LoRA's two factors and what is between them: a few half units of the last place."""
    transformer.to(dtype)
    weights = random_adapter(transformer, 8)
    wanted = {name: change(transformer.get_submodule(name), weights, name, 1.3) for name in target_names(transformer)}
    slot = Slot(transformer, rank=8)
    slot.load(slot.pack(weights), 1.3)
    x = torch.randn(1, 16, 160, generator=torch.Generator().manual_seed(2)).to(dtype)
    for name, weight in wanted.items():
        linear = transformer.get_submodule(name)
        rows = x[..., : weight.shape[1]]
        reference = rows.double() @ weight.T + (0 if linear.linear.bias is None else linear.linear.bias.double())
        assert (linear(rows).double() - reference).abs().max() < rounding * reference.abs().max()


def test_what_was_in_the_slot_before_leaves_no_trace(transformer, batch):
    weights = {rank: random_adapter(transformer, rank, seed=rank) for rank in (4, 8)}
    slot = Slot(transformer, rank=8)
    small, large = (slot.pack(weights[rank]) for rank in (4, 8))
    slot.load(small, 1.0)
    fresh = velocity(transformer, batch)
    for loaded, strength in ((large, 1.5), (small, 0.2), (small, 0.0), (large, 1.0), (large, 0.1)):
        slot.load(loaded, strength)
    slot.load(small, 1.0)
    assert torch.equal(velocity(transformer, batch), fresh)


def test_targets_that_a_lora_leaves_out_stay_as_the_base_has_them(transformer, batch):
    some = {name: t for name, t in random_adapter(transformer, 8).items() if ".attn." in name}
    padded = some | {name: torch.zeros_like(t) for name, t in random_adapter(transformer, 8).items() if ".attn." not in name}
    slot = Slot(transformer, rank=8)
    slot.load(slot.pack(some), 1.0)
    left_out = velocity(transformer, batch)
    slot.load(slot.pack(padded), 1.0)
    assert torch.equal(velocity(transformer, batch), left_out)


@pytest.mark.parametrize("family", [flux1], ids=["flux1"], indirect=True)  # the other has none in its blocks
def test_modulation_has_its_room_and_costs_nothing_where_it_is_left_alone(transformer, batch):
    """Most LoRAs of other trainers change it; their ranks differ from linear to linear."""
    weights, generator = random_adapter(transformer, 4), torch.Generator().manual_seed(3)
    for number, (name, linear) in enumerate(block_linears(transformer).items()):
        if f"{name}.lora_A.weight" not in weights:
            weights[f"{name}.lora_A.weight"] = torch.randn(number % 3 + 1, linear.in_features, generator=generator) / 10
            weights[f"{name}.lora_B.weight"] = torch.randn(linear.out_features, number % 3 + 1, generator=generator) / 10
    merged = copy.deepcopy(transformer).double()
    for name in block_linears(merged):
        linear = merged.get_submodule(name)
        linear.weight.data = change(linear, weights, name, 1.0)
    reference = velocity(merged, in_dtype(batch, torch.float64))
    targets = random_adapter(transformer, 4)
    slot = Slot(transformer, rank=8)
    ours = slot.pack(targets)
    assert ours.nbytes == sum(tensor.nbytes for tensor in targets.values())
    slot.load(ours, 1.0)
    alone = velocity(transformer, batch)
    slot.load(slot.pack(weights), 1.0)
    assert (velocity(transformer, batch) - reference).abs().max() < 1e-5 * reference.abs().max()
    assert not torch.equal(velocity(transformer, batch), alone)
    slot.load(ours, 1.0)
    assert torch.equal(velocity(transformer, batch), alone)


def test_weights_that_do_not_fit_are_refused(transformer):
    fitting, too_large = random_adapter(transformer, 4), random_adapter(transformer, 8)
    name = min(fitting)
    slot = Slot(transformer, rank=4)
    with pytest.raises(ValueError, match="no place for"):
        slot.pack({"text_encoder.lora_A.weight": torch.zeros(4, 4)})
    with pytest.raises(ValueError, match="has shape.*rank of up to 4"):
        slot.pack(too_large)
    with pytest.raises(ValueError, match=f"{name} has shape"):
        slot.pack(fitting | {name: torch.zeros(4, 1)})
    with pytest.raises(ValueError, match=f"{name.replace('lora_A', 'lora_B')} is missing"):
        slot.pack({name: fitting[name]})


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-5)])
def test_each_row_of_a_batch_has_an_adapter_and_a_strength_of_its_own(transformer, batch, dtype, rounding):
    transformer.to(dtype)
    batch = in_dtype(batch, dtype)
    slot = Slot(transformer, rank=8)
    first, second = (slot.pack(random_adapter_of_slot(slot, rank, seed=rank)) for rank in (4, 8))
    rows = [(first, 0.6), (second, 1.4)]
    alone = []
    for row, (adapter, strength) in enumerate(rows):
        slot.load(adapter, strength)
        alone.append(velocity(transformer, batch)[row])
    slot.load(first, 1.0)
    held = velocity(transformer, batch)
    with slot.holding_rows(rows):
        together = velocity(transformer, batch)
    assert torch.equal(velocity(transformer, batch), held)
    for own, wanted, other in zip(together, alone, held, strict=True):
        assert (own - wanted).abs().max() < rounding * wanted.abs().max() < (own - other).abs().max()


def random_adapter_of_slot(slot: Slot, rank: int, seed: int) -> dict[str, torch.Tensor]:
    """Of every linear that the slot has room for, modulation included, whose input has no axis of tokens."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, linear in slot.linears.items():
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, linear.in_features, generator=generator) / 3
        weights[f"{name}.lora_B.weight"] = torch.randn(linear.out_features, rank, generator=generator) / 3
    return weights


def test_a_row_at_strength_zero_is_the_base_bit_for_bit_and_equal_rows_are_equal(transformer, batch):
    before = velocity(transformer, batch)
    slot = Slot(transformer, rank=8)
    adapter = slot.pack(random_adapter_of_slot(slot, 8, seed=0))
    damaged = slot.pack({name: torch.full_like(t, torch.nan) for name, t in random_adapter_of_slot(slot, 8, seed=0).items()})
    with slot.holding_rows([(damaged, 0.0), (adapter, 1.0)]):
        after = velocity(transformer, batch)
    assert torch.equal(after[0], before[0]) and not torch.equal(after[1], before[1])
    twins = batch[torch.tensor([1, 1])]
    with slot.holding_rows([(adapter, 1.0), (adapter, 1.0)]), torch.no_grad():
        first, second = predict_velocity(transformer, twins.latents, torch.tensor([0.5, 0.5]), twins, guidance=1.0)
    assert (first - second).abs().max() <= 1e-6 * first.abs().max()


def test_an_error_with_rows_in_the_slot_gives_it_back(transformer, batch):
    slot = Slot(transformer, rank=8)
    slot.load(slot.pack(random_adapter_of_slot(slot, 8, seed=0)), 1.0)
    held = velocity(transformer, batch)
    with pytest.raises(KeyboardInterrupt), slot.holding_rows([(slot.loaded[0], 0.2)] * 2):
        raise KeyboardInterrupt
    assert torch.equal(velocity(transformer, batch), held)
