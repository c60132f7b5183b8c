"""Tokens: a cancel reaches what is below and nothing else, once, and calls back with no lock held."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from strands import Agent

from llm_callback import CallerContext, CancelToken, get_run, open_run
from llm_callback.testing import Pause, ScriptedModel, Text
from readers import kinds
from support import DEADLINE, Running, in_thread, together, waited

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

KINDS = ["user", "deadline", "parent", "shutdown", "disconnect"]


class Called:
    """A callback that notes on which threads it was called."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __call__(self) -> None:
        self.threads.append(threading.get_ident())


class Raised:
    """What reached `sys.unraisablehook`."""

    def __init__(self) -> None:
        self.errors: list[BaseException | None] = []

    def __call__(self, unraisable: Any) -> None:
        self.errors.append(unraisable.exc_value)


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> Raised:
    """Keep what would be printed as unraisable."""
    raised = Raised()
    monkeypatch.setattr(sys, "unraisablehook", raised)
    return raised


# --- An event ---


def test_a_token_is_an_event() -> None:
    """A token is a `threading.Event` to whoever takes one: by its class and by its methods."""
    token = CancelToken()
    assert isinstance(token, threading.Event)
    assert issubclass(CancelToken, threading.Event)
    assert (token.is_set(), token.isSet(), token.wait(0)) == (False, False, False)
    assert (token.kind, token.reason, token.remaining) == (None, None, None)
    assert "not cancelled" in repr(token)
    assert token.set() is None
    assert (token.is_set(), token.isSet(), token.wait()) == (True, True, True)
    assert (token.kind, token.reason) == ("user", "")
    token.set()
    with pytest.raises(RuntimeError, match="a cancel cannot be taken back"):
        token.clear()
    assert token.is_set()


def test_what_is_not_set_cannot_be_cleared_either() -> None:
    """`clear` raises also where there is nothing to clear."""
    with pytest.raises(RuntimeError, match="make another token"):
        CancelToken().clear()


def test_wait_wakes_all() -> None:
    """All threads that wait for a token, or for one below it, wake at its cancel; nobody wakes without."""
    for _ in range(20):
        token = CancelToken()
        below = token.child().child()
        here = threading.Semaphore(0)

        def wait(one: CancelToken, here: threading.Semaphore = here) -> bool:
            here.release()
            return one.wait()

        waiting = [Running(partial(wait, one)) for one in [token, below] * 4]
        for _ in waiting:
            assert here.acquire(timeout=DEADLINE)
        # So that most are in the wait by now; those that are not find it over.
        assert not token.wait(0.002)
        assert not any(one.is_done for one in waiting)
        assert token.cancel()
        assert [one.result() for one in waiting] == [True] * 8
    assert CancelToken().wait(timeout=0.001) is False
    assert CancelToken().wait(-1) is False


@pytest.mark.parametrize(("timeout", "error"), [("1", TypeError), (float("nan"), ValueError)])
def test_wait_refuses_what_is_no_time(timeout: Any, error: type[Exception]) -> None:
    """A timeout that is no number raises."""
    with pytest.raises(error, match="timeout must be a number of seconds"):
        CancelToken().wait(timeout)


def test_strands_takes_a_token() -> None:
    """A strands agent with a run's token as its `cancel_signal` stops when the run is cancelled."""
    speaks = threading.Event()
    with open_run() as run:
        handler = run.handler(CallerContext.worker("w1", "Researcher", "Team A"))

        def callback(**kwargs: Any) -> None:
            if kwargs.get("data"):
                speaks.set()

        model = ScriptedModel([[Text("one "), *[Text("two "), Pause(0.05)] * 50]])
        agent = Agent(model=model, callback_handler=callback)
        assert handler.run_id == run.run_id
        answer = Running(lambda: agent("go", cancel_signal=run.token))
        waited(speaks)
        run.cancel("enough")
        assert answer.result().stop_reason == "cancelled"
    assert run.state == "cancelled"


# --- A tree ---


