"""The parts of a script for ``ScriptedModel``: plain immutable values that know no framework."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from llm_callback.exceptions import LlmCallbackError

if TYPE_CHECKING:
    from strands.types.content import Messages

_WORD = re.compile(r"\s*\S+\s*")


class SupportsIsSet(Protocol):
    """A ``threading.Event``, a cancel token, or anything else with ``is_set()``."""

    def is_set(self) -> bool: ...


def _chunks(text: str | tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(text, str):
        return text
    return tuple(_WORD.findall(text)) or ((text,) if text else ())


@dataclass(frozen=True)
class Text:
    """Visible text, which a callback handler gets as ``data``, one call for each chunk.

    ``text`` is either a string, sent word by word (white space stays with the word before it), or a
    tuple of strings, each sent as one chunk exactly as it is.
    """

    text: str | tuple[str, ...]

    @property
    def chunks(self) -> tuple[str, ...]:
        """The chunks in the order in which they are sent; joined they are the text."""
        return _chunks(self.text)


@dataclass(frozen=True)
class Reasoning:
    """Reasoning, which a callback handler gets as ``reasoningText``; ``text`` is as in ``Text``."""

    text: str | tuple[str, ...]

    @property
    def chunks(self) -> tuple[str, ...]:
        """The chunks in the order in which they are sent; joined they are the text."""
        return _chunks(self.text)


@dataclass(frozen=True)
class ToolCall:
    """A request to call a tool; the agent calls the real tool and sends the next request after it.

    ``name`` is the tool's name and ``input`` its arguments (anything that JSON can hold; it is
    encoded here, so that later changes to it have no effect). Several in one turn are one request
    for several tools, which strands runs concurrently. ``tool_use_id`` is
    ``"tool-<turn>-<number in the turn>"``, both from 1, unless it is given.

    Raises ``TypeError`` or ``ValueError`` if ``input`` cannot be encoded as JSON.
    """

    name: str
    input: Mapping[str, Any] = field(default_factory=dict)
    tool_use_id: str | None = None
    input_json: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_json", json.dumps(dict(self.input), ensure_ascii=False))


@dataclass(frozen=True)
class Pause:
    """A silent model for that many seconds (asynchronously: the agent's event loop keeps running).

    Like most real providers, the model does not look at the agent's ``cancel_signal`` meanwhile.
    """

    seconds: float


@dataclass(frozen=True)
class Gate:
    """A silent model until ``event.is_set()``, so that a test decides when the script goes on.

    ``event`` is a ``threading.Event`` or anything else with ``is_set()``; it is polled every 2 ms
    and the agent's event loop keeps running. A gate that is still shut after ``timeout`` seconds
    raises ``TimeoutError`` in the agent, so that a test that forgot to open the gate fails instead of hanging.
    """

    event: SupportsIsSet
    timeout: float = 30.0


@dataclass(frozen=True)
class Fail:
    """A model that raises ``error`` at this point, as a provider does when its connection breaks.

    Strands retries some errors (``ModelThrottledException``); a retry is a request like any other
    and plays the next turn.
    """

    error: BaseException


Part = Text | Reasoning | ToolCall | Pause | Gate | Fail
"""One step of a turn."""

Turn = str | Part | Sequence[str | Part]
"""What the model answers to one request: a part, several, or a string (short for ``Text``)."""


@dataclass(frozen=True)
class Request:
    """What the agent asked the model for in one turn: ``turn`` counts from 1."""

    turn: int
    messages: Messages
    tool_names: tuple[str, ...]
    system_prompt: str | None


class ScriptExhausted(LlmCallbackError, RuntimeError):
    """The agent sent a request for which the script has no turn.

    ``turn`` is the turn that was asked for, counted from 1, and ``turns`` how many there are. An
    agent raises it as it is for its first request; for later ones strands puts it, as any error of
    a model, into an ``EventLoopException`` with the same message (see ``original_exception``).
    """

    def __init__(self, turn: int, turns: int) -> None:
        super().__init__(turn, turns)
        self.turn = turn
        self.turns = turns

    def __str__(self) -> str:
        has = "1 turn" if self.turns == 1 else f"{self.turns} turns"
        return (
            f"the model was asked for turn {self.turn}, but its script has {has}; "
            "after its tools, and for a retry, an agent asks for one more"
        )


def parts_of(turn: Turn, number: int) -> tuple[Part, ...]:
    """Return the parts of one turn; ``number`` is for the error message."""
    parts = [turn] if isinstance(turn, (str, Part)) else turn
    if not isinstance(parts, Sequence):
        raise TypeError(
            f"turn {number} of the script is not a part or a sequence of parts: {turn!r}"
        )
    checked: list[Part] = []
    for item in parts:
        part = Text(item) if isinstance(item, str) else item
        if not isinstance(part, Part):
            raise TypeError(
                f"turn {number} of the script holds {part!r}, which is not a part or a string"
            )
        checked.append(part)
    return tuple(checked)
