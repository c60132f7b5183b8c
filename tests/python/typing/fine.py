"""What mypy and pyright accept in their strict modes, and what runs.

``check.py`` has both checkers read it, and ``test_types.py`` runs it.
"""

import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import llm_callback
from llm_callback import (
    BoundExecutor,
    CallbackEvent,
    CallerContext,
    CancelKind,
    CancelToken,
    Event,
    EventAction,
    EventCategory,
    EventWord,
    Overflow,
    Run,
    RunCancelled,
    RunManager,
    RunState,
    Source,
    add_sink,
    get_event_callback,
    open_run,
    register_event_callback,
)
from llm_callback.caller import CallerContext as OldCallerContext
from llm_callback.enums import AgentType as OldAgentType
from llm_callback.events import AgentType, BuiltInAction, BuiltInCategory, LlmStreamData


def result_of_a_block() -> str:
    """Return from a ``with`` block: no checker takes it for one that swallows exceptions."""
    with open_run() as run:
        run.complete(result="An old pond")
        return run.state


def events(run: Run) -> list[str]:
    """Read what events hold, as far as their types tell it, and pass them on."""
    texts: list[str] = []
    for event in run.subscribe("start", overflow="gap"):
        word: EventWord = event["event"]
        source: Source | None = event["source"]
        name = "the run" if source is None else source["agent_name"]
        texts.append(f"{event['sequence']} {name}: {word['category']}.{word['action']}")
        if word == {"category": "llm", "action": "stream"}:
            token: LlmStreamData = event["data"]
            texts.append(token["content"])
        anything: dict[str, Any] = event["data"]
        texts.append(json.dumps(anything))
    read: list[Event] = run.subscribe("start").read(max=1, timeout=0)
    return [*texts, *(event["id"] for event in read)]


async def coroutine(run: Run) -> list[Event]:
    """Read events where no thread waits."""
    first = await run.subscribe("start").aread(max=1)
    return first + [event async for event in run.subscribe(after=first[0]["id"])]


def emitting(run: Run) -> None:
    """Emit built-in words, as texts and as members of their enums."""
    ann = CallerContext.worker("w1", "Ann", "Readers")
    category: BuiltInCategory = "llm"
    action: BuiltInAction = "stream"
    token: LlmStreamData = {"content": "An old pond"}
    identifier: str | None = run.emit(category, action, token, ann)
    run.emit(EventCategory.LLM, EventAction.COMPLETED, {"message": str(identifier)})
    run.emit("llm", EventAction.TOOL_CALL, {"tool_name": "search", "tool_count": 1})
    run.emit("system", "output", {"stream": "stdout", "text": "a line", "more": 1}, source=None)
    run.emit("system", "warning", ["anything that is JSON"])
    run.emit("agent", "completed", source=ann.to_source_dict())
    run.emit("agent", "started", {"task": "x"}, {**ann.to_source_dict(), "team_name": None})
    run.handler(ann)(data="silent")
    run.handler(ann.to_source_dict(), verbose=False)


def own_words(run: Run, anything: Any, data: Mapping[str, object]) -> None:
    """Emit kinds of one's own."""
    run.emit("billing.charged")
    run.emit("billing.charged", {"cents": 3})
    run.emit("billing.charged", data, CallerContext.worker("w1", "Ann", "Readers"))
    run.emit("billing.charged", data={"cents": 3}, source=None)
    run.emit("billing.charged", anything)


def callbacks(manager: RunManager) -> None:
    """Register callbacks that take an event, a dict or a mapping."""
    heard: list[CallbackEvent] = []
    plain: list[dict[str, Any]] = []

    def take_event(event: CallbackEvent) -> None:
        heard.append(event)

    def take_dict(event: dict[str, Any]) -> None:
        plain.append(event)

    def take_mapping(event: Mapping[str, Any]) -> object:
        return event["data"]

    for run_id in (1, "a", (1, "any hashable")):
        register_event_callback(run_id, take_event)
        register_event_callback(run_id, take_dict)
        register_event_callback(run_id, take_mapping)
        register_event_callback(run_id, heard.append)
        register_event_callback(run_id, lambda event: print(event["data"]))
        if (callback := get_event_callback(run_id)) is not None:
            callback({"source": None, "event": {}, "data": {}})
        register_event_callback(run_id, None)
    manager.start_run(on_event=take_dict)
    manager.start_run(on_event=take_event)
    llm_callback.LLMCallbackHandler(CallerContext.global_supervisor("g"), take_dict, run_id=1)


def sinks() -> None:
    """Add sinks that take lists of events or of dicts."""
    events: list[Event] = []

    def take_dicts(batch: list[dict[str, Any]]) -> None:
        print(len(batch))

    with add_sink(events.extend, name="events"), add_sink(take_dicts):
        pass


def words(run: Run) -> tuple[RunState, CancelKind | None, Overflow]:
    """Pass words on through variables of their types."""
    overflow: Overflow = "block"
    run.subscribe(overflow=overflow, patience=0.1).close()
    kind: CancelKind = "disconnect"
    run.cancel("the user left", kind=kind)
    try:
        raise RunCancelled(run.run_id, run.token.kind, run.token.reason)
    except RunCancelled as cancelled:
        kinds = (cancelled.kind, CancelToken().kind, run.token.kind)
    return run.state, kinds[0], overflow


def old_places(context: OldCallerContext) -> tuple[CallerContext, bool]:
    """Use what was imported from where it was before."""
    return context, context.agent_type is AgentType.WORKER is OldAgentType.WORKER


def names() -> list[str]:
    """Use names that are imported at their first use."""
    return [llm_callback.__version__, BoundExecutor.__name__, Event.__name__]


def main() -> None:
    """Run all of it."""
    result_of_a_block()
    with open_run(uuid4()) as run:
        emitting(run)
        own_words(run, {"cents": 4}, {"cents": 5})
        old_places(CallerContext.worker("w1", "Ann", "Readers"))
    events(run)
    with RunManager(lambda _config: None) as manager:
        callbacks(manager)
    sinks()
    words(open_run())
    names()


if __name__ == "__main__":
    main()
