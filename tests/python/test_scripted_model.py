"""The scripted model: strands' own agent loop, with words that a test chooses."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st
from pydantic import BaseModel
from strands import Agent, tool
from strands.types.exceptions import EventLoopException

import llm_callback
from llm_callback.testing import (
    Fail,
    Gate,
    Pause,
    Reasoning,
    ScriptedModel,
    ScriptExhausted,
    Text,
    ToolCall,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE = 20.0
ASK = [{"role": "user", "content": [{"text": "How is the sea?"}]}]


class Tide(BaseModel):
    """A structured answer."""

    metres: float


async def heard(model: ScriptedModel) -> list[Any]:
    """Return the streaming events of the next turn."""
    return [event async for event in model.stream(ASK)]


def play(model: ScriptedModel) -> list[Any]:
    """Return the streaming events of the next turn, from a thread without an event loop."""
    return asyncio.run(asyncio.wait_for(heard(model), DEADLINE))


def texts(events: list[Any]) -> list[str]:
    """Return the chunks of text in streaming events."""
    deltas = [
        event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event
    ]
    return [delta["text"] for delta in deltas if "text" in delta]


def structured(model: ScriptedModel) -> Any:
    """Return the structured output of the next turn."""

    async def last() -> Any:
        return [event async for event in model.structured_output(Tide, ASK)][-1]["output"]

    return asyncio.run(asyncio.wait_for(last(), DEADLINE))


def agent(model: ScriptedModel, *tools: Any, handler: Any = None) -> Agent:
    """Return a real agent that prints nothing."""
    return Agent(model=model, tools=list(tools), callback_handler=handler)


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads change places at every chance, so that a missing lock shows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_a_turn_is_the_events_that_strands_defines() -> None:
    """Reasoning, text and a tool call become one content block each, in order, with stable ids."""
    turn = [Reasoning(("Hm",)), Text(("High ", "water")), ToolCall("look", {"at": "sea"})]
    assert play(ScriptedModel([turn])) == [
        {"messageStart": {"role": "assistant"}},
        {"contentBlockStart": {"contentBlockIndex": 0, "start": {}}},
        {
            "contentBlockDelta": {
                "contentBlockIndex": 0,
                "delta": {"reasoningContent": {"text": "Hm"}},
            }
        },
        {"contentBlockStop": {"contentBlockIndex": 0}},
        {"contentBlockStart": {"contentBlockIndex": 1, "start": {}}},
        {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"text": "High "}}},
        {"contentBlockDelta": {"contentBlockIndex": 1, "delta": {"text": "water"}}},
        {"contentBlockStop": {"contentBlockIndex": 1}},
        {
            "contentBlockStart": {
                "contentBlockIndex": 2,
                "start": {"toolUse": {"toolUseId": "tool-1-1", "name": "look"}},
            },
        },
        {"contentBlockDelta": {"contentBlockIndex": 2, "delta": {"toolUse": {"input": '{"at": '}}}},
        {"contentBlockDelta": {"contentBlockIndex": 2, "delta": {"toolUse": {"input": '"sea"}'}}}},
        {"contentBlockStop": {"contentBlockIndex": 2}},
        {"messageStop": {"stopReason": "tool_use"}},
        {
            "metadata": {
                "usage": {"inputTokens": 4, "outputTokens": 5, "totalTokens": 9},
                "metrics": {"latencyMs": 0},
            },
        },
    ]


def test_an_agent_calls_the_tools_with_their_input_and_goes_on() -> None:
    """Two tool calls of one turn both reach the real tool, and the next turn is the answer."""
    called = []

    @tool
    def look(at: str, times: int = 1) -> str:
        """Look at something."""
        called.append((at, times))
        return f"{at} is calm"

    model = ScriptedModel(
        [[ToolCall("look", {"at": "sea"}), ToolCall("look", {"at": "sky", "times": 2})], "Calm."],
    )
    result = agent(model, look)("How is it?")
    assert sorted(called) == [("sea", 1), ("sky", 2)]
    assert (result.stop_reason, str(result)) == ("end_turn", "Calm.\n")
    answers = [block["toolResult"] for block in model.requests[1].messages[-1]["content"]]
    assert {answer["toolUseId"]: answer["content"][0]["text"] for answer in answers} == {
        "tool-1-1": "sea is calm",
        "tool-1-2": "sky is calm",
    }


def test_a_handler_hears_each_part_of_the_script_once() -> None:
    """Each chunk of reasoning and text is one event, and so is a tool call of several deltas."""

    @tool
    def look() -> str:
        """Look."""
        return "calm"

    heard_events: list[Any] = []
    caller = llm_callback.CallerContext.worker("w", "Worker", "Team")
    handler = llm_callback.create_callback_handler(caller, heard_events.append)
    model = ScriptedModel([[Reasoning("Hm so"), Text("I look"), ToolCall("look")], "Calm."])
    agent(model, look, handler=handler)("How is it?")
    assert [(event["event"]["action"], *event["data"].values()) for event in heard_events] == [
        ("reasoning", "Hm "),
        ("reasoning", "so"),
        ("stream", "I "),
        ("stream", "look"),
        ("tool_call", "look", 1),
        ("stream", "Calm."),
    ]


@given(st.text())
def test_a_string_is_cut_into_words_and_nothing_is_lost(text: str) -> None:
    """The chunks of a string joined are the string, and no chunk but the only one is blank."""
    chunks = Text(text).chunks
    assert "".join(chunks) == text
    assert len(chunks) <= 1 or all(chunk.strip() for chunk in chunks)


def test_a_tuple_is_sent_as_it_is() -> None:
    """Chunks that a test chooses itself, blank ones too, are neither split nor joined."""
    assert texts(play(ScriptedModel([Text(("a b", "", " ", "c"))]))) == ["a b", "", " ", "c"]


def test_the_same_script_gives_the_same_stream() -> None:
    """Two models of one script cannot be told apart, delays or not."""
    script = [["Look: ", ToolCall("look", {"at": "sea"})], Reasoning("well"), "Calm."]
    first, second = ScriptedModel(script), ScriptedModel(script, delay=0.001)
    assert [play(first) for _ in script] == [play(second) for _ in script]


def test_a_script_that_has_ended_says_which_turn_was_asked_for() -> None:
    """The error reaches the caller with both numbers, in strands' wrapping after the first turn."""

    @tool
    def look() -> str:
        """Look."""
        return "calm"

    with pytest.raises(ScriptExhausted, match=r"asked for turn 1, but its script has 0 turns;"):
        agent(ScriptedModel([]))("How is it?")
    words = r"asked for turn 2, but its script has 1 turn;"
    with pytest.raises(EventLoopException, match=words) as caught:
        agent(ScriptedModel([ToolCall("look")]), look)("How is it?")
    cause = caught.value.original_exception
    assert isinstance(cause, ScriptExhausted)
    assert (cause.turn, cause.turns) == (2, 1)


