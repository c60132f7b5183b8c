"""The current run: whose it is, where it goes along, and where it must not."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import inspect
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from llm_callback import (
    LLMCallbackHandler,
    RunCancelled,
    _current_run_id,
    bind,
    check_cancellation,
    clear_current_run_id,
    get_current_run_id,
    get_event_callback,
    get_global_cancellation_checker,
    get_global_event_callback,
    register_cancellation_checker,
    register_event_callback,
    set_current_run_id,
    set_global_cancellation_checker,
    set_global_event_callback,
)
from support import DEADLINE, in_thread, new_id, printed, together

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator


@pytest.fixture(autouse=True)
def _no_run_before_and_after() -> Iterator[None]:
    """Start and end without a current run."""
    clear_current_run_id()
    yield
    clear_current_run_id()


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine, up to the deadline."""
    return asyncio.run(asyncio.wait_for(main, DEADLINE))


def in_fresh_context(job: Callable[[], Any]) -> Any:
    """Call ``job`` on this thread, in an empty context."""
    return contextvars.Context().run(job)


# --- Where the current run is ---


def test_without_one_the_current_run_is_none() -> None:
    """A thread that has set no run sees None, and so does one that has cleared it, twice too."""
    assert in_thread(get_current_run_id) is None

    def job() -> list[Any]:
        seen = []
        for run_id in ["a", None, "b"]:
            set_current_run_id(run_id)
            seen.append(get_current_run_id())
        clear_current_run_id()
        clear_current_run_id()
        return [*seen, get_current_run_id(), dict(_current_run_id)]

    assert in_thread(job) == ["a", None, "b", None, {}]


@pytest.mark.parametrize(
    "run_id",
    [0, "", (), False, 2**80, float("nan"), "\ud800", [], {}, pytest.param(object(), id="object")],
    ids=repr,
)
def test_any_object_is_a_current_run(run_id: Any) -> None:
    """The very object comes back, false or unhashable ones too: it is not looked up by being set."""
    set_current_run_id(run_id)
    assert get_current_run_id() is run_id
    assert list(_current_run_id.values()) == [run_id] or run_id != run_id  # noqa: PLR0124 - NaN


def test_threads_are_apart() -> None:
    """Eight threads that set and read at once each see only their own run."""
    barrier = threading.Barrier(8)

    def job(name: str) -> bool:
        for number in range(100):
            set_current_run_id((name, number))
            if number % 25 == 0:
                barrier.wait(DEADLINE)
            if get_current_run_id() != (name, number):
                return False
        return dict(_current_run_id) == {threading.get_ident(): (name, 99)}

    assert together([functools.partial(job, str(n)) for n in range(8)]) == [True] * 8
    assert get_current_run_id() is None


def test_a_thread_does_not_see_the_run_of_its_starter() -> None:
    """A run is not carried into a thread or a pool that was started under it."""
    set_current_run_id("starter")
    assert in_thread(get_current_run_id) is None
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(get_current_run_id).result(DEADLINE) is None


def test_a_thread_that_gets_a_dead_threads_ident_sees_nothing() -> None:
    """What a thread leaves behind is not found by a later one, though the system gives its ident out again."""
    idents: list[int] = []

    def leave(number: int) -> None:
        set_current_run_id(number)
        idents.append(threading.get_ident())

    def look() -> tuple[bool, Any, dict[Any, Any]]:
        return threading.get_ident() == idents[-1], get_current_run_id(), dict(_current_run_id)

    same_ident = 0
    for number in range(200):
        in_thread(functools.partial(leave, number))
        is_same, current, view = in_thread(look)
        same_ident += is_same
        assert (current, view) == (None, {})
    if not same_ident:
        pytest.skip("the system gave no thread ident out twice: nothing was tested")


def test_asyncio_tasks_are_apart() -> None:
    """Tasks that take turns on one thread each see only their own run, and leave none to the loop."""

    async def task(name: str) -> list[Any]:
        set_current_run_id(name)
        seen = []
        for _ in range(10):
            await asyncio.sleep(0)
            seen.append(get_current_run_id())
        return seen

    async def main() -> Any:
        results = await asyncio.gather(*(task(str(n)) for n in range(10)))
        return results, get_current_run_id()

    results, after = run(main())
    assert results == [[str(n)] * 10 for n in range(10)]
    assert after is None


