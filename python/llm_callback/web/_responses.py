"""The responses of Flask, and of Starlette and FastAPI, with the events of a run. A framework is imported when used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_callback.web._sse import answer_to

if TYPE_CHECKING:
    import flask
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from typing_extensions import Unpack

    from llm_callback.web._sse import RunOrId, SseOptions

# The header wins: an EventSource that reconnects still sends the parameter of its first request.
_HEADER, _PARAMETER = "Last-Event-ID", "last_event_id"


def flask_response(
    run: RunOrId, request: flask.Request | None = None, **options: Unpack[SseOptions]
) -> flask.Response:
    """Return the Flask response with the events of a run. See :func:`sse_answer` for the options and the statuses.

    ``request`` says after which event the client reads on: the header ``Last-Event-ID``, or else the query parameter
    ``last_event_id``, for a page that was rendered with the earlier events. By default it is Flask's current request.

    A stream occupies a thread of the WSGI server. The server notices that a client has gone only when it sends: after a
    client has closed its connection, the reader of a quiet run is freed with the first or second heartbeat. If a client
    does not read, the reader is freed at most a second after ``send_timeout``. The server's thread, which is blocked in
    sending, cannot be interrupted: it returns when the client reads again, or the system gives up the connection.
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

    ``request`` says after which event the client reads on: the header ``Last-Event-ID``, or else the query parameter
    ``last_event_id``, for a page that was rendered with the earlier events. No thread waits. The reader is freed when
    the server reports that the client has gone; uvicorn does so at once. If a client does not read for ``send_timeout``
    seconds, uvicorn's connection is closed; on other servers the sending is cancelled.

    At its exit uvicorn waits for open responses before it ends the application's lifespan. So once uvicorn exits, all
    streams of its event loop end within half a second, and clients that take nothing are dropped a second later. On
    other servers, set the server's own limit for open responses.
    """
    from llm_callback.web._starlette import SseResponse  # noqa: PLC0415

    header = request.headers.get(_HEADER)
    answer = answer_to(run, request.method, header or request.query_params.get(_PARAMETER), options)
    return SseResponse(answer)
