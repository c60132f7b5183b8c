"""One run of the demo: its hierarchy, its script, the events that it must get, those that it got, and their audit."""

from __future__ import annotations

import re
import secrets
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from strands import tool

from llm_callback.hierarchy import register_script, register_tool
from llm_callback.testing import Reasoning, ScriptedModel, Text, ToolCall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_callback import CallbackEvent, Run, RunManager
    from llm_callback.hierarchy import ModelRequest
    from llm_callback.testing import Turn

_TEAMS = {"Readers": ("Ada", "Ben"), "Writers": ("Cleo", "Dan")}
_TOPICS = (
    "tides",
    "lighthouses",
    "coral reefs",
    "sea fog",
    "whale song",
    "salt marshes",
    "trade winds",
    "harbours",
    "deep currents",
    "icebergs",
)
_PLAN = "About {topic} the readers shall find out and the writers shall write it down"
_LEAD = "We shall each take one half of what there is to do about {topic}"
_THOUGHT = "The question is about {topic} so I shall look at the notes first"
_OPENING = "Let me see what is known about {topic} before I say anything"
_CLOSING = (
    "What the notes say about {topic} is that it changes slowly and then all at once and is best "
    "watched for a long time from one place with a notebook and a warm coat"
)
_DONE = "That is what we have about {topic}"
_MARK = re.compile(r"\[[^\]]*\]")
# With a real model the number of words is unknown.
_HALF_OF_A_REAL_ANSWER = 40
_CANCEL_MS_AT_MOST = 1000


class Event(NamedTuple):
    """An event as the audit compares it. ``text`` is a chunk of text, or a tool's name and number."""

    agent_id: str
    action: str
    text: str


@dataclass(frozen=True)
class Audit:
    """How the events that a run got differ from those that it must get. All are counts of events.

    ``foreign`` are another run's, ``lost`` never came, ``extra`` are its own but came twice or after its end,
    ``out_of_order`` came after one that they must precede.
    """

    expected: int
    delivered: int
    foreign: int
    lost: int
    extra: int
    out_of_order: int

    @property
    def clean(self) -> bool:
        """Whether the run got exactly its own events, each once, in order."""
        return not (self.foreign or self.lost or self.extra or self.out_of_order)


def audit(expected: Sequence[Event], delivered: Sequence[Event], marker: str) -> Audit:
    """Compare the events that a run got with those that it must get. The events of ``expected`` are all different.

    An event is the run's own if its text carries ``marker`` and it names the agent of ``expected``.
    """
    agents = {event.agent_id for event in expected}
    own = [event for event in delivered if marker in event.text and event.agent_id in agents]
    wanted, got = Counter(expected), Counter(own)
    place = {event: index for index, event in enumerate(expected)}
    latest = -1
    out_of_order = 0
    for event in own:
        index = place.get(event, -1)
        if 0 <= index < latest:
            out_of_order += 1
        latest = max(latest, index)
    return Audit(
        expected=len(expected),
        delivered=len(delivered),
        foreign=len(delivered) - len(own),
        lost=(wanted - got).total(),
        extra=(got - wanted).total(),
        out_of_order=out_of_order,
    )


