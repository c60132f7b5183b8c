"""Hierarchies of real agents at once: each run's events are those it has alone, and a cancel ends its own run only."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from strands import tool
from strands.telemetry import tracer
from strands.types.tools import ToolContext  # noqa: TC002 - strands looks at the types

from hierarchies import (
    AGENTS,
    GLOBAL,
    SOON,
    TEAMS,
    WORDS,
    WORKERS,
    Live,
    Plan,
    Told,
    by_agent,
    check,
    multiset,
    plain,
    solo,
    texts,
    was_cancelled,
)
from llm_callback import (
    RunCancelled,
    RunManager,
    cancel_run,
    clear_current_run_id,
    get_current_run_id,
    get_run,
    open_run,
    register_cancellation_checker,
    register_event_callback,
    set_current_run_id,
    stats,
)
from llm_callback._views import _callback_registry, _checker_registry
from llm_callback.hierarchy import HierarchyExecutor, WorkerAgentFactory, execute_hierarchy, run_in
from llm_callback.testing import Fail, Gate, Pause, ScriptedModel, Text, ToolCall
from readers import kind, kinds
from support import DEADLINE, Running, in_thread, raised_by, scaled, together, waited, worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@contextmanager
def plans(count: int, **options: Any) -> Iterator[list[Plan]]:
    """Enter so many plans."""
    with ExitStack() as stack:
        yield [stack.enter_context(Plan(**options)) for _ in range(count)]


def meet(some: list[Plan], *workers: str) -> None:
    """Have all plans' workers of these ids wait for one another, so that their runs are there at the same time."""
    barrier = threading.Barrier(len(some))

    def wait(agent_id: str) -> None:
        if agent_id in workers:
            barrier.wait(DEADLINE)

    for plan in some:
        plan.on_look = wait


def halt(plan: Plan, agent_id: str = WORKERS[1]) -> tuple[threading.Event, threading.Event]:
    """Have a plan's tool wait; return the event that tells that it is there, and the one that lets it go on."""
    arrived, go_on = threading.Event(), threading.Event()

    def stay(worker_id: str) -> None:
        if worker_id == agent_id:
            arrived.set()
            waited(go_on)

    plan.on_look = stay
    return arrived, go_on


# --- Streams that are apart ---


def test_a_run_says_what_its_script_says() -> None:
    """Alone, a run's stream is its topology and all that its seven agents do, in order, and one end."""
    heard = solo()
    assert kinds(heard[:4]) == [
        "lifecycle.started",
        "system.topology",
        "agent.started",
        "llm.stream",
    ]
    assert kinds(heard[-2:]) == ["agent.completed", "lifecycle.completed"]
    assert kinds(heard).count("agent.started") == kinds(heard).count("agent.completed") == 7
    assert kinds(heard).count("llm.tool_call") == kinds(heard).count("llm.tool_result") == 10


def test_two_runs_in_lockstep_are_each_as_if_alone() -> None:
    """Two runs that wait for one another at each tool hear, as events and as SSE, what each hears alone."""
    with plans(2) as some:
        meet(some, *WORKERS)
        lives = [Live(plan) for plan in some]
        for live in lives:
            assert live.heard() == solo()
            check(live.plan, live.events)


def test_two_staggered_runs_are_each_as_if_alone() -> None:
    """One run starts when the other is at its second team, and that goes on when the first is there: both are whole."""
    with plans(2) as (first, second):
        arrived, go_on = halt(first, WORKERS[2])
        ahead = Live(first)
        waited(arrived)
        reached, end = halt(second, WORKERS[3])
        behind = Live(second)
        waited(reached)
        go_on.set()
        assert ahead.heard() == solo()
        end.set()
        assert behind.heard() == solo()


def test_runs_with_parallel_teams_and_workers_are_each_as_if_alone() -> None:
    """All workers of two runs are in their tools at once: each agent says what it says alone, and nothing is twice."""
    alone = solo(mode="parallel")
    with plans(2, mode="parallel") as some:
        barrier = threading.Barrier(2 * len(WORKERS))
        for plan in some:
            plan.on_look = lambda _worker: barrier.wait(DEADLINE)
        for live in [Live(plan) for plan in some]:
            heard = live.heard()
            check(live.plan, live.events)
            assert by_agent(heard) == by_agent(alone)
            assert multiset(heard) == multiset(alone)


def test_parallel_is_what_sequential_says_in_another_order() -> None:
    """The mode changes when agents work, and not what they say."""
    assert multiset(solo(mode="parallel")) == multiset(solo())
    assert by_agent(solo(mode="parallel")) == by_agent(solo())


