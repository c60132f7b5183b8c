"""Runs: how they are opened and found, what they say, how they are cancelled, and their one end."""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import enum
import errno
import itertools
import json
import math
import pickle
import re
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import llm_callback
from llm_callback import (
    AgentType,
    CallerContext,
    CancelToken,
    EventAction,
    EventCategory,
    Run,
    RunCancelled,
    active_runs,
    cancel_run,
    get_current_run_id,
    get_event_callback,
    get_run,
    open_run,
    register_event_callback,
    stats,
)
from support import (
    DEADLINE,
    events,
    in_thread,
    new_id,
    printed,
    raised_by,
    said,
    together,
    worker,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TERMINAL = {"lifecycle.completed", "lifecycle.failed", "lifecycle.cancelled"}
THREADS = 8


class Broken(Exception):
    """An exception that cannot be spelt."""

    def __str__(self) -> str:
        raise ValueError("no text")


def end_of(run: Run) -> tuple[str, Any]:
    """Return the one terminal event of ``run``, which must be its last."""
    told = said(run)
    assert [what for what, _ in told if what in TERMINAL] == [told[-1][0]]
    assert run.state == told[-1][0].partition(".")[2]
    return told[-1]


def leave(run: Run, error: BaseException | None = None) -> BaseException | None:
    """Leave the block of ``run``, with ``error`` if there is one; return what came out of it."""

    def block() -> None:
        with run:
            if error is not None:
                raise error

    return raised_by(block)


# --- Ids, opening, finding ---


class Number(enum.IntEnum):
    """An int of a class of its own."""

    SEVEN = 2**60 + 7


class Name(str):
    """A str of a class of its own."""

    __slots__ = ()


def a_text_of_its_own_class() -> tuple[Name, str]:
    """Return an object of a subclass of str, and its text."""
    text = new_id()
    return Name(text), text


def a_uuid_and_its_text() -> tuple[uuid.UUID, str]:
    """Return a UUID and its canonical text."""
    made = uuid.uuid4()
    return made, str(made)


def twice(value: Any) -> tuple[Any, Any]:
    """Return an id that is taken as it is."""
    return value, value


def new_number() -> int:
    """Return an int that is no other run's id."""
    return uuid.uuid4().int >> 68


GOOD_IDS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "int": lambda: twice(new_number()),
    "negative": lambda: twice(-new_number()),
    "str": lambda: twice(new_id()),
    "odd text": lambda: twice(new_id("a\n\u2028\0 \U0001f600")),
    "long text": lambda: twice(new_id("x" * 100_000)),
    "str subclass": a_text_of_its_own_class,
    "UUID": a_uuid_and_its_text,
}


@pytest.mark.parametrize("make", GOOD_IDS.values(), ids=GOOD_IDS.keys())
def test_a_run_has_the_id_that_it_was_opened_with(make: Callable[[], tuple[Any, Any]]) -> None:
    """An int or str id is the run's as it is, a UUID as its canonical text; the run is found under it."""
    given, expected = make()
    with open_run(given) as run:
        assert (type(run.run_id), run.run_id) == (type(expected), expected)
        assert get_run(given) == get_run(expected) == run
        assert run in active_runs()
        assert {event["run_id"] for event in events(run)} == {expected}
    assert get_run(given) == run
    assert run not in active_runs()


def test_an_id_that_is_left_out_is_minted() -> None:
    """Runs without an id get the canonical text of a new UUID each."""
    with open_run() as one, open_run(None) as other:
        assert one.run_id != other.run_id
        for run in (one, other):
            assert str(uuid.UUID(run.run_id)) == run.run_id


def test_a_text_and_a_number_that_look_alike_are_two_runs() -> None:
    """The runs 7 and "7" are different ones."""
    number = new_number()
    with open_run(number) as one, open_run(str(number)) as other:
        assert one != other
        one.emit("llm", "stream", {"content": "number"})
        assert len(events(other)) == 1


BAD_IDS = {
    "float": (1.5, TypeError),
    "whole float": (1.0, TypeError),
    "nan": (math.nan, TypeError),
    "bytes": (b"run", TypeError),
    "list": (["run"], TypeError),
    "tuple": (("run", 1), TypeError),
    "object": (object(), TypeError),
    "huge int": (2**61, ValueError),
    "unspeakable int": (10**5_000, ValueError),
    "bool": (True, TypeError),
    "lone surrogate": ("run\ud800", ValueError),
}


@pytest.mark.thread_unsafe(reason="stats() is the whole process's")
@pytest.mark.parametrize(("bad", "error"), BAD_IDS.values(), ids=BAD_IDS.keys())
@pytest.mark.parametrize(
    "function",
    [open_run, get_run, cancel_run, lambda bad: open_run(parent=bad)],
    ids=["open_run", "get_run", "cancel_run", "parent"],
)
def test_what_is_no_run_id_is_refused(function: Any, bad: Any, error: Any) -> None:
    """Anything but an int that fits, a str that UTF-8 can hold, and a UUID raises and changes nothing."""
    before = stats()
    with pytest.raises(error):
        function(bad)
    assert stats() == before


def test_none_is_no_run_id_to_find_or_to_cancel() -> None:
    """Only open_run takes None; to look for it is an error, and not any run."""
    with pytest.raises(TypeError):
        get_run(None)
    with pytest.raises(TypeError):
        cancel_run(None)


def test_unknown_ids_have_no_run() -> None:
    """An id that nobody opened is no run: nothing is found, nothing is cancelled, nobody can be below it."""
    unknown = new_id()
    assert get_run(unknown) is None
    assert cancel_run(unknown) is False
    with pytest.raises(RuntimeError, match=unknown):
        open_run(parent=unknown)


@pytest.mark.thread_unsafe(reason="stats() is the whole process's")
def test_a_live_id_cannot_be_opened_again() -> None:
    """Opening a live id is an error that changes nothing; the live run goes on."""
    with open_run(new_id()) as run:
        before = stats()
        with pytest.raises(RuntimeError, match="live"):
            open_run(run.run_id)
        assert stats() == before
        assert get_run(run.run_id) == run
        assert run.emit("llm", "stream", {}) is not None


def test_one_of_many_threads_opens_an_id() -> None:
    """Of many threads that open one id at once, one gets the run and the others the error."""
    run_id = new_id()

    def attempt() -> Run | None:
        try:
            return open_run(run_id)
        except RuntimeError:
            return None

    for generation in range(1, 21):
        won = [run for run in together([attempt] * THREADS) if run is not None]
        assert [run.generation for run in won] == [generation]
        assert won[0].complete()


