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

from llm_callback.web._responses import flask_response, starlette_response
from llm_callback.web._sse import SseAnswer, SseBody, SseOptions, sse_answer

__all__ = [
    "SseAnswer",
    "SseBody",
    "SseOptions",
    "flask_response",
    "sse_answer",
    "starlette_response",
]
