"""Work on the cluster, begun again where what ran it is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RaySystemError, WorkerCrashedError
from ray.remote_function import RemoteFunction

log = logging.getLogger(__name__)

TRIES = 4  # of a job whose node or process is lost: one that kills whatever it runs on must end, too
LOST = (RaySystemError, RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError)
NO_MEMORY = f"The server ran out of memory at each of {TRIES} tries. Send the request again when less is going on there."


def task(function: Callable[..., dict], **options: Any) -> RemoteFunction:
    """The function as a task that Ray begins once, so that all tries are counted here: with any other ``max_retries`` than 0
    Ray begins what its memory monitor kills again without end (its ``task_oom_retries``)."""
    return ray.remote(function).options(max_retries=0, **options)


async def tried(start: Callable[[], Any], cancel: Callable[[Any], Awaitable[None]]) -> dict:
    """What the work gives that ``start`` begins.

    Args:
        start: begins the work, and returns what can be awaited.
        cancel: ends what ``start`` returned, where this call is cancelled.
    """
    for left in reversed(range(TRIES)):
        work = start()
        try:
            return await work
        except LOST as error:
            log.warning("A job's process or node was lost, and may be tried %d times more: %s", left, first_line(error))
            if not left and isinstance(error, OutOfMemoryError):
                return {"error": NO_MEMORY}
            if not left:
                raise
        except asyncio.CancelledError:
            await cancel(work)
            raise
    raise AssertionError("unreachable")


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