@pytest.mark.thread_unsafe(reason="stats() is the whole process's")
def test_a_finished_id_starts_a_new_generation() -> None:
    """Handles of the old run are refused and counted as late; the new log has none of it, and its ids go on growing."""
    run_id = new_id()
    old = open_run(run_id)
    handler = old.handler(worker())
    assert old.complete()
    with open_run(run_id) as new:
        assert (old.generation, new.generation) == (1, 2)
        assert old != new
        assert get_run(run_id) == new
        late = stats()["runs"]["late"]
        assert old.emit("llm", "stream", {"content": "old"}) is None
        handler(data="old", reasoningText="old")
        assert stats()["runs"]["late"] == late + 3
        assert not old.cancel("old")
        assert not old.complete()
        assert new.state == "running"
        assert not new.token.is_set()
        assert [what for what, _ in said(new)] == ["lifecycle.started"]
        first, last = (tuple(map(int, run.last_event_id.split("-"))) for run in (new, old))
        assert first[0] > last[0]


@pytest.mark.parametrize("use", ["cancel_run", "parent"])
def test_an_old_run_does_not_stand_for_the_new_one(use: str) -> None:
    """cancel_run and parent= mean the run that they are given, and not another one of its id."""
    old = open_run(new_id())
    old.complete()
    with open_run(old.run_id) as new:
        if use == "cancel_run":
            assert cancel_run(old) is False
        else:
            with pytest.raises(RuntimeError):
                open_run(parent=old)
        assert not new.token.is_set()


def test_two_objects_of_one_run_are_equal() -> None:
    """Runs compare and hash by identity of the run, not of the object; a repr names id, generation and state."""
    with open_run(new_id()) as run, open_run() as other:
        found = get_run(run.run_id)
        assert found is not run
        assert found == run
        assert hash(found) == hash(run)
        assert len({run, found, other}) == 2
        assert run != other
        assert run != run.run_id
        assert repr(run) == f"<llm_callback.Run {run.run_id!r} generation 1 running>"
    assert repr(run).endswith("completed>")


def test_a_run_is_neither_copied_nor_pickled() -> None:
    """A run is one thing of one process."""
    with open_run() as run:
        for use in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                use(run)
        with pytest.raises(TypeError):
            Run()


def test_the_id_is_no_keyword() -> None:
    """open_run(run_id=…) does not quietly open another run."""
    with pytest.raises(TypeError):
        open_run(run_id=new_id()).complete()


@pytest.mark.thread_unsafe(reason="stats() is the whole process's")
def test_stats_return_to_where_they_were() -> None:
    """After runs have ended in all ways, none is live."""
    before = stats()["runs"]
    parent = open_run()
    runs = [open_run(parent=parent, pending=number % 2 == 0) for number in range(10)]
    assert stats()["runs"]["live"] == before["live"] + 11
    for run, end in zip(runs, itertools.cycle(["complete", "cancel", "with"]), strict=False):
        if end == "complete":
            run.complete()
        elif end == "cancel":
            run.cancel()
            run.complete()
        else:
            leave(run, OSError())
    parent.complete()
    after = stats()["runs"]
    assert after["live"] == before["live"]
    assert after["opened"] == before["opened"] + 11


# --- The block ---


def test_leaving_a_block_completes_the_run() -> None:
    """A block that is left without a word ends the run well."""
    with open_run(task="t", answer=42) as run:
        assert run.state == "running"
        assert run.finished_at is None
    assert said(run) == [
        ("lifecycle.started", {"task": "t", "answer": 42}),
        ("lifecycle.completed", {}),
    ]
    assert end_of(run) == ("lifecycle.completed", {})
    assert run.finished_at is not None


def test_a_run_that_ended_in_its_block_stays_as_it_ended() -> None:
    """What the block said about the end is the end, whatever leaves it."""
    with open_run() as run:
        assert run.complete(result=1)
    assert end_of(run) == ("lifecycle.completed", {"result": 1})


@pytest.mark.parametrize("end", ["complete", "fail", "raise"])
def test_a_run_that_has_ended_is_not_entered(end: str) -> None:
    """The block of a run that has come to its end before raises RuntimeError."""
    run = open_run()
    ENDS[end](run)
    before = said(run)
    with pytest.raises(RuntimeError, match="has ended"), run:
        pytest.fail("entered")
    assert said(run) == before


def test_an_exception_after_the_end_goes_on() -> None:
    """What leaves a block whose run has ended changes nothing, and goes on."""
    run = open_run()
    error = OSError("late")

    def block() -> None:
        with run:
            run.complete(result=2)
            raise error

    assert raised_by(block) is error
    assert end_of(run) == ("lifecycle.completed", {"result": 2})


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such thing"), "no such thing"),
        (ValueError(), "ValueError"),
        (ValueError("a\ud800b"), "a\ud800b"),
        (Broken(), "Broken"),
        (LookupError("x" * 100_000), "x" * 100_000),
        (AssertionError(["not", "text"]), "['not', 'text']"),
    ],
    ids=["text", "empty", "surrogate", "unspeakable", "long", "list"],
)
def test_an_exception_fails_the_run(error: BaseException, text: str) -> None:
    """It goes on, and the last event has its text and its traceback."""
    run = open_run()
    assert leave(run, error) is error
    what, data = end_of(run)
    assert what == "lifecycle.failed"
    assert set(data) == {"error", "details"}
    assert data["error"] == text
    assert type(error).__name__ in data["details"]
    assert data["details"].startswith("Traceback")
    assert "in block" in data["details"]


class Gone(asyncio.CancelledError):
    """A task's cancellation of a class of its own."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (asyncio.CancelledError(), "user"),
        (Gone(), "user"),
        (KeyboardInterrupt(), "user"),
        (GeneratorExit(), "disconnect"),
        (SystemExit(3), "shutdown"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_what_ends_the_work_from_outside_cancels_the_run(error: BaseException, kind: str) -> None:
    """It goes on, and the run and what is below it are cancelled for that reason."""
    run = open_run()
    below = run.token.child()
    assert leave(run, error) is error
    what, data = end_of(run)
    assert what == "lifecycle.cancelled"
    assert data["kind"] == kind
    assert data["reason"]
    assert (run.token.kind, run.token.reason) == (kind, data["reason"])
    assert below.is_set()


def test_the_cancellation_of_this_run_cancels_it() -> None:
    """RunCancelled with this run's id ends it as cancelled."""
    run = open_run()
    error = RunCancelled(run.run_id)
    assert leave(run, error) is error
    assert end_of(run)[0] == "lifecycle.cancelled"
    assert run.token.is_set()


@pytest.mark.parametrize("run_id", [None, "another", 5])
def test_the_cancellation_of_another_run_is_a_failure(run_id: Any) -> None:
    """RunCancelled of another run, or of none, that escapes a block fails this one."""
    run = open_run()
    leave(run, RunCancelled(run_id))
    assert end_of(run) == (
        "lifecycle.failed",
        {"error": "Run was cancelled", "details": end_of(run)[1]["details"]},
    )
    assert not run.token.is_set()


def test_any_exception_out_of_a_cancelled_run_is_its_cancellation() -> None:
    """A run that was asked to stop ends as cancelled, for the first reason, whatever its block raises."""
    for error in (ValueError(), KeyboardInterrupt(), RunCancelled("other"), Broken()):
        run = open_run()
        run.cancel("enough", kind="disconnect")
        assert leave(run, error) is error
        assert end_of(run)[1] == {"kind": "disconnect", "reason": "enough"}


