"""Logs the exceptions of sinks that are Python functions."""

from __future__ import annotations


def _report(name: str, error: BaseException) -> None:
    """Log the exception of a sink to the logger ``llm_callback``."""
    from logging import getLogger  # noqa: PLC0415 - imported when a sink has failed

    getLogger("llm_callback").error(
        "the sink %r raised %s: it gets the same events again; what it raises next is counted, and not logged"
        " until it has gone well",
        name,
        type(error).__name__,
        exc_info=error,
    )
