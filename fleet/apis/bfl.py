"""Black Forest Labs' REST API, as far as it fine-tuned: finetunes, and drawing with them.

In: what its clients send. Out: jobs of the library's words, and what its clients expect of them.
"""

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from fleet.apis.bfl_inputs import GUIDANCE, BflInputs, DrawingInputs, FinetuneInputs, KleinInputs, ProInputs, UltraInputs
from fleet.apis.front import Front
from fleet.apis.hooks import check_webhook
from fleet.apis.problems import Problem, refused, shaped
from fleet.records import Job, Kind, OwnedFinetune, State
from fleet.webhooks import Call, bfl_call

RESULT_SECONDS = 600  # that a result's address is good for
NOT_FOUND = "Task not found"
STATUS = {
    State.QUEUED: "Pending",
    State.RUNNING: "Pending",
    State.SUCCEEDED: "Ready",
    State.FAILED: "Error",
    State.CANCELED: "Error",
}
# Endpoints of a base of their own, which is not here: each with what it would do.
OTHER_BASES = {
    "flux-pro-1.0-fill-finetuned": "fills what a mask marks",
    "flux-pro-1.0-canny-finetuned": "follows the edges of a picture",
    "flux-pro-1.0-depth-finetuned": "follows the depth of a picture",
}
KLEIN = [f"flux-2-klein-{size}-finetuned" for size in ("4b", "9b", "base-4b", "base-9b")]


class FinetuneOf(BaseModel):
    finetune_id: str


def shape(problem: Problem) -> dict[str, Any]:
    return {"detail": problem.errors or problem.sentence}


def status_of(job: Job) -> str:
    return "Content Moderated" if job.moderated else STATUS[job.state]


def result_of(job: Job, front: Front, base: str) -> dict[str, Any] | None:
    if job.moderated or job.state is not State.SUCCEEDED:
        return None
    if job.kind is Kind.TRAINING:
        return {"finetune_id": job.finetune_id}
    start, end = job.started_at or job.created_at, job.completed_at or job.created_at
    return {
        "sample": front.result_url(job, base, RESULT_SECONDS),
        "prompt": job.inputs.get("prompt", ""),
        "seed": (job.output or {}).get("seed"),
        "start_time": start.timestamp(),
        "end_time": end.timestamp(),
        "duration": (end - start).total_seconds(),
    }


def task(job: Job, front: Front, base: str, id: str) -> dict[str, Any]:
    """A job as get_result answers it. ``id``: as the client asked for it, a job's or a finetune's."""
    details = {name: value for name, value in {"error": job.error, "logs": job.logs[-2000:]}.items() if value}
    progress = None if job.state is State.QUEUED else job.progress
    return {
        "id": id,
        "status": status_of(job),
        "result": result_of(job, front, base),
        "progress": 1.0 if job.state is State.SUCCEEDED else progress,
        "details": details or None,
    }


def call(job: Job, front: Front) -> Call:
    """What a webhook says."""
    hook = job.webhook or {}
    body = {
        "id": job.finetune_id if job.kind is Kind.TRAINING else job.id,
        "status": status_of(job),
        "result": result_of(job, front, hook["base"]),
        "timestamp": time.time(),
    }
    return bfl_call(body, hook.get("secret"))