def test_tools_that_a_worker_calls_at_once_are_of_its_run() -> None:
    """Two tools of one turn, of two runs, are at work at the same time, and their results go to their own run."""
    barrier = threading.Barrier(4)
    with plans(2, mode="parallel") as some:
        for plan in some:
            turn = plan.script[WORKERS[0]][0]
            turn.append(ToolCall(f"look_{plan.marker}", {"query": f"again {plan.marker}"}))
            plan.on_look = lambda one: one in {"again", WORKERS[0]} and barrier.wait(DEADLINE)
        for live in [Live(plan) for plan in some]:
            heard = live.heard()
            results = [
                event["data"]["content"][0]["text"]
                for event in by_agent(heard)[WORKERS[0]]
                if kind(event) == "llm.tool_result"
            ]
            assert results == [f"{WORKERS[0]} MARKER is calm", "again MARKER is calm"]
            assert {run_id for _, run_id in live.plan.looked} == {live.plan.run_id}


# --- Under load ---


@pytest.mark.thread_unsafe(reason="is as many runs as the machine can have")
@pytest.mark.parametrize("count", [5, 10, *scaled(50, 200)])
def test_many_runs_at_once_are_each_as_if_alone(count: int) -> None:
    """All runs of one executor are in their first worker's tool at once; none loses, repeats or hears of another."""
    executor = HierarchyExecutor()
    with plans(count) as some:
        meet(some, WORKERS[0])
        lives = [Live(plan, executor=executor) for plan in some]
        assert all(live.run.wait(DEADLINE) for live in lives)
        for live in lives:
            check(live.plan, live.events)
            assert live.heard() == solo()


@pytest.mark.thread_unsafe(reason="swaps a class of strands")
def test_the_first_runs_of_a_process_make_one_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that are made at once find the tracer of strands made: a second one would instrument threads again."""
    making: list[threading.Thread] = []
    # Broken at once by a second tracer, and after a moment without one.
    second = threading.Barrier(2)

    class SlowTracer(tracer.Tracer):
        def __init__(self) -> None:
            making.append(threading.current_thread())
            with suppress(threading.BrokenBarrierError):
                second.wait(0.5)
            super().__init__()

    monkeypatch.setattr(tracer, "Tracer", SlowTracer)
    monkeypatch.setattr(tracer, "_tracer_instance", None)
    with plans(4) as some:
        lives = [Live(plan) for plan in some]
        assert all(live.run.wait(DEADLINE) for live in lives)
    assert len(making) == 1


def test_the_same_task_one_after_the_other_has_every_worker_work() -> None:
    """A second and a third run of one task, with one executor on one thread, do all the work again."""
    executor = HierarchyExecutor()

    def work() -> None:
        for _ in range(3):
            with (
                Plan(label="tides") as plan,
                open_run(plan.run_id, task=plan.config["task"]) as run,
            ):
                run.complete(**executor.execute_in(run, plan.config).to_dict())
            events = list(run.subscribe("start"))
            check(plan, events)
            assert plain(plan, events) == solo(label="tides")

    in_thread(work)


def test_the_same_task_at_once_has_every_worker_of_each_run_work() -> None:
    """Runs whose tasks, names and ids are all the same do all the work each."""
    executor = HierarchyExecutor()
    with plans(4, label="tides") as some:
        meet(some, *WORKERS)
        lives = [Live(plan, executor=executor) for plan in some]
        for live in lives:
            check(live.plan, live.events)
            assert live.heard() == solo(label="tides")


def test_the_same_run_id_again_is_a_new_run() -> None:
    """A configuration that is executed twice does all its work twice, and each response has its own run's events."""
    with Plan() as plan:
        first, second = [execute_hierarchy(plan.config) for _ in range(2)]
        assert plain(plan, first["events"]) == plain(plan, second["events"]) == solo()
        assert not {event["id"] for event in first["events"]} & {
            event["id"] for event in second["events"]
        }
        assert [query for query, _ in plan.looked] == [f"{w} {plan.marker}" for w in WORKERS] * 2


def test_fast_runs_end_beside_slow_ones() -> None:
    """Runs whose models are silent hold up no other; when they speak again they are whole."""
    go_on = threading.Event()
    with plans(3) as slow, plans(5) as fast:
        for plan, agent_id in zip(slow, (GLOBAL, *TEAMS), strict=True):
            plan.insert(agent_id, Gate(go_on, DEADLINE))
        lives = [Live(plan) for plan in slow]
        try:
            for live in [Live(plan) for plan in fast]:
                check(live.plan, live.events)
                assert live.heard() == solo()
            assert not any(live.work.is_done for live in lives)
        finally:
            go_on.set()
        for live in lives:
            assert live.heard() == solo()


# --- Cancels ---


@pytest.mark.thread_unsafe(reason="is as many runs as the machine can have")
@pytest.mark.parametrize("count", [2, *scaled(10, 200)])
def test_cancelled_runs_end_and_the_others_complete(count: int) -> None:
    """The half that is cancelled half-way ends at a prefix of what it hears alone; the others hear all of it."""
    victims = count // 2
    with plans(count) as some:
        halts = [halt(plan) for plan in some]
        lives = [Live(plan) for plan in some]
        for arrived, _ in halts:
            waited(arrived)
        for live in lives[:victims]:
            assert live.run.cancel("enough")
        try:
            for live in lives[:victims]:
                error = was_cancelled(live)
                assert (error.kind, error.reason) == ("user", "enough")
        finally:
            for _, go_on in halts:
                go_on.set()
        for live in lives[:victims]:
            heard = [event for event in plain(live.plan, live.events) if not is_left(event)]
            assert heard[:-1] == solo()[: len(heard) - 1]
            assert texts(live.events, WORKERS[2]) == []
        for live in lives[victims:]:
            check(live.plan, live.events)
            assert live.heard() == solo()


