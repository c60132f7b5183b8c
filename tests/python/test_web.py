"""Runs over HTTP: real frameworks on real servers, read by real clients."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import weakref
from contextlib import ExitStack, aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4
from wsgiref.simple_server import make_server
from wsgiref.validate import validator

import flask
import httpx
import httpx_sse
import pytest
from hypothesis import example, given, strategies as st
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from llm_callback import CancelToken, open_run, web
from llm_callback.web import SseBody, _stuck
from readers import SseParser, checked, events_of, kind, kinds, numbers, overrun_by_size, say, text
from servers import BUILDING, SERVERS, Given, on_uvicorn
from support import DEADLINE, Running, new_id, printed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llm_callback import Run
    from servers import Server

RETRY = b"retry: 3000\n"
# Longer than any test: what is freed is not freed by it.
NEVER = 10 * DEADLINE

STREAM = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


@pytest.fixture(params=SERVERS.values(), ids=SERVERS.keys())
def serving(request: pytest.FixtureRequest) -> Any:
    """Serve runs with one of the frameworks."""
    return request.param


def finished(number: int = 3) -> Run:
    """Return a run that has ended: `started`, so many tokens, `completed`."""
    run = open_run(new_id())
    for index in range(number):
        say(run, f"{index} ")
    run.complete()
    return run


def ids(run: Run) -> list[str]:
    """Return the ids of all events."""
    return [event["id"] for event in run.subscribe("start").read(100_000, 0)]


@contextmanager
def client() -> Iterator[httpx.Client]:
    """Give a client that waits as long as a test may."""
    with httpx.Client(timeout=DEADLINE, trust_env=False) as one:
        yield one


def get(server: Server, path: Any, **headers: str) -> httpx.Response:
    """Return the whole of an answer."""
    with client() as one:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return one.get(f"{server.url}/runs/{path}", headers=names)


@contextmanager
def viewing(
    server: Server, run: Run, **headers: str
) -> Iterator[Iterator[httpx_sse.ServerSentEvent]]:
    """Give the events that httpx-sse reads, as they come."""
    with (
        client() as one,
        httpx_sse.connect_sse(
            one,
            "GET",
            f"{server.url}/runs/{run.run_id}",
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        ) as source,
    ):
        assert source.response.status_code == 200
        yield source.iter_sse()


# --- Of no framework ---


def test_an_answer_is_what_to_send() -> None:
    """A status, the headers of the protocol, and bytes: the retry line at once, then all events to the end."""
    run = finished()
    status, headers, body = web.sse_answer(run)
    assert status == 200
    assert {name.lower(): value for name, value in headers.items()} == STREAM
    first, *rest = body
    assert first == RETRY
    assert numbers(events_of(b"".join(rest))) == [1, 2, 3, 4, 5]
    assert list(body) == []


def test_an_answer_is_sent_by_a_coroutine() -> None:
    """`async for` gives the same bytes as `for`."""
    run = finished()

    async def main() -> bytes:
        async with aclosing(web.sse_answer(run).body) as body:
            sent = b"".join([chunk async for chunk in body])
        assert [chunk async for chunk in body] == []
        return sent

    assert asyncio.run(main()) == b"".join(web.sse_answer(run).body)


@pytest.mark.parametrize("name", ["int", "str", "uuid"])
def test_a_run_is_found_by_its_id(name: str) -> None:
    """An id stands for the run that `get_run` finds, and a run for itself."""
    run_id = {"int": uuid4().int >> 80, "str": new_id(), "uuid": uuid4()}[name]
    with open_run(run_id) as run:
        pass
    whole = b"".join(web.sse_answer(run).body)
    assert b"".join(web.sse_answer(run_id).body) == whole
    assert b"".join(web.sse_answer(run.run_id).body) == whole


def test_an_answer_begins_where_the_client_was() -> None:
    """After the event that the client has seen; else where the server says: the start, an id, a number, or live."""
    run = open_run()
    say(run)
    first = ids(run)[0]
    live = web.sse_answer(run, after=None).body
    say(run)
    run.complete()
    assert numbers(events_of(b"".join(live))) == [3, 4]
    for arguments, expected in [
        ({}, [1, 2, 3, 4]),
        ({"last_event_id": ""}, [1, 2, 3, 4]),
        ({"last_event_id": first}, [2, 3, 4]),
        ({"last_event_id": first, "after": None}, [2, 3, 4]),
        ({"after": first}, [2, 3, 4]),
        ({"after": 2}, [3, 4]),
    ]:
        assert numbers(events_of(b"".join(web.sse_answer(run, **arguments).body))) == expected


def test_who_has_seen_the_end_is_told_to_stop() -> None:
    """204 without a body where nothing can come any more; an event before, or a run that goes on, is a stream."""
    run = open_run()
    say(run)
    assert web.sse_answer(run, last_event_id=ids(run)[-1]).status == 200
    run.complete()
    assert web.sse_answer(run, last_event_id=ids(run)[-2]).status == 200
    for answer in (
        web.sse_answer(run, last_event_id=ids(run)[-1]),
        web.sse_answer(run, after=None),
    ):
        assert answer.status == 204
        assert answer.headers["Cache-Control"] == "no-cache"
        assert list(answer.body) == []


@pytest.mark.parametrize(
    "run_id", ["nobody", "", "\ud800", "\0", "x" * 100_000, 10**30, -(10**30), uuid4()]
)
def test_no_such_run(run_id: Any) -> None:
    """An id that no run has, or can have, is 404 with a text, whatever event the client has seen."""
    for cursor in (None, "1-1"):
        status, headers, body = web.sse_answer(run_id, last_event_id=cursor)
        assert status == 404
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        content = b"".join(body)
        assert b"no such run" in content
        assert int(headers["Content-Length"]) == len(content)


@given(st.text(min_size=1))
@example("start")
@example("1")
@example("1-")
@example("-1-1")
@example("1-1\n")
@example("٣-٣")
@example("\0")
@example("\ud800")
@example("99999999999999999999-1")
@example("9" * 10_000)
def test_a_cursor_that_is_none_is_refused(cursor: str) -> None:
    """What is not an event's id is 400, with a text that says so; no text of a client raises."""
    parts = cursor.split("-")
    if len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
        return
    status, headers, body = web.sse_answer("nobody", last_event_id=cursor)
    assert status == 400
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert b"is not an event's id" in b"".join(body)


