"""What the tests of hierarchies share: plans whose every word is marked, runs of them, and what each must hear."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from strands import tool

from llm_callback import RunCancelled, get_current_run_id, open_run
from llm_callback.hierarchy import HierarchyExecutor, register_script, register_tool
from llm_callback.testing import Reasoning, ScriptedModel, Text, ToolCall
from readers import events_of, kind
from support import DEADLINE, Running, new_id, raised_by, waited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Self

    from llm_callback import Run
    from llm_callback.hierarchy import HierarchyResult, ModelRequest

GLOBAL = "global-supervisor"
TEAMS = {
    "team-1-supervisor": ("team-1-worker-1", "team-1-worker-2"),
    "team-2-supervisor": ("team-2-worker-1", "team-2-worker-2"),
}
WORKERS = [worker for workers in TEAMS.values() for worker in workers]
AGENTS = [GLOBAL, *TEAMS, *WORKERS]
# Their names; the tools that call them are made of these.
NAMES = dict(zip([*TEAMS, *WORKERS], ["Readers", "Writers", "Ada", "Ben", "Cleo", "Dan"]))  # noqa: B905

END = {"lifecycle.completed", "lifecycle.failed", "lifecycle.cancelled"}
# Long before a model that is silent for 30 s would say something.
SOON = 10.0

WORDS = 5
MARKER = re.compile(r"m[0-9a-f]{32}")


class Plan:
    """A hierarchy of two teams of two, and all that its agents will say: every text holds the run's secret marker.

    The ids of the agents are those of every other plan; names and tasks hold ``label``, which is the marker too unless
    it is given. Change ``script`` and ``config`` before the run. While it is entered, its script and tools are there.
    """

    def __init__(self, *, label: str | None = None, mode: str = "sequential") -> None:
        self.marker = new_id("m").replace("-", "")
        self.label = self.marker if label is None else label
        self.run_id = f"run-{self.marker}"
        # What its tool saw: the query, and the current run.
        self.looked: list[tuple[str, Any]] = []
        # Called by the tool, on its thread, with the id of the worker that calls it.
        self.on_look: Callable[[str], object] = lambda _worker: None
        self.models: defaultdict[str, list[ScriptedModel]] = defaultdict(list)
        # Models of other kinds, for the agents of these ids.
        self.model_for: dict[str, ScriptedModel] = {}
        self._tools: list[str] = []
        # Returns the script for an agent's model of this number: 0 is that of its first task.
        self.script_for: Callable[[str, int], list[list[Any]]] = lambda agent_id, _: self.script[
            agent_id
        ]
        self.script = self._script()
        self.config = self._config(mode)

    def __enter__(self) -> Self:
        register_script(self.marker, self._model)
        self.add_tool("look", self._look())
        return self

    def __exit__(self, *_: object) -> None:
        register_script(self.marker, None)
        for name in self._tools:
            register_tool(name, None)

    def add_tool(self, name: str, its_tool: Any) -> None:
        """Register a tool as ``<name>_<marker>``."""
        full_name = f"{name}_{self.marker}"
        register_tool(full_name, its_tool)
        self._tools.append(full_name)

    def give(self, agent_id: str, name: str, its_tool: Any, **tool_input: Any) -> None:
        """Have a worker call another tool, after its first words; once the plan is entered."""
        self.add_tool(name, its_tool)
        self.worker(agent_id)["tools"].append(f"{name}_{self.marker}")
        turn = self.script[agent_id][0]
        self.script[agent_id][0] = [*turn[:-1], ToolCall(its_tool.tool_name, tool_input)]

    def worker(self, agent_id: str) -> dict[str, Any]:
        """Return the configuration of a worker."""
        team, place = divmod(WORKERS.index(agent_id), 2)
        found: dict[str, Any] = self.config["teams"][team]["workers"][place]
        return found

    def insert(self, agent_id: str, part: Any, *, turn: int = 0, at: int = 1) -> None:
        """Have an agent's turn hold ``part`` too; by default after its first words of text or thought."""
        self.script[agent_id][turn].insert(at, part)

    def called(self, agent_id: str) -> str:
        """Return the name of the tool that calls an agent."""
        kind = "team" if agent_id in TEAMS else "worker"
        return "_".join(filter(None, (kind, NAMES[agent_id].lower(), self.label)))

    def texts(self, agent_id: str) -> list[str]:
        """Return what the script has an agent say and think, chunk by chunk."""
        parts = [part for turn in self.script[agent_id] for part in turn]
        spoken = [part for part in parts if isinstance(part, (Text, Reasoning))]
        return [chunk for part in spoken for chunk in part.chunks]

    def requests(self, agent_id: str) -> list[Any]:
        """Return what the models of an agent were asked, those of one agent after those of the one before it."""
        return [request for model in self.models[agent_id] for request in model.requests]

    def prompt(self, agent_id: str, call: int = 0) -> str:
        """Return with which words an agent was called the first time, or the so-many-th."""
        asked = [request for request in self.requests(agent_id) if request.turn == 1]
        text: str = asked[call].messages[0]["content"][0]["text"]
        return text

    def _name(self, agent_id: str) -> str:
        return f"{NAMES[agent_id]} {self.label}".strip()

    def _words(self, agent_id: str, part: str) -> tuple[str, ...]:
        return tuple(f"{self.marker}/{agent_id}/{part}/{number} " for number in range(WORDS))

    def _script(self) -> dict[str, list[list[Any]]]:
        def calls(agent_ids: Iterable[str]) -> list[ToolCall]:
            return [
                ToolCall(self.called(one), {"task": f"ask {NAMES[one]} {self.label}"})
                for one in agent_ids
            ]

        def supervisor(agent_id: str, members: Iterable[str]) -> list[list[Any]]:
            return [
                [Text(self._words(agent_id, "plan")), *calls(members)],
                [Text(self._words(agent_id, "done"))],
            ]

        script = {GLOBAL: supervisor(GLOBAL, TEAMS)}
        for team, workers in TEAMS.items():
            script[team] = supervisor(team, workers)
        for worker in WORKERS:
            look = ToolCall(f"look_{self.marker}", {"query": f"{worker} {self.marker}"})
            thought = Reasoning(self._words(worker, "think"))
            script[worker] = [
                [thought, Text(self._words(worker, "open")), look],
                [Text(self._words(worker, "close"))],
            ]
        return script

    def _config(self, mode: str) -> dict[str, Any]:
        model = {"model_id": f"scripted:{self.marker}"}

        def worker(agent_id: str) -> dict[str, Any]:
            return {
                "name": self._name(agent_id),
                "role": f"Looks for {self.marker}.",
                "tools": [f"look_{self.marker}"],
                **model,
            }

        return {
            "run_id": self.run_id,
            "task": f"What of {self.label}?",
            "global_prompt": f"Ask each team about {self.marker}.",
            "global_model_id": model["model_id"],
            "execution_mode": mode,
            "teams": [
                {
                    "name": self._name(team),
                    "supervisor_prompt": f"Ask each worker about {self.marker}.",
                    "workers": [worker(agent_id) for agent_id in workers],
                    **model,
                }
                for team, workers in TEAMS.items()
            ],
        }

    def _model(self, request: ModelRequest) -> ScriptedModel:
        if (other := self.model_for.get(request.agent_id)) is not None:
            return other
        made = self.models[request.agent_id]
        model = ScriptedModel(self.script_for(request.agent_id, len(made)))
        made.append(model)
        return model

    def _look(self) -> Any:
        @tool(name=f"look_{self.marker}")
        def look(query: str) -> str:
            """Look at something."""
            self.looked.append((query, get_current_run_id()))
            self.on_look(query.partition(" ")[0])
            return f"{query} is calm"

        return look


