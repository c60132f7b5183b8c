"""What goes wrong in a run of a hierarchy ends it as it must, or is told to its agents; the run beside it is whole."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from strands import ModelRetryStrategy, tool
from strands.types.exceptions import ModelThrottledException
from strands.types.tools import ToolContext  # noqa: TC002 - strands looks at the types

from hierarchies import (
    AGENTS,
    END,
    GLOBAL,
    SOON,
    TEAMS,
    WORKERS,
    Live,
    Plan,
    Told,
    by_agent,
    check,
    neighbour,
    plain,
    solo,
    texts,
    was_cancelled,
)
from llm_callback import RunCancelled, register_event_callback
from llm_callback.hierarchy import ConfigError, HierarchyExecutor, ModelUnavailable
from llm_callback.testing import Fail, Gate, Pause, Text, ToolCall
from readers import kind, kinds
from support import DEADLINE, waited

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_callback import CallerContext

BROKEN = ConnectionError("the line is broken")
# When the words of a turn are cut: before all of them, or at the tenth chunk.
CHUNKS = pytest.mark.parametrize("chunks", [0, 9], ids=["first", "tenth"])


def beside_another(plan: Plan, **options: Any) -> Live:
    """Run the plan to its end while another run is half-way, which must be as if alone."""
    with neighbour():
        live = Live(plan, **options)
        assert live.run.wait(DEADLINE)
        assert [kind(event) for event in live.events if kind(event) in END] == [
            kind(live.events[-1])
        ]
        assert live.raised is not None or live.run.state == "completed"
    return live


def fail_after(plan: Plan, agent_id: str, chunks: int, error: BaseException = BROKEN) -> list[str]:
    """Have an agent's model raise in its first turn, after so many chunks of text; return these."""
    words = tuple(f"{plan.marker}/{agent_id}/cut/{number} " for number in range(chunks))
    plan.script[agent_id][0] = [Text(words), Fail(error)]
    return list(words)


def of(live: Live, agent_id: str, action: str) -> list[Any]:
    """Return the data of an agent's events of one kind."""
    return [
        event["data"]
        for event in live.events
        if kind(event) == action and (event["source"] or {}).get("agent_id") == agent_id
    ]


def results(live: Live, agent_id: str) -> list[tuple[str, str]]:
    """Return what an agent's tools have answered."""
    found = of(live, agent_id, "llm.tool_result")
    return [(data["status"], data["content"][0]["text"]) for data in found]


# --- Models ---


@CHUNKS
def test_a_global_supervisors_model_that_fails_fails_the_run(chunks: int) -> None:
    """Its words so far are in the stream, then the agent's failure and the run's, with the model's own error."""
    with Plan() as plan:
        words = fail_after(plan, GLOBAL, chunks)
        live = beside_another(plan)
        assert live.run.state == "failed"
        assert kinds(live.events[-2:]) == ["agent.failed", "lifecycle.failed"]
        assert texts(live.events, GLOBAL) == words
        told = "ConnectionError: the line is broken"
        assert live.events[-2]["data"] == {"error": told}
        assert "the line is broken" in live.events[-1]["data"]["error"]
        assert live.events[-1]["data"]["statistics"]["calls"] == {GLOBAL: 1}
        assert "the line is broken" in str(live.raised)
        assert plan.looked == []


@CHUNKS
@pytest.mark.parametrize("agent_id", [*TEAMS, *WORKERS])
def test_a_members_model_that_fails_is_told_to_its_supervisor(agent_id: str, chunks: int) -> None:
    """The run goes on: the supervisor gets the error as the result of its call, and all others do their work."""
    with Plan() as plan:
        words = fail_after(plan, agent_id, chunks)
        live = beside_another(plan)
        assert live.raised is None
        assert live.run.state == "completed"
        assert of(live, agent_id, "agent.failed") == [
            {"error": "ConnectionError: the line is broken"}
        ]
        assert of(live, agent_id, "agent.completed") == []
        assert texts(live.events, agent_id) == words
        above = GLOBAL if agent_id in TEAMS else f"{agent_id[:6]}-supervisor"
        told = [text for status, text in results(live, above) if status == "error"]
        assert len(told) == 1
        assert "the line is broken" in told[0]
        others = set(AGENTS) - {agent_id} - set(TEAMS.get(agent_id, ()))
        assert {one for one in AGENTS if of(live, one, "agent.completed")} == others
        alone = by_agent(solo())
        for one in others - {above, GLOBAL}:
            assert by_agent(plain(plan, live.events))[one] == alone[one]
        assert live.work.result().statistics["failures"] == 1


def no_delay(attempts: int) -> HierarchyExecutor:
    """Return an executor whose agents ask a throttled model so often, at once."""

    def options(_caller: CallerContext) -> Mapping[str, Any]:
        return {"retry_strategy": ModelRetryStrategy(max_attempts=attempts, initial_delay=0)}

    return HierarchyExecutor(agent_options=options)


