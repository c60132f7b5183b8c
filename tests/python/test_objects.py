"""The objects: as the ones of a Python class are, and gone when nobody holds them."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import dataclasses
import enum
import gc
import pickle
import pydoc
import sys
import tracemalloc
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import llm_callback
import reference_model
from llm_callback import (
    AgentType,
    CallerContext,
    EventAction,
    EventCategory,
    LLMCallbackHandler,
    RunCancelled,
    create_callback_handler,
    register_cancellation_checker,
    register_event_callback,
)
from support import in_thread, new_id, printed, word, worker

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = [
    "caller_context",
    "event_callback",
    "verbose",
    "run_id",
    "tool_count",
    "previous_tool_use",
    "_buffer",
]


def ignore(_event: object = None) -> None:
    """Be a callback that pickle can find."""


class Sub(LLMCallbackHandler):
    """A subclass that pickle can find."""


class Thing:
    """Something to refer to weakly."""

    other: Any = None

    def __call__(self, _event: object) -> None:
        """Do nothing."""


CLASSES = pytest.mark.parametrize("cls", [LLMCallbackHandler, Sub, create_callback_handler])


# --- Garbage ---


def through_callback(handler: Any, thing: Thing) -> None:
    """Let the handler hold a callback that holds it."""
    thing.other = handler
    handler.event_callback = thing


def through_buffer(handler: Any, thing: Thing) -> None:
    """Let a token hold the handler."""
    thing.other = handler
    handler._buffer.append(thing)


def through_itself(handler: Any, thing: Thing) -> None:
    """Let the handler hold itself, in its own buffer."""
    thing.other = 1
    handler(data=[thing, handler])


def through_a_further_attribute(handler: Any, thing: Thing) -> None:
    """Let an attribute that is not the class's hold the handler."""
    thing.other = handler
    handler.further = thing


def through_dict(handler: Any, thing: Thing) -> None:
    """Let the handler's own ``__dict__`` hold it."""
    thing.other = vars(handler)
    vars(handler)["itself"] = thing, handler


def through_context(handler: Any, thing: Thing) -> None:
    """Let the context hold the handler."""
    thing.other = handler
    handler.caller_context = thing


def through_tool(handler: Any, thing: Thing) -> None:
    """Let the last tool use hold the handler."""
    thing.other = handler
    handler(current_tool_use={"name": "t", "thing": thing})


def through_run_id(handler: Any, thing: Thing) -> None:
    """Let the run id hold the handler."""
    thing.other = handler
    handler.run_id = thing


def through_bound_method(handler: Any, thing: Thing) -> None:
    """Let an override on the instance hold it."""
    thing.other = handler._emit_event
    handler._emit_event = partial(handler._emit_event, thing)


@CLASSES
@pytest.mark.parametrize(
    "way",
    [
        through_callback,
        through_buffer,
        through_itself,
        through_a_further_attribute,
        through_dict,
        through_context,
        through_tool,
        through_run_id,
        through_bound_method,
    ],
)
def test_a_cycle_through_a_handler_is_freed(cls: Any, way: Callable[..., None]) -> None:
    """The garbage collector sees through everything that a handler holds."""

    def make() -> tuple[Any, Any]:
        handler, thing = cls(worker()), Thing()
        way(handler, thing)
        return weakref.ref(handler), weakref.ref(thing)

    references = make()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_a_cycle_through_a_subclass_is_freed() -> None:
    """A class that is made in a function goes with its last object, and an object with its class."""

    def make() -> tuple[Any, Any]:
        class Local(LLMCallbackHandler):
            last: Any = None

        handler = Local(worker())
        Local.last = handler
        return weakref.ref(Local), weakref.ref(handler)

    references = make()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_a_cycle_through_the_registry_is_freed_with_the_registration() -> None:
    """What is registered lives, and dies with its removal: the registry is the only holder of a run's callback."""
    for run_id in [new_id(), (new_id(), 1)]:
        handler, thing = LLMCallbackHandler(worker(), run_id=run_id), Thing()
        thing.other = handler
        handler.further = thing  # type: ignore[attr-defined]
        register_event_callback(run_id, thing)
        register_cancellation_checker(run_id, thing)
        reference = weakref.ref(thing)
        del handler, thing
        gc.collect()
        assert reference() is not None
        register_event_callback(run_id, None)
        gc.collect()
        assert reference() is not None
        register_cancellation_checker(run_id, None)
        gc.collect()
        assert reference() is None


