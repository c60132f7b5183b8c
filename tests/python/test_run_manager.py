"""RunManager: whose turn it is, how its runs end, what a cancel does, and what is left afterwards."""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
import sys
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from llm_callback import (
    BoundExecutor,
    RunCancelled,
    RunManager,
    _callback_registry,
    _checker_registry,
    bind,
    capture,
    check_cancellation,
    create_callback_handler,
    get_current_run_id,
    get_run,
    open_run,
    register_cancellation_checker,
    register_event_callback,
    set_current_run_id,
    stats,
)
from support import (
    DEADLINE,
    Running,
    events,
    new_id,
    printed,
    raised_by,
    said,
    together,
    waited,
    worker,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_callback import Run

# Streams are the process's: but where a test is about them its runs leave them alone.
Manager = partial(RunManager, capture=False)


def last(run: Run) -> tuple[str, Any]:
    """Wait for the end of the run; return its last event."""
    assert run.wait(DEADLINE), f"{run!r} does not end"
    return said(run)[-1]


def named(**data: Any) -> dict[str, Any]:
    """Return a config with an id of its own."""
    return {"run_id": new_id(), **data}


class Gate:
    """Something to execute that tells when it has begun, and waits until it may go on."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.arrived = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, config: dict[str, Any]) -> Any:
        self.begun.append(config["run_id"])
        self.arrived.release()
        waited(self.open)
        return config["run_id"]

    def arrive(self, number: int = 1) -> None:
        """Wait until so many have begun."""
        for _ in range(number):
            assert self.arrived.acquire(timeout=DEADLINE), "it does not begin"


# --- A run ---


def test_a_run_is_executed_with_its_config_and_as_the_current_one() -> None:
    """`execute` gets a copy of the config with id and task, on a thread that knows the run, and nothing else."""
    seen: list[Any] = []
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    def execute(config: dict[str, Any]) -> str:
        seen.append(
            (config, get_current_run_id(), variable.get(), threading.current_thread().daemon)
        )
        variable.set("left behind")
        config["more"] = 1
        return "done"

    with Manager(execute, max_workers=1) as manager:
        config = {"teams": [1, 2]}
        variable.set("the caller's")
        runs = [manager.start_run(config, "a task") for _ in range(3)]
        for run in runs:
            assert last(run) == ("lifecycle.completed", {"result": "done"})
    assert config == {"teams": [1, 2]}
    for run, (given, current, value, is_daemon) in zip(runs, seen, strict=True):
        assert given == {"teams": [1, 2], "task": "a task", "run_id": run.run_id, "more": 1}
        assert (current, value, is_daemon) == (run.run_id, "unset", True)
        assert said(run)[0] == ("lifecycle.started", {"task": "a task"})
        assert get_run(run.run_id) == run
    assert get_current_run_id() is None


def test_the_id_is_the_given_one_the_configs_or_a_new_one() -> None:
    """An explicit id goes before the config's, a UUID is its text, and without one each run has its own."""
    with Manager(lambda config: config["run_id"]) as manager:
        theirs, ours, as_uuid = new_id(), new_id(), uuid.uuid4()
        assert manager.start_run({"run_id": theirs}).run_id == theirs
        assert manager.start_run({"run_id": theirs}, run_id=ours).run_id == ours
        assert last(manager.start_run(run_id=as_uuid))[1] == {"result": str(as_uuid)}
        assert manager.wait(as_uuid, DEADLINE)
        assert manager.start_run({"run_id": None}).run_id != manager.start_run().run_id


def test_the_task_is_the_given_one_or_the_configs() -> None:
    """It is in the config that is executed, and in the run's first event."""
    with Manager(lambda config: config["task"]) as manager:
        for config, task, expected in [
            ({"task": "a"}, "", "a"),
            ({"task": "a"}, "b", "b"),
            (None, "", ""),
        ]:
            run = manager.start_run(config, task)
            assert last(run)[1] == {"result": expected}
            assert said(run)[0][1] == {"task": expected}


class Result:
    """What an agent returns."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def to_dict(self) -> Any:
        return self.value

    def __str__(self) -> str:
        return "as text"


@pytest.mark.parametrize(
    ("result", "data"),
    [
        ({"answer": 42}, {"answer": 42}),
        ({}, {}),
        (Result({"stop_reason": "end_turn"}), {"stop_reason": "end_turn"}),
        (Result([1]), {"result": [1]}),
        ("text", {"result": "text"}),
        (None, {"result": None}),
        ({1: 2}, {"result": {"1": 2}}),
    ],
    ids=str,
)
def test_what_is_returned_is_the_data_of_the_last_event(result: Any, data: Any) -> None:
    """A dict, or what ``to_dict()`` makes, is there as it is; all else is its ``result``."""
    with Manager(lambda _config: result) as manager:
        assert last(manager.start_run()) == ("lifecycle.completed", data)


def test_what_is_raised_fails_the_run() -> None:
    """Its text is the error and its traceback the details; a result that is no JSON fails its run too."""
    circle: dict[str, Any] = {}
    circle["circle"] = circle

    def execute(config: dict[str, Any]) -> Any:
        if config["task"] == "circle":
            return circle
        raise LookupError("no such agent")

    with Manager(execute, max_workers=1) as manager:
        name, data = last(manager.start_run())
        assert (name, data["error"]) == ("lifecycle.failed", "no such agent")
        assert data["details"].endswith("LookupError: no such agent\n")
        assert last(manager.start_run(task="circle"))[0] == "lifecycle.failed"


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("x")]
)
def test_no_exception_ends_a_thread_that_others_need(error: BaseException) -> None:
    """Whatever comes out of a run ends that run, and the next one has its turn."""

    def execute(config: dict[str, Any]) -> None:
        if config["task"] == "raise":
            raise error

    with Manager(execute, max_workers=1) as manager:
        runs = [manager.start_run(task=task) for task in ["raise", "", "raise", ""]]
        states = [run.state for run in runs if run.wait(DEADLINE)]
    assert states[1::2] == ["completed", "completed"]
    assert set(states[::2]) <= {"cancelled", "failed"}
    assert len(states) == 4


def test_a_handler_of_the_drop_in_reaches_its_run() -> None:
    """The event callback hears the run's events while it runs, and the log has them too."""
    heard: list[Any] = []

    def execute(config: dict[str, Any]) -> None:
        handler = create_callback_handler(worker(), run_id=config["run_id"])
        handler(data=config["task"])

    with Manager(execute) as manager:
        runs = [manager.start_run(task=str(n), on_event=heard.append) for n in range(20)]
        for number, run in enumerate(runs):
            assert last(run)[0] == "lifecycle.completed"
            assert [data for name, data in said(run) if name == "llm.stream"] == [
                {"content": str(number)}
            ]
            assert run.run_id not in _callback_registry
    assert sorted(int(event["data"]["content"]) for event in heard) == list(range(20))


@pytest.mark.thread_unsafe(reason="stats() is the whole process's")
@pytest.mark.parametrize(
    "how", ["returns", "raises", "is cancelled", "is abandoned", "never starts"]
)
def test_after_a_run_all_is_as_before_it(how: str) -> None:  # noqa: C901 - one branch for each end
    """At its last event the registries, the streams and the current run are what they were, however it ends."""
    go_on = threading.Event()
    begun = threading.Event()
    end_seen: list[Any] = []

    def state(run_id: Any) -> Any:
        return (
            _callback_registry.get(run_id), _checker_registry.get(run_id), sys.stdout, sys.stderr,
            capture._active, len(capture._lines), get_current_run_id(),
        )  # fmt: skip

    def execute(config: dict[str, Any]) -> None:
        register_cancellation_checker(config["run_id"], lambda: False)
        print("a piece", end="")
        begun.set()
        ends[how]()

    def listen() -> None:
        while True:
            check_cancellation()

    def fail() -> None:
        raise LookupError

    ends: dict[str, Callable[[], None]] = {
        "returns": lambda: None,
        "raises": fail,
        "is cancelled": listen,
        "is abandoned": partial(waited, go_on),
    }
    manager = RunManager(execute, cancel_timeout=0.0 if how == "is abandoned" else DEADLINE)
    for before in [None, len]:
        begun.clear()
        run_id = new_id()
        register_event_callback(run_id, before)
        # The second time beside another capture.
        others = capture.capture_output() if before else None
        then, counted = state(run_id), stats()
        run = manager.start_run(
            run_id=run_id, on_event=end_seen.append, deadline=0 if how == "never starts" else None
        )
        if how != "never starts":
            waited(begun)
        if how in ("is cancelled", "is abandoned"):
            assert manager.cancel_run(run_id)
        assert run.wait(DEADLINE)
        assert state(run_id) == then
        now = stats()
        assert now["runs"]["live"] == counted["runs"]["live"]
        assert (now["callbacks"], now["checkers"]) == (counted["callbacks"], counted["checkers"])
        if how != "never starts":
            assert said(run)[-2] == ("system.output", {"stream": "stdout", "text": "a piece"})
        register_event_callback(run_id, None)
        if others:
            others.stop()
    go_on.set()
    manager.shutdown(timeout=DEADLINE)
    assert [event["event"]["action"] for event in end_seen] == ["output"] * (
        2 * (how != "never starts")
    )


@pytest.mark.parametrize("first_returns", ["during the second", "after the second"])
def test_a_run_that_lingers_leaves_the_next_one_its_callback(first_returns: str) -> None:
    """Where its code goes on after its end, the next run of its id hears all its events, and nothing is left."""
    go_on, begun, say = threading.Event(), threading.Event(), threading.Event()
    heard: list[Any] = []

    def execute(config: dict[str, Any]) -> None:
        run = get_run(config["run_id"])
        assert run is not None
        if config["task"] == "first":
            run.complete()
            waited(go_on)
            return
        run.emit("llm", "stream", {"content": "a"})
        begun.set()
        waited(say)
        run.emit("llm", "stream", {"content": "b"})

    lingers, manager = Manager(execute), Manager(execute)
    first = lingers.start_run(task="first", on_event=lambda _event: None)
    assert last(first)[0] == "lifecycle.completed"
    second = manager.start_run(run_id=first.run_id, task="second", on_event=heard.append)
    waited(begun)
    if first_returns == "during the second":
        go_on.set()
        lingers.shutdown(timeout=DEADLINE)
    say.set()
    assert last(second)[0] == "lifecycle.completed"
    assert first.run_id not in _callback_registry
    go_on.set()
    lingers.shutdown(timeout=DEADLINE)
    manager.shutdown(timeout=DEADLINE)
    assert [event["data"]["content"] for event in heard] == ["a", "b"]
    assert first.run_id not in _callback_registry


# --- Whose turn it is ---


def test_so_many_run_at_once_and_the_others_wait_in_order() -> None:
    """With two places of five runs two are running and three pending, and they begin in their order."""
    gate = Gate()
    with Manager(gate, max_workers=2) as manager:
        runs = [manager.start_run() for _ in range(5)]
        ids = [run.run_id for run in runs]
        gate.arrive(2)
        assert [run.state for run in runs] == ["running"] * 2 + ["pending"] * 3
        assert sorted(manager.get_active_runs()[:2]) == sorted(ids[:2])
        assert manager.get_active_runs()[2:] == ids[2:]
        assert all(manager.is_running(run_id) for run_id in ids)
        assert not manager.wait(timeout=0)
        assert not manager.wait(ids[0], 0)
        gate.open.set()
        assert manager.wait(timeout=DEADLINE)
        assert manager.get_active_runs() == []
        assert not any(manager.is_running(run_id) for run_id in ids)
        assert all(run.state == "completed" for run in runs)
    assert sorted(gate.begun[:2]) == sorted(ids[:2])
    assert sorted(gate.begun) == sorted(ids)
    with Manager(gate, max_workers=1) as manager:
        gate.begun.clear()
        ids = [manager.start_run().run_id for _ in range(20)]
    assert gate.begun == ids


def test_more_than_may_wait_are_refused() -> None:
    """A run that would wait behind ``max_queued`` others is not opened; when one of them is gone, it is."""
    gate, refused = Gate(), new_id()
    with Manager(gate, max_workers=1, max_queued=1) as manager:
        running = manager.start_run()
        gate.arrive()
        waiting = manager.start_run()
        with pytest.raises(RuntimeError, match="1 runs wait for their turn, and max_queued is 1"):
            manager.start_run(run_id=refused)
        assert get_run(refused) is None
        waiting.cancel()
        in_its_place = manager.start_run(run_id=refused)
        gate.open.set()
    states = [run.state for run in (running, waiting, in_its_place)]
    assert states == ["completed", "cancelled", "completed"]


def test_many_threads_start_cancel_and_wait_at_once() -> None:
    """Of 400 runs of eight threads each ends once, as what its last event says, and the cancelled are no others."""
    inside = Counter[str]()
    lock, most = threading.Lock(), [0]

    def execute(config: dict[str, Any]) -> Any:
        with lock:
            inside["now"] += 1
            most[0] = max(most[0], inside["now"])
        try:
            run = get_run(config["run_id"])
            assert run is not None
            if config["task"] == "wait":
                assert run.token.wait(DEADLINE)
                check_cancellation()
            return config["task"]
        finally:
            with lock:
                inside["now"] -= 1

    with Manager(execute, max_workers=4) as manager:

        def job() -> list[tuple[str, Run]]:
            started = []
            for number in range(50):
                task = "wait" if number % 3 == 0 else "go"
                started.append((task, manager.start_run(task=task)))
                if task == "wait":
                    assert manager.cancel_run(started[-1][1].run_id, "enough")
            assert manager.wait(timeout=DEADLINE)
            return started

        runs = [each for part in together([job] * 8) for each in part]
    assert most[0] <= 4
    for task, run in runs:
        assert run.state == ("cancelled" if task == "wait" else "completed")
        ends = [event for event in events(run) if event["event"]["action"] == run.state]
        assert len(ends) == 1
        assert events(run)[-1] == ends[0]
    assert len(runs) == 400


def test_a_live_id_is_refused_and_an_ended_one_begins_anew() -> None:
    """While a run waits or runs, another of its id cannot be started, and the first goes on; after it, it can."""
    gate = Gate()
    with Manager(gate, max_workers=1) as manager:
        running, queued = manager.start_run(named()), manager.start_run(named())
        for run in (running, queued):
            with pytest.raises(RuntimeError, match="live"):
                manager.start_run(run_id=run.run_id)
        gate.open.set()
        assert last(running)[0] == last(queued)[0] == "lifecycle.completed"
        again = manager.start_run(run_id=queued.run_id)
        assert last(again)[0] == "lifecycle.completed"
        assert again.generation == 2


def test_a_manager_knows_its_own_runs_only() -> None:
    """Runs of others are neither cancelled nor counted, and there is nothing of them to wait for."""
    with Manager(lambda _config: None) as manager, open_run(new_id()) as other:
        for run_id in (other.run_id, new_id()):
            assert not manager.cancel_run(run_id)
            assert not manager.is_running(run_id)
            assert manager.wait(run_id)
        assert manager.get_active_runs() == []
        assert not other.token.is_set()
        for use in (manager.cancel_run, manager.is_running, manager.wait):
            assert type(raised_by(partial(use, 2.5))) is TypeError


def test_a_run_may_use_its_manager() -> None:
    """What runs starts further runs and waits for them, asks for itself, and shuts the manager down."""

    def execute(config: dict[str, Any]) -> Any:
        if config["task"] == "below":
            return 1
        below = manager.start_run(task="below")
        assert manager.wait(below.run_id, DEADLINE)
        assert manager.is_running(config["run_id"])
        manager.shutdown()
        return below.state

    manager = Manager(execute)
    assert last(manager.start_run()) == ("lifecycle.completed", {"result": "completed"})
    manager.shutdown(timeout=DEADLINE)


def leave(manager: RunManager) -> None:
    """Use the manager in a block."""
    with manager:
        pass


@pytest.mark.parametrize("use", [RunManager.wait, RunManager.shutdown, leave])
@pytest.mark.parametrize("on_a_thread", [False, True])
def test_a_run_does_not_wait_for_itself(
    use: Callable[[RunManager], Any], on_a_thread: bool
) -> None:
    """It leaves itself out when it waits for all, shuts down or leaves the block, also on a thread bound to it."""

    def execute(config: dict[str, Any]) -> Any:
        if on_a_thread:
            Running(bind(partial(use, manager))).result()
        else:
            use(manager)
        return manager.wait(config["run_id"])

    manager = Manager(execute)
    assert last(manager.start_run()) == ("lifecycle.completed", {"result": False})
    manager.shutdown(timeout=DEADLINE)


@pytest.mark.parametrize("use", [RunManager.shutdown, leave])
def test_two_runs_that_shut_down_their_manager_both_end(use: Callable[[RunManager], Any]) -> None:
    """Neither waits for the other for ever."""
    both = threading.Barrier(2)

    def execute(_config: dict[str, Any]) -> None:
        both.wait(DEADLINE)
        use(manager)

    manager = Manager(execute, cancel_timeout=0.05)
    runs = [manager.start_run() for _ in range(2)]
    for run in runs:
        assert last(run)[0] in ("lifecycle.completed", "lifecycle.cancelled")
    assert manager.get_active_runs() == []


def test_threads_last_no_longer_than_there_is_work() -> None:
    """A manager that has nothing to do, and was never shut down, has no thread and can be collected."""
    threads: list[threading.Thread] = []
    manager = Manager(lambda _config: threads.append(threading.current_thread()), max_workers=3)
    for _ in range(10):
        manager.start_run()
    assert manager.wait(timeout=DEADLINE)
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert manager._workers == 0
    assert len(threads) == 10


# --- Cancels ---


@pytest.mark.parametrize("by", ["manager", "run", "deadline", "shutdown"])
def test_a_queued_run_that_is_cancelled_never_starts(by: str) -> None:
    """It ends at once with one event, `cancelled`, is not executed, and leaves the queue while all places are taken."""
    gate = Gate()
    manager = Manager(gate, max_workers=1)
    first = manager.start_run()
    gate.arrive()
    queued = manager.start_run(deadline=0.01 if by == "deadline" else None)
    if by == "manager":
        assert manager.cancel_run(queued.run_id, "why")
        assert queued.state == "cancelled"
        assert not manager.cancel_run(queued.run_id)
    elif by == "run":
        queued.cancel("why")
    elif by == "shutdown":
        manager.shutdown(wait=False)
    if by != "deadline":
        assert queued not in manager._queued
    kind = by if by in ("deadline", "shutdown") else "user"
    name, data = last(queued)
    assert (name, data["kind"]) == ("lifecycle.cancelled", kind)
    assert len(said(queued)) == 1
    assert manager.get_active_runs() == [first.run_id]
    # A deadline's callbacks, ours among them, run on a thread of their own.
    assert queued.token.wait(DEADLINE)
    gate.open.set()
    manager.shutdown(timeout=DEADLINE)
    assert manager._queued == {}
    assert first.state == "completed"
    assert gate.begun == [first.run_id]


def test_a_cancelled_run_ends_as_cancelled_whatever_its_code_does() -> None:
    """It may raise what it was told, something else, or return: it is never `failed`, and others go on."""
    begun = threading.Semaphore(0)

    def execute(config: dict[str, Any]) -> Any:
        run = get_run(config["run_id"])
        assert run is not None
        begun.release()
        assert run.token.wait(DEADLINE)
        if config["task"] == "told":
            run.handler(worker())(data="too late")
        if config["task"] == "another":
            raise ValueError
        return config["task"]

    with Manager(execute) as manager:
        runs = [manager.start_run(task=task) for task in ["told", "another", "return"]]
        other = manager.start_run(task="other")
        for _ in range(4):
            assert begun.acquire(timeout=DEADLINE)
        for run in runs:
            assert manager.cancel_run(run.run_id, "the user left")
            name, data = last(run)
            assert (name, data["kind"], data["reason"]) == (
                "lifecycle.cancelled",
                "user",
                "the user left",
            )
        assert other.state == "running"
        assert not other.token.is_set()
        other.cancel()
    assert all(run.cancel_requested_at for run in runs)


@pytest.mark.parametrize("by", ["manager", "deadline"])
@pytest.mark.parametrize("cancel_timeout", [0, 0.01])
def test_a_run_whose_code_does_not_return_is_ended(by: str, cancel_timeout: float) -> None:
    """When its time is over it is cancelled, and its place is free; what its code does later is dropped."""
    hangs, late = threading.Event(), threading.Event()
    begun = threading.Event()

    def execute(config: dict[str, Any]) -> Any:
        if config["task"] != "hang":
            return "next"
        run = get_run(config["run_id"])
        assert run is not None
        begun.set()
        waited(hangs)
        try:
            assert run.emit("llm", "stream", {"content": "late"}) is None
            assert isinstance(raised_by(lambda: run.handler(worker())(data="late")), RunCancelled)
        finally:
            late.set()
        return "too late"

    manager = Manager(execute, max_workers=1, cancel_timeout=cancel_timeout)
    hanging = manager.start_run(task="hang", deadline=3.0 if by == "deadline" else None)
    queued = manager.start_run()
    waited(begun)
    if by == "manager":
        assert manager.cancel_run(hanging.run_id)
    name, data = last(hanging)
    assert (name, data["kind"]) == ("lifecycle.cancelled", "user" if by == "manager" else by)
    assert last(queued) == ("lifecycle.completed", {"result": "next"})
    # Its id is free too, and the thread that comes back does not touch the new run of that id.
    heard: list[Any] = []
    gate = Gate()
    with Manager(gate) as others:
        again = others.start_run(run_id=hanging.run_id, on_event=heard.append)
        gate.arrive()
        hangs.set()
        waited(late)
        assert last(manager.start_run())[0] == "lifecycle.completed"
        assert _callback_registry[hanging.run_id] == heard.append
        assert again.state == "running"
        gate.open.set()
    manager.shutdown(timeout=DEADLINE)
    assert (hanging.state, len(said(hanging))) == ("cancelled", 2)
    assert manager._workers == 0


@pytest.mark.thread_unsafe(reason="sys.stdout is the whole process's")
@pytest.mark.parametrize("by", ["its own thread", "bind", "an executor"])
def test_an_abandoned_run_prints_into_no_later_run(by: str) -> None:
    """What its code prints when another run has its id goes to the stream it always went to, and into no log."""
    hangs, late, begun, again = (threading.Event() for _ in range(4))
    out = io.StringIO()

    def hang() -> None:
        begun.set()
        waited(hangs)
        print("of the first")
        late.set()

    def execute(config: dict[str, Any]) -> None:
        if config["task"] == "second":
            print("of the second")
            again.set()
            waited(late)
        elif by == "bind":
            Running(bind(hang)).result()
        elif by == "an executor":
            with BoundExecutor(ThreadPoolExecutor(1)) as executor:
                executor.submit(hang).result(DEADLINE)
        else:
            hang()

    with contextlib.redirect_stdout(out):
        manager = RunManager(execute, cancel_timeout=0.01)
        first = manager.start_run(task="first")
        waited(begun)
        first.cancel()
        assert last(first)[0] == "lifecycle.cancelled"
        second = manager.start_run(run_id=first.run_id, task="second")
        waited(again)
        hangs.set()
        assert last(second)[0] == "lifecycle.completed"
        manager.shutdown(timeout=DEADLINE)
    texts = [data["text"] for name, data in said(second) if name == "system.output"]
    assert texts == ["of the second"]
    assert [name for name, _ in said(first)] == ["lifecycle.started", "lifecycle.cancelled"]
    assert out.getvalue() == "of the second\nof the first\n"


# --- The end ---


def test_a_manager_that_is_shut_down_starts_nothing() -> None:
    """What runs is waited for, what waits ends as cancelled by the shutdown, and further runs are refused."""
    gate = Gate()
    manager = Manager(gate, max_workers=2)
    runs = [manager.start_run() for _ in range(4)]
    gate.arrive(2)
    shutting = Running(manager.shutdown)
    assert last(runs[3])[1]["kind"] == last(runs[2])[1]["kind"] == "shutdown"
    run_id = new_id()
    with pytest.raises(RuntimeError, match="shut down"):
        manager.start_run(run_id=run_id)
    assert get_run(run_id) is None
    assert not shutting.is_done
    gate.open.set()
    shutting.result()
    assert [run.state for run in runs] == ["completed"] * 2 + ["cancelled"] * 2
    manager.shutdown()
    manager.shutdown(wait=False)


def test_a_shutdown_with_a_deadline_ends_what_does_not_return() -> None:
    """When its time is over the rest is cancelled, and ended; no run is open when it returns."""
    gate, ended_itself = Gate(), threading.Event()

    def execute(config: dict[str, Any]) -> Any:
        run = get_run(config["run_id"])
        assert run is not None
        if config["task"] == "listens":
            gate.arrived.release()
            assert run.token.wait(DEADLINE)
            ended_itself.set()
            return None
        if config["task"] == "has ended":
            run.complete(early=True)
        return gate(config)

    manager = Manager(execute, cancel_timeout=0.05)
    runs = [manager.start_run(task=task) for task in ["listens", "hangs", "has ended"]]
    gate.arrive(3)
    Running(lambda: manager.shutdown(timeout=0.01)).result()
    assert [run.state for run in runs] == ["cancelled", "cancelled", "completed"]
    assert [run.token.kind for run in runs[:2]] == ["shutdown"] * 2
    waited(ended_itself)
    assert manager.get_active_runs() == []
    gate.open.set()


def test_a_cancelled_run_tells_what_its_code_knew() -> None:
    """What the code of a run annotates it with after its cancel is in its last event, beside the reason."""
    begun = threading.Event()

    def execute(config: dict[str, Any]) -> None:
        run = get_run(config["run_id"])
        assert run is not None
        begun.set()
        assert run.token.wait(DEADLINE)
        assert run.annotate(used=7)

    manager = Manager(execute)
    run = manager.start_run()
    waited(begun)
    assert manager.cancel_run(run.run_id, "enough")
    told = {"used": 7, "result": None, "kind": "user", "reason": "enough"}
    assert last(run) == ("lifecycle.cancelled", told)


def test_shutdowns_and_starts_at_once() -> None:
    """Each start either is refused, or its run ends; none is left pending."""
    for _ in range(30):
        manager = Manager(lambda _config: None, max_workers=2)
        started: list[Run] = []

        def start(manager: RunManager = manager, started: list[Run] = started) -> None:
            for _ in range(10):
                if isinstance(
                    error := raised_by(lambda: started.append(manager.start_run())), RuntimeError
                ):
                    assert "shut down" in str(error)
                else:
                    assert error is None

        together([start, start, manager.shutdown, partial(manager.shutdown, timeout=0)])
        for run in started:
            assert run.wait(DEADLINE)
        assert manager.get_active_runs() == []


@pytest.mark.parametrize(
    ("use", "error", "match"),
    [
        (lambda: RunManager(4), TypeError, "execute must be callable, not 4"),
        (lambda: RunManager(lambda _c: None, max_workers=0), ValueError, "max_workers.*not 0"),
        (lambda: RunManager(lambda _c: None, max_queued=-1), ValueError, "max_queued.*not -1"),
        (
            lambda: RunManager(lambda _c: None, cancel_timeout=-1),
            ValueError,
            "cancel_timeout.*not -1",
        ),
        (lambda: RunManager(lambda _c: None, cancel_timeout=float("nan")), ValueError, "not nan"),
        (lambda: RunManager(lambda _c: None).start_run(on_event=3), TypeError, "on_event.*not 3"),
        (lambda: RunManager(lambda _c: None).start_run(run_id=2.5), TypeError, "2.5"),
        (lambda: RunManager(lambda _c: None).start_run(deadline="x"), TypeError, "deadline"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    use: Callable[[], Any], error: type[Exception], match: str
) -> None:
    """The error says which, and what it was; no run is opened."""
    with pytest.raises(error, match=match):
        use()


def test_what_returns_before_its_work_is_done_is_refused() -> None:
    """A coroutine or generator function would only make an object."""

    async def coroutine(_config: Any) -> None: ...

    def generator(_config: Any) -> Any:
        yield

    class Callable:
        async def __call__(self, _config: Any) -> None: ...

    for execute in (coroutine, generator, Callable(), partial(coroutine)):
        with pytest.raises(TypeError, match=r"asyncio\.run"):
            RunManager(execute)


@pytest.mark.filterwarnings("error")
def test_work_that_is_returned_undone_fails_the_run() -> None:
    """A coroutine, another awaitable or a generator is no result, and the error says what to do; nothing warns."""

    async def coroutine() -> None: ...

    def generator() -> Any:
        yield

    async def async_generator() -> Any:
        yield

    class Awaitable:
        def __await__(self) -> Any: ...

    for make in (coroutine, generator, async_generator, Awaitable):
        with Manager(lambda _config, make=make: make()) as manager:
            name, data = last(manager.start_run())
        assert name == "lifecycle.failed"
        assert "asyncio.run" in data["error"]


# --- The process ---


def test_without_strands_the_default_says_what_to_install() -> None:
    """The hierarchy is imported with the first run that needs it; no run is opened where it is not there."""
    assert (
        printed(
            """
            import sys
            for name in ("strands", "strands.models", "llm_callback.hierarchy"):
                sys.modules[name] = None
            from llm_callback import RunManager, active_runs
            manager = RunManager()
            try:
                manager.start_run({}, "task")
            except ImportError as error:
                print("pip install 'llm-callback[strands]'" in str(error), active_runs())
            """
        )
        == "True []\n"
    )


HANGS = {
    "sleeps": "time.sleep(3600)",
    "computes": "while True: pass",
    "waits": "threading.Event().wait()",
    "waits for a pool": "waiting = concurrent.futures.ThreadPoolExecutor(1).submit(run.token.wait);"
    " begun.set(); waiting.result()",
    "waits for its token": "run.token.wait()",
    "prints": "while True: print('x', file=sys.stderr)",
}


@pytest.mark.parametrize("hang", HANGS.values(), ids=HANGS.keys())
def test_a_program_that_ends_is_not_held_up(hang: str) -> None:
    """At exit runs that wait and runs that hang end as cancelled by it, and the status is the program's own."""
    out = printed(
        f"""
        import concurrent.futures, io, sys, threading, time
        from llm_callback import RunManager, get_run
        begun = threading.Event()
        def execute(config):
            run = get_run(config["run_id"])
            {"" if "begun" in hang else "begun.set()"}
            {hang}
        if {"prints" in hang or "print(" in hang}:
            sys.stderr = io.StringIO()
        manager = RunManager(execute, max_workers=1, cancel_timeout=0.1)
        runs = [manager.start_run(), manager.start_run()]
        begun.wait(60)
        import atexit
        # Called before Rust's own end of all runs, and after ours.
        atexit.register(lambda: print([(run.state, run.token.kind) for run in runs], file=sys.__stdout__))
        """
    )
    assert out == "[('cancelled', 'shutdown'), ('cancelled', 'shutdown')]\n"


@pytest.mark.parametrize("is_first", [True, False])
def test_no_run_is_started_when_the_interpreter_exits(is_first: bool) -> None:
    """The error says so, whether or not a run was started before, and no run is left open."""
    out = printed(
        f"""
        import atexit
        from llm_callback import RunManager, active_runs
        def late():
            try:
                RunManager(print).start_run()
            except RuntimeError as error:
                print(error, active_runs())
        atexit.register(late)
        if not {is_first}:
            RunManager(lambda config: None).start_run().wait(60)
        """
    )
    assert out.startswith("the interpreter exits, and no more runs can be started")
    assert out.endswith(" []\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_manager_in_the_child_of_a_fork_is_as_new() -> None:
    """A fork while runs run and wait, and the lock is held, leaves a manager that works; the parent's goes on."""
    assert (
        printed(
            """
            import os, threading
            from llm_callback import RunManager
            go_on, begun = threading.Event(), threading.Event()
            def execute(config):
                if config["task"] == "wait":
                    begun.set()
                    go_on.wait(60)
                return config["task"]
            manager = RunManager(execute, max_workers=1, capture=False)
            runs = [manager.start_run(task="wait"), manager.start_run(task="wait")]
            begun.wait(60)
            held, release = threading.Event(), threading.Event()
            def hold():
                with manager._lock:
                    held.set()
                    release.wait(60)
            thread = threading.Thread(target=hold)
            thread.start()
            held.wait(60)
            pid = os.fork()
            if pid == 0:
                run = manager.start_run(task="child")
                ok = run.wait(60) and run.state == "completed" and manager.get_active_runs() == []
                os._exit(0 if ok else 3)
            assert os.waitpid(pid, 0)[1] == 0
            release.set()
            thread.join(60)
            go_on.set()
            assert manager.wait(timeout=60)
            print([run.state for run in runs])
            """,
            "-W",
            "ignore::DeprecationWarning",
        )
        == "['completed', 'completed']\n"
    )


def test_a_run_has_no_current_run_of_its_starter() -> None:
    """Who starts a run keeps its own current run, and the new one is executed under itself."""
    seen: list[Any] = []

    def job() -> Any:
        set_current_run_id("starter")
        with Manager(lambda _config: seen.append(get_current_run_id())) as manager:
            run = manager.start_run()
        return run.run_id, get_current_run_id()

    run_id, current = Running(job).result()
    assert current == "starter"
    assert seen == [run_id]
