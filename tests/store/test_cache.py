import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetuner.store.cache import Cache

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache", budget=100)


def fill(cache: Cache, name: str, size: int = 40) -> None:
    with cache.filling(name, size) as folder:
        (folder / "weights").write_bytes(bytes(size))
    os.utime(cache.folder / name, (fill.clock, fill.clock))
    fill.clock += 1


fill.clock = 1_000_000_000  # entries get old times of their own, as a file system's clock is coarse


def entries(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir() if path.name != ".lock")


def test_the_least_recently_used_goes_first(cache):
    fill(cache, "a")
    fill(cache, "b")
    cache.open("a")
    fill(cache, "c")
    assert entries(cache) == ["a", "c"]


def test_the_budget_holds_before_the_bytes_come(cache):
    fill(cache, "a")
    fill(cache, "b")
    with cache.filling("c", 80):
        assert entries(cache)[0].startswith(".partial-80-") and len(entries(cache)) == 1
    assert entries(cache) == ["c"]


def test_what_is_being_filled_counts(cache):
    fill(cache, "a", 30)
    with cache.filling("b", 40) as folder:
        (folder / "weights").write_bytes(b"")
        fill(cache, "c", 40)
        assert "a" not in entries(cache)


def test_what_is_open_stays_and_the_log_says_that_the_budget_is_passed(cache, caplog):
    fill(cache, "a", 60)
    opened = cache.open("a")
    fill(cache, "b", 60)
    assert entries(cache) == ["a", "b"]
    assert "FINETUNE_CACHE_BYTES" in caplog.text
    del opened
    fill(cache, "c", 60)
    assert entries(cache) == ["c"]


def test_a_failed_filling_leaves_nothing(cache):
    with pytest.raises(RuntimeError), cache.filling("a", 10) as folder:
        (folder / "weights").write_bytes(b"half")
        raise RuntimeError
    assert entries(cache) == [] and cache.open("a") is None


def test_two_that_fill_the_same_entry_end_with_one(cache):
    with cache.filling("a", 10) as folder:
        (folder / "weights").write_bytes(b"mine")
        fill(cache, "a", 10)
    assert entries(cache) == ["a"]


HOLD = """
import sys, time
from pathlib import Path
from finetuner.store.cache import Cache
cache = Cache(Path(sys.argv[1]), 100)
held = cache.open("a")
with cache.filling("half", 1):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_another_process_has_open_stays_until_it_dies(cache):
    fill(cache, "a", 60)
    other = subprocess.Popen([sys.executable, "-c", HOLD, cache.folder], stdout=subprocess.PIPE, cwd=PROJECT)
    try:
        assert other.stdout.readline() == b"ready\n"
        fill(cache, "b", 60)
        left = entries(cache)
        assert left[0].startswith(".partial-1-") and left[1:] == ["a", "b"]
    finally:
        other.kill()
        other.wait()
    fill(cache, "c", 60)
    assert entries(cache) == ["c"]


CHURN = """
import sys
from pathlib import Path
from finetuner.store.cache import Cache
cache = Cache(Path(sys.argv[1]), 100)
for turn in range(150):
    name = "abcde"[turn * int(sys.argv[2]) % 5]
    while not (opened := cache.open(name)):
        with cache.filling(name, 40) as folder:
            (folder / "weights").write_bytes(name.encode() * 40)
    folder, hold = opened
    assert (folder / "weights").read_bytes() == name.encode() * 40
"""


def test_processes_that_evict_each_others_entries_read_whole_ones(cache):
    command = [sys.executable, "-c", CHURN, cache.folder]
    churns = [subprocess.Popen([*command, stride], cwd=PROJECT) for stride in "123"]
    assert [churn.wait(timeout=60) for churn in churns] == [0, 0, 0]
    fill(cache, "last", 40)
    assert "last" in entries(cache) and len(entries(cache)) <= 2
