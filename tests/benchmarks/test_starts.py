"""Starts of a LoRA, on one linear."""

import pytest
import torch
from helpers import make_recipe
from torch import nn

from benchmarks.fidelity.starts import STARTS
from finetuner.training import adapter

RECIPE = make_recipe(rank=8)


@pytest.mark.parametrize("start", STARTS)
def test_it_begins_with_no_change_and_learns(start):
    torch.manual_seed(0)
    model, x, wanted = nn.Sequential(nn.Linear(16, 24)), torch.randn(32, 16), torch.randn(32, 24)
    model.requires_grad_(False)
    before = model(x)
    adapter.add_adapter(model, RECIPE.rank, 0, ["0"])
    weights = adapter.trainable_weights(model)
    optimizer = STARTS[start](model, weights, RECIPE)
    first = adapter.adapter_state_dict(model)
    first = {name: tensor.clone() for name, tensor in first.items()}
    torch.testing.assert_close(model(x), before)
    for _ in range(3):
        nn.functional.mse_loss(model(x), wanted).backward()
        optimizer.step()
    assert nn.functional.mse_loss(model(x), wanted) < nn.functional.mse_loss(before, wanted)
    down, up = (first[f"0.lora_{part}.weight"] for part in "AB")
    if start == "orthogonal":
        torch.testing.assert_close(down @ down.T, torch.eye(8) * down.norm(dim=1)[0] ** 2)
    else:
        torch.testing.assert_close(up[:, :4] @ down[:4], -up[:, 4:] @ down[4:])
        assert torch.equal(weights["0.lora_A.weight"][4:], down[4:]) and torch.equal(
            weights["0.lora_B.weight"][:, 4:], up[:, 4:]
        )
        assert not torch.equal(weights["0.lora_A.weight"][:4], down[:4])
