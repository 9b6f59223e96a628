"""A base that stays in memory for the next job: what it gets is not read again, and is what was read."""

from dataclasses import replace

import pytest
import torch
from helpers import make_recipe
from torch import nn

from finetuner.bases import WarmParts, warm
from finetuner.bases.base import Base
from finetuner.bases.quantise import quantise
from finetuner.bases.warm import available_bytes
from finetuner.training import adapter
from finetuner.training.optim import LoraOptimizer


@pytest.fixture(params=["base", "klein_base"])
def warm_base(request) -> Base:
    return replace(request.getfixturevalue(request.param), warm=WarmParts())


def forbid_reading(base: Base, monkeypatch) -> None:
    def read(*_, **__):
        raise AssertionError("it was read again")

    for kind in (base.family.TRANSFORMER, base.family.VAE, base.family.PIPELINE):
        monkeypatch.setattr(kind, "from_pretrained", read)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def test_each_part_is_read_once_and_comes_as_it_was_read(warm_base, monkeypatch):
    cold = replace(warm_base, warm=None)
    expected = cold.load_transformer(), cold.load_vae(), cold.load_text_encoders()
    texts = cold.family.encode_texts(expected[2], ["a fox"], cold.max_sequence_length)
    for _ in range(2):
        found = warm_base.load_transformer(), warm_base.load_vae(), warm_base.load_text_encoders()
        forbid_reading(warm_base, monkeypatch)
    for ours, wanted in zip(found[:2], expected[:2], strict=True):
        assert tensors(ours).keys() == tensors(wanted).keys()
        assert all(torch.equal(tensor, tensors(wanted)[name]) for name, tensor in tensors(ours).items())
        assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert torch.equal(warm_base.family.encode_texts(found[2], ["a fox"], cold.max_sequence_length).embeds, texts.embeds)


def test_what_a_job_does_to_its_base_is_not_in_the_next_one(warm_base):
    before = {name: tensor.clone() for name, tensor in tensors(warm_base.load_transformer()).items()}
    used = warm_base.load_transformer()
    adapter.add_adapter(used, 4, seed=0)
    used.enable_gradient_checkpointing()
    optimizer = LoraOptimizer(adapter.trainable_weights(used), make_recipe())
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    quantise(warm_base.load_transformer(), "int8", torch.device("cpu"))
    quantise(warm_base.load_transformer(), "nf4", torch.device("cpu"))
    for parameter in (elsewhere := warm_base.load_transformer()).parameters():
        parameter.data = parameter.data + 1  # as a move to a GPU gives a parameter other memory
    after = warm_base.load_transformer()
    assert tensors(after).keys() == before.keys() == tensors(elsewhere).keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(after).items())
    assert not after.is_gradient_checkpointing


def test_jobs_share_the_memory_of_their_base(warm_base):
    first, second = tensors(warm_base.load_transformer()), tensors(warm_base.load_transformer())
    assert all(tensor.data_ptr() == second[name].data_ptr() for name, tensor in first.items() if tensor.numel())


def test_another_base_takes_its_place(base, klein_base):
    kept = WarmParts()
    replace(base, warm=kept).load_vae()
    replace(klein_base, warm=kept).load_vae()
    assert list(kept.parts) == ["VAE"] and kept.fingerprint == klein_base.fingerprint
    assert isinstance(kept.parts["VAE"], klein_base.family.VAE)


def test_a_part_stays_only_where_there_is_room_for_a_job_beside_it(base, monkeypatch):
    size = sum(tensor.nbytes for tensor in tensors(base.load_vae()).values())
    for free, stays in ((2 * size - 1, False), (2 * size, True)):
        monkeypatch.setattr(warm, "available_bytes", lambda free=free: free)
        kept = WarmParts()
        replace(base, warm=kept).load_vae()
        assert bool(kept.parts) == stays


def test_a_containers_limit_counts(tmp_path):
    machine = tmp_path / "proc/meminfo"
    group = tmp_path / "sys/fs/cgroup"
    machine.parent.mkdir()
    group.mkdir(parents=True)
    machine.write_text("MemTotal:       900 kB\nMemAvailable:   500 kB\n")
    assert available_bytes(tmp_path) == 500 * 1024
    (group / "memory.max").write_text("max\n")
    assert available_bytes(tmp_path) == 500 * 1024
    (group / "memory.max").write_text("300000\n")
    (group / "memory.current").write_text("200000\n")
    (group / "memory.stat").write_text("anon 1\nactive_file 7\ninactive_file 50000\n")
    assert available_bytes(tmp_path) == 300000 - 200000 + 50000
    assert available_bytes() > 0
