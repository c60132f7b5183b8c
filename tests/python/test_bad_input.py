"""Bad input and bad moments: each has one outcome, which is never a panic, a hang or a leak."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import llm_callback
from llm_callback import (
    CallerContext,
    LLMCallbackHandler,
    RunCancelled,
    create_callback_handler,
    get_cancellation_checker,
    get_event_callback,
    register_cancellation_checker,
    register_event_callback,
    set_current_run_id,
)
from support import in_thread, interpreter, new_id, printed, word, worker

if TYPE_CHECKING:
    from collections.abc import Callable

SURROGATE = "\ud800 and \udfff"
HUGE = 10 * 1024 * 1024


def forget(run_id: Any) -> None:
    """Take what is registered for the run away."""
    register_event_callback(run_id, None)
    register_cancellation_checker(run_id, None)


def handler_of(got: list[Any], **options: Any) -> LLMCallbackHandler:
    """Return a handler that appends its events."""
    return LLMCallbackHandler(worker(), got.append, **options)


# --- Run ids ---


class SetLike(set):  # type: ignore[type-arg]
    """Unhashable, under a name of its own."""


@pytest.mark.parametrize(
    "run_id", [[], {}, set(), bytearray(), SetLike(), ([],), slice(1)], ids=repr
)
def test_an_unhashable_id_is_a_type_error(run_id: Any) -> None:
    """The text is Python's own, and the handler that has such an id can be made but not called."""
    try:
        hash(run_id)
    except TypeError as error:
        text = str(error)
    else:
        pytest.skip("hashable in this Python")
    uses: list[Callable[[], Any]] = [
        partial(register_event_callback, run_id, print),
        partial(register_event_callback, run_id, None),
        partial(register_cancellation_checker, run_id, print),
        partial(register_cancellation_checker, run_id, None),
        partial(get_event_callback, run_id),
        partial(get_cancellation_checker, run_id),
        LLMCallbackHandler(worker(), run_id=run_id),
        LLMCallbackHandler(worker(), print, run_id=run_id),
    ]
    for use in uses:
        with pytest.raises(TypeError) as caught:
            use()
        assert (type(caught.value), str(caught.value)) == (TypeError, text)


class HashRaises:
    """An id whose hash fails."""

    def __hash__(self) -> int:
        raise ArithmeticError


class HashIsNoNumber:
    """An id whose hash is no number."""

    def __hash__(self) -> int:
        return "hash"  # type: ignore[return-value]  # noqa: PLE0309 - that is the point


@pytest.mark.parametrize(
    ("run_id", "error"), [(HashRaises(), ArithmeticError), (HashIsNoNumber(), TypeError)]
)
def test_an_id_that_cannot_be_hashed_raises_what_it_raises(run_id: Any, error: type) -> None:
    """What the id's own code raises passes through."""
    for use in [get_event_callback, partial(register_event_callback, callback=print)]:
        with pytest.raises(error):
            use(run_id)
    with pytest.raises(error):
        LLMCallbackHandler(worker(), run_id=run_id)(data="x")


class Text(str):
    """A str that is not exactly one."""

    __slots__ = ()


class Liar(str):
    """A str with the hash of its text that is equal to nothing."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Always:
    """An id with the hash of 1 that is equal to everything."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return True


NAN = float("nan")
IDS = [
    SURROGATE,
    Text(SURROGATE),
    Text("text"),
    Liar("liar"),
    "",
    "a" * HUGE,
    "\0",
    2**80,
    -(2**80),
    2**63,
    -(2**63),
    2**61 - 1,
    2**61 - 2,
    1 - 2**61,
    -1,
    -2,
    True,
    1.5,
    NAN,
    float("inf"),
    -0.0,
    1 + 0j,
    1j,
    b"bytes",
    (),
    ("a", 1),
    frozenset({1}),
    object(),
    Ellipsis,
    int,
    len,
    Always(),
]


