"""The engine and the APIs in one process, on a cluster that is up: ``python -m fleet``. ``script/fleet`` starts both."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import uvicorn

from fleet.apis.app import build_app, host
from fleet.engine import Engine
from fleet.keys import Keys

WRONG_SETTING = 2  # the exit status after which starting anew does not help


async def serve() -> int:
    """Serve until a signal comes, or the engine can do no more: then 1, for whoever starts it anew."""
    keys = Keys.open()
    port = os.environ.get("PORT") or "8000"
    if not port.isdecimal():
        raise ValueError(f"PORT: {port!r} is no number.")
    engine = await Engine.open()
    try:
        config = uvicorn.Config(build_app(engine, keys=keys), host(keys), int(port), timeout_graceful_shutdown=10)
        server = uvicorn.Server(config)
        serving, lost = asyncio.create_task(server.serve()), asyncio.create_task(engine.lost.wait())
        await asyncio.wait([serving, lost], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        lost.cancel()
    finally:
        await engine.close()
    return int(engine.lost.is_set())


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    try:
        sys.exit(asyncio.run(serve()))
    except ValueError as error:
        print(f"python -m fleet: {error}", file=sys.stderr)
        sys.exit(WRONG_SETTING)


if __name__ == "__main__":
    main()
