"""A cluster of several nodes, one of which is lost."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator

import pytest
import ray
from helpers import EXAMPLES
from ray.cluster_utils import Cluster as Nodes

from finetuner.store import FolderStore
from fleet.engine import Engine
from fleet.records import Job, Kind, State
from fleet.settings import Settings

SECONDS = 600  # two cores with other work start slowly
TRAINING = {
    "input_images": str(EXAMPLES / "line-icons.zip"),
    "training_steps": 60,
    "finetune_type": "lora",
    "lora_rank": 16,
    "priority": "speed",
}


@pytest.fixture
def nodes(tmp_path, monkeypatch) -> Iterator[Nodes]:
    """A head with room for the replica alone."""
    monkeypatch.setenv("FINETUNE_STORE", str(tmp_path / "finetunes"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Its sockets lie there, and their paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as short:
        monkeypatch.setenv("RAY_TMPDIR", short)
        head = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
        nodes = Nodes(initialize_head=True, head_node_args=head)
        ray.init(address=nodes.address, log_to_driver=False)
        yield nodes
        ray.shutdown()
        nodes.shutdown()


def test_a_training_whose_node_is_lost_goes_on_on_another(nodes, tmp_path):
    async def train() -> Job:
        engine = await Engine.open(Settings(folder=tmp_path / "fleet", lease_seconds=2.0))
        try:
            first = nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
            job = await engine.submit(Job("ann", Kind.TRAINING, "cog", "", TRAINING))
            stop = time.monotonic() + SECONDS
            while not engine.records.job(job.id).progress:
                assert time.monotonic() < stop
                await asyncio.sleep(0.1)
            nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
            await asyncio.to_thread(nodes.remove_node, first, allow_graceful=False)
            return await engine.wait(job.id, SECONDS)
        finally:
            await engine.close()

    job = asyncio.run(train())
    assert job.state is State.SUCCEEDED, job
    assert job.logs.count("Phase archive") == 2  # it ran twice
    assert {listing.id for listing in FolderStore(tmp_path / "finetunes").listings()} == {job.finetune_id}