def test_a_task_starts_with_the_run_of_its_creator_and_keeps_its_own() -> None:
    """A task gets a copy: what it sets is not seen outside, what its creator sets later not inside."""

    async def child(go_on: asyncio.Event) -> list[Any]:
        seen = [get_current_run_id()]
        await go_on.wait()
        seen.append(get_current_run_id())
        set_current_run_id("child")
        return [*seen, get_current_run_id()]

    async def main() -> Any:
        go_on = asyncio.Event()
        set_current_run_id("creator")
        task = asyncio.create_task(child(go_on))
        await asyncio.sleep(0)
        set_current_run_id("later")
        go_on.set()
        return await task, get_current_run_id()

    assert run(main()) == (["creator", "creator", "child"], "later")


def test_a_copied_context_carries_the_run() -> None:
    """A context that was copied on purpose is believed, on this thread and on any other, also a pool's."""
    set_current_run_id("copied")
    context = contextvars.copy_context()
    set_current_run_id("later")
    assert context.run(get_current_run_id) == "copied"
    assert in_thread(functools.partial(context.run, get_current_run_id)) == "copied"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(context.run, get_current_run_id).result(DEADLINE) == "copied"
        assert pool.submit(get_current_run_id).result(DEADLINE) is None
    assert in_fresh_context(get_current_run_id) is None
    assert get_current_run_id() == "later"


def test_to_thread_carries_and_an_executor_does_not() -> None:
    """``asyncio.to_thread`` copies the context and carries the run; ``run_in_executor`` copies nothing."""

    async def one(name: str) -> tuple[Any, Any]:
        set_current_run_id(name)
        carried = await asyncio.to_thread(get_current_run_id)
        loop = asyncio.get_running_loop()
        return carried, await loop.run_in_executor(None, get_current_run_id)

    async def main() -> Any:
        return await asyncio.gather(*(one(str(n)) for n in range(10)))

    assert run(main()) == [(str(n), None) for n in range(10)]


def test_the_legacy_functions_act_on_the_current_run() -> None:
    """They register, find and check for the run of this context, and do nothing without one."""
    run_id = new_id()

    def callback(_event: object) -> None:
        """Do nothing."""

    set_global_event_callback(callback)
    set_global_cancellation_checker(callback)
    check_cancellation()
    assert (get_global_event_callback(), get_global_cancellation_checker()) == (None, None)
    set_current_run_id(run_id)
    set_global_event_callback(callback)
    assert get_global_event_callback() is get_event_callback(run_id) is callback
    set_global_cancellation_checker(lambda: True)
    with pytest.raises(RunCancelled) as caught:
        check_cancellation()
    assert caught.value.run_id == run_id
    assert in_thread(get_global_event_callback) is None
    in_thread(check_cancellation)
    set_global_event_callback(None)
    set_global_cancellation_checker(None)
    assert (get_global_event_callback(), get_global_cancellation_checker()) == (None, None)


def test_a_current_run_that_is_unhashable_fails_when_it_is_looked_up() -> None:
    """It can be set and read, and is a TypeError as soon as something is registered for it."""
    set_current_run_id([])
    for use in [get_global_event_callback, check_cancellation, get_global_cancellation_checker]:
        with pytest.raises(TypeError, match="unhashable type: 'list'"):
            use()
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        set_global_event_callback(print)


def test_handlers_do_not_look_at_the_current_run() -> None:
    """By default a handler without a run id drops its events, whichever run is current."""
    run_id, got = new_id(), []
    register_event_callback(run_id, got.append)
    set_current_run_id(run_id)
    LLMCallbackHandler(None)(data="x")  # type: ignore[arg-type]
    register_event_callback(run_id, None)
    assert got == []


# --- Inherited contexts, as of free-threaded builds and -X thread_inherit_context=1 ---