@pytest.mark.thread_unsafe(reason="the ids are not the test's own")
@pytest.mark.parametrize("run_id", IDS, ids=lambda run_id: ascii(run_id)[:20])
def test_any_hashable_is_an_id(run_id: Any) -> None:
    """It is found under itself, shown by the views, emitted for, and gone when it is removed."""
    got: list[Any] = []
    register_event_callback(run_id, got.append)
    register_cancellation_checker(run_id, bool)
    LLMCallbackHandler(worker(), run_id=run_id)(data="x")
    assert get_cancellation_checker(run_id) is bool
    assert run_id in llm_callback._callback_registry
    assert list(llm_callback._checker_registry) == [run_id] or run_id is NAN
    register_cancellation_checker(run_id, lambda: True)
    with pytest.raises(RunCancelled) as caught:
        LLMCallbackHandler(worker(), run_id=run_id)(data="y")
    assert caught.value.run_id is run_id
    forget(run_id)
    assert (get_event_callback(run_id), get_cancellation_checker(run_id)) == (None, None)
    assert run_id not in llm_callback._callback_registry
    assert [word(event) for event in got] == [("stream", "x")]


@pytest.mark.thread_unsafe(reason="the ids are not the test's own")
def test_ids_are_one_where_a_dict_has_one_key() -> None:
    """All ids registered at once are told apart, or not, exactly as the keys of a dict are."""
    twins: list[Any] = [
        Text("text"),
        "text",
        1,
        1.0,
        True,
        1 + 0j,
        0,
        -0.0,
        False,
        float(2**80),
        2.0**61,
    ]
    ids = [run_id for run_id in IDS if not isinstance(run_id, Always)] + twins
    expected: dict[Any, Any] = {}
    for number, run_id in enumerate(ids):
        expected[run_id] = number
        register_event_callback(run_id, number)  # type: ignore[arg-type]
    found = [get_event_callback(run_id) for run_id in ids]
    view = dict(llm_callback._callback_registry)
    for run_id in ids:
        forget(run_id)
    assert found == [expected[run_id] for run_id in ids]
    assert view == expected


# --- Things that are no callbacks ---


@pytest.mark.parametrize(
    "thing", [1, "text", [1], pytest.param(object(), id="object"), CallerContext], ids=repr
)
def test_a_thing_that_cannot_be_called_is_stored_and_fails_when_it_is_called(thing: Any) -> None:
    """Registering checks nothing; the first event raises what calling the thing raises."""
    run_id = new_id()
    register_event_callback(run_id, thing)
    register_cancellation_checker(run_id, None)
    assert get_event_callback(run_id) is thing
    with pytest.raises(TypeError):
        LLMCallbackHandler(worker(), run_id=run_id)(data="x")
    with pytest.raises(TypeError):
        LLMCallbackHandler(worker(), thing)(data="x")
    register_event_callback(run_id, None)
    register_cancellation_checker(run_id, thing)
    assert get_cancellation_checker(run_id) is thing
    with pytest.raises(TypeError):
        LLMCallbackHandler(worker(), run_id=run_id)(data="x")
    forget(run_id)


@pytest.mark.parametrize("thing", [0, "", [], False])
def test_a_false_callback_is_never_called(thing: Any) -> None:
    """It is stored, hides the registry's, and drops everything; a false checker never cancels."""
    run_id, got = new_id(), []
    register_event_callback(run_id, thing)
    register_cancellation_checker(run_id, thing)
    assert get_event_callback(run_id) is get_cancellation_checker(run_id) is thing
    LLMCallbackHandler(worker(), run_id=run_id)(data="x")
    register_event_callback(run_id, got.append)
    LLMCallbackHandler(worker(), thing, run_id=run_id)(data="x")
    forget(run_id)
    assert got == []


# --- Wrong arguments ---


