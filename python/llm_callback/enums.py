"""The words of an event: who speaks, of what, and what happened."""

from __future__ import annotations

from enum import Enum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self


class _Word(str, Enum):
    """An enum whose members are plain words; called, it finds the member of a value."""

    if TYPE_CHECKING:

        def __new__(cls, value: object) -> Self: ...


class AgentType(_Word):
    """The place of an agent in its hierarchy."""

    GLOBAL_SUPERVISOR = "global_supervisor"
    TEAM_SUPERVISOR = "team_supervisor"
    WORKER = "worker"


class EventCategory(_Word):
    """What an event is about."""

    LIFECYCLE = "lifecycle"
    LLM = "llm"
    DISPATCH = "dispatch"
    SYSTEM = "system"
    AGENT = "agent"


class EventAction(_Word):
    """What happened; which actions belong to which category is a convention, not enforced."""

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