class Live:
    """A plan at work on a thread of its own, with a reader of its events and one of its SSE on two others."""

    def __init__(
        self,
        plan: Plan,
        *,
        executor: HierarchyExecutor | None = None,
        deadline: float | None = None,
    ) -> None:
        self.plan = plan
        self._executor = executor or HierarchyExecutor()
        self.run: Run = open_run(plan.run_id, deadline=deadline, task=plan.config["task"])
        self._reader = Running(lambda: list(self.run.subscribe("start")))
        self._viewer = Running(lambda: b"".join(self.run.subscribe("start").sse(None)))
        self.work = Running(self._work)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What its reader got, when the run has ended; the viewer must have got the same as bytes."""
        events = self._reader.result()
        assert events_of(self._viewer.result()) == events
        return events

    @property
    def raised(self) -> BaseException | None:
        """What its execution raised, when that has returned."""
        return raised_by(self.work.result)

    def heard(self) -> list[dict[str, Any]]:
        """Return its events after its work and its end, without their ids and times, and with MARKER for its marker."""
        error = self.raised
        assert error is None, self.events[-3:]
        return plain(self.plan, self.events)

    def _work(self) -> HierarchyResult:
        with self.run:
            result = self._executor.execute_in(self.run, self.plan.config)
            self.run.complete(**result.to_dict())
        return result


def plain(plan: Plan, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return events without what differs between two runs of one plan: ids, times and the marker."""
    kept = [{k: v for k, v in event.items() if k not in {"id", "timestamp"}} for event in events]
    told: list[dict[str, Any]] = json.loads(json.dumps(kept).replace(plan.marker, "MARKER"))
    return told