CALLS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (register_event_callback, (), {}),
    (register_event_callback, ("a",), {}),
    (register_event_callback, ("a", print, 1), {}),
    (register_event_callback, ("a",), {"call": print}),
    (register_event_callback, ("a", print), {"run_id": "b"}),
    (get_event_callback, (), {}),
    (get_event_callback, ("a", "b"), {}),
    (get_event_callback, (), {"id": 1}),
    (register_cancellation_checker, ("a",), {}),
    (get_cancellation_checker, (), {"checker": 1}),
    (set_current_run_id, (), {}),
    (set_current_run_id, (1, 2), {}),
    (llm_callback.get_current_run_id, (1,), {}),
    (llm_callback.clear_current_run_id, (1,), {}),
    (llm_callback.set_global_event_callback, (), {}),
    (llm_callback.get_global_event_callback, (1,), {}),
    (llm_callback.set_global_cancellation_checker, (), {"callback": 1}),
    (llm_callback.get_global_cancellation_checker, (), {"run_id": 1}),
    (llm_callback.check_cancellation, (1,), {}),
    (create_callback_handler, (), {}),
    (create_callback_handler, (1, 2, 3, 4, 5), {}),
    (create_callback_handler, (1,), {"caller_context": 1}),
    (create_callback_handler, (1,), {"verbos": 1}),
    (LLMCallbackHandler, (), {}),
    (LLMCallbackHandler, (1, 2, 3, 4, 5), {}),
    (LLMCallbackHandler, (1,), {"self": 1}),
    (LLMCallbackHandler, (1,), {SURROGATE: 1}),
    (LLMCallbackHandler(worker()), (1,), {}),
    (LLMCallbackHandler(worker()), (), {"self": 1}),
    (LLMCallbackHandler(worker()), ("data",), {"data": "x"}),
    (LLMCallbackHandler(worker())._emit_event, (print,), {}),
    (LLMCallbackHandler(worker())._emit_event, (1, 2, 3, 4, 5), {}),
    (llm_callback.stats, (1,), {}),
    (llm_callback.bind, (), {}),
]


@pytest.mark.parametrize(("function", "args", "kwargs"), CALLS)
def test_wrong_arguments_are_a_type_error(function: Any, args: Any, kwargs: Any) -> None:
    """A missing, further, unknown or doubled argument is a plain TypeError, and nothing was registered."""
    with pytest.raises(TypeError) as caught:
        function(*args, **kwargs)
    assert type(caught.value) is TypeError
    assert str(caught.value)
    assert get_event_callback("a") is None


def test_any_further_keyword_is_ignored() -> None:
    """What a framework may send besides is no error, whatever its name: only ``self`` is taken."""
    got: list[Any] = []
    handler = handler_of(got)
    handler(**{"slf": 1, "handler": 2, "args": 3, "kwargs": 4, "": 5, SURROGATE: 6, "data": "x"})
    with pytest.raises(TypeError, match="multiple values for argument 'self'"):
        handler(self=1, data="y")
    assert [word(event) for event in got] == [("stream", "x")]
    assert handler._buffer == ["x"]


@pytest.mark.parametrize(
    "context", [None, 1, pytest.param(object(), id="object"), "text"], ids=repr
)
def test_a_context_without_attributes_fails_at_the_first_event(context: Any) -> None:
    """A handler can be made for anything; an event needs ``to_source_dict`` and says so."""
    got: list[Any] = []
    handler = LLMCallbackHandler(context, got.append)
    with pytest.raises(AttributeError, match="to_source_dict"):
        handler(data="x")
    handler.caller_context = worker()
    handler(data="y")
    assert [word(event) for event in got] == [("stream", "y")]


@pytest.mark.parametrize("name", ["agent_id", "agent_type", "agent_name"])
def test_a_context_that_lost_an_attribute_fails_by_its_name(name: str) -> None:
    """What is missing in a ``CallerContext`` is named, and other handlers are not harmed."""
    context = worker()
    delattr(context, name)
    with pytest.raises(AttributeError, match=name):
        LLMCallbackHandler(context, print)(data="x")
    assert worker().to_source_dict()[name]


def test_a_context_whose_type_is_unhashable_or_strange_is_passed_on() -> None:
    """An agent type that is no ``AgentType`` goes into the event as it is."""
    for strange in [[], 1, None, SURROGATE]:
        got: list[Any] = []
        context = CallerContext("a", strange, "A")  # type: ignore[arg-type]
        LLMCallbackHandler(context, got.append)(data="x")
        assert got[0]["source"]["agent_type"] is strange


# --- Payloads ---


@pytest.mark.parametrize(
    "text", [SURROGATE, "\ud800" * 3, "x\0y", "\U0010ffff", "a\udc80"], ids=ascii
)
def test_a_text_with_lone_surrogates_passes_as_it_is(text: str) -> None:
    """Tokens, reasoning, tool names and the words of a context reach the callback as the very objects."""
    got: list[Any] = []
    handler = LLMCallbackHandler(CallerContext.worker(text, text, text), got.append, run_id=text)
    handler(reasoningText=text, data=text, current_tool_use={"name": text})
    assert [event["data"].get("content", text) is text for event in got] == [True] * 3
    assert got[2]["data"]["tool_name"] is text
    assert got[0]["source"] == worker().to_source_dict() | {
        "agent_id": text,
        "agent_name": text,
        "team_name": text,
    }
    with pytest.raises(AttributeError):
        getattr(handler, text)
    setattr(handler, text, 1)
    assert getattr(handler, text) == 1
    delattr(handler, text)
    assert text not in vars(handler)


