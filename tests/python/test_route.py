"""The route: whose event it is, where the handler's run id and the calling context give two answers."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import llm_callback
from llm_callback import (
    CallerContext,
    LLMCallbackHandler,
    RunCancelled,
    bind,
    clear_current_run_id,
    configure,
    create_callback_handler,
    get_cancellation_checker,
    get_event_callback,
    register_cancellation_checker,
    register_event_callback,
    set_current_run_id,
    stats,
)
from support import (
    DEADLINE,
    in_thread,
    interpreter,
    new_id,
    printed,
    together,
    word,
    worker,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.thread_unsafe(reason="the route is the whole process's")

ROUTES = ["handler", "context", "strict"]


@pytest.fixture(autouse=True)
def _default_route() -> Iterator[None]:
    """Leave the route as it is by default."""
    yield
    configure(route="handler")


class Two:
    """Two runs with a callback and a checker each; the tests call from the context of the second."""

    def __init__(self) -> None:
        self.given, self.current = new_id("given"), new_id("current")
        self.got: dict[str, list[Any]] = {self.given: [], self.current: []}
        self.cancelled: set[str] = set()
        self.callbacks: dict[str, Callable[..., None]] = {}
        self.checkers: dict[str, Callable[[], bool]] = {}
        for run_id in self.got:
            self.callbacks[run_id] = partial(self._listen, run_id)
            self.checkers[run_id] = partial(self._ask, run_id)
            register_event_callback(run_id, self.callbacks[run_id])
            register_cancellation_checker(run_id, self.checkers[run_id])

    def _listen(self, run_id: str, event: dict[str, Any]) -> None:
        self.got[run_id].append(word(event)[1])

    def _ask(self, run_id: str) -> bool:
        return run_id in self.cancelled

    @property
    def heard(self) -> tuple[list[Any], list[Any]]:
        """What the run that was given heard, and what the current one did."""
        return self.got[self.given], self.got[self.current]

    def forget(self) -> None:
        """Take everything away."""
        for run_id in self.got:
            register_event_callback(run_id, None)
            register_cancellation_checker(run_id, None)


@pytest.fixture
def two() -> Iterator[Two]:
    """Two runs, registered."""
    runs = Two()
    yield runs
    runs.forget()


def under(run_id: Any, job: Callable[[], Any]) -> Any:
    """Return what ``job`` does on a fresh thread where ``run_id`` is current."""

    def run() -> Any:
        set_current_run_id(run_id)
        return job()

    return in_thread(run)


# --- Which of the two ---


@pytest.mark.parametrize(
    ("route", "heard"),
    [("handler", (["x"], [])), ("context", ([], ["x"])), ("strict", ([], []))],
)
def test_a_handler_goes_by_the_route(two: Two, route: str, heard: Any) -> None:
    """Where the two differ, an event goes to the handler's run, to the context's, or to nobody."""
    configure(route=route)  # type: ignore[arg-type]
    handler = LLMCallbackHandler(worker(), run_id=two.given)
    under(two.current, partial(handler, data="x"))
    assert two.heard == heard


@pytest.mark.parametrize(
    ("route", "found"), [("handler", "given"), ("context", "current"), ("strict", None)]
)
def test_a_lookup_goes_by_the_route(two: Two, route: str, found: str | None) -> None:
    """So do lookups of callbacks and checkers: a host's explicit callback is repaired with the handler."""
    configure(route=route)  # type: ignore[arg-type]
    run_id = getattr(two, found) if found else None
    callback = under(two.current, partial(get_event_callback, two.given))
    checker = under(two.current, partial(get_cancellation_checker, two.given))
    assert callback is two.callbacks.get(run_id)  # type: ignore[arg-type]
    assert checker is two.checkers.get(run_id)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("route", "cancelled"), [("handler", "given"), ("context", "current"), ("strict", None)]
)
def test_a_cancel_goes_by_the_route(two: Two, route: str, cancelled: str | None) -> None:
    """The run that gets the event is the one whose cancel counts, and the one that the error names."""
    configure(route=route)  # type: ignore[arg-type]
    handler = LLMCallbackHandler(worker(), run_id=two.given)
    for name in ["given", "current"]:
        two.cancelled = {getattr(two, name)}
        if name == cancelled:
            with pytest.raises(RunCancelled) as caught:
                under(two.current, partial(handler, data="x"))
            assert caught.value.run_id == getattr(two, name)
        else:
            under(two.current, partial(handler, data="x"))


