import torch
from helpers import make_recipe

from finetuner.training import adapter, delta
from finetuner.training.distill import distill_lora
from finetuner.training.extract import extract_lora
from finetuner.training.flow import probe_velocities


def test_distillation_brings_the_lora_nearer_to_the_full_fine_tune(transformer, dataset, scheduler):
    delta.add_deltas(transformer)
    deltas = delta.deltas(transformer)
    generator = torch.Generator().manual_seed(0)
    for parameter in deltas.values():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
        parameter.requires_grad_(False)
    full = probe_velocities(transformer, dataset, 1.0)
    adapter.add_adapter(transformer, 4, seed=0)
    adapter.load_adapter_state_dict(transformer, extract_lora(deltas, 4, seed=0).weights)
    lora = adapter.trainable_weights(transformer)

    def distance() -> float:
        adapter.set_strength(transformer, 1.0)
        delta.set_strength(transformer, 0.0)
        return (probe_velocities(transformer, dataset, 1.0) - full).norm().item()

    extracted = distance()
    before = {name: parameter.clone() for name, parameter in deltas.items()}
    distill_lora(transformer, lora, dataset, scheduler, make_recipe(distillation_steps=120, distillation_rate=3e-3))
    assert distance() < 0.9 * extracted, (distance(), extracted)
    assert all(torch.equal(before[name], parameter) for name, parameter in deltas.items())
    assert not any(parameter.requires_grad for parameter in transformer.parameters())
