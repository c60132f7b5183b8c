"""A scripted model for tests: real strands agents, no network, no randomness.

``ScriptedModel`` is a real ``strands.models.Model``, so the agent loop, the tools, the threads and
the callbacks around it are the ones that production uses; only the words come from a script.

    from strands import Agent
    from llm_callback.testing import Gate, ScriptedModel, Text, ToolCall

    model = ScriptedModel(
        [
            [Text("Let me look that up. "), ToolCall("search", {"query": "tides"})],
            "High water is at noon.",
        ]
    )
    agent = Agent(model=model, tools=[search], callback_handler=handler)

A script is a sequence of turns, one for each request that the agent sends to the model. A turn is
a part, a sequence of parts, or a plain string, which is short for ``Text``. The parts are ``Text``,
``Reasoning``, ``ToolCall``, ``Pause``, ``Gate`` and ``Fail``; all of them are immutable, so scripts
can be shared between models and threads.

Needs strands-agents: ``pip install "llm-callback[strands]"``.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from llm_callback._script import (
    Fail,
    Gate,
    Part,
    Pause,
    Reasoning,
    Request,
    ScriptExhausted,
    Text,
    ToolCall,
    Turn,
    parts_of,
)

try:
    from strands.event_loop.streaming import process_stream
    from strands.models import Model
except ModuleNotFoundError as _error:
    # If a module *inside* an installed strands is missing, its own error says more.
    if (_error.name or "").partition(".")[0] != "strands":
        raise
    raise ImportError(
        'llm_callback.testing needs strands-agents: pip install "llm-callback[strands]"',
        name="strands",
    ) from _error

if TYPE_CHECKING:
    from pydantic import BaseModel
    from strands.types.content import ContentBlockStart, Messages
    from strands.types.streaming import ContentBlockDelta, StreamEvent
    from strands.types.tools import ToolChoice, ToolSpec

    _T = TypeVar("_T", bound=BaseModel)

__all__ = [
    "Fail",
    "Gate",
    "Part",
    "Pause",
    "Reasoning",
    "Request",
    "ScriptExhausted",
    "ScriptedModel",
    "Text",
    "ToolCall",
    "Turn",
]

# asyncio has no way to wait for a thread's event without keeping a thread; 2 ms of delay is below
# what a test notices, and a task that polls can be cancelled.
_GATE_POLL_SECONDS = 0.002


class ScriptedModel(Model):
    """A strands model that plays a script: each request is answered by the next turn.

    ``script`` is described in the module's docstring. ``delay`` is a pause in seconds before each
    chunk of text, reasoning or tool input, 0 by default; it does not block the event loop.

    Nothing depends on time, chance or the process: the same script gives the same stream of events,
    with the same ids. A request beyond the last turn raises ``ScriptExhausted``.

    The model may be used by several threads and agents at once; each request takes the next turn
    that nobody has taken. Agents that must each hear the whole script need a model each.

    Raises ``TypeError`` if the script is not a sequence of turns, or a turn holds something else
    than parts and strings; ``ValueError`` if ``delay`` is negative.
    """

    def __init__(self, script: Sequence[Turn], *, delay: float = 0.0) -> None:
        """Check the script and take a copy of it; does not block."""
        if isinstance(script, str) or not isinstance(script, Sequence):
            raise TypeError(
                f"a script is a sequence of turns, such as [[Text('Hello')]], not {script!r}"
            )
        if delay < 0:
            raise ValueError(f"delay is a number of seconds, 0 or more, not {delay!r}")
        self._turns = tuple(parts_of(turn, number) for number, turn in enumerate(script, start=1))
        self._delay = delay
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._config: dict[str, Any] = {"model_id": "scripted"}

    @property
    def requests(self) -> tuple[Request, ...]:
        """The requests so far, in the order of their turns; thread-safe, does not block."""
        with self._lock:
            return tuple(self._requests)

    @property
    def remaining(self) -> int:
        """How many turns of the script have not been asked for; thread-safe, does not block."""
        with self._lock:
            return max(0, len(self._turns) - len(self._requests))

    def update_config(self, **model_config: Any) -> None:
        """Change entries of the configuration; it is kept, but has no effect on the script."""
        self._config.update(model_config)

    def get_config(self) -> dict[str, Any]:
        """Return a copy of the configuration; its ``model_id`` is ``"scripted"``."""
        return dict(self._config)

    async def stream(
        self,
        messages: Messages,
        tool_specs: list[ToolSpec] | None = None,
        system_prompt: str | None = None,
        *,
        tool_choice: ToolChoice | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[StreamEvent, None]:
        """Play the next turn as strands' streaming events; strands calls this.

        ``tool_choice`` and the further keywords have no effect. The counts in the usage are words
        of text in the request (input) and chunks in the answer (output).

        Raises ``ScriptExhausted`` if there is no next turn, ``TimeoutError`` if a gate stays shut,
        and whatever a ``Fail`` of the turn holds.
        """
        turn = self._take_turn(messages, tool_specs, system_prompt)
        yield {"messageStart": {"role": "assistant"}}
        block = tools = sent = 0
        for part in self._turns[turn - 1]:
            if isinstance(part, Fail):
                raise part.error
            if isinstance(part, Pause):
                await asyncio.sleep(part.seconds)
                continue
            if isinstance(part, Gate):
                await _until_open(part, turn)
                continue
            start: ContentBlockStart = {}
            if isinstance(part, ToolCall):
                tools += 1
                tool_use_id = part.tool_use_id or f"tool-{turn}-{tools}"
                start = {"toolUse": {"toolUseId": tool_use_id, "name": part.name}}
            yield {"contentBlockStart": {"contentBlockIndex": block, "start": start}}
            for delta in _deltas(part):
                if self._delay:
                    await asyncio.sleep(self._delay)
                sent += 1
                yield {"contentBlockDelta": {"contentBlockIndex": block, "delta": delta}}
            yield {"contentBlockStop": {"contentBlockIndex": block}}
            block += 1
        yield {"messageStop": {"stopReason": "tool_use" if tools else "end_turn"}}
        read = _words(messages, system_prompt)
        yield {
            "metadata": {
                "usage": {"inputTokens": read, "outputTokens": sent, "totalTokens": read + sent},
                "metrics": {"latencyMs": 0},
            }
        }

    async def structured_output(
        self,
        output_model: type[_T],
        prompt: Messages,
        system_prompt: str | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[dict[str, _T | Any], None]:
        """Play the next turn and give it as ``output_model``; strands calls this.

        The turn must hold either a ``ToolCall`` with the model's class name, whose input is the
        output, or text that is one JSON object.

        Raises ``ValueError`` if the turn holds neither, ``pydantic.ValidationError`` if the output
        does not fit, and everything that ``stream`` raises.
        """
        event: Any = {}
        async for event in process_stream(self.stream(prompt, None, system_prompt)):
            yield event
        content = event["stop"][1]["content"]
        name = output_model.__name__
        for block in content:
            if "toolUse" in block and block["toolUse"]["name"] == name:
                yield {"output": output_model.model_validate(block["toolUse"]["input"])}
                return
        text = "".join(block["text"] for block in content if "text" in block)
        if not text.lstrip().startswith("{"):
            raise ValueError(
                f"structured output of {name} was asked for, but this turn of the script has "
                f"neither a ToolCall({name!r}, ...) nor text that is a JSON object"
            )
        yield {"output": output_model.model_validate_json(text)}

    def _take_turn(
        self, messages: Messages, tool_specs: list[ToolSpec] | None, system_prompt: str | None
    ) -> int:
        names = tuple(spec["name"] for spec in tool_specs or ())
        # Agents go on changing their message lists; the record must stay what was asked.
        asked = copy.deepcopy(messages)
        with self._lock:
            turn = len(self._requests) + 1
            if turn > len(self._turns):
                raise ScriptExhausted(turn, len(self._turns))
            self._requests.append(Request(turn, asked, names, system_prompt))
        return turn


def _deltas(part: Text | Reasoning | ToolCall) -> list[ContentBlockDelta]:
    if isinstance(part, ToolCall):
        # Two pieces, as providers do it: a handler must cope with input that is not whole yet.
        half = (len(part.input_json) + 1) // 2
        pieces = (part.input_json[:half], part.input_json[half:])
        return [{"toolUse": {"input": piece}} for piece in pieces if piece]
    if isinstance(part, Reasoning):
        return [{"reasoningContent": {"text": chunk}} for chunk in part.chunks]
    return [{"text": chunk} for chunk in part.chunks]


async def _until_open(gate: Gate, turn: int) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + gate.timeout
    while not gate.event.is_set():
        if loop.time() >= deadline:
            raise TimeoutError(
                f"the gate in turn {turn} of the script was still shut after {gate.timeout:g} s"
            )
        await asyncio.sleep(_GATE_POLL_SECONDS)


def _words(messages: Messages, system_prompt: str | None) -> int:
    texts = [
        block["text"] for message in messages for block in message["content"] if "text" in block
    ]
    return sum(len(text.split()) for text in (*texts, system_prompt or ""))
