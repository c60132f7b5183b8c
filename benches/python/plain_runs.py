"""Runs as one would write them in Python: what ``bench_runs.py`` compares with.

Nothing here is slower than it has to be: what all events of a handler have in common is made once, the time is
written before the lock is taken, and each reader encodes outside it.
"""

from __future__ import annotations

import json
import queue
import threading
from collections import deque
from datetime import datetime, timezone
from time import time_ns
from typing import TYPE_CHECKING, Any

from llm_callback import RunCancelled

if TYPE_CHECKING:
    from collections.abc import Iterator

# As ours: the oldest events make room for new ones.
LOG_LENGTH = 10_000

Event = dict[str, Any]


class PlainRun:
    """One run: its log, its readers, its cancel event."""

    __slots__ = ("cancelled", "lock", "log", "readers", "run_id", "sequence")

    def __init__(self, run_id: int | str) -> None:
        self.run_id = run_id
        self.cancelled = threading.Event()
        self.lock = threading.Lock()
        self.log: deque[Event] = deque(maxlen=LOG_LENGTH)
        self.readers: list[queue.Queue[Event | None]] = []
        self.sequence = 0

    def emit(self, category: str, action: str, data: Any, source: dict[str, Any] | None) -> None:
        """Put a full event into the log and before each reader."""
        milliseconds = time_ns() // 1_000_000
        now = datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
        # Without its +00:00.
        timestamp = now.isoformat(timespec="milliseconds")[:-6] + "Z"
        with self.lock:
            self.sequence = sequence = self.sequence + 1
            event = {
                "id": f"{milliseconds}-{sequence}",
                "run_id": self.run_id,
                "timestamp": timestamp,
                "sequence": sequence,
                "source": source,
                "event": {"category": category, "action": action},
                "data": data,
            }
            self.log.append(event)
            for reader in self.readers:
                reader.put(event)

    def subscribe(self) -> queue.Queue[Event | None]:
        """Return a queue of all events from now on; None is the end."""
        reader: queue.Queue[Event | None] = queue.Queue()
        with self.lock:
            self.readers.append(reader)
        return reader

    def complete(self) -> None:
        """Say that it is over."""
        self.emit("lifecycle", "completed", {}, None)
        with self.lock:
            for reader in self.readers:
                reader.put(None)

    def handler(self, source: dict[str, Any]) -> PlainHandler:
        """Return what a framework calls."""
        return PlainHandler(self, source)


class PlainHandler:
    """Turns what a framework calls it with into events of one run."""

    __slots__ = ("previous_tool_use", "run", "source", "tool_count")

    def __init__(self, run: PlainRun, source: dict[str, Any]) -> None:
        self.run = run
        self.source = source
        self.previous_tool_use: Any = None
        self.tool_count = 0

    def __call__(self, **kwargs: Any) -> None:
        """Report reasoning, text and tool calls."""
        run = self.run
        if run.cancelled.is_set():
            raise RunCancelled(run.run_id)
        if reasoning := kwargs.get("reasoningText"):
            run.emit("llm", "reasoning", {"content": reasoning}, self.source)
        if data := kwargs.get("data"):
            run.emit("llm", "stream", {"content": data}, self.source)
        tool = kwargs.get("current_tool_use")
        if tool and tool is not self.previous_tool_use and tool.get("name"):
            self.previous_tool_use = tool
            self.tool_count += 1
            call = {"tool_name": tool["name"], "tool_count": self.tool_count}
            run.emit("llm", "tool_call", call, self.source)


def sse(reader: queue.Queue[Event | None]) -> Iterator[bytes]:
    """Yield each event as the frame that SSE sends."""
    while (event := reader.get()) is not None:
        yield f"id: {event['id']}\ndata: {json.dumps(event)}\n\n".encode()
