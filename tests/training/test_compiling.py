"""Compiled blocks: when a job gets them, that one compilation does for images of all sizes, and what they compute."""

import dataclasses
import shutil

import pytest
import torch
from helpers import PLAN, make_recipe
from torch._dynamo.utils import counters

from finetuner.bases import flux1
from finetuner.training import adapter, compiling, delta
from finetuner.training.activations import checkpoint_blocks
from finetuner.training.checkpoint import Checkpoint
from finetuner.training.compiling import Speed, compiled_blocks, speed_of, worth_compiling
from finetuner.training.flow import Samples, velocity_errors
from finetuner.training.learn import learn
from finetuner.training.strength import at_strength, strength_of

H100 = "NVIDIA H100 80GB HBM3"


def test_cards_are_told_by_the_drivers_names():
    assert speed_of(H100).flops > speed_of("NVIDIA H100 PCIe").flops > speed_of("NVIDIA GeForce RTX 4090").flops
    assert speed_of("NVIDIA L40S").flops > speed_of("NVIDIA L40").flops > speed_of("NVIDIA L4").flops
    assert speed_of("NVIDIA A100-SXM4-80GB").flops > speed_of("NVIDIA A10G").flops
    assert speed_of("NVIDIA GeForce RTX 4090 Laptop GPU") is speed_of("Some Other Card") is None


def test_compiled_blocks_are_for_jobs_that_earn_the_compilation_back():
    speed = Speed(flops=1e12, saved=0.25, compile_seconds=60)
    assert not speed.pays(239e12, 239e12) and speed.pays(241e12, 241e12)
    assert not speed.pays(241e12, 260e12)  # more blocks have to be checkpointed


@pytest.mark.parametrize(("steps", "pays"), [(300, False), (1000, True)])
def test_on_an_h100_flux_dev_at_512_px(steps, pays):
    flop = steps * 185e12
    assert speed_of(H100).pays(flop, flop) == pays


def test_what_the_operator_says_counts(monkeypatch):
    monkeypatch.setattr(compiling, "speed_here", lambda: Speed(1.0, 0.25, 60))
    assert worth_compiling(1e3, 1e3) and not worth_compiling(1.0, 1.0)
    monkeypatch.setenv("COMPILE", "1")
    assert worth_compiling(1.0, 1.0)
    monkeypatch.setenv("COMPILE", "0")
    assert not worth_compiling(1e3, 1e3)


def test_without_a_compiler_nothing_is_compiled_and_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(compiling, "speed_here", lambda: Speed(1.0, 0.25, 60))
    assert not worth_compiling(1e3, 1e3)
    assert "no C++ compiler" in caplog.text
    monkeypatch.setenv("COMPILE", "1")
    with pytest.raises(ValueError, match="^COMPILE: 1 takes a C"):
        worth_compiling(1e3, 1e3)


def test_on_a_card_that_is_not_known_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(compiling, "speed_here", lambda: None)
    assert not worth_compiling(1e30, 1e30)


def leave_out_inductor(monkeypatch) -> None:
    """Dynamo alone decides what is compiled again; what it compiles then runs as captured, and the test takes seconds."""
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, *_, **__: graph)


def steps(transformer, trained, dataset, sizes) -> list[torch.Tensor]:
    """The gradients of a step at each size, and at a strength of its own, side by side."""
    found = []
    for number, (height, width) in enumerate(sizes):
        bucket = dataclasses.replace(next(iter(dataset.buckets.values())), latents=latents(dataset, height, width))
        data = dataclasses.replace(dataset, buckets={(width, height): bucket})
        generator = torch.Generator().manual_seed(number)
        batch = data.batch((width, height), torch.tensor([0, 1]), torch.tensor([1, 2]), generator)
        noise = torch.randn(batch.latents.shape, generator=generator)
        with at_strength(transformer, strength_of(number, make_recipe())):
            velocity_errors(transformer, Samples.of(batch, noise, torch.tensor([0.3, 0.7])), 1.0).mean().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in trained.values()]))
        for parameter in trained.values():
            parameter.grad = None
    return found


def latents(dataset, height: int, width: int) -> torch.Tensor:
    cached = next(iter(dataset.buckets.values())).latents
    return torch.randn(len(cached), cached.shape[1], height, width, generator=torch.Generator().manual_seed(5)) - 2


# In latent pixels, two a token. The first has as many tokens as a text has here, and one is a single row: what is equal in one
# batch is not in the next.
SIZES = [(2, 10), (10, 2), (4, 4), (8, 4), (4, 10), (6, 6), (8, 8), (2, 4), (12, 2), (10, 10)]


@pytest.mark.parametrize("checkpointed", [0, 1])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_images_of_all_sizes_at_all_strengths_take_one_compilation(transformer, dataset, monkeypatch, kind, checkpointed):
    leave_out_inductor(monkeypatch)
    if kind == "lora":
        adapter.add_adapter(transformer, 4, seed=0)
        trained = adapter.trainable_weights(transformer)
    else:
        delta.add_deltas(transformer)
        trained = delta.deltas(transformer)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.02)
    checkpoint_blocks(transformer, checkpointed)
    expected = steps(transformer, trained, dataset, SIZES)
    counters.clear()
    with compiled_blocks(transformer):
        first = steps(transformer, trained, dataset, SIZES[:1])
        compiled = counters["stats"]["unique_graphs"]
        found = first + steps(transformer, trained, dataset, SIZES)[1:]
        assert 0 < compiled == counters["stats"]["unique_graphs"]
    for ours, wanted in zip(found, expected, strict=True):
        assert (ours - wanted).norm() < 1e-5 * wanted.norm()
    assert steps(transformer, trained, dataset, SIZES[:1])[0].equal(expected[0])  # as it was before
    assert compiled == counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("family", [flux1], ids=["flux1"], indirect=True)  # one suffices: it takes half a minute and more
def test_the_cpus_compiler_makes_the_same_of_it(transformer, dataset, scheduler, tmp_path):
    """A job by the plan, whose blocks g++ compiles: close to the eager one, and the same bits a second time."""
    plan = dataclasses.replace(PLAN, checkpointed_blocks=1, compiled=True)
    learned = []
    for number, way in enumerate((PLAN, plan, plan)):
        other = type(transformer).from_config(transformer.config).requires_grad_(False).eval()
        other.load_state_dict(transformer.state_dict())
        recipe = make_recipe(steps=4, plan=way)
        with Checkpoint(tmp_path / str(number)) as job:
            learned.append(learn(other, dataset, scheduler, recipe, job).weights)
    eager, compiled, again = learned
    assert all(torch.equal(compiled[name], again[name]) for name in compiled)
    assert all(torch.allclose(eager[name], compiled[name], atol=1e-3) for name in eager)
    assert any(not torch.equal(eager[name], compiled[name]) for name in eager)
