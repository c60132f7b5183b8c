"""The answer to a client that asks for a run's events as server-sent events. It belongs to no framework."""

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

# As many digits as 64 bits hold for certain; the ids of events are shorter.
_EVENT_ID = re.compile("[0-9]{1,19}-[0-9]{1,19}")

# Streams end at ages that differ by this part of ``max_age``, so that their clients do not all return at once.
_SPREAD = 0.2

_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Without this, nginx and proxies that follow its example collect a stream before they pass it on.
    "X-Accel-Buffering": "no",
}


class SseOptions(TypedDict, total=False):
    """The options that :func:`flask_response` and :func:`starlette_response` pass to :func:`sse_answer`: see there."""

    after: str | int | None
    heartbeat: float | None
    retry: int
    overflow: Overflow
    send_timeout: float | None
    max_age: float | None


class SseBody:
    """The bytes of an answer, for one iteration by ``for`` or ``async for``.

    The iteration waits for the run's events; with ``async for`` no thread waits. It ends after the run's last event, if
    the reader was too slow for its ``overflow``, and at the age ``max_age``. If a chunk was taken and the next one is
    not asked for within ``send_timeout`` seconds, the client does not read, and the body closes itself. :meth:`close`
    frees the reader, and so does dropping the body; servers call it when the client has gone.
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
        # When the server took the chunk that it is sending; None while it waits for the next one.
        self._taken_at: float | None = None
        self._is_watched = False

    def close(self) -> None:
        """Free the reader. The iteration ends, also for a thread or a coroutine that waits for bytes.

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
        """Do what :meth:`close` does, for ``contextlib.aclosing``."""
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
        """Return the chunk, and note that the server sends it from now on."""
        if self._send_timeout is not None:
            self._taken_at = monotonic()
            if not self._is_watched:
                self._is_watched = True
                _stuck.watch(self)
        return chunk

    def _is_stuck(self, now: float) -> bool:
        """Return whether the server has been sending one chunk for ``send_timeout`` seconds."""
        taken_at, timeout = self._taken_at, self._send_timeout
        return taken_at is not None and timeout is not None and now - taken_at >= timeout


class SseAnswer(NamedTuple):
    """An HTTP response of no framework. The server sends it, and closes the body when the client has gone."""

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
    """Return the answer to a client that asks for the events of a run as server-sent events.

    ``run`` is a run, or the id of one that :func:`llm_callback.get_run` finds. The int 8 and the text "8" are the ids
    of two different runs. ``last_event_id`` is the id of the last event that the client has seen, as the client sends
    it. If it is empty or None, ``after`` says where the stream begins, as for :meth:`Run.subscribe`: ``"start"`` is the
    oldest event that the log holds, None is the next event.

    If the run has no event for ``heartbeat`` seconds, the stream sends a comment. The comment keeps the connection
    open, and lets a WSGI server notice that its client has gone. ``retry`` is the number of milliseconds after which
    the client is to reconnect. The stream begins with that line, so that the client sees at once that the connection is
    open. ``overflow`` is for a client that is slower than its run: with ``"gap"`` a ``stream.gap`` event takes the
    place of what it has missed; with ``"disconnect"`` its stream ends, and the gap comes when it reconnects.

    Two bounds free the reader of a client that is as good as gone, and with it the log of a run that ended long ago. A
    client that does not read is dropped if one chunk is not sent within ``send_timeout`` seconds. A stream that is
    older than ``max_age`` seconds ends with its next chunk or heartbeat; each stream's age varies by 20 %, so that not
    all clients reconnect at once. In both cases the client reconnects with the id of its last event, and loses nothing
    that the log still holds. None switches a bound off.

    The status is 200 with a stream; 204 if nothing is left to be sent, which tells an ``EventSource`` to stop; 404 if
    there is no such run, or no longer; 400 if ``last_event_id`` is not the id of an event. The stream for an unknown id
    begins with a gap event and all that the log holds.

    Thread-safe. Does not block; the iteration of the body does. Raises TypeError or ValueError for invalid arguments,
    but not for those that a client may choose: the id of an event, and a run's id that is an int or a str.
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
        # No run can have this id, so that there is none.
        return None


def _refusal(status: HTTPStatus, text: str) -> SseAnswer:
    content = text.encode()
    headers = {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(content)),
        "Cache-Control": "no-cache",
    }
    return SseAnswer(status, headers, SseBody(first=content))
