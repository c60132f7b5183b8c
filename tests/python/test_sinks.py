"""Sinks: Python functions and files that get every run's events, also when they fail, hang, or come and go."""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import llm_callback
from llm_callback import RunCancelled, add_sink, cancel_run, flush, open_run, stats
from readers import checked, kind, kinds, numbers, say
from scripts import COMMON, forks, lines, needs_fork, needs_signals, script
from support import DEADLINE, Running, events, interpreter, new_id, together, waited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from llm_callback import Run, SinkHandle

pytestmark = pytest.mark.thread_unsafe(reason="a sink gets the events of the whole process's runs")

TERMINAL = ("lifecycle.completed", "lifecycle.failed", "lifecycle.cancelled")


class Heard:
    """A sink that notes what it gets."""

    def __init__(self) -> None:
        self.lists: list[list[dict[str, Any]]] = []

    def __call__(self, events: list[dict[str, Any]]) -> None:
        self.lists.append(events)

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events so far."""
        return [event for events in self.lists for event in events]

    def of(self, run: Run) -> list[dict[str, Any]]:
        """All events of one run so far."""
        return [event for event in self.events if event["run_id"] == run.run_id]


class Gated(Heard):
    """A sink that waits in each call until its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.gate = threading.Event()

    def __call__(self, events: list[dict[str, Any]]) -> None:
        self.entered.set()
        waited(self.gate)
        super().__call__(events)


@pytest.fixture
def add() -> Iterator[Callable[..., SinkHandle]]:
    """Add sinks, with names of their own, that are closed after the test."""
    handles = []

    def added(function: Any, **options: Any) -> SinkHandle:
        if isinstance(function, Gated):
            gates.append(function.gate)
        handles.append(add_sink(function, **{"name": new_id("sink"), **options}))
        return handles[-1]

    gates: list[threading.Event] = []
    yield added
    for gate in gates:
        gate.set()
    for handle in handles:
        handle.close(DEADLINE)


def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


def ended(number: int) -> Run:
    """Return a run that has said so much and is completed."""
    with open_run() as run:
        for _ in range(number):
            say(run)
    return run


# --- What a sink gets ---


def test_a_sink_gets_each_event_once_and_in_order(add: Callable[..., SinkHandle]) -> None:
    """From many threads it gets what readers see, each run's in its order, in lists of one run's events."""
    heard = Heard()
    handle = add(heard)
    runs: list[Run] = []

    def speak() -> None:
        for _ in range(5):
            with open_run() as run:
                runs.append(run)
                for number in range(300):
                    say(run, str(number))

    together([speak] * 8)
    assert handle.flush(DEADLINE)
    assert all(heard.of(run) == events(run) for run in runs)
    for list_ in heard.lists:
        assert len({event["run_id"] for event in list_}) == 1
        assert 1 <= len(list_) <= 256
    assert handle.stats() == {
        "written": 8 * 5 * 302,
        "dropped": 0,
        "errors": 0,
        "last_error": None,
        "waiting": 0,
        "waiting_bytes": 0,
    }
    assert stats()["sinks"][handle.name] == handle.stats()


def test_a_sink_gets_the_runs_that_are_opened_while_it_is_there(
    add: Callable[..., SinkHandle],
) -> None:
    """A sink gets nothing of runs that were opened before it was added, or after it was closed."""
    heard = Heard()
    before = open_run()
    handle = add(heard)
    during = open_run()
    say(before)
    say(during)
    assert handle.close(DEADLINE)
    after = open_run()
    for run in (before, during, after):
        say(run)
        run.complete()
    assert (heard.of(before), heard.of(after)) == ([], [])
    assert heard.events == events(during)[:2]


def test_a_generation_is_told_from_the_one_before(add: Callable[..., SinkHandle]) -> None:
    """Runs of one id, one after the other, come as their readers see them."""
    heard = Heard()
    handle = add(heard)
    run_id, said = new_id(), []
    for _ in range(50):
        with open_run(run_id) as run:
            say(run)
        said += events(run)
    assert handle.flush(DEADLINE)
    assert sorted(heard.events, key=lambda event: event["id"]) == sorted(
        said, key=lambda event: event["id"]
    )
    assert handle.stats()["written"] == 150


def test_sinks_come_and_go_while_runs_speak(add: Callable[..., SinkHandle]) -> None:
    """A sink that is added or closed while runs open and speak gets of each run all that came before a moment."""
    stop = threading.Event()

    def speak() -> None:
        while not stop.is_set():
            with open_run() as run:
                for _ in range(10):
                    say(run)

    speaking = [Running(speak) for _ in range(3)]
    try:
        for _ in range(30):
            heard = Heard()
            handle = add(heard)
            until(lambda: heard.lists)  # noqa: B023 - called here
            assert handle.close(DEADLINE)
            told: dict[str, list[dict[str, Any]]] = {}
            for event in heard.events:
                told.setdefault(event["run_id"], []).append(event)
            for each in told.values():
                assert numbers(each) == list(range(1, len(each) + 1))
            counted = handle.stats()
            assert counted["written"] == len(heard.events)
            assert (counted["waiting"], counted["waiting_bytes"]) == (0, 0)
    finally:
        stop.set()
        for each in speaking:
            each.result()