@pytest.mark.parametrize("route", ROUTES)
def test_without_a_current_run_what_is_given_counts(two: Two, route: str) -> None:
    """A thread that knows no run goes by the handler's id and the id that is asked for, on every route."""
    configure(route=route)  # type: ignore[arg-type]
    handler = LLMCallbackHandler(worker(), run_id=two.given)
    in_thread(partial(handler, data="x"))
    assert two.heard == (["x"], [])
    assert in_thread(partial(get_event_callback, two.given)) is two.callbacks[two.given]
    assert in_thread(partial(get_cancellation_checker, two.given)) is two.checkers[two.given]


@pytest.mark.parametrize("route", ROUTES)
def test_where_the_two_agree_nothing_is_dropped(two: Two, route: str) -> None:
    """A handler of the current run delivers on every route; equal ids agree, as in a dict."""
    configure(route=route)  # type: ignore[arg-type]
    dropped = stats()["dropped"]
    equal = "".join(list(two.current))
    assert equal is not two.current
    under(two.current, partial(LLMCallbackHandler(worker(), run_id=equal), data="x"))
    assert two.heard == ([], ["x"])
    assert stats()["dropped"] == dropped


@pytest.mark.parametrize(("given", "current"), [(1, True), (0.0, 0), (2**80, float(2**80))])
def test_equal_numbers_agree(given: Any, current: Any) -> None:
    """What is one key in a dict is one run to the strict route."""
    configure(route="strict")
    got: list[Any] = []
    under(current, partial(LLMCallbackHandler(worker(), got.append, run_id=given), data="x"))
    assert len(got) == 1


def test_the_very_same_id_agrees_even_if_it_is_not_equal_to_itself() -> None:
    """A NaN is found by identity in a dict, so two answers that are the same NaN do not differ."""
    configure(route="strict")
    run_id, got = float("nan"), []
    under(run_id, partial(LLMCallbackHandler(worker(), got.append, run_id=run_id), data="x"))
    assert len(got) == 1


@pytest.mark.parametrize(("route", "heard"), [("handler", 0), ("context", 1), ("strict", 1)])
def test_a_handler_without_a_run_id(two: Two, route: str, heard: int) -> None:
    """It has no answer of its own: with a route by context it speaks for the current run."""
    configure(route=route)  # type: ignore[arg-type]
    under(two.current, partial(LLMCallbackHandler(worker()), data="x"))
    assert len(two.got[two.current]) == heard


@pytest.mark.parametrize(("route", "count"), [("handler", 1), ("context", 1), ("strict", 0)])
def test_an_explicit_callback(two: Two, route: str, count: int) -> None:
    """It is preferred to the registry's of either run; only the strict route keeps an event from it."""
    configure(route=route)  # type: ignore[arg-type]
    got: list[Any] = []
    handler = LLMCallbackHandler(worker(), got.append, run_id=two.given)
    under(two.current, partial(handler, data="x"))
    assert (len(got), two.heard) == (count, ([], []))


def test_strict_drops_and_counts() -> None:
    """Each event whose two answers differ is counted by that reason, and the handler stays usable."""
    configure(route="strict")
    run_id, got = new_id(), []
    register_event_callback(run_id, got.append)
    handler = LLMCallbackHandler(worker(), run_id=run_id)
    before = stats()
    under("other", partial(handler, reasoningText="a", data="b", complete=True))
    under("other", partial(handler, current_tool_use={"name": "c"}))
    under("other", handler)
    after = stats()
    assert after["dropped"]["route"] - before["dropped"]["route"] == 4
    assert after["dropped"]["no_callback"] == before["dropped"]["no_callback"]
    assert (after["emitted"], got) == (before["emitted"], [])
    under(run_id, partial(handler, current_tool_use={"name": "d"}))
    register_event_callback(run_id, None)
    assert [word(event) for event in got] == [("tool_call", "d", 2)]


@pytest.mark.parametrize("route", ROUTES)
def test_registering_never_looks_at_the_context(route: str) -> None:
    """What is registered for a run is registered for that run, on every route."""
    configure(route=route)  # type: ignore[arg-type]
    run_id = new_id()
    under("other", partial(register_event_callback, run_id, len))
    under("other", partial(register_cancellation_checker, run_id, len))
    assert llm_callback._callback_registry[run_id] is len
    assert llm_callback._checker_registry[run_id] is len
    under("other", partial(register_event_callback, run_id, None))
    under("other", partial(register_cancellation_checker, run_id, None))
    assert run_id not in llm_callback._callback_registry
    assert run_id not in llm_callback._checker_registry


