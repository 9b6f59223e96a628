import pytest

from fleet.queue import FairQueue


def test_each_owner_in_turn():
    queue = FairQueue()
    for number in range(4):
        queue.add("many", f"many {number}")
    queue.add("one", "one 0")
    queue.add("two", "two 0")
    queue.add("two", "two 1")
    order = [queue.next() for _ in range(len(queue))]
    assert order == ["many 0", "one 0", "two 0", "many 1", "two 1", "many 2", "many 3"]
    with pytest.raises(KeyError):
        queue.next()


def test_who_comes_later_waits_one_turn():
    queue = FairQueue()
    for number in range(3):
        queue.add("ann", f"ann {number}")
    assert queue.next() == "ann 0"
    queue.add("bob", "bob 0")
    assert [queue.next() for _ in range(2)] == ["ann 1", "bob 0"]


def test_a_cancelled_job_waits_no_more():
    queue = FairQueue()
    queue.add("ann", "a")
    queue.add("bob", "b")
    queue.remove("ann", "a")
    queue.remove("ann", "a")
    assert len(queue) == 1 and queue.next() == "b"
