import math

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from finetuner.training.flow import Samples, predict_velocity, resolution_shift, sample_sigmas, velocity_errors


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096])
def test_training_shifts_timesteps_as_sampling_does(scheduler, tokens):
    """The scheduler, given FluxPipeline's mu, is the judge."""
    sigmas = np.linspace(1.0, 0.1, 10)
    scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(tokens))
    shift = resolution_shift(scheduler, tokens)
    expected = shift * sigmas / (1 + (shift - 1) * sigmas)
    assert scheduler.sigmas[:-1].numpy() == pytest.approx(expected, rel=1e-4)


def test_sigmas_are_logit_normal():
    sigmas = sample_sigmas(20_000, 1.0, 0.3, 0.8, torch.Generator().manual_seed(0))
    logits = torch.logit(sigmas)
    assert logits.mean().item() == pytest.approx(0.3, abs=0.01)
    assert logits.std().item() == pytest.approx(0.8, abs=0.01)


def test_every_batch_sees_high_and_low_noise():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        quarters = torch.special.ndtr(torch.logit(sample_sigmas(4, 1.0, 0.0, 1.0, generator))) * 4
        assert sorted(quarters.int().tolist()) == [0, 1, 2, 3]


def test_the_loss_is_the_error_of_the_velocity(transformer, dataset):
    batch = dataset.batch((32, 32), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3]), torch.Generator().manual_seed(0))
    noise, sigmas = torch.randn_like(batch.latents), torch.tensor([0.1, 0.5, 0.9])
    noisy = (1 - sigmas)[:, None, None] * batch.latents + sigmas[:, None, None] * noise
    velocity = predict_velocity(transformer, noisy, sigmas, batch, guidance=1.0)
    loss = velocity_errors(transformer, Samples.of(batch, noise, sigmas), guidance=1.0).mean()
    assert loss.item() == pytest.approx((velocity - (noise - batch.latents)).pow(2).mean().item(), rel=1e-5)
    assert math.isfinite(loss.item())


def test_guidance_is_passed_on_to_a_transformer_that_embeds_it(transformer, dataset):
    batch = dataset.batch((48, 16), torch.tensor([0]), torch.tensor([1]), torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.5])
    one, three = (predict_velocity(transformer, batch.latents, sigmas, batch, guidance=g) for g in (1.0, 3.0))
    assert torch.equal(one, three) != transformer.config.guidance_embeds