# What the threads of 3.14 do (threading.Thread.start and _bootstrap_inner), for older interpreters.
EMULATION = """
import contextvars, sys, threading
from types import SimpleNamespace

flags = {name: getattr(sys.flags, name) for name in dir(sys.flags) if name[0] != "_"}
sys.flags = SimpleNamespace(**flags, thread_inherit_context=FLAG)
start = threading.Thread.start

def inheriting_start(self):
    context = contextvars.copy_context() if FLAG else contextvars.Context()
    self._context, run = context, self.run
    self.run = lambda: context.run(run)
    start(self)

threading.Thread.start = inheriting_start
"""

SCENARIO = """
import asyncio, contextvars, threading
from concurrent.futures import ThreadPoolExecutor
from llm_callback import bind, get_current_run_id, set_current_run_id, clear_current_run_id

probe = contextvars.ContextVar("probe", default=None)
probe.set("inherited")
seen = {}

def on_a_thread(job):
    result = []
    thread = threading.Thread(target=lambda: result.append(job()))
    thread.start()
    thread.join(30)
    return result[0]

def set_and_get(run_id):
    set_current_run_id(run_id)
    return get_current_run_id()

def nested():
    # A thread's own run, and a thread that it starts.
    return set_and_get("own"), on_a_thread(get_current_run_id)

def copied_and_cleared():
    context = contextvars.copy_context()
    context.run(clear_current_run_id)
    return context.run(get_current_run_id)

async def in_a_task():
    set_current_run_id("task")
    return await asyncio.to_thread(get_current_run_id)

async def in_an_inherited_task():
    return get_current_run_id()

def inside_the_inherited():
    # A context that is copied inside a thread from what it inherited, and entered there.
    return contextvars.copy_context().run(get_current_run_id)

set_current_run_id("A")
copied = contextvars.copy_context()
seen["inherits"] = on_a_thread(probe.get) == "inherited"
seen["starter"] = get_current_run_id()
seen["thread"] = on_a_thread(get_current_run_id)
seen["again"] = on_a_thread(lambda: [get_current_run_id() for _ in range(3)])
seen["own"] = on_a_thread(lambda: set_and_get("B"))
seen["nested"] = on_a_thread(nested)
seen["copied"] = on_a_thread(lambda: copied.run(get_current_run_id))
seen["bound"] = on_a_thread(bind(get_current_run_id))
seen["after bound"] = on_a_thread(lambda: (bound_inside(), get_current_run_id())) if (
    bound_inside := bind(get_current_run_id)) else None
seen["cleared"] = on_a_thread(lambda: (clear_current_run_id(), get_current_run_id())[1])
seen["copied and cleared"] = on_a_thread(copied_and_cleared)
seen["to_thread"] = asyncio.run(in_a_task())
timer = threading.Timer(0, lambda: seen.update(timer=get_current_run_id()))
timer.start()
timer.join(30)
with ThreadPoolExecutor(1) as pool:
    # Its one worker is started under run A, and works for B and C too.
    for run_id in "ABC":
        set_current_run_id(run_id)
        context = contextvars.copy_context()
        seen[f"pool {run_id}"] = pool.submit(get_current_run_id).result(30)
        seen[f"pool copied {run_id}"] = pool.submit(context.run, get_current_run_id).result(30)
        seen[f"pool bound {run_id}"] = pool.submit(bind(get_current_run_id)).result(30)
    seen["pool after"] = pool.submit(get_current_run_id).result(30)
set_current_run_id("A")
seen["main after"] = get_current_run_id()
print(seen)
"""

EXPECTED = {
    "starter": "A",
    "thread": None,
    "again": [None, None, None],
    "own": "B",
    "nested": ("own", None),
    "copied": "A",
    "bound": "A",
    "after bound": ("A", None),
    "cleared": None,
    "copied and cleared": None,
    "to_thread": "task",
    "timer": None,
    **{f"pool {run_id}": None for run_id in "ABC"},
    **{f"pool copied {run_id}": run_id for run_id in "ABC"},
    **{f"pool bound {run_id}": run_id for run_id in "ABC"},
    "pool after": None,
    "main after": "A",
}


