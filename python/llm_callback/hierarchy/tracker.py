"""The tasks that the agents of one run were given, and their results."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Literal

    from strands.types.event_loop import Usage

_USAGE: tuple[Literal["inputTokens", "outputTokens", "totalTokens"], ...] = (
    "inputTokens",
    "outputTokens",
    "totalTokens",
)


class ExecutionTracker:
    """The calls of a run's teams and workers, and their results. Each run has a tracker of its own.

    Not thread-safe: only the run's event loop uses it.
    """

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], asyncio.Future[str]] = {}
        self._calls: Counter[str] = Counter()
        self._duplicates = 0
        self._failures = 0
        self._usage: Counter[str] = Counter()
        self._findings: list[tuple[str, str]] = []

    def is_duplicate(self, agent_id: str, task: str) -> bool:
        """Return whether the agent was given this task before. White space at the ends and its amount do not count."""
        return (agent_id, " ".join(task.split())) in self._asked

    async def once(self, agent_id: str, task: str, work: Callable[[], Awaitable[str]]) -> str:
        """Do ``work`` and return its result; for a task that the agent had before, return the earlier result.

        If the earlier work goes on, wait for it. If it failed, do the work again, so that a supervisor may try again.
        Raises what ``work`` raises.
        """
        key = (agent_id, " ".join(task.split()))
        if (earlier := self._asked.get(key)) is not None:
            self._duplicates += 1
            return await asyncio.shield(earlier)
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked[key] = result
        try:
            result.set_result(await self.counted(agent_id, work))
        except BaseException as error:
            del self._asked[key]
            if isinstance(error, Exception):
                result.set_exception(error)
                # Retrieving the exception keeps asyncio from logging that nobody has.
                result.exception()
            else:
                result.cancel()
            raise
        return result.result()

    async def counted(self, agent_id: str, work: Callable[[], Awaitable[str]]) -> str:
        """Do ``work`` and return its result. Count the call, and a failure."""
        self._calls[agent_id] += 1
        try:
            return await work()
        except Exception:
            self._failures += 1
            raise

    def count_usage(self, usage: Usage) -> None:
        """Add the tokens that a model has read and written, under strands' names."""
        self._usage.update({name: usage[name] for name in _USAGE})

    def add_finding(self, team_name: str, result: str) -> None:
        """Keep the result of a team for the teams after it."""
        self._findings.append((team_name, result))

    def findings_for(self, team_name: str) -> str:
        """Return the results of the other teams so far, as text for a prompt; empty if there are none."""
        others = [f"- {name}: {result}" for name, result in self._findings if name != team_name]
        return "\n".join(("What other teams have found so far:", *others)) if others else ""

    def statistics(self) -> dict[str, Any]:
        """Return the counts: calls of each agent, duplicates that were not worked on, failures, tokens."""
        return {
            "calls": dict(self._calls),
            "duplicates": self._duplicates,
            "failures": self._failures,
            "usage": {name: self._usage[name] for name in _USAGE},
        }