@CLASSES
def test_a_handler_without_a_cycle_dies_at_once(cls: Any) -> None:
    """Nothing waits for the collector, and nothing that a handler held stays."""
    thing, gone = Thing(), []
    handler = cls(worker(), thing)
    handler(data="x", current_tool_use={"name": "t"})
    weakref.finalize(handler, gone.append, "handler")
    weakref.finalize(thing, gone.append, "thing")
    del handler
    assert gone == ["handler"]
    del thing
    assert gone == ["handler", "thing"]


def test_a_destructor_in_a_freed_cycle_may_use_the_handler() -> None:
    """What dies together with a handler still finds its attributes, or gets an AttributeError."""
    seen: list[Any] = []

    class Nosy(Thing):
        def __del__(self) -> None:
            seen.append(self.other.tool_count)
            self.other(data="x", complete=True)
            vars(self.other)["late"] = 1

    def make() -> None:
        through_callback(LLMCallbackHandler(worker()), Nosy())

    make()
    gc.collect()
    assert seen == [0]


def test_the_collector_may_run_at_any_time() -> None:
    """A destructor that looks at a handler while its attributes move into a dict finds all of them."""
    printed(
        f"""
        import gc
        from llm_callback import CallerContext, LLMCallbackHandler

        class Nosy:
            def __del__(self):
                missing.extend(name for name in {NAMES} if not hasattr(self.other, name))

        missing = []
        threshold = gc.get_threshold()
        gc.collect()
        gc.freeze()
        for number in range(100):
            gc.collect()
            gc.disable()
            handler = LLMCallbackHandler(CallerContext.worker("w", "W", "T"))
            thing = Nosy()
            thing.other, thing.itself = handler, thing
            # Without lists and dicts to use again, each new one is counted, and may start the collector.
            held = []
            for _ in range(300):
                held.append([])
                held.append({{}})
            del thing
            gc.set_threshold(gc.get_count()[0] + number % 10, 1_000, 1_000)
            gc.enable()
            vars(handler)
            gc.disable()
            gc.set_threshold(*threshold)
            assert missing == []
        """
    )


class Everything:
    """Calls of every kind, with objects whose references can be counted."""

    def __init__(self) -> None:
        self.run_id, self.error = (new_id(), 1), ValueError("once")
        self.text, self.tool, self.callback = "token", {"name": "tool"}, Thing()
        self.context, self.cancelled = worker(), False

    def fail(self, _event: object) -> None:
        """Raise the one error."""
        raise self.error

    def often(self, count: int) -> None:
        """Make many calls, and each tenth time those that are rare."""
        handler = LLMCallbackHandler(self.context, run_id=self.run_id)
        sub = Sub(self.context, self.callback)
        for number in range(count):
            handler(
                data=self.text, reasoningText=self.text, current_tool_use=self.tool, complete=True
            )
            sub(data=self.text, current_tool_use={"name": number}, complete=True)
            if number % 10 == 0:
                self.rarely(handler)

    def rarely(self, handler: Any) -> None:
        """Register, look, fail and be cancelled."""
        with contextlib.suppress(ValueError):
            LLMCallbackHandler(self.context, self.fail)(reasoningText=self.text)
        self.error.__traceback__ = None
        self.cancelled = True
        with contextlib.suppress(RunCancelled):
            handler(data=self.text)
        self.cancelled = False
        with contextlib.suppress(TypeError):
            handler(self.text)
        with contextlib.suppress(AttributeError):
            handler.nothing  # noqa: B018
        create_callback_handler(self.context, self.callback).extra = self.text  # type: ignore[attr-defined]
        register_event_callback(self.run_id, self.callback)
        llm_callback.set_current_run_id(self.run_id)
        llm_callback.get_global_event_callback()
        list(llm_callback._callback_registry)
        llm_callback.stats()

    def state(self) -> list[int]:
        """Return the reference counts of all that was passed, and the number of all objects."""
        gc.collect()
        watched = [*vars(self).values(), ignore, Sub, LLMCallbackHandler, AgentType.WORKER]
        return [*map(sys.getrefcount, watched), len(gc.get_objects())]

    def grown(self, count: int) -> int:
        """Return how many bytes more there are after that many calls."""
        tracemalloc.start()
        try:
            self.often(count)
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            self.often(count)
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()


