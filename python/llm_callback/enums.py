"""The old place of the enums that are in :mod:`llm_callback.events`; it goes on working."""

from llm_callback.events import AgentType, EventAction, EventCategory

__all__ = ["AgentType", "EventAction", "EventCategory"]
