"""The ASGI server of a stream: whether the server is about to exit, and the connection of one request.

At its exit uvicorn waits until every response is complete, and only then lets the application shut down. A stream that
waits for a run would keep uvicorn for ever, and ASGI has no message for that. So this module looks up uvicorn's
``Server`` and asks it; it replaces nothing. If the server is not found, or is not uvicorn, nothing happens.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from llm_callback._shutdown import OnSignal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Scope

    from llm_callback.web._starlette import SseResponse

# How many seconds pass between two looks at a loop's streams.
_PERIOD = 0.25
# How many seconds a server that exits waits for a client to take what is being sent.
_LAST_SEND = 1.0


class Watcher:
    """Looks after all streams of one event loop, with one timer, while there are streams.

    Ends the streams when the server is about to exit, and drops the clients that do not read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._streams: set[SseResponse] = set()
        self._server: Any = None
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def watching(self, stream: SseResponse) -> Iterator[None]:
        """Look after the stream in this block."""
        self._streams.add(stream)
        if self._timer is None:
            self._server = _find_server(self.loop)
            self._look()
        elif _is_exiting(self._server):
            stream.end()
        try:
            yield
        finally:
            self._streams.discard(stream)
            if not self._streams and self._timer is not None:
                self._timer.cancel()
                self._timer = self._server = None
                _forget(self)

    def _look(self) -> None:
        self._timer = self.loop.call_later(_PERIOD, self._look)
        is_exiting = _is_exiting(self._server)
        now = monotonic()
        for stream in list(self._streams):
            if is_exiting:
                stream.end()
            stream.drop_if_stuck(self._server, now, _LAST_SEND if is_exiting else None)


_local = threading.local()


def watcher() -> Watcher:
    """Return the watcher of the running loop."""
    loop = asyncio.get_running_loop()
    found: Watcher | None = getattr(_local, "watcher", None)
    if found is None or found.loop is not loop:
        found = _local.watcher = Watcher(loop)
    return found


def _forget(gone: Watcher) -> None:
    """Drop the watcher and its loop, which may be closed now."""
    if getattr(_local, "watcher", None) is gone:
        del _local.watcher


def _find_server(loop: asyncio.AbstractEventLoop) -> Any:
    """Return the uvicorn server that runs on this loop; None if there is none, or it cannot be found.

    The server is found by the signal handler that it has installed, or by the task of the loop that runs its ``serve``.
    """
    module = sys.modules.get("uvicorn.server")
    kind = getattr(module, "Server", None)
    if not isinstance(kind, type):
        return None
    with suppress(Exception):
        handler: Any = signal.getsignal(signal.SIGTERM)
        while isinstance(handler, OnSignal):
            handler = handler.previous
        server = getattr(handler, "__self__", None)
        if isinstance(server, kind) and _runs_on(server, loop):
            return server
    for task in asyncio.all_tasks(loop):
        with suppress(Exception):
            coroutine: Any = task.get_coro()
            while coroutine is not None:
                frame = getattr(coroutine, "cr_frame", None)
                server = None if frame is None else frame.f_locals.get("self")
                if isinstance(server, kind) and _runs_on(server, loop):
                    return server
                coroutine = getattr(coroutine, "cr_await", None)
    return None


def _runs_on(server: Any, loop: asyncio.AbstractEventLoop) -> bool:
    return any(each.get_loop() is loop for each in server.servers)


def _is_exiting(server: Any) -> bool:
    """Return whether the server takes no more connections: it was told to exit, or has reached its request limit."""
    if server is None:
        return False
    try:
        return bool(server.should_exit) or not any(each.is_serving() for each in server.servers)
    except Exception:  # noqa: BLE001 - a later uvicorn may be another
        return False


def abort(server: Any, scope: Scope) -> bool:
    """Close the connection of a request at once, without what it has not sent yet. Returns whether it was found."""
    with suppress(Exception):
        for connection in list(server.server_state.connections):
            # An idle connection has no cycle, nor has a WebSocket.
            cycle = getattr(connection, "cycle", None)
            # A middleware may have copied the scope, but not the headers in it.
            if cycle is not None and cycle.scope["headers"] is scope["headers"]:
                connection.transport.abort()
                return True
    return False