def test_a_slow_sink_delays_nobody_and_is_told_what_it_missed(
    add: Callable[..., SinkHandle],
) -> None:
    """While a sink is in its call runs speak beyond what their logs hold and end; later the sink is told a gap."""
    slow = Gated()
    handle = add(slow)
    run = open_run()
    waited(slow.entered)
    for number in range(15_000):
        say(run, str(number))
    assert run.complete()
    assert stats()["sinks"][handle.name]["written"] == 0
    slow.gate.set()
    assert handle.flush(DEADLINE)
    told = slow.of(run)
    assert kinds(told[:3]) == ["lifecycle.started", "stream.gap", "llm.stream"]
    assert kind(told[-1]) == "lifecycle.completed"
    lost = checked(told, after=0)
    assert lost == told[1]["data"]["lost"] > 0
    counted = handle.stats()
    assert (counted["written"], counted["dropped"]) == (15_002 - lost, lost)


def test_what_is_held_for_a_sink_is_bounded_in_bytes(add: Callable[..., SinkHandle]) -> None:
    """Of ended runs that a hung sink has not taken so many bytes are held; of each it gets the lifecycle events."""
    hung = Gated()
    handle = add(hung, hold_bytes=50_000)
    first = open_run()
    waited(hung.entered)
    runs = []
    for number in range(40):
        runs.append(ended(50))
        counted = handle.stats()
        assert counted["waiting"] == number + 1
        # The lifecycle events of each run are held beyond the bound.
        assert counted["waiting_bytes"] <= 50_000 + 2_000 * counted["waiting"]
    first.complete()
    assert handle.stats()["dropped"] > 0
    hung.gate.set()
    assert handle.flush(DEADLINE)
    lost = 0
    for run in runs:
        told = hung.of(run)
        assert (kind(told[0]), kind(told[-1])) == ("lifecycle.started", "lifecycle.completed")
        lost += checked(told, after=0)
    counted = handle.stats()
    assert (counted["dropped"], counted["written"]) == (lost, 40 * 52 + 2 - lost)
    assert (counted["waiting"], counted["waiting_bytes"]) == (0, 0)


def test_what_is_held_for_a_sink_is_bounded_in_time(add: Callable[..., SinkHandle]) -> None:
    """An ended run's log is held for a hung sink so long, though nothing else happens; its lifecycle events stay."""
    hung = Gated()
    handle = add(hung, hold_seconds=0.01)
    other = open_run()
    waited(hung.entered)
    run = ended(50)
    until(lambda: handle.stats()["dropped"] == 50)
    hung.gate.set()
    assert handle.flush(DEADLINE)
    assert kinds(hung.of(run)) == ["lifecycle.started", "stream.gap", "lifecycle.completed"]
    assert hung.of(run)[1]["data"]["lost"] == 50
    other.complete()


@pytest.mark.parametrize("seconds", [None, float("inf"), 1e300, 10**400])
def test_what_is_held_may_have_no_bound_in_time(
    add: Callable[..., SinkHandle], seconds: Any
) -> None:
    """Without a limit, or with one that no clock holds, an ended run waits whole for its sink."""
    hung = Gated()
    handle = add(hung, hold_seconds=seconds)
    run = ended(5)
    hung.gate.set()
    assert handle.flush(DEADLINE)
    assert hung.of(run) == events(run)


# --- A sink that raises ---


class Textless(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise LookupError("no text")


@pytest.mark.parametrize(
    "error",
    [LookupError("x"), SystemExit(3), KeyboardInterrupt(), RunCancelled("x"), Textless()],
    ids=lambda error: type(error).__name__,
)
def test_a_sink_that_raises_gets_the_same_events_again(
    add: Callable[..., SinkHandle], caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """Each exception is counted, the logger `llm_callback` tells of the first of an outage, and nothing is lost."""
    calls: list[list[dict[str, Any]]] = []
    fails = iter([True, True, False, True, True, True, False])

    def sink(events: list[dict[str, Any]]) -> None:
        calls.append(events)
        if next(fails, False):
            raise error

    handle = add(sink, name="raises")
    run = open_run()
    assert handle.flush(DEADLINE)
    assert calls == [events(run)] * 3
    say(run)
    assert handle.flush(DEADLINE)
    assert calls[3:] == [events(run)[1:]] * 4
    counted = handle.stats()
    assert (counted["written"], counted["dropped"], counted["errors"]) == (2, 0, 5)
    assert counted["last_error"]
    records = [record for record in caplog.records if record.name == "llm_callback"]
    assert [record.levelno for record in records] == [logging.ERROR] * 2
    for record in records:
        assert "'raises'" in record.getMessage()
        assert type(error).__name__ in record.getMessage()
        assert record.exc_info is not None
        assert record.exc_info[1] is error
    run.complete()


def test_other_runs_go_on_while_one_is_refused(
    add: Callable[..., SinkHandle], caplog: pytest.LogCaptureFixture
) -> None:
    """A run whose events a sink refuses waits alone; a flush says that not everything is taken until it is."""
    heard, heals, others = Heard(), threading.Event(), threading.Event()
    bad = new_id()

    def sink(events: list[dict[str, Any]]) -> None:
        if events[0]["run_id"] == bad and not heals.is_set():
            raise LookupError("on purpose")
        heard(events)
        if events[-1]["data"] == {"is": "last"}:
            others.set()

    handle = add(sink)
    with open_run(bad) as refused:
        say(refused)
    until(lambda: handle.stats()["errors"])
    runs = [ended(3) for _ in range(20)]
    open_run().complete(**{"is": "last"})
    waited(others)
    assert all(heard.of(run) == events(run) for run in runs)
    assert heard.of(refused) == []
    assert not handle.flush(0.01)
    assert not flush(0.01)
    assert (handle.stats()["waiting"], handle.stats()["dropped"]) == (1, 0)
    heals.set()
    assert handle.flush(DEADLINE)
    assert heard.of(refused) == events(refused)
    assert caplog.records


# --- What is no sink ---


async def coroutine(events: list[Any]) -> None:
    """Do nothing."""


def generator(events: list[Any]) -> Any:  # noqa: ARG001 - a sink's signature
    """Yield nothing."""
    yield


async def asynchronous_generator(events: list[Any]) -> Any:  # noqa: ARG001 - a sink's signature
    """Yield nothing."""
    yield


class Asynchronous:
    """An object whose call is a coroutine, and a method that is one."""

    async def __call__(self, events: list[Any]) -> None: ...

    async def method(self, events: list[Any]) -> None: ...


def named(value: Any) -> str:
    """Return a name for a parameter that is the same in every process."""
    return value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (None, "function must be callable, not None"),
        (5, "function must be callable, not 5"),
        ("print", "function must be callable, not 'print'"),
        ([print], "function must be callable, not ["),
        (coroutine, "function must do its work when it is called"),
        (generator, "function must do its work when it is called"),
        (asynchronous_generator, "function must do its work when it is called"),
        (functools.partial(coroutine), "function must do its work when it is called"),
        (
            functools.partial(functools.partial(generator)),
            "function must do its work when it is called",
        ),
        (Asynchronous(), "function must do its work when it is called"),
        (Asynchronous().method, "function must do its work when it is called"),
    ],
    ids=named,
)
def test_what_is_no_sink_is_refused(function: Any, told: str) -> None:
    """What cannot be called, or does its work later, is a TypeError that says so, and no sink is added."""
    before = stats()["sinks"]
    with pytest.raises(TypeError) as caught:
        add_sink(function, name="no sink")
    assert told in str(caught.value)
    assert stats()["sinks"] == before


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "a\0b"}, ValueError),
        ({"name": 5}, TypeError),
        ({"name": b"name"}, TypeError),
        ({"hold_bytes": -1}, ValueError),
        ({"hold_bytes": 1.5}, TypeError),
        ({"hold_bytes": None}, TypeError),
        ({"hold_seconds": "1"}, TypeError),
        ({"hold_seconds": float("nan")}, ValueError),
        ({"unknown": 1}, TypeError),
    ],
    ids=named,
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], error: Any) -> None:
    """An option that cannot be raises, no sink is added, and the function is let go of."""
    before, heard = stats()["sinks"], Heard()
    with pytest.raises(error):
        add_sink(heard, **options)
    assert stats()["sinks"] == before
    reference = weakref.ref(heard)
    del heard
    gc.collect()
    assert reference() is None


