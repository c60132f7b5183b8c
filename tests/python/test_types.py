"""The published types: events and their data are as their types say, and words are those that the engine takes.

What type checkers make of them is in ``typing/``: ``make lint`` checks it.
"""

from __future__ import annotations

import pickle
import sys
import threading
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import llm_callback
from hierarchies import WORKERS, Live, Plan
from llm_callback import (
    CallbackEvent,
    CallerContext,
    CancelKind,
    CancelToken,
    Event,
    EventAction,
    EventCategory,
    Overflow,
    RunManager,
    RunState,
    cancel_run,
    events as event_types,
    open_run,
    register_event_callback,
)
from llm_callback.testing import Fail, ToolCall
from readers import kind
from support import events, interpreter, new_id, printed, raised_by, waited, worker

FINE = Path(__file__).parent / "typing" / "fine.py"


def words(union: Any) -> set[str]:
    """Return the words of a union of Literals."""
    return {word for literal in get_args(union) for word in get_args(literal)}


def misfits(value: Any, wanted: Any, place: str) -> list[str]:
    """Return the places at which a value is not what a type says."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if hasattr(wanted, "__required_keys__") and isinstance(value, dict):
        return field_misfits(value, wanted, place)
    if origin is list and isinstance(value, list):
        each = (misfits(one, arguments[0], f"{place}[{at}]") for at, one in enumerate(value))
        return [misfit for misfits_of_one in each for misfit in misfits_of_one]
    if origin in {Union, UnionType}:
        is_right = any(misfits(value, argument, place) == [] for argument in arguments)
    elif origin is Literal:
        is_right = value in arguments
    else:
        # A bool is no int here.
        is_right = wanted is Any or type(value) is (origin or wanted)
    return [] if is_right else [f"{place}: {value!r} is no {wanted}"]


def field_misfits(value: dict[str, Any], wanted: Any, place: str) -> list[str]:
    """Return what a dict lacks of a TypedDict, and which of its fields are not as that says."""
    found = [f"{place}: no {key}" for key in sorted(wanted.__required_keys__ - value.keys())]
    hints = get_type_hints(wanted)
    for key, one in value.items():
        found += misfits(one, hints.get(key, Literal["no such field"]), f"{place}.{key}")
    return found


def data_type(event: Any) -> Any:
    """Return the type that is named after a built-in event."""
    parts = f"{event['event']['category']}_{event['event']['action']}".split("_")
    return getattr(event_types, "".join(part.capitalize() for part in parts) + "Data")


# --- Names ---


def test_the_types_are_imported_at_their_first_use() -> None:
    """``from llm_callback import Event`` works, and nothing of the types is imported before it."""
    assert printed(
        """
        import sys
        import llm_callback
        from llm_callback import events
        before = "llm_callback._event_types" in sys.modules
        from llm_callback import Event, RunState
        from llm_callback.events import LlmStreamData
        print(before, Event is events.Event, "Event" in vars(llm_callback), LlmStreamData.__name__)
        """
    ) == ("False True True LlmStreamData\n")


def test_dir_is_complete() -> None:
    """``dir()`` lists every public name, also those that were not imported yet, and imports none of them."""
    assert printed(
        """
        import sys
        import llm_callback
        from llm_callback import events
        for module in (llm_callback, events):
            print(sorted({*module.__all__, "__name__"} - {*dir(module)}), dir(module) == sorted(dir(module)))
        print("BoundExecutor" in dir(llm_callback), "__version__" in dir(llm_callback))
        print(sorted({"concurrent.futures", "importlib.metadata", "typing"} & {*sys.modules}))
        """,
        "-S",
        env={"PYTHONPATH": str(Path(llm_callback.__file__).parents[1])},
    ) == ("[] True\n[] True\nTrue True\n[]\n")


def test_a_misspelt_name_is_no_name() -> None:
    """An import of it raises ImportError, the attribute AttributeError, each with the module and the name."""
    for module in (llm_callback, event_types):
        with pytest.raises(AttributeError, match=rf"'{module.__name__}' has no attribute 'Evnt'"):
            _ = module.Evnt
        with pytest.raises(ImportError, match="cannot import name 'Evnt'"):
            exec(f"from {module.__name__} import Evnt")  # noqa: S102


def test_the_version_is_that_of_the_distribution(tmp_path: Path) -> None:
    """``__version__`` is what pip knows, and there is none where pip knows nothing."""
    assert llm_callback.__version__ == metadata.version("llm-callback")
    # A folder with the package alone: an installed one has its distribution's files beside it.
    (tmp_path / "llm_callback").symlink_to(Path(llm_callback.__file__).parent)
    assert printed(
        "import llm_callback; print(hasattr(llm_callback, '__version__'))",
        "-S",
        env={"PYTHONPATH": str(tmp_path)},
    ) == ("False\n")


def test_old_places_have_the_same_classes() -> None:
    """``llm_callback.caller`` and ``llm_callback.enums`` go on working, and have no classes of their own."""
    from llm_callback import caller, enums  # noqa: PLC0415

    assert caller.CallerContext is CallerContext
    for name in ("AgentType", "EventAction", "EventCategory"):
        assert getattr(enums, name) is getattr(llm_callback, name)
        assert getattr(llm_callback, name).__module__ == "llm_callback.events"


def test_old_pickles_can_be_read() -> None:
    """What was pickled when the classes were in their old places is unpickled as what they are now."""
    context = (
        b"ccopy_reg\n_reconstructor\n(cllm_callback.caller\nCallerContext\nc__builtin__\nobject\nNtR(d"
        b"Vagent_id\nVw1\nsVagent_type\ncllm_callback.enums\nAgentType\n(Vworker\ntRs"
        b"Vagent_name\nVAnn\nsVteam_name\nVReaders\nsb."
    )
    assert pickle.loads(context) == CallerContext.worker("w1", "Ann", "Readers")  # noqa: S301
    word = b"(cllm_callback.enums\nEventCategory\n(Vllm\ntRcllm_callback.enums\nEventAction\n(Vstream\ntRl."
    assert pickle.loads(word) == [EventCategory.LLM, EventAction.STREAM]  # noqa: S301


# --- Words ---


@pytest.mark.parametrize("category", sorted(words(event_types.BuiltInCategory)))
def test_each_built_in_word_is_taken(category: str) -> None:
    """``emit`` takes each category of ``BuiltInCategory`` with each action of ``BuiltInAction``."""
    for action in words(event_types.BuiltInAction):
        with open_run() as run:
            assert run.emit(category, action) is not None


def test_built_in_words_have_all_members_of_the_enums() -> None:
    """Each member of ``EventCategory`` and ``EventAction`` is a built-in word."""
    assert words(event_types.BuiltInCategory) == {word.value for word in EventCategory}
    assert words(event_types.BuiltInAction) == {word.value for word in EventAction} | {"output"}


def test_other_words_are_refused() -> None:
    """The engine names all categories and, but for ``gap``, all actions when it refuses another one."""

    def named(category: str, action: str) -> set[str]:
        told = str(raised_by(lambda: run.emit(category, action)))
        return {*told.partition("one of ")[2].partition(", not")[0].split(", ")}

    with open_run() as run:
        assert named("model", "stream") == words(event_types.BuiltInCategory)
        assert named("llm", "streams") == words(event_types.BuiltInAction) | {"gap"}


def test_each_overflow_is_taken_and_no_other() -> None:
    """``subscribe`` takes each word of ``Overflow``, and names them when it refuses another one."""
    with open_run() as run:
        for overflow in words(Overflow):
            run.subscribe(overflow=overflow).close()
        told = str(raised_by(lambda: run.subscribe(overflow="disconnects")))
    assert all(overflow in told for overflow in words(Overflow))


def test_each_kind_of_a_cancel_is_taken_and_told() -> None:
    """A cancel takes each word of ``CancelKind``; token and last event tell it; another word is refused."""
    for cancel_kind in words(CancelKind):
        run = open_run()
        assert cancel_run(run.run_id, "why", kind=cancel_kind)
        run.complete()
        assert run.token.kind == events(run)[-1]["data"]["kind"] == cancel_kind
    told = str(raised_by(lambda: CancelToken().cancel(kind="users")))
    assert all(cancel_kind in told for cancel_kind in words(CancelKind))


def test_each_state_is_one_of_its_type() -> None:
    """A run goes through the words of ``RunState`` and no other."""
    pending, completed, failed = open_run(pending=True), open_run(), open_run()
    seen = {pending.state, completed.state}
    pending.cancel()
    completed.complete()
    failed.fail("why")
    assert seen | {pending.state, completed.state, failed.state} == words(RunState)


# --- Events ---


def test_each_type_can_be_resolved() -> None:
    """The annotations of every published type can be evaluated, as libraries for validation do."""
    types = [getattr(event_types, name) for name in event_types.__all__]
    typed = [one for one in types if hasattr(one, "__required_keys__")]
    assert len(typed) > 20
    for one in typed:
        assert set(get_type_hints(one)) == one.__required_keys__ | one.__optional_keys__


def test_events_of_a_log_and_of_a_callback_have_their_fields() -> None:
    """An event of a log has exactly the fields of ``Event``, one of a callback those of ``CallbackEvent``."""
    heard: list[Any] = []
    run_id = new_id()
    register_event_callback(run_id, heard.append)
    try:
        with open_run(run_id) as run:
            run.handler(worker())(data="An old pond")
            run.emit("system", "warning", {"message": "no frog yet"})
    finally:
        register_event_callback(run_id, None)
    for event in events(run):
        assert misfits(event, Event, "event") == []
        assert event.keys() == Event.__required_keys__
    assert [kind(event) for event in heard] == ["llm.stream", "system.warning"]
    for event in heard:
        assert misfits(event, CallbackEvent, "event") == []
        assert event.keys() == CallbackEvent.__required_keys__


def test_the_data_of_a_hierarchy_fit_their_types() -> None:
    """All events of completed, failed and cancelled hierarchies have the data that the types named after them say."""
    told: list[Any] = []
    with Plan() as plan:
        # The same task twice, of which the second is not worked on.
        again = ToolCall(plan.called(WORKERS[0]), {"task": f"ask Ada {plan.label}"})
        plan.script["team-1-supervisor"][0].append(again)
        live = Live(plan)
        assert live.raised is None
        told += live.events
    with Plan() as plan:
        plan.insert(WORKERS[0], Fail(ValueError("no notes")))
        live = Live(plan)
        told += live.events
    with Plan() as plan:
        plan.insert("global-supervisor", Fail(ValueError("no model")))
        live = Live(plan)
        told += live.events
    with Plan() as plan:
        arrived, go_on = threading.Event(), threading.Event()

        def stay(_worker: str) -> None:
            arrived.set()
            waited(go_on)

        plan.on_look = stay
        live = Live(plan)
        try:
            waited(arrived)
            live.run.cancel("the user left")
            told += live.events
        finally:
            go_on.set()
        raised_by(live.work.result)
    for event in told:
        assert misfits(event, Event, "event") == []
        assert misfits(event["data"], data_type(event), kind(event)) == []
    assert {kind(event) for event in told} == {
        "lifecycle.started",
        "lifecycle.completed",
        "lifecycle.failed",
        "lifecycle.cancelled",
        "system.topology",
        "system.warning",
        "dispatch.team",
        "dispatch.worker",
        "agent.started",
        "agent.completed",
        "agent.failed",
        "llm.stream",
        "llm.reasoning",
        "llm.tool_call",
        "llm.tool_result",
        "llm.completed",
    }


def test_the_data_of_other_runs_fit_their_types() -> None:
    """So have those of a manager's runs, of parts of other runs, of an exception, of output and of a gap."""

    def work(config: Any) -> Any:
        sys.stdout.write("a line\n")
        if config["task"] == "fail":
            raise ValueError("why")
        return 7

    with RunManager(work) as manager:
        runs = [manager.start_run(task=task) for task in ("complete", "fail")]
    with open_run() as parent, suppress(ValueError), open_run(parent=parent) as part:
        runs.append(part)
        raise ValueError("why")
    told = [event for run in runs for event in events(run)]
    told += runs[0].subscribe("1-1").read(1, 0)
    for event in told:
        assert misfits(event, Event, "event") == []
        assert misfits(event["data"], data_type(event), kind(event)) == []
    assert {kind(event) for event in told} == {
        "lifecycle.started",
        "lifecycle.completed",
        "lifecycle.failed",
        "system.output",
        "stream.gap",
    }


def test_what_checkers_accept_runs() -> None:
    """What ``typing/fine.py`` shows raises nothing and warns of nothing, but for words of one's own."""
    done = interpreter(f"import runpy; runpy.run_path({str(FINE)!r}, run_name='__main__')")
    assert (done.returncode, done.stderr) == (0, "")