class Bare(RunCancelled):
    """A RunCancelled that has no run id."""

    def __init__(self) -> None:
        InterruptedError.__init__(self, "bare")


class Incomparable:
    """What cannot be compared."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        raise ValueError("compared")


@pytest.mark.parametrize("error", [Bare(), RunCancelled(Incomparable())], ids=["bare", "odd"])
def test_no_exception_leaves_a_run_open(error: BaseException) -> None:
    """Whatever the exception is like, it goes on and its run has an end."""
    run = open_run()
    assert leave(run, error) is error
    assert end_of(run)[0] in TERMINAL


def test_a_block_in_a_generator_ends_with_the_generator() -> None:
    """A generator that is closed in its block cancels its run, as disconnected."""

    def tokens(run: Run) -> Any:
        with run:
            yield "token"

    run = open_run()
    generator = tokens(run)
    assert next(generator) == "token"
    generator.close()
    assert end_of(run)[1]["kind"] == "disconnect"


def test_a_block_in_a_cancelled_task_ends_with_it() -> None:
    """A task that is cancelled in its block cancels its run, and is cancelled itself."""
    run = open_run()

    async def work(inside: asyncio.Event) -> None:
        with run:
            inside.set()
            await asyncio.Event().wait()

    async def main() -> bool:
        inside = asyncio.Event()
        task = asyncio.create_task(work(inside))
        await inside.wait()
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(main())
    assert end_of(run)[0] == "lifecycle.cancelled"


# --- Ends ---

ENDS: dict[str, Callable[[Run], Any]] = {
    "complete": lambda run: run.complete(result="kept"),
    "fail": lambda run: run.fail("broken", "why", code=7),
    "cancel": lambda run: run.cancel("enough"),
    "leave": leave,
    "raise": lambda run: leave(run, OSError("raised")),
    "emit": lambda run: run.emit("lifecycle", "failed", {"by": "hand"}),
}


@pytest.mark.parametrize("order", list(itertools.permutations(ENDS, 3)), ids="-".join)
def test_the_first_end_is_the_end(order: tuple[str, ...]) -> None:
    """In whichever order it is ended, a run has one terminal event: the first, as cancelled if a cancel came before."""
    run = open_run()
    for end in order:
        ENDS[end](run)
    first = next(end for end in order if end != "cancel")
    expected = {
        "complete": "lifecycle.completed",
        "leave": "lifecycle.completed",
        "fail": "lifecycle.failed",
        "raise": "lifecycle.failed",
        "emit": "lifecycle.failed",
    }[first]
    if order[0] == "cancel" and first != "emit":
        expected = "lifecycle.cancelled"
    what, data = end_of(run)
    assert what == expected
    if expected == "lifecycle.cancelled":
        assert (data["kind"], data["reason"]) == ("user", "enough")
    if first == "complete":
        assert data["result"] == "kept"
    if first == "fail":
        assert (data["error"], data["details"], data["code"]) == ("broken", "why", 7)


def test_methods_that_end_say_whether_they_did() -> None:
    """complete, fail and cancel return True once."""
    run = open_run()
    assert run.cancel() is True
    assert run.cancel("again") is False
    assert run.complete() is True
    assert run.complete() is False
    assert run.fail("x") is False
    assert run.cancel() is False
    run = open_run()
    assert run.fail(OSError("text"), None) is True
    assert run.complete() is False
    assert cancel_run(run.run_id) is False
    assert not run.token.is_set()


def test_complete_keeps_the_result_of_a_cancelled_run() -> None:
    """What came out of a run that was asked to stop stands beside the reason, which it cannot replace."""
    run = open_run()
    run.cancel("enough", kind="shutdown")
    assert run.complete(result=[1], kind="mine", reason="mine")
    what, data = end_of(run)
    assert what == "lifecycle.cancelled"
    assert data == {"result": [1], "kind": "shutdown", "reason": "enough"}


def leave_with(run: Run, error: BaseException | None) -> None:
    """Leave the run's block, by an exception if there is one."""
    with suppress(LookupError, KeyboardInterrupt), run:
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda run: run.complete(kind="mine"), {"kind": "mine", "error": None}),
        (lambda run: run.fail("broken"), {"error": "broken", "details": "", "kind": 0}),
        (
            lambda run: run.cancel("enough") and run.complete(),
            {"error": None, "kind": "user", "reason": "enough"},
        ),
        (lambda run: leave_with(run, None), {"error": None, "kind": 0}),
        (
            lambda run: leave_with(run, KeyboardInterrupt()),
            {"error": None, "kind": "user", "reason": "interrupted from the keyboard"},
        ),
    ],
    ids=["complete", "fail", "cancel", "leave", "interrupt"],
)
def test_annotations_are_in_the_last_event(
    end: Callable[[Run], object], expected: dict[str, Any]
) -> None:
    """However the run ends, its last event has them beside what comes with the end, which they cannot replace."""
    run = open_run()
    assert run.annotate(used=1, error=None)
    assert run.annotate(used={"tokens": 7}, kind=0)
    assert run.annotate()
    end(run)
    assert not run.annotate(late=True)
    assert end_of(run)[1] == {"used": {"tokens": 7}, **expected}


def test_an_exception_leaves_the_annotations() -> None:
    """A run that fails by an exception tells both."""
    run = open_run()
    run.annotate(used=1)
    leave_with(run, LookupError("gone"))
    data = end_of(run)[1]
    assert (data["used"], data["error"]) == (1, "gone")


def test_annotations_that_cannot_be_written_change_nothing() -> None:
    """They raise ValueError, and those from before stay."""
    run = open_run()
    run.annotate(used="a\ud800")
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested"):
        run.annotate(used=loop)
    run.complete()
    assert end_of(run)[1] == {"used": "a\ud800"}


def test_fail_takes_an_exception_or_a_text() -> None:
    """An exception gives its text and its class, a text itself; more data stand beside."""
    run = open_run()
    assert run.fail(KeyError("key"), more=1)
    assert end_of(run) == ("lifecycle.failed", {"error": "'key'", "details": "KeyError", "more": 1})
    run = open_run()
    assert run.fail("a\ud800", "b")
    assert end_of(run) == ("lifecycle.failed", {"error": "a\ud800", "details": "b"})


def test_fail_copes_with_an_exception_without_a_text() -> None:
    """An exception whose text cannot be had ends the run as any other."""
    run = open_run()
    assert run.fail(Broken())
    assert end_of(run)[1]["error"] == "Broken"


def test_data_that_cannot_be_written_do_not_end_a_run() -> None:
    """Both complete and fail raise ValueError for data that contain themselves; the run goes on and can end."""
    run = open_run()
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested"):
        run.complete(result=loop)
    with pytest.raises(ValueError, match="nested"):
        run.fail("x", result=loop)
    assert run.state == "running"
    assert run.complete()


