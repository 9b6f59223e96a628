"""Replicate's HTTP API, for the three models that fine-tuned FLUX there.

In: what its clients send. Out: jobs of the library's words, and what its clients expect of them.
"""

import asyncio
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from fleet.apis.front import NOT_FOUND, Front, data_uri
from fleet.apis.hooks import Hooks
from fleet.apis.inputs import Inputs
from fleet.apis.problems import Problem, of_validation, refused, shaped
from fleet.apis.replicate_models import MODELS, Model, known, model_of
from fleet.files import NoRoom, Upload
from fleet.records import Job, Kind, State

PAGE = 100
RESULT_SECONDS = 3600  # that a result's address is good for; each answer gives a new one
WAIT = 60  # seconds: `Prefer: wait` without a number
STATUS = {
    State.QUEUED: "starting",
    State.RUNNING: "processing",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELED: "canceled",
}
MODERATED = "E005: The input or output was flagged as sensitive. Please try again with different inputs."
WITHIN = ("input",)
TITLES = {401: "Unauthenticated", 404: "Not found", 422: "Input validation failed", 429: "Too many requests"}


class PredictionRequest(Hooks):
    """To a model that the address names."""

    input: dict[str, Any]


class VersionRequest(PredictionRequest):
    """To a model by its version: an id, ``owner/name``, or ``owner/name:id``."""

    version: str


def shape(problem: Problem) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "title": TITLES.get(problem.status, "Error"),
        "detail": problem.sentence,
        "status": problem.status,
        "type": "about:blank",
    }
    if problem.errors:
        answer["invalid_fields"] = [
            {"field": ".".join(map(str, error["loc"][1:])), "type": error["type"], "description": error["msg"]}
            for error in problem.errors
        ]
    return answer


def prediction(job: Job, front: Front, base: str, *, inline: bool = False) -> dict[str, Any]:
    """A job as Replicate's clients read it.

    Args:
        base: where the client reaches us.
        inline: the picture itself as the output, as a data: URI, in place of its address.
    """
    model = MODELS.get(job.model.partition(":")[0])
    output: str | None = None
    if job.state is State.SUCCEEDED and job.output:
        if job.kind is Kind.TRAINING:
            output = job.finetune_id
        elif inline:
            output = data_uri(Path(job.output["file"]))
        else:
            output = front.result_url(job, base, RESULT_SECONDS)
    url = f"{base}/v1/predictions/{job.id}"
    return {
        "id": job.id,
        "model": job.model.partition(":")[0],
        "version": job.model.partition(":")[2] or (model.version if model else ""),
        "input": shown_inputs(job),
        "output": output,
        "logs": job.logs,
        "error": MODERATED if job.moderated else job.error,
        "status": STATUS[job.state],
        "metrics": metrics_of(job),
        "created_at": time_of(job.created_at),
        "started_at": time_of(job.started_at),
        "completed_at": time_of(job.completed_at),
        "urls": {"get": url, "cancel": f"{url}/cancel", "web": url},
    }


def shown_inputs(job: Job) -> dict[str, Any]:
    """Without the places of files on our disk."""
    shown = dict(job.inputs)
    for name in ("input_images", "image_prompt"):
        if str(shown.get(name, "")).startswith("/"):
            shown[name] = str(shown[name]).rpartition("/")[2]
    return shown


def metrics_of(job: Job) -> dict[str, Any]:
    if job.started_at and job.completed_at:
        return {"predict_time": (job.completed_at - job.started_at).total_seconds(), **job.metrics}
    return job.metrics


def time_of(time: datetime | None) -> str | None:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z") if time else None


def wait_seconds(prefer: str) -> float | None:
    """How long ``Prefer: wait`` or ``Prefer: wait=n`` has us hold the answer; None where it is not there.

    Python's client gives up half a second after n, so that the answer must be on its way by then.
    """
    asked = re.search(r"(?:^|[\s,;])wait(?:=(\d+(?:\.\d+)?))?(?:$|[\s,;])", prefer)
    if not asked:
        return None
    seconds = min(float(asked[1] or WAIT), 600.0)
    return max(seconds / 2, seconds - 1)