@cache
def solo(*, label: str | None = None, mode: str = "sequential") -> list[dict[str, Any]]:
    """Run a plan of this kind alone; return what it hears, which is what its script says."""
    with Plan(label=label, mode=mode) as plan:
        live = Live(plan)
        check(plan, live.events)
        return live.heard()


@contextmanager
def neighbour() -> Iterator[Live]:
    """Have a run half-way while the block runs; afterwards it goes on, and must have been as if it were alone."""
    arrived, go_on = threading.Event(), threading.Event()

    def stay(worker: str) -> None:
        if worker == WORKERS[1]:
            arrived.set()
            waited(go_on)

    with Plan() as plan:
        plan.on_look = stay
        live = Live(plan)
        try:
            waited(arrived)
            yield live
        finally:
            go_on.set()
        assert live.heard() == solo()


def check(plan: Plan, events: Sequence[dict[str, Any]]) -> None:
    """Check a completed run against its script: all of each agent, once, in order, under its name, nothing foreign."""
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert {event["run_id"] for event in events} == {plan.run_id}
    assert set(MARKER.findall(json.dumps(events))) == {plan.marker}
    assert kind(events[0]) == "lifecycle.started"
    assert [kind(event) for event in events if kind(event) in END] == [kind(events[-1])]
    assert kind(events[-1]) == "lifecycle.completed", events[-1]
    for agent_id in AGENTS:
        assert texts(events, agent_id) == plan.texts(agent_id)
    called = [e["data"]["worker_id"] for e in events if kind(e) == "dispatch.worker"]
    assert sorted(called) == WORKERS
    assert sorted(query for query, _ in plan.looked) == [f"{w} {plan.marker}" for w in WORKERS]
    assert {run_id for _, run_id in plan.looked} == {plan.run_id}
    assert events[-1]["data"]["statistics"]["calls"] == dict.fromkeys(AGENTS, 1)
    teams = {source_team(event) for event in events} - {None}
    assert teams == {(agent, f"{NAMES[team]} {plan.label}".strip()) for agent, team in team_of()}


def texts(events: Iterable[dict[str, Any]], agent_id: str) -> list[str]:
    """Return what an agent said and thought, chunk by chunk."""
    return [
        event["data"]["content"]
        for event in events
        if kind(event) in {"llm.stream", "llm.reasoning"}
        and event["source"]["agent_id"] == agent_id
    ]


def source_team(event: dict[str, Any]) -> tuple[str, str] | None:
    """Return the agent and the team of an event's source, if it has both."""
    source = event["source"] or {}
    return (source["agent_id"], source["team_name"]) if source.get("team_name") else None


def team_of() -> set[tuple[str, str]]:
    """Return each agent with its team's supervisor."""
    return {(agent, team) for team, workers in TEAMS.items() for agent in (team, *workers)}


def by_agent(heard: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the events of each agent by themselves, without their places in the whole.

    Results of tools that ran at once come in the order in which they ended: they are put in that of their calls.
    """
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in heard:
        agent_id = (event["source"] or {}).get("agent_id", "")
        found[agent_id].append({k: v for k, v in event.items() if k != "sequence"})
    return {
        agent_id: [
            event
            for is_result, some in groupby(events, lambda event: kind(event) == "llm.tool_result")
            for event in (sorted(some, key=_tool_use_id) if is_result else some)
        ]
        for agent_id, events in found.items()
    }


def _tool_use_id(event: dict[str, Any]) -> str:
    found: str = event["data"]["tool_use_id"]
    return found


def multiset(heard: Iterable[dict[str, Any]]) -> Counter[str]:
    """Return events without their order."""
    kept = ({k: v for k, v in event.items() if k != "sequence"} for event in heard)
    return Counter(json.dumps(event, sort_keys=True) for event in kept)


def was_cancelled(live: Live, within: float = DEADLINE) -> RunCancelled:
    """Check that the run ends as cancelled, with that as its last event; return what its execution raised."""
    assert live.run.wait(within)
    assert live.run.state == "cancelled"
    assert [kind(event) for event in live.events if kind(event) in END] == ["lifecycle.cancelled"]
    assert kind(live.events[-1]) == "lifecycle.cancelled"
    error = live.raised
    assert isinstance(error, RunCancelled)
    assert error.run_id == live.run.run_id
    assert set(live.events[-1]["data"]) == {"kind", "reason", "statistics"}
    return error


class Told:
    """A gate that is open, and tells that it was looked at: what follows in the script has begun."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def is_set(self) -> bool:
        """Tell, and be open."""
        self._event.set()
        return True