@pytest.mark.thread_unsafe(reason="stats() is the whole process's")
def test_data_that_cannot_be_written_open_no_run() -> None:
    """open_run raises ValueError for data that contain themselves, and the id is free."""
    run_id = new_id()
    loop: dict[str, Any] = {}
    loop["again"] = loop
    before = stats()
    with pytest.raises(ValueError, match="nested"):
        open_run(run_id, loop=loop)
    assert stats() == before
    assert get_run(run_id) is None
    open_run(run_id).complete()


@pytest.mark.parametrize("emitting", [0, 4])
def test_many_threads_end_a_run_once(emitting: int) -> None:
    """Of many threads that end a run in all ways at once, while others emit, one does; its event is the last."""
    for _ in range(50):
        run = open_run()
        handler = run.handler(worker())

        def speak(run: Run = run, handler: Any = handler) -> list[bool]:
            for _ in range(1_000):
                if run.emit("llm", "stream", {"content": "x"}) is None:
                    break
                raised_by(partial(handler, data="y"))
            return []

        enders = [lambda end=end, run=run: [ENDS[end](run) is True] for end in ("complete", "fail")]
        enders += [lambda run=run: [leave(run) is None and False]]
        enders += [lambda run=run: [run.cancel("enough") and False]]
        outcomes = together([*enders, *enders, *[speak] * emitting])
        assert sum(itertools.chain(*outcomes)) <= 1
        end_of(run)
        sequences = [event["sequence"] for event in events(run)]
        assert sequences == list(range(1, len(sequences) + 1))
        assert run.wait(0)


def test_wait_says_whether_the_end_is_there() -> None:
    """It returns False when the time is over, True at the end, from any thread."""
    run = open_run()
    assert run.wait(0) is False
    assert run.wait(0.01) is False
    assert run.wait(-1) is False
    with pytest.raises((TypeError, ValueError)):
        run.wait(math.nan)
    with pytest.raises(TypeError):
        run.wait("long")
    outcomes = together([*[partial(run.wait, DEADLINE)] * 4, run.wait, run.complete])
    assert outcomes == [True] * 6


# --- Cancelling ---


def test_cancel_reaches_what_is_below_and_nothing_else() -> None:
    """A cancel reaches children and their children, not the parent nor a neighbour; each knows where it is from."""
    with open_run() as parent, open_run() as stranger:
        child, neighbour = open_run(parent=parent), open_run(parent=parent.run_id)
        grandchild = open_run(parent=child)
        assert child.parent_run_id == neighbour.parent_run_id == parent.run_id
        assert parent.parent_run_id is None
        assert cancel_run(child.run_id, "enough") is True
        assert cancel_run(child.run_id, "again") is False
        assert [run.token.is_set() for run in (child, grandchild)] == [True, True]
        assert not any(run.token.is_set() for run in (parent, neighbour, stranger))
        assert (child.token.kind, child.token.reason) == ("user", "enough")
        assert grandchild.token.kind == "parent"
        for run in (child, grandchild, neighbour):
            run.complete()
        assert end_of(neighbour) == ("lifecycle.completed", {"parent_run_id": parent.run_id})
        for run in (child, grandchild):
            what, data = end_of(run)
            assert what == "lifecycle.cancelled"
            assert data["parent_run_id"] == run.parent_run_id
            assert events(run)[0]["data"]["parent_run_id"] == run.parent_run_id


def test_the_end_of_a_child_is_its_own() -> None:
    """A child's end ends neither its parent nor its parent's other children."""
    parent = open_run()
    child, other = open_run(parent=parent), open_run(parent=parent)
    leave(child, OSError())
    assert (parent.state, other.state) == ("running", "running")
    assert not other.token.is_set()
    other.complete()
    parent.complete()
    assert (parent.state, other.state) == ("completed", "completed")


def test_nothing_opens_under_a_cancelled_parent() -> None:
    """Opening a child of a cancelled run raises its RunCancelled, and the id is free."""
    with open_run() as parent:
        parent.cancel("enough", kind="disconnect")
        run_id = new_id()
        for more in ({}, {"pending": True}, {"deadline": 0}, {"deadline": 100}):
            with pytest.raises(RunCancelled) as caught:
                open_run(run_id, parent=parent, **more)
            told = caught.value
            assert (told.run_id, told.kind, told.reason) == (parent.run_id, "disconnect", "enough")
        assert get_run(run_id) is None


def test_a_finished_parent_has_no_children() -> None:
    """A run cannot be opened under one that has ended, nor under itself."""
    parent = open_run()
    parent.complete()
    with pytest.raises(RuntimeError, match=r"not live|has ended"):
        open_run(parent=parent)
    run_id = new_id()
    with pytest.raises(RuntimeError, match=r"not live|has ended"):
        open_run(run_id, parent=run_id)


def test_parents_that_are_cancelled_while_children_open() -> None:
    """A child that is opened while its parent is cancelled is refused or cancelled, never left running free."""
    for _ in range(100):
        parent = open_run()

        def child(parent: Run = parent) -> Run | None:
            try:
                return open_run(parent=parent)
            except RunCancelled:
                return None

        made = together([child, child, child, parent.cancel])
        for run in made[:3]:
            if run is not None:
                assert run.token.is_set()
                run.complete()
                assert end_of(run)[0] == "lifecycle.cancelled"
        parent.complete()


def test_kinds_are_checked() -> None:
    """A cancel's kind is one of five words; another one is an error and cancels nothing."""
    with open_run() as run:
        for cancel in (run.cancel, partial(cancel_run, run.run_id)):
            with pytest.raises(ValueError, match="kind"):
                cancel("why", kind="boredom")
            with pytest.raises(TypeError):
                cancel(5)
        assert not run.token.is_set()
        assert run.cancel("a\ud800b", kind="deadline")
        assert run.token.kind == "deadline"
        assert run.token.reason.startswith("a")


def test_a_token_that_is_set_cancels_the_run() -> None:
    """The token is a threading.Event to others; setting it is asking the run to stop."""
    run = open_run()
    assert isinstance(run.token, threading.Event)
    assert isinstance(run.token, CancelToken)
    assert run.token is run.token
    run.token.set()
    assert run.complete()
    assert end_of(run) == ("lifecycle.cancelled", {"kind": "user", "reason": ""})


def test_a_deadline_cancels_the_run() -> None:
    """A run whose deadline has passed is cancelled, of the kind deadline, and so is what is below it."""
    run = open_run(deadline=2)
    child = open_run(parent=run)
    assert run.token.wait(DEADLINE)
    assert child.token.wait(DEADLINE)
    assert run.token.kind == "deadline"
    assert child.token.kind in {"deadline", "parent"}
    assert (run.complete(), child.complete()) == (True, True)
    assert end_of(run)[1]["kind"] == "deadline"
    assert end_of(child)[0] == "lifecycle.cancelled"


def test_a_deadline_that_has_passed_starts_nothing() -> None:
    """A run that is opened with a deadline of zero or less ends at once, as its only event."""
    for deadline in (0, -1, -math.inf):
        run = open_run(deadline=deadline)
        assert [what for what, _ in said(run)] == ["lifecycle.cancelled"]
        assert end_of(run)[1]["kind"] == "deadline"