def test_a_bound_thread_is_routed_by_its_run(two: Two) -> None:
    """``bind`` is enough to repair a pool's thread of a host whose handlers have the wrong id."""
    configure(route="context")
    handler = LLMCallbackHandler(worker(), run_id=two.given)
    bound = under(two.current, lambda: bind(handler))
    in_thread(partial(bound, data="x"))
    in_thread(partial(handler, data="unbound"))
    assert two.heard == (["unbound"], ["x"])


@pytest.mark.parametrize("route", ROUTES)
def test_an_unhashable_id_is_refused_on_every_route(route: str) -> None:
    """A lookup checks the id that it is given, also where the context's is preferred."""
    configure(route=route)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        under("current", partial(get_event_callback, []))
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        under("current", partial(get_cancellation_checker, []))


def test_an_unhashable_current_run_is_refused_where_it_is_looked_at() -> None:
    """A handler that is routed by context raises what the lookup raises."""
    handler = LLMCallbackHandler(worker(), run_id="given")
    under([], partial(handler, data="x"))
    configure(route="context")
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        under([], partial(handler, data="x"))


def test_a_comparison_that_raises_reaches_the_caller() -> None:
    """An error in an id's ``__eq__`` is not taken for an answer."""

    class Id:
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            raise ArithmeticError

    configure(route="strict")
    with pytest.raises(ArithmeticError):
        under(Id(), partial(LLMCallbackHandler(worker(), run_id=Id()), data="x"))


# --- A host whose run id is one variable for the whole process ---


class Factory:
    """Makes handlers as such a host does: for whichever run was started last."""

    current_run_id: str | None = None

    @classmethod
    def handler(cls, name: str, explicit: bool) -> LLMCallbackHandler:
        """Make an agent's handler."""
        callback = get_event_callback(cls.current_run_id) if explicit else None
        return LLMCallbackHandler(worker(name), callback, run_id=cls.current_run_id)


RUNS = 10
WORDS = 20


def host(explicit: bool) -> dict[str, list[Any]]:
    """Run ten runs at once, and return what each heard."""
    run_ids = [new_id(str(number)) for number in range(RUNS)]
    got: dict[str, list[Any]] = {run_id: [] for run_id in run_ids}
    started = threading.Barrier(RUNS)

    def run(run_id: str) -> None:
        register_event_callback(run_id, lambda event: got[run_id].append(word(event)[1]))
        set_current_run_id(run_id)
        Factory.current_run_id = run_id
        # All have started before the first makes its agents: the class variable is the last one's.
        started.wait(DEADLINE)
        handler = Factory.handler(run_id, explicit)
        for number in range(WORDS):
            handler(data=f"{run_id}.{number}")

    together([partial(run, run_id) for run_id in run_ids])
    for run_id in run_ids:
        register_event_callback(run_id, None)
    return got


def own(run_id: str) -> list[str]:
    """Return what a run must hear."""
    return [f"{run_id}.{number}" for number in range(WORDS)]


@pytest.mark.parametrize("explicit", [False, True], ids=["registered", "looked up by the host"])
def test_a_host_with_a_process_wide_run_id_mixes_events(explicit: bool) -> None:
    """By the handler's id nine of ten runs hear nothing, and one hears all: what the route is there to repair."""
    heard = host(explicit)
    assert sorted(map(len, heard.values())) == [0] * (RUNS - 1) + [RUNS * WORDS]


@pytest.mark.parametrize("explicit", [False, True], ids=["registered", "looked up by the host"])
def test_the_route_by_context_repairs_such_a_host(explicit: bool) -> None:
    """By the context each of ten concurrent runs hears exactly its own words, in order."""
    configure(route="context")
    assert all(words == own(run_id) for run_id, words in host(explicit).items())


def test_the_strict_route_delivers_nothing_astray() -> None:
    """Strictly, the run whose id the variable has hears its own words, and those of the others are counted."""
    configure(route="strict")
    before = stats()["dropped"]["route"]
    heard = host(explicit=False)
    assert sum(words == own(run_id) for run_id, words in heard.items()) == 1
    assert sorted(map(len, heard.values())) == [0] * (RUNS - 1) + [WORDS]
    assert stats()["dropped"]["route"] - before == (RUNS - 1) * WORDS


# --- Setting it ---

