"""No request fills the memory: bodies larger than what is documented are refused."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

JSON_BYTES = 200 << 20  # an archive of 150 MB in base64; it is held in memory
FILE_BYTES = 2 << 30  # to /v1/files, which goes to the disk as it comes


class BodyLimit:
    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        limit = FILE_BYTES if scope["path"] == "/v1/files" else JSON_BYTES
        sentence = f"The body has more than {limit >> 20} MiB. Send a larger file by its address, or to /v1/files."
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said) > limit:
            response = JSONResponse({"detail": sentence, "title": "Too large", "status": 413}, 413)
            return await response(scope, receive, send)
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > limit:
                raise HTTPException(413, sentence)
            return message

        await self.app(scope, counted, send)