@pytest.mark.parametrize("agent_id", [GLOBAL, *TEAMS, WORKERS[0]])
def test_a_throttled_model_is_asked_again(agent_id: str) -> None:
    """Where it answers then, the run is as one that was never throttled."""
    with Plan() as plan:
        plan.script[agent_id].insert(0, [Fail(ModelThrottledException("slow down"))])
        calls = [part for part in plan.script[agent_id][1] if isinstance(part, ToolCall)]
        for number, call in enumerate(calls, start=1):
            # They are numbered by their turn, which is the second one now.
            plan.script[agent_id][1].remove(call)
            plan.script[agent_id][1].append(replace(call, tool_use_id=f"tool-1-{number}"))
        live = beside_another(plan, executor=no_delay(3))
        assert live.heard() == solo()
        check(plan, live.events)


@pytest.mark.parametrize("agent_id", [GLOBAL, WORKERS[0]])
def test_a_model_that_stays_throttled_fails_its_agent(agent_id: str) -> None:
    """After the last attempt it is a failure as any other: of the run, or of a worker."""
    with Plan() as plan:
        plan.script[agent_id] = [[Fail(ModelThrottledException("slow down"))]] * 3
        live = beside_another(plan, executor=no_delay(3))
        assert len(of(live, agent_id, "agent.failed")) == 1
        assert "slow down" in of(live, agent_id, "agent.failed")[0]["error"]
        assert live.run.state == ("failed" if agent_id == GLOBAL else "completed")
        assert len(plan.requests(agent_id)) == 3


def test_a_run_that_waits_to_ask_a_throttled_model_again_is_cancelled_at_once() -> None:
    """The seconds that strands waits by default do not hold up a cancel."""
    with Plan() as plan:
        failed = threading.Event()

        plan.script[WORKERS[0]][0] = [
            Gate(Told(failed)),
            Fail(ModelThrottledException("slow down")),
        ]
        live = Live(plan)
        waited(failed)
        live.run.cancel()
        was_cancelled(live, SOON)
        assert len(plan.requests(WORKERS[0])) == 1


# --- Tools ---


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_tool_that_raises_is_told_to_its_agent(is_async: bool) -> None:
    """The agent gets the error as its tool's result, and everything goes on."""
    with Plan() as plan:

        @tool(name=f"break_{plan.marker}")
        def break_it() -> str:
            """Break."""
            raise LookupError("no such tide")

        @tool(name=f"break_{plan.marker}")
        async def break_later() -> str:
            """Break."""
            raise LookupError("no such tide")

        plan.give(WORKERS[0], "break", break_later if is_async else break_it)
        live = beside_another(plan)
        assert live.raised is None
        [(status, text)] = results(live, WORKERS[0])
        assert status == "error"
        assert "no such tide" in text
        assert texts(live.events, WORKERS[0]) == plan.texts(WORKERS[0])
        assert not any(of(live, agent_id, "agent.failed") for agent_id in AGENTS)
        assert live.work.result().statistics["failures"] == 0


def test_a_tool_that_nobody_has_is_told_to_its_agent() -> None:
    """A model may ask for a tool that is not there: the agent is told, and everything goes on."""
    with Plan() as plan:
        plan.script[WORKERS[0]][0][-1] = ToolCall(f"none_{plan.marker}")
        live = beside_another(plan)
        assert live.raised is None
        [(status, text)] = results(live, WORKERS[0])
        assert (status, "none_" in text) == ("error", True)
        assert texts(live.events, WORKERS[0]) == plan.texts(WORKERS[0])


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_tool_that_exits_ends_its_run(is_async: bool) -> None:
    """SystemExit is no failure that an agent could be told: it ends the run as cancelled, and comes out."""
    with Plan() as plan:

        @tool(name=f"exit_{plan.marker}")
        def leave() -> str:
            """Exit."""
            raise SystemExit(3)

        @tool(name=f"exit_{plan.marker}")
        async def leave_later() -> str:
            """Exit."""
            raise SystemExit(3)

        plan.give(WORKERS[0], "exit", leave_later if is_async else leave)
        live = beside_another(plan)
        assert live.run.state == "cancelled"
        assert live.events[-1]["data"]["kind"] == "shutdown"
        assert isinstance(live.raised, SystemExit)
        assert len(plan.looked) == 0


def test_a_tool_that_stops_its_own_agent_stops_no_other() -> None:
    """A tool may cancel the token of its agent: that one ends, and the run completes with the work of the others."""
    with Plan() as plan:

        @tool(context=True, name=f"stop_{plan.marker}")
        def stop(tool_context: ToolContext) -> str:
            """Stop this agent."""
            tool_context.invocation_state["cancel_token"].cancel("that is enough")
            return "stopped"

        plan.give(WORKERS[0], "stop", stop)
        live = beside_another(plan)
        assert live.raised is None
        assert live.run.state == "completed"
        assert of(live, WORKERS[0], "agent.completed") == []
        assert len(plan.requests(WORKERS[0])) == 1
        heard, alone = by_agent(plain(plan, live.events)), by_agent(solo())
        for worker in WORKERS[1:]:
            assert heard[worker] == alone[worker]


