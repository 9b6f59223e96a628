"""Work in a thread that ends where it stands when who waits for it is cancelled."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Executor


class Interrupted(BaseException):
    """Raised where the work stands: the client cancelled it."""


async def interruptible(work: Callable[[], dict], executor: Executor | None = None) -> dict:
    """What ``work`` gives, done in a thread of the executor, or of the event loop's own.

    Cancelled, it raises `Interrupted` in that thread at its next line of Python. Work that has not begun by then never does.
    """
    run = _Run(work)
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, run)
    except asyncio.CancelledError:
        run.interrupt()
        raise


class _Run:
    def __init__(self, work: Callable[[], dict]):
        self._work = work
        self._lock = threading.Lock()
        self._thread: int | None = None  # while it is at work
        self._interrupted = False

    def __call__(self) -> dict:
        with self._lock:
            if self._interrupted:
                return {"error": "Cancelled."}
            self._thread = threading.get_ident()
        try:
            return self._work()
        except Interrupted:
            return {"error": "Cancelled."}
        finally:
            with self._lock:
                self._thread = None

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            if self._thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(Interrupted))
