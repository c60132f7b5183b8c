"""One run of the demo: its script, what must reach it, what did, and the audit of the two."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from strands import Agent, tool

import llm_callback
from llm_callback.testing import Reasoning, ScriptedModel, Text, ToolCall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_callback.testing import Turn

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
_THOUGHT = "The question is about {topic} so I shall read first and count later"
_OPENING = (
    "Let me see what is known about {topic} before I say anything about {topic} myself and for "
    "that I shall search the notes that were taken"
)
_MIDDLE = (
    "There is more about {topic} in the notes than fits in one answer so I shall count how much "
    "it is and keep only what matters for the question"
)
_CLOSING = (
    "To sum up what the notes say about {topic}: it changes slowly and then all at once and it is "
    "best watched for a long time from one place with a notebook and a warm coat and whoever does "
    "so will find that {topic} repay the patience"
)
_MARK = re.compile(r"\[[^\]]*\]")
_START_TIMEOUT_SECONDS = 60.0


class Event(NamedTuple):
    """What the audit compares; ``text`` is a chunk of text, or a tool's name and number."""

    agent_id: str
    action: str
    text: str


@dataclass(frozen=True)
class Audit:
    """How the events that a run got differ from those that it must get. All are counts of events.

    ``foreign`` are another run's, ``lost`` never came, ``extra`` are its own but came twice or
    after its cancel, ``out_of_order`` came after one that they must precede.
    """

    expected: int
    delivered: int
    foreign: int
    lost: int
    extra: int
    out_of_order: int

    @property
    def clean(self) -> bool:
        """Whether the run got exactly its own events, once, in order."""
        return not (self.foreign or self.lost or self.extra or self.out_of_order)


def audit(expected: Sequence[Event], delivered: Sequence[Event], marker: str) -> Audit:
    """Compare what a run got with what it must get; the events of ``expected`` are all different.

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
    """One agent run; ``execute`` is for a pool's thread, the rest may be read from any other."""

    def __init__(self, number: int, *, is_cancelled: bool, delay: float) -> None:
        self.run_id = f"run-{number:02d}"
        self.is_cancelled = is_cancelled
        self.marker = secrets.token_hex(4)
        self.topic = _TOPICS[(number - 1) % len(_TOPICS)]
        self.delay = delay
        self.cancel = threading.Event()
        self.delivered: list[Event] = []
        self.tools_called: list[str] = []
        self.state = "waiting"
        self.error: str | None = None
        self.seconds = 0.0
        self.script, self.events = self._plan()

    @property
    def expected(self) -> Sequence[Event]:
        """What must reach the run: all that its script says, up to the cancel if there is one."""
        return self.events[: len(self.events) // 2] if self.is_cancelled else self.events

    @property
    def last_words(self) -> str:
        """The last words that reached the run, without the markers."""
        recent = self.delivered[-12:]
        return "".join(
            f"<{text.partition('_')[0]}> " if action == "tool_call" else _MARK.sub("", text)
            for _, action, text in recent
        )

    def audit(self) -> Audit:
        """Compare what has arrived with what the script says."""
        return audit(self.expected, tuple(self.delivered), self.marker)

    @property
    def fault(self) -> str | None:
        """What is wrong with how the run ended, in words; None if it ended as it must."""
        wanted = "cancelled" if self.is_cancelled else "completed"
        if self.state != wanted:
            why = f": {self.error}" if self.error else ""
            return f"{self.run_id} is {self.state}, not {wanted}{why}"
        tools = 2
        if not self.is_cancelled and len(self.tools_called) != tools:
            return f"{self.run_id} called {len(self.tools_called)} of its {tools} tools"
        return None

    def execute(self, start: threading.Barrier) -> None:
        """Register, wait for the other runs, run the agent to its end, and leave nothing behind."""
        llm_callback.register_event_callback(self.run_id, self._on_event)
        llm_callback.register_cancellation_checker(self.run_id, self.cancel.is_set)
        caller = llm_callback.CallerContext.worker(self.run_id, f"Writer on {self.topic}", "Demo")
        handler = llm_callback.create_callback_handler(caller, run_id=self.run_id)
        model = ScriptedModel(self.script, delay=self.delay)
        agent = Agent(model=model, tools=self._tools(), callback_handler=handler)
        try:
            start.wait(timeout=_START_TIMEOUT_SECONDS)
            began = time.monotonic()
            self.state = "running"
            try:
                agent(f"What should I know about {self.topic}?")
            finally:
                self.seconds = time.monotonic() - began
            self.state = "completed"
        except llm_callback.RunCancelled:
            self.state = "cancelled"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this run's result
            self.error = f"{type(error).__name__}: {error}"
            self.state = "failed"
        finally:
            llm_callback.register_event_callback(self.run_id, None)
            llm_callback.register_cancellation_checker(self.run_id, None)

    def _on_event(self, event: dict[str, Any]) -> None:
        action, data = event["event"]["action"], event["data"]
        tool_call = action == "tool_call"
        text = f"{data['tool_name']} #{data['tool_count']}" if tool_call else str(data["content"])
        self.delivered.append(Event(event["source"]["agent_id"], action, text))
        # Half-way, counted here: not one event more may come after this line.
        if self.is_cancelled and len(self.delivered) >= len(self.expected):
            self.cancel.set()

    def _plan(self) -> tuple[list[Turn], list[Event]]:
        script: list[Turn] = []
        events: list[Event] = []

        def words(action: str, text: str) -> tuple[str, ...]:
            chunks = []
            for word in text.format(topic=self.topic).split():
                chunk = f"{word}[{self.marker}.{len(events)}] "
                events.append(Event(self.run_id, action, chunk))
                chunks.append(chunk)
            return tuple(chunks)

        def call(tool_name: str, number: int, **tool_input: str) -> ToolCall:
            name = f"{tool_name}_{self.marker}"
            events.append(Event(self.run_id, "tool_call", f"{name} #{number}"))
            return ToolCall(name, tool_input)

        script.append(
            [
                Reasoning(words("reasoning", _THOUGHT)),
                Text(words("stream", _OPENING)),
                call("search", 1, query=self.topic),
            ]
        )
        script.append([Text(words("stream", _MIDDLE)), call("count", 2, text=_MIDDLE)])
        script.append([Text(words("stream", _CLOSING))])
        return script, events

    def _tools(self) -> list[Any]:
        # The names carry the marker, so that a tool call's event shows whose it is.
        @tool(name=f"search_{self.marker}")
        def search(query: str) -> str:
            """Search the notes for a topic."""
            self.tools_called.append("search")
            return f"three notes about {query}"

        @tool(name=f"count_{self.marker}")
        def count(text: str) -> int:
            """Count the words of a text."""
            self.tools_called.append("count")
            return len(text.split())

        return [search, count]