# For runs whose tasks and tools all end with them, however slow the machine is.
PATIENT = HierarchyExecutor(tool_patience=DEADLINE)


def is_left(event: dict[str, Any]) -> bool:
    """Whether it tells of a tool that was left alone."""
    return kind(event) == "system.warning" and "left alone" in event["data"]["message"]


@pytest.mark.parametrize("agent_id", [GLOBAL, "team-1-supervisor", WORKERS[0], WORKERS[3]])
def test_a_silent_model_does_not_hold_up_a_cancel(agent_id: str) -> None:
    """A run whose model says nothing for 30 s ends long before that, whichever agent's it is."""
    silent = threading.Event()
    with plans(2) as (plan, other):
        plan.insert(agent_id, Gate(Told(silent)), turn=-1)
        plan.insert(agent_id, Pause(30), turn=-1, at=2)
        arrived, go_on = halt(other)
        live, beside = Live(plan, executor=PATIENT), Live(other)
        waited(silent)
        waited(arrived)
        live.run.cancel()
        was_cancelled(live, SOON)
        heard = plain(plan, live.events)
        assert heard[:-1] == solo()[: len(heard) - 1]
        assert texts(live.events, agent_id) == plan.texts(agent_id)
        go_on.set()
        assert beside.heard() == solo()


def test_an_async_tool_is_cancelled_with_its_run() -> None:
    """A tool that awaits something for ever gets asyncio's cancel, and the run has ended; another run's does not."""
    began, told = threading.Event(), threading.Event()
    others_began, go_on = threading.Event(), threading.Event()

    @tool(name=f"wait_{id(began)}")
    async def wait() -> str:
        """Wait."""
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise
        return "never"

    @tool(name=f"wait_{id(go_on)}")
    async def wait_too() -> str:
        """Wait until the test says so."""
        others_began.set()
        assert await asyncio.to_thread(go_on.wait, DEADLINE)
        return "done"

    with plans(2) as (plan, other):
        plan.give(WORKERS[0], "wait", wait)
        other.give(WORKERS[0], "wait", wait_too)
        live, beside = Live(plan, executor=PATIENT), Live(other)
        waited(began)
        waited(others_began)
        live.run.cancel()
        was_cancelled(live, SOON)
        assert told.is_set()
        assert not any(is_left(event) for event in live.events)
        go_on.set()
        assert kind(beside.events[-1]) == "lifecycle.completed"
        assert "done" in [
            event["data"]["content"][0]["text"]
            for event in beside.events
            if kind(event) == "llm.tool_result"
        ]


@pytest.mark.thread_unsafe(reason="the log is the whole process's")
def test_a_synchronous_tool_that_hangs_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The run ends without it and says so by its name; what the tool does later is in no stream and no log."""
    began, go_on, left = threading.Event(), threading.Event(), threading.Event()
    caught: list[BaseException | None] = []

    with plans(2) as (plan, other):

        @tool(name=f"hang_{plan.marker}")
        def hang() -> str:
            """Hang, and speak afterwards."""
            run = get_run(plan.run_id)
            assert run is not None
            handler = run.handler(worker())
            began.set()
            waited(go_on)
            print("late")  # noqa: T201 - that is what is looked at
            caught.append(raised_by(partial(handler, data="late")))
            caught.append(raised_by(partial(run.emit, "llm", "stream", {"content": "late"})))
            left.set()
            return "late"

        plan.give(WORKERS[0], "hang", hang)
        arrived, end = halt(other)
        live, beside = Live(plan), Live(other)
        waited(began)
        waited(arrived)
        live.run.cancel()
        was_cancelled(live, SOON)
        warnings = [event["data"] for event in live.events if is_left(event)]
        [message] = [warning["message"] for warning in warnings if warning["tool"] == "hang"]
        assert "hang" in message
        before = list(live.run.subscribe("start"))
        go_on.set()
        waited(left)
        assert [type(error) for error in caught] in ([RunCancelled, type(None)], [type(None)] * 2)
        end.set()
        assert beside.heard() == solo()
        for thread in threading.enumerate():
            if thread.name == "llm-tool":
                thread.join(DEADLINE)
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
        assert list(live.run.subscribe("start")) == before
        assert live.run.state == "cancelled"


async def ignore_cancels(began: threading.Event) -> None:
    """Go on for ever."""
    while True:
        began.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


@pytest.mark.thread_unsafe(reason="the log is the whole process's")
@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_an_async_tool_that_ignores_its_cancel_is_left_alone(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The run ends without it and says so, its thread ends, and nothing is logged of the task that is left."""
    began = threading.Event()

    @tool(name=f"ignore_{id(began)}")
    async def ignore() -> str:
        """Never end."""
        await ignore_cancels(began)
        return "never"

    with Plan(mode=mode) as plan:
        plan.give(WORKERS[0], "ignore", ignore)
        live = Live(plan)
        waited(began)
        live.run.cancel()
        was_cancelled(live, SOON)
        assert any(is_left(event) for event in live.events)
    gc.collect()
    assert [one for one in caplog.records if "pending" in one.getMessage()] == []