@pytest.mark.thread_unsafe(reason="stats() is the whole process's")
def test_bad_deadlines_open_nothing() -> None:
    """A deadline is a number of seconds; infinity is none."""
    before = stats()
    for bad, error in ((math.nan, ValueError), ("soon", TypeError), ([], TypeError)):
        with pytest.raises(error, match="deadline"):
            open_run(deadline=bad)
    assert stats() == before
    with open_run(deadline=math.inf) as run, open_run(deadline=1e300) as other:
        assert (run.token.remaining, other.token.remaining) == (None, None)


def test_a_run_that_ended_is_not_asked_by_its_deadline() -> None:
    """A deadline that passes after the end changes nothing that the run says about itself."""
    run = open_run(deadline=1)
    run.complete()
    # One timer has both.
    assert CancelToken(1).wait(DEADLINE)
    assert end_of(run)[0] == "lifecycle.completed"
    assert run.cancel_requested_at is None


# --- Pending runs ---


def test_a_pending_run_starts_when_it_is_told_to() -> None:
    """It has no event before start, a block or the first event; then its first one is lifecycle.started."""
    starts: list[Callable[[Run], Any]] = [
        Run.start,
        Run.__enter__,
        lambda run: run.emit("llm", "stream", {}),
        lambda run: run.handler(worker())(data="x"),
    ]
    for start in starts:
        run = open_run(pending=True, task="t")
        assert (run.state, events(run), run.last_event_id) == ("pending", [], None)
        assert run in active_runs()
        start(run)
        assert run.state == "running"
        assert said(run)[0] == ("lifecycle.started", {"task": "t"})
        assert run.start() is True
        run.complete()
        assert run.start() is False
        assert [what for what, _ in said(run)].count("lifecycle.started") == 1


def test_a_pending_run_that_is_cancelled_never_starts() -> None:
    """Cancelled by itself, its parent, its token or its deadline: its only event is lifecycle.cancelled."""
    for how in ("cancel", "parent", "token", "deadline"):
        parent = open_run()
        run = open_run(pending=True, parent=parent, deadline=0.01 if how == "deadline" else None)
        {
            "cancel": run.cancel,
            "parent": parent.cancel,
            "token": run.token.set,
            "deadline": lambda: None,
        }[how]()
        assert run.wait(DEADLINE)
        assert run.start() is False
        assert run.emit("llm", "stream", {}) is None
        assert [what for what, _ in said(run)] == ["lifecycle.cancelled"]
        assert end_of(run)[1]["parent_run_id"] == parent.run_id
        assert run not in active_runs()
        parent.complete()


def test_the_block_of_a_run_that_never_starts_is_not_entered() -> None:
    """A pending run that was cancelled raises RunCancelled at its block."""
    run = open_run(pending=True)
    run.cancel("enough")
    with pytest.raises(RunCancelled), run:
        pytest.fail("entered")


def test_a_pending_run_ends_after_its_start() -> None:
    """One that is ended without a start has both events, in their order."""
    run = open_run(pending=True)
    assert run.complete(result=1)
    assert said(run) == [("lifecycle.started", {}), ("lifecycle.completed", {"result": 1})]


def test_start_and_cancel_at_once() -> None:
    """Either the run started and is asked to stop, or it never starts; never both, never neither."""
    for _ in range(200):
        run = open_run(pending=True)
        started, first = together([run.start, run.cancel])
        assert first is True
        if not started and run.state == "cancelled":
            assert [what for what, _ in said(run)] == ["lifecycle.cancelled"]
        else:
            assert said(run)[0][0] == "lifecycle.started"
            run.complete()
        assert end_of(run)[0] == "lifecycle.cancelled"


# --- What a run says ---


def test_the_shape_of_an_event() -> None:
    """Seven keys in this order; id from time and sequence; UTC with milliseconds and Z."""
    source = CallerContext.worker("w1", "Researcher", "Team A")
    with open_run() as run:
        before = time.time()
        event_id = run.emit(EventCategory.LLM, EventAction.STREAM, {"content": "x"}, source)
        after = time.time()
        event = events(run)[-1]
        assert list(event) == [
            "id",
            "run_id",
            "timestamp",
            "sequence",
            "source",
            "event",
            "data",
        ]
        assert event["id"] == event_id == run.last_event_id
        assert re.fullmatch(r"\d+-2", event_id)
        assert event["sequence"] == 2
        assert event["run_id"] == run.run_id
        assert event["source"] == source.to_source_dict()
        assert list(event["source"]) == ["agent_id", "agent_type", "agent_name", "team_name"]
        assert event["event"] == {"category": "llm", "action": "stream"}
        assert event["data"] == {"content": "x"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["timestamp"])
        ms = int(event_id.partition("-")[0])
        assert int(before * 1000) <= ms <= int(after * 1000) + 1
        moment = dt.datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00"))
        assert round(moment.timestamp() * 1000) == ms
        assert [told["source"] for told in events(run)[:1]] == [None]


def test_ids_increase_from_many_threads() -> None:
    """Ids and sequences grow strictly; each thread's events are in its order; emit returns the event's own id."""
    with open_run() as run:

        def speak(number: int) -> list[str | None]:
            return [run.emit("llm", "stream", {"by": number, "no": no}) for no in range(200)]

        told = together([partial(speak, number) for number in range(THREADS)])
        heard = events(run)
        keys = [tuple(map(int, event["id"].split("-"))) for event in heard]
        assert keys == sorted(set(keys))
        assert [key[1] for key in keys] == list(range(1, THREADS * 200 + 2))
        for number, ids in enumerate(told):
            mine = [event for event in heard if event["data"].get("by") == number]
            assert [event["id"] for event in mine] == ids
            assert [event["data"]["no"] for event in mine] == list(range(200))


@pytest.mark.parametrize(
    "category", [member for member in EventCategory if member.value != "stream"]
)
def test_all_words_are_taken(category: EventCategory) -> None:
    """Every category with every action is an event, as member or as text, and stands in it as text."""
    for action in EventAction:
        run = open_run()
        assert run.emit(category, action) is not None
        last = events(run)[-1]
        assert last["event"] == {"category": category.value, "action": action.value}
        assert last["data"] == {}
        run.complete()
        run = open_run()
        assert run.emit(category.value, action.value, None, None) is not None
        assert events(run)[-1]["event"] == last["event"]
        run.complete()


@pytest.mark.parametrize(
    ("category", "action", "error"),
    [
        ("llm", "streams", ValueError),
        ("LLM", "stream", ValueError),
        ("", "stream", ValueError),
        ("stream", "gap", ValueError),
        ("ll\ud800m", "stream", ValueError),
        ("llm", "a\0b", ValueError),
        (None, "stream", TypeError),
        ("llm", 5, TypeError),
        (b"llm", "stream", TypeError),
        (AgentType.WORKER, "stream", ValueError),
    ],
)
def test_words_are_checked(category: Any, action: Any, error: type[Exception]) -> None:
    """A word that is unknown, or no text, raises and says nothing."""
    with open_run() as run:
        with pytest.raises(error):
            run.emit(category, action, {})
        assert len(events(run)) == 1


