"""Runs over HTTP, as server-sent events: for Flask, Starlette, FastAPI, and whatever else sends bytes.

With Flask::

    @app.get("/runs/<int:run_id>/events")
    def events(run_id):
        return web.flask_response(run_id)

With Starlette or FastAPI::

    @app.get("/runs/{run_id}/events")
    async def events(run_id: int, request: Request):
        return web.starlette_response(run_id, request)

With anything else, here WSGI::

    answer = web.sse_answer(run_id, last_event_id=environ.get("HTTP_LAST_EVENT_ID"))
    start_response(f"{answer.status:d} {answer.status.phrase}", [*answer.headers.items()])
    return answer.body

and in the page, for all of them::

    const source = new EventSource(`/runs/${runId}/events`);
    source.onmessage = ({ data }) => show(JSON.parse(data));

An ``EventSource`` that loses its connection comes back by itself, with the id of the last event that it has seen, and
reads on after it. The answer to one that has seen the run's last event is 204, which is how a server stops it. The
protocol is that of the WHATWG's HTML standard, section 9.2: https://html.spec.whatwg.org/multipage/server-sent-events.html

A stream ends with its run. It also ends when uvicorn exits, when its client does not read, and when it is old: then the
client comes back, and nothing is lost that the log still holds. docs/deployment.md says what servers and proxies need.

No framework is imported before it is used.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from random import uniform
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from llm_callback import _stuck
from llm_callback._core import Run, get_run
from llm_callback._seconds import positive_seconds
from llm_callback.exceptions import SubscriberLagged

if TYPE_CHECKING:
    from typing import TypeAlias
    from uuid import UUID

    import flask
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from typing_extensions import Self, Unpack

    from llm_callback._core import SseStream
    from llm_callback.events import Overflow

    _RunOrId: TypeAlias = Run | int | str | UUID

__all__ = [
    "SseAnswer",
    "SseBody",
    "SseOptions",
    "flask_response",
    "sse_answer",
    "starlette_response",
]

# What 64 bits hold for certain; the ids that we mint are shorter.
_EVENT_ID = re.compile("[0-9]{1,19}-[0-9]{1,19}")

# The header wins: an EventSource that reconnects sends the parameter too, as the page wrote it once.
_HEADER, _PARAMETER = "Last-Event-ID", "last_event_id"

# By which part of it the age differs at which streams end.
_SPREAD = 0.2

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # nginx, and what follows it, would collect a stream before it passes it on.
    "X-Accel-Buffering": "no",
}


class SseOptions(TypedDict, total=False):
    """What :func:`flask_response` and :func:`starlette_response` hand on to :func:`sse_answer`, which explains it."""

    after: str | int | None
    heartbeat: float | None
    retry: int
    overflow: Overflow
    send_timeout: float | None
    max_age: float | None


class SseBody:
    """The bytes of an answer, once, for ``for`` or ``async for``.

    Waits for the run's events, in ``async for`` without a thread. Ends after the run's last event, where the reader was
    too slow for its ``overflow``, and at its ``max_age``. It is closed by itself where a chunk was taken, and the next
    one is not asked for within ``send_timeout`` seconds: then the client does not read. :meth:`close` frees the reader,
    as does dropping the body; servers call it when the client has gone.
    """

    __slots__ = (
        "__weakref__",
        "_end",
        "_first",
        "_is_watched",
        "_send_timeout",
        "_stream",
        "_taken_at",
    )

    def __init__(
        self,
        stream: SseStream | None = None,
        first: bytes = b"",
        send_timeout: float | None = None,
        max_age: float | None = None,
    ) -> None:
        self._stream = stream
        self._first = first
        self._send_timeout = send_timeout
        self._end = None if max_age is None else monotonic() + max_age
        # When the chunk was taken that is being sent; None while the next one is waited for.
        self._taken_at: float | None = None
        self._is_watched = False

    def close(self) -> None:
        """Free the reader: whoever waits for bytes gets the end, as all do after it.

        Thread-safe; blocks for one operation on the run's log at most. Closing again does nothing.
        """
        stream, self._stream, self._first = self._stream, None, b""
        if self._is_watched:
            _stuck.forget(self)
        if stream is not None:
            stream.close()

    @property
    def send_timeout(self) -> float | None:
        """How many seconds one chunk may take to be sent; None is no limit."""
        return self._send_timeout

    async def aclose(self) -> None:
        """As :meth:`close`, for ``contextlib.aclosing``."""
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        self._taken_at = None
        stream, first, self._first = self._stream, self._first, b""
        if first:
            return first
        if stream is not None:
            try:
                if not self._is_old:
                    return self._taken(next(stream))
            except (StopIteration, SubscriberLagged):
                pass
            self.close()
        raise StopIteration

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._taken_at = None
        stream, first, self._first = self._stream, self._first, b""
        if first:
            return first
        if stream is not None:
            try:
                if not self._is_old:
                    return self._taken(await anext(stream))
            except (StopAsyncIteration, SubscriberLagged):
                pass
            self.close()
        raise StopAsyncIteration

    @property
    def _is_old(self) -> bool:
        return self._end is not None and monotonic() >= self._end

    def _taken(self, chunk: bytes) -> bytes:
        """Note that the chunk is being sent from now on."""
        if self._send_timeout is not None:
            self._taken_at = monotonic()
            if not self._is_watched:
                self._is_watched = True
                _stuck.watch(self)
        return chunk

    def _is_stuck(self, now: float) -> bool:
        """Whether one chunk has been sent for too long."""
        taken_at, timeout = self._taken_at, self._send_timeout
        return taken_at is not None and timeout is not None and now - taken_at >= timeout


class SseAnswer(NamedTuple):
    """An HTTP response, of no framework: what to send, and then the body, to be closed when the client has gone."""

    status: HTTPStatus
    headers: dict[str, str]
    body: SseBody


def sse_answer(  # noqa: PLR0913 - each has a default that fits
    run: _RunOrId,
    *,
    last_event_id: str | None = None,
    after: str | int | None = "start",
    heartbeat: float | None = 15.0,
    retry: int = 3000,
    overflow: Overflow = "gap",
    send_timeout: float | None = 30.0,
    max_age: float | None = 1800.0,
) -> SseAnswer:
    """Return what to answer to a client that wants the events of a run, as server-sent events.

    ``run`` is a run, or the id of one that :func:`llm_callback.get_run` finds; an int and its text name two runs.
    ``last_event_id`` is what the client says that it has seen, as text from outside; without it, or where it is empty,
    the stream begins ``after`` what :meth:`Run.subscribe` takes: all that the log holds, and None for what comes from
    now on. A comment is sent when there was nothing for ``heartbeat`` seconds: it keeps the connection open, and shows
    a WSGI server that its client has gone. ``retry`` is after how many milliseconds the client is to reconnect; that
    line goes out first and at once, so that the client sees the connection open. A client that is slower than its run
    is told what it has missed, in its place, with ``overflow="gap"``; with ``"disconnect"`` its stream ends, and it is
    told when it comes back.

    Two bounds free what a client that is as good as gone would keep: its reader, and the log of a run that ended long
    ago. A client that does not read is dropped once one chunk has not been sent within ``send_timeout`` seconds. A
    stream that is older than ``max_age`` seconds, give or take 20 % so that not all come back at once, ends with the
    next chunk or heartbeat. In both cases the client comes back with the id of its last event, and nothing is lost that
    the log still holds. None switches either off.

    The status is 200 with a stream; 204 where nothing is left to be sent, which tells an ``EventSource`` to stop; 404
    where there is no such run, or no longer; 400 where ``last_event_id`` is not an event's id. An id that is unknown is
    answered with a gap event and all that the log holds.

    Thread-safe; does not block, and the body's iteration does. Raises TypeError and ValueError for arguments that
    cannot be, but not for what a client may have chosen: an id, of an event or, where it is an int or a str, of a run.
    """
    if last_event_id and not _EVENT_ID.fullmatch(last_event_id):
        text = "Last-Event-ID, or the parameter last_event_id, is not an event's id, such as 1700000000000-1.\n"
        return _refusal(HTTPStatus.BAD_REQUEST, text)
    found = run if isinstance(run, Run) else _find(run)
    if found is None:
        return _refusal(HTTPStatus.NOT_FOUND, "There is no such run, or it ended long ago.\n")
    send_timeout = positive_seconds("send_timeout", send_timeout)
    max_age = positive_seconds("max_age", max_age)
    if max_age is not None:
        max_age *= uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311 - no secret
    subscription = found.subscribe(last_event_id or after, overflow=overflow)
    stream = subscription.sse(heartbeat, retry=retry)
    if subscription.ended:
        return SseAnswer(HTTPStatus.NO_CONTENT, {"Cache-Control": "no-cache"}, SseBody())
    body = SseBody(stream, send_timeout=send_timeout, max_age=max_age)
    return SseAnswer(HTTPStatus.OK, {**_STREAM_HEADERS}, body)


def flask_response(
    run: _RunOrId, request: flask.Request | None = None, **options: Unpack[SseOptions]
) -> flask.Response:
    """Return the Flask response with the events of a run. See :func:`sse_answer` for the options and the statuses.

    The client's place is read from ``request``, the current one if none is given: from its header ``Last-Event-ID``,
    else its query parameter ``last_event_id``, for a page that was rendered with the events before.

    A stream occupies a thread of the WSGI server. That a client has gone shows when something is sent to it: where it
    has closed its connection, the reader of a quiet run is freed with the first or second heartbeat after. Where the
    client does not read, the reader is freed at most a second after ``send_timeout``. The server's thread, which is
    blocked in sending, cannot be interrupted: it comes back when the client reads again, or the system gives the
    connection up.
    """
    import flask  # noqa: PLC0415

    request = flask.request if request is None else request
    header = request.headers.get(_HEADER)
    answer = _answer(run, request.method, header or request.args.get(_PARAMETER), options)
    response = flask.Response(answer.body, status=answer.status)
    # In place of Flask's own: what has no content has no Content-Type.
    response.headers.clear()
    response.headers.update(answer.headers)
    return response


def starlette_response(
    run: _RunOrId, request: Request, **options: Unpack[SseOptions]
) -> StreamingResponse:
    """Return the Starlette response, which is FastAPI's too, with the events of a run. See :func:`sse_answer`.

    The client's place is read from ``request``: from its header ``Last-Event-ID``, else its query parameter
    ``last_event_id``, for a page that was rendered with the events before. No thread waits. The reader is freed when
    the server says that the client has gone; uvicorn does so at once. Where the client does not read for
    ``send_timeout`` seconds, the connection is closed on uvicorn, and the sending is cancelled on other servers.

    uvicorn waits at its exit for open responses before the application's lifespan ends. So once uvicorn exits, all
    streams of its event loop end within half a second, and clients that take nothing are dropped a second later. On
    other servers set the server's own limit for open responses.
    """
    from llm_callback._starlette import SseResponse  # noqa: PLC0415

    header = request.headers.get(_HEADER)
    answer = _answer(run, request.method, header or request.query_params.get(_PARAMETER), options)
    return SseResponse(answer)


def _answer(
    run: _RunOrId, method: str, last_event_id: str | None, options: SseOptions
) -> SseAnswer:
    answer = sse_answer(run, last_event_id=last_event_id, **options)
    if method == "HEAD":
        answer.body.close()
    return answer


def _find(run_id: int | str | UUID) -> Run | None:
    try:
        return get_run(run_id)
    except ValueError:
        # An id that no run can have is one that no run has.
        return None


def _refusal(status: HTTPStatus, text: str) -> SseAnswer:
    content = text.encode()
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(content)),
        "Cache-Control": "no-cache",
    }
    return SseAnswer(status, headers, SseBody(first=content))