@pytest.mark.thread_unsafe(reason="the log is the whole process's")
def test_a_task_that_a_tool_has_left_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The run completes with all of its work, and says which task goes on; nothing is logged of it."""
    began = threading.Event()
    kept: list[asyncio.Task[None]] = []

    @tool(name=f"leave_{id(began)}")
    async def leave() -> str:
        """Leave a task behind."""
        kept.append(asyncio.ensure_future(ignore_cancels(began)))
        return "left"

    with Plan() as plan:
        plan.give(WORKERS[0], "leave", leave)
        live = Live(plan)
        assert live.raised is None
        warnings = {
            event["data"]["tool"]: event["data"]["message"]
            for event in live.events
            if is_left(event)
        }
        told = "the task ignore_cancels did not end within 0.05 s"
        assert warnings["ignore_cancels"].startswith(told)
        assert kind(live.events[-1]) == "lifecycle.completed"
        assert texts(live.events, GLOBAL) == plan.texts(GLOBAL)
    kept.clear()
    gc.collect()
    assert [one for one in caplog.records if "pending" in one.getMessage()] == []


def test_a_generator_that_does_not_close_is_left_alone() -> None:
    """A run completes although an async generator of a tool waits for ever where it should close."""
    kept: list[Any] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.Event().wait()

    @tool(name=f"count_{id(kept)}")
    async def begin() -> str:
        """Begin to count."""
        kept.append(numbers())
        return str(await anext(kept[0]))

    with Plan() as plan:
        plan.give(WORKERS[0], "count", begin)
        live = Live(plan)
        assert live.raised is None
        warnings = [event["data"]["tool"] for event in live.events if is_left(event)]
        assert "BaseEventLoop.shutdown_asyncgens" in warnings


def test_who_ends_a_run_from_outside_ends_its_work() -> None:
    """An end by somebody else cancels the tasks of the run, and its execution says that it was stopped."""
    began, told = threading.Event(), threading.Event()

    @tool(name=f"wait_{id(began)}")
    async def wait() -> str:
        """Wait."""
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.set()
        return "never"

    with Plan() as plan:
        plan.give(WORKERS[0], "wait", wait)
        live = Live(plan)
        waited(began)
        assert live.run.fail("by a watchdog")
        assert isinstance(live.raised, RunCancelled)
        assert told.is_set()
        assert live.run.state == "failed"
        assert live.events[-1]["data"]["error"] == "by a watchdog"


def test_a_synchronous_tool_that_looks_at_its_token_ends_with_its_run() -> None:
    """A tool finds the token of its agent in its context: it ends in time, and no warning is needed."""
    began = threading.Event()
    seen: list[Any] = []

    @tool(context=True, name=f"heed_{id(began)}")
    def heed(tool_context: ToolContext) -> str:
        """Wait for the cancel."""
        state = tool_context.invocation_state
        seen.append(state["run_id"])
        began.set()
        seen.append(state["cancel_token"].wait(DEADLINE))
        return "stopped"

    with Plan() as plan:
        plan.give(WORKERS[0], "heed", heed)
        live = Live(plan, executor=PATIENT)
        waited(began)
        live.run.cancel()
        was_cancelled(live, SOON)
        assert seen == [plan.run_id, True]
        assert not any(is_left(event) for event in live.events)


def test_a_run_that_its_own_tool_cancels_ends_as_cancelled() -> None:
    """A tool may stop its run: nothing follows what it has said before."""
    with Plan() as plan:
        plan.on_look = lambda _worker: cancel_run(get_current_run_id(), "by its tool")
        live = Live(plan)
        error = was_cancelled(live)
        assert error.reason == "by its tool"
        heard = [event for event in plain(plan, live.events) if not is_left(event)]
        assert heard[:-1] == solo()[: len(heard) - 1]
        assert len(plan.looked) == 1


@contextmanager
def listening(plan: Plan, listen: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Have a callback registered by hand for a plan's run."""
    register_event_callback(plan.run_id, listen)
    try:
        yield
    finally:
        register_event_callback(plan.run_id, None)


