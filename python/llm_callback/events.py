"""Who speaks, the words of events, and the types of events."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from llm_callback._lazy import import_at_first_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self

    from llm_callback._event_types import (
        AgentCompletedData,
        AgentFailedData,
        AgentStartedData,
        BuiltInAction,
        BuiltInCategory,
        CallbackEvent,
        CancelKind,
        DispatchTeamData,
        DispatchWorkerData,
        Event,
        EventWord,
        LifecycleCancelledData,
        LifecycleCompletedData,
        LifecycleFailedData,
        LifecycleStartedData,
        LlmCompletedData,
        LlmReasoningData,
        LlmStreamData,
        LlmToolCallData,
        LlmToolResultData,
        Overflow,
        RunState,
        Source,
        StreamGapData,
        SystemErrorData,
        SystemOutputData,
        SystemTopologyData,
        SystemWarningData,
        TopologyTeam,
        TopologyWorker,
    )

__all__ = [
    "AgentCompletedData",
    "AgentFailedData",
    "AgentStartedData",
    "AgentType",
    "BuiltInAction",
    "BuiltInCategory",
    "CallbackEvent",
    "CallerContext",
    "CancelKind",
    "DispatchTeamData",
    "DispatchWorkerData",
    "Event",
    "EventAction",
    "EventCategory",
    "EventWord",
    "LifecycleCancelledData",
    "LifecycleCompletedData",
    "LifecycleFailedData",
    "LifecycleStartedData",
    "LlmCompletedData",
    "LlmReasoningData",
    "LlmStreamData",
    "LlmToolCallData",
    "LlmToolResultData",
    "Overflow",
    "RunState",
    "Source",
    "StreamGapData",
    "SystemErrorData",
    "SystemOutputData",
    "SystemTopologyData",
    "SystemWarningData",
    "TopologyTeam",
    "TopologyWorker",
]


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


@dataclass
class CallerContext:
    """The agent that a handler speaks for; it becomes the ``source`` of that handler's events.

    A plain mutable dataclass. A handler reads it anew for each event, so a change shows in the next one.
    Not synchronised: change it from one thread at a time.
    """

    agent_id: str
    agent_type: AgentType
    agent_name: str
    team_name: str | None = None

    @classmethod
    def global_supervisor(cls, agent_id: str, agent_name: str = "Global Supervisor") -> Self:
        """Make the context of the agent at the top, which belongs to no team."""
        return cls(agent_id, AgentType.GLOBAL_SUPERVISOR, agent_name)

    @classmethod
    def team_supervisor(cls, agent_id: str, agent_name: str, team_name: str) -> Self:
        """Make the context of the agent that leads ``team_name``."""
        return cls(agent_id, AgentType.TEAM_SUPERVISOR, agent_name, team_name)

    @classmethod
    def worker(cls, agent_id: str, agent_name: str, team_name: str) -> Self:
        """Make the context of an agent that works in ``team_name``."""
        return cls(agent_id, AgentType.WORKER, agent_name, team_name)

    def to_source_dict(self) -> Source:
        """Return a new dict for an event's ``source``, the agent type as a plain ``str``."""
        return {
            "agent_id": self.agent_id,
            "agent_type": self._plain_type(),
            "agent_name": self.agent_name,
            "team_name": self.team_name,
        }

    def to_db_fields(self) -> Source:
        """Return a new dict of the columns that a host stores beside an event."""
        return self.to_source_dict()

    def get_source_label(self) -> str:
        """Return who speaks, for a person to read, such as ``[Team: A | Worker: Ann]``."""
        if self.agent_type == AgentType.GLOBAL_SUPERVISOR:
            return f"[Global Supervisor: {self.agent_name}]"
        if self.agent_type == AgentType.TEAM_SUPERVISOR:
            return f"[Team: {self.team_name} | Supervisor: {self.agent_name}]"
        if self.agent_type == AgentType.WORKER:
            return f"[Team: {self.team_name} | Worker: {self.agent_name}]"
        return f"[Agent: {self.agent_id}]"

    def _plain_type(self) -> str:
        own = isinstance(self.agent_type, AgentType)
        return str(self.agent_type.value) if own else self.agent_type


# Nothing above needs ``typing``.
import_at_first_use(
    globals(), {"_event_types": [name for name in __all__ if name not in globals()]}
)
