"""Threads: what one run, callback or destructor does neither reaches, stops nor delays another."""

from __future__ import annotations

import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import llm_callback
from llm_callback import (
    LLMCallbackHandler,
    RunCancelled,
    get_cancellation_checker,
    get_event_callback,
    register_cancellation_checker,
    register_event_callback,
    stats,
)
from support import (
    DEADLINE,
    Running,
    in_thread,
    new_id,
    printed,
    scaled,
    together,
    waited,
    word,
    worker,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THREADS = 16
TOKENS = 12

ID_KINDS: dict[str, Callable[[], Any]] = {
    "str": new_id,
    "int": lambda: hash(new_id()),
    "tuple": lambda: (new_id(), 1),
}


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Let threads change places at every chance, so that a missing lock shows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(params=ID_KINDS.values(), ids=ID_KINDS.keys())
def make_id(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Make run ids of a kind: those of the core, and those that take the slower path."""
    return request.param


def forget(*run_ids: Any) -> None:
    """Take what is registered for the runs away."""
    for run_id in run_ids:
        register_event_callback(run_id, None)
        register_cancellation_checker(run_id, None)


def counted() -> tuple[int, int, int]:
    """Return the events delivered, the events dropped, and the cancels raised so far."""
    now = stats()
    return now["emitted"], sum(now["dropped"].values()), now["cancelled"]


def raised_by(job: Callable[[], Any]) -> BaseException | None:
    """Return what ``job`` raises, if it does."""
    try:
        job()
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        return error
    return None


def registered() -> tuple[int, int]:
    """Return how many callbacks and checkers are registered."""
    now = stats()
    return now["callbacks"], now["checkers"]


# --- Callbacks that come back in ---


def remove_itself(run_id: Any) -> None:
    """Take the run's own callback away."""
    register_event_callback(run_id, None)


def replace_itself(run_id: Any) -> None:
    """Put another callback in the place of the run's own."""
    register_event_callback(run_id, pytest.fail)


def register_many(run_id: Any) -> None:
    """Register and remove other runs, enough to make the table grow."""
    others = [(run_id, number) for number in range(200)] + [f"{run_id}{n}" for n in range(200)]
    for other in others:
        register_event_callback(other, print)
        register_cancellation_checker(other, print)
    forget(*others)


def look_everywhere(run_id: Any) -> None:
    """Read all that can be read of the registry."""
    assert run_id in llm_callback._callback_registry
    assert run_id not in llm_callback._checker_registry
    assert get_event_callback(run_id) is not None
    assert get_cancellation_checker(run_id) is None
    assert stats()["callbacks"] > 0


def emit_elsewhere(run_id: Any) -> None:
    """Emit for another run, from inside."""
    other, got = (run_id, "other"), []
    register_event_callback(other, got.append)
    LLMCallbackHandler(worker(), run_id=other)(data="x")
    forget(other)
    assert [word(event) for event in got] == [("stream", "x")]


@pytest.mark.parametrize(
    "act", [remove_itself, replace_itself, register_many, look_everywhere, emit_elsewhere]
)
def test_a_callback_may_use_the_registry(
    make_id: Callable[[], Any], act: Callable[[Any], None]
) -> None:
    """A callback that comes back in neither deadlocks nor loses the call that it is in."""
    run_id, got = make_id(), []

    def callback(event: dict[str, Any]) -> None:
        if not got:
            act(run_id)
        got.append(word(event))

    register_event_callback(run_id, callback)
    handler = LLMCallbackHandler(worker(), run_id=run_id)
    in_thread(partial(handler, reasoningText="a", data="b", complete=True))
    forget(run_id)
    assert got == [("reasoning", "a"), ("stream", "b"), ("completed", "LLM round completed")]


def test_a_callback_may_call_its_own_handler() -> None:
    """Calls inside calls reach the callback in the order in which they are made."""
    run_id, got = new_id(), []

    def callback(event: dict[str, Any]) -> None:
        got.append(word(event)[1])
        if len(got) < 20:
            handler(data=str(len(got)))

    register_event_callback(run_id, callback)
    handler = LLMCallbackHandler(worker(), run_id=run_id)
    in_thread(partial(handler, data="0"))
    forget(run_id)
    assert got == handler._buffer == [str(number) for number in range(20)]


def test_a_checker_may_use_the_registry(make_id: Callable[[], Any]) -> None:
    """The callback is looked up after the checker ran, and a checker may take itself away."""
    run_id, got, asked = make_id(), [], []

    def checker() -> bool:
        asked.append(1)
        register_event_callback(run_id, got.append)
        register_cancellation_checker(run_id, None)
        return False

    register_cancellation_checker(run_id, checker)
    handler = LLMCallbackHandler(worker(), run_id=run_id)
    in_thread(partial(handler, data="a"))
    in_thread(partial(handler, data="b"))
    forget(run_id)
    assert (len(asked), [word(event)[1] for event in got]) == (1, ["a", "b"])


@pytest.mark.thread_unsafe(reason="all its ids have one hash, and are compared with each other's")
def test_an_id_may_use_the_registry_while_it_is_compared() -> None:
    """User code in an id's ``__eq__`` and ``__hash__`` may register, remove and emit."""
    inner, got = new_id(), []

    class Id:
        def __init__(self, name: str) -> None:
            self.name = name

        def __hash__(self) -> int:
            register_event_callback((inner, self.name), print)
            return 1

        def __eq__(self, other: object) -> bool:
            register_event_callback((inner, self.name), None)
            register_event_callback(inner, got.append)
            LLMCallbackHandler(worker(), run_id=inner)(data="compared")
            return isinstance(other, Id) and self.name == other.name

    def job() -> Any:
        register_event_callback(Id("a"), "a")
        register_event_callback(Id("b"), "b")
        found = (
            get_event_callback(Id("a")),
            get_event_callback(Id("b")),
            get_event_callback(Id("c")),
        )
        forget(Id("a"), Id("b"), inner, *((inner, name) for name in "abc"))
        return found

    assert in_thread(job) == ("a", "b", None)
    assert got


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), RunCancelled("other")])
def test_what_a_callback_raises_stays_in_its_thread(error: BaseException) -> None:
    """One run's failing callback fails its own emitter each time, and seven others get everything."""
    run_ids = [new_id() for _ in range(8)]
    streams: list[list[Any]] = [[] for _ in run_ids]

    def fail(_event: object) -> None:
        raise error

    def emit(index: int) -> int:
        handler = LLMCallbackHandler(worker(), run_id=run_ids[index])
        raised = [raised_by(partial(handler, data=f"{index}.{number}")) for number in range(200)]
        assert set(raised) <= {None, error}
        return raised.count(error)

    for run_id, stream in zip(run_ids, streams, strict=True):
        register_event_callback(run_id, stream.append)
    register_event_callback(run_ids[0], fail)
    failures = together([partial(emit, index) for index in range(8)])
    forget(*run_ids)
    assert failures == [200] + [0] * 7
    for index, stream in enumerate(streams):
        expected = [f"{index}.{number}" for number in range(200)] if index else []
        assert [word(event)[1] for event in stream] == expected