def test_a_cancel_reaches_what_is_below() -> None:
    """A cancel reaches children and theirs, never what is above or beside; below it is told as the parent's."""
    top = CancelToken()
    one, other = top.child(), top.child()
    below, shielded = one.child(), one.shield()
    assert one.cancel("enough", kind="shutdown")
    tokens = [top, one, other, below, shielded, one.child(), shielded.child()]
    assert [token.is_set() for token in tokens] == [False, True, False, True, False, True, False]
    assert (one.kind, one.reason) == ("shutdown", "enough")
    assert (below.kind, below.reason) == ("parent", "enough")
    assert "enough" in repr(one)
    assert type(below) is type(shielded) is CancelToken


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_reason_stays(kind: str) -> None:
    """The first cancel that reaches a token says why, whichever kind it is; later ones change nothing and say so."""
    token = CancelToken()
    child = token.child()
    assert child.cancel("own", kind=kind)
    assert token.cancel("first", kind=kind)
    for other in KINDS:
        assert not token.cancel("later", kind=other)
        assert not child.cancel("later", kind=other)
    token.set()
    assert (token.kind, token.reason) == (kind, "first")
    assert (child.kind, child.reason) == (kind, "own")


def test_one_of_many_cancels_is_the_first() -> None:
    """Of many threads that cancel at once exactly one is told that it was the first, and its reason stays."""
    for _ in range(50):
        token = CancelToken()
        firsts = together([partial(token.cancel, str(number)) for number in range(8)])
        assert firsts.count(True) == 1
        assert token.reason == str(firsts.index(True))


@pytest.mark.parametrize("reason", ["", "é😀", "a\0b", "\u2028\n\r", "x" * 100_000])
def test_any_text_is_a_reason(reason: str) -> None:
    """A reason is kept as it is, in the token, in those below, and in the last event of a run."""
    with open_run() as run:
        run.token.cancel(reason)
    assert (run.token.reason, run.token.child().reason) == (reason, reason)
    *_, last = run.subscribe("start")
    assert (last["data"]["kind"], last["data"]["reason"]) == ("user", reason)
    repr(run.token)


def test_a_reason_with_half_a_character_is_taken() -> None:
    """A reason that UTF-8 cannot hold is no error: what cannot be held is replaced."""
    token = CancelToken()
    assert token.cancel("a\ud800b")
    assert token.reason is not None
    assert token.reason.replace("\ufffd", "") == "ab"


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((5,), {}, TypeError),
        ((b"x",), {}, TypeError),
        (("x", "user"), {}, TypeError),
        ((), {"kind": "nobody"}, ValueError),
        ((), {"kind": "User"}, ValueError),
        ((), {"kind": None}, TypeError),
        ((), {"kind": "\ud800"}, ValueError),
    ],
)
def test_what_is_no_cancel_is_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    """A reason that is no text and a kind that nobody knows raise, and cancel nothing."""
    token = CancelToken()
    with pytest.raises(error):
        token.cancel(*arguments, **options)
    assert not token.is_set()


def test_ten_thousand_children() -> None:
    """A cancel reaches ten thousand children, and what each registered is called once."""
    token, calls = CancelToken(), []
    children = [token.child() for _ in range(10_000)]
    for number, child in enumerate(children):
        child.on_cancel(lambda number=number: calls.append(number))
    assert token.cancel("all")
    assert all(child.is_set() for child in children)
    assert sorted(calls) == list(range(10_000))


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_deep_tree(is_cancelled: bool) -> None:
    """A chain of ten thousand tokens is cancelled to its end, and dropped, without a deep stack."""
    top = token = CancelToken()
    for _ in range(10_000):
        token = token.child()
    if is_cancelled:
        top.cancel("deep")
        assert (token.kind, token.reason) == ("parent", "deep")
    gone = weakref.ref(token)
    in_thread(lambda: None)
    del top, token
    assert gone() is None


def test_children_that_are_dropped_leave_nothing() -> None:
    """Children come and go without a trace in their parent."""
    token = CancelToken()
    gone = [weakref.ref(token.child()) for _ in range(1_000)]
    assert [reference() for reference in gone] == [None] * 1_000
    token.cancel()


# --- Deadlines ---