@pytest.mark.thread_unsafe(reason="counts all objects")
def test_calls_leak_nothing() -> None:
    """After 100 000 calls of every kind all reference counts, objects and memory are where they were."""
    calls = Everything()

    def job() -> tuple[list[int], int]:
        register_event_callback(calls.run_id, calls.callback)
        register_cancellation_checker(calls.run_id, lambda: calls.cancelled)
        calls.often(1_000)
        before = calls.state()
        memory = calls.grown(10_000)
        calls.often(80_000)
        after = calls.state()
        register_event_callback(calls.run_id, None)
        register_cancellation_checker(calls.run_id, None)
        return [abs(one - other) for one, other in zip(before, after, strict=True)], memory

    differences, memory = in_thread(job)
    # A leak in each tenth call would be 10 000 references and objects.
    assert max(differences) < 100
    assert memory < 50_000


def test_an_unregistered_run_leaves_nothing() -> None:
    """A handler that nobody listens to holds what it holds, and its run is in no table."""
    before = len(llm_callback._callback_registry), len(llm_callback._checker_registry)
    run_id = (new_id(), 1)
    count = sys.getrefcount(run_id)
    for _ in range(1_000):
        LLMCallbackHandler(worker(), run_id=run_id)(data="x")
    assert sys.getrefcount(run_id) == count
    after = len(llm_callback._callback_registry), len(llm_callback._checker_registry)
    assert after == before or before != (0, 0)


# --- Pickles and copies ---


PROTOCOLS = pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))


def there_and_back(thing: Any, protocol: int) -> Any:
    """Pickle and unpickle."""
    return pickle.loads(pickle.dumps(thing, protocol))  # noqa: S301


@PROTOCOLS
@pytest.mark.parametrize("cls", [LLMCallbackHandler, Sub])
def test_a_handler_can_be_pickled(cls: type[LLMCallbackHandler], protocol: int) -> None:
    """All its attributes come back, further ones too, and the copy works on its own."""
    handler: Any = cls(worker("w"), ignore, True, ("run", 1))
    handler.verbose = False
    handler.further = [1]
    handler(data="x", current_tool_use={"name": "t"})
    again = there_and_back(handler, protocol)
    assert type(again) is cls
    assert vars(again) == vars(handler)
    assert again.event_callback is ignore
    again(data="y", current_tool_use={"name": "u"})
    assert (again._buffer, handler._buffer, again.tool_count) == (["x", "y"], ["x"], 2)


@PROTOCOLS
def test_a_fresh_handler_can_be_pickled(protocol: int) -> None:
    """One that was never called or looked into comes back with all attributes."""
    again = there_and_back(create_callback_handler(worker(), run_id="r"), protocol)
    assert list(vars(again)) == NAMES
    assert (again.run_id, again._buffer, again.caller_context) == ("r", [], worker())


@PROTOCOLS
def test_values_can_be_pickled(protocol: int) -> None:
    """Contexts come back equal, enum members as the very same."""
    context = CallerContext("a", AgentType.WORKER, "A", "\ud800")
    assert there_and_back(context, protocol) == context
    for kind in [AgentType, EventCategory, EventAction]:
        for member in kind:
            assert there_and_back(member, protocol) is member


@PROTOCOLS
@pytest.mark.parametrize("run_id", [None, "run", ("run", 1), 2**80, "\ud800"], ids=ascii)
def test_a_cancellation_can_be_pickled(protocol: int, run_id: Any) -> None:
    """The run id comes back with it, and so do class, text and what was added."""
    error = RunCancelled(run_id)
    for again in [there_and_back(error, protocol), copy.copy(error), copy.deepcopy(error)]:
        assert type(again) is RunCancelled
        assert (again.run_id, str(again), again.args) == (run_id, "Run was cancelled", error.args)


def test_a_cancellation_is_an_interrupted_error() -> None:
    """Hosts that catch it by class, by text or by its class's name all find it."""
    run_id = new_id()
    register_cancellation_checker(run_id, lambda: True)
    with pytest.raises(InterruptedError) as caught:
        LLMCallbackHandler(worker(), run_id=run_id)()
    register_cancellation_checker(run_id, None)
    error = caught.value
    assert type(error) is RunCancelled
    assert isinstance(error, OSError)
    assert not isinstance(error, KeyboardInterrupt)
    assert (str(error), error.run_id) == ("Run was cancelled", run_id)
    assert (RunCancelled.__name__, RunCancelled.__qualname__) == (
        "InterruptedError",
        "RunCancelled",
    )
    assert RunCancelled.__module__.startswith("llm_callback")
    assert RunCancelled().run_id is None
    assert RunCancelled(run_id=1).run_id == 1


