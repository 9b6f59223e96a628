"""Work in a thread, ended by who waits for it."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fleet.interruptible import Interrupted, interruptible


def test_work_ends_where_it_stands():
    at_work, ended = threading.Event(), []

    def work() -> dict:
        at_work.set()
        try:
            while True:
                time.sleep(0.001)
        except Interrupted:
            ended.append("interrupted")
            raise

    async def cancel() -> None:
        with ThreadPoolExecutor(1) as executor:
            task = asyncio.create_task(interruptible(work, executor))
            await asyncio.to_thread(at_work.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(asyncio.wait_for(cancel(), 20))
    assert ended == ["interrupted"]


def test_work_cancelled_as_its_thread_starts_never_begins():
    begun, free = [], threading.Event()

    class Starting(ThreadPoolExecutor):
        """Its thread has taken the work, so that no future can be cancelled any more, and has not come to its first line."""

        def submit(self, work):
            taken = threading.Event()

            def run() -> dict:
                taken.set()
                free.wait()
                return work()

            future = super().submit(run)
            taken.wait()
            return future

    async def cancel() -> None:
        with Starting(1) as executor:
            task = asyncio.create_task(interruptible(lambda: begun.append(1) or {}, executor))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            free.set()

    asyncio.run(asyncio.wait_for(cancel(), 20))
    assert begun == []


def test_what_it_gives_and_raises_comes_through():
    def fail() -> dict:
        raise ValueError("prompt: it is empty.")

    async def both() -> dict:
        with pytest.raises(ValueError, match="prompt"):
            await interruptible(fail)
        return await interruptible(lambda: {"file": "a.png"})

    assert asyncio.run(both()) == {"file": "a.png"}
