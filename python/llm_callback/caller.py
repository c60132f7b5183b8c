"""The old place of :class:`llm_callback.events.CallerContext`; it goes on working."""

from llm_callback.events import CallerContext

__all__ = ["CallerContext"]