class DemoRun:
    """One run of the hierarchy, and a viewer that follows it on a thread of its own. Other threads may look at both.

    ``model`` is the model of all agents, such as ``openai:gpt-4o-mini``; None is the script, whose every word, and
    every name of a tool, carries the run's secret marker.
    """

    def __init__(
        self, number: int, *, is_cancelled: bool, delay: float, model: str | None = None
    ) -> None:
        self.run_id = f"run-{number:02d}"
        self.is_cancelled = is_cancelled
        self.marker = secrets.token_hex(4)
        self.topic = _TOPICS[(number - 1) % len(_TOPICS)]
        self.delay = delay
        self.model = model
        self.delivered: list[Event] = []
        self.speaking = ""
        self.error: str | None = None
        self.run: Run | None = None
        self._script: dict[str, list[Turn]] = {}
        self.events: list[Event] = []
        self._heard: list[Event] = []
        self._ending: str | None = None
        self._viewer: threading.Thread | None = None
        if model is None:
            self._plan()

    # --- Its life ---

    def start(self, manager: RunManager) -> None:
        """Start the run, and begin to follow it."""
        if self.model is None:
            register_script(self.marker, self.scripted_model)
        register_tool(f"search_{self.marker}", self.search())
        task = f"What should I know about {self.topic}?"
        self.run = manager.start_run(self.config(), task, run_id=self.run_id, on_event=self._hear)
        subscription = self.run.subscribe("start", overflow="gap")

        def view() -> None:
            for event in subscription:
                self._view(event)

        self._viewer = threading.Thread(target=view, daemon=True)
        self._viewer.start()

    def close(self, timeout: float) -> None:
        """Wait until the viewer has read all events, and remove the registrations of the run."""
        if self._viewer is not None:
            self._viewer.join(timeout)
        register_script(self.marker, None)
        register_tool(f"search_{self.marker}", None)

    @property
    def state(self) -> str:
        """The state of the run."""
        return "waiting" if self.run is None else self.run.state

    @property
    def cancel_ms(self) -> float | None:
        """The milliseconds from the request to stop until the run's last event."""
        run = self.run
        if run is None or run.cancel_requested_at is None or run.finished_at is None:
            return None
        return max(0.0, run.finished_at - run.cancel_requested_at) * 1000

    def _hear(self, event: CallbackEvent) -> None:
        if (said := _said(event)) is not None:
            self._heard.append(said)

    def _view(self, event: CallbackEvent) -> None:
        if event["event"]["category"] == "lifecycle":
            self._ending = event["event"]["action"]
            self.error = self.error or event["data"].get("error")
        if (source := event["source"]) is None or (said := _said(event)) is None:
            return
        self.delivered.append(said)
        self.speaking = source["agent_name"].replace(f" {self.marker}", "")
        half = len(self.events) // 2 or _HALF_OF_A_REAL_ANSWER
        if self.is_cancelled and self.run is not None and len(self.delivered) == half:
            self.run.cancel("cancelled half-way by the demo")

    # --- The result ---

    @property
    def expected(self) -> Sequence[Event]:
        """The events that the run must get: those of its script, up to the cancel if it was cancelled.

        With a real model, the events that the callback on the run's own thread got.
        """
        if self.model is not None:
            return self._heard
        came = max(len(self.delivered), len(self.events) // 2)
        return self.events[:came] if self.is_cancelled else self.events

    @property
    def last_words(self) -> str:
        """The last words of the events that the run got, without the markers."""
        return "".join(
            f"<{text.partition(f'_{self.marker}')[0]}> "
            if action == "tool_call"
            else _MARK.sub("", text)
            for _, action, text in self.delivered[-12:]
        )

    def audit(self) -> Audit:
        """Compare the events that the run got with those that it must get."""
        if self.model is None:
            return audit(self.expected, tuple(self.delivered), self.marker)
        # The words of a real model carry no marker, and may repeat.
        return audit(_numbered(self.expected), _numbered(tuple(self.delivered)), "")

    @property
    def fault(self) -> str | None:
        """Say in words what is wrong with the end of the run; None if it ended as it must."""
        wanted = "cancelled" if self.is_cancelled else "completed"
        if self.state != wanted:
            why = f": {self.error}" if self.error else ""
            return f"{self.run_id} is {self.state}, not {wanted}{why}"
        if self._ending != self.state:
            return f"{self.run_id} is {self.state}, but its viewer's last word is {self._ending}"
        if (took := self.cancel_ms) is not None and took > _CANCEL_MS_AT_MOST:
            return f"{self.run_id} ended {took:.0f} ms after its cancel, which is too late"
        return None

    # --- Its hierarchy and its script ---

    def _agent_id(self, name: str) -> str:
        return f"{self.run_id}.{name.lower()}"

    def config(self) -> dict[str, Any]:
        """Return the configuration of its hierarchy."""
        llm = {"model_id": self.model or f"scripted:{self.marker}", "max_tokens": 300}

        def agent(name: str, prompt: str) -> dict[str, Any]:
            return {
                "agent_id": self._agent_id(name),
                "system_prompt": prompt.format(topic=self.topic),
                "llm_config": llm,
            }

        def worker(name: str) -> dict[str, Any]:
            return {
                **agent(name, "You search the notes about {topic}, and say what they say."),
                "name": f"{name} {self.marker}",
                "role": "Knows the notes.",
                "tools": [f"search_{self.marker}"],
            }

        return {
            "global_supervisor_agent": agent("supervisor", "Ask each team once, then sum up."),
            "teams": [
                {
                    "name": f"{team} {self.marker}",
                    "team_supervisor_agent": agent(team, "Ask each worker once, then sum up."),
                    "workers": [worker(name) for name in workers],
                }
                for team, workers in _TEAMS.items()
            ],
        }

    def search(self) -> Any:
        """Return the tool of its workers."""

        @tool(name=f"search_{self.marker}")
        def search(query: str) -> str:
            """Search the notes for a topic."""
            return f"three notes about {query}"

        return search

    def scripted_model(self, request: ModelRequest) -> ScriptedModel:
        """Return the model that speaks an agent's part of the script."""
        return ScriptedModel(self._script[request.agent_id], delay=self.delay)

    def _plan(self) -> None:
        """Write the script in the order of its events: one team after the other."""
        first: list[Turn] = [
            [self._text("supervisor", "stream", _PLAN), *self._calls("supervisor", "team", _TEAMS)]
        ]
        self._script[self._agent_id("supervisor")] = first
        for team, workers in _TEAMS.items():
            self._script[self._agent_id(team)] = [
                [self._text(team, "stream", _LEAD), *self._calls(team, "worker", workers)]
            ]
            for name in workers:
                self._script[self._agent_id(name)] = [
                    [
                        self._text(name, "reasoning", _THOUGHT),
                        self._text(name, "stream", _OPENING),
                        self._call(name, f"search_{self.marker}", 1, query=self.topic),
                    ],
                    self._text(name, "stream", _CLOSING),
                ]
            self._script[self._agent_id(team)].append(self._text(team, "stream", _DONE))
        first.append(self._text("supervisor", "stream", _DONE))

    def _text(self, name: str, action: str, text: str) -> Text | Reasoning:
        chunks = []
        for word in text.format(topic=self.topic).split():
            chunk = f"{word}[{self.marker}.{len(self.events)}] "
            self.events.append(Event(self._agent_id(name), action, chunk))
            chunks.append(chunk)
        return (Reasoning if action == "reasoning" else Text)(tuple(chunks))

    def _calls(self, name: str, kind: str, whom: Sequence[str] | dict[str, Any]) -> list[ToolCall]:
        return [
            self._call(name, f"{kind}_{one.lower()}_{self.marker}", number, task=self.topic)
            for number, one in enumerate(whom, start=1)
        ]

    def _call(self, name: str, tool_name: str, number: int, **tool_input: str) -> ToolCall:
        self.events.append(Event(self._agent_id(name), "tool_call", f"{tool_name} #{number}"))
        return ToolCall(tool_name, tool_input)


def _numbered(events: Sequence[Event]) -> list[Event]:
    """Return the events with numbers on equal ones, so that all are different."""
    count: Counter[Event] = Counter()
    numbered = []
    for event in events:
        count[event] += 1
        numbered.append(event._replace(text=f"{event.text} #{count[event]}"))
    return numbered


def _said(event: CallbackEvent) -> Event | None:
    """Return the text or the tool call of an event; None for other events."""
    category, action, data = event["event"]["category"], event["event"]["action"], event["data"]
    source = event["source"]
    if source is None or category != "llm" or action not in {"stream", "reasoning", "tool_call"}:
        return None
    is_call = action == "tool_call"
    text = f"{data['tool_name']} #{data['tool_count']}" if is_call else str(data["content"])
    return Event(source["agent_id"], action, text)