@pytest.mark.thread_unsafe(reason="the log is the whole process's")
@pytest.mark.parametrize("agent_id", [GLOBAL, *TEAMS, WORKERS[0]])
def test_a_cancel_between_two_words_ends_the_run_there(
    agent_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The next word is not heard, whichever agent's it is, and neither strands nor its tracing complains."""
    with Plan() as plan:
        word = plan.texts(agent_id)[2]

        def listen(event: dict[str, Any]) -> None:
            if event["data"].get("content") == word:
                cancel_run(plan.run_id)

        with listening(plan, listen):
            live = Live(plan, executor=PATIENT)
            was_cancelled(live)
        assert texts(live.events, agent_id) == plan.texts(agent_id)[:3]
        heard = plain(plan, live.events)
        assert heard[:-1] == solo()[: len(heard) - 1]
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_hosts_checker_ends_the_run_as_cancelled() -> None:
    """Where a registered checker says so in the middle, no word follows, and no success is told."""
    with Plan() as plan:
        word = plan.texts(WORKERS[0])[7]
        stop = threading.Event()

        def listen(event: dict[str, Any]) -> None:
            if event["data"].get("content") == word:
                stop.set()

        register_cancellation_checker(plan.run_id, stop.is_set)
        try:
            with listening(plan, listen):
                live = Live(plan, executor=PATIENT)
                error = was_cancelled(live)
        finally:
            register_cancellation_checker(plan.run_id, None)
        assert error.reason == "the run's checker says so"
        assert texts(live.events, WORKERS[0]) == plan.texts(WORKERS[0])[:8]
        heard = plain(plan, live.events)
        assert heard[:-1] == solo()[: len(heard) - 1]


class Talking(ScriptedModel):
    """Says a million words, and never lets the loop's other tasks run."""

    WORDS = 1_000_000

    def __init__(self) -> None:
        super().__init__(["unused"])
        self.said = 0
        self.began = threading.Event()

    async def stream(self, *_args: Any, **_options: Any) -> AsyncIterator[Any]:
        """Talk."""
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockStart": {"start": {}}}
        for number in range(self.WORDS):
            self.said = number + 1
            yield {"contentBlockDelta": {"delta": {"text": "word "}}}
            if number == WORDS:
                self.began.set()
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}


@pytest.mark.parametrize("agent_id", [GLOBAL, "team-1-supervisor", WORKERS[0]])
@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_a_model_that_talks_without_a_pause_is_stopped(agent_id: str, how: str) -> None:
    """Its run's end, by a cancel or by somebody else, is seen between two words; its thread ends with it."""
    model = Talking()
    with Plan() as plan:
        plan.script[agent_id] = [[Text(("never ",))]]
        plan.model_for[agent_id] = model
        live = Live(plan)
        waited(model.began)
        assert live.run.cancel() if how == "cancel" else live.run.fail("by somebody else")
        assert isinstance(live.raised, RunCancelled)
        assert live.run.state == ("cancelled" if how == "cancel" else "failed")
        assert model.said < model.WORDS // 2


def test_a_cancel_at_the_last_moment_is_a_cancel() -> None:
    """A run that is cancelled when its answer is there has ended as cancelled, for its reader and its executor."""
    with Plan() as plan:

        def listen(event: dict[str, Any]) -> None:
            if kind(event) == "agent.completed" and event["source"]["agent_id"] == GLOBAL:
                cancel_run(plan.run_id, "at the last moment")

        with listening(plan, listen):
            live = Live(plan)
            assert was_cancelled(live).reason == "at the last moment"
            response = HierarchyExecutor().execute(plan.config)
        assert (response.success, response.result) == (False, None)
        assert kind(response.events[-1]) == "lifecycle.cancelled"


def test_a_run_that_was_cancelled_before_its_work_asks_no_model() -> None:
    """Neither an agent nor a tool of it begins; the last event says that it was cancelled."""
    with Plan() as plan, suppress(RunCancelled), open_run(plan.run_id) as run:
        run.cancel("too late")
        HierarchyExecutor().execute_in(run, plan.config)
    assert (run.state, plan.looked) == ("cancelled", [])
    assert not any(plan.requests(agent_id) for agent_id in AGENTS)


def test_a_cancel_while_the_models_are_made_is_a_cancel() -> None:
    """The models after that are not made; each of the others was made once, and none is asked."""
    with Plan() as plan:

        def words(agent_id: str, _: int) -> list[list[Any]]:
            if agent_id == WORKERS[1]:
                cancel_run(plan.run_id)
            return plan.script[agent_id]

        plan.script_for = words
        live = Live(plan)
        was_cancelled(live)
        assert {one: len(made) for one, made in plan.models.items()} == dict.fromkeys(
            ["team-1-supervisor", *WORKERS[:2]], 1
        )
        assert not any(plan.requests(agent_id) for agent_id in AGENTS)


def test_each_agent_of_a_run_has_one_model_where_it_has_one_task() -> None:
    """The model that was made before the work began is the one that works."""
    with Plan() as plan:
        live = Live(plan)
        assert live.heard() == solo()
        assert {one: len(plan.models[one]) for one in AGENTS} == dict.fromkeys(AGENTS, 1)


