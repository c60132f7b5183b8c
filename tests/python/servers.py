"""Real servers for the tests of web.py: Flask on werkzeug, Starlette and FastAPI on uvicorn, on loopback ports.

Each serves a page at ``/`` and runs at ``/runs/<id>``, and keeps every response that it gave, as a middleware might:
a reader is freed by a close, then, not by chance.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import socket
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import fastapi
import flask
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request  # noqa: TC002 - FastAPI looks at it
from starlette.responses import HTMLResponse
from starlette.routing import Route
from werkzeug.serving import make_server

from llm_callback import web
from support import DEADLINE, Running, waited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llm_callback.web import SseBody

# What `#` has after it is the path to read from.
PAGE = """<!doctype html>
<title>A viewer</title>
<script>
    const seen = [], states = [];
    const source = new EventSource(location.hash.slice(1));
    source.onmessage = ({ data, lastEventId }) => seen.push([lastEventId, JSON.parse(data)]);
    source.onopen = source.onerror = () => states.push(source.readyState);
</script>
"""


# werkzeug compiles routes by way of the syntax tree, which is not thread-safe in CPython 3.11.
BUILDING = threading.Lock()


class Given(NamedTuple):
    """An answer that a server gave."""

    status: int
    last_event_id: str | None
    stream: Callable[[], Any]

    def freed(self) -> None:
        """Wait until its reader is gone, and fail if it stays."""
        end, pause = time.monotonic() + DEADLINE, 0.001
        while self.stream() is not None:
            assert time.monotonic() < end, "the reader was not freed"
            # anyio leaves the exception of a cancelled task, and the frames that it went through, in a cycle.
            gc.collect()
            # Longer each time: a collection lets no other thread run, the server's neither.
            time.sleep(pause)
            pause = min(2 * pause, 0.5)


class Server:
    """What the tests of all frameworks share: where it is, what it has answered, how to drop its connections."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.url = ""
        self.drop: Callable[[], None]
        # On uvicorn.
        self.connections: Callable[[], int] | None = None
        self._given: queue.Queue[Given] = queue.Queue()
        self._kept: list[Any] = []

    def record(self, response: Any, body: SseBody, request: Any) -> Any:
        """Keep a response that is about to be sent; return it."""
        self._kept.append(response)
        # The stream, which holds the reader: the body is kept with its response.
        stream = (lambda: None) if body._stream is None else weakref.ref(body._stream)
        self._given.put(Given(response.status_code, request.headers.get("Last-Event-ID"), stream))
        return response

    def answer(self) -> Given:
        """Return the next answer that was given, waiting for it."""
        return self._given.get(timeout=DEADLINE)

    @property
    def has_answered(self) -> bool:
        """Whether there is an answer that `answer` has not returned."""
        return not self._given.empty()


class Errors(logging.Handler):
    """Keeps what is logged as an error, by whomever."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.told.append(self.format(record))


@contextmanager
def no_errors() -> Iterator[None]:
    """Fail if something is logged as an error."""
    errors = Errors()
    logging.getLogger().addHandler(errors)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(errors)
    assert errors.told == []


@contextmanager
def on_werkzeug(app: Any) -> Iterator[tuple[str, list[socket.socket]]]:
    """Serve a WSGI application; give its address and the sockets of its connections."""
    sockets: list[socket.socket] = []

    def noting(environ: dict[str, Any], start_response: Any) -> Any:
        sockets.append(environ["werkzeug.socket"])
        return app(environ, start_response)

    with no_errors():
        server = make_server("127.0.0.1", 0, noting, threaded=True)
        serving = Running(server.serve_forever)
        try:
            yield f"http://127.0.0.1:{server.port}", sockets
        finally:
            server.shutdown()
            serving.result()


@contextmanager
def on_uvicorn(
    app: Any, **options: Any
) -> Iterator[tuple[str, Callable[[], None], Callable[[], int]]]:
    """Serve an ASGI application; give its address, what drops its connections, and how many there are.

    Leaving it waits for the server's end.
    """
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", **options)
    server = uvicorn.Server(config)
    loops: queue.Queue[asyncio.AbstractEventLoop] = queue.Queue()

    async def main() -> None:
        loops.put(asyncio.get_running_loop())
        await server.serve(sockets=[listening])

    with no_errors(), socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        serving = Running(lambda: asyncio.run(main()))
        loop = loops.get(timeout=DEADLINE)

        def abort(done: threading.Event) -> None:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            done.set()

        def drop() -> None:
            done = threading.Event()
            loop.call_soon_threadsafe(abort, done)
            waited(done)

        try:
            yield f"http://127.0.0.1:{port}", drop, lambda: len(server.server_state.connections)
        finally:
            server.should_exit = True
            serving.result()


@contextmanager
def flask_server(**options: Any) -> Iterator[Server]:
    """Serve with Flask, on werkzeug's server."""
    server = Server(options)

    def page() -> str:
        return PAGE

    def events(run_id: str) -> flask.Response:
        response = web.flask_response(run_id, **server.options)
        body: Any = response.response
        return server.record(response, body, flask.request)

    with BUILDING:
        app = flask.Flask("tests", root_path="/")
        app.add_url_rule("/", view_func=page)
        app.add_url_rule("/runs/<run_id>", view_func=events)

    with on_werkzeug(app) as (server.url, sockets):

        def drop() -> None:
            while sockets:
                # One that has ended is closed.
                with suppress(OSError):
                    sockets.pop().shutdown(socket.SHUT_RDWR)

        server.drop = drop
        yield server


@contextmanager
def starlette_server(**options: Any) -> Iterator[Server]:
    """Serve with Starlette, on uvicorn."""
    server = Server(options)

    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse(PAGE)

    async def events(request: Request) -> Any:
        response = web.starlette_response(request.path_params["run_id"], request, **server.options)
        body: Any = response.body_iterator
        return server.record(response, body, request)

    app = Starlette(routes=[Route("/", page), Route("/runs/{run_id}", events)])
    with on_uvicorn(app) as (server.url, server.drop, server.connections):
        yield server


@contextmanager
def fastapi_server(**options: Any) -> Iterator[Server]:
    """Serve with FastAPI, on uvicorn: a route that is no coroutine, behind a middleware that wraps what it sends."""
    server = Server(options)
    app = fastapi.FastAPI()

    @app.api_route("/runs/{run_id}", methods=["GET", "HEAD"])
    def events(run_id: str, request: Request) -> Any:
        response = web.starlette_response(run_id, request, **server.options)
        body: Any = response.body_iterator
        return server.record(response, body, request)

    @app.middleware("http")
    async def passing(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    with on_uvicorn(app) as (server.url, server.drop, server.connections):
        yield server


SERVERS = {"flask": flask_server, "starlette": starlette_server, "fastapi": fastapi_server}