def test_a_deadline_cancels() -> None:
    """When its deadline passes, a token and those below it are cancelled, and who waits is woken."""
    token = CancelToken(deadline=0.02)
    child = token.child()
    assert token.remaining is not None
    assert 0 <= token.remaining <= 0.02
    assert child.wait(DEADLINE)
    assert (token.kind, child.kind, token.remaining) == ("deadline", "parent", 0.0)
    assert token.reason


def test_the_earlier_deadline_counts() -> None:
    """A child has the earlier of its own deadline and those above; a shield has none."""
    top = CancelToken(deadline=1_000)
    for own, least, most in [(None, 900, 1_000), (10_000, 900, 1_000), (500, 400, 500)]:
        for token in (top.child(own), top.child(deadline=own).child(), top.child().child(own)):
            assert token.remaining is not None
            assert least < token.remaining <= most
    assert top.shield().remaining is None
    early = top.child(0.01)
    assert early.wait(DEADLINE)
    assert (early.kind, top.is_set()) == ("deadline", False)
    assert CancelToken().child(1_000).child().remaining is not None


@pytest.mark.parametrize("make", [CancelToken, CancelToken().child], ids=["top", "child"])
@pytest.mark.parametrize("deadline", [-1, 0, 0.0, -1e300, float("-inf"), -(10**9)])
def test_a_deadline_that_has_passed_cancels_at_once(
    make: Callable[[float], CancelToken], deadline: float
) -> None:
    """A token whose deadline is not ahead is cancelled from the beginning."""
    token = make(deadline)
    assert (token.is_set(), token.kind) == (True, "deadline")


@pytest.mark.parametrize("deadline", [None, float("inf"), 1e300, sys.float_info.max])
def test_a_deadline_that_no_clock_can_hold_is_none(deadline: float | None) -> None:
    """What is too far away to be a time is no deadline."""
    for token in (CancelToken(deadline), CancelToken(deadline=deadline).child(deadline)):
        assert (token.is_set(), token.remaining) == (False, None)


@pytest.mark.parametrize("make", [CancelToken, CancelToken().child], ids=["top", "child"])
@pytest.mark.parametrize(
    ("deadline", "error"),
    [(float("nan"), ValueError), ("x", TypeError), ("1", TypeError), ([], TypeError)],
)
def test_what_is_no_deadline_is_refused(
    make: Callable[[Any], CancelToken], deadline: Any, error: type[Exception]
) -> None:
    """What is no number of seconds raises, and says what is."""
    with pytest.raises(error, match="deadline must be a number of seconds, or None"):
        make(deadline)


def test_a_deadline_calls_back_on_a_thread_of_its_own() -> None:
    """A callback of a deadline that blocks keeps the callbacks of no other deadline from being called."""
    go_on, called, reached = threading.Event(), threading.Event(), threading.Event()

    def register_slow() -> CancelToken:
        slow = CancelToken(0.01)
        slow.on_cancel(lambda: (called.set(), waited(go_on)))
        return slow

    # On a thread of its own, which calls the callback if the deadline passes before `on_cancel`.
    registering = Running(register_slow)
    waited(called)
    other = CancelToken(0.01)
    other.on_cancel(reached.set)
    waited(reached)
    go_on.set()
    registering.result()


# --- Callbacks ---


def test_a_callback_is_called_once() -> None:
    """What was registered is called once, in order, where the cancel is; what comes later, at once, where it comes."""
    token, calls, thread = CancelToken(), [], Called()
    for number in range(10):
        token.on_cancel(lambda number=number: calls.append(number))
    token.on_cancel(thread)
    canceller = in_thread(lambda: (token.cancel(), threading.get_ident())[1])
    token.cancel()
    assert calls == list(range(10))
    assert thread.threads == [canceller]
    registration = token.on_cancel(thread)
    assert thread.threads == [canceller, threading.get_ident()]
    assert not registration.stop()


def test_callbacks_race_with_a_cancel() -> None:
    """Registered while another thread cancels, a callback is called once, or, stopped before, never."""
    for _ in range(100):
        token = CancelToken()
        calls: list[list[int]] = [[] for _ in range(6)]

        def register(number: int, token: CancelToken = token, calls: Any = calls) -> bool:
            registration = token.on_cancel(lambda: calls[number].append(1))
            return number % 2 == 0 and registration.stop()

        jobs = [lambda number=number: register(number) for number in range(6)]
        *stopped, _ = together([*jobs, token.cancel])
        for number in range(6):
            assert len(calls[number]) == (0 if stopped[number] else 1)