def test_a_name_is_one_sinks(add: Callable[..., SinkHandle]) -> None:
    """A second sink of a name is a ValueError and gets nothing; when the first is closed the name is free."""
    first, second = Heard(), Heard()
    handle = add(first, name="one name")
    with pytest.raises(ValueError, match='a sink named "one name" is there already'):
        add_sink(second, name="one name")
    open_run().complete()
    assert handle.close(DEADLINE)
    assert (len(first.events), second.events) == (2, [])
    again = add(second, name="one name")
    open_run().complete()
    assert again.flush(DEADLINE)
    assert (len(first.events), len(second.events)) == (2, 2)


def test_a_sink_that_is_refused_is_let_go_of() -> None:
    """When a second sink of a name is refused its thread ends, and its function is free."""
    script(
        """
import weakref
def sink(events):
    pass
reference = weakref.ref(sink)
add_sink(print, name="one name")
try:
    add_sink(sink, name="one name")
except ValueError:
    del sink
until(lambda: reference() is None)
"""
    )


def test_a_sink_has_the_name_of_its_function() -> None:
    """Without a name it is the function's qualified name, or how an object shows itself."""
    with add_sink(Heard.__call__.__get__(Heard())) as handle:
        assert handle.name == "Heard.__call__"
    with add_sink(functools.partial(Heard())) as handle:
        assert "partial" in handle.name
        assert repr(handle) == f"<llm_callback.SinkHandle {handle.name}>"
        assert handle.name in stats()["sinks"]
    assert handle.name not in stats()["sinks"]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_sink_without_a_thread_is_an_error() -> None:
    """Where the system refuses a sink's thread it is an error, no sink is there, and runs work."""
    script(
        """
import resource
path = os.path.join(os.getcwd(), "never")
if os.getuid() == 0:
    # The limit is not root's.
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
try:
    add_sink(print)
except RuntimeError as error:
    assert "the sink's thread cannot be started" in str(error), error
else:
    raise AssertionError("it was added")
assert stats()["sinks"] == {}
open_run().complete()
assert m.flush()
"""
    )


# --- Flush ---


def test_a_flush_waits_for_what_was_emitted_before(add: Callable[..., SinkHandle]) -> None:
    """From whichever thread, a flush that returns True has had everything taken that the thread has said before."""
    heard = Heard()
    handle = add(heard)

    def speak() -> None:
        run = open_run()
        for number in range(1, 100):
            say(run)
            assert (handle.flush if number % 2 else flush)(DEADLINE)
            assert len(heard.of(run)) == number + 1
        run.complete()

    together([speak] * 4)


def test_a_flush_has_patience(add: Callable[..., SinkHandle]) -> None:
    """It returns False when its time is over, at once with none, and without a limit it waits."""
    slow, heard = Gated(), Heard()
    handle = add(slow)
    other = add(heard)
    run = open_run()
    waited(slow.entered)
    for timeout in (0, 0.0, -1, 0.01, -(10**400)):
        assert handle.flush(timeout) is False
        assert flush(timeout) is False
    assert other.flush(DEADLINE)
    assert heard.of(run) == events(run)
    waiting = [Running(functools.partial(each, None)) for each in (handle.flush, flush)]
    waiting += [Running(functools.partial(each, 1e300)) for each in (handle.flush, flush)]
    assert not any(each.is_done for each in waiting)
    slow.gate.set()
    assert [each.result() for each in waiting] == [True] * 4
    assert slow.of(run) == events(run)
    run.complete()