ANN = CallerContext.worker("w1", "Ann", "Readers")
CENTS = {"cents": 5}


@pytest.mark.parametrize(
    ("given", "named", "data", "source"),
    [
        ((), {}, {}, None),
        ((CENTS,), {}, CENTS, None),
        ((None,), {}, {}, None),
        (([5],), {}, [5], None),
        ((CENTS, ANN), {}, CENTS, ANN),
        ((CENTS, None), {}, CENTS, None),
        ((None, ANN), {}, {}, ANN),
        ((None, None), {}, {}, None),
        ((CENTS,), {"source": ANN}, CENTS, ANN),
        ((None,), {"source": ANN}, {}, ANN),
        ((), {"data": CENTS}, CENTS, None),
        ((), {"data": CENTS, "source": ANN}, CENTS, ANN),
        ((), {"data": None, "source": ANN}, {}, ANN),
        ((), {"source": ANN}, {}, ANN),
    ],
)
def test_a_dotted_kind_is_followed_by_data_and_source(
    given: tuple[Any, ...], named: dict[str, Any], data: Any, source: CallerContext | None
) -> None:
    """After a kind of one's own come the data and the source, by position or by name; None is as if left out."""
    with open_run() as run:
        assert run.emit("billing.charged", *given, **named) is not None
        assert run.emit("llm.stream", *given, **named) is not None
        own, built_in = events(run)[-2:]
        assert own["event"] == {"category": "billing", "action": "charged"}
        assert built_in["event"] == {"category": "llm", "action": "stream"}
        for event in (own, built_in):
            assert event["data"] == data
            assert event["source"] == (source and source.to_source_dict())


@pytest.mark.parametrize(
    ("kind", "given", "named", "message"),
    [
        ("billing.charged", ("charged",), {}, "takes data next, not the text 'charged'"),
        ("billing.charged", ("charged", CENTS), {}, "takes data next"),
        ("billing.charged", ("charged",), {"data": CENTS}, "takes data next"),
        ("llm.stream", (EventAction.STREAM, CENTS), {}, "takes data next"),
        ("billing.charged", (CENTS, ANN, None), {}, "nothing beside them"),
        ("billing.charged", (CENTS, CENTS, ANN), {}, "nothing beside them"),
        ("billing.charged", (CENTS, CENTS), {}, "source"),
        ("llm", (), {}, "a category and an action"),
        ("llm", (), {"data": CENTS}, "a category and an action"),
    ],
)
def test_what_does_not_fit_a_dotted_kind_is_refused(
    kind: str, given: tuple[Any, ...], named: dict[str, Any], message: str
) -> None:
    """An action beside a dotted kind, too many arguments and a category alone raise, and emit nothing."""
    with open_run() as run:
        with pytest.raises((TypeError, ValueError), match=message):
            run.emit(kind, *given, **named)
        assert len(events(run)) == 1


@pytest.mark.parametrize(
    "kind",
    [
        ".charged",
        "billing.",
        "billing..charged",
        "a b.c",
        "lifecycle.paused",
        "stream.gap",
        "a." + "b" * 200,
    ],
)
def test_a_kind_of_ones_own_is_checked(kind: str) -> None:
    """A dotted text that is no kind, or is the library's own, raises ValueError and emits nothing."""
    with open_run() as run:
        with pytest.raises(ValueError, match=r"kind|category 'stream'"):
            run.emit(kind, CENTS)
        assert len(events(run)) == 1


def test_a_run_s_callback_takes_the_events_of_another_run() -> None:
    """What a registered callback hears, also a kind of one's own, can be handed to the callback of another run."""
    with open_run() as heard, open_run() as told:
        callback = get_event_callback(told.run_id)
        assert callback is not None
        register_event_callback(heard.run_id, callback)
        heard.emit("billing.charged", CENTS, ANN)
        heard.emit("llm", "stream", {"content": "x"}, ANN)
        register_event_callback(heard.run_id, None)
        mine, theirs = events(heard)[1:], events(told)[1:]
        parts = ("event", "source", "data")
        assert [[e[p] for p in parts] for e in theirs] == [[e[p] for p in parts] for e in mine]
        for category, action in [
            ("stream", "gap"),
            ("lifecycle", "paused"),
            ("", "x"),
            ("a b", "c"),
        ]:
            with pytest.raises(ValueError, match=r"kind|category 'stream'"):
                callback(
                    {"source": None, "event": {"category": category, "action": action}, "data": {}}
                )
        assert len(events(told)) == len(mine) + 1


class Colour(enum.Enum):
    """An enum of no JSON type."""

    RED = 1


class Level(enum.IntEnum):
    """An enum that is an int."""

    HIGH = 3


class Word(str, enum.Enum):
    """An enum that is a str."""

    YES = "yes"


@dataclass
class Point:
    """An object with a text."""

    x: int = 1


MOMENT = dt.datetime(2026, 11, 24, 4, 29, tzinfo=dt.timezone.utc)

DATA = {
    "none is empty": (None, {}),
    "text": ("text", "text"),
    "number": (5, 5),
    "list": ([1, [2]], [1, [2]]),
    "empty list": ([], []),
    "false": (False, False),
    "tuple": ({"t": (1, (2,))}, {"t": [1, [2]]}),
    "bytes": ({"b": b"\0\xff\xfe"}, {"b": "<3 bytes>"}),
    "bytearray": ({"b": bytearray(2)}, {"b": "<2 bytes>"}),
    "nan": ({"x": [math.nan, math.inf, -math.inf]}, {"x": ["nan", "inf", "-inf"]}),
    "floats": ({"x": [0.1, -0.0, 1e308, 5e-324, 1e16]}, {"x": [0.1, -0.0, 1e308, 5e-324, 1e16]}),
    "big ints": (
        {"x": [2**63, -(2**63) - 1, 10**400]},
        {"x": [2**63, -(2**63) - 1, 10**400]},
    ),
    "bools": ({"x": [True, False, None]}, {"x": [True, False, None]}),
    "date": ({"d": MOMENT, "e": MOMENT.date()}, {"d": str(MOMENT), "e": "2026-11-24"}),
    "enums": (
        {"a": Colour.RED, "b": Level.HIGH, "c": Word.YES},
        {"a": "Colour.RED", "b": 3, "c": "yes"},
    ),
    "keys": (
        {1: "int", 1.5: "float", None: "none", True + 1: "two", ("t",): "tuple", Word.YES: "str"},
        {"1": "int", "1.5": "float", "null": "none", "2": "two", "('t',)": "tuple", "yes": "str"},
    ),
    "true key": ({True: 1, False: 0}, {"true": 1, "false": 0}),
    "set": ({"s": {1}}, {"s": "{1}"}),
    "decimal": ({"d": Decimal("1.50")}, {"d": "1.50"}),
    "object": ({"o": Point()}, {"o": "Point(x=1)"}),
    "surrogates": ({"a\ud800": "\udfff\ud83d\ude00"}, {"a\ud800": "\udfff\U0001f600"}),
    "controls": (
        {"c": '\0\x01\x1f\x7f\u2028\u2029\r\n"\\/'},
        {"c": '\0\x01\x1f\x7f\u2028\u2029\r\n"\\/'},
    ),
    "error": ({"e": OSError("text")}, {"e": "text"}),
    "generator": ({"r": range(3)}, {"r": "range(0, 3)"}),
}