@pytest.mark.parametrize("unit", ["x", "ü", "\u3042", "\U0001f30a", "\ud800"], ids=ascii)
def test_a_huge_token_is_not_copied(unit: str) -> None:
    """Ten million characters arrive as the same object, in the event and in the buffer."""
    token, got = unit * HUGE, []
    handler = handler_of(got)
    handler(data=token, reasoningText=token)
    assert got[0]["data"]["content"] is got[1]["data"]["content"] is handler._buffer[0] is token


def test_a_huge_blank_token_is_dropped() -> None:
    """Ten million blanks are still blank, and one letter at their end is enough not to be."""
    got: list[Any] = []
    handler_of(got)(data=" " * HUGE)
    assert got == []
    handler_of(got)(data="\u3000" * HUGE + "x")
    assert len(got) == 1


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"data": 1}, AttributeError),
        ({"data": object()}, AttributeError),
        ({"data": ["x"]}, AttributeError),
        ({"current_tool_use": 1}, AttributeError),
        ({"current_tool_use": "text"}, AttributeError),
        ({"current_tool_use": ["name"]}, AttributeError),
    ],
)
def test_a_payload_of_a_wrong_type_raises_and_the_handler_stays_usable(
    kwargs: dict[str, Any], error: type[Exception]
) -> None:
    """The error is the one of the operation that failed, and the next call is as if nothing had been."""
    got: list[Any] = []
    handler = handler_of(got)
    with pytest.raises(error) as caught:
        handler(**kwargs)
    assert type(caught.value) is error
    handler(data="x")
    assert [word(event) for event in got] == [("stream", "x")]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("tool_count", "text", TypeError),
        ("tool_count", None, TypeError),
        ("_buffer", None, AttributeError),
        ("_buffer", 1, AttributeError),
        ("run_id", [], TypeError),
        ("event_callback", 1, TypeError),
        ("caller_context", None, AttributeError),
    ],
)
def test_a_bad_attribute_fails_where_it_is_used(name: str, value: Any, error: type) -> None:
    """Any object can be assigned; the call that needs another raises, and one put right is right."""
    got: list[Any] = []
    handler = handler_of(got)
    good = getattr(handler, name)
    setattr(handler, name, value)
    assert getattr(handler, name) is value
    with pytest.raises(error):
        handler(data="x", current_tool_use={"name": "t"})
    setattr(handler, name, good)
    handler(data="y", current_tool_use={"name": "u"})
    assert [word(event) for event in got][-2:-1] == [("stream", "y")]


def test_a_tool_count_may_grow_beyond_every_machine_integer() -> None:
    """It is a Python int."""
    got: list[Any] = []
    handler = handler_of(got)
    handler.tool_count = 2**80
    handler(current_tool_use={"name": "t"})
    assert handler.tool_count == got[0]["data"]["tool_count"] == 2**80 + 1


# --- What callbacks raise ---


class OwnError(Exception):
    """An exception of the host's."""


class OwnBaseError(BaseException):
    """One that ``except Exception`` does not catch."""


RAISED = [
    Exception("e"),
    BaseException("b"),
    StopIteration(1),
    StopAsyncIteration(),
    GeneratorExit(),
    KeyboardInterrupt(),
    SystemExit(3),
    MemoryError(),
    RecursionError(),
    OwnError("o"),
    OwnBaseError("o"),
    RunCancelled("other"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, SURROGATE),
    Exception(SURROGATE),
]


