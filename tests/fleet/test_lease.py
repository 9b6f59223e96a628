import subprocess
import sys
import threading
import time

import pytest

from fleet.lease import Lease, LeaseLost

HOLDER = """
import sys, time
from pathlib import Path
from fleet.lease import Lease
lease = Lease(Path(sys.argv[1]), expiry=0.5)
print("held", flush=True)
time.sleep(60)
"""


def hold(folder) -> subprocess.Popen:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline() == b"held\n"
    return holder


def test_a_holder_that_lives_is_waited_for(tmp_path):
    first, taken = Lease(tmp_path, expiry=0.5), []
    waiting = threading.Thread(target=lambda: taken.append(Lease(tmp_path, expiry=0.5)))
    waiting.start()
    time.sleep(1.5)
    assert not taken
    first.require_held()
    first.close()
    waiting.join(2)
    taken[0].require_held()
    taken[0].close()
    assert [path.name for path in tmp_path.iterdir()] == ["lease.2"]


def test_the_lease_of_a_killed_process_runs_out(tmp_path):
    holder = hold(tmp_path)
    holder.kill()
    holder.wait()
    started = time.monotonic()
    Lease(tmp_path, expiry=0.5).close()
    assert time.monotonic() - started > 0.4


def test_of_many_who_wait_one_gets_it(tmp_path):
    holder = hold(tmp_path)
    at_work, most = [], []

    def work() -> None:
        lease = Lease(tmp_path, expiry=0.5)
        at_work.append(lease)
        most.append(len(at_work))
        time.sleep(0.05)
        at_work.remove(lease)
        lease.close()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    holder.kill()
    holder.wait()
    for thread in threads:
        thread.join()
    assert most == [1] * 5


def test_who_slept_over_its_expiry_has_lost_it(tmp_path, monkeypatch):
    sleeper = Lease(tmp_path, expiry=0.5)
    sleeper._stopped.set()  # as a machine that is suspended
    other = Lease(tmp_path, expiry=0.5)
    with pytest.raises(LeaseLost):
        sleeper.require_held()
    sleeper.close()
    other.require_held()
    other.close()