@pytest.mark.parametrize(("given", "expected"), DATA.values(), ids=DATA.keys())
def test_data_of_any_kind(given: Any, expected: Any) -> None:
    """What JSON has is written as json.dumps does; bytes as how many there are; all else as its text."""
    with open_run() as run:
        assert run.emit("llm", "stream", given) is not None
        told = events(run)[-1]["data"]
        assert told == expected
        assert json.dumps(told) == json.dumps(expected)


def nested(depth: int, make: Callable[[Any], Any]) -> Any:
    """Return a value that is ``depth`` containers deep."""
    value: Any = 1
    for _ in range(depth):
        value = make(value)
    return value


@pytest.mark.parametrize("make", [lambda v: [v], lambda v: {"k": v}, lambda v: (v,)])
def test_data_that_are_too_deep_are_refused(make: Callable[[Any], Any]) -> None:
    """A hundred levels are written; a thousand, or data that contain themselves, raise and say nothing."""
    with open_run() as run:
        assert run.emit("llm", "stream", nested(100, make)) is not None
        for depth in (101, 1_000, 100_000):
            with pytest.raises(ValueError, match="nested"):
                run.emit("llm", "stream", nested(depth, make))
        assert len(events(run)) == 2


def test_data_that_change_while_they_are_written() -> None:
    """A text that is made by code which changes the data around it gives one state of them, and no crash."""

    class Mischief:
        def __init__(self, do: Callable[[], Any]) -> None:
            self.do = do

        def __str__(self) -> str:
            self.do()
            return "text"

    with open_run() as run:
        data: dict[Any, Any] = {"a": None, "b": 2}
        data["a"] = Mischief(lambda: (data.clear(), data.update({n: n for n in range(100)})))
        assert run.emit("llm", "stream", data) is not None
        assert events(run)[-1]["data"] == {"a": "text", "b": 2}
        for change in (list.clear, lambda items: items.extend([1] * 100)):
            items: list[Any] = [None, 1, 2]
            items[0] = Mischief(partial(change, items))
            assert run.emit("llm", "stream", items) is not None
            assert events(run)[-1]["data"][0] == "text"
        key = Mischief(lambda: run.emit("llm", "stream", {"content": "inner"}))
        assert run.emit("llm", "stream", {key: 1}) is not None
        assert [told["data"] for told in events(run)[-2:]] == [{"content": "inner"}, {"text": 1}]
        ends = Mischief(run.complete)
        assert run.emit("llm", "stream", {"x": ends}) is None
    assert end_of(run)[0] == "lifecycle.completed"


def test_data_without_a_text_raise_it() -> None:
    """What str() raises comes out of emit, which has said nothing."""
    with open_run() as run:
        for data in ({"x": Broken()}, [Broken()], {Broken(): 1}, Broken()):
            with pytest.raises(ValueError, match="no text"):
                run.emit("llm", "stream", data)
        assert len(events(run)) == 1


def test_the_source_is_a_context_or_its_dict() -> None:
    """A CallerContext and what it makes are the same source; anything else is refused."""
    context = CallerContext.worker("w\ud800", "Näme", "T")
    with open_run() as run:
        run.emit("llm", "stream", {}, context)
        run.emit("llm", "stream", {}, source=context.to_source_dict())
        one, other = (event["source"] for event in events(run)[-2:])
        assert one == other == context.to_source_dict()
        for bad, error in (
            (5, TypeError),
            ("worker", TypeError),
            ({}, ValueError),
            ({"agent_id": 1, "agent_type": "worker", "agent_name": "n"}, ValueError),
        ):
            with pytest.raises(error):
                run.emit("llm", "stream", {}, bad)
        assert len(events(run)) == 3


@pytest.mark.thread_unsafe(reason="stats() is the whole process's")
def test_after_the_end_events_are_dropped_and_counted() -> None:
    """It returns None and raises nothing; the log does not change."""
    run = open_run()
    run.complete()
    before, late = events(run), stats()["runs"]["late"]
    assert run.emit("llm", "stream", {"content": "late"}) is None
    assert run.emit("lifecycle", "failed", {"content": "late"}) is None
    assert stats()["runs"]["late"] == late + 2
    assert events(run) == before


def test_a_terminal_event_that_is_emitted_ends_the_run() -> None:
    """lifecycle.completed, failed and cancelled are the end, also by hand."""
    for action in ("completed", "failed", "cancelled"):
        run = open_run()
        assert run.emit("lifecycle", action, {"by": "hand"}) is not None
        assert end_of(run) == (f"lifecycle.{action}", {"by": "hand"})
        assert run not in active_runs()


# --- Times ---


def test_times_are_kept_in_their_order() -> None:
    """Asked, told and ended: each is a time in seconds since 1970, and none before the one before it."""
    # Times are known to the millisecond.
    before = int(time.time() * 1000) / 1000
    run = open_run()
    assert (run.cancel_requested_at, run.cancel_acknowledged_at, run.finished_at) == (None,) * 3
    run.cancel()
    assert run.cancel_requested_at >= before
    assert run.cancel_acknowledged_at is None
    # Long enough for the end, which is known to the millisecond, to be later than the rest.
    threading.Event().wait(0.005)
    with pytest.raises(RunCancelled):
        run.handler(worker())(data="x")
    threading.Event().wait(0.005)
    run.complete()
    assert run.cancel_requested_at <= run.cancel_acknowledged_at <= run.finished_at <= time.time()


def test_times_of_a_moment_are_in_their_order() -> None:
    """The three times are in their order also where all is done at once."""
    for _ in range(50):
        run = open_run()
        run.cancel()
        raised_by(lambda run=run: run.handler(worker())(data="x"))
        run.complete()
        assert run.cancel_requested_at <= run.cancel_acknowledged_at <= run.finished_at


def test_the_times_of_a_finished_run_do_not_change() -> None:
    """A handler that is called after the end changes none of the times."""
    run = open_run()
    handler = run.handler(worker())
    run.cancel()
    run.complete()
    before = (run.cancel_requested_at, run.cancel_acknowledged_at, run.finished_at)
    raised_by(partial(handler, data="x"))
    assert (run.cancel_requested_at, run.cancel_acknowledged_at, run.finished_at) == before


# --- The current run ---


