"""Who is speaking: the agent that a handler was made for."""

from __future__ import annotations

from dataclasses import dataclass

from llm_callback.enums import AgentType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self


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

    def to_source_dict(self) -> dict[str, str | None]:
        """Return a new dict for an event's ``source``, the agent type as a plain ``str``."""
        return {
            "agent_id": self.agent_id,
            "agent_type": self._plain_type(),
            "agent_name": self.agent_name,
            "team_name": self.team_name,
        }

    def to_db_fields(self) -> dict[str, str | None]:
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