@pytest.mark.parametrize("cursor", ["0-0", "1-1", "9999999999999999999-9999999999999999999"])
def test_a_cursor_that_never_was_is_told(cursor: str) -> None:
    """An id of no event is answered with a gap that names it, and everything."""
    run = finished()
    answer = web.sse_answer(run, last_event_id=cursor)
    gap, *events = events_of(b"".join(answer.body))
    assert answer.status == 200
    assert kind(gap) == "stream.gap"
    assert gap["data"]["requested"] == cursor
    assert numbers(events) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"overflow": "wait"}, ValueError),
        ({"heartbeat": 0}, ValueError),
        ({"retry": -1}, ValueError),
        ({"retry": "1"}, TypeError),
        ({"after": "now"}, ValueError),
        ({"after": 1.5}, TypeError),
        ({"send_timeout": 0}, ValueError),
        ({"send_timeout": float("nan")}, ValueError),
        ({"send_timeout": "1"}, TypeError),
        ({"max_age": -1.0}, ValueError),
        ({"max_age": True}, TypeError),
    ],
)
def test_what_the_server_gets_wrong_raises(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    """An option that cannot be is the server's mistake: it raises, and is not told to the client."""
    with pytest.raises(error):
        web.sse_answer(finished(), **arguments)
    with pytest.raises(TypeError):
        web.sse_answer(1.5)  # type: ignore[arg-type]


def test_a_quiet_answer_has_heartbeats() -> None:
    """The retry line is the server's, and comments come where events do not."""
    with open_run() as run:
        body = web.sse_answer(run, after=None, heartbeat=0.001, retry=7).body
        assert [next(body) for _ in range(3)] == [b"retry: 7\n", b": heartbeat\n", b": heartbeat\n"]


def test_close_frees_the_reader() -> None:
    """Closed, an answer ends at once, also for a thread that waits, and lets go of its reader; again is nothing."""
    run = open_run()
    body = web.sse_answer(run, after=None, heartbeat=None).body
    gone = weakref.ref(body._stream)
    assert next(body) == RETRY
    waiting = Running(lambda: list(body))
    body.close()
    assert waiting.result() == []
    assert gone() is None
    body.close()
    assert list(body) == []
    run.complete()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_dropped_answer_leaves_nothing(number: int) -> None:
    """An answer that nobody sends, or sends to its end or half, leaves no reader."""
    run = open_run()
    body = web.sse_answer(run).body
    gone = [weakref.ref(body), weakref.ref(body._stream)]
    for _ in range(number):
        next(body)
    del body
    assert [reference() for reference in gone] == [None, None]
    run.complete()


def gone(reference: Callable[[], Any]) -> None:
    """Wait until what is referred to is gone, and fail if it stays."""
    Given(200, None, reference).freed()


@pytest.mark.parametrize("is_async", [False, True], ids=["for", "async for"])
def test_a_body_whose_chunks_are_not_sent_is_closed(is_async: bool) -> None:
    """A body whose next chunk is not asked for in time is closed; one that waits for its next chunk is not stuck."""
    run = open_run()
    say(run)
    quiet = web.sse_answer(run, after=None, heartbeat=None, send_timeout=0.001).body
    assert next(quiet) == RETRY
    waiting = Running(lambda: next(quiet))
    stuck = web.sse_answer(run, send_timeout=0.001).body
    patient = web.sse_answer(run, send_timeout=None).body
    for body in (stuck, patient):
        assert (asyncio.run(anext(body)) if is_async else next(body)) == RETRY  # type: ignore[arg-type]
    gone(weakref.ref(stuck._stream))
    assert list(stuck) == []
    say(run)
    assert numbers(events_of(waiting.result())) == [3]
    run.complete()
    assert numbers(events_of(b"".join(patient))) == [1, 2, 3, 4]


def test_bodies_are_watched_while_they_are_sent() -> None:
    """One that has ended, is closed or dropped is watched no more, and one of the child of a fork is."""
    printed(
        """
        import os, threading, time
        from llm_callback import open_run, web
        from llm_callback.web import _stuck

        run = open_run()
        def body():
            one = web.sse_answer(run, heartbeat=None, send_timeout=0.001).body
            next(one)
            return one

        def until(condition):
            end = time.monotonic() + 30
            while not condition():
                assert time.monotonic() < end
                time.sleep(0.01)

        one, two, three = body(), body(), body()
        assert len(_stuck._bodies) == 3
        two.close()
        del three
        assert [*_stuck._bodies] == [id(one)]
        until(lambda: one._stream is None and not _stuck._bodies and _stuck._alarm is None)
        again = body()
        if hasattr(os, "fork"):
            pid = os.fork()
            if pid == 0:
                assert _stuck._bodies == {}
                run = open_run()
                mine = body()
                until(lambda: mine._stream is None)
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        until(lambda: again._stream is None)
        """,
        "-W",
        "ignore::DeprecationWarning",
    )


def test_an_old_answer_ends() -> None:
    """Behind the chunk or heartbeat that comes after its age it ends, its reader is freed, and the client resumes."""
    run = open_run()
    say(run)
    body = web.sse_answer(run, heartbeat=0.001, max_age=0.2).body
    stream = weakref.ref(body._stream)
    *events, last = [chunk for chunk in body if chunk.startswith(b"id:") or chunk == RETRY]
    assert (events, numbers(events_of(last))) == ([RETRY], [1, 2])
    assert stream() is None
    say(run)
    run.complete()
    resumed = web.sse_answer(run, last_event_id=events_of(last)[-1]["id"], max_age=None).body
    assert numbers(events_of(b"".join(resumed))) == [3, 4]


def test_ages_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that began together do not end together: the age is varied by 20 % at most."""
    monkeypatch.setattr("llm_callback.web._sse.monotonic", lambda: 0.0)
    run = open_run()
    ends = [web.sse_answer(run, max_age=100.0).body._end for _ in range(100)]
    assert len(set(ends)) > 50
    assert all(80.0 <= end <= 120.0 for end in ends if end is not None)
    assert max(ends) - min(ends) > 20.0  # type: ignore[operator, type-var]
    assert web.sse_answer(run, max_age=None).body._end is None
    run.complete()


def test_a_slow_client_is_told_what_it_missed() -> None:
    """By default the stream goes on behind a gap that is exact; with `disconnect` it ends, and resumes so."""
    run = open_run()
    bodies = [web.sse_answer(run, overflow=overflow).body for overflow in ("gap", "disconnect")]
    for body in bodies:
        next(body)
        assert numbers(events_of(next(body))) == [1]
    overrun_by_size(run)
    run.complete()
    gapped, cut = (events_of(b"".join(body)) for body in bodies)
    assert checked(gapped, after=1) > 0
    assert kind(gapped[-1]) == "lifecycle.completed"
    assert cut == []
    resumed = web.sse_answer(run, last_event_id=ids(run)[0], overflow="disconnect")
    gap, *rest = events_of(b"".join(resumed.body))
    assert (kind(gap), gap["data"]["lost"]) == ("stream.gap", gapped[0]["data"]["lost"])
    assert rest == gapped[1:]


def test_a_slow_coroutine_ends_without_an_error() -> None:
    """In a coroutine too, a stream with `disconnect` just ends where its client was too slow."""
    run = open_run()

    async def main() -> None:
        body = web.sse_answer(run, overflow="disconnect").body
        assert await anext(body) == RETRY
        overrun_by_size(run)
        assert [chunk async for chunk in body] == []

    asyncio.run(main())
    run.complete()


def test_the_import_brings_no_framework() -> None:
    """Importing it brings the standard library and the package, and making an answer does not either."""
    assert printed(
        """
        import sys
        from llm_callback import open_run, web
        with open_run(1): pass
        assert web.sse_answer(1).status == 200
        known = {*sys.stdlib_module_names, "__main__", "llm_callback"}
        there = {name.partition(".")[0] for name in sys.modules}
        print(there & {"flask", "werkzeug", "starlette", "fastapi", "anyio"}, "asyncio" in there)
        """
    ) == ("set() False\n")


def test_plain_wsgi() -> None:
    """An answer is all that a WSGI application needs, as the standard library's validator sees it."""
    run = finished()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        seen = environ.get("HTTP_LAST_EVENT_ID")
        answer = web.sse_answer(environ["PATH_INFO"][1:], last_event_id=seen)
        status = f"{answer.status:d} {answer.status.phrase}"
        start_response(status, [*answer.headers.items()])
        return answer.body

    with make_server("127.0.0.1", 0, validator(app)) as server, client() as one:
        url = f"http://127.0.0.1:{server.server_port}"

        def get(path: str, **headers: str) -> httpx.Response:
            serving = Running(server.handle_request)
            answer = one.get(f"{url}/{path}", headers={**headers, "Connection": "close"})
            serving.result()
            return answer

        assert numbers(events_of(get(run.run_id).content)) == [1, 2, 3, 4, 5]
        assert get("nobody").status_code == 404
        seen = get(run.run_id, **{"Last-Event-ID": ids(run)[-1]})
        assert (seen.status_code, seen.content) == (204, b"")


def test_plain_asgi() -> None:
    """An answer is all that an ASGI application needs."""
    run = finished()

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        status, headers, body = web.sse_answer(scope["path"][1:])
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        async with aclosing(body):
            async for chunk in body:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body"})

    with on_uvicorn(app) as (url, *_), client() as one:
        assert numbers(events_of(one.get(f"{url}/{run.run_id}").content)) == [1, 2, 3, 4, 5]
        assert one.get(f"{url}/nobody").status_code == 404


# --- Frameworks ---


def test_a_client_follows_a_run(serving: Any) -> None:
    """Each event reaches httpx-sse while its run goes on, and the stream ends with the run."""
    run = open_run(new_id())
    with serving(heartbeat=NEVER) as server, viewing(server, run) as events:
        assert next(events).id == ids(run)[0]
        for number in range(20):
            event_id = say(run, str(number))
            event = next(events)
            assert (event.event, event.id) == ("message", event_id)
            assert event.json()["data"] == {"content": str(number)}
        run.complete(result="well")
        (last,) = events
        assert last.json()["data"] == {"result": "well"}
        server.answer().freed()


def test_headers_of_a_stream(serving: Any) -> None:
    """The headers are those of the protocol; the stream is neither compressed nor measured."""
    run = finished()
    with serving() as server:
        answer = get(server, run.run_id, Accept_Encoding="gzip, br")
    assert STREAM.items() <= answer.headers.items()
    assert not {"content-length", "content-encoding"} & set(answer.headers)


def test_a_quiet_client_sees_the_connection_open(serving: Any) -> None:
    """The headers and the retry line are there before there is an event."""
    run = open_run(new_id())
    with (
        serving(after=None, heartbeat=NEVER, retry=9) as server,
        client() as one,
        one.stream("GET", f"{server.url}/runs/{run.run_id}") as answer,
    ):
        assert answer.status_code == 200
        assert next(answer.iter_raw()) == b"retry: 9\n"
        run.complete()


def test_a_quiet_connection_has_heartbeats(serving: Any) -> None:
    """Comments reach the client where events do not."""
    run = open_run(new_id())
    parser = SseParser()
    with (
        serving(after=None, heartbeat=0.001) as server,
        client() as one,
        one.stream("GET", f"{server.url}/runs/{run.run_id}") as answer,
    ):
        chunks = answer.iter_raw()
        while len(parser.comments) < 3:
            assert parser.push(next(chunks)) == []
        run.complete()
    assert set(parser.comments) == {" heartbeat"}


def test_a_client_resumes(serving: Any) -> None:
    """The header, else the parameter, says what the client has seen; the header wins; an empty one says nothing."""
    run = finished()
    seen = ids(run)
    with serving() as server:

        def got(query: str = "", **headers: str) -> list[int]:
            return numbers(events_of(get(server, f"{run.run_id}{query}", **headers).content))

        assert got() == [1, 2, 3, 4, 5]
        assert got(Last_Event_ID=seen[1]) == [3, 4, 5]
        assert got(f"?last_event_id={seen[2]}") == [4, 5]
        assert got(f"?last_event_id={seen[0]}", Last_Event_ID=seen[3]) == [5]
        assert got(f"?last_event_id={seen[3]}", Last_Event_ID="") == [5]
        assert got("?last_event_id=") == [1, 2, 3, 4, 5]


def test_a_client_that_has_seen_the_end(serving: Any) -> None:
    """It is answered with 204 and nothing, by header or parameter; and who has not, with the rest."""
    run = finished()
    end = ids(run)[-1]
    with serving() as server:
        for answer in (
            get(server, run.run_id, Last_Event_ID=end),
            get(server, f"{run.run_id}?last_event_id={end}"),
        ):
            assert (answer.status_code, answer.content) == (204, b"")
            assert answer.headers["cache-control"] == "no-cache"
            assert "content-type" not in answer.headers
            server.answer().freed()


def test_refusals(serving: Any) -> None:
    """No such run is 404, a cursor that is none is 400, each with a text; never 500."""
    run = finished()
    with serving() as server:
        nobody = get(server, "nobody")
        answers = [
            get(server, run.run_id, Last_Event_ID="yesterday"),
            get(server, f"{run.run_id}?last_event_id=%00%ff%0d%0a"),
            get(server, f"{run.run_id}?last_event_id=start"),
        ]
    assert (nobody.status_code, nobody.text) == (
        404,
        "There is no such run, or it ended long ago.\n",
    )
    for answer in answers:
        assert answer.status_code == 400
        assert "not an event's id" in answer.text
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["content-length"] == str(len(answer.content))


def test_a_head_request_keeps_no_reader(serving: Any) -> None:
    """HEAD is answered at once with the headers alone, also for a run that goes on, and leaves no reader."""
    run = open_run(new_id())
    # The client keeps its connection meanwhile.
    with serving(heartbeat=NEVER) as server, client() as one:
        answer = one.head(f"{server.url}/runs/{run.run_id}")
        assert (answer.status_code, answer.content) == (200, b"")
        assert STREAM.items() <= answer.headers.items()
        server.answer().freed()
        assert one.head(f"{server.url}/runs/nobody").status_code == 404
    run.complete()


def heartbeat(serving: Callable[..., Any]) -> float:
    """Return a heartbeat with which a server sees that a client has gone: WSGI does by sending, ASGI is told."""
    return 0.01 if serving is SERVERS["flask"] else NEVER


def test_a_client_that_goes_frees_its_reader(serving: Any) -> None:
    """When a client closes its connection in the middle of a quiet run, its reader is freed, before the run's end."""
    run = open_run(new_id())
    with serving(heartbeat=heartbeat(serving)) as server:
        with viewing(server, run) as events:
            next(events)
            say(run)
            next(events)
        given = server.answer()
        given.freed()
    run.complete()


def test_a_client_that_goes_before_the_first_byte_frees_its_reader(serving: Any) -> None:
    """A client that sends its request and is gone, as many do at once, leaves no reader."""
    run = open_run(new_id())
    with serving(after=None, heartbeat=heartbeat(serving)) as server:
        address = urlsplit(server.url)
        for _ in range(20):
            with socket.create_connection((address.hostname, address.port), DEADLINE) as one:
                one.sendall(
                    f"GET /runs/{run.run_id} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
                )
        for _ in range(20):
            server.answer().freed()
    run.complete()


def test_a_client_of_a_dropped_connection_comes_back(serving: Any) -> None:
    """A server that drops a connection frees its reader, and the client goes on with nothing lost, nothing twice."""
    run = open_run(new_id())
    events: list[Any] = []
    with serving(heartbeat=heartbeat(serving)) as server:
        for number in range(3):
            headers = {"Last-Event-ID": events[-1]["id"]} if events else {}
            with viewing(server, run, **headers) as source:
                say(run, str(number))
                while len(events) < number + 2:
                    events.append(next(source).json())
                given = server.answer()
                server.drop()
                with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError, StopIteration)):
                    next(source)
                given.freed()
        run.complete()
        events += events_of(get(server, run.run_id, Last_Event_ID=events[-1]["id"]).content)
        assert get(server, run.run_id, Last_Event_ID=events[-1]["id"]).status_code == 204
    assert numbers(events) == [1, 2, 3, 4, 5]
    assert text(events) == "012"