@pytest.mark.parametrize("error", RAISED, ids=repr)
@pytest.mark.parametrize("where", ["registered", "explicit", "checker", "context", "overridden"])
def test_what_user_code_raises_passes_through(error: BaseException, where: str) -> None:
    """The very object reaches the caller, the rest of the call is skipped, and the handler stays usable."""
    run_id, got, fails = new_id(), [], [True]

    def fail(*_: object) -> None:
        if fails:
            raise error

    def callback(event: dict[str, Any]) -> None:
        if where in ("registered", "explicit"):
            fail()
        got.append(word(event))

    class Context(CallerContext):
        def to_source_dict(self) -> dict[str, str | None]:
            fail()
            return super().to_source_dict()

    class Overridden(LLMCallbackHandler):
        def _emit_event(self, *args: Any) -> None:
            fail()
            super()._emit_event(*args)

    handler = (Overridden if where == "overridden" else LLMCallbackHandler)(
        Context.worker("w", "W", "T") if where == "context" else worker(),
        callback if where == "explicit" else None,
        run_id=run_id,
    )
    register_event_callback(run_id, callback)
    register_cancellation_checker(run_id, fail if where == "checker" else bool)
    before = error.__traceback__
    with pytest.raises(type(error)) as caught:
        handler(reasoningText="a", data="b", complete=True)
    assert caught.value is error
    error.__traceback__ = before
    assert (got, handler._buffer) == ([], [])
    fails.clear()
    handler(reasoningText="a", data="b")
    forget(run_id)
    assert got == [("reasoning", "a"), ("stream", "b")]


def test_a_callback_that_calls_its_handler_for_ever_is_a_recursion_error() -> None:
    """Python's own limit ends it, not the machine's stack; the handler stays usable."""
    got: list[Any] = []
    handler = LLMCallbackHandler(worker())

    def again(_event: object) -> None:
        handler(data="x")

    handler.event_callback = again
    with pytest.raises(RecursionError):
        in_thread(partial(handler, data="x"))
    handler.event_callback = got.append
    handler(data="y")
    assert len(got) == 1


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_handler_that_is_its_own_callback(depth: int) -> None:
    """Events are no keyword arguments: a handler as a callback is a TypeError, not a loop."""
    handler: Any = LLMCallbackHandler(worker())
    handler.event_callback = handler
    for _ in range(depth):
        handler = LLMCallbackHandler(worker(), handler)
    with pytest.raises(TypeError, match="positional argument"):
        handler(data="x")


# --- The interpreter's end ---

HEAD = """
import atexit, sys, threading
import llm_callback as m
from llm_callback import *

worker = CallerContext.worker("w", "W", "T")
run_id = RUN_ID
cancel = threading.Event()

def use():
    got = []
    register_event_callback(run_id, got.append)
    register_cancellation_checker(run_id, cancel.is_set)
    handler = create_callback_handler(worker, run_id=run_id)
    handler(reasoningText="a", data="b", current_tool_use={"name": "t"}, complete=True)
    assert len(got) == 4, got
    assert get_event_callback(run_id) is not None
    set_current_run_id(run_id)
    check_cancellation()
    clear_current_run_id()
    stats()
    register_event_callback(run_id, None)
    register_cancellation_checker(run_id, None)
    return len(got)
"""

run_ids = pytest.mark.parametrize("run_id", ["'run'", "('run', 1)"], ids=["str", "tuple"])


def ends(code: str, run_id: str = "'run'") -> str:
    """Return what a program prints that must end well, at once and without a word of complaint."""
    return printed(HEAD.replace("RUN_ID", run_id) + code)


@run_ids
def test_registrations_may_stay_until_the_end(run_id: str) -> None:
    """A program that never cleans up ends well."""
    ends(
        """
class Callback:
    def __call__(self, event): pass
    def __del__(self): pass

for name in ["a", ("b",), 1]:
    register_event_callback(name, Callback())
    register_cancellation_checker(name, Callback())
handler = LLMCallbackHandler(worker, Callback(), run_id=run_id)
handler.itself = handler
handler(data="x")
set_current_run_id("a")
""",
        run_id,
    )


@run_ids
def test_everything_works_in_atexit(run_id: str) -> None:
    """Exit handlers of the host may still register, emit and look up."""
    assert ends("atexit.register(lambda: print(use()))", run_id) == "4\n"


@run_ids
def test_a_first_use_in_atexit_works(run_id: str) -> None:
    """Nothing that is made on first use depends on having been used before the end began."""
    code = "atexit.register(lambda: print(use()))\n"
    assert ends(code + "assert m.stats()['emitted'] == 0", run_id) == "4\n"


@run_ids
@pytest.mark.parametrize("used_before", [False, True])
def test_module_teardown_may_use_it(run_id: str, used_before: bool) -> None:
    """An object that dies with its module may still register, emit and look up, for the first time too."""
    code = """
class Last:
    def __init__(self): self.use = use
    def __del__(self, print=print): print(self.use())

last = Last()
last.itself = last
"""
    assert ends(code + ("use()" if used_before else ""), run_id) == "4\n"