@pytest.mark.parametrize("wait", ["flush", "close"])
def test_patience_is_a_number_of_seconds(add: Callable[..., SinkHandle], wait: str) -> None:
    """A timeout that is no number raises, and the sink goes on."""
    heard = Heard()
    handle = add(heard)
    for waiting in (getattr(handle, wait), flush):
        with pytest.raises(TypeError, match="timeout must be a number of seconds, or None, not"):
            waiting("1")
        with pytest.raises(ValueError, match="timeout must be a number of seconds, or None, not"):
            waiting(float("nan"))
    run = open_run()
    assert handle.flush(DEADLINE)
    assert heard.of(run) == events(run)
    run.complete()


def test_a_flush_without_sinks_is_done_at_once() -> None:
    """It returns True, whatever runs say."""
    script("run = open_run()\nassert m.flush() and m.flush(0) and m.flush(None)\n")


# What a deadlock ends after, in a program: all stacks are printed.
WATCHED = "import faulthandler\nfaulthandler.dump_traceback_later(DEADLINE, exit=True)\n"


@pytest.mark.parametrize("thread", ["main", "other"])
def test_a_flush_of_a_closed_sink_returns(thread: str) -> None:
    """On each thread it returns False, also without a limit of its time, since nothing can come of it."""
    code = (
        WATCHED
        + """
handle = add_sink(lambda events: None)
assert handle.close()
def job():
    print(handle.flush(None), handle.flush(0), handle.flush(), m.flush(None))
"""
    )
    run = {"main": "job()", "other": "daemon(job).join(DEADLINE)"}[thread]
    assert script(code + run) == "False False False True\n"


@pytest.mark.parametrize("thread", ["main", "other"])
@pytest.mark.parametrize("how", ["handle.flush", "m.flush"])
def test_a_flush_is_not_put_off_by_what_comes_after(thread: str, how: str) -> None:
    """On each thread it returns True once what came before is taken, though runs go on speaking to a slow sink."""
    code = (
        WATCHED
        + f"""
before, is_taken = open_run("before"), threading.Event()
taken = []
def sink(events):
    time.sleep(0.1)
    taken.append(events[0]["run_id"])
handle = add_sink(sink)
run = open_run("run")
stop = threading.Event()
def speak():
    while not stop.is_set():
        run.emit("llm", "stream", {{}})
        time.sleep(0.001)
speaking = daemon(speak)
until(lambda: taken)
def job():
    with open_run("early"):
        pass
    # Ten times longer than the sink takes for all that was said before.
    assert {how}(20), taken
    assert "early" in taken
    print("flushed")
{"job()" if thread == "main" else "daemon(job).join(DEADLINE)"}
stop.set()
speaking.join(DEADLINE)
"""
    )
    assert script(code) == "flushed\n"


# --- Close ---


def test_a_sink_is_closed_once_by_whoever_comes(add: Callable[..., SinkHandle]) -> None:
    """Threads that close a sink at once, and again, all hear that it has taken everything; its counters stay."""
    heard = Heard()
    handle = add(heard)
    runs = [ended(20) for _ in range(20)]
    assert together([lambda: handle.close(DEADLINE)] * 8) == [True] * 8
    assert handle.close() is True
    assert handle.close(0) is True
    assert handle.close(None) is True
    assert all(heard.of(run) == events(run) for run in runs)
    assert handle.stats()["written"] == 20 * 22
    assert handle.name not in stats()["sinks"]
    assert handle.flush(0) is False


def test_a_close_without_patience_drops_what_is_left(add: Callable[..., SinkHandle]) -> None:
    """It returns False at once; what the sink has not taken counts as dropped, and nothing is held for it."""
    hung = Gated()
    handle = add(hung)
    live = open_run()
    waited(hung.entered)
    for _ in range(10):
        ended(20)
    assert handle.close(0) is False
    assert handle.close(0) is False
    assert handle.name not in stats()["sinks"]
    hung.gate.set()
    assert handle.close(DEADLINE) is False
    counted = handle.stats()
    assert counted["written"] == len(hung.events) == 1
    assert counted["dropped"] == 10 * 22
    assert (counted["waiting"], counted["waiting_bytes"]) == (0, 0)
    say(live)
    live.complete()
    assert len(hung.events) == 1


def test_a_close_without_a_limit_waits(add: Callable[..., SinkHandle]) -> None:
    """It returns True when a slow sink has taken everything."""
    slow = Gated()
    handle = add(slow)
    runs = [ended(300) for _ in range(3)]
    closing = [Running(lambda: handle.close(None)) for _ in range(3)]
    assert not any(each.is_done for each in closing)
    slow.gate.set()
    assert [each.result() for each in closing] == [True] * 3
    assert all(slow.of(run) == events(run) for run in runs)


def test_leaving_its_block_closes_a_sink() -> None:
    """Afterwards it has everything, and is there no more; an exception goes on."""
    heard = Heard()
    with add_sink(heard, name="block") as handle:
        runs = [ended(10) for _ in range(10)]
    assert all(heard.of(run) == events(run) for run in runs)
    assert "block" not in stats()["sinks"]
    with pytest.raises(LookupError), add_sink(heard, name="block"):
        raise LookupError
    assert "block" not in stats()["sinks"]
    assert handle.close() is True


