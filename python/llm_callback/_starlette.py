"""The response of Starlette and FastAPI. Made by :func:`llm_callback.web.starlette_response`, which imports it then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from llm_callback.web import SseAnswer


class SseResponse(StreamingResponse):
    """Closes its body however the sending ends: Starlette cancels the iteration, and does no more."""

    def __init__(self, answer: SseAnswer) -> None:
        super().__init__(answer.body, answer.status, answer.headers)
        # Not `body_iterator`, which a middleware may have wrapped.
        self._sse_body = answer.body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._sse_body.close()
