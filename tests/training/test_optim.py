import io

import pytest
import torch
from helpers import make_recipe
from torch import nn

from finetuner.training.optim import InBackwardOptimizer, LoraOptimizer, rate_factor
from finetuner.training.recipe import Recipe


def recipe(**changes) -> Recipe:
    return make_recipe(**{"steps": 100, "learning_rate": 1e-3} | changes)


def parameters() -> dict[str, nn.Parameter]:
    return {f"linear.lora_{m}.default.weight": nn.Parameter(torch.ones(4, 4)) for m in "AB"}


def test_the_rate_warms_up_and_decays():
    factors = [rate_factor(step, recipe()) for step in range(100)]
    assert factors[0] == pytest.approx(0.2) and factors[4] == 1.0
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[-1] == pytest.approx(0.1, abs=0.01)


def test_one_step_is_a_step_at_the_full_rate():
    assert rate_factor(0, recipe(steps=1)) == 1.0


def test_lora_b_learns_faster_than_a():
    trained = parameters()
    optimizer = LoraOptimizer(trained, recipe(weight_decay=0.0, lora_b_rate=4.0))
    optimizer.set_rate(0.5)
    sum(p.sum() for p in trained.values()).backward()
    optimizer.step()
    moved_a, moved_b = (1 - trained[f"linear.lora_{m}.default.weight"].mean().item() for m in "AB")
    assert moved_a == pytest.approx(0.5e-3, rel=1e-3)  # Adam's first step is its rate
    assert moved_b == pytest.approx(4 * moved_a, rel=1e-3)


def test_the_lora_gradient_is_clipped_and_its_norm_reported():
    trained = parameters()
    optimizer = LoraOptimizer(trained, recipe())
    optimizer.set_rate(1.0)
    sum((1000 * p).sum() for p in trained.values()).backward()
    norm = optimizer.step()
    assert norm == pytest.approx(1000 * 32**0.5, rel=1e-4)
    states = optimizer.adamw.state.values()
    assert sum((s["exp_avg"] / (1 - 0.9)).square().sum() for s in states).sqrt().item() == pytest.approx(1.0, rel=1e-3)


def test_gradients_never_stand_all_at_once():
    layers = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(6)])
    trained = dict(layers.named_parameters())
    standing = []
    optimizer = InBackwardOptimizer(trained, recipe(finetune_type="full"))
    for p in trained.values():  # hooks run in their order of registration: after the optimizer's
        p.register_post_accumulate_grad_hook(lambda _: standing.append(sum(p.grad is not None for p in trained.values())))
    optimizer.set_rate(1.0)
    before = [p.detach().clone() for p in trained.values()]
    layers(torch.randn(2, 4, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert standing == [0] * 6
    assert optimizer.step() > 0
    assert all(not torch.equal(b, p) for b, p in zip(before, trained.values(), strict=True))


@pytest.mark.parametrize("kind", [LoraOptimizer, InBackwardOptimizer])
def test_a_restored_optimizer_goes_on_bit_for_bit(kind):
    def steps(optimizer, trained, count, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            optimizer.set_rate(1.0)
            sum((p * torch.randn(4, 4, generator=generator)).sum() for p in trained.values()).backward()
            optimizer.step()

    trained = parameters()
    optimizer = kind(trained, recipe())
    steps(optimizer, trained, 3, seed=0)
    resumed_parameters = parameters()
    resumed = kind(resumed_parameters, recipe())
    resumed.load_state_dict(torch_round_trip(optimizer.state_dict()))
    steps(optimizer, trained, 3, seed=1)
    steps(resumed, resumed_parameters, 3, seed=1)
    assert all(torch.equal(trained[name], resumed_parameters[name]) for name in trained)


def torch_round_trip(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