def test_a_parents_cancel_ends_the_hierarchies_below_it() -> None:
    """A cancel of a run ends those that were opened below it, and leaves those that were not."""
    with plans(2) as (plan, other), open_run() as parent:
        arrived, go_on = halt(plan)
        others_arrived, others_go_on = halt(other)

        def work() -> None:
            with open_run(plan.run_id, parent=parent) as run:
                HierarchyExecutor().execute_in(run, plan.config)

        below, beside = Running(work), Live(other)
        waited(arrived)
        waited(others_arrived)
        parent.cancel()
        error = raised_by(below.result)
        go_on.set()
        assert isinstance(error, RunCancelled)
        assert error.kind == "parent"
        others_go_on.set()
        assert beside.heard() == solo()


# --- Nothing stays ---


def completes(_plan: Plan) -> None:
    """Leave the plan as it is."""


def fails(plan: Plan) -> None:
    """Have the run fail."""
    plan.insert(GLOBAL, Fail(OSError("broken")), turn=-1)


def cancels(plan: Plan) -> None:
    """Have the run cancelled."""
    plan.on_look = lambda _worker: cancel_run(plan.run_id)


def cannot_begin(plan: Plan) -> None:
    """Have a configuration that cannot be used."""
    plan.config["teams"] = 3


OUTCOMES = pytest.mark.parametrize(
    ("change", "state"),
    [
        (completes, "completed"),
        (fails, "failed"),
        (cancels, "cancelled"),
        (cannot_begin, "failed"),
    ],
)


@OUTCOMES
@pytest.mark.thread_unsafe(reason="counts all registrations, runs and threads of the process")
def test_nothing_stays_after_a_run(change: Callable[[Plan], None], state: str) -> None:
    """Registrations, open runs, the current run and threads are after a run what they were before, however it ended."""

    def now() -> tuple[Any, ...]:
        counts = stats()
        kept = (dict(_callback_registry), dict(_checker_registry), get_current_run_id())
        return counts["callbacks"], counts["checkers"], counts["runs"]["live"], *kept

    threads, before = set(threading.enumerate()), now()
    for execute in (HierarchyExecutor().execute, partial(in_thread_execute, HierarchyExecutor())):
        with Plan() as plan:
            change(plan)
            response = execute(plan.config)
        assert kind(response.events[-1]) == f"lifecycle.{state}"
        assert response.success is (state == "completed")
        assert now() == before
    for thread in set(threading.enumerate()) - threads:
        thread.join(DEADLINE)
    assert not set(threading.enumerate()) - threads


def in_thread_execute(executor: HierarchyExecutor, config: dict[str, Any]) -> Any:
    """Execute on a fresh thread."""
    return in_thread(partial(executor.execute, config))


@OUTCOMES
def test_the_current_run_is_afterwards_what_it_was(
    change: Callable[[Plan], None], state: str
) -> None:
    """A host's own current run is current again after a run, however it ended; and none where there was none."""

    def work(before: str | None) -> Any:
        if before is not None:
            set_current_run_id(before)
        with Plan() as plan:
            change(plan)
            response = HierarchyExecutor().execute(plan.config)
        assert kind(response.events[-1]) == f"lifecycle.{state}"
        return get_current_run_id()

    assert in_thread(partial(work, "the host's")) == "the host's"
    assert in_thread(partial(work, None)) is None


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_tools_see_their_own_run_as_the_current_one(mode: str) -> None:
    """Synchronous and asynchronous tools of two runs, at the same time, each find their own run's id."""
    with plans(2, mode=mode) as some:
        meet(some, WORKERS[1])
        seen = [asks(plan, WORKERS[0]) for plan in some]
        for live in [Live(plan) for plan in some]:
            assert live.raised is None
        for plan, found in zip(some, seen, strict=True):
            assert found == [plan.run_id] * 2
            assert {run_id for _, run_id in plan.looked} == {plan.run_id}
            assert len(plan.looked) == len(WORKERS) - 1


def asks(plan: Plan, agent_id: str) -> list[Any]:
    """Have a worker's asynchronous tool ask for the current run, before and after it waits; return what it found."""
    found: list[Any] = []

    @tool(name=f"ask_{plan.marker}")
    async def ask() -> str:
        """Ask which run it is."""
        found.append(get_current_run_id())
        await asyncio.sleep(0)
        found.append(WorkerAgentFactory._current_run_id)
        return "asked"

    plan.give(agent_id, "ask", ask)
    return found


def test_the_current_run_of_the_factory_is_of_the_calling_context() -> None:
    """Neither two threads nor two asyncio tasks see the run that the other has set; None takes it back."""
    barrier = threading.Barrier(2)

    def on_thread(run_id: str) -> tuple[Any, ...]:
        before = WorkerAgentFactory._current_run_id
        WorkerAgentFactory._current_run_id = run_id
        barrier.wait(DEADLINE)
        seen = WorkerAgentFactory._current_run_id, get_current_run_id()
        barrier.wait(DEADLINE)
        WorkerAgentFactory.set_current_run_id(None)
        return before, *seen, WorkerAgentFactory._current_run_id

    assert together([partial(on_thread, "a"), partial(on_thread, "b")]) == [
        (None, "a", "a", None),
        (None, "b", "b", None),
    ]

    async def in_task(run_id: str) -> tuple[Any, ...]:
        WorkerAgentFactory.set_current_run_id(run_id)
        await asyncio.sleep(0)
        return WorkerAgentFactory._current_run_id, get_current_run_id()

    async def both() -> list[tuple[Any, ...]]:
        return await asyncio.gather(in_task("a"), in_task("b"))

    assert in_thread(lambda: asyncio.run(both())) == [("a", "a"), ("b", "b")]


