import pytest
import torch

from finetuner import adapter, delta
from finetuner.flow import flow_loss, predict_velocity
from finetuner.preservation import as_the_base

SIGMAS = torch.tensor([0.3, 0.7])


def changed(transformer, kind) -> None:
    if kind == "lora":
        adapter.add_adapter(transformer, 4, seed=0)
        trained = adapter.trainable_weights(transformer)
    else:
        delta.add_deltas(transformer)
        trained = delta.deltas(transformer)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.05)


@pytest.fixture
def batch(dataset):
    return dataset.batch((32, 32), torch.tensor([0, 1]), torch.tensor([4, 2]), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_teacher_is_the_base_itself_and_leaves_no_trace(transformer, batch, kind):
    def velocity():
        return predict_velocity(transformer, batch.latents, SIGMAS, batch, 1.0)

    base = velocity()
    changed(transformer, kind)
    before = velocity()
    with as_the_base(transformer):
        assert torch.equal(velocity(), base)
    assert torch.equal(velocity(), before) and not torch.equal(before, base)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_preserved_images_are_drawn_to_the_base_and_the_others_to_the_data(transformer, batch, kind):
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
    noisy = torch.lerp(batch.latents, noise, SIGMAS[:, None, None])
    base = predict_velocity(transformer, noisy, SIGMAS, batch, 1.0)
    changed(transformer, kind)
    now = predict_velocity(transformer, noisy, SIGMAS, batch, 1.0)
    errors = torch.stack([now[0] - base[0], now[1] - (noise - batch.latents)[1]])
    torch.testing.assert_close(flow_loss(transformer, batch, noise, SIGMAS, 1.0, preserved=1), errors.square().mean())