def test_a_client_that_does_not_read(serving: Any) -> None:
    """With `disconnect`, a client that stops reading is cut off without an error, and told all when it comes back."""
    run = open_run(new_id())
    with serving(overflow="disconnect", heartbeat=NEVER) as server:
        with viewing(server, run) as source:
            events = [next(source).json()]
            given = server.answer()
            # What it has not read is more than sockets, servers and the log hold.
            for _ in range(3):
                overrun_by_size(run)
            events += [event.json() for event in source]
            given.freed()
        assert "lifecycle.completed" not in kinds(events)
        assert len(events) < 60
        run.complete()
        events += events_of(get(server, run.run_id, Last_Event_ID=events[-1]["id"]).content)
    assert checked(events, after=0) > 0
    assert kind(events[-1]) == "lifecycle.completed"


@contextmanager
def not_reading(server: Server, run: Run) -> Iterator[socket.socket]:
    """Give a client that asks for a run and reads nothing."""
    address = urlsplit(server.url)
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        one.settimeout(DEADLINE)
        one.connect((address.hostname, address.port))
        one.sendall(f"GET /runs/{run.run_id} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        yield one


def rest(client: socket.socket) -> bytes:
    """Return all that the client still gets."""
    got = b""
    with suppress(ConnectionError):
        while part := client.recv(1 << 16):
            got += part
    return got


def test_a_client_that_never_reads_is_dropped(serving: Any) -> None:
    """A client whose socket takes nothing loses its reader after `send_timeout`; the run goes on."""
    run = open_run(new_id())
    with serving(heartbeat=NEVER, send_timeout=0.1) as server, not_reading(server, run) as client:
        given = server.answer()
        # What it has not read is more than sockets, servers and the log hold.
        for _ in range(3):
            overrun_by_size(run)
        given.freed()
        assert say(run)
        if server.connections is not None:
            # What the server has not sent goes with the connection, whatever the client does.
            end = time.monotonic() + DEADLINE
            while server.connections():
                assert time.monotonic() < end, "the connection was not closed"
                time.sleep(0.01)
        assert b"lifecycle" in rest(client)
    run.complete()


def test_a_client_that_reads_is_not_dropped(serving: Any) -> None:
    """A quiet run, however long it is silent, and a client that takes what comes are no reason to drop it."""
    run, other = open_run(new_id()), open_run(new_id())
    with serving(heartbeat=NEVER, send_timeout=0.1) as server, viewing(server, run) as events:
        next(events)
        given = server.answer()
        with not_reading(server, other):
            stuck = server.answer()
            for _ in range(3):
                overrun_by_size(other)
            # By now all were looked at.
            stuck.freed()
        assert given.stream() is not None
        run.complete()
        assert [kind(event.json()) for event in events] == ["lifecycle.completed"]
    other.complete()


def test_a_late_alarm_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is held up while it sets the alarm, until the alarm is due, leaves one that is still to come."""
    periods = [0.0]

    def late_once(period: float) -> CancelToken:
        return CancelToken(periods.pop() if periods else period)

    monkeypatch.setattr(_stuck, "CancelToken", late_once)
    monkeypatch.setattr(_stuck, "_alarm", None)
    body = SseBody()
    _stuck.watch(body)
    assert not periods
    assert _stuck._alarm is not None
    assert not _stuck._alarm.is_set()
    _stuck.forget(body)


def test_an_old_stream_ends_and_the_client_comes_back(serving: Any) -> None:
    """Over HTTP too a stream ends by its age, properly, and resuming it loses nothing."""
    run = open_run(new_id())
    say(run)
    with serving(heartbeat=0.01, max_age=0.2) as server:
        events = events_of(get(server, run.run_id).content)
        server.answer().freed()
        say(run)
        run.complete()
        events += events_of(get(server, run.run_id, Last_Event_ID=events[-1]["id"]).content)
    assert numbers(events) == [1, 2, 3, 4]


@pytest.fixture(params=["starlette", "fastapi"])
def serving_asgi(request: pytest.FixtureRequest) -> Any:
    """Serve runs with one of the frameworks on uvicorn."""
    return SERVERS[request.param]


def test_a_server_that_exits_ends_its_streams(serving_asgi: Any) -> None:
    """uvicorn, which waits for open streams, exits while clients follow quiet runs; their streams end properly."""
    run = open_run(new_id())
    with client() as one, ExitStack() as server_stack:
        server = server_stack.enter_context(serving_asgi(heartbeat=NEVER))
        url = f"{server.url}/runs/{run.run_id}"
        with httpx_sse.connect_sse(one, "GET", url) as first, viewing(server, run) as second:
            streams = [first.iter_sse(), second]
            for stream in streams:
                next(stream)
            given = [server.answer() for _ in streams]
            # Waits until the server is gone.
            server_stack.close()
            assert [list(stream) for stream in streams] == [[], []]
        for each in given:
            each.freed()
    assert run.state == "running"
    run.complete()


def test_a_server_that_exits_drops_a_client_that_does_not_read(serving_asgi: Any) -> None:
    """The exit of uvicorn comes also where a client takes nothing of what is being sent, long before `send_timeout`."""
    run = open_run(new_id())
    with ExitStack() as stack:
        server = stack.enter_context(serving_asgi(heartbeat=NEVER, send_timeout=NEVER))
        clients = ExitStack()
        with clients:
            clients.enter_context(not_reading(server, run))
            given = server.answer()
            for _ in range(3):
                overrun_by_size(run)
            stack.close()
            given.freed()
    run.complete()


def test_a_server_that_has_answered_enough_ends_its_streams() -> None:
    """Where uvicorn exits by itself, because of `limit_max_requests`, its streams end too."""
    run = open_run(new_id())

    async def events(request: Request) -> Any:
        return web.starlette_response(run, request, heartbeat=None)

    app = Starlette(routes=[Route("/", events), Route("/enough", events)])
    with (
        client() as one,
        on_uvicorn(app, limit_max_requests=1) as (url, *_),
        httpx_sse.connect_sse(one, "GET", url) as source,
    ):
        stream = source.iter_sse()
        next(stream)
        headers = {"Last-Event-ID": "no"}
        assert one.get(f"{url}/enough", headers=headers).status_code == 400
        assert list(stream) == []
    run.complete()


def test_many_clients_of_many_runs(serving: Any) -> None:
    """Each of many clients at once gets the events of its own run, all and in order, however the runs mix."""
    runs = [open_run(new_id()) for _ in range(4)]

    def view(server: Server, run: Run) -> list[Any]:
        with viewing(server, run) as source:
            return [event.json() for event in source]

    with serving() as server:
        viewers = [(run, Running(lambda run=run: view(server, run))) for run in runs * 4]
        for number in range(200):
            for run in runs:
                say(run, f"{run.run_id} {number} ")
        for run in runs:
            run.complete()
        for run, viewer in viewers:
            events = viewer.result()
            assert numbers(events) == list(range(1, 203))
            assert text(events) == "".join(f"{run.run_id} {number} " for number in range(200))
        for _ in viewers:
            server.answer().freed()


def test_a_response_that_is_never_sent_leaves_nothing() -> None:
    """A response that is made and thrown away leaves no reader, whoever made it."""
    run = open_run(new_id())
    scope = {"type": "http", "method": "GET", "headers": [], "query_string": b"", "path": "/"}
    streaming = web.starlette_response(run, Request(scope))
    assert isinstance(streaming, StreamingResponse)
    with BUILDING:
        app = flask.Flask("tests", root_path="/")
    with app.test_request_context("/"):
        plain = web.flask_response(run)
    with app.test_request_context("/?last_event_id=x") as context:
        request = context.request
    assert web.flask_response(run, request).status_code == 400
    body: Any = plain.response
    iterator: Any = streaming.body_iterator
    gone = [weakref.ref(body._stream), weakref.ref(iterator._stream)]
    del plain, streaming, body, iterator
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    run.complete()


def test_a_response_that_could_not_be_sent_leaves_nothing() -> None:
    """Where the server can send no more, the reader is freed although the response is kept."""
    run = open_run(new_id())
    # What a server says that raises where a client has gone: Starlette does not wait for its message then.
    scope = {"type": "http", "method": "GET", "headers": [], "query_string": b"", "path": "/"}
    response = web.starlette_response(run, Request(scope))
    body: Any = response.body_iterator
    gone = weakref.ref(body._stream)

    async def receive() -> Any:
        raise AssertionError("nobody asks")

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client has gone")

    with pytest.raises(ClientDisconnect):
        asyncio.run(response({**scope, "asgi": {"spec_version": "2.4"}}, receive, send))
    gc.collect()
    assert gone() is None
    assert list(body) == []
    run.complete()