# --- What the host has registered ---


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_an_event_callback_that_always_raises_fails_its_run(mode: str) -> None:
    """What a callback registered by hand raises fails its own run, whose last event is there all the same."""
    with Plan(mode=mode) as plan:

        def listen(_event: object) -> None:
            raise LookupError("listener")

        register_event_callback(plan.run_id, listen)
        try:
            live = beside_another(plan)
        finally:
            register_event_callback(plan.run_id, None)
        assert live.run.state == "failed"
        assert "listener" in live.events[-1]["data"]["error"]


def test_an_event_callback_that_raises_at_a_workers_word_fails_the_worker() -> None:
    """It is as if the worker's model had failed at this word: the supervisor is told, and the run goes on."""
    with Plan() as plan:
        word = plan.texts(WORKERS[0])[7]

        def listen(event: dict[str, Any]) -> None:
            if event["data"].get("content") == word:
                raise LookupError("listener")

        register_event_callback(plan.run_id, listen)
        try:
            live = beside_another(plan)
        finally:
            register_event_callback(plan.run_id, None)
        assert live.run.state == "completed"
        assert texts(live.events, WORKERS[0]) == plan.texts(WORKERS[0])[:8]
        assert of(live, WORKERS[0], "agent.failed") == [{"error": "LookupError: listener"}]
        heard, alone = by_agent(plain(plan, live.events)), by_agent(solo())
        for worker in WORKERS[1:]:
            assert heard[worker] == alone[worker]


# --- Time ---


@pytest.mark.parametrize("agent_id", [GLOBAL, *TEAMS, WORKERS[0]])
def test_a_run_whose_agent_never_ends_ends_at_its_deadline(agent_id: str) -> None:
    """It is cancelled then, long before the silent model would speak again, and says that it was the deadline."""
    with Plan() as plan, neighbour():
        plan.insert(agent_id, Pause(30))
        live = Live(plan, deadline=0.2)
        error = was_cancelled(live, 10.0)
        assert error.kind == "deadline"
        assert live.events[-1]["data"]["kind"] == "deadline"


def test_execute_has_a_deadline_and_tells_it() -> None:
    """The response says that the run was cancelled, and has all events up to that."""
    with Plan() as plan, neighbour():
        plan.insert(WORKERS[0], Pause(30))
        response = HierarchyExecutor().execute(plan.config, deadline=0.2)
        assert (response.success, response.result) == (False, None)
        assert kind(response.events[-1]) == "lifecycle.cancelled"
        assert response.error == str(RunCancelled(plan.run_id))


# --- Configurations ---


def test_a_malformed_configuration_fails_the_run_before_any_model_is_asked() -> None:
    """The run has a start and an end, and its error begins with the place."""
    with Plan() as plan:
        plan.worker(WORKERS[2])["name"] = 7
        live = beside_another(plan)
        assert kinds(live.events) == ["lifecycle.started", "lifecycle.failed"]
        assert isinstance(live.raised, ConfigError)
        assert str(live.raised).startswith("teams[1].workers[0].name must be")
        assert str(live.raised) in live.events[-1]["data"]["error"]


@pytest.mark.parametrize("entry", ["tools", "model_id"])
@pytest.mark.parametrize("agent_id", WORKERS)
def test_what_a_worker_cannot_have_fails_the_run_before_any_model_is_asked(
    agent_id: str, entry: str
) -> None:
    """An unknown tool or model of the last worker is told before the first one begins."""
    with Plan() as plan:
        plan.worker(agent_id)[entry] = ["no such"] if entry == "tools" else "nobody:none"
        live = beside_another(plan)
        assert kinds(live.events) == ["lifecycle.started", "system.topology", "lifecycle.failed"]
        assert isinstance(live.raised, ConfigError)
        assert plan.looked == []


@pytest.mark.thread_unsafe(reason="the environment is the whole process's")
def test_a_missing_key_fails_the_run_before_any_model_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A provider that cannot be used is told as the run's failure, by the name of what is missing."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Plan() as plan:
        plan.worker(WORKERS[3])["model_id"] = "openai:gpt-4o-mini"
        live = beside_another(plan)
        assert kinds(live.events) == ["lifecycle.started", "system.topology", "lifecycle.failed"]
        assert isinstance(live.raised, ModelUnavailable)
        assert plan.looked == []


def test_a_run_that_failed_leaves_its_id_for_another() -> None:
    """The same configuration, mended, works after its failure as if nothing had been."""
    with Plan() as plan:
        turn = plan.script[GLOBAL][0]
        fail_after(plan, GLOBAL, 3)
        assert beside_another(plan).run.state == "failed"
        plan.script[GLOBAL][0] = turn
        live = Live(plan)
        assert live.heard() == solo()
        check(plan, live.events)
