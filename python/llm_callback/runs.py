"""The old place of ``RunManager``: see :mod:`llm_callback.manager`."""

from llm_callback.manager import RunManager

__all__ = ["RunManager"]