def seen_with(flag: int, scenario: str = SCENARIO) -> Any:
    """Return what the scenario prints where threads inherit their starter's context, or do not."""
    if sys.version_info >= (3, 14):
        return eval(printed(scenario, "-X", f"thread_inherit_context={flag}"))  # noqa: S307
    return eval(printed(EMULATION.replace("FLAG", str(flag)) + scenario))  # noqa: S307


@pytest.mark.parametrize("flag", [0, 1], ids=["threads start empty", "threads inherit"])
def test_an_inherited_run_is_not_believed(flag: int) -> None:
    """A thread sees only what was set in it, copied or bound on purpose, whatever the interpreter hands down."""
    assert seen_with(flag) == {"inherits": bool(flag), **EXPECTED}


def test_without_the_distrust_an_inherited_run_would_be_seen() -> None:
    """The scenario can fail: a plain ContextVar sees the run of whoever made the pool start its worker."""
    plain = """
    import contextvars, sys, types
    variable = contextvars.ContextVar("plain", default=None)
    sys.modules["llm_callback"] = stand_in = types.ModuleType("llm_callback")
    stand_in.get_current_run_id = variable.get
    stand_in.set_current_run_id = lambda run_id: (variable.set(run_id), None)[1]
    stand_in.clear_current_run_id = lambda: (variable.set(None), None)[1]
    stand_in.bind = lambda function: lambda run_id=variable.get(): (variable.set(run_id), function())[1]
    """
    seen = seen_with(1, textwrap.dedent(plain) + SCENARIO)
    assert {key for key, value in EXPECTED.items() if seen[key] != value} >= {
        "thread",
        "again",
        "pool A",
        "pool B",
        "pool C",
    }


def test_the_probe_leaves_nothing_in_the_context() -> None:
    """Asking whether a context was inherited changes no variable that others can see."""
    scenario = """
import contextvars, threading
from llm_callback import get_current_run_id, set_current_run_id

def job():
    before = dict(contextvars.copy_context())
    assert get_current_run_id() is None
    after = dict(contextvars.copy_context())
    result.append(before == after or {v.name for v in after.keys() - before.keys()})

result = []
set_current_run_id("A")
thread = threading.Thread(target=job)
thread.start()
thread.join(30)
print(result)
"""
    assert seen_with(1, scenario) == [True]


# --- bind() ---


def test_bind_carries_the_run_of_now() -> None:
    """A bound function runs under the run that was current when it was bound, on any thread, often."""
    set_current_run_id("bound")
    function = bind(get_current_run_id)
    set_current_run_id("later")
    assert [function(), in_thread(function), in_thread(function)] == ["bound"] * 3
    assert together([function] * 8) == ["bound"] * 8
    assert get_current_run_id() == "later"


def test_bind_leaves_nothing_behind() -> None:
    """After a bound call the thread has the run that it had before, also none, also after an exception."""
    set_current_run_id("bound")

    def fail() -> None:
        assert get_current_run_id() == "bound"
        set_current_run_id("inside")
        raise KeyboardInterrupt

    function = bind(fail)

    def job(before: Any) -> Any:
        set_current_run_id(before)
        with pytest.raises(KeyboardInterrupt):
            function()
        return get_current_run_id()

    assert in_thread(functools.partial(job, None)) is None
    assert in_thread(functools.partial(job, "mine")) == "mine"


def test_bind_without_a_run_runs_without_one() -> None:
    """What was bound where no run was current does not see the run of its caller."""
    function = bind(get_current_run_id)
    set_current_run_id("caller")
    assert function() is None
    assert get_current_run_id() == "caller"


def test_bind_passes_arguments_results_and_names() -> None:
    """A bound function looks and answers like the one inside, methods and partials included."""

    def function(a: int, *b: int, c: int = 3, **d: int) -> Any:
        """Say what was passed."""
        return a, b, c, d

    bound = bind(function)
    assert bound(1, 2, c=4, e=5) == (1, (2,), 4, {"e": 5})
    assert (bound.__name__, bound.__doc__) == ("function", "Say what was passed.")
    assert bound.__wrapped__ is function  # type: ignore[attr-defined]
    assert bind("x".join)(["a", "b"]) == "axb"
    assert bind(functools.partial(function, 1))(c=2) == (1, (), 2, {})
    assert bind(copy.copy)([1]) == [1]


