"""The answer to a client that wants the events of a run as server-sent events, of no framework."""

from __future__ import annotations

import re
from http import HTTPStatus
from random import uniform
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from llm_callback._core import Run, get_run
from llm_callback._seconds import positive_seconds
from llm_callback.exceptions import SubscriberLagged
from llm_callback.web import _stuck

if TYPE_CHECKING:
    from typing import TypeAlias
    from uuid import UUID

    from typing_extensions import Self

    from llm_callback._core import SseStream
    from llm_callback.events import Overflow

    RunOrId: TypeAlias = Run | int | str | UUID

# What 64 bits hold for certain; the ids that we mint are shorter.
_EVENT_ID = re.compile("[0-9]{1,19}-[0-9]{1,19}")

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
    run: RunOrId,
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


def answer_to(
    run: RunOrId, method: str, last_event_id: str | None, options: SseOptions
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