def test_a_registration_is_stopped_once() -> None:
    """A stopped callback is never called, and freed at once; stopping again, or after the call, says false."""
    token, callback = CancelToken(), Called()
    registration, other = token.on_cancel(callback), token.on_cancel(lambda: None)
    gone = weakref.ref(callback)
    del callback
    assert registration.stop()
    assert gone() is None
    assert not registration.stop()
    token.cancel()
    assert not other.stop()


def test_a_dropped_registration_still_calls() -> None:
    """Who does not keep what `on_cancel` returns is called all the same; the callback is freed after its call."""
    token, callback = CancelToken(), Called()
    gone = weakref.ref(callback)
    token.on_cancel(callback)
    gc.collect()
    calls = callback.threads
    del callback
    token.cancel()
    assert calls == [threading.get_ident()]
    assert gone() is None


def test_a_token_that_goes_takes_its_callbacks_along() -> None:
    """With the last reference to a token its callbacks are freed, uncalled."""
    token, callback = CancelToken(), Called()
    calls, gone = callback.threads, weakref.ref(callback)
    registration = token.on_cancel(callback)
    del callback, token
    assert (calls, gone()) == ([], None)
    assert not registration.stop()


def test_a_run_that_ended_lets_go_of_callbacks() -> None:
    """At the end of its run a token frees its callbacks, also those that hold the run."""
    run = open_run()
    callback = Called()
    callback.run = run
    gone, calls = weakref.ref(callback), callback.threads
    run.token.on_cancel(callback)
    del callback
    run.complete()
    assert (calls, gone()) == ([], None)


@pytest.mark.parametrize("callback", [None, 5, "print", threading.Event()])
def test_what_cannot_be_called_is_refused(callback: Any) -> None:
    """A callback that is not callable raises TypeError, also where it would be called at once."""
    token = CancelToken()
    for _ in range(2):
        with pytest.raises(TypeError, match="callback must be callable"):
            token.on_cancel(callback)
        token.cancel()


def ask(token: CancelToken, _: list[str]) -> None:
    """Ask all that can be asked."""
    assert (token.is_set(), token.kind, token.reason) == (True, "user", "enough")
    assert token.wait()
    repr(token)


def cancel_again(token: CancelToken, _: list[str]) -> None:
    """Cancel the same token."""
    assert not token.cancel("again")


def register_more(token: CancelToken, calls: list[str]) -> None:
    """Register another callback, which is called at once."""
    token.on_cancel(lambda: calls.append("more"))
    assert calls[-1] == "more"
    calls.pop()


def cancel_another(_: CancelToken, calls: list[str]) -> None:
    """Make a tree and cancel it."""
    other = CancelToken()
    below = other.child()
    below.on_cancel(lambda: calls.append("below"))
    other.cancel()
    assert calls.pop() == "below"


def open_and_subscribe(_: CancelToken, __: list[str]) -> None:
    """Open a run, read it, end it."""
    with open_run() as run:
        subscription = run.subscribe("start")
        run.emit("llm", "stream", {"content": "x"})
    assert len(list(subscription)) == 3


def collect(_: CancelToken, __: list[str]) -> None:
    """Run the collector, and so destructors."""
    gc.collect()


def let_others_run(token: CancelToken, _: list[str]) -> None:
    """Wait for another thread that needs the token too."""
    assert in_thread(lambda: (token.wait(), token.child().is_set(), token.cancel()))[:2] == (
        True,
        True,
    )


@pytest.mark.parametrize(
    "act",
    [ask, cancel_again, register_more, cancel_another, open_and_subscribe, collect, let_others_run],
)
def test_a_callback_may_do_anything(act: Callable[[CancelToken, list[str]], None]) -> None:
    """A callback that comes back in does not deadlock; the other callbacks are called."""
    token, calls = CancelToken(), []
    token.on_cancel(lambda: calls.append("before"))
    token.on_cancel(lambda: (act(token, calls), calls.append("acted")))
    token.on_cancel(lambda: calls.append("after"))
    assert Running(lambda: token.cancel("enough")).result()
    assert calls == ["before", "acted", "after"]