def test_a_run_does_not_believe_the_hosts_current_run() -> None:
    """What a host has set as the current run, as the original's executor did, is not where a run's events go."""
    with Plan() as plan, open_run() as hosts:

        def work() -> Any:
            WorkerAgentFactory.set_current_run_id(hosts.run_id)
            return HierarchyExecutor().execute(plan.config)

        response = in_thread(work)
        check(plan, response.events)
        assert len(list(hosts.subscribe("start").read(10, 0))) == 1


# --- Where it may be called ---


def test_a_thread_that_runs_an_event_loop_is_refused() -> None:
    """The error says what to do, and the run has failed with it; asyncio.to_thread does."""

    async def wrong(plan: Plan) -> Any:
        return HierarchyExecutor().execute(plan.config)

    async def right(plan: Plan) -> Any:
        return await asyncio.to_thread(HierarchyExecutor().execute, plan.config)

    with Plan() as plan:
        response = in_thread(lambda: asyncio.run(wrong(plan)))
        assert (response.success, kind(response.events[-1])) == (False, "lifecycle.failed")
        assert "await asyncio.to_thread(executor.execute, config)" in response.error
        assert plan.looked == []
        response = in_thread(lambda: asyncio.run(right(plan)))
        assert plain(plan, response.events) == solo()


def test_many_runs_of_one_event_loop() -> None:
    """An asynchronous host has its runs at once, each on a thread, and each is as if alone."""

    async def all_of(some: list[Plan]) -> list[Any]:
        executor = HierarchyExecutor()
        jobs = [asyncio.to_thread(executor.execute, plan.config) for plan in some]
        return await asyncio.gather(*jobs)

    with plans(4) as some:
        for plan, response in zip(some, in_thread(lambda: asyncio.run(all_of(some))), strict=True):
            assert plain(plan, response.events) == solo()


def test_run_in_leaves_the_end_of_the_run_to_its_caller() -> None:
    """It works in the live run that the configuration names, and returns what the supervisor has answered."""
    with Plan() as plan:
        with open_run(plan.run_id, task=plan.config["task"]) as run:
            result = run_in(plan.config)
            assert run.state == "running"
            assert result.result == "".join(plan.texts(GLOBAL)[-5:]).strip()
            run.complete(**result.to_dict())
        assert plain(plan, list(run.subscribe("start"))) == solo()


@pytest.mark.parametrize("run_id", [None, "no such run"])
def test_run_in_needs_an_open_run(run_id: str | None) -> None:
    """Without a live run of the configuration's id there is nothing to work in."""
    with Plan() as plan, pytest.raises(ValueError, match="run_id must be that of an open run"):
        run_in({**plan.config, "run_id": run_id})


def test_an_id_that_is_live_is_refused() -> None:
    """Two runs of one id at once are not: the second one is told, and the first goes on."""
    with Plan() as plan:
        arrived, go_on = halt(plan)
        live = Live(plan)
        waited(arrived)
        with pytest.raises(RuntimeError, match=plan.run_id):
            HierarchyExecutor().execute(plan.config)
        go_on.set()
        assert live.heard() == solo()


def test_clearing_the_current_run_in_a_tool_is_the_tools_own_affair() -> None:
    """A tool that clears or changes the current run changes it for itself: the agents after it see theirs."""
    with Plan() as plan:

        def forget(worker_id: str) -> None:
            clear_current_run_id()
            set_current_run_id(worker_id)

        plan.on_look = forget
        live = Live(plan)
        assert live.heard() == solo()
        check(plan, live.events)


# --- By a manager of runs ---


def test_ten_runs_of_a_manager_of_four_are_each_as_if_alone() -> None:
    """The four that run meet in their first tool, the others wait for their turn, and each says what it says alone."""
    manager = RunManager(max_workers=4, capture=False)
    with manager, plans(10) as some:
        meet(some[:4], WORKERS[0])
        runs = [manager.start_run(plan.config, on_event=lambda _event: None) for plan in some]
        assert manager.wait(timeout=DEADLINE)
        for plan, run in zip(some, runs, strict=True):
            events = list(run.subscribe("start"))
            check(plan, events)
            assert plain(plan, events) == solo()


