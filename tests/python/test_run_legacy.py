"""The functions of the original module, where a run is open for the id: they speak and ask in that run."""

from __future__ import annotations

import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import llm_callback
import reference_model
from corpus import load, recorded_on_this_python, replay, reworded, spelt
from llm_callback import (
    LLMCallbackHandler,
    Run,
    RunCancelled,
    bind,
    check_cancellation,
    configure,
    create_callback_handler,
    get_cancellation_checker,
    get_event_callback,
    get_global_cancellation_checker,
    get_global_event_callback,
    open_run,
    register_cancellation_checker,
    register_event_callback,
    set_current_run_id,
    stats,
)
from support import events, in_thread, new_id, raised_by, said, together, worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corpus import Outcome, Scenario

CONTRACT = [scenario for scenario in load() if scenario.level != "hazard"]


@pytest.fixture
def _any_route() -> Iterator[None]:
    """Leave the route as it is by default."""
    yield
    configure(route="handler")


def forget(*run_ids: Any) -> None:
    """Take what is registered for the runs away."""
    for run_id in run_ids:
        register_event_callback(run_id, None)
        register_cancellation_checker(run_id, None)


def texts(run: Run) -> list[Any]:
    """Return the chunks of text in the log of ``run``."""
    return [data.get("content") for what, data in said(run) if what == "llm.stream"]


def event(content: Any = "x", **more: Any) -> dict[str, Any]:
    """Return an event as the original has it."""
    return {
        "source": worker().to_source_dict(),
        "event": {"category": "llm", "action": "stream"},
        "data": {"content": content},
        **more,
    }


# --- The callback of an open run ---


def test_the_callback_of_an_open_run_emits_into_it() -> None:
    """What get_event_callback returns puts events into the run's log, as they are, and is one for one run."""
    with open_run() as run, open_run() as other:
        callback = get_event_callback(run.run_id)
        callback(event("a"))
        callback(event("b", source=worker("late")))
        callback(event("c", source=None))
        logged = events(run)[1:]
        assert [(one["data"]["content"], one["source"]) for one in logged] == [
            ("a", worker().to_source_dict()),
            ("b", worker("late").to_source_dict()),
            ("c", None),
        ]
        assert callback == get_event_callback(run.run_id)
        assert hash(callback) == hash(get_event_callback(run.run_id))
        assert callback != get_event_callback(other.run_id)
        assert texts(other) == []


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (None, TypeError),
        ([], TypeError),
        ({}, KeyError),
        (event(event="llm.stream"), TypeError),
        (event(event={"category": "llm"}), KeyError),
        (event(event={"category": "llm", "action": "no thing"}), ValueError),
        (event(source=5), TypeError),
        (event(source={}), ValueError),
        ({"source": None, "event": {"category": "llm", "action": "stream"}}, KeyError),
    ],
    ids=repr,
)
def test_what_is_no_event_is_refused(bad: Any, error: type[Exception]) -> None:
    """An event that lacks a part, or has words that are none, raises and emits nothing."""
    with open_run() as run:
        with pytest.raises(error):
            get_event_callback(run.run_id)(bad)
        assert len(events(run)) == 1


def test_a_registered_callback_is_called_after_the_log() -> None:
    """One that is registered by hand is called once, with the original's event, when the log has it already."""
    heard = []
    with open_run() as run:

        def callback(one: Any) -> None:
            heard.append((one, events(run)[-1]["data"]))

        register_event_callback(run.run_id, callback)
        try:
            get_event_callback(run.run_id)(event("a"))
            run.emit("llm", "stream", {"content": "b"}, worker())
            run.handler(worker())(data="c")
            create_callback_handler(worker(), run_id=run.run_id)(data="d")
        finally:
            forget(run.run_id)
        assert [one for one, _ in heard] == [event(content) for content in "abcd"]
        assert all(one["data"] == logged for one, logged in heard)
        get_event_callback(run.run_id)(event("e"))
        assert len(heard) == 4
        assert texts(run) == list("abcde")


def test_a_registered_callback_that_raises() -> None:
    """Its error reaches whoever said it; the log has the event."""

    def callback(_: Any) -> None:
        raise LookupError("listener")

    with open_run() as run:
        register_event_callback(run.run_id, callback)
        try:
            for say in (
                partial(get_event_callback(run.run_id), event()),
                partial(run.emit, "llm", "stream", {"content": "x"}),
                partial(create_callback_handler(worker(), run_id=run.run_id), data="x"),
            ):
                with pytest.raises(LookupError, match="listener"):
                    say()
        finally:
            forget(run.run_id)
        assert texts(run) == ["x"] * 3


