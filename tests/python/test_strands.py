"""Real strands agents at once, with a scripted model: each run hears itself, and a cancel stops its own."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from strands import Agent, tool

from llm_callback import (
    CallerContext,
    LLMCallbackHandler,
    RunCancelled,
    bind,
    configure,
    create_callback_handler,
    get_current_run_id,
    register_cancellation_checker,
    register_event_callback,
    set_current_run_id,
)
from llm_callback.testing import Gate, Reasoning, ScriptedModel, Text, ToolCall
from support import DEADLINE, new_id, waited, word

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

AGENTS = 10


class Run:
    """An agent with a script whose every word names the run."""

    def __init__(self, name: str) -> None:
        self.run_id = new_id(name)
        self.heard: list[dict[str, Any]] = []
        self.cancel = threading.Event()
        self.looked: list[str] = []
        # Half-way, where a run waits until the test lets it go on.
        self.arrived, self.go_on = threading.Event(), threading.Event()
        self.agent: Any = None

    def __enter__(self) -> Self:
        register_event_callback(self.run_id, self.heard.append)
        register_cancellation_checker(self.run_id, self.cancel.is_set)
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        register_event_callback(self.run_id, None)
        register_cancellation_checker(self.run_id, None)

    def words(self, part: str) -> tuple[str, ...]:
        """Return the chunks of one part of the script."""
        return tuple(f"{self.run_id}/{part}/{number} " for number in range(10))

    @property
    def expected(self) -> list[tuple[Any, ...]]:
        """What must be heard, in this order."""
        name = f"look_{self.run_id[-32:]}"
        return [
            *(("reasoning", chunk) for chunk in self.words("think")),
            *(("stream", chunk) for chunk in self.words("first")),
            ("tool_call", name, 1),
            *(("stream", chunk) for chunk in self.words("second")),
            ("tool_call", name, 2),
            ("tool_call", name, 3),
            *(("stream", chunk) for chunk in self.words("last")),
        ]

    def execute(self, handler: LLMCallbackHandler | None = None) -> str:
        """Run the agent; return why it stopped."""
        name = f"look_{self.run_id[-32:]}"

        @tool(name=name)
        def look(at: str) -> str:
            """Look at something."""
            self.looked.append(at)
            self.arrived.set()
            waited(self.go_on)
            return f"{at} is calm"

        model = ScriptedModel(
            [
                [
                    Reasoning(self.words("think")),
                    Text(self.words("first")),
                    ToolCall(name, {"at": "a"}),
                ],
                [
                    Text(self.words("second")),
                    ToolCall(name, {"at": "b"}),
                    ToolCall(name, {"at": "c"}),
                ],
                Text(self.words("last")),
            ],
        )
        if handler is None:
            context = CallerContext.worker(self.run_id, "Worker", "Team")
            handler = create_callback_handler(context, run_id=self.run_id)
        self.agent = Agent(model=model, tools=[look], callback_handler=handler)
        return self.agent("How is the sea?").stop_reason

    @property
    def got(self) -> list[tuple[Any, ...]]:
        """What was heard."""
        return [word(event) for event in self.heard]

    @property
    def agents(self) -> set[str]:
        """Whose events were heard."""
        return {event["source"]["agent_id"] for event in self.heard}


@contextlib.contextmanager
def ten_runs() -> Iterator[list[Run]]:
    """Register ten runs. No fixture: threads that run one test at once would share it."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Run(str(number))) for number in range(AGENTS)]


def test_ten_agents_at_once_each_hear_themselves() -> None:
    """All are inside their first tool at the same time; each hears all of its own script, in order, once."""
    with ten_runs() as runs:
        with ThreadPoolExecutor(AGENTS) as pool:
            futures = [pool.submit(run.execute) for run in runs]
            for run in runs:
                waited(run.arrived)
            for run in runs:
                run.go_on.set()
            assert [future.result(DEADLINE) for future in futures] == ["end_turn"] * AGENTS
        for run in runs:
            assert run.got == run.expected
            assert run.agents == {run.run_id}
            assert sorted(run.looked) == ["a", "b", "c"]