@run_ids
@pytest.mark.parametrize("used_before", [False, True])
def test_a_use_after_the_modules_are_gone_works_or_raises(run_id: str, used_before: bool) -> None:
    """The last object of all finds no modules: what it calls works, or raises an ordinary exception."""
    code = f"""
import os

class Last:
    def __del__(self, uses=[
        lambda r=register_event_callback: r({run_id}, len),
        lambda r=register_cancellation_checker: r({run_id}, bool),
        lambda g=get_event_callback: g({run_id}),
        lambda c=create_callback_handler, w=worker: c(w, len, run_id={run_id})(data="x", complete=True),
        lambda c=create_callback_handler, w=worker: c(w, len)(current_tool_use={{"name": "x"}}),
        lambda c=LLMCallbackHandler, w=worker: vars(c(w, len, run_id={run_id})),
        lambda c=LLMCallbackHandler: c(),
        lambda s=set_current_run_id, g=get_current_run_id, c=check_cancellation: (s({run_id}), g(), c()),
        lambda s=stats: s(),
        lambda v=m._callback_registry: (list(v), len(v), repr(v)),
        lambda b=bind: b(len)(""),
        lambda r=register_event_callback: r({run_id}, None),
    ], write=os.write, Exception=Exception):
        for use in uses:
            try:
                use()
            except Exception:
                pass
            write(1, b".")

sys.last = Last()
"""
    assert ends(code + ("use()" if used_before else ""), run_id) == "." * 12


@run_ids
def test_a_destructor_of_a_registered_callback_may_use_it_at_the_end(run_id: str) -> None:
    """A callback that is still registered when the interpreter ends does no harm when it dies."""
    ends(
        """
class Callback:
    def __call__(self, event): pass
    def __del__(self, handler=LLMCallbackHandler(worker, len, run_id=run_id),
                register=register_event_callback, get=get_event_callback):
        handler(data="x")
        register("late", len)
        get(("late", 1))

register_event_callback(run_id, Callback())
register_event_callback("other", Callback())
handler = LLMCallbackHandler(worker, Callback())
handler.itself = handler
thread = threading.Thread(target=set_current_run_id, args=[Callback()])
thread.start()
thread.join()
set_current_run_id(Callback())
""",
        run_id,
    )


# Keeps the interpreter at its end for a while, in which daemon threads come to wait for the GIL in vain.
LONG_END = """
class LongEnd:
    def __del__(self, sleep=__import__("time").sleep): sleep(0.2)

sys.long_end = LongEnd()
"""


@run_ids
@pytest.mark.parametrize(
    "end", ["", "atexit.register(use)", LONG_END], ids=["short", "atexit", "long"]
)
def test_daemon_threads_may_emit_while_the_interpreter_ends(run_id: str, end: str) -> None:
    """Threads that are still calling handlers when the program ends neither crash it nor keep it."""
    code = """
started = threading.Barrier(5)

def job(number):
    name = (number, run_id) if number % 2 else str(number)
    shared = create_callback_handler(worker, run_id=("shared", run_id))
    first = True
    while True:
        register_event_callback(name, lambda event: sum(range(50)))
        create_callback_handler(worker, run_id=name)(data="x", current_tool_use={"name": "t"})
        shared(data="x", complete=True)
        register_event_callback(name, None)
        if first:
            first = False
            started.wait(30)

register_event_callback(("shared", run_id), lambda event: None)
for number in range(4):
    threading.Thread(target=job, args=[number], daemon=True).start()
started.wait(30)
"""
    for _ in range(3):
        ends(code + end, run_id)