@pytest.mark.parametrize("cls", [LLMCallbackHandler, Sub])
def test_a_copy_shares_what_a_copy_shares(cls: type[LLMCallbackHandler]) -> None:
    """``copy`` shares the buffer and counts on its own; ``deepcopy`` shares nothing but the callback."""
    got: list[Any] = []

    def callback(event: dict[str, Any]) -> None:
        got.append(word(event))

    handler: Any = cls(worker(), callback)
    handler.further = []
    handler(data="x", current_tool_use={"name": "t"})
    shallow, deep = copy.copy(handler), copy.deepcopy(handler)
    assert type(shallow) is type(deep) is cls
    assert shallow._buffer is handler._buffer
    assert shallow.further is handler.further
    assert shallow.caller_context is handler.caller_context
    assert deep._buffer == handler._buffer
    assert deep._buffer is not handler._buffer
    assert deep.caller_context == handler.caller_context
    assert deep.caller_context is not handler.caller_context
    assert deep.event_callback is callback
    shallow.tool_count += 1
    shallow.run_id = "other"
    del shallow.further
    assert (handler.tool_count, handler.run_id, handler.further) == (1, None, [])
    deep(data="y")
    shallow(data="z")
    assert handler._buffer == ["x", "z"]
    assert [content for action, content, *_ in got if action == "stream"] == ["x", "y", "z"]


def test_a_deep_copy_keeps_cycles() -> None:
    """A handler that holds itself is copied as one that holds itself."""
    handler: Any = LLMCallbackHandler(worker())
    handler.itself = handler
    again = copy.deepcopy(handler)
    assert again.itself is again
    assert there_and_back(handler, 5).itself is not handler


# --- Subclasses ---