def test_a_sink_stays_without_its_handle() -> None:
    """Nobody has to keep the handle."""
    script(
        """
heard = []
add_sink(heard.extend, name="sink")
gc.collect()
open_run("run").complete()
assert m.flush(DEADLINE)
assert [event["event"]["action"] for event in heard] == ["started", "completed"]
assert list(stats()["sinks"]) == ["sink"]
"""
    )


def test_a_function_is_let_go_of_when_its_sink_is_closed() -> None:
    """Neither the handle nor a thread keeps what was given, nor what it has heard."""
    heard = Heard()
    handle = add_sink(heard, name=new_id())
    reference = weakref.ref(heard)
    run = ended(5)
    assert handle.flush(DEADLINE)
    assert len(heard.of(run)) == 7
    del heard
    gc.collect()
    assert reference() is not None
    assert handle.close(DEADLINE)
    assert reference() is None
    assert handle.stats()["written"] == 7


def test_a_handle_that_is_dropped_holds_nobody_up() -> None:
    """Where a sink has closed itself, and its handle goes before it is done, the sink takes what is left."""
    out = script(
        """
# So that nobody else runs between two lines here.
sys.setswitchinterval(1_000)
taken, entered, gate = [], threading.Event(), threading.Event()
def sink(events):
    if not taken:
        entered.set()
        gate.wait(DEADLINE)
        gate.clear()
        closed.append(handles[0].close(DEADLINE))
        is_closed.set()
        gate.wait(DEADLINE)
    taken.extend(events)
is_closed, closed = threading.Event(), []
handles = [add_sink(sink)]
run = open_run("run")
assert entered.wait(DEADLINE)
for _ in range(9):
    run.emit("llm", "stream", {})
gate.set()
assert is_closed.wait(DEADLINE)
gate.set()
handles.clear()
until(lambda: len(taken) == 10)
print(closed, len(taken))
"""
    )
    assert out == "[False] 10\n"


# --- A sink that calls the library ---


def test_a_sink_that_waits_for_itself_is_not_waited_for(add: Callable[..., SinkHandle]) -> None:
    """Its own flush and close return False at once; then it takes what was said before, and is gone."""
    told: list[Any] = []
    called, heard = threading.Event(), Heard()

    def sink(events: list[dict[str, Any]]) -> None:
        if not called.is_set():
            told.extend([handle.flush(None), flush(None), handle.close(None), handle.flush(None)])
            called.set()
        heard(events)

    handle = add(sink)
    run = ended(10)
    waited(called)
    assert told == [False] * 4
    handle.close(DEADLINE)
    assert handle.name not in stats()["sinks"]
    told_of = heard.of(run)
    assert told_of == events(run)[: len(told_of)] != []


def test_a_sink_may_use_the_library(add: Callable[..., SinkHandle]) -> None:
    """It opens, speaks, cancels, reads, asks, and adds and closes other sinks, and gets the events of that too."""
    heard, other, run_id = Heard(), Heard(), new_id()
    stopped = open_run()
    inner: list[Run] = []

    def uses() -> None:
        with add_sink(other, name=new_id()), open_run(parent=run_id) as run:
            say(run, "inner")
        inner.append(run)
        outer = llm_callback.get_run(run_id)
        assert outer is not None
        if len(inner) == 1:
            say(outer, "more")
        assert outer.subscribe("start").read(10, 0)
        assert cancel_run(stopped.run_id, "by a sink") is (len(inner) == 1)
        assert len(stats()["sinks"]) == 1

    def sink(events: list[dict[str, Any]]) -> None:
        heard(events)
        for event in events:
            if event["run_id"] == run_id and kind(event) == "llm.stream":
                uses()

    handle = add(sink)
    outer = open_run(run_id)
    say(outer)
    until(lambda: len(inner) == 2)
    assert handle.flush(DEADLINE)
    assert stopped.token.reason == "by a sink"
    for run in inner:
        assert heard.of(run) == events(run) == other.of(run)
    assert heard.of(outer) == events(outer)
    assert handle.stats()["errors"] == 0
    for run in (outer, stopped):
        run.complete()


# --- Ctrl-C ---


@needs_signals
@pytest.mark.parametrize("waiting", ["handle.flush(None)", "m.flush(None)", "handle.close(None)"])
def test_ctrl_c_ends_a_wait_for_a_sink(waiting: str) -> None:
    """It raises KeyboardInterrupt though the sink hangs, and the sink goes on when it can."""
    out = script(
        WATCHED
        + f"""
gate, taken = threading.Event(), []
def sink(events):
    gate.wait()
    taken.extend(events)
handle = add_sink(sink)
run = open_run("run")
main = threading.get_ident()
def wait_here():
    {waiting}
def interrupt():
    until(lambda: "wait_here" in [
        frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._current_frames()[main])])
    # In the middle of the wait, not at its beginning.
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
thread = daemon(interrupt)
try:
    wait_here()
    raise AssertionError("it returned")
except KeyboardInterrupt:
    print("interrupted")
gate.set()
thread.join(DEADLINE)
until(lambda: taken)
"""
    )
    assert out == "interrupted\n"


# --- Fork ---