INSIDE = {
    "callback": "LLMCallbackHandler(worker, go_on)(data='x')",
    "checker": "register_cancellation_checker(1, go_on); LLMCallbackHandler(worker, run_id=1)(data='x')",
    "legacy": "register_cancellation_checker(1, go_on); set_current_run_id(1); check_cancellation()",
    "override": """
    class Handler(LLMCallbackHandler):
        def _emit_event(self, *args): go_on()
    Handler(worker, print)(data="x")""",
    "overridden": """
    class Handler(LLMCallbackHandler):
        def _emit_event(self, *args): super()._emit_event(*args)
    Handler(worker, go_on)(data="x")""",
    "property": """
    class Handler(LLMCallbackHandler):
        @property
        def run_id(self): go_on()
        @run_id.setter
        def run_id(self, value): pass
    Handler(worker)(data="x")""",
    "context": """
    class Context(CallerContext):
        def to_source_dict(self): go_on()
    LLMCallbackHandler(Context("w", "W", "T"), print)(data="x")""",
    "token": """
    class Token:
        def strip(self): go_on()
    LLMCallbackHandler(worker, print)(data=Token())""",
    "id": """
    class Id:
        def __hash__(self): go_on()
    register_event_callback(Id(), print)""",
    "destructor": """
    class Callback:
        def __del__(self): go_on()
    register_event_callback(1, Callback())
    register_event_callback(1, None)""",
    "attribute": """
    class Handler(LLMCallbackHandler):
        @property
        def extra(self): go_on()
    Handler(worker).extra""",
    "handler": """
    class Callback:
        def __del__(self): go_on()
    handler = LLMCallbackHandler(worker, Callback())
    del handler""",
    "output": """
    class Output:
        write = go_on
        flush = lambda self: None
    sys.stdout = Output()
    LLMCallbackHandler(worker, verbose=True)(data="x")""",
}


@pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE.keys())
@pytest.mark.parametrize("how", ["sleep(0.005)", "pass"], ids=["sleeps", "spins"])
def test_a_daemon_thread_inside_user_code_does_not_crash_the_end(inside: str, how: str) -> None:
    """A thread that Python ends while it is inside a callback, or other user code, takes nothing with it.

    Before 3.14 the thread is unwound by force (``pthread_exit``), which Rust's ``catch_unwind`` answers with abort.
    """
    ends(
        f"""
from time import sleep
inside = threading.Event()

def go_on(*_):
    inside.set()
    while True:
        {how}

def job():
    {inside}

threading.Thread(target=job, daemon=True).start()
assert inside.wait(30)
{LONG_END}
"""
    )


def test_daemon_threads_inside_callbacks_do_not_keep_the_program() -> None:
    """A callback that blocks on a daemon thread is left behind when the program ends."""
    ends(
        """
inside = threading.Event()

def block(event):
    inside.set()
    threading.Event().wait()

register_event_callback(run_id, block)
handler = create_callback_handler(worker, run_id=run_id)
threading.Thread(target=handler, kwargs={"data": "x"}, daemon=True).start()
assert inside.wait(30)
register_event_callback("other", lambda event: print("other", flush=True))
create_callback_handler(worker, run_id="other")(data="x")
"""
    )


def test_an_exit_inside_a_callback_ends_the_program_with_its_status() -> None:
    """``sys.exit`` in a callback is the program's status, and says nothing."""
    code = (
        HEAD.replace("RUN_ID", "1") + "LLMCallbackHandler(worker, lambda _: sys.exit(7))(data='x')"
    )
    done = interpreter(code)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


# --- fork ---

FORK = """
import os, warnings

# Python warns that a fork under threads may deadlock; that ours does not is what is tested.
warnings.simplefilter("ignore", DeprecationWarning)
seen = []
for name in [run_id, "text", 7, ("other", 1)]:
    register_event_callback(name, seen.append)
    register_cancellation_checker(name, lambda: True)
before = stats()

def in_child(job):
    pid = os.fork()
    if pid:
        # A child that hangs must not outlive the test.
        killer = threading.Timer(30, os.kill, [pid, 9])
        killer.daemon = True
        killer.start()
        _, status = os.waitpid(pid, 0)
        killer.cancel()
        assert os.waitstatus_to_exitcode(status) == 0, status
        return
    status = 1
    try:
        job()
        status = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

def empty():
    assert dict(m._callback_registry) == dict(m._checker_registry) == {}
    assert (stats()["callbacks"], stats()["checkers"]) == (0, 0)
    for name in [run_id, "text", 7, ("other", 1)]:
        assert get_event_callback(name) is None and get_cancellation_checker(name) is None

def untouched():
    assert stats() == before, stats()
    assert get_event_callback(run_id) == seen.append
    assert len(m._callback_registry) == len(m._checker_registry) == 4
    assert seen == []
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def forks(code: str, run_id: str = "'run'") -> str:
    """Return what a program prints that registers four runs, and forks with ``in_child``."""
    return ends(FORK + code, run_id)


@needs_fork
@run_ids
def test_a_forked_child_starts_empty_and_works(run_id: str) -> None:
    """The child has none of its parent's registrations, its own work, and the parent keeps its own."""
    code = """
def child():
    empty()
    print(use())
    empty()

in_child(child)
untouched()
in_child(child)
untouched()
"""
    assert forks(code, run_id) == "4\n4\n"