def test_bind_nests() -> None:
    """Each bound function has its own run, and gives the outer one its own back."""
    functions = []
    for name in "abc":
        set_current_run_id(name)
        inner = functions[-1] if functions else get_current_run_id
        functions.append(
            bind(lambda inner=inner: (get_current_run_id(), inner(), get_current_run_id()))
        )
    clear_current_run_id()
    assert functions[-1]() == ("c", ("b", ("a", "a", "a"), "b"), "c")
    assert get_current_run_id() is None


def test_bind_carries_into_a_coroutine() -> None:
    """A bound coroutine function has its run across awaits, and restores its task's, also after an exception."""
    set_current_run_id("bound")

    async def inner(fail: bool) -> Any:
        seen = [get_current_run_id()]
        await asyncio.sleep(0)
        seen.append(get_current_run_id())
        set_current_run_id("inside")
        if fail:
            raise LookupError(seen)
        return seen

    bound = bind(inner)

    async def task(name: str) -> Any:
        set_current_run_id(name)
        try:
            seen = await bound(name == "fails")
        except LookupError as error:
            (seen,) = error.args
        return seen, get_current_run_id()

    async def main() -> Any:
        clear_current_run_id()
        return await asyncio.gather(task("one"), task("fails")), get_current_run_id()

    assert inspect.iscoroutinefunction(bound)
    results, after = in_thread(lambda: run(main()))
    assert results == [(["bound", "bound"], "one"), (["bound", "bound"], "fails")]
    assert after is None


def test_bind_restores_after_a_coroutine_that_is_closed() -> None:
    """A bound coroutine that ends while it waits gives back the run that was there before."""
    set_current_run_id("bound")

    async def waits() -> None:
        await asyncio.Event().wait()

    bound = bind(waits)

    async def main() -> Any:
        set_current_run_id("mine")
        coroutine = bound()
        coroutine.send(None)
        inside = get_current_run_id()
        coroutine.close()
        return inside, get_current_run_id()

    assert in_thread(lambda: run(main())) == ("bound", "mine")


def generator() -> Iterator[int]:
    """Yield once."""
    yield 1


async def async_generator() -> Any:
    """Yield once, asynchronously."""
    yield 1


@pytest.mark.parametrize("function", [generator, async_generator, functools.partial(generator)])
def test_bind_refuses_generator_functions(function: Any) -> None:
    """Their bodies run later, in their consumer's context: a TypeError that says what to do instead."""
    with pytest.raises(TypeError, match="bind what consumes it"):
        bind(function)


def test_a_bound_function_that_stops_an_iteration() -> None:
    """StopIteration passes through like any other exception."""
    with pytest.raises(StopIteration):
        bind(functools.partial(next, iter(())))()


def test_a_bound_function_carries_cancellation() -> None:
    """Code that only knows the current run is cancelled with its run in a pool's thread too."""
    run_id = new_id()
    cancel = threading.Event()
    register_cancellation_checker(run_id, cancel.is_set)
    set_current_run_id(run_id)
    check = bind(check_cancellation)
    clear_current_run_id()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(check).result(DEADLINE)
        cancel.set()
        with pytest.raises(RunCancelled) as caught:
            pool.submit(check).result(DEADLINE)
        pool.submit(check_cancellation).result(DEADLINE)
    register_cancellation_checker(run_id, None)
    assert caught.value.run_id == run_id


def test_the_view_of_the_current_run_is_by_thread() -> None:
    """``_current_run_id`` maps this thread's ident to its run, as the original's dict did, and no other's."""
    set_current_run_id("mine")
    assert _current_run_id == {threading.get_ident(): "mine"}
    assert in_thread(lambda: dict(_current_run_id)) == {}