def test_a_callback_may_cancel_what_is_above() -> None:
    """A callback of a child may cancel the parent, whose other children hear of it before that returns."""
    parent = CancelToken()
    child, other = parent.child(), parent.child()
    child.on_cancel(lambda: parent.cancel("from below"))
    calls = Called()
    other.on_cancel(calls)
    assert Running(lambda: child.cancel("enough")).result()
    assert (child.reason, parent.reason, other.reason) == ("enough", "from below", "from below")
    assert len(calls.threads) == 1


def test_a_callback_may_stop_others() -> None:
    """A callback may take back what comes after it: that is not called."""
    token, calls = CancelToken(), []
    registrations: list[Any] = []
    token.on_cancel(lambda: calls.append([one.stop() for one in registrations]))
    registrations += [token.on_cancel(lambda: calls.append("late")) for _ in range(3)]
    token.cancel()
    assert calls == [[True, True, True]]


@pytest.mark.thread_unsafe(reason="sets sys.unraisablehook")
@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3)])
def test_an_error_in_a_callback_is_told(unraisable: Raised, error: BaseException) -> None:
    """What a callback raises goes to `sys.unraisablehook`; the cancel and the other callbacks go on."""

    def fail() -> None:
        raise error

    token, calls = CancelToken(), Called()
    for callback in (fail, calls, fail, calls):
        token.on_cancel(callback)
    assert token.cancel()
    assert unraisable.errors == [error, error]
    assert len(calls.threads) == 2
    token.on_cancel(fail)
    assert unraisable.errors == [error] * 3


def test_a_run_that_its_token_refers_to_is_freed() -> None:
    """The garbage collector sees a run's token, so that a cycle through it is freed."""

    def make() -> tuple[Any, Any]:
        run = open_run()
        run.token.run = run  # type: ignore[attr-defined]
        run.complete()
        return weakref.ref(run), weakref.ref(run.token)

    references = make()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def interrupt() -> None:
    """Be interrupted, as by Ctrl-C."""
    raise KeyboardInterrupt


