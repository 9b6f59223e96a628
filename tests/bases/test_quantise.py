"""A quantised base trains a LoRA here, on the CPU, by the code that a small card runs."""

import pytest
import torch
from helpers import make_recipe
from torch import nn

from finetuner.bases.quantise import PRECISIONS, quantise
from finetuner.training import adapter
from finetuner.training.flow import Samples, predict_velocity, velocity_errors
from finetuner.training.optim import LoraOptimizer

BITS = {"int8": 8, "nf4": 4}
SIGMAS = torch.tensor([0.2, 0.5, 0.9])


@pytest.fixture
def batch(dataset):
    return dataset.batch((32, 32), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_quantised_base_is_small_and_close_to_itself(transformer, batch, precision):
    before = predict_velocity(transformer, batch.latents, SIGMAS, batch, 1.0)
    sizes = {n: m.weight.numel() for n, m in transformer.named_modules() if isinstance(m, nn.Linear) and "blocks." in n}
    quantised = quantise(transformer, precision, torch.device("cpu"))
    for name, values in sizes.items():
        weight = quantised.get_submodule(name).weight
        assert weight.numel() * weight.element_size() == values * BITS[precision] // 8
    after = predict_velocity(quantised, batch.latents, SIGMAS, batch, 1.0)
    assert 0 < (after - before).norm() / before.norm() < {"int8": 0.02, "nf4": 0.2}[precision]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_lora_learns_on_a_quantised_base_and_the_base_stays(transformer, batch, precision, checkpointing):
    quantised = quantise(transformer, precision, torch.device("cpu"))
    base = predict_velocity(quantised, batch.latents, SIGMAS, batch, 1.0)
    if checkpointing:
        quantised.enable_gradient_checkpointing()
    adapter.add_adapter(quantised, 4, seed=0)
    trained = adapter.trainable_weights(quantised)
    assert len(trained) == 2 * len(adapter.lora_layers(quantised))
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    optimizer, losses = LoraOptimizer(trained, make_recipe(learning_rate=2e-2)), []
    optimizer.set_rate(1.0)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    for _ in range(40):
        loss = velocity_errors(quantised, Samples.of(batch, noise, SIGMAS), 1.0).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    adapter.set_strength(quantised, 0.0)
    assert torch.equal(predict_velocity(quantised, batch.latents, SIGMAS, batch, 1.0), base)