def test_a_failing_model_raises_its_error_after_what_it_said() -> None:
    """What comes before ``Fail`` is heard, its very exception is raised, the rest is not played."""
    error = ConnectionError("the line is dead")
    model = ScriptedModel([["one", Fail(error), "two"]])
    said: list[str] = []

    def handler(**kwargs: Any) -> None:
        said.extend([kwargs["data"]] if "data" in kwargs else [])

    with pytest.raises(ConnectionError) as caught:
        agent(model, handler=handler)("How is it?")
    assert caught.value is error
    assert said == ["one"]


def test_a_gate_holds_the_script_until_it_is_opened() -> None:
    """What comes after a gate is said only after another thread has opened it."""
    gate = threading.Event()
    reached = threading.Event()
    order: list[str] = []

    def handler(**kwargs: Any) -> None:
        if "data" in kwargs:
            order.append(kwargs["data"])
            reached.set()

    with ThreadPoolExecutor(1) as pool:
        running = agent(ScriptedModel([["before", Gate(gate), "after"]]), handler=handler)
        future = pool.submit(running, "Go")
        try:
            assert reached.wait(DEADLINE)
            order.append("open")
        finally:
            gate.set()
        future.result(DEADLINE)
    assert order == ["before", "open", "after"]


@pytest.mark.parametrize("silence", [Pause(0.05), Gate(threading.Event(), timeout=0.05)])
def test_a_silent_model_does_not_hold_up_its_event_loop(silence: Pause | Gate) -> None:
    """Another task of the same loop runs to its end while the model is silent."""
    order: list[str] = []

    async def silent() -> None:
        order.append("silent")
        with contextlib.suppress(TimeoutError):
            await heard(ScriptedModel([[silence]]))
        order.append("spoke")

    async def other() -> None:
        order.append("other")

    async def both() -> None:
        await asyncio.wait_for(asyncio.gather(silent(), other()), DEADLINE)

    asyncio.run(both())
    assert order == ["silent", "other", "spoke"]


def test_a_silent_model_can_be_cancelled() -> None:
    """A task that waits at a gate ends when it is cancelled, long before the gate's own timeout."""

    async def cancelled() -> None:
        task = asyncio.create_task(heard(ScriptedModel([Gate(threading.Event(), timeout=3600)])))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, DEADLINE)

    asyncio.run(cancelled())