@needs_fork
def test_a_child_has_no_sink_of_its_parent(tmp_path: Path) -> None:
    """There the handle raises RuntimeError; the child's runs go to its own sinks, and not to its parent's."""
    path = tmp_path / "events.ndjson"
    out = forks(
        """
heard = []
def sink(events):
    heard.extend((event["run_id"], event["event"]["action"]) for event in events)
handle = add_sink(sink, name="sink")
of_file = log_to_file(path)
run = open_run("run")
assert m.flush(DEADLINE)

def child():
    for each in (handle, of_file):
        for use in (each.stats, each.flush, each.close, lambda: each.flush(0), lambda: each.close(0),
                    lambda: each.__exit__(None, None, None)):
            raises(RuntimeError, use)
        assert each.name in repr(each)
    assert stats()["sinks"] == {}
    assert m.flush() is True
    before = list(heard)
    works()
    assert heard == before
    with add_sink(sink, name="sink"), log_to_file(path + ".child"):
        open_run("child").complete()
    assert heard == [*before, ("child", "started"), ("child", "completed")], heard
    for name in ("handle", "of_file", "sink", "each"):
        globals().pop(name, None)
    each = use = None
    gc.collect()
    open_run("child").complete()

for _ in range(3):
    in_child(child)
run.complete()
assert handle.flush(DEADLINE)
print(heard)
""",
        path,
    )
    assert out == "[('run', 'started'), ('run', 'completed')]\n"
    assert {event["run_id"] for event in lines(path)} == {"run"}
    theirs = lines(path.with_name("events.ndjson.child"))
    assert [event["run_id"] for event in theirs] == ["child"] * 6


FORKING = """
works()
sys.setswitchinterval(1e-5)
log_to_file(path)
stop = threading.Event()
def forever(job):
    def run():
        while not stop.is_set():
            job()
    thread = threading.Thread(target=run)
    thread.start()
    return thread
def life():
    with open_run() as run:
        run.emit("llm", "stream", {})
def comes(number):
    with log_to_file(f"{path}.{number}"):
        life()
threads = [forever(life), forever(lambda: comes(1)), forever(lambda: m.flush(0.01)), forever(stats)]
def child():
    works()
    with log_to_file(path + ".child"), add_sink(lambda events: None):
        life()
    assert m.flush()
# As many forks as fit into some seconds, for a busy machine takes several times as long for each.
enough = time.monotonic() + 15
for number in range(FORKS):
    in_child(child)
    if number > 30 and time.monotonic() > enough:
        break
stop.set()
for thread in threads:
    thread.join(DEADLINE)
    assert not thread.is_alive()
assert m.flush(DEADLINE)
"""


def whole_runs(path: Path) -> None:
    """Check that each run in a file has its three events."""
    told: dict[str, list[int]] = {}
    for event in lines(path):
        told.setdefault(event["run_id"], []).append(event["sequence"])
    assert all(each == [1, 2, 3] for each in told.values())


@needs_fork
def test_a_fork_while_files_are_in_the_middle_of_everything(tmp_path: Path) -> None:
    """Whatever the threads of files do at the fork, the child works and ends, and the parent's files miss nothing."""
    path = tmp_path / "events.ndjson"
    forks("FORKS = 30\n" + FORKING, path)
    whole_runs(path)


@needs_fork
def test_a_fork_while_python_sinks_are_called(tmp_path: Path) -> None:
    """Whatever the threads of Python sinks do at the fork, the child works and ends, and the sinks miss nothing."""
    path = tmp_path / "events.ndjson"
    forks(
        "FORKS, heard = 200, []\nadd_sink(heard.extend)\n"
        + FORKING
        + """
told = {}
for event in heard:
    told.setdefault(event["run_id"], []).append((event["sequence"], event["event"]["action"]))
for each in told.values():
    assert [sequence for sequence, _ in each] == [*range(1, len(each) + 1)], each
    assert each[-1][1] in ("completed", "cancelled"), each
""",
        path,
    )
    whole_runs(path)


# --- Exit ---


def ends_of(printed: str) -> dict[str, list[str]]:
    """Return the lifecycle events of each run that a program has printed."""
    told: dict[str, list[str]] = {}
    for line in printed.splitlines():
        run_id, action = line.split()
        told.setdefault(run_id, []).append(action)
    return told


PRINTING = """
def sink(events):
    for event in events:
        if event["event"]["category"] == "lifecycle":
            os.write(1, f"{event['run_id']} {event['event']['action']}\\n".encode())
add_sink(sink)
"""


def test_at_the_exit_a_sink_gets_the_last_words_of_all_runs() -> None:
    """Open runs end as cancelled, ended ones as they did, and the Python sink has heard all of it."""
    out = script(
        PRINTING
        + """
for number in range(100):
    run = open_run(f"open-{number}")
    run.emit("llm", "stream", {})
    open_run(f"done-{number}").complete()
"""
    )
    assert ends_of(out) == {
        **{f"open-{number}": ["started", "cancelled"] for number in range(100)},
        **{f"done-{number}": ["started", "completed"] for number in range(100)},
    }


def test_at_the_exit_a_sink_gets_what_daemon_threads_say() -> None:
    """While daemon threads open, speak and end, every run that a Python sink has heard of has its end, once."""
    for _ in range(5):
        out = script(
            PRINTING
            + """
sys.setswitchinterval(1e-5)
shared, begun = open_run("shared"), threading.Event()
def forever():
    while True:
        try:
            with open_run() as run:
                shared.emit("llm", "stream", {})
                run.emit("llm", "stream", {})
        except (RuntimeError, RunCancelled):
            # The end of what the thread uses.
            pass
        begun.set()
for _ in range(3):
    daemon(forever)
assert begun.wait(DEADLINE)
"""
        )
        told = ends_of(out)
        assert told.pop("shared") == ["started", "cancelled"]
        assert told
        # The shutdown may cancel a run that is just being opened: such a run never starts.
        ends = (["started", "completed"], ["started", "cancelled"], ["cancelled"])
        for actions in told.values():
            assert actions in ends