def test_a_callback_can_be_registered_before_its_run_is_open() -> None:
    """It hears what the run says, and what is said for the id before and after."""
    run_id, heard = new_id(), []
    register_event_callback(run_id, lambda one: heard.append(one["data"]["content"]))
    try:
        handler = create_callback_handler(worker(), run_id=run_id)
        handler(data="before")
        with open_run(run_id) as run:
            handler(data="inside")
        handler(data="after")
        assert heard == ["before", "inside", "after"]
        assert texts(run) == ["inside"]
    finally:
        forget(run_id)


# --- The handlers of the original ---


def test_a_handler_of_the_original_speaks_in_the_open_run() -> None:
    """All that it reports goes into the run's log, in its order, as the original words it."""
    with open_run() as run, open_run() as other:
        handler = create_callback_handler(worker(), run_id=run.run_id)
        handler(reasoningText="r", data="d", current_tool_use={"name": "t"}, complete=True)
        handler(data="  ")
        assert said(run)[1:] == [
            ("llm.reasoning", {"content": "r"}),
            ("llm.stream", {"content": "d"}),
            ("llm.tool_call", {"tool_name": "t", "tool_count": 1}),
            ("llm.completed", {"message": "LLM round completed"}),
        ]
        assert len(events(other)) == 1
        create_callback_handler(worker())(data="nobody's")
        assert len(events(run)) == 5


def test_a_handler_finds_the_run_at_each_call() -> None:
    """A handler that was made before its run speaks in it, and later in the next run of the id."""
    run_id = new_id()
    handler = create_callback_handler(worker(), run_id=run_id)
    handler(data="nobody")
    for generation in ("one", "two"):
        with open_run(run_id) as run:
            handler(data=generation)
        handler(data="nobody")
        assert texts(run) == [generation]


def test_an_explicit_callback_hides_the_run() -> None:
    """A handler with a callback of its own reports to that one only, as the contract says."""
    heard = []
    with open_run() as run:
        handler = create_callback_handler(worker(), heard.append, run_id=run.run_id)
        handler(data="x")
        assert heard == [event()]
        assert len(events(run)) == 1
        run.cancel()
        with pytest.raises(RunCancelled):
            handler(data="y")


def test_a_subclass_that_emits_itself() -> None:
    """An overridden _emit_event is given a callback that speaks in the run."""

    class Loud(LLMCallbackHandler):
        def _emit_event(self, callback: Any, category: Any, action: Any, data: Any) -> None:
            super()._emit_event(callback, category, action, {"content": data["content"].upper()})

    with open_run() as run:
        Loud(worker(), run_id=run.run_id)(data="x")
        assert texts(run) == ["X"]


@pytest.mark.parametrize("kind", ["int", "str", "UUID", "pending"])
def test_ids_of_all_kinds(kind: str) -> None:
    """The legacy functions find a run by its int, its str, or its UUID as such and as text; also a pending one."""
    made = uuid.uuid4()
    given = {"int": made.int >> 68, "UUID": made}.get(kind, str(made))
    run = open_run(given, pending=kind == "pending")
    heard: list[Any] = []
    for number, run_id in enumerate({given, run.run_id}):
        register_event_callback(run_id, heard.append)
        create_callback_handler(worker(), run_id=run_id)(data="h")
        get_event_callback(run_id)(event("c"))
        run.emit("llm", "stream", {"content": "e"})
        run.handler(worker())(data="r")
        forget(run_id)
        assert texts(run) == list("hcer") * (number + 1)
        assert len(heard) == 4 * (number + 1)
    stop: list[bool] = []
    register_cancellation_checker(given, lambda: bool(stop))
    handler = run.handler(worker())
    handler(data="x")
    stop.append(True)
    assert get_cancellation_checker(given)() is True
    assert get_cancellation_checker(run.run_id)() is True
    error = raised_by(partial(handler, data="y"))
    assert type(error) is RunCancelled
    forget(given)

    def block() -> None:
        with run:
            raise error

    assert raised_by(block) is error
    assert run.state == "cancelled"


# --- Checkers ---


def test_the_checker_of_an_open_run_asks_its_token() -> None:
    """It says so once the run, its parent or its token was asked to stop."""
    for how in ("cancel", "parent", "token"):
        parent = open_run()
        run = open_run(parent=parent)
        checker = get_cancellation_checker(run.run_id)
        assert checker() is False
        {"cancel": run.cancel, "parent": parent.cancel, "token": run.token.set}[how]()
        assert checker() is True
        assert get_cancellation_checker(parent.run_id)() is (how == "parent")
        run.complete()
        parent.complete()