def heard_by(cls: Any, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
    """Return a handler of that class, and what its callback hears."""
    got: list[Any] = []
    return cls(worker(), lambda event: got.append(word(event)), *args, **kwargs), got


def test_a_property_of_a_subclass_is_used() -> None:
    """A property that is named like an attribute is asked by each call, and set by ``__init__``."""
    seen: list[Any] = []

    class WithProperties(LLMCallbackHandler):
        @property
        def run_id(self) -> Any:
            seen.append("get")
            return self.__dict__["run_id"]

        @run_id.setter
        def run_id(self, value: Any) -> None:
            seen.append(value)
            self.__dict__["run_id"] = value

        @property
        def tool_count(self) -> int:
            return self.counted * 10

        @tool_count.setter
        def tool_count(self, value: int) -> None:
            self.counted = value

    handler, got = heard_by(WithProperties, run_id="run")
    handler(current_tool_use={"name": "a"})
    handler(current_tool_use={"name": "b"})
    assert seen[0] == "run"
    assert "get" in seen
    assert got == [("tool_call", "a", 10), ("tool_call", "b", 110)]


def test_a_read_only_property_of_a_subclass_raises_as_in_python() -> None:
    """``__init__`` assigns to it, which is an AttributeError, as with a class in Python."""

    class ReadOnly(LLMCallbackHandler):
        @property
        def run_id(self) -> Any:
            return 1

    with pytest.raises(AttributeError, match="run_id"):
        ReadOnly(worker())


def test_a_subclass_with_slots() -> None:
    """Slots hold what they name, and the handler's own attributes are still there."""

    class Slotted(LLMCallbackHandler):
        __slots__ = ("mine",)

    handler, got = heard_by(Slotted)
    handler.mine = 1
    handler(data="x", current_tool_use={"name": "t"})
    assert (handler.mine, handler.tool_count, handler._buffer) == (1, 1, ["x"])
    assert len(got) == 2
    assert "mine" not in vars(handler)
    assert vars(handler)["tool_count"] == 1
    del handler.mine
    with pytest.raises(AttributeError):
        handler.mine  # noqa: B018


def test_a_subclass_with_class_attributes() -> None:
    """An attribute of the class is hidden by the one that ``__init__`` sets, and others are defaults."""

    class Configured(LLMCallbackHandler):
        verbose = True
        further = 7

    handler, got = heard_by(Configured)
    assert (handler.verbose, handler.further, Configured.verbose) == (False, 7, True)
    handler(data="x")
    del handler.verbose
    assert handler.verbose is True
    assert got == [("stream", "x")]


def test_a_subclass_with_an_init_of_its_own() -> None:
    """Attributes may be set before and after ``super().__init__``, or instead of it."""

    class Own(LLMCallbackHandler):
        def __init__(self, name: str) -> None:
            self.before = name
            super().__init__(worker(name), run_id=name)
            self.verbose = False
            self.after = name

    class Without(LLMCallbackHandler):
        def __init__(self) -> None:
            self.run_id = "mine"

    handler: Any = Own("n")
    assert (handler.before, handler.run_id, handler.after) == ("n", "n", "n")
    bare: Any = Without()
    assert vars(bare) == {"run_id": "mine"}
    with pytest.raises(AttributeError, match="event_callback"):
        bare(data="x")
    bare.event_callback, bare._buffer, bare.verbose, bare.caller_context = (
        ignore,
        [],
        False,
        worker(),
    )
    bare(data="x")
    assert bare._buffer == ["x"]


class OwnState(LLMCallbackHandler):
    """Pickles in its own way."""

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["event_callback"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__dict__["event_callback"] = ignore


@PROTOCOLS
def test_a_subclass_with_its_own_state(protocol: int) -> None:
    """``__getstate__`` and ``__setstate__`` work on ``__dict__``, as they do for a class in Python."""
    handler: Any = OwnState(worker(), lambda _: None, run_id="r")
    handler.further = 1
    handler(data="x")
    again = there_and_back(handler, protocol)
    assert (again.run_id, again.further, again._buffer, again.event_callback) == (
        "r",
        1,
        ["x"],
        ignore,
    )
    again(data="y")
    assert copy.copy(handler).event_callback is ignore


def test_a_subclass_hook_is_called() -> None:
    """``__init_subclass__``, class keywords, mixins and metaclass features of Python work."""
    made: list[Any] = []

    class Base(LLMCallbackHandler):
        def __init_subclass__(cls, name: str = "", **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            made.append((cls.__name__, name))

    class Mixin:
        def hello(self) -> str:
            return f"hello {self.run_id}"  # type: ignore[attr-defined]

    class Leaf(Mixin, Base, name="leaf"):
        pass

    handler, got = heard_by(Leaf, run_id="r")
    handler(data="x")
    assert (made, handler.hello(), got) == ([("Leaf", "leaf")], "hello r", [("stream", "x")])
    assert [cls.__name__ for cls in Leaf.__mro__] == [
        "Leaf",
        "Mixin",
        "Base",
        "LLMCallbackHandler",
        "object",
    ]


def test_an_overridden_emit_sees_every_event() -> None:
    """It gets the callback that was chosen, enum members and the data, and may change or drop them."""
    seen: list[Any] = []

    class Counting(LLMCallbackHandler):
        def _emit_event(self, callback: Any, category: Any, action: Any, data: Any) -> None:
            seen.append((category, action, dict(data)))
            if action is not EventAction.REASONING:
                super()._emit_event(
                    callback, category, EventAction.WARNING, {**data, "seen": len(seen)}
                )

    handler, got = heard_by(Counting)
    handler(reasoningText="a", data="b", current_tool_use={"name": "c"}, complete=True)
    assert seen == [
        (EventCategory.LLM, EventAction.REASONING, {"content": "a"}),
        (EventCategory.LLM, EventAction.STREAM, {"content": "b"}),
        (EventCategory.LLM, EventAction.TOOL_CALL, {"tool_name": "c", "tool_count": 1}),
        (EventCategory.LLM, EventAction.COMPLETED, {"message": "LLM round completed"}),
    ]
    assert [action for action, *_ in got] == ["warning"] * 3
    assert [values[-1] for values in got] == [2, 3, 4]


@pytest.mark.parametrize("cls", [LLMCallbackHandler, Sub])
def test_an_emit_on_the_instance_is_used(cls: type[LLMCallbackHandler]) -> None:
    """``handler._emit_event = f`` is read back, used by the calls, and gone when it is deleted."""
    handler, got = heard_by(cls)
    seen: list[Any] = []

    def emit(*args: Any) -> None:
        seen.append(args)

    handler._emit_event = emit
    assert handler._emit_event is emit
    assert vars(handler)["_emit_event"] is emit
    handler(data="x")
    assert [args[1:] for args in seen] == [
        (EventCategory.LLM, EventAction.STREAM, {"content": "x"})
    ]
    del handler._emit_event
    handler(data="y")
    assert (len(seen), got) == (1, [("stream", "y")])


def test_an_overridden_call_may_call_on() -> None:
    """A subclass may see the arguments first; an explicit ``super()`` call does the rest."""

    class Traced(LLMCallbackHandler):
        def __call__(self, **kwargs: Any) -> None:
            self.names = sorted(kwargs)
            super().__call__(**kwargs)

    handler, got = heard_by(Traced)
    handler(data="x", other=1)
    assert (handler.names, got) == (["data", "other"], [("stream", "x")])


def test_a_subclass_is_called_as_the_class_is() -> None:
    """Positional arguments and a keyword ``self`` are refused with the same words."""
    for cls in [LLMCallbackHandler, Sub]:
        with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
            cls(worker())(1)
        with pytest.raises(TypeError, match="multiple values for argument 'self'"):
            cls(worker())(self=1)


# --- Attributes ---


class Twin:
    """The plain class whose attributes ours must be like."""


Twin.__name__ = Twin.__qualname__ = "LLMCallbackHandler"


def text_of(job: Callable[[], Any]) -> str:
    """Return the words of the AttributeError that ``job`` raises."""
    with pytest.raises(AttributeError) as caught:
        job()
    assert type(caught.value) is AttributeError
    return str(caught.value)


@pytest.mark.parametrize("name", ["tool_count", "_buffer", "nothing", "ünknown"])
@pytest.mark.parametrize("touched", [False, True], ids=["fresh", "with a dict"])
def test_a_missing_attribute_is_told_as_in_python(name: str, touched: bool) -> None:
    """Reading and deleting what is not there raise the AttributeError of a plain Python object."""
    handler, twin = LLMCallbackHandler(worker()), Twin()
    if touched:
        vars(handler)
    if name in NAMES:
        delattr(handler, name)
    read = partial(getattr, handler, name)
    assert text_of(read) == text_of(partial(getattr, twin, name))
    assert text_of(partial(delattr, handler, name)) == text_of(partial(delattr, twin, name))
    try:
        read()
    except AttributeError as error:
        assert (error.name, error.obj) == (name, handler)  # noqa: PT017 - two attributes
    assert not hasattr(handler, name)
    assert getattr(handler, name, 7) == 7
    setattr(handler, name, 1)
    assert getattr(handler, name) == 1


@pytest.mark.parametrize("cls", [LLMCallbackHandler, Sub])
def test_attributes_can_be_set_read_and_deleted(cls: type[LLMCallbackHandler]) -> None:
    """Own and further ones alike, in any order, before and after ``vars()``."""
    handler: Any = cls(worker())
    for name in [*NAMES, "further", "__private"]:
        value = object()
        setattr(handler, name, value)
        assert getattr(handler, name) is value
        assert vars(handler)[name] is value
        delattr(handler, name)
        assert name not in vars(handler)
        assert not hasattr(handler, name)
        setattr(handler, name, value)
        assert getattr(handler, name) is value
    assert set(vars(handler)) == {*NAMES, "further", "__private"}


@pytest.mark.parametrize("cls", [LLMCallbackHandler, Sub])
def test_vars_writes_through(cls: type[LLMCallbackHandler]) -> None:
    """``vars(handler)`` is the live ``__dict__``: what is put in or taken out there is so at the handler."""
    handler, got = heard_by(cls)
    attributes = vars(handler)
    assert attributes is handler.__dict__
    assert list(attributes) == NAMES
    attributes["tool_count"] = 41
    attributes["further"] = 1
    assert handler.further == 1
    handler(data="x", current_tool_use={"name": "t"})
    assert got == [("stream", "x"), ("tool_call", "t", 42)]
    assert attributes["tool_count"] == 42
    assert attributes["_buffer"] == ["x"]
    handler.run_id = "later"
    assert attributes["run_id"] == "later"
    attributes.pop("verbose")
    with pytest.raises(AttributeError, match="verbose"):
        handler(data="y")
    attributes.update(verbose=False)
    handler(data="z")
    assert got[-1] == ("stream", "z")


@pytest.mark.parametrize("cls", [LLMCallbackHandler, Sub])
@pytest.mark.parametrize("touched", [False, True], ids=["fresh", "with a dict"])
def test_the_dict_can_be_replaced(cls: type[LLMCallbackHandler], touched: bool) -> None:
    """A new ``__dict__`` holds all attributes from then on, and the old one is let go as it is."""
    handler, got = heard_by(cls)
    old = vars(handler) if touched else {}
    new = {"event_callback": got.append, "run_id": None, "_buffer": [], "verbose": False}
    handler.__dict__ = new
    assert vars(handler) is new
    assert len(old) in (0, 7)
    assert text_of(partial(getattr, handler, "caller_context"))
    handler.caller_context = worker()
    handler(data="x")
    assert new["_buffer"] == ["x"]
    assert new["caller_context"] == worker()
    with pytest.raises(TypeError):
        handler.__dict__ = []
    assert vars(handler) is new


def test_a_str_subclass_as_an_attribute_name() -> None:
    """A name need not be exactly a str."""

    class Name(str):
        __slots__ = ()

    handler = LLMCallbackHandler(worker())
    setattr(handler, Name("tool_count"), 3)
    setattr(handler, Name("further"), 4)
    assert (getattr(handler, Name("tool_count")), handler.further) == (3, 4)  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        getattr(handler, 1)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        setattr(handler, 1, 1)  # type: ignore[call-overload]


def test_dir_lists_what_can_be_read() -> None:
    """Own and further attributes and the methods are listed, and everything listed can be read."""
    handler: Any = LLMCallbackHandler(worker())
    handler.further = 1
    names = dir(handler)
    assert {*NAMES, "further", "_emit_event", "__call__", "__dict__"} <= set(names)
    assert names == sorted(names)
    assert [name for name in names if not hasattr(handler, name)] == []
    assert {*NAMES, "_emit_event"} <= set(dir(LLMCallbackHandler))


def test_identity_is_equality_and_hash() -> None:
    """Two handlers are never equal, whatever they hold; each is equal to itself and a key of its own."""
    one, other = LLMCallbackHandler(worker()), LLMCallbackHandler(worker())
    assert one == one  # noqa: PLR0124
    assert one != other
    assert copy.copy(one) != one
    assert {one: 1, other: 2}[one] == 1
    assert hash(one) == object.__hash__(one)
    with pytest.raises(TypeError):
        sorted([one, other])  # type: ignore[type-var]
    assert bool(one)


def test_weak_references_to_handlers() -> None:
    """They can be taken, compared by handler, and are told when it goes."""
    handler, gone = LLMCallbackHandler(worker()), []
    reference = weakref.ref(handler, gone.append)
    assert reference() is handler
    assert list(weakref.WeakSet([handler, handler])) == [handler]
    assert len(weakref.WeakKeyDictionary({handler: 1})) == 1
    del handler
    assert (reference(), gone) == (None, [reference])


def test_the_class_cannot_be_changed() -> None:
    """Assigning to or deleting from the class is a TypeError: a process-wide patch would reach every run."""
    for name in ["verbose", "__call__", "_emit_event", "further"]:
        with pytest.raises(TypeError, match="immutable type"):
            setattr(LLMCallbackHandler, name, None)
    with pytest.raises(TypeError, match="immutable type"):
        del LLMCallbackHandler._emit_event
    Sub.further = 1  # type: ignore[attr-defined]
    del Sub.further  # type: ignore[attr-defined]


def test_the_class_of_a_handler() -> None:
    """It says where it is from, and ``create_callback_handler`` makes exactly that."""
    handler = create_callback_handler(worker())
    assert type(handler) is LLMCallbackHandler
    assert (LLMCallbackHandler.__name__, LLMCallbackHandler.__qualname__) == (
        "LLMCallbackHandler",
    ) * 2
    assert LLMCallbackHandler.__module__ == "llm_callback"
    assert repr(handler).startswith("<llm_callback.LLMCallbackHandler object at 0x")
    assert repr(Sub(worker())).startswith(f"<{Sub.__module__}.Sub object at 0x")
    assert callable(handler)


# --- Words ---


def help_on(thing: Any) -> str:
    """Return what ``help()`` shows, without white space and margin: where lines are broken differs."""
    return "".join(pydoc.render_doc(thing, renderer=pydoc.plaintext).replace("|", "").split())


@pytest.mark.parametrize(
    ("name", "signature", "words"),
    [
        (
            "LLMCallbackHandler",
            "(caller_context, event_callback=None, verbose=False, run_id=None)",
            "Turns what an agent framework calls it with into events of one run.",
        ),
        ("register_event_callback", "(run_id, callback)", "Send the events of the run"),
        ("create_callback_handler", "(caller_context, event_callback=None", "Make an"),
        ("stats", "()", "Return what was delivered"),
        (
            "configure",
            (
                "(*, route='handler', log_events=10000, log_bytes=16777216, keep_seconds=300.0,"
                " keep_runs=1000, keep_bytes=268435456, max_live=None)"
            ),
            "Change the settings of this process",
        ),
        ("bind", "(function", "Return ``function`` wrapped"),
        ("get_current_run_id", "()", "Return the run of the calling context"),
        ("CallerContext", "(agent_id", "The agent that a handler speaks for"),
        ("RunCancelled", "(run_id", "The run that the calling code works for was cancelled."),
    ],
)
def test_help_shows_the_documentation(name: str, signature: str, words: str) -> None:
    """``help()`` has the signature and the docstring of every class and function, at the package's too."""
    text = help_on(getattr(llm_callback, name))
    assert "".join(signature.split()) in text
    assert "".join(words.split()) in text
    assert "".join(words.split()) in help_on(llm_callback)


def test_help_shows_methods_and_attributes() -> None:
    """``help()`` has the handler's attributes, each with what it is, and the method to override."""
    text = help_on(LLMCallbackHandler)
    assert "Howmanytoolcallswereseen." in text
    assert "Wheretheeventsgo" in text
    text = help_on(LLMCallbackHandler._emit_event)
    assert "callback,category,action,data)" in text
    assert "Asubclassmayoverrideit" in text


def test_a_context_is_a_dataclass() -> None:
    """It is equal by value and exact class, unhashable and mutable, and all that ``dataclasses`` does works."""

    class Other(CallerContext):
        pass

    context = worker("w")
    assert context == worker("w")
    assert context != dataclasses.replace(context, team_name=None)
    assert context != Other("w", AgentType.WORKER, "W", "Team")
    assert [field.name for field in dataclasses.fields(context)] == [
        "agent_id",
        "agent_type",
        "agent_name",
        "team_name",
    ]
    with pytest.raises(TypeError, match="unhashable type: 'CallerContext'"):
        hash(context)
    assert type(Other.worker("w", "W", "T")) is Other
    assert isinstance(AgentType.WORKER, str)
    assert issubclass(AgentType, enum.Enum)


def test_the_run_of_a_task_may_be_the_task_itself() -> None:
    """A run id that holds the context it is current in is freed with it."""

    class Run:
        context: contextvars.Context

    def enter(run: Run) -> None:
        llm_callback.set_current_run_id(run)

    run = Run()
    run.context = contextvars.copy_context()
    run.context.run(enter, run)
    gone = weakref.ref(run)
    del run
    gc.collect()
    assert gone() is None


def test_a_method_set_on_a_context_object_is_used() -> None:
    """An object's own to_source_dict stands before its class's."""
    got: list[Any] = []
    context = CallerContext.worker("w", "W", "T")
    context.to_source_dict = lambda: {"own": True}  # type: ignore[method-assign]
    LLMCallbackHandler(context, got.append)(data="x")
    assert got[0]["source"] == {"own": True}


@pytest.mark.parametrize("protocol", range(6))
def test_slots_of_a_subclass_are_copied_and_pickled(protocol: int) -> None:
    """A subclass with slots can still have further attributes, and copies have both."""
    handler = Slotted(CallerContext.worker("w", "W", "T"), run_id=1)
    handler.slot = 1
    handler.further = 2  # type: ignore[attr-defined]
    for twin in (
        copy.copy(handler),
        copy.deepcopy(handler),
        pickle.loads(pickle.dumps(handler, protocol)),  # noqa: S301
    ):
        assert (twin.slot, twin.further, twin.run_id) == (1, 2, 1)


class Slotted(LLMCallbackHandler):
    """A subclass without a dict of its own."""

    __slots__ = ("slot",)
    slot: int


@pytest.mark.parametrize("count", [None, [1], "a", 1.5, 2**63])
def test_counting_tools_is_adding_in_place(count: Any) -> None:
    """tool_count += 1, with whatever it was set to, and with the words of an in-place addition."""
    outcomes = []
    for module in (llm_callback, reference_model):
        handler = module.LLMCallbackHandler(module.CallerContext.worker("w", "W", "T"))
        handler.tool_count = copy.copy(count)
        try:
            handler(current_tool_use={"name": "t"})
            outcomes.append(handler.tool_count)
        except TypeError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