def test_agents_one_after_another_on_one_thread_each_hear_themselves() -> None:
    """A pool's thread that served one run serves the next one without a trace of it."""
    with ten_runs() as runs:
        with ThreadPoolExecutor(1) as pool:
            for run in runs:
                run.go_on.set()
            futures = [pool.submit(run.execute) for run in runs]
            assert [future.result(DEADLINE) for future in futures] == ["end_turn"] * AGENTS
        assert all(run.got == run.expected for run in runs)


def test_cancelled_agents_stop_and_the_others_complete() -> None:
    """Those that are cancelled raise InterruptedError out of the agent and hear no more; the others everything."""
    with ten_runs() as runs:
        with ThreadPoolExecutor(AGENTS) as pool:
            futures = [pool.submit(run.execute) for run in runs]
            for run in runs:
                waited(run.arrived)
            heard_before = [list(run.got) for run in runs]
            for run in runs[::2]:
                run.cancel.set()
            for run in runs:
                run.go_on.set()
            for index, (run, future) in enumerate(zip(runs, futures, strict=True)):
                if index % 2:
                    assert future.result(DEADLINE) == "end_turn"
                    assert run.got == run.expected
                else:
                    with pytest.raises(InterruptedError, match="Run was cancelled") as caught:
                        future.result(DEADLINE)
                    assert type(caught.value) is RunCancelled
                    assert caught.value.run_id == run.run_id
                    # At most what was heard before the cancel, and never a hole.
                    assert run.got == heard_before[index] == run.expected[: len(run.got)]
        assert all(run.looked == ["a"] for run in runs[::2])


def test_an_agent_that_is_cancelled_before_it_starts_says_nothing() -> None:
    """Its first callback raises; its model is not asked for a word that anybody hears."""
    with Run("early") as run:
        run.go_on.set()
        run.cancel.set()
        with pytest.raises(RunCancelled):
            run.execute()
        assert run.heard == []
        assert run.looked == []


def test_a_callback_that_raises_ends_its_own_agent_only() -> None:
    """What a listener raises comes out of its agent, while another one beside it completes."""
    with Run("fails") as fails, Run("works") as works, ThreadPoolExecutor(2) as pool:

        def fail(event: dict[str, Any]) -> None:
            fails.heard.append(event)
            if word(event)[0] == "tool_call":
                raise LookupError("listener")

        register_event_callback(fails.run_id, fail)
        futures = [pool.submit(fails.execute), pool.submit(works.execute)]
        waited(works.arrived)
        works.go_on.set()
        with pytest.raises(LookupError, match="listener"):
            futures[0].result(DEADLINE)
        assert futures[1].result(DEADLINE) == "end_turn"
    assert works.got == works.expected
    assert fails.got == fails.expected[: len(fails.got)]


def nested(outer: Run, inner: Run | None) -> list[Any]:
    """Run an agent whose tool runs another one; return what the outer agent's tool got."""
    answers: list[Any] = []

    @tool
    def ask_a_worker(question: str) -> str:
        """Ask another agent."""
        run_id = inner.run_id if inner else outer.run_id
        context = CallerContext.worker("inner", "Inner", "Team")
        model = ScriptedModel([Text(("inner one ", "inner two "))])
        agent = Agent(
            model=model, callback_handler=LLMCallbackHandler(context, run_id=run_id), tools=[]
        )
        answers.append(str(agent(question)).strip())
        return answers[-1]

    model = ScriptedModel(
        [
            [Text(("outer one ",)), ToolCall("ask_a_worker", {"question": "How?"})],
            Text(("outer two ",)),
        ]
    )
    context = CallerContext.team_supervisor("outer", "Outer", "Team")
    handler = LLMCallbackHandler(context, run_id=outer.run_id)
    Agent(model=model, tools=[ask_a_worker], callback_handler=handler)("How is the sea?")
    return answers


def said(run: Run) -> list[tuple[str, Any]]:
    """Return who said what."""
    return [(event["source"]["agent_id"], word(event)[1]) for event in run.heard]


def test_a_nested_agent_speaks_for_the_same_run_under_its_own_name() -> None:
    """Events of an agent in a tool lie between those of the agent that called it, each with its source."""
    with Run("nested") as run:
        assert nested(run, None) == ["inner one inner two"]
        assert said(run) == [
            ("outer", "outer one "),
            ("outer", "ask_a_worker"),
            ("inner", "inner one "),
            ("inner", "inner two "),
            ("outer", "outer two "),
        ]