def replicate_api(front: Front) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["Replicate"], route_class=shaped(shape))

    unknown = "You did not pass a valid authentication token. Send Authorization: Bearer KEY."
    Owner = Annotated[str, Depends(front.authenticated(401, unknown))]

    async def create(request: Request, owner: str, model: Model, version: str, body: PredictionRequest) -> Response:
        inputs = checked(model, body.input)
        inputs.refuse_other_names(WITHIN)
        words = inputs.words()
        for name in ("input_images", "image_prompt"):
            if name in words:
                words[name] = await front.sent_file(owner, request, name, words[name], WITHIN)
        job = Job(
            owner=owner,
            kind=model.kind,
            api="replicate",
            model=f"{model.id}:{version}" if version else model.id,
            inputs=words,
            finetune_id=words.get("finetune_id", ""),
            logs=inputs.note(),
            webhook=body.checked(front.address(request)),
        )
        job = await front.accept(job, WITHIN)
        front.following.follow(job)
        seconds = wait_seconds(request.headers.get("prefer", ""))
        if seconds is not None:
            job = await front.wait(job, seconds)
        base = front.address(request)
        # The clients make a FileOutput only of https: and data:, so that on plain http who waits is given the picture itself.
        inline = seconds is not None and not base.startswith("https:")
        answer = await asyncio.to_thread(prediction, job, front, base, inline=inline)
        if not job.ended:
            # Clients that wait take any other status for the last one.
            answer["status"] = "starting"
        return JSONResponse(answer, 201 if job.ended or seconds is None else 202)

    @router.post("/models/{owner_name}/{name}/predictions", status_code=201, summary="Ask a model for a prediction")
    async def create_by_model(owner_name: str, name: str, body: PredictionRequest, request: Request, owner: Owner) -> Response:
        return await create(request, owner, known(owner_name, name), "", body)

    @router.post("/predictions", status_code=201, summary="Ask a version for a prediction")
    async def create_by_version(body: VersionRequest, request: Request, owner: Owner) -> Response:
        model, version = model_of(body.version, body.input)
        return await create(request, owner, model, version, body)

    @router.get("/predictions", summary="The key's predictions, the newest first")
    async def predictions(request: Request, owner: Owner, cursor: str | None = None) -> dict[str, Any]:
        jobs = await asyncio.to_thread(front.records.list, owner, api="replicate", before=cursor, limit=PAGE + 1)
        base = front.address(request)
        here = f"{base}/v1/predictions"
        results = [prediction(job, front, base) for job in jobs[:PAGE]]
        answer: dict[str, Any] = {"next": None, "previous": None, "results": results}
        if len(jobs) > PAGE:
            answer["next"] = f"{here}?cursor={jobs[PAGE - 1].id}"
        if cursor:  # the page before ended with it, and the one before that with the job PAGE places before, if there is one
            earlier = await asyncio.to_thread(front.records.newer, owner, cursor, PAGE, "replicate")
            answer["previous"] = f"{here}?cursor={earlier}" if earlier else here
        return answer

    @router.get("/predictions/{prediction_id}", summary="One prediction")
    async def get(prediction_id: str, request: Request, owner: Owner) -> dict[str, Any]:
        job = await asyncio.to_thread(front.records.get, owner, prediction_id)
        if job is None:
            raise Problem(404, NOT_FOUND)
        return prediction(job, front, front.address(request))

    @router.post("/predictions/{prediction_id}/cancel", summary="Cancel a prediction")
    async def cancel(prediction_id: str, request: Request, owner: Owner) -> dict[str, Any]:
        job = await front.engine.cancel(owner, prediction_id)
        if job is None:
            raise Problem(404, NOT_FOUND)
        return prediction(job, front, front.address(request))

    @router.get("/models/{owner_name}/{name}", summary="A model")
    async def get_model(owner_name: str, name: str, request: Request, owner: Owner) -> dict[str, Any]:
        return known(owner_name, name).described(front.address(request))

    @router.get("/models/{owner_name}/{name}/versions", summary="The versions of a model")
    async def versions(owner_name: str, name: str, owner: Owner) -> dict[str, Any]:
        return {"next": None, "previous": None, "results": [known(owner_name, name).version_described()]}

    @router.get("/models/{owner_name}/{name}/versions/{version}", summary="A version; any is taken for the one that is here")
    async def get_version(owner_name: str, name: str, version: str, owner: Owner) -> dict[str, Any]:
        return known(owner_name, name).version_described(version)

    @router.get("/webhooks/default/secret", summary="What the key's webhooks are signed with")
    async def webhook_secret(owner: Owner) -> dict[str, Any]:
        return {"key": front.secret.webhook_secret(owner)}

    @router.post("/files", status_code=201, summary="Send a file, to name it in an input")
    async def create_file(
        request: Request, owner: Owner, content: UploadFile, metadata: Annotated[str | UploadFile | None, Form()] = None
    ) -> dict[str, Any]:
        said = metadata if isinstance(metadata, str) else (await metadata.read()).decode() if metadata else "{}"
        kind = content.content_type or "application/octet-stream"
        try:
            facts = json.loads(said or "{}")
            upload = await asyncio.to_thread(front.files.keep, owner, content.file, content.filename or "", kind, facts)
        except NoRoom as error:
            raise Problem(429, str(error)) from error
        except ValueError as error:
            raise refused("metadata", "metadata: is not JSON.") from error
        return file_described(upload, front.address(request))

    @router.get("/files", summary="The key's files")
    async def files(request: Request, owner: Owner) -> dict[str, Any]:
        uploads = await asyncio.to_thread(front.files.list, owner)
        base = front.address(request)
        return {"next": None, "previous": None, "results": [file_described(upload, base) for upload in uploads]}

    async def own_file(owner: str, file_id: str) -> Upload:
        upload = await asyncio.to_thread(front.files.get, owner, file_id)
        if upload is None:
            raise Problem(404, NOT_FOUND)
        return upload

    @router.get("/files/{file_id}", summary="A file's name, size and checksums")
    async def get_file(file_id: str, request: Request, owner: Owner) -> dict[str, Any]:
        return file_described(await own_file(owner, file_id), front.address(request))

    @router.delete("/files/{file_id}", status_code=204, summary="Delete a file")
    async def delete_file(file_id: str, owner: Owner) -> Response:
        await asyncio.to_thread(front.files.delete, await own_file(owner, file_id))
        return Response(status_code=204)

    return router


def checked(model: Model, sent: dict[str, Any]) -> Inputs:
    try:
        return model.inputs.model_validate(sent)
    except ValidationError as error:
        raise of_validation(error.errors(), ("body", *WITHIN)) from error


def file_described(upload: Upload, base: str) -> dict[str, Any]:
    return {
        "id": upload.id,
        "name": upload.name,
        "content_type": upload.content_type,
        "size": upload.size,
        "etag": upload.sha256,
        "checksums": {"sha256": upload.sha256, "md5": upload.md5},
        "metadata": upload.metadata,
        "created_at": time_of(datetime.fromtimestamp(upload.created, UTC)),
        "expires_at": time_of(datetime.fromtimestamp(upload.expires, UTC)),
        "urls": {"get": f"{base}/v1/files/{upload.id}"},
    }