def test_a_manager_cancels_one_that_waits_and_one_that_runs_and_no_other() -> None:
    """The one that waits never begins, the one that runs ends half-way, and the others are as if alone."""
    manager = RunManager(max_workers=2, capture=False)
    with manager, plans(4) as (victim, works, waits, late):
        halts = [halt(plan) for plan in (victim, works)]
        runs = [manager.start_run(plan.config) for plan in (victim, works, waits, late)]
        try:
            for arrived, _ in halts:
                waited(arrived)
            assert manager.cancel_run(waits.run_id, "not any more")
            assert runs[2].wait(DEADLINE)
            assert kinds(runs[2].subscribe("start")) == ["lifecycle.cancelled"]
            assert manager.cancel_run(victim.run_id)
            assert runs[0].wait(SOON)
            # Its place is free for the one that waits still.
            assert runs[3].wait(DEADLINE)
            assert runs[1].state == "running"
        finally:
            for _, go_on in halts:
                go_on.set()
        assert manager.wait(timeout=DEADLINE)
        assert [run.state for run in runs] == ["cancelled", "completed", "cancelled", "completed"]
        for plan, run in ((works, runs[1]), (late, runs[3])):
            assert plain(plan, list(run.subscribe("start"))) == solo()
        assert not any(waits.requests(agent_id) for agent_id in AGENTS)
        assert waits.looked == []


@pytest.mark.thread_unsafe(reason="sys.stdout is the whole process's")
def test_what_a_managers_runs_print_is_each_ones_own() -> None:
    """What the tools of runs at once print becomes events of their own run, and of no other."""
    with RunManager(max_workers=3) as manager, plans(3) as some:
        barrier = threading.Barrier(3)
        for plan in some:

            def say(worker_id: str, plan: Plan = plan) -> None:
                if worker_id == WORKERS[0]:
                    barrier.wait(DEADLINE)
                print(f"{plan.marker} {worker_id}")  # noqa: T201 - that is what is captured

            plan.on_look = say
        runs = [manager.start_run(plan.config) for plan in some]
        assert manager.wait(timeout=DEADLINE)
        for plan, run in zip(some, runs, strict=True):
            events = list(run.subscribe("start"))
            check(plan, events)
            printed = [event["data"]["text"] for event in events if kind(event) == "system.output"]
            assert printed == [f"{plan.marker} {worker_id}" for worker_id in WORKERS]


def test_a_managers_runs_that_fail_leave_the_others() -> None:
    """A failure is its own run's end, and the manager goes on."""
    with RunManager(max_workers=2, capture=False) as manager, plans(4) as some:
        fails(some[1])
        cannot_begin(some[2])
        runs = [manager.start_run(plan.config) for plan in some]
        assert manager.wait(timeout=DEADLINE)
        assert [run.state for run in runs] == ["completed", "failed", "failed", "completed"]
        for plan, run in ((some[0], runs[0]), (some[3], runs[3])):
            assert plain(plan, list(run.subscribe("start"))) == solo()


@pytest.mark.parametrize("execute", [execute_hierarchy, HierarchyExecutor().execute])
def test_a_manager_may_call_what_opens_runs_by_itself(execute: Callable[..., Any]) -> None:
    """It works in the manager's run, which is as any other; its response does not repeat the events of that run."""
    with RunManager(execute, capture=False) as manager, plans(2) as (plan, failing):
        fails(failing)
        runs = [manager.start_run(one.config) for one in (plan, failing)]
        assert manager.wait(timeout=DEADLINE)
        assert [run.state for run in runs] == ["completed", "failed"]
        events = list(runs[0].subscribe("start"))
        check(plan, events)
        assert plain(plan, events[:-1]) == solo()[:-1]
        told = events[-1]["data"]
        assert (told["success"], told["error"]) == (True, None)
        assert told["result"] == solo()[-1]["data"]["result"].replace("MARKER", plan.marker)
        assert told["events"] == []
        assert "broken" in list(runs[1].subscribe("start"))[-1]["data"]["error"]


def test_a_deadline_of_work_in_an_open_run_cancels_that_run() -> None:
    """The limit that is given to execute holds there too."""
    with Plan() as plan, suppress(RunCancelled), open_run(plan.run_id) as run:
        plan.insert(WORKERS[0], Pause(30))
        run.bind(partial(HierarchyExecutor().execute, plan.config, deadline=0.2))()
    assert run.state == "cancelled"
    assert list(run.subscribe("start"))[-1]["data"]["kind"] == "deadline"


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
def test_a_response_says_how_its_run_has_ended(state: str) -> None:
    """Whoever ends the run, success, result and error are those of its last event; who is who is known, and counts."""
    with Plan() as plan:
        arrived, go_on = halt(plan)
        working = Running(lambda: HierarchyExecutor().execute(plan.config))
        waited(arrived)
        run = get_run(plan.run_id)
        assert run is not None
        if state == "completed":
            run.complete(result="enough")
        elif state == "failed":
            run.fail("by a watchdog")
        else:
            run.cancel()
        response = working.result()
        go_on.set()
    assert run.state == state
    assert (response.success, response.result, response.error) == {
        "completed": (True, "enough", None),
        "failed": (False, None, "by a watchdog"),
        "cancelled": (False, None, "Run was cancelled"),
    }[state]
    assert response.topology is not None
    assert response.topology.agent_ids == (GLOBAL, *TEAMS, *WORKERS)
    assert response.statistics is not None
    assert response.statistics["calls"][WORKERS[1]] == 1