def test_nested_agents_of_another_run_are_kept_apart() -> None:
    """An agent in a tool may belong to another run: neither run hears a word of the other."""
    with Run("outer") as outer, Run("inner") as inner:
        nested(outer, inner)
        assert [agent for agent, _ in said(outer)] == ["outer"] * 3
        assert said(inner) == [("inner", "inner one "), ("inner", "inner two ")]


def test_ten_nested_agents_at_once() -> None:
    """Hierarchies side by side do not mix, on whichever threads strands runs their tools."""
    with ten_runs() as runs, ThreadPoolExecutor(AGENTS) as pool:
        futures = [pool.submit(nested, run, None) for run in runs]
        assert [f.result(DEADLINE) for f in futures] == [["inner one inner two"]] * AGENTS
        assert [len(said(run)) for run in runs] == [5] * AGENTS


def test_the_current_run_reaches_tools_and_callbacks() -> None:
    """Strands copies the context: what is set around an agent is current in its callbacks and tools."""
    with ten_runs() as runs:
        seen: list[set[Any]] = [set() for _ in runs]

        def execute(index: int) -> None:
            run = runs[index]
            set_current_run_id(run.run_id)

            @tool
            def look() -> str:
                """Look."""
                seen[index].add(("tool", get_current_run_id()))
                return "calm"

            def listen(_event: object) -> None:
                seen[index].add(("callback", get_current_run_id()))

            register_event_callback(run.run_id, listen)
            handler = LLMCallbackHandler(CallerContext.worker("w", "W", "T"), run_id=run.run_id)
            script = [[Text("Well "), ToolCall("look")], "calm"]
            Agent(model=ScriptedModel(script), tools=[look], callback_handler=handler)("How?")

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(bind(partial(execute, index))) for index in range(AGENTS)]:
                future.result(DEADLINE)
            assert pool.submit(get_current_run_id).result(DEADLINE) is None
        for run, what in zip(runs, seen, strict=True):
            assert what == {("tool", run.run_id), ("callback", run.run_id)}


@pytest.mark.thread_unsafe(reason="the route is the whole process's")
def test_the_route_by_context_repairs_agents_with_a_wrong_run_id() -> None:
    """Ten agents whose handlers all have the last run's id still speak for the run they were started in."""
    with ten_runs() as runs:

        def execute(run: Run) -> str:
            set_current_run_id(run.run_id)
            context = CallerContext.worker(run.run_id, "Worker", "Team")
            return run.execute(LLMCallbackHandler(context, run_id=runs[-1].run_id))

        configure(route="context")
        try:
            with ThreadPoolExecutor(AGENTS) as pool:
                futures = [pool.submit(bind(partial(execute, run))) for run in runs]
                for run in runs:
                    waited(run.arrived)
                for run in runs:
                    run.go_on.set()
                for future in futures:
                    future.result(DEADLINE)
        finally:
            configure(route="handler")
        assert all(run.got == run.expected for run in runs)


def test_a_silent_model_holds_up_its_own_run_only() -> None:
    """While one agent's model says nothing, another one's words arrive; a cancel takes effect at the next word."""
    gate = threading.Event()
    with Run("silent") as silent, Run("talks") as talks, ThreadPoolExecutor(2) as pool:
        context = CallerContext.worker("w", "W", "T")
        handler = LLMCallbackHandler(context, run_id=silent.run_id)
        first = threading.Event()
        register_event_callback(silent.run_id, lambda e: (silent.heard.append(e), first.set()))
        model = ScriptedModel([[Text(("one ",)), Gate(gate, DEADLINE), Text(("two ",))]])
        future = pool.submit(Agent(model=model, callback_handler=handler), "How?")
        try:
            waited(first)
            talks.go_on.set()
            assert pool.submit(talks.execute).result(DEADLINE) == "end_turn"
            assert (talks.got, silent.got) == (talks.expected, [("stream", "one ")])
            silent.cancel.set()
        finally:
            gate.set()
        with pytest.raises(RunCancelled):
            future.result(DEADLINE)
        assert silent.got == [("stream", "one ")]