def test_a_gate_that_nobody_opens_fails_instead_of_hanging() -> None:
    """The error names the turn and the time."""
    model = ScriptedModel(["first", Gate(threading.Event(), timeout=0.01)])
    play(model)
    with pytest.raises(TimeoutError, match=r"the gate in turn 2 .* still shut after 0\.01 s"):
        play(model)


@pytest.mark.usefixtures("eager_threads")
def test_threads_that_share_a_model_each_get_a_turn_of_their_own() -> None:
    """No turn is played twice or left out, however many threads ask at the same time."""
    threads, turns_each = 8, 200
    model = ScriptedModel([str(turn) for turn in range(threads * turns_each)])
    start = threading.Barrier(threads)

    async def several() -> list[str]:
        return [text for _ in range(turns_each) for text in texts(await heard(model))]

    def ask() -> list[str]:
        start.wait(DEADLINE)
        return asyncio.run(several())

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(ask) for _ in range(threads)]
        got = [text for future in futures for text in future.result(DEADLINE)]
    assert sorted(got, key=int) == [str(turn) for turn in range(threads * turns_each)]
    assert [request.turn for request in model.requests] == list(range(1, threads * turns_each + 1))
    assert model.remaining == 0


def test_requests_show_what_the_agent_asked() -> None:
    """A request keeps its messages, tools and system prompt as they were when it was sent."""

    @tool
    def look() -> str:
        """Look."""
        return "calm"

    model = ScriptedModel([ToolCall("look"), "Calm."])
    Agent(model=model, tools=[look], system_prompt="Be brief.", callback_handler=None)("How is it?")
    first, second = model.requests
    assert (first.turn, first.tool_names, first.system_prompt) == (1, ("look",), "Be brief.")
    assert [message["role"] for message in first.messages] == ["user"]
    assert [message["role"] for message in second.messages] == ["user", "assistant", "user"]


def test_structured_output_through_an_agent_is_a_tool_call() -> None:
    """A call of the tool that has the output's class name becomes the agent's structured output."""
    model = ScriptedModel([ToolCall("Tide", {"metres": 2.5})])
    assert agent(model)("How high?", structured_output_model=Tide).structured_output == Tide(
        metres=2.5
    )


@pytest.mark.parametrize("turn", [ToolCall("Tide", {"metres": 2.5}), '{"metres": 2.5}'])
def test_structured_output_of_the_model(turn: ToolCall | str) -> None:
    """A tool call and a JSON text are both an instance of the asked class."""
    assert structured(ScriptedModel([turn])) == Tide(metres=2.5)


def test_structured_output_that_the_script_lacks_is_explained() -> None:
    """The error says which class was asked for and what the turn should hold."""
    with pytest.raises(ValueError, match=r"Tide was asked for.*neither a ToolCall\('Tide'.*JSON"):
        structured(ScriptedModel(["About two metres."]))


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: ScriptedModel("hello"), TypeError, "a script is a sequence of turns"),
        (lambda: ScriptedModel([["a"], ["b", 7]]), TypeError, "turn 2 of the script holds 7"),
        (lambda: ScriptedModel([None]), TypeError, "turn 1 of the script is not a part"),
        (lambda: ScriptedModel([], delay=-1), ValueError, "delay is a number of seconds"),
        (lambda: ToolCall("look", {"at": object()}), TypeError, "not JSON serializable"),
    ],
)
def test_a_wrong_script_is_refused_when_it_is_written(build: Any, error: type, words: str) -> None:
    """The mistake is named where it was made, not when an agent gets there."""
    with pytest.raises(error, match=words):
        build()


def test_a_tool_call_keeps_the_input_that_it_was_made_with() -> None:
    """Neither its fields nor the dict that it was made from can change what is sent."""
    given_input = {"at": "sea"}
    call = ToolCall("look", given_input)
    given_input["at"] = "sky"
    assert call.input_json == '{"at": "sea"}'
    with pytest.raises(dataclasses.FrozenInstanceError):
        call.name = "other"  # type: ignore[misc]


def test_the_configuration_is_kept_and_copied() -> None:
    """``update_config`` is seen by ``get_config``, whose result is the caller's own."""
    model = ScriptedModel([])
    model.update_config(context_window_limit=1000)
    model.get_config()["model_id"] = "changed"
    assert model.get_config() == {"model_id": "scripted", "context_window_limit": 1000}
    assert model.context_window_limit == 1000


def test_without_strands_the_import_error_names_the_extra() -> None:
    """A user without strands-agents is told what to install."""
    code = "import sys; sys.modules['strands'] = None; import llm_callback.testing"
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.stderr.endswith(
        "ImportError: llm_callback.testing needs strands-agents: "
        'pip install "llm-callback[strands]"\n',
    )