def test_a_registered_checker_is_asked_beside_the_token() -> None:
    """Either of the two stops the run's handlers, and check_cancellation; what it raises passes through."""
    with open_run() as run:
        answer: list[Any] = [0]
        register_cancellation_checker(run.run_id, lambda: answer[0])
        try:
            checker = get_cancellation_checker(run.run_id)
            check = run.bind(check_cancellation)
            handlers = [
                create_callback_handler(worker(), run_id=run.run_id),
                run.handler(worker()),
            ]
            assert checker() is False
            check()
            answer[0] = "truthy"
            assert checker() is True
            for use in (check, *(partial(handler, data="x") for handler in handlers)):
                with pytest.raises(RunCancelled) as caught:
                    use()
                assert (caught.value.run_id, caught.value.kind) == (run.run_id, None)
            assert len(events(run)) == 1
        finally:
            forget(run.run_id)
        check()
        assert checker() is False
        run.cancel("enough")
        with pytest.raises(RunCancelled) as caught:
            check()
        assert (caught.value.kind, caught.value.reason) == ("user", "enough")


def test_check_cancellation_sees_the_open_run_of_the_context() -> None:
    """It raises for the current run, whichever thread it is on, and for no other run; without a run it does nothing."""
    with open_run() as run, open_run() as other:
        run.cancel("enough")
        check_cancellation()

        def check(run_id: Any) -> BaseException | None:
            set_current_run_id(run_id)
            return raised_by(check_cancellation)

        told, none, unknown = together(
            [partial(check, run_id) for run_id in (run.run_id, other.run_id, new_id())]
        )
        assert type(told) is RunCancelled
        assert (told.run_id, told.kind, told.reason) == (run.run_id, "user", "enough")
        assert (none, unknown) == (None, None)
        assert in_thread(partial(raised_by, check_cancellation)) is None


def test_the_global_functions_speak_for_the_current_run() -> None:
    """Without an id they mean the open run of the context."""
    with open_run() as run:

        def speak() -> tuple[Any, Any]:
            get_global_event_callback()(event())
            return get_global_event_callback(), get_global_cancellation_checker()

        callback, checker = run.bind(speak)()
        assert callback == get_event_callback(run.run_id)
        assert checker == get_cancellation_checker(run.run_id)
        assert texts(run) == ["x"]
        assert get_global_event_callback() is None


# --- The end ---


def test_after_the_end_the_functions_are_as_before() -> None:
    """An id whose run has ended has what is registered by hand, and nothing else."""
    run_id, heard = new_id(), []
    assert (get_event_callback(run_id), get_cancellation_checker(run_id)) == (None, None)
    with open_run(run_id) as run:
        callback, checker = get_event_callback(run_id), get_cancellation_checker(run_id)
        assert callback is not None
        assert checker is not None
    assert (get_event_callback(run_id), get_cancellation_checker(run_id)) == (None, None)
    register_event_callback(run_id, heard.append)
    register_cancellation_checker(run_id, bool)
    try:
        assert (get_event_callback(run_id), get_cancellation_checker(run_id)) == (
            heard.append,
            bool,
        )
        before = events(run)
        callback(event("late"))
        assert heard == []
        create_callback_handler(worker(), run_id=run_id)(data="x")
        assert heard == [event()]
        assert events(run) == before
    finally:
        forget(run_id)


@pytest.mark.thread_unsafe(reason="stats() is the whole process's")
def test_a_callback_that_was_kept_is_of_its_generation() -> None:
    """A callback from the id's first run does not speak in its second; what it says is counted as late."""
    run_id = new_id()
    with open_run(run_id):
        callback, checker = get_event_callback(run_id), get_cancellation_checker(run_id)
    with open_run(run_id) as second:
        late = stats()["runs"]["late"]
        callback(event("late"))
        assert stats()["runs"]["late"] == late + 1
        assert len(events(second)) == 1
        second.cancel()
        assert checker() is False
        assert callback != get_event_callback(run_id)


@pytest.mark.thread_unsafe(reason="stats() is the whole process's")
def test_counts_of_open_runs() -> None:
    """What only a log hears is no event without a callback; what a callback hears is counted as before."""
    with open_run() as run:
        handler = create_callback_handler(worker(), run_id=run.run_id)
        before = stats()
        handler(data="x")
        assert stats()["dropped"] == before["dropped"]
        assert (stats()["callbacks"], stats()["checkers"]) == (
            before["callbacks"],
            before["checkers"],
        )
        register_event_callback(run.run_id, id)
        emitted = stats()["emitted"]
        run.emit("llm", "stream", {"content": "y"})
        assert stats()["emitted"] == emitted + 1
        forget(run.run_id)


def test_the_private_registries_show_what_is_registered_by_hand() -> None:
    """An open run is none of the registry's entries."""
    with open_run() as run:
        assert run.run_id not in llm_callback._callback_registry
        register_event_callback(run.run_id, id)
        assert llm_callback._callback_registry[run.run_id] is id
        forget(run.run_id)


