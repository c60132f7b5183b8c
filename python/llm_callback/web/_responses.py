"""The responses of Flask, and of Starlette and FastAPI, with the events of a run. A framework is imported at use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_callback.web._sse import answer_to

if TYPE_CHECKING:
    import flask
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from typing_extensions import Unpack

    from llm_callback.web._sse import RunOrId, SseOptions

# The header wins: an EventSource that reconnects sends the parameter too, as the page wrote it once.
_HEADER, _PARAMETER = "Last-Event-ID", "last_event_id"


def flask_response(
    run: RunOrId, request: flask.Request | None = None, **options: Unpack[SseOptions]
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
    answer = answer_to(run, request.method, header or request.args.get(_PARAMETER), options)
    response = flask.Response(answer.body, status=answer.status)
    # In place of Flask's own: what has no content has no Content-Type.
    response.headers.clear()
    response.headers.update(answer.headers)
    return response


def starlette_response(
    run: RunOrId, request: Request, **options: Unpack[SseOptions]
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
    from llm_callback.web._starlette import SseResponse  # noqa: PLC0415

    header = request.headers.get(_HEADER)
    answer = answer_to(run, request.method, header or request.query_params.get(_PARAMETER), options)
    return SseResponse(answer)
