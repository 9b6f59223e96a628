"""Tells clients of their jobs: calls the addresses that they gave, signed, until the last call has arrived.

In: jobs with a webhook, {"url", "events", …}. Out: a call for each event, in the form of the API that the job came by. A job's
last call is made again until it is answered with success, also after a restart; the calls before it are made once.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fleet.engine import Engine
from fleet.fetching import Fetcher, FetchError
from fleet.records import Job, State

log = logging.getLogger(__name__)

REPLICATE_EVENTS = ("start", "output", "logs", "completed")
LOOK_SECONDS = 0.5  # Replicate sends output and logs at most so often
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before each new try of the last call: a minute in all, as Replicate does


@dataclass(frozen=True)
class Call:
    body: bytes
    headers: dict[str, str]


Writer = Callable[[Job], Call]


class Webhooks:
    """Follows jobs that have a webhook, inside one event loop."""

    def __init__(self, engine: Engine, fetcher: Fetcher, writers: dict[str, Writer], waits: tuple[float, ...] = WAITS):
        self._engine = engine
        self._fetcher = fetcher
        self.writers = writers  # by the API that a job came by
        self._waits = waits
        self._tasks: dict[str, asyncio.Task] = {}

    async def resume(self) -> None:
        """Follow what was followed before a restart."""
        for job in await asyncio.to_thread(self._engine.records.with_webhook):
            self.follow(job)

    def follow(self, job: Job) -> None:
        if job.webhook is None or job.id in self._tasks:
            return
        task = asyncio.create_task(self._follow(job))
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, job: Job) -> None:
        hook = job.webhook or {}
        events, before = hook["events"], job
        started = False
        while not job.ended:
            job = await self._engine.wait(job.id, LOOK_SECONDS) or job
            if job.state is State.RUNNING and not started:
                started = True
                if "start" in events:
                    await self._call(job)
            elif job.state is State.RUNNING and "logs" in events and job.logs != before.logs:
                await self._call(job)
            before = job
        if job.state is State.SUCCEEDED and "output" in events:
            await self._call(job)
        if "completed" in events:
            await self._call_until_it_arrives(job)
        await asyncio.to_thread(self._engine.records.webhook_done, job.id)

    async def _call_until_it_arrives(self, job: Job) -> None:
        for seconds in (*self._waits, None):
            if await self._call(job):
                return
            if seconds is not None:
                await asyncio.sleep(seconds)
        log.warning("The webhook of job %s was never answered with success", job.id)

    async def _call(self, job: Job) -> bool:
        call = await asyncio.to_thread(self.writers[job.api], job)
        try:
            status = await self._fetcher.post((job.webhook or {})["url"], call.body, call.headers)
        except FetchError as error:
            log.info("Webhook of job %s: %s", job.id, error)
            return False
        return 200 <= status < 300


def standard_call(body: dict[str, Any], id: str, secret: str) -> Call:
    """Signed as Replicate does, which is the Standard Webhooks specification: HMAC-SHA256 of "id.timestamp.body"."""
    data = json.dumps(body).encode()
    timestamp = str(int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, b".".join([id.encode(), timestamp.encode(), data]), hashlib.sha256)).decode()
    headers = {
        "Content-Type": "application/json",
        "webhook-id": id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature}",
    }
    return Call(data, headers)


def bfl_call(body: dict[str, Any], secret: str | None) -> Call:
    """Signed as Black Forest Labs does, where the request named a secret: HMAC-SHA256 of the body, in hex."""
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if secret:
        headers["X-BFL-Signature"] = f"sha256={hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()}"
    return Call(data, headers)
