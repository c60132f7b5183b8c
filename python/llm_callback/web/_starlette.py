"""The response of Starlette and FastAPI, which :func:`llm_callback.web.starlette_response` makes."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from anyio import CancelScope
from starlette.responses import StreamingResponse

from llm_callback.web import _server
from llm_callback.web._server import watcher

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

    from llm_callback.web._sse import SseAnswer


class SseResponse(StreamingResponse):
    """Closes its body however the sending ends; Starlette itself only cancels the iteration.

    Ends when the server is about to exit, and drops a client that does not read: see :class:`_server.Watcher`.
    """

    def __init__(self, answer: SseAnswer) -> None:
        super().__init__(answer.body, answer.status, answer.headers)
        # Not `body_iterator`, which a middleware may have wrapped.
        self._sse_body = answer.body
        self._sending_since: float | None = None
        self._scope: Scope = {}
        self._cancel_scope: CancelScope | None = None
        self._is_dropped = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def timed(message: Message) -> None:
            self._sending_since = monotonic()
            await send(message)
            self._sending_since = None

        self._scope = scope
        try:
            # A CancelScope is made inside the loop that it belongs to.
            with watcher().watching(self), CancelScope() as self._cancel_scope:
                await super().__call__(scope, receive, timed)
        finally:
            self._sse_body.close()

    def end(self) -> None:
        """End the stream after what it has sent: the server is about to exit. Calling this again does nothing."""
        self._sse_body.close()

    def drop_if_stuck(self, server: object, now: float, limit: float | None) -> None:
        """Drop the client if one send takes longer than its ``send_timeout`` or ``limit``, in seconds."""
        since, timeout = self._sending_since, self._sse_body.send_timeout
        if since is None or self._is_dropped:
            return
        limits = [each for each in (timeout, limit) if each is not None]
        if limits and now - since >= min(limits):
            self._is_dropped = True
            self._sse_body.close()
            # An abort also drops what waits in the server's buffer. On other servers at least the sending ends.
            if not _server.abort(server, self._scope) and self._cancel_scope is not None:
                self._cancel_scope.cancel()
