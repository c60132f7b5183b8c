"""What the tests of readers share: server-sent events read after the WHATWG's text, and words for a run's events."""

from __future__ import annotations

import codecs
import json
import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import httpx_sse

from llm_callback import EventAction, EventCategory
from support import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_callback import CallerContext, Run, Subscription

# What a run's log holds.
HELD = 10_000
HELD_BYTES = 16 << 20

MEBIBYTE = "m" * (1 << 20)


class Message(NamedTuple):
    """A message as an EventSource dispatches it."""

    event: str
    data: str
    last_event_id: str


class SseParser:
    """The parser of https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6, step by step."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._text = ""
        self._is_start = True
        self._data: list[str] = []
        self._event = ""
        self._last_event_id = ""
        self.retry: int | None = None
        self.comments: list[str] = []

    def push(self, piece: bytes) -> list[Message]:
        """Read on; return the messages that this piece finishes."""
        self._text += self._decode(piece)
        if self._is_start and self._text:
            self._is_start = False
            self._text = self._text.removeprefix("\ufeff")
        # A CR at the end may be the first half of a CRLF.
        *lines, self._text = re.split(r"\r\n|\n|\r(?!\Z)", self._text)
        return [message for line in lines if (message := self._line(line)) is not None]

    def _line(self, line: str) -> Message | None:
        if not line:
            return self._dispatch()
        if line.startswith(":"):
            self.comments.append(line[1:])
            return None
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._event = value
        elif field == "data":
            self._data.append(value)
        elif field == "id" and "\0" not in value:
            self._last_event_id = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            self.retry = int(value)
        return None

    def _dispatch(self) -> Message | None:
        data, event = self._data, self._event
        self._data, self._event = [], ""
        return Message(event or "message", "\n".join(data), self._last_event_id) if data else None


def parse(stream: bytes) -> list[Message]:
    """Return the messages of a whole stream."""
    return SseParser().push(stream)


def parse_with_httpx(stream: bytes) -> list[Message]:
    """Return the messages of a whole stream, as the library httpx-sse reads them."""
    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    return [
        Message(message.event, message.data, message.id)
        for message in httpx_sse.EventSource(response).iter_sse()
    ]


def events_of(stream: bytes) -> list[dict[str, Any]]:
    """Return the events of a whole stream."""
    return [json.loads(message.data) for message in parse(stream)]


def say(run: Run, text: str = "x", source: CallerContext | None = None) -> str:
    """Emit a token into a live run; return its id."""
    event_id = run.emit(EventCategory.LLM, EventAction.STREAM, {"content": text}, source)
    assert event_id is not None
    return event_id


def numbers(events: Iterable[dict[str, Any]]) -> list[int]:
    """Return the sequence numbers of events."""
    return [event["sequence"] for event in events]


def kind(event: dict[str, Any]) -> str:
    """Return an event's category and action, as in `llm.stream`."""
    return f"{event['event']['category']}.{event['event']['action']}"


def kinds(events: Iterable[dict[str, Any]]) -> list[str]:
    """Return the categories and actions of events."""
    return [kind(event) for event in events]


def text(events: Iterable[dict[str, Any]]) -> str:
    """Return the text of all tokens."""
    return "".join(event["data"]["content"] for event in events if kind(event) == "llm.stream")


def overrun_by_number(run: Run) -> None:
    """Say a little more often than the log of the run holds."""
    for number in range(HELD + 500):
        say(run, str(number))


def overrun_by_size(run: Run) -> None:
    """Say more than the log of the run holds, in few events."""
    for _ in range(20):
        say(run, MEBIBYTE)


def checked(events: list[dict[str, Any]], *, after: int) -> int:
    """Check that events follow ``after``, without a hole but those that gaps tell exactly; return what is lost."""
    last, lost = after, 0
    for place, event in enumerate(events):
        if kind(event) != "stream.gap":
            assert event["sequence"] == last + 1
            last = event["sequence"]
            continue
        following = events[place + 1]
        assert event["data"]["oldest"] == following["id"]
        assert following["sequence"] - last - 1 == event["data"]["lost"]
        assert event["sequence"] == following["sequence"] - 1
        lost += event["data"]["lost"]
        last = following["sequence"] - 1
    return lost


def being_read(subscription: Subscription) -> None:
    """Wait until another thread is inside a read of ``subscription``."""
    end = time.monotonic() + DEADLINE
    time.sleep(0.002)
    while "being read" not in repr(subscription):
        assert time.monotonic() < end, "nobody reads"
        time.sleep(0.002)
