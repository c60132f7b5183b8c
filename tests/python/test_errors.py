"""The errors of the package: each has a class of its own, and is the built-in error that it was before."""

from __future__ import annotations

import copy
import pickle
import sys
import threading

import pytest

import llm_callback
from llm_callback import (
    LlmCallbackError,
    ParentNotLive,
    RunCancelled,
    RunEnded,
    RunExists,
    RunManager,
    RunQueueFull,
    ShutDown,
    SubscriberLagged,
    ThreadRefused,
    exceptions,
    get_run,
    open_run,
)
from llm_callback.hierarchy import ConfigError, ModelUnavailable
from llm_callback.testing import ScriptExhausted
from support import DEADLINE, new_id, printed

ERRORS = [
    thing
    for thing in vars(exceptions).values()
    if isinstance(thing, type) and issubclass(thing, LlmCallbackError)
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_each_error_is_exported_and_documented(error: type[LlmCallbackError]) -> None:
    """Each error is a name of the package, says what is wrong in its docstring, and survives a copy and a pickle."""
    assert getattr(llm_callback, error.__name__) is error
    assert error.__doc__
    made = error(3, 5) if error is SubscriberLagged else error("why")
    for other in (copy.copy(made), pickle.loads(pickle.dumps(made))):  # noqa: S301 - our own
        assert (type(other), str(other)) == (error, str(made))


def test_no_error_of_the_package_is_outside_its_base() -> None:
    """Also the errors of the hierarchy and of the scripted model are below LlmCallbackError."""
    modules = [sys.modules[name] for name in [*sys.modules] if name.split(".")[0] == "llm_callback"]
    raised = {
        thing
        for module in modules
        for thing in vars(module).values()
        if isinstance(thing, type)
        and issubclass(thing, Exception)
        and not issubclass(thing, Warning)
        and thing.__module__.split(".")[0] == "llm_callback"
    }
    assert {ConfigError, ModelUnavailable, ScriptExhausted, RunExists} <= raised
    assert [thing for thing in raised if not issubclass(thing, LlmCallbackError)] == [RunCancelled]


def test_a_manager_tells_that_the_system_refuses_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first thread of a manager is refused, the run has failed, and the error is ThreadRefused."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    run_id = new_id()
    with monkeypatch.context() as patch, RunManager(print) as manager:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ThreadRefused, match="can't start new thread"):
            manager.start_run(run_id=run_id)
    run = get_run(run_id)
    assert run is not None
    assert run.state == "failed"


def test_a_cancellation_is_no_error_of_the_package() -> None:
    """A host that catches the package's errors does not take a cancellation for one."""
    assert not issubclass(RunCancelled, LlmCallbackError)
    assert issubclass(RunCancelled, InterruptedError)


def test_opening_a_run_tells_why_it_is_refused() -> None:
    """A live id, an ended parent, too many live runs and a shutdown each have an error of their own, a RuntimeError."""
    with open_run(new_id()) as run, pytest.raises(RunExists, match="is live"):
        open_run(run.run_id)
    with pytest.raises(ParentNotLive, match="not live"):
        open_run(parent=run)
    with pytest.raises(RunEnded, match="has ended"), run:
        pass
    out = printed("""
        from llm_callback import LlmCallbackError, configure, open_run, shutdown

        def refused():
            try:
                open_run()
            except LlmCallbackError as error:
                return f"{type(error).__name__} {isinstance(error, RuntimeError)}"

        configure(max_live=1)
        with open_run():
            print(refused())
        shutdown()
        print(refused())
    """)
    assert out == "TooManyRuns True\nShutDown True\n"
    for error in (RunExists, ParentNotLive, RunEnded):
        assert issubclass(error, RuntimeError)


def test_a_manager_tells_why_it_refuses() -> None:
    """A full queue and a manager that is shut down are errors of two classes, and RuntimeErrors."""
    go = threading.Event()
    manager = RunManager(lambda _: go.wait(DEADLINE), max_workers=1, max_queued=0)
    manager.start_run()
    with pytest.raises(RunQueueFull, match="max_queued"):
        manager.start_run()
    go.set()
    manager.shutdown()
    with pytest.raises(ShutDown, match="shut down"):
        manager.start_run()
    assert issubclass(RunQueueFull, RuntimeError)
    assert issubclass(ShutDown, RuntimeError)