# --- Routes ---


@pytest.mark.thread_unsafe(reason="the route is the whole process's")
@pytest.mark.usefixtures("_any_route")
def test_route_context_prefers_the_run_of_the_context() -> None:
    """With route="context" a handler that was given another id speaks and is stopped where it is called."""
    configure(route="context")
    with open_run() as given, open_run() as current:
        handler = create_callback_handler(worker(), run_id=given.run_id)
        bound = current.bind(handler)
        bound(data="current")
        handler(data="given")
        assert (texts(given), texts(current)) == (["given"], ["current"])
        look = current.bind(lambda: get_event_callback(given.run_id))
        assert look() == current.bind(get_global_event_callback)()
        # A handler of a run is its run's, whoever calls it.
        current.bind(given.handler(worker()))(data="bound")
        assert texts(given) == ["given", "bound"]
        given.cancel()
        bound(data="on")
        assert texts(current) == ["current", "on"]
        current.cancel()
        with pytest.raises(RunCancelled) as caught:
            bound(data="x")
        assert caught.value.run_id == current.run_id


@pytest.mark.thread_unsafe(reason="the route is the whole process's")
@pytest.mark.usefixtures("_any_route")
def test_route_strict_drops_what_has_two_answers() -> None:
    """With route="strict" such an event is in neither log, and counted; where both agree it is in its run's."""
    configure(route="strict")
    with open_run() as given, open_run() as current:
        handler = create_callback_handler(worker(), run_id=given.run_id)
        dropped = stats()["dropped"]["route"]
        current.bind(handler)(data="x")
        assert stats()["dropped"]["route"] == dropped + 1
        given.bind(handler)(data="agreed")
        in_thread(partial(handler, data="no context"))
        assert (texts(given), texts(current)) == (["agreed", "no context"], [])
        given.cancel()
        # Only one of the two says so.
        current.bind(handler)(data="x")
        current.cancel()
        with pytest.raises(RunCancelled):
            current.bind(handler)(data="x")


@pytest.mark.thread_unsafe(reason="the route is the whole process's")
@pytest.mark.usefixtures("_any_route")
@pytest.mark.parametrize("given_as", ["UUID", "text"])
def test_route_strict_knows_a_uuid_by_its_text(given_as: str) -> None:
    """A UUID and its text are one run, also for the route."""
    configure(route="strict")
    made = uuid.uuid4()
    handler = create_callback_handler(worker(), run_id=made if given_as == "UUID" else str(made))
    with open_run(made) as run:
        run.bind(handler)(data="x")
        set_current_run_id(made)
        bind(handler)(data="y")
        assert texts(run) == ["x", "y"]
    llm_callback.clear_current_run_id()


# --- The contract ---


@pytest.mark.thread_unsafe(reason="sys.stdout is the whole process's")
@pytest.mark.parametrize("scenario", CONTRACT, ids=lambda scenario: scenario.id)
def test_the_contract_holds_beside_open_runs(scenario: Scenario) -> None:
    """Every scenario ends as it was recorded while other runs are open, and they hear nothing of it."""
    with open_run() as run, open_run(uuid.uuid4().int >> 68, parent=run) as child:
        outcomes = replay(llm_callback, scenario)
        for step, outcome, wanted in zip(scenario.steps, outcomes, expected(scenario), strict=True):
            assert spelt(outcome) == spelt(wanted), step
        assert [len(events(run)), len(events(child))] == [1, 1]


def expected(scenario: Scenario) -> list[Outcome]:
    """Return what was recorded, with exceptions in the words of this Python."""
    if recorded_on_this_python():
        return scenario.expect
    return reworded(scenario.expect, replay(reference_model, scenario))


# --- Threads ---


def test_opening_and_ending_beside_handlers() -> None:
    """While threads speak for an id whose runs come and go, each event is in one log, or dropped, and never raises."""
    run_id = new_id()
    rounds = 100

    def host() -> list[Run]:
        runs = []
        for _ in range(rounds):
            with open_run(run_id) as run:
                runs.append(run)
        return runs

    def speak(thread: int) -> list[Run]:
        handler = create_callback_handler(worker(f"{thread}"), run_id=run_id)
        for number in range(2_000):
            handler(data=f"{thread}:{number}")
        return []

    runs = together([host, *(partial(speak, thread) for thread in range(3))])[0]
    assert [run.generation for run in runs] == list(range(1, rounds + 1))
    for thread in range(3):
        mine = [
            int(content.split(":")[1])
            for run in runs
            for content in texts(run)
            if content.startswith(f"{thread}:")
        ]
        assert mine == sorted(set(mine))
    for run in runs:
        assert said(run)[-1][0] == "lifecycle.completed"
