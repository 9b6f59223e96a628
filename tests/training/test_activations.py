"""Checkpointed blocks: the same gradients, for a second forward of those that were chosen."""

import weakref

import pytest
import torch
from helpers import make_recipe

from finetuner.bases.quantise import PRECISIONS, quantise
from finetuner.training import adapter
from finetuner.training.activations import checkpoint_blocks
from finetuner.training.flow import Samples, velocity_errors


def gradients(transformer, batch) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Of a LoRA that is in the transformer, and how often each block ran."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    runs = [0] * len(blocks)

    def count(index):
        def counting(*_):
            runs[index] += 1

        return counting

    hooks = [block.register_forward_pre_hook(count(index)) for index, block in enumerate(blocks)]
    trained = adapter.trainable_weights(transformer)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(3))
    velocity_errors(transformer, Samples.of(batch, noise, torch.tensor([0.3, 0.7])), 1.0).mean().backward()
    found = {name: parameter.grad.clone() for name, parameter in trained.items()}
    for parameter in trained.values():
        parameter.grad = None
    for hook in hooks:
        hook.remove()
    return found, runs


@pytest.mark.parametrize("count", [0, 1, 2])
def test_so_many_blocks_from_the_first_run_twice_and_the_gradients_stay(transformer, batch, count):
    adapter.add_adapter(transformer, make_recipe().rank, seed=0)
    with torch.no_grad():
        for parameter in adapter.trainable_weights(transformer).values():
            parameter.add_(0.02)
    expected, once = gradients(transformer, batch)
    assert once == [1, 1]
    checkpoint_blocks(transformer, count)
    found, runs = gradients(transformer, batch)
    assert runs == [2] * count + [1] * (2 - count)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("precision", ["native", *PRECISIONS])
def test_a_checkpointed_block_lets_go_of_what_its_linears_read(transformer, batch, precision):
    """Of a quantised base, too: bitsandbytes' int8 linear kept it, out of checkpointing's sight."""
    if precision != "native":
        transformer = quantise(transformer, precision, torch.device("cpu"))
    adapter.add_adapter(transformer, 4, seed=0)
    checkpoint_blocks(transformer, 2)
    read = []
    for layer in adapter.lora_layers(transformer).values():
        layer.register_forward_pre_hook(lambda _, inputs: read.append(weakref.ref(inputs[0])))
    loss = velocity_errors(
        transformer, Samples.of(batch, torch.zeros_like(batch.latents), torch.tensor([0.3, 0.7])), 1.0
    ).mean()
    alive = [reference() for reference in read if reference() is not None]
    assert loss.requires_grad and read
    assert len({id(tensor) for tensor in alive}) <= 1  # in FLUX.2 the text, as it comes to the first block