# --- One blocks, the others go on ---


@pytest.mark.parametrize("blocks", ["callback", "checker", "verbose", "context"])
def test_others_go_on_while_one_blocks(
    make_id: Callable[[], Any], blocks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """User code that does not return keeps no other thread from emitting or registering, its own run included."""
    run_id, others = make_id(), [make_id() for _ in range(7)]
    inside, release = threading.Event(), threading.Event()
    got: list[Any] = []

    def block_once(*_: object) -> None:
        if not inside.is_set():
            inside.set()
            waited(release)

    class Context(llm_callback.CallerContext):
        def to_source_dict(self) -> dict[str, str | None]:
            block_once()
            return super().to_source_dict()

    class Output:
        write = flush = block_once

    context = worker()
    if blocks == "callback":
        register_event_callback(run_id, lambda event: (block_once(), got.append(word(event))))
    else:
        register_event_callback(run_id, lambda event: got.append(word(event)))
    if blocks == "checker":
        register_cancellation_checker(run_id, block_once)
    elif blocks == "verbose":
        monkeypatch.setattr(sys, "stdout", Output())
    elif blocks == "context":
        context = Context.worker("worker", "Worker", "Team")
    handler = LLMCallbackHandler(context, verbose=blocks == "verbose", run_id=run_id)

    def go_on(other: Any) -> list[Any]:
        own: list[Any] = []
        register_event_callback(other, lambda event: own.append(word(event)))
        register_cancellation_checker(other, lambda: False)
        for number in range(50):
            LLMCallbackHandler(worker(), run_id=other)(data=str(number))
        # The run that blocks, by a handler of its own and by the very same one.
        LLMCallbackHandler(worker(), run_id=run_id)(data="beside")
        handler(data="same")
        assert get_event_callback(run_id) is not None
        forget(other)
        return own

    try:
        blocked = Running(partial(handler, data="blocked"))
        waited(inside)
        results = together([partial(go_on, other) for other in others])
        assert results == [[("stream", str(number)) for number in range(50)]] * 7
        assert sorted(got) == [("stream", "beside")] * 7 + [("stream", "same")] * 7
        in_thread(partial(forget, run_id))
        assert get_event_callback(run_id) is None
        assert not blocked.is_done
    finally:
        release.set()
        forget(run_id, *others)
    blocked.result()
    # The callback was chosen before the run was removed, but after the checker had run.
    assert got[14:] == ([] if blocks == "checker" else [("stream", "blocked")])


# --- Destructors that come back in ---


class Evil:
    """A callback, token or checker whose destructor uses everything that the module has."""

    def __init__(self, run_id: Any, done: list[Any]) -> None:
        self.run_id = run_id
        self.done = done

    def __call__(self, _event: object = None) -> None:
        """Do nothing, and say that no run is cancelled."""

    def strip(self) -> str:
        """Look like a token."""
        return "x"

    def __del__(self) -> None:
        inner = (self.run_id, "inner")
        got: list[Any] = []
        register_event_callback(inner, got.append)
        register_cancellation_checker(inner, lambda: False)
        LLMCallbackHandler(worker(), run_id=inner)(data="from the destructor")
        # The run that is being replaced or removed, too.
        LLMCallbackHandler(worker(), run_id=self.run_id)(data="to the run")
        found = get_event_callback(self.run_id), get_cancellation_checker(self.run_id)
        assert llm_callback._callback_registry.get(self.run_id) is found[0]
        register_event_callback(self.run_id, found[0])
        register_cancellation_checker(self.run_id, found[1])
        forget(inner)
        self.done.append([word(event) for event in got])


def replaced_callback(run_id: Any, done: list[Any]) -> None:
    """Put another callback in its place."""
    register_event_callback(run_id, Evil(run_id, done))
    register_event_callback(run_id, print if done else len)


def removed_callback(run_id: Any, done: list[Any]) -> None:
    """Remove it."""
    register_event_callback(run_id, Evil(run_id, done))
    register_event_callback(run_id, None)


def replaced_checker(run_id: Any, done: list[Any]) -> None:
    """Put another checker in its place."""
    register_cancellation_checker(run_id, Evil(run_id, done))
    register_cancellation_checker(run_id, bool)


def removed_checker(run_id: Any, done: list[Any]) -> None:
    """Remove a checker."""
    register_cancellation_checker(run_id, Evil(run_id, done))
    register_cancellation_checker(run_id, None)


def removed_by_itself(run_id: Any, done: list[Any]) -> None:
    """Leave the running call with the last reference."""

    class Once(Evil):
        def __call__(self, _event: object = None) -> None:
            register_event_callback(self.run_id, None)

    register_event_callback(run_id, Once(run_id, done))
    LLMCallbackHandler(worker(), run_id=run_id)(data="x")


def replaced_attribute(run_id: Any, done: list[Any]) -> None:
    """Assign to the handler's attribute."""
    handler = LLMCallbackHandler(worker(), Evil(run_id, done))
    handler.event_callback = None


def deleted_attribute(run_id: Any, done: list[Any]) -> None:
    """Delete the handler's attribute."""
    handler = LLMCallbackHandler(worker(), Evil(run_id, done))
    del handler.event_callback


def dead_handler(run_id: Any, done: list[Any]) -> None:
    """Drop the handler itself."""
    LLMCallbackHandler(worker(), Evil(run_id, done))


def replaced_dict(run_id: Any, done: list[Any]) -> None:
    """Put another ``__dict__`` in the place of the handler's."""
    handler = LLMCallbackHandler(worker(), Evil(run_id, done))
    vars(handler)
    handler.__dict__ = {}


def replaced_values_by_dict(run_id: Any, done: list[Any]) -> None:
    """Put a ``__dict__`` in the place of a handler's attributes."""
    handler = LLMCallbackHandler(worker(), Evil(run_id, done))
    handler.__dict__ = {}


def initialized_again(run_id: Any, done: list[Any]) -> None:
    """Call ``__init__`` a second time."""
    handler = LLMCallbackHandler(worker(), Evil(run_id, done))
    handler.__init__(worker())  # type: ignore[misc]


def forgotten_token(run_id: Any, done: list[Any]) -> None:
    """Let ``complete`` empty the buffer."""
    handler = LLMCallbackHandler(worker())
    handler(data=Evil(run_id, done))
    handler(complete=True)


def token_over_the_bound(run_id: Any, done: list[Any]) -> None:
    """Let the buffer's bound drop it."""
    handler = LLMCallbackHandler(worker())
    handler(data=Evil(run_id, done))
    for _ in range(10_000):
        handler(data="x")


def replaced_run(run_id: Any, done: list[Any]) -> None:
    """Set another current run."""
    llm_callback.set_current_run_id(Evil(run_id, done))
    llm_callback.set_current_run_id("other")


@pytest.mark.thread_unsafe(reason="another's look at the registry may hold what is dropped")
@pytest.mark.parametrize(
    "way",
    [
        replaced_callback,
        removed_callback,
        replaced_checker,
        removed_checker,
        removed_by_itself,
        replaced_attribute,
        deleted_attribute,
        dead_handler,
        replaced_dict,
        replaced_values_by_dict,
        initialized_again,
        forgotten_token,
        token_over_the_bound,
        replaced_run,
    ],
)
def test_a_destructor_may_come_back_in(
    make_id: Callable[[], Any], way: Callable[..., None]
) -> None:
    """What goes is dropped outside every lock: its destructor may register, remove, look up and emit."""
    run_id, done = make_id(), []
    in_thread(partial(way, run_id, done))
    forget(run_id)
    assert done == [[("stream", "from the destructor")]]


def test_a_fork_runs_no_destructor_of_the_parents_callbacks() -> None:
    """The child forgets its parent's callbacks without a good-bye, which might be said to the parent's peers."""
    assert printed(
        """
        import os, sys
        sys.path[:0] = [os.environ["TESTS"]]
        from llm_callback import register_event_callback, stats
        from test_threads import Evil
        done = []
        for run_id in ["a", 1, ("b", 2)]:
            register_event_callback(run_id, Evil(run_id, done))
        if os.fork() == 0:
            del run_id
            print(len(done), stats()["callbacks"], flush=True)
            os._exit(0)
        os.wait()
        assert not done
        """,
        env={"TESTS": str(Path(__file__).parent)},
    ) == ("0 0\n")


# --- Many runs on many threads ---


def many_runs(runs: int) -> int:
    """Register, emit for and remove that many runs on 16 threads; return how many events went astray."""

    def one_run(run_id: str, handed_over: list[Any]) -> None:
        got: list[dict[str, Any]] = []
        register_event_callback(run_id, got.append)
        register_cancellation_checker(run_id, lambda: False)
        handler = LLMCallbackHandler(worker(run_id), run_id=run_id)
        for number in range(TOKENS):
            handler(data=f"{run_id}.{number}")
        handler(current_tool_use={"name": run_id}, complete=True)
        forget(run_id)
        # Nobody listens any more.
        handler(data=f"{run_id} late")
        handed_over.append((run_id, got))

    def job(mine: list[str]) -> list[Any]:
        handed_over: list[Any] = []
        for run_id in mine:
            one_run(run_id, handed_over)
        return handed_over

    run_ids = [new_id(str(number)) for number in range(runs)]
    results = together([partial(job, run_ids[first::THREADS]) for first in range(THREADS)])
    streams = [stream for result in results for stream in result]
    assert sorted(run_id for run_id, _ in streams) == sorted(run_ids)
    astray = 0
    for run_id, got in streams:
        expected = [("stream", f"{run_id}.{number}") for number in range(TOKENS)]
        expected += [("tool_call", run_id, 1), ("completed", "LLM round completed")]
        astray += [word(event) for event in got] != expected
        astray += any(event["source"]["agent_id"] != run_id for event in got)
    return astray


@pytest.mark.thread_unsafe(reason="counts all events of the process")
@pytest.mark.parametrize("runs", scaled(1_000, 20_000))
def test_many_runs_keep_their_events_apart(runs: int, eager_threads: None) -> None:  # noqa: ARG001
    """16 threads that register, emit and remove leave no event astray, every one counted, and nothing behind."""
    registered_before, (emitted, dropped, cancelled) = registered(), counted()
    assert many_runs(runs) == 0
    assert registered() == registered_before
    assert counted() == (emitted + runs * (TOKENS + 2), dropped + runs, cancelled)


def racing_removals(rounds: int) -> None:
    """Remove each run while four threads emit for it."""
    for _ in range(rounds):
        run_id, before = new_id(), counted()
        halfway = threading.Event()
        got: list[tuple[int, int]] = []

        def emit(thread: int, run_id: str = run_id, halfway: Any = halfway) -> None:
            handler = LLMCallbackHandler(worker(), run_id=run_id)
            for number in range(100):
                handler(data=f"{thread}.{number}")
                if (thread, number) == (0, 50):
                    halfway.set()

        def remove(run_id: str = run_id, halfway: Any = halfway) -> None:
            waited(halfway)
            register_event_callback(run_id, None)

        def listen(event: dict[str, Any], got: list[tuple[int, int]] = got) -> None:
            thread, number = word(event)[1].split(".")
            got.append((int(thread), int(number)))

        register_event_callback(run_id, listen)
        together([partial(emit, thread) for thread in range(4)] + [remove])
        for thread in range(4):
            numbers = [number for emitter, number in got if emitter == thread]
            # From the first on and without a hole, up to the removal.
            assert numbers == list(range(len(numbers)))
        after = counted()
        assert after[0] - before[0] == len(got)
        assert after[0] - before[0] + after[1] - before[1] == 400


@pytest.mark.thread_unsafe(reason="counts all events of the process")
@pytest.mark.parametrize("rounds", scaled(20, 500))
def test_each_call_is_delivered_or_counted_as_dropped(rounds: int, eager_threads: None) -> None:  # noqa: ARG001
    """While a run is removed under its emitters, emitted and dropped add up to the calls, and no event is skipped."""
    racing_removals(rounds)


def test_registering_one_run_on_many_threads_leaves_one_callback(
    make_id: Callable[[], Any],
) -> None:
    """Of all that is registered for a run at once the last one stays, and the others are let go."""
    run_id, gone = make_id(), []

    class Callback:
        def __call__(self, _event: object) -> None:
            """Do nothing."""

        def __del__(self) -> None:
            gone.append(1)

    def job() -> None:
        for _ in range(500):
            register_event_callback(run_id, Callback())
            LLMCallbackHandler(worker(), run_id=run_id)(data="x")

    together([job] * 8)
    assert len(gone) == 8 * 500 - 1
    forget(run_id)
    assert len(gone) == 8 * 500


# --- One handler, many threads ---


def shared_handler(threads: int, calls: int) -> None:
    """Let the threads call one handler."""
    run_id, got = new_id(), []
    register_event_callback(run_id, got.append)
    handler = LLMCallbackHandler(worker(), run_id=run_id)

    def emit(thread: int) -> None:
        for number in range(calls):
            handler(data=f"{thread}.{number}", current_tool_use={"name": f"{thread}.{number}"})

    together([partial(emit, thread) for thread in range(threads)])
    forget(run_id)
    total = threads * calls
    words = [word(event) for event in got]
    sent = {f"{thread}.{number}" for thread in range(threads) for number in range(calls)}
    assert len(handler._buffer) == total
    assert set(handler._buffer) == sent
    assert handler.tool_count == total
    assert sorted(number for action, *_, number in words if action == "tool_call") == [
        *range(1, total + 1)
    ]
    for thread in range(threads):
        own = [text for action, text, *_ in words if text.startswith(f"{thread}.")]
        assert own == [f"{thread}.{number}" for number in range(calls) for _ in range(2)]


@pytest.mark.parametrize("rounds", scaled(1, 50))
def test_threads_may_share_a_handler(rounds: int, eager_threads: None) -> None:  # noqa: ARG001
    """No token is missing in its buffer, no tool call is counted twice or not at all, each thread's are in order."""
    for _ in range(rounds):
        shared_handler(threads=8, calls=200)


def test_attributes_may_be_moved_while_others_call() -> None:
    """A handler whose attributes become a dict under its callers loses no token and no count."""
    for _ in range(20):
        got: list[Any] = []
        handler = LLMCallbackHandler(worker(), got.append)

        def emit(thread: int, handler: LLMCallbackHandler = handler) -> None:
            for number in range(50):
                handler(data="x", current_tool_use={"name": f"{thread}.{number}"})

        def move(handler: LLMCallbackHandler = handler) -> None:
            for number in range(50):
                vars(handler)[f"further{number}"] = handler.__dict__
                handler.extra = number

        together([partial(emit, thread) for thread in range(3)] + [move])
        assert (handler.tool_count, len(handler._buffer), len(got)) == (150, 150, 300)
        vars(handler).clear()


# --- Cancels in flight ---


@pytest.mark.parametrize("rounds", scaled(5, 200))
def test_a_cancel_reaches_its_own_run_only(rounds: int) -> None:
    """Of eight runs in flight the four that are cancelled stop at once, and the four others complete."""
    for _ in range(rounds):
        run_ids = [new_id() for _ in range(8)]
        flags = [threading.Event() for _ in run_ids]
        streams: list[list[Any]] = [[] for _ in run_ids]
        halfway = [threading.Event() for _ in run_ids]
        cancelled = threading.Event()

        def emit(
            index: int,
            run_ids: list[str] = run_ids,
            halfway: list[threading.Event] = halfway,
            cancelled: threading.Event = cancelled,
        ) -> Any:
            handler = LLMCallbackHandler(worker(), run_id=run_ids[index])
            try:
                for number in range(100):
                    if number == 50:
                        halfway[index].set()
                        waited(cancelled)
                    handler(data=f"{index}.{number}")
            except RunCancelled as error:
                return error.run_id
            return None

        for run_id, flag, stream in zip(run_ids, flags, streams, strict=True):
            register_event_callback(run_id, stream.append)
            register_cancellation_checker(run_id, flag.is_set)
        running = [Running(partial(emit, index)) for index in range(8)]
        for event in halfway:
            waited(event)
        for flag in flags[::2]:
            flag.set()
        cancelled.set()
        assert [job.result(DEADLINE) for job in running] == [
            None if index % 2 else run_id for index, run_id in enumerate(run_ids)
        ]
        forget(*run_ids)
        for index, stream in enumerate(streams):
            count = 100 if index % 2 else 50
            assert [word(event)[1] for event in stream] == [f"{index}.{n}" for n in range(count)]
