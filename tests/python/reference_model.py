"""A plain-Python model of the drop-in module.

It is the oracle of the differential tests and the baseline of the benches: the same names and the same behaviour as
the drop-in face of ``llm_callback``, written the obvious way, with two dictionaries behind one lock. The current run
is a context variable, as it is in ``llm_callback``. What the original did wrong is deliberately not modelled.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    EventCallback = Callable[[dict[str, Any]], object]
    CancellationChecker = Callable[[], object]

__all__ = [
    "AgentType",
    "CallerContext",
    "EventAction",
    "EventCategory",
    "LLMCallbackHandler",
    "check_cancellation",
    "clear_current_run_id",
    "create_callback_handler",
    "get_cancellation_checker",
    "get_current_run_id",
    "get_event_callback",
    "get_global_cancellation_checker",
    "get_global_event_callback",
    "register_cancellation_checker",
    "register_event_callback",
    "set_current_run_id",
    "set_global_cancellation_checker",
    "set_global_event_callback",
]


class AgentType(str, Enum):
    """What kind of agent is speaking."""

    GLOBAL_SUPERVISOR = "global_supervisor"
    TEAM_SUPERVISOR = "team_supervisor"
    WORKER = "worker"


class EventCategory(str, Enum):
    """Which part of the system an event is about."""

    LIFECYCLE = "lifecycle"
    LLM = "llm"
    DISPATCH = "dispatch"
    SYSTEM = "system"
    AGENT = "agent"


class EventAction(str, Enum):
    """What happened."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STREAM = "stream"
    REASONING = "reasoning"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    TEAM = "team"
    WORKER = "worker"
    TOPOLOGY = "topology"
    WARNING = "warning"
    ERROR = "error"


@dataclass
class CallerContext:
    """Who is speaking."""

    agent_id: str
    agent_type: AgentType
    agent_name: str
    team_name: str | None = None

    @classmethod
    def global_supervisor(
        cls, agent_id: str, agent_name: str = "Global Supervisor"
    ) -> CallerContext:
        """Describe the supervisor of all teams."""
        return cls(agent_id, AgentType.GLOBAL_SUPERVISOR, agent_name)

    @classmethod
    def team_supervisor(cls, agent_id: str, agent_name: str, team_name: str) -> CallerContext:
        """Describe the supervisor of one team."""
        return cls(agent_id, AgentType.TEAM_SUPERVISOR, agent_name, team_name)

    @classmethod
    def worker(cls, agent_id: str, agent_name: str, team_name: str) -> CallerContext:
        """Describe a worker of one team."""
        return cls(agent_id, AgentType.WORKER, agent_name, team_name)

    def to_source_dict(self) -> dict[str, Any]:
        """Return the ``source`` part of an event."""
        return {
            "agent_id": self.agent_id,
            "agent_type": self.agent_type.value
            if isinstance(self.agent_type, AgentType)
            else self.agent_type,
            "agent_name": self.agent_name,
            "team_name": self.team_name,
        }

    def to_db_fields(self) -> dict[str, Any]:
        """Return the columns that a stored event has."""
        return self.to_source_dict()

    def get_source_label(self) -> str:
        """Return a label for people to read."""
        if self.agent_type == AgentType.GLOBAL_SUPERVISOR:
            return f"[Global Supervisor: {self.agent_name}]"
        if self.agent_type == AgentType.TEAM_SUPERVISOR:
            return f"[Team: {self.team_name} | Supervisor: {self.agent_name}]"
        if self.agent_type == AgentType.WORKER:
            return f"[Team: {self.team_name} | Worker: {self.agent_name}]"
        return f"[Agent: {self.agent_id}]"


_lock = threading.Lock()
_callback_registry: dict[Hashable, EventCallback] = {}
_checker_registry: dict[Hashable, CancellationChecker] = {}
_current_run_id: ContextVar[Any] = ContextVar("current_run_id", default=None)


def set_current_run_id(run_id: Any) -> None:
    """Make ``run_id`` the run of this context."""
    _current_run_id.set(run_id)


def get_current_run_id() -> Any:
    """Return the run of this context, or None."""
    return _current_run_id.get()


def clear_current_run_id() -> None:
    """Leave this context without a run."""
    _current_run_id.set(None)


def register_event_callback(run_id: Hashable, callback: EventCallback | None) -> None:
    """Send the events of a run to ``callback``; None removes it."""
    with _lock:
        if callback is not None:
            _callback_registry[run_id] = callback
        elif run_id in _callback_registry:  # pop() would not hash while it is empty
            del _callback_registry[run_id]