@pytest.mark.parametrize(
    "hang",
    ["threading.Event().wait()", "time.sleep(3600)", "[None for _ in iter(int, 1)]", "raises()"],
)
def test_a_hung_sink_does_not_keep_a_program(hang: str, tmp_path: Path) -> None:
    """A program whose Python sink hangs, computes for ever or always raises ends with its own status and whole file."""
    path = tmp_path / "events.ndjson"
    done = interpreter(
        COMMON
        + f"""
import json
import logging
import os
logging.getLogger("llm_callback").addHandler(logging.NullHandler())
def raises():
    raise LookupError("on purpose")
entered = threading.Event()
def sink(events):
    entered.set()
    {hang}
add_sink(sink)
log_to_file(path)
run = open_run("run")
assert entered.wait(DEADLINE)
sys.exit(3)
""",
        env={"LOG": str(path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    assert [event["event"]["action"] for event in lines(path)] == ["started", "cancelled"]


# --- Files ---

linux = pytest.mark.skipif(sys.platform != "linux", reason="the devices and limits are Linux's")


def parsed(path: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the events in a file, and the lines that are none."""
    told, torn = [], []
    for line in path.read_bytes().splitlines():
        try:
            told.append(json.loads(line))
        except ValueError:  # noqa: PERF203 - each line may be torn
            torn.append(line)
    return told, torn


def of_each(told: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Return the sequence numbers of each run."""
    runs: dict[str, list[int]] = {}
    for event in told:
        runs.setdefault(event["run_id"], []).append(event["sequence"])
    return runs


@linux
@pytest.mark.parametrize("room", [0, 1, 100, 4_000, 10_000])
def test_a_full_disk_loses_nothing_that_is_held(room: int, tmp_path: Path) -> None:
    """A disk that is full is tried again and counted; when there is space each event is in the file, once, in order."""
    path = tmp_path / "events.ndjson"
    script(
        f"""
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
endless = resource.RLIM_INFINITY
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, endless))
handle = log_to_file(path)
runs = [open_run(f"run-{{number}}") for number in range(4)]
for run in runs:
    for number in range(100):
        assert run.emit("llm", "stream", {{"content": str(number)}})
runs[0].complete()
until(lambda: handle.stats()["errors"] >= 6)
now = handle.stats()
assert "File too large" in now["last_error"], now
assert now["dropped"] == 0 and now["waiting"] == 1, now
assert not handle.flush(0.01) and not m.flush(0.01)
assert os.path.getsize(path) == {room}
resource.setrlimit(resource.RLIMIT_FSIZE, (endless, endless))
runs[1].complete()
assert handle.flush(DEADLINE)
now = handle.stats()
assert (now["written"], now["dropped"], now["waiting"]) == (406, 0, 0), now
for run in runs[2:]:
    run.complete()
""",
        path,
    )
    told, torn = parsed(path)
    assert of_each(told) == {f"run-{number}": list(range(1, 103)) for number in range(4)}
    assert len([line for line in torn if line]) <= 1


@linux
def test_a_disk_that_stays_full_does_not_keep_a_program() -> None:
    """It is tried again and counted, with the system's words; at the exit the program ends with its own status."""
    done = interpreter(
        COMMON
        + """
handle = log_to_file("/dev/full", hold_bytes=20_000)
for _ in range(20):
    with open_run() as run:
        for _ in range(100):
            assert run.emit("llm", "stream", {"content": "x" * 100})
    now = handle.stats()
    assert now["waiting_bytes"] <= 20_000 + 2_000 * now["waiting"], now
until(lambda: handle.stats()["errors"] >= 3)
now = handle.stats()
assert "No space left on device" in now["last_error"], now
assert now["written"] == 0 and 0 < now["dropped"] <= 20 * 102, now
assert handle.flush(0) is False
open_run()
sys.exit(3)
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


@linux
def test_a_disk_that_hangs_costs_bounded_memory(tmp_path: Path) -> None:
    """While a pipe is not read so many bytes are held; then each run has its lifecycle, and what is missing is told."""
    path = tmp_path / "events.ndjson"
    os.mkfifo(path)
    out = script(
        """
handle = log_to_file(path, hold_bytes=100_000)
for number in range(60):
    with open_run(f"run-{number}") as run:
        for _ in range(100):
            run.emit("llm", "stream", {"content": "x" * 100})
    now = handle.stats()
    assert now["waiting_bytes"] <= 100_000 + 2_000 * now["waiting"]
hung = handle.stats()
assert hung["dropped"] > 0 and hung["waiting"] > 0, hung
assert not handle.flush(0)
read = []
def reads():
    ends = 0
    with open(path, "rb") as file:
        for line in file:
            read.append(json.loads(line))
            ends += read[-1]["event"]["action"] == "completed"
            if ends == 60:
                break
reading = daemon(reads)
reading.join(DEADLINE)
assert not reading.is_alive()
assert handle.flush(DEADLINE)
now = handle.stats()
assert (now["waiting"], now["waiting_bytes"], now["errors"]) == (0, 0, 0), now
assert now["written"] + now["dropped"] == 60 * 102, now
print(json.dumps([read, now]))
""",
        path,
    )
    read, counted = json.loads(out)
    runs: dict[str, list[dict[str, Any]]] = {}
    for event in read:
        runs.setdefault(event["run_id"], []).append(event)
    assert len(runs) == 60
    lost = 0
    for told in runs.values():
        assert (kind(told[0]), kind(told[-1])) == ("lifecycle.started", "lifecycle.completed")
        assert told[-1]["sequence"] == 102
        lost += checked(told, after=0)
    assert lost == counted["dropped"] > 0
    assert len([event for event in read if kind(event) != "stream.gap"]) == counted["written"]


@linux
def test_a_disk_that_hangs_does_not_keep_a_program(tmp_path: Path) -> None:
    """A program whose file is a pipe that nobody reads ends with its own status."""
    path = tmp_path / "events.ndjson"
    os.mkfifo(path)
    code = """
log_to_file(path)
for _ in range(10):
    with open_run() as run:
        for _ in range(100):
            run.emit("llm", "stream", {"content": "x" * 1_000})
sys.exit(3)
"""
    done = interpreter(COMMON + code, env={"LOG": str(path)})
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_a_rotation_that_fails_loses_nothing(tmp_path: Path) -> None:
    """Where the old file's name is taken by a folder the file goes on, the failure is counted, and later it rotates."""
    path = tmp_path / "events.ndjson"
    script(
        """
os.makedirs(path + ".1/in the way")
handle = log_to_file(path, max_bytes=5_000)
with open_run("run") as run:
    for _ in range(100):
        run.emit("llm", "stream", {})
assert handle.flush(DEADLINE)
now = handle.stats()
assert (now["written"], now["dropped"]) == (102, 0) and now["errors"] > 0, now
with open(path, encoding="utf-8") as file:
    assert [json.loads(line)["sequence"] for line in file] == list(range(1, 103))
os.rmdir(path + ".1/in the way")
os.rmdir(path + ".1")
with open_run("again") as run:
    for _ in range(100):
        run.emit("llm", "stream", {})
assert handle.flush(DEADLINE)
assert handle.stats()["written"] == 204
""",
        path,
    )
    old, _ = parsed(path.with_name("events.ndjson.1"))
    new, _ = parsed(path)
    assert old
    assert {event["run_id"] for event in new} == {"again"}
    assert numbers(new)[-1] == 102


@linux
def test_fsync_has_each_flush_wait_for_the_disk(tmp_path: Path) -> None:
    """A file has all of it; a pipe, which the system cannot sync, refuses each flush, which is counted."""
    path = tmp_path / "events.ndjson"
    os.mkfifo(tmp_path / "pipe")
    script(
        """
with log_to_file(path, fsync=True) as handle:
    open_run("run").complete()
    assert handle.flush(DEADLINE)
    assert os.path.getsize(path) > 0
    assert handle.stats()["errors"] == 0
pipe = os.path.join(os.path.dirname(path), "pipe")
with log_to_file(pipe) as handle:
    open_run("run").complete()
    assert handle.flush(DEADLINE)
    assert handle.stats()["errors"] == 0
with log_to_file(pipe, fsync=True) as handle:
    open_run("run").complete()
    assert handle.flush(DEADLINE) is False
    now = handle.stats()
    assert now["errors"] > 0 and "Invalid argument" in now["last_error"], now
    assert (now["written"], now["dropped"]) == (2, 0)
""",
        path,
    )
    assert of_each(lines(path)) == {"run": [1, 2]}


def test_a_file_is_closed_and_opened_again(tmp_path: Path) -> None:
    """When its sink is closed the file is whole, and another sink may append to it; no event is there twice."""
    path = tmp_path / "events.ndjson"
    script(
        """
for number in range(20):
    with log_to_file(path) as handle:
        assert handle.name == path
        with open_run(f"run-{number}") as run:
            for _ in range(20):
                run.emit("llm", "stream", {})
    assert handle.close() is True
    with open(path, encoding="utf-8") as file:
        assert len(file.readlines()) == (number + 1) * 22
assert stats()["sinks"] == {}
open_run("nobody's").complete()
""",
        path,
    )
    assert of_each(lines(path)) == {f"run-{number}": list(range(1, 23)) for number in range(20)}


def test_processes_that_write_to_one_file_tear_no_line(tmp_path: Path) -> None:
    """Several processes append long and short lines to one file at once: each line is whole, each event is there."""
    path = tmp_path / "events.ndjson"
    code = """
log_to_file(path)
def speak(thread):
    for number in range(3):
        with open_run(f"{os.getpid()}-{thread}-{number}") as run:
            for place in range(40):
                run.emit("llm", "stream", {"content": "x" * (place * 2_000)})
threads = [daemon(lambda thread=thread: speak(thread)) for thread in range(3)]
for thread in threads:
    thread.join(DEADLINE)
"""
    together([lambda: script(code, path)] * 3)
    # One that opens the file in the middle of another's write takes the line for torn, and ends it.
    told = of_each([json.loads(line) for line in path.read_bytes().split(b"\n") if line])
    assert len(told) == 27
    assert all(each == list(range(1, 43)) for each in told.values())


def test_options_of_a_file_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """They raise, no sink is there, and no file either."""
    before = stats()["sinks"]
    for options, error in (
        ({"hold_bytes": -1}, ValueError),
        ({"hold_bytes": "1"}, TypeError),
        ({"hold_seconds": "1"}, TypeError),
        ({"hold_seconds": float("nan")}, ValueError),
        ({"fsync": 1}, TypeError),
        ({"name": "mine"}, TypeError),
    ):
        with pytest.raises(error):
            llm_callback.log_to_file(tmp_path / "events", **options)  # type: ignore[arg-type]
    assert stats()["sinks"] == before
    assert list(tmp_path.iterdir()) == []
