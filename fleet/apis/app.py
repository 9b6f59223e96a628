"""The three APIs on one port."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from fastapi_offline import FastAPIOffline

from fleet.apis import bfl, replicate
from fleet.apis.bodies import BodyLimit
from fleet.apis.cog import cog_api
from fleet.apis.front import NOT_FOUND, Front, Served
from fleet.engine import Engine
from fleet.fetching import Fetcher
from fleet.files import Files
from fleet.keys import Keys
from fleet.records import Job
from fleet.secret import Secret
from fleet.webhooks import Call, Webhooks, standard_call

log = logging.getLogger(__name__)

EXPIRE_SECONDS = 600
DESCRIPTION = "Replicate's API, Black Forest Labs' and Cog's. A finetune that was trained through one draws through the others."


def build_app(engine: Engine, served: Served | None = None, keys: Keys | None = None) -> FastAPI:
    """The application.

    Args:
        served: of the base that the engine draws with; without it, the one that ``BASE_MODEL`` chooses.

    Raises:
        ValueError: a setting of the environment is not usable.
    """
    secret, fetcher = Secret.open(engine.settings.folder), Fetcher()
    webhooks = Webhooks(engine, fetcher, {})
    front = Front(
        engine=engine,
        keys=keys if keys is not None else Keys.open(),
        files=Files(engine.settings.folder / "files"),
        secret=secret,
        served=served or Served.open(),
        public_url=public_url(),
        following=webhooks,
    )

    def by_replicates_rules(job: Job) -> Call:
        described = replicate.prediction(job, front, (job.webhook or {})["base"])
        return standard_call(described, f"msg_{job.id}", secret.webhook_secret(job.owner))

    webhooks.writers |= {
        "replicate": by_replicates_rules,
        "cog": by_replicates_rules,
        "bfl": lambda job: bfl.call(job, front),
    }

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        await webhooks.resume()
        expiring = asyncio.create_task(expire(front))
        yield
        expiring.cancel()
        await webhooks.close()

    # FastAPI's own /docs and /redoc load their programs from the internet, which a fleet may not reach.
    app = FastAPIOffline(title="FLUX fine-tuner", description=DESCRIPTION, lifespan=running)
    app.add_middleware(BodyLimit)
    for api in (replicate.replicate_api(front), bfl.bfl_api(front), cog_api(front)):
        app.include_router(api)

    @app.get("/healthz", summary="200 where requests are taken", tags=["Operator"])
    async def healthz() -> dict[str, Any]:
        if wrong := await front.engine.health():
            raise HTTPException(503, wrong)
        return {"status": "ok"}

    @app.get("/results/{job_id}/{signed}/{name}", summary="A picture, by an address that expires", tags=["Operator"])
    async def result(job_id: str, signed: str, name: str) -> FileResponse:
        job = await asyncio.to_thread(front.records.job, job_id) if secret.allows(job_id, signed) else None
        path = Path((job.output or {}).get("file", "")) if job else Path()
        if not path.is_file():
            raise HTTPException(404, NOT_FOUND)
        return FileResponse(path)

    return app


async def expire(front: Front) -> None:
    """Delete old files of clients now and then, for ever."""
    while True:
        try:
            await asyncio.to_thread(lambda: front.files.expire(files_in_use(front.records.unended())))
        except Exception:
            log.exception("Old files could not be deleted; it is tried again")
        await asyncio.sleep(EXPIRE_SECONDS)


def files_in_use(jobs: Iterable[Job]) -> list[str]:
    return [str(value) for job in jobs for value in job.inputs.values() if str(value).startswith("/")]


def public_url() -> str | None:
    """``PUBLIC_URL``: where clients reach the fleet, where that is not what their requests say.

    Raises:
        ValueError: it is no http(s) address.
    """
    url = os.environ.get("PUBLIC_URL", "").rstrip("/")
    if url and not url.startswith(("http://", "https://")):
        raise ValueError(f"PUBLIC_URL: {url!r} is no address. Set one, such as https://flux.example.com.")
    return url or None


def host(keys: Keys) -> str:
    """Where to listen: ``HOST``, all of this machine's addresses without it; without keys on this machine alone."""
    if keys:
        return os.environ.get("HOST", "0.0.0.0")
    log.warning("There are no keys (API_KEYS, API_KEYS_FILE), so that only this machine is listened to: 127.0.0.1")
    return "127.0.0.1"
