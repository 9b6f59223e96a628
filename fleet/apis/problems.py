"""What a client is told when it gets nothing, in the shape that its API has for it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

RETRY_SECONDS = 5  # until a place in the queue may be free: about a drawing on a GPU


class Problem(Exception):
    """An answer that is no success.

    Args:
        errors: for 422, one {loc, msg, type} a mistake; ``loc`` leads from the body to the field.
    """

    def __init__(self, status: int, sentence: str, errors: list[dict[str, Any]] | None = None):
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.errors = errors or []

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(RETRY_SECONDS)} if self.status == 429 else {}


def refused(field: str, sentence: str, within: tuple[str, ...] = ()) -> Problem:
    """422 for one field."""
    return Problem(422, sentence, [{"loc": ["body", *within, field], "msg": sentence, "type": "value_error"}])


def of_validation(errors: Any, within: tuple[str, ...] = ()) -> Problem:
    """422 of what pydantic found; the values that were sent are left out, for they may be large."""
    short = [{"loc": [*within, *error["loc"]], "msg": error["msg"], "type": error["type"]} for error in errors]
    return Problem(422, "; ".join(f"{'.'.join(map(str, error['loc'][1:]))}: {error['msg']}" for error in short), short)


def shaped(shape: Callable[[Problem], dict[str, Any]]) -> type[APIRoute]:
    """The class of routes whose problems are answered in this shape."""

    class ShapedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def answer(request: Request) -> Response:
                try:
                    return await handler(request)
                except RequestValidationError as error:
                    problem = of_validation(error.errors())
                except Problem as raised:
                    problem = raised
                return JSONResponse(shape(problem), problem.status, problem.headers)

            return answer

    return ShapedRoute
