"""What the three APIs share: who asks, what is accepted, where results lie."""

from __future__ import annotations

import asyncio
import base64
import mimetypes
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request

from finetuner.data_uris import read_base64, read_data_uri
from finetuner.requests import DEFAULT_GUIDANCE, FinetuneRequest, ImageRequest
from fleet.apis.inputs import problem_of
from fleet.apis.problems import Problem, refused
from fleet.engine import Engine
from fleet.fetching import FetchError, check_address
from fleet.files import Files, NoRoom
from fleet.keys import Keys
from fleet.records import Job, Kind, QueueFull, QuotaExceeded, Records
from fleet.secret import Secret

NOT_FOUND = "There is no such thing here, or it is another key's."


@dataclass(frozen=True)
class Served:
    """The base that the fleet draws with, as far as an API must know it."""

    name: str
    guidance_is_documented: bool  # whether it draws at the documented guidance where a request leaves it out

    @property
    def endpoint(self) -> str:
        """The name that Black Forest Labs' API gives to a base's finetunes: flux-2-klein-4b-finetuned."""
        return f"{self.name.lower().replace('.', '-')}-finetuned"

    @classmethod
    def open(cls) -> Served:
        """The base that ``BASE_MODEL`` chooses."""
        from finetuner.bases import choose_base  # takes seconds

        base = choose_base()
        return cls(base.name, base.sampling_guidance == DEFAULT_GUIDANCE)


@dataclass(frozen=True)
class Front:
    engine: Engine
    keys: Keys
    files: Files
    secret: Secret
    served: Served
    public_url: str | None = None  # where clients reach this, if not where their requests say
    following: Any = field(default=None, compare=False)  # the webhooks

    @property
    def records(self) -> Records:
        return self.engine.records

    def address(self, request: Request) -> str:
        """Where the client reaches us, without a slash at the end."""
        return self.public_url or str(request.base_url).rstrip("/")

    def key_of(self, request: Request) -> str | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() in ("bearer", "token") and key:
            return key.strip()
        return request.headers.get("x-key")

    def owner(self, request: Request) -> str | None:
        return self.keys.owner_of(self.key_of(request))

    def authenticated(self, status: int, unknown: str) -> Callable[[Request], str]:
        """What a route depends on to know whose request it is: it answers one without a valid key with ``status`` and a
        sentence."""

        def authenticated(request: Request) -> str:
            owner = self.owner(request)
            if owner is None:
                raise Problem(status, unknown)
            return owner

        return authenticated

    async def accept(self, job: Job, within: tuple[str, ...] = ()) -> Job:
        """Check a job by the library's rules and hand it to the engine.

        Raises:
            Problem: 422 it breaks one, 404 its finetune is not the owner's, 429 there is no room.
        """
        try:
            if job.kind is Kind.TRAINING:
                FinetuneRequest(**job.inputs | {"input_images": Path("archive.zip")})
            else:
                ImageRequest(**job.inputs)
                await self.require_finetune(job)
        except ValueError as error:
            raise problem_of(error, within) from error
        try:
            return await self.engine.submit(job)
        except (QueueFull, QuotaExceeded) as error:
            raise Problem(429, str(error) or "Too many requests wait. Send this one again later.") from error

    async def wait(self, job: Job, seconds: float) -> Job:
        """The job when it has ended, or as it is when the time is over."""
        return await self.engine.wait(job.id, seconds) or job

    async def require_finetune(self, job: Job) -> None:
        """Raise `Problem` 404 unless the job's finetune is its owner's, and done.

        Without keys, finetunes that nobody is known to have trained are everyone's: the store may hold some from before.
        """
        owner = await asyncio.to_thread(self.records.owner_of, job.finetune_id)
        if owner == job.owner:
            return
        training = await asyncio.to_thread(self.records.training_of, job.finetune_id)
        if owner or training or self.keys:
            raise Problem(404, "Finetune not found or not ready")

    async def sent_file(
        self, owner: str, request: Request, field: str, value: str, within: tuple[str, ...] = (), base64_too: bool = False
    ) -> str:
        """What a job's inputs say of a file that a client sent: a path that every node reads, or an address to fetch.

        Raises:
            Problem: it is no file that this server can have.
        """
        try:
            if value[:5].lower() == "data:":
                kind, content = await asyncio.to_thread(read_data_uri, field, value)
                return await self._kept(owner, content, kind)
            if value.startswith(("http://", "https://")):
                return await self._own_file(owner, request, value) or (check_address(value) and value)
            if base64_too:
                content = await asyncio.to_thread(read_base64, field, value.encode(), "what was sent")
                return await self._kept(owner, content, "application/octet-stream")
            check_address(value)
        except FetchError as error:
            raise refused(field, f"{field}: {error}", within) from error
        except NoRoom as error:
            raise Problem(429, str(error)) from error
        except ValueError as error:
            raise problem_of(error, within) from error
        raise AssertionError

    async def _kept(self, owner: str, content: bytes, kind: str) -> str:
        # By its content, a node tells an archive from a picture.
        name = f"sent{mimetypes.guess_extension(kind.partition(';')[0]) or ''}"
        upload = await asyncio.to_thread(self.files.keep, owner, BytesIO(content), name, kind)
        return str(self.files.path(upload))

    async def _own_file(self, owner: str, request: Request, value: str) -> str | None:
        """The path of what an address of our own leads to: we do not ask ourselves by HTTP."""
        base = self.address(request)
        if not value.startswith(f"{base}/"):
            return None
        parts = urlsplit(value).path.removeprefix(urlsplit(base).path).strip("/").split("/")
        match parts:
            case ["v1", "files", file_id]:
                upload = await asyncio.to_thread(self.files.get, owner, file_id)
                if upload:
                    return str(self.files.path(upload))
            case ["results", job_id, signed, _]:
                job = await asyncio.to_thread(self.records.job, job_id)
                if job and job.output and "file" in job.output and self.secret.allows(job_id, signed):
                    return str(job.output["file"])
        raise FetchError(NOT_FOUND)

    def result_url(self, job: Job, base: str, seconds: float) -> str:
        """Where the picture of a drawing that is done can be had, without a key, for so long."""
        name = f"image{Path((job.output or {})['file']).suffix}"
        return f"{base}/results/{job.id}/{self.secret.sign(job.id, seconds)}/{name}"


def data_uri(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