def get_event_callback(run_id: Hashable) -> EventCallback | None:
    """Return the callback of a run, or None."""
    with _lock:
        return _callback_registry.get(run_id)


def register_cancellation_checker(run_id: Hashable, checker: CancellationChecker | None) -> None:
    """Ask ``checker`` whether a run is cancelled; None removes it."""
    with _lock:
        if checker is not None:
            _checker_registry[run_id] = checker
        elif run_id in _checker_registry:  # pop() would not hash while it is empty
            del _checker_registry[run_id]


def get_cancellation_checker(run_id: Hashable) -> CancellationChecker | None:
    """Return the checker of a run, or None."""
    with _lock:
        return _checker_registry.get(run_id)


def set_global_event_callback(callback: EventCallback | None) -> None:
    """Register a callback for the current run, if there is one."""
    run_id = get_current_run_id()
    if run_id is not None:
        register_event_callback(run_id, callback)


def get_global_event_callback() -> EventCallback | None:
    """Return the callback of the current run, or None."""
    run_id = get_current_run_id()
    return None if run_id is None else get_event_callback(run_id)


def set_global_cancellation_checker(checker: CancellationChecker | None) -> None:
    """Register a checker for the current run, if there is one."""
    run_id = get_current_run_id()
    if run_id is not None:
        register_cancellation_checker(run_id, checker)


def get_global_cancellation_checker() -> CancellationChecker | None:
    """Return the checker of the current run, or None."""
    run_id = get_current_run_id()
    return None if run_id is None else get_cancellation_checker(run_id)


def _raise_if_cancelled(run_id: Hashable) -> None:
    checker = get_cancellation_checker(run_id)
    if checker and checker():
        msg = "Run was cancelled"
        raise InterruptedError(msg)


def check_cancellation() -> None:
    """Raise InterruptedError if the current run is cancelled."""
    run_id = get_current_run_id()
    if run_id is not None:
        _raise_if_cancelled(run_id)


class LLMCallbackHandler:
    """Turns the keyword arguments that an agent framework calls it with into events of one run."""

    def __init__(
        self,
        caller_context: CallerContext,
        event_callback: EventCallback | None = None,
        verbose: bool = False,
        run_id: Any = None,
    ) -> None:
        self.caller_context = caller_context
        self.event_callback = event_callback
        self.verbose = verbose
        self.run_id = run_id
        self.tool_count = 0
        self.previous_tool_use: Any = None
        self._buffer: list[Any] = []

    def __call__(self, **kwargs: Any) -> None:
        """Take one callback of the framework."""
        if self.run_id is not None:
            _raise_if_cancelled(self.run_id)

        callback = self.event_callback
        if callback is None and self.run_id is not None:
            callback = get_event_callback(self.run_id)

        reasoning = kwargs.get("reasoningText")
        data = kwargs.get("data")
        tool_use = kwargs.get("current_tool_use")
        complete = kwargs.get("complete")

        if reasoning:
            if self.verbose:
                print(reasoning, end="")
            if callback:
                self._emit_event(
                    callback, EventCategory.LLM, EventAction.REASONING, {"content": reasoning}
                )

        if data:
            self._buffer.append(data)
            if self.verbose:
                print(data, end="\n" if complete else "")
            if callback and len(data.strip()) > 0:
                self._emit_event(callback, EventCategory.LLM, EventAction.STREAM, {"content": data})

        if tool_use and (name := tool_use.get("name")) and self.previous_tool_use != tool_use:
            self.previous_tool_use = tool_use
            self.tool_count += 1
            if self.verbose:
                print(f"\nTool #{self.tool_count}: {name}")
            if callback:
                payload = {"tool_name": name, "tool_count": self.tool_count}
                self._emit_event(callback, EventCategory.LLM, EventAction.TOOL_CALL, payload)

        if complete:
            self._buffer = []
            if self.verbose and data:
                print("\n")
            if callback:
                payload = {"message": "LLM round completed"}
                self._emit_event(callback, EventCategory.LLM, EventAction.COMPLETED, payload)

    def _emit_event(
        self,
        callback: EventCallback,
        category: EventCategory,
        action: EventAction,
        data: dict[str, Any],
    ) -> None:
        callback(
            {
                "source": self.caller_context.to_source_dict(),
                "event": {"category": category.value, "action": action.value},
                "data": data,
            },
        )


def create_callback_handler(
    caller_context: CallerContext,
    event_callback: EventCallback | None = None,
    verbose: bool = False,
    run_id: Any = None,
) -> LLMCallbackHandler:
    """Make a handler, in the words that hosts use."""
    return LLMCallbackHandler(caller_context, event_callback, verbose, run_id)
