"""The words of an event: who speaks, of what, and what happened."""

from enum import Enum


class AgentType(str, Enum):
    """The place of an agent in its hierarchy."""

    GLOBAL_SUPERVISOR = "global_supervisor"
    TEAM_SUPERVISOR = "team_supervisor"
    WORKER = "worker"


class EventCategory(str, Enum):
    """What an event is about."""

    LIFECYCLE = "lifecycle"
    LLM = "llm"
    DISPATCH = "dispatch"
    SYSTEM = "system"
    AGENT = "agent"


class EventAction(str, Enum):
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