@pytest.mark.thread_unsafe(reason="Ctrl-C is the main thread's")
def test_ctrl_c_in_a_callback_is_raised_when_all_are_called() -> None:
    """On the main thread a Ctrl-C in a callback comes out of what called it, and the other callbacks are called."""
    token, calls = CancelToken(), Called()
    for callback in (interrupt, calls, interrupt, calls):
        token.on_cancel(callback)
    with pytest.raises(KeyboardInterrupt):
        token.cancel()
    assert len(calls.threads) == 2
    assert token.is_set()
    with pytest.raises(KeyboardInterrupt):
        token.on_cancel(interrupt)
    run = open_run()
    run.token.on_cancel(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.cancel("enough")
    run.complete()
    assert run.state == "cancelled"


@pytest.mark.thread_unsafe(reason="sets sys.unraisablehook")
def test_ctrl_c_is_an_error_on_other_threads(unraisable: Raised) -> None:
    """A KeyboardInterrupt that is no Ctrl-C, since it is raised on another thread, is told as other errors are."""
    token = CancelToken()
    token.on_cancel(interrupt)
    assert in_thread(token.cancel)
    assert [type(error) for error in unraisable.errors] == [KeyboardInterrupt]


@pytest.mark.thread_unsafe(reason="sets sys.unraisablehook")
def test_an_error_at_a_deadline_is_told(unraisable: Raised) -> None:
    """Also on a deadline's thread an error is told, and keeps nothing from being called."""
    error, reached = ValueError("x"), threading.Event()

    def fail() -> None:
        raise error

    token = CancelToken(0.01)
    token.on_cancel(fail)
    token.on_cancel(reached.set)
    waited(reached)
    assert unraisable.errors == [error]


@pytest.mark.thread_unsafe(reason="another thread may let go of what was dropped without the GIL")
def test_a_destructor_of_a_callback_may_use_the_token() -> None:
    """A callback whose destructor comes back in, when it is stopped or the token goes, does not deadlock."""
    asked = []

    class Callback:
        def __init__(self, token: CancelToken) -> None:
            self.token = weakref.ref(token)

        def __call__(self) -> None:
            pass

        def __del__(self) -> None:
            token = self.token()
            asked.append(token and (token.cancel("from below"), token.child().is_set()))

    token = CancelToken()
    token.on_cancel(Callback(token)).stop()
    assert asked == [(True, True)]
    token = CancelToken()
    token.on_cancel(Callback(token))
    del token
    assert asked[1:] == [None]


@pytest.mark.xfail(strict=True, reason="the collector cannot see into the core")
def test_a_token_and_its_callback_in_a_circle_are_collected() -> None:
    """A callback that holds its own token is freed with it, once nobody else holds either."""
    token, callback = CancelToken(), Called()
    callback.token = token
    token.on_cancel(callback)
    gone = weakref.ref(callback)
    del token, callback
    gc.collect()
    kept = gone()
    if kept is not None:
        kept.token.cancel()
    assert kept is None


# --- Runs ---


def test_a_token_outlives_its_run() -> None:
    """Held after the run, its end and another of its id, a token is still its own run's, and may be cancelled."""
    run = open_run()
    run_id, token = run.run_id, run.token
    child = token.child()
    run.complete()
    del run
    with open_run(run_id) as second:
        assert token.cancel("late")
        assert (token.reason, child.is_set(), second.token.is_set()) == ("late", True, False)
    assert second.state == "completed"


def test_a_run_has_one_token() -> None:
    """A run gives the same token each time; cancelling it is cancelling the run."""
    run = open_run()
    assert run.token is run.token
    found = get_run(run.run_id)
    assert found is not None
    assert found.token.cancel("enough")
    assert (run.token.is_set(), run.token.reason) == (True, "enough")
    assert run.cancel_requested_at is not None
    run.complete()
    assert run.state == "cancelled"


def test_a_shield_outlasts_a_cancel() -> None:
    """What is done under a shield goes on after the cancel: the run's last words are written."""
    with open_run() as run:
        subscription = run.subscribe("start")
        run.cancel("enough")
        shield = run.token.shield()
        assert not shield.is_set()
        run.emit("system", "warning", {"text": "cleaning up"})
        assert shield.cancel("own")
    assert kinds(subscription) == ["lifecycle.started", "system.warning", "lifecycle.cancelled"]


# --- Odd uses ---


@pytest.mark.parametrize("use", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_token_cannot_be_copied(use: Callable[[Any], Any]) -> None:
    """A copy of a token would be another one, which no cancel reaches: it raises, as with a `threading.Event`."""
    token = CancelToken()
    with pytest.raises(TypeError, match="cannot pickle"):
        use(token)
    with pytest.raises(TypeError, match="cannot pickle"):
        use(token.on_cancel(print))


def test_a_token_may_be_subclassed() -> None:
    """A subclass is a token, with attributes of its own; what it makes are plain tokens."""

    class Mine(CancelToken):
        note: str

        def is_urgent(self) -> bool:
            return self.reason == "now"

    token = Mine(deadline=1_000)
    token.note = "mine"
    child = token.child()
    assert token.cancel("now")
    assert token.is_urgent()
    assert (type(child), child.is_set()) == (CancelToken, True)
    assert isinstance(token, threading.Event)


def test_a_subclass_may_have_arguments_of_its_own() -> None:
    """A token is whole once it is made, so a subclass takes its arguments in `__new__`."""

    class Named(CancelToken):
        name: str

        def __new__(cls, name: str, deadline: float | None = None) -> Self:
            self = super().__new__(cls, deadline)
            self.name = name
            return self

    token = Named("x", deadline=1_000)
    assert (token.name, token.is_set()) == ("x", False)
    assert Named("y", deadline=0).kind == "deadline"


def test_a_token_is_a_key() -> None:
    """Tokens are compared and hashed as themselves, and can be kept weakly."""
    one, other = CancelToken(), CancelToken()
    assert len({one, other, one}) == 2
    assert one != other
    kept = weakref.WeakSet([one, other])
    del other
    assert set(kept) == {one}
