"""A tiny transformer of each family, of random weights, for what needs no learned base; the embedded base for what does."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import klein
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn

from finetuner import finetune
from finetuner.bases import Base, Family, LatentStatistics, TextEmbeddings, choose_base, flux1, flux2
from finetuner.store import FolderStore
from finetuner.training.dataset import Batch, Bucket, Dataset

# The embedded base whose steps cost least; tests/test_klein_emoji.py runs the default one.
os.environ.setdefault("BASE_MODEL", "flux-emoji")

# A worker of pytest-xdist, and each process it starts, computes in one thread: more threads than cores wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
else:
    torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: an archive made as tests are collected holds the time, and workers must agree on names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pictures of generators and folders of servers that tests stop go where pytest cleans up."""
    tempfile.tempdir = os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))


@pytest.fixture(params=[flux1, flux2], ids=["flux1", "flux2"])
def family(request) -> Family:
    """Whatever takes a transformer, a dataset or a batch is tested with one of each family."""
    return request.param


@pytest.fixture
def transformer(family) -> nn.Module:
    """1 double and 1 single block, 32 wide; random weights, the same every time."""
    if family is flux2:
        return klein.transformer()
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=24,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return model.requires_grad_(False).eval()


@pytest.fixture
def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


@pytest.fixture
def dataset(family) -> Dataset:
    """Six images in two buckets; after the empty caption three, the same without the trigger word, and two of other things."""
    generator = torch.Generator().manual_seed(1)

    def bucket(count: int, height: int, width: int) -> Bucket:
        moments = torch.randn(count, 8, height, width, generator=generator)
        moments[:, 4:] = -4.0  # log variance, which only FLUX.1 keeps
        captions = torch.arange(count) % 3 + 1
        return Bucket(moments if family is flux1 else moments[:, :4], captions, captions + 3)

    embeds, pooled = torch.randn(9, 5, 24, generator=generator), torch.randn(9, 24, generator=generator)
    texts = TextEmbeddings(embeds, pooled if family is flux1 else None)
    return Dataset(
        {(32, 32): bucket(4, 4, 4), (48, 16): bucket(2, 2, 6)}, texts, torch.tensor([7, 8]), family, LatentStatistics(0.0, 1.0)
    )


@pytest.fixture
def batch(dataset: Dataset) -> Batch:
    """Two images of one bucket."""
    return dataset.batch((32, 32), torch.tensor([0, 1]), torch.tensor([1, 2]), torch.Generator().manual_seed(0))


@pytest.fixture
def store(tmp_path, monkeypatch) -> FolderStore:
    """An empty store, and an empty place for jobs."""
    monkeypatch.setenv("FINETUNE_STORE", str(tmp_path / "finetunes"))
    monkeypatch.setattr(finetune, "JOBS", tmp_path / "jobs")
    return FolderStore(tmp_path / "finetunes")


@pytest.fixture
def full_disk(tmp_path) -> Iterator[Path]:
    """A disk of a megabyte."""
    if os.geteuid():
        pytest.skip("mounting a small disk takes root")
    folder = tmp_path / "full"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def base() -> Base:
    return choose_base()


@pytest.fixture(scope="session")
def klein_base(tmp_path_factory) -> Base:
    """A whole FLUX.2 klein that has learned nothing."""
    return klein.write_base(tmp_path_factory.mktemp("bases") / "tiny-klein-base")


@pytest.fixture(scope="session")
def klein_twin(klein_base) -> Base:
    """Its distilled twin, which draws with its finetunes."""
    return klein.write_twin(klein_base, klein_base.folder.parent / "tiny-klein")
