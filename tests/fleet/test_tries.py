"""Work that a real cluster kills, because it takes too much memory."""

import asyncio
import tempfile
import time

import pytest
import ray

from fleet.tries import NO_MEMORY, TRIES, task, tried


@pytest.fixture
def full_cluster(monkeypatch):
    """Its memory monitor takes the machine for full, whatever is on it."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.01")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20, "log_to_driver": False}
    # Its sockets lie there, and their paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as short:
        ray.init(address="local", _temp_dir=short, **options)
        yield
        ray.shutdown()


def test_what_takes_too_much_memory_ends_in_a_sentence(full_cluster):
    killed = task(lambda: time.sleep(60))
    begun = []

    def start() -> ray.ObjectRef:
        begun.append(killed.remote())
        return begun[-1]

    async def cancel(running: ray.ObjectRef) -> None:
        ray.cancel(running)

    async def end() -> dict:
        return await asyncio.wait_for(tried(start, cancel), 60)

    assert asyncio.run(end()) == {"error": NO_MEMORY}
    assert len(begun) == TRIES
