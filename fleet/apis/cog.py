"""Cog's own HTTP API, for who has no client: as the container's servers answer, and a GET by id besides."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from fleet.apis.front import NOT_FOUND, Front
from fleet.apis.hooks import Hooks
from fleet.apis.inputs import PredictionInput, TrainingInput
from fleet.apis.problems import Problem, shaped
from fleet.apis.replicate import prediction
from fleet.records import Job, Kind

HOLD_SECONDS = 60.0  # between looks at whether the client is still there
WITHIN = ("input",)


class CogPredictionRequest(Hooks):
    input: PredictionInput


class CogTrainingRequest(Hooks):
    input: TrainingInput


def shape(problem: Problem) -> dict[str, Any]:
    return {"detail": problem.errors or problem.sentence}


def described(job: Job, front: Front, base: str, *, inline: bool = False) -> dict[str, Any]:
    """A job as Cog's server writes it: a picture as a data: URI in the answer to who waits."""
    whole = prediction(job, front, base, inline=inline)
    wanted = ("id", "input", "output", "logs", "error", "status", "metrics", "created_at", "started_at", "completed_at")
    return {name: whole[name] for name in wanted}


def cog_api(front: Front) -> APIRouter:
    router = APIRouter(tags=["Cog"], route_class=shaped(shape))

    Owner = Annotated[str, Depends(front.authenticated(401, "Send a valid key: Authorization: Bearer KEY."))]

    async def run(request: Request, owner: str, kind: Kind, body: CogPredictionRequest | CogTrainingRequest) -> Response:
        """Hold the answer until all is done, as Cog does, unless the client prefers to be answered at once."""
        body.input.refuse_other_names(WITHIN)
        words = body.input.words()
        for name in ("input_images", "image_prompt"):
            if name in words:
                words[name] = await front.sent_file(owner, request, name, words[name], WITHIN)
        job = Job(owner, kind, "cog", kind.value, words, words.get("finetune_id", ""), logs=body.input.note())
        job.webhook = body.checked(front.address(request))
        job = await front.accept(job, WITHIN)
        front.following.follow(job)
        at_once = "respond-async" in request.headers.get("prefer", "")
        while not (at_once or job.ended or await request.is_disconnected()):
            job = await front.wait(job, HOLD_SECONDS)
        answer = await asyncio.to_thread(described, job, front, front.address(request), inline=not at_once)
        return JSONResponse(answer, 202 if at_once else 200)

    async def get(kind: Kind, owner: str, request: Request, id: str) -> dict[str, Any]:
        job = await asyncio.to_thread(front.records.get, owner, id)
        if job is None or job.kind is not kind:
            raise Problem(404, NOT_FOUND)
        return described(job, front, front.address(request))

    @router.post("/predictions", summary="Draw with a finetune")
    async def predict(body: CogPredictionRequest, request: Request, owner: Owner) -> Response:
        return await run(request, owner, Kind.DRAWING, body)

    @router.post("/trainings", summary="Train a finetune")
    async def train(body: CogTrainingRequest, request: Request, owner: Owner) -> Response:
        return await run(request, owner, Kind.TRAINING, body)

    @router.get("/predictions/{prediction_id}", summary="A drawing")
    async def get_prediction(prediction_id: str, request: Request, owner: Owner) -> dict[str, Any]:
        return await get(Kind.DRAWING, owner, request, prediction_id)

    @router.get("/trainings/{training_id}", summary="A training")
    async def get_training(training_id: str, request: Request, owner: Owner) -> dict[str, Any]:
        return await get(Kind.TRAINING, owner, request, training_id)

    async def cancel(owner: str, request: Request, id: str) -> dict[str, Any]:
        job = await front.engine.cancel(owner, id)
        if job is None:
            raise Problem(404, NOT_FOUND)
        return described(job, front, front.address(request))

    @router.post("/predictions/{prediction_id}/cancel", summary="Cancel a drawing")
    async def cancel_prediction(prediction_id: str, request: Request, owner: Owner) -> dict[str, Any]:
        return await cancel(owner, request, prediction_id)

    @router.post("/trainings/{training_id}/cancel", summary="Cancel a training")
    async def cancel_training(training_id: str, request: Request, owner: Owner) -> dict[str, Any]:
        return await cancel(owner, request, training_id)

    return router
