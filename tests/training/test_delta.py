import torch

from finetuner.bases import target_names
from finetuner.training import delta
from finetuner.training.flow import Samples, velocity_errors


def test_deltas_are_zero_cover_every_target_and_leave_the_rest_frozen(transformer):
    names = target_names(transformer)
    delta.add_deltas(transformer)
    deltas = delta.deltas(transformer)
    assert list(deltas) == names
    assert all(not d.any() for d in deltas.values())
    assert {id(p) for p in transformer.parameters() if p.requires_grad} == {id(d) for d in deltas.values()}


def test_removing_deltas_gives_the_base_back_bit_for_bit(transformer, dataset):
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    delta.add_deltas(transformer)
    batch = dataset.batch((32, 32), torch.tensor([0]), torch.tensor([1]), torch.Generator())
    for d in delta.deltas(transformer).values():
        d.data.normal_(generator=torch.Generator().manual_seed(0))
    changed = velocity_errors(transformer, Samples.of(batch, torch.zeros_like(batch.latents), torch.tensor([0.5])), 1.0).mean()
    deltas = delta.remove_deltas(transformer)
    restored = velocity_errors(transformer, Samples.of(batch, torch.zeros_like(batch.latents), torch.tensor([0.5])), 1.0).mean()
    assert changed != restored
    assert all(d.any() for d in deltas.values())
    after = transformer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_bfloat16_delta_keeps_updates_that_a_bfloat16_weight_would_lose():
    weight = torch.full((64, 64), 0.05, dtype=torch.bfloat16)
    update = torch.full_like(weight, 1e-5)  # a step at the documented learning rate of full
    parametrization = delta.Delta(weight)
    with torch.no_grad():
        for _ in range(100):
            weight += update
            parametrization.delta += update
    assert torch.equal(weight, torch.full_like(weight, 0.05))  # all of it is lost
    assert torch.allclose(parametrization.delta.float(), torch.full((64, 64), 1e-3), rtol=0.1)
