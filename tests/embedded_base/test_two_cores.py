"""A step on two processes is the step on the whole batch."""

from __future__ import annotations

import pytest
import torch
from embedded_base.klein.two_cores import TwoCores
from torch import nn

BATCH = 8


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def losses_of(model: nn.Linear, step: int, part: slice) -> list[torch.Tensor]:
    pictures = torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))[part]
    return [model(pictures).pow(2).mean(), 0.1 * model(pictures).abs().mean()]


def whole_batch(model: nn.Linear, step: int) -> tuple[torch.Tensor, list[float]]:
    losses = losses_of(model, step, slice(None))
    (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), [model.weight])
    return gradient, [loss.item() for loss in losses]


def test_gradients_and_losses_are_those_of_the_whole_batch_and_both_processes_see_a_step(model):
    both = TwoCores(model, lambda step, part: losses_of(model, step, part), BATCH, 0, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(3):
        gradient, losses = whole_batch(model, step)
        found = both.backward(step)
        torch.testing.assert_close(model.weight.grad, gradient)
        assert found == pytest.approx(losses)
        optimizer.step()
        optimizer.zero_grad()
    both.helper.join(timeout=20)
    assert both.helper.exitcode == 0


def test_a_second_process_that_ends_is_an_error_and_no_hang(model):
    both = TwoCores(model, lambda step, part: losses_of(model, step, part), BATCH, 0, 3)
    both.helper.kill()
    with pytest.raises(RuntimeError, match="the second process of the training ended"):
        both.backward(0)