@needs_fork
@run_ids
def test_threads_of_a_forked_child_work(run_id: str) -> None:
    """Eight threads of the child register, emit and remove, and so does a child of the child."""
    code = """
from concurrent.futures import ThreadPoolExecutor

def child():
    def job(number):
        got = []
        name = (number, run_id) if number % 2 else str(number)
        register_event_callback(name, got.append)
        for _ in range(50):
            create_callback_handler(worker, run_id=name)(data="x")
        register_event_callback(name, None)
        return len(got)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(job, range(16), timeout=30)) == [50] * 16
    empty()
    register_event_callback(run_id, print)
    in_child(empty)
    assert get_event_callback(run_id) is print

in_child(child)
untouched()
"""
    forks(code, run_id)


@needs_fork
@run_ids
def test_a_fork_under_threads_that_emit_leaves_no_lock_behind(run_id: str) -> None:
    """However many threads of the parent are in the middle of a call, the child can register and emit."""
    code = """
stop = threading.Event()
started = threading.Barrier(5)

def job(number):
    started.wait(30)
    name = (number, run_id) if number % 2 else str(number)
    while not stop.is_set():
        register_event_callback(name, lambda event: None)
        create_callback_handler(worker, run_id=name)(data="x", current_tool_use={"name": "t"})
        list(m._callback_registry)
        register_event_callback(name, None)

threads = [threading.Thread(target=job, args=[number], daemon=True) for number in range(4)]
for thread in threads:
    thread.start()
started.wait(30)

def child():
    empty()
    use()
    empty()

for _ in range(20):
    in_child(child)
stop.set()
for thread in threads:
    thread.join(30)
assert len(m._callback_registry) == 4
"""
    forks(code, run_id)


@needs_fork
@run_ids
def test_a_fork_during_the_first_use_of_another_thread(run_id: str) -> None:
    """What another thread was about to make for the first time is not missed, nor waited for, in the child."""
    code = """
import builtins, time

found = builtins.__import__
under_way = threading.Event()

def slow_import(name, *rest):
    # Gives up the GIL in the middle of whatever is made on first use.
    if name.partition(".")[0] == "llm_callback":
        under_way.set()
        time.sleep(0.2)
    return found(name, *rest)

def first_use():
    create_callback_handler(worker, seen.append)(data="x", complete=True)
    seen.clear()
    under_way.set()

def child():
    builtins.__import__ = found
    empty()
    use()
    empty()

builtins.__import__ = slow_import
thread = threading.Thread(target=first_use, daemon=True)
thread.start()
assert under_way.wait(30)
in_child(child)
thread.join(30)
assert len(m._callback_registry) == 4
"""
    forks(code, run_id)


@needs_fork
def test_a_fork_inside_a_callback(tmp_path: Any) -> None:
    """A callback may fork: the child finishes the call that it is in, with the callback that was chosen."""
    code = f"""
got = []

def callback(event):
    got.append(event["event"]["action"])
    if len(got) == 1:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        got.append(pid == 0)

register_cancellation_checker(run_id, None)
register_event_callback(run_id, callback)
create_callback_handler(worker, run_id=run_id)(reasoningText="a", data="b")
if got[1]:
    with open({str(tmp_path / "child")!r}, "w") as out:
        print(got, get_event_callback(run_id), file=out)
    os._exit(0)
assert get_event_callback(run_id) is callback
print(got)
"""
    assert forks(code) == "['reasoning', False, 'stream']\n"
    assert (tmp_path / "child").read_text() == "['reasoning', True, 'stream'] None\n"


@needs_fork
def test_a_child_of_multiprocessing_works() -> None:
    """A pool of forked processes, as servers use them, starts with empty registries."""
    code = """
import multiprocessing

def job(number):
    first = len(m._callback_registry)
    return first, use()

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(job, range(4), chunksize=1) == [(0, 4)] * 4
    untouched()
"""
    forks(code)