def bfl_api(front: Front) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["Black Forest Labs"], route_class=shaped(shape))

    authenticated = front.authenticated(403, "Not authenticated - send a valid key in the header x-key")
    Owner = Annotated[str, Depends(authenticated)]

    async def accept(request: Request, job: Job, sent: BflInputs) -> Job:
        base = front.address(request)
        job.logs = sent.note()
        if sent.webhook_url:
            url = check_webhook("webhook_url", sent.webhook_url)
            job.webhook = {"url": url, "secret": sent.webhook_secret, "events": ["completed"], "base": base}
        job = await front.accept(job)
        front.following.follow(job)
        return job

    @router.post("/finetune", summary="Train a finetune")
    async def finetune(sent: FinetuneInputs, request: Request, owner: Owner) -> dict[str, Any]:
        words = sent.words()
        words["input_images"] = await front.sent_file(owner, request, "file_data", sent.file_data, base64_too=True)
        job = Job(owner, Kind.TRAINING, "bfl", "finetune", words, comment=sent.finetune_comment)
        finetune_id = (await accept(request, job, sent)).finetune_id
        polling = f"{front.address(request)}/v1/get_result?id={finetune_id}"
        return {"finetune_id": finetune_id, "id": finetune_id, "status": "Pending", "polling_url": polling}

    async def draw(request: Request, owner: str, model: str, sent: DrawingInputs) -> dict[str, Any]:
        words = sent.words()
        if isinstance(sent, ProInputs) and sent.guidance is None and front.served.guidance_is_documented:
            words["guidance"] = GUIDANCE
        if "image_prompt" in words:
            name = "input_image" if getattr(sent, "input_image", None) else "image_prompt"
            words["image_prompt"] = await front.sent_file(owner, request, name, words["image_prompt"], base64_too=True)
        job = await accept(request, Job(owner, Kind.DRAWING, "bfl", model, words, sent.finetune_id), sent)
        answer: dict[str, Any] = {"id": job.id, "polling_url": f"{front.address(request)}/v1/get_result?id={job.id}"}
        if job.webhook:
            answer |= {"status": "Pending", "webhook_url": job.webhook["url"]}
        return answer

    @router.post("/flux-pro-finetuned", summary="Draw with a finetune, at any size")
    async def flux_pro(sent: ProInputs, request: Request, owner: Owner) -> dict[str, Any]:
        return await draw(request, owner, "flux-pro-finetuned", sent)

    @router.post("/flux-pro-1.1-ultra-finetuned", summary="Draw with a finetune, in any shape")
    async def flux_ultra(sent: UltraInputs, request: Request, owner: Owner) -> dict[str, Any]:
        return await draw(request, owner, "flux-pro-1.1-ultra-finetuned", sent)

    @router.post(f"/{front.served.endpoint}", summary="Draw with a finetune of the base that is here, by its name")
    async def by_the_bases_name(sent: KleinInputs, request: Request, owner: Owner) -> dict[str, Any]:
        return await draw(request, owner, front.served.endpoint, sent)

    def not_here(endpoint: str, what: str) -> None:
        sentence = f"{endpoint}: {what}, and this server draws with {front.served.name} alone. Send it to flux-pro-finetuned."

        @router.post(f"/{endpoint}", summary="Refused: its base is not here", name=endpoint)
        async def refuse(owner: Owner) -> dict[str, Any]:
            raise refused("finetune_id", sentence)

    for endpoint, does in OTHER_BASES.items():
        not_here(endpoint, f"it takes a base that {does}")
    for endpoint in KLEIN:
        if endpoint != front.served.endpoint:
            not_here(endpoint, f"it takes the base {endpoint.removesuffix('-finetuned')}")

    async def was_deleted(job: Job) -> bool:
        """Whether it made a finetune that is nobody's any more."""
        made = job.kind is Kind.TRAINING and job.state is State.SUCCEEDED
        return made and await asyncio.to_thread(front.records.owner_of, job.finetune_id) is None

    async def own_finetune(owner: str, finetune_id: str) -> OwnedFinetune | Job:
        """A finetune, or the training that is to make it."""
        for mine in await asyncio.to_thread(front.records.finetunes, owner):
            if mine.id == finetune_id:
                return mine
        job = await asyncio.to_thread(front.records.training_of, finetune_id)
        if job is None or job.owner != owner or await was_deleted(job):
            raise Problem(404, "Finetune not found or not ready")
        return job

    @router.get("/get_result", summary="How a task or a training stands, and its result")
    async def get_result(id: str, request: Request) -> dict[str, Any]:
        """Needs no key: an id cannot be guessed. With one, another key's tasks are not found."""
        job = await asyncio.to_thread(front.records.job, id) or await asyncio.to_thread(front.records.training_of, id)
        sends_a_key = front.key_of(request) is not None
        if job is None or await was_deleted(job) or (sends_a_key and job.owner != authenticated(request)):
            return {"id": id, "status": NOT_FOUND, "result": None, "progress": None, "details": None}
        return await asyncio.to_thread(task, job, front, front.address(request), id)

    @router.get("/my_finetunes", summary="Ids of the key's finetunes")
    async def my_finetunes(owner: Owner) -> dict[str, Any]:
        return {"finetunes": [finetune.id for finetune in await asyncio.to_thread(front.records.finetunes, owner)]}

    @router.get("/finetune_details", summary="What a finetune was asked to be")
    async def finetune_details(finetune_id: str, owner: Owner) -> dict[str, Any]:
        found = await own_finetune(owner, finetune_id)
        inputs = found.inputs
        return {
            "finetune_details": {
                "finetune_comment": found.comment,
                "trigger_word": inputs["trigger_word"],
                "mode": inputs["mode"],
                "iterations": inputs["training_steps"],
                "learning_rate": inputs.get("learning_rate"),
                "priority": inputs["priority"],
                "finetune_type": inputs["finetune_type"],
                "lora_rank": inputs["lora_rank"],
                "captioning": inputs["captioning"] != "captioning-disabled",
                "timestamp": found.created_at.isoformat(),
            }
        }

    @router.post("/delete_finetune", summary="Delete a finetune")
    async def delete_finetune(sent: FinetuneOf, owner: Owner) -> dict[str, Any]:
        if not await front.engine.delete_finetune(owner, sent.finetune_id):
            raise Problem(404, "Finetune not found or not ready")
        return {
            "status": "success",
            "message": f"Finetune {sent.finetune_id} is deleted",
            "deleted_finetune_id": sent.finetune_id,
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    return router