def test_bind_sets_the_current_run() -> None:
    """A bound function finds its run as the current one, on any thread, and the caller's is back afterwards."""
    with open_run() as run, open_run() as other:
        bound = run.bind(lambda *args, **more: (get_current_run_id(), args, more))
        assert bound(1, two=2) == (run.run_id, (1,), {"two": 2})
        assert in_thread(bound)[0] == run.run_id
        assert get_current_run_id() is None
        assert other.bind(lambda: (bound()[0], get_current_run_id()))() == (
            run.run_id,
            other.run_id,
        )

        async def coroutine() -> Any:
            await asyncio.sleep(0)
            return get_current_run_id()

        assert asyncio.run(run.bind(coroutine)()) == run.run_id

        def generator() -> Any:
            yield get_current_run_id()

        with pytest.raises(TypeError):
            run.bind(generator)
        with pytest.raises(LookupError):
            run.bind(lambda: {}["missing"])()
        assert get_current_run_id() is None


# --- Files ---

LOG = """
import json, os, sys, threading, time
import llm_callback
from llm_callback import flush, open_run, log_to_file, stats

def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]

def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)

path = sys.argv[1] if len(sys.argv) > 1 else os.environ["LOG"]
"""


def logged(code: str, path: Path, **more: str) -> list[str]:
    """Run ``code`` after LOG in a fresh interpreter; return the lines that it prints."""
    return printed(LOG + code, env={"LOG": str(path), **more}).splitlines()


def test_a_file_has_all_events_of_later_runs(tmp_path: Path) -> None:
    """It has what readers see, each run's in its order, from runs that were opened after; the count says so."""
    path = tmp_path / "events.ndjson"
    logged(
        """
        early = open_run("early")
        log_to_file(path)
        runs = [open_run(f"run {number}") for number in range(4)]
        def speak(run):
            for number in range(500):
                run.emit("llm", "stream", {"content": f"{number} \\u2028 \\ud800"})
            run.complete()
        threads = [threading.Thread(target=speak, args=(run,)) for run in runs]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        early.emit("llm", "stream", {"content": "early"})
        until(lambda: stats()["sinks"][path]["written"] == 4 * 502)
        assert flush(30)
        of_file = stats()["sinks"][path]
        assert (of_file["written"], of_file["dropped"], of_file["errors"]) == (4 * 502, 0, 0)
        assert (of_file["waiting"], of_file["waiting_bytes"]) == (0, 0)
        early.complete()
        written = lines(path)
        for run in runs:
            mine = [event for event in written if event["run_id"] == run.run_id]
            assert mine == run.subscribe("start").read(10_000, 0)
        assert {event["run_id"] for event in written} == {run.run_id for run in runs}
        """.replace("\n        ", "\n"),
        path,
    )
    assert path.read_bytes().count(b"\n") == 4 * 502


def test_a_file_is_whole_when_a_run_has_ended(tmp_path: Path) -> None:
    """The end of a run is written through, while the process and other runs go on."""
    path = tmp_path / "events.ndjson"
    logged(
        """
        log_to_file(path)
        other = open_run("other")
        run = open_run("run")
        run.emit("llm", "stream", {})
        run.complete()
        until(lambda: lines(path) and lines(path)[-1]["event"]["action"] == "completed")
        assert [e["run_id"] for e in lines(path)] == ["other", "run", "run", "run"]
        """.replace("\n        ", "\n"),
        path,
    )
    assert json.loads(path.read_text("utf-8").splitlines()[-1])["data"]["kind"] == "shutdown"


def test_a_file_is_rotated(tmp_path: Path) -> None:
    """A file never grows beyond its limit; the one before has its name with .1; no event is split or twice."""
    path = tmp_path / "events.ndjson"
    logged(
        """
        log_to_file(path, max_bytes=2_000)
        with open_run("run") as run:
            for number in range(100):
                run.emit("llm", "stream", {"content": str(number)})
        until(lambda: stats()["sinks"][path]["written"] == 102)
        """.replace("\n        ", "\n"),
        path,
    )
    old = path.with_name("events.ndjson.1")
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, old.name}
    assert all(file.stat().st_size <= 2_000 for file in (path, old))
    held = [
        json.loads(line)["sequence"]
        for file in (old, path)
        for line in file.read_text("utf-8").splitlines()
    ]
    assert held == list(range(103 - len(held), 103))
    assert len(held) > 10


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """What an earlier process wrote stays."""
    path = tmp_path / "events.ndjson"
    for _ in range(2):
        logged("log_to_file(path)\nopen_run('run').complete()\n", path)
    assert len(path.read_text("utf-8").splitlines()) == 4


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    """The same file a second time, by whichever name, is a ValueError, and each event is in it once."""
    path = tmp_path / "events.ndjson"
    logged(
        """
        log_to_file(path)
        os.symlink(path, path + ".link")
        os.chdir(os.path.dirname(path))
        for again in (path, os.path.basename(path), path + ".link"):
            try:
                log_to_file(again)
            except ValueError as error:
                assert str(error) == f"events are written to {again} already", error
            else:
                raise AssertionError(again)
        open_run("run").complete()
        """.replace("\n        ", "\n"),
        path,
    )
    assert len(path.read_text("utf-8").splitlines()) == 2


def test_a_file_stays_where_it_is(tmp_path: Path) -> None:
    """A path that is relative means what it meant when it was given, also when the file is rotated."""
    path = tmp_path / "events.ndjson"
    (tmp_path / "elsewhere").mkdir()
    logged(
        """
        os.chdir(os.path.dirname(path))
        log_to_file(os.path.basename(path), max_bytes=500)
        os.chdir("elsewhere")
        open_run("run", text="x" * 400).complete()
        """.replace("\n        ", "\n"),
        path,
    )
    names = sorted(str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*"))
    assert names == ["elsewhere", "events.ndjson", "events.ndjson.1"]


@pytest.mark.thread_unsafe(reason="stats() is the whole process's")
def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A path that cannot be opened raises OSError, and no sink is there."""
    before = stats()["sinks"]
    for bad in (tmp_path, tmp_path / "missing" / "events", ""):
        with pytest.raises(OSError):  # noqa: PT011 - which one is the system's
            llm_callback.log_to_file(bad)
    with pytest.raises(FileNotFoundError) as caught:
        llm_callback.log_to_file(tmp_path / "missing" / "events")
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(tmp_path / "missing" / "events")
    for bad in (5, None, [str(tmp_path)]):
        with pytest.raises(TypeError):
            llm_callback.log_to_file(bad)
    with pytest.raises(OverflowError):
        llm_callback.log_to_file(tmp_path / "events", max_bytes=-1)
    assert stats()["sinks"] == before
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_is_counted(tmp_path: Path) -> None:
    """A sink that cannot write counts its errors; runs go on and their readers see everything."""
    logged(
        """
        if not os.path.exists("/dev/full"):
            sys.exit()
        log_to_file("/dev/full")
        with open_run("run") as run:
            for number in range(1_000):
                assert run.emit("llm", "stream", {"content": "x" * 100})
        until(lambda: stats()["sinks"]["/dev/full"]["errors"] > 0)
        assert len(run.subscribe("start").read(10_000, 0)) == 1_002
        """.replace("\n        ", "\n"),
        tmp_path,
    )