ASK = """
import llm_callback as m
got = []
m.register_event_callback("given", lambda event: got.append("handler"))
m.register_event_callback("current", lambda event: got.append("context"))
m.set_current_run_id("current")
m.LLMCallbackHandler(m.CallerContext.worker("w", "W", "T"), run_id="given")(data="x")
print(*got or ["strict"])
"""


@pytest.mark.parametrize(
    ("value", "route"),
    [("handler", "handler"), ("context", "context"), ("strict", "strict"), ("", "handler")],
)
def test_the_environment_sets_the_route(value: str, route: str) -> None:
    """LLM_CALLBACK_ROUTE counts from the import on; an empty one is none."""
    assert printed(ASK, env={"LLM_CALLBACK_ROUTE": value}) == f"{route}\n"


def test_without_the_variable_the_handler_counts() -> None:
    """The default is the original's behaviour."""
    assert printed("import os; os.environ.pop('LLM_CALLBACK_ROUTE', None)\n" + ASK) == "handler\n"


def test_configure_wins_over_the_environment() -> None:
    """What the program says later replaces what the environment said."""
    code = ASK.replace("got = []", "got = []; m.configure(route='context')")
    assert printed(code, env={"LLM_CALLBACK_ROUTE": "strict"}) == "context\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [("Context", "Context"), (" strict", " strict"), ("no such", "no such"), (b"\xff\xfe", "")],
    ids=["case", "blank", "word", "not UTF-8"],
)
def test_a_bad_value_in_the_environment_is_told_by_name(value: str | bytes, shown: str) -> None:
    """The import fails with a ValueError whose text has the variable, the value and what is allowed."""
    done = interpreter("import llm_callback", env={"LLM_CALLBACK_ROUTE": value})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: LLM_CALLBACK_ROUTE must be ")
    assert f'"{shown}' in last or f"'{shown}" in last
    assert "'handler', 'context' or 'strict'" in last
    assert "panicked" not in done.stderr


@pytest.mark.parametrize("value", ["", "Handler", "context ", "\0", "ü", "\ud800"])
def test_configure_refuses_other_values(value: str) -> None:
    """Another word is a ValueError, and the route stays as it was."""
    configure(route="context")
    with pytest.raises(
        ValueError, match=r"route must be 'handler', 'context' or 'strict'|surrogates"
    ):
        configure(route=value)  # type: ignore[arg-type]
    got: list[Any] = []
    register_event_callback("current of this test", got.append)
    under("current of this test", partial(LLMCallbackHandler(worker(), run_id="x"), data="x"))
    register_event_callback("current of this test", None)
    assert len(got) == 1


@pytest.mark.parametrize("value", [None, 1, b"context", ["context"]])
def test_configure_refuses_other_types(value: Any) -> None:
    """Anything but a str is a TypeError."""
    with pytest.raises(TypeError):
        configure(route=value)


def test_configure_takes_its_arguments_by_name_only() -> None:
    """A bare word would not say what it sets; no argument sets nothing."""
    with pytest.raises(TypeError):
        configure("context")  # type: ignore[misc]
    configure()


def test_the_route_is_the_whole_process_s(two: Two) -> None:
    """A route that is set on one thread counts on all others, for handlers that are there already too."""
    handler = LLMCallbackHandler(worker(), run_id=two.given)
    in_thread(partial(configure, route="context"))
    under(two.current, partial(handler, data="x"))
    assert two.heard == ([], ["x"])


def test_a_strict_lookup_that_disagrees_is_counted() -> None:
    """Under strict, a callback that is asked for by another run's id is refused, and the refusal is counted."""
    configure(route="strict")
    register_event_callback("a", print)
    set_current_run_id("b")
    before = stats()["dropped"]["route"]
    assert get_event_callback("a") is None
    assert stats()["dropped"]["route"] == before + 1
    clear_current_run_id()
    register_event_callback("a", None)


@pytest.mark.parametrize(("own", "current", "raises"), [(1, 0, 0), (0, 1, 0), (1, 1, 1), (0, 0, 0)])
def test_a_strict_cancel_needs_both(own: int, current: int, raises: int) -> None:
    """Under strict, where two runs lay claim to a call, it is cancelled if both of them are."""
    configure(route="strict")
    register_cancellation_checker("own", lambda: own)
    register_cancellation_checker("current", lambda: current)
    set_current_run_id("current")
    handler = create_callback_handler(CallerContext.worker("w", "W", "T"), run_id="own")
    try:
        handler(start=True)
        assert not raises
    except InterruptedError:
        assert raises
    finally:
        clear_current_run_id()
        register_cancellation_checker("own", None)
        register_cancellation_checker("current", None)
