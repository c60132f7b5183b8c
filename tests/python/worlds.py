"""Two worlds, one per module, in which the same operations are performed and the same things must be seen.

An operation is plain data, so that hypothesis can make, shrink and print it. Objects that have no state are shared by
both worlds; what an operation could change is made once per world, by a ``New`` or from the world's pools.
"""

from __future__ import annotations

import contextvars
import copy
import enum
import io
import sys
import threading
import types
from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

THREAD_DEADLINE = 30.0
DEEPEST_NESTING = 3

HANDLER_ATTRIBUTES = (
    "caller_context",
    "event_callback",
    "verbose",
    "run_id",
    "tool_count",
    "previous_tool_use",
)
CONTEXT_ATTRIBUTES = ("agent_id", "agent_type", "agent_name", "team_name")


# --- Objects with a mind of their own ---


class Named:
    """An object whose repr says how it was made, the same in every run."""

    def __init__(self, *args: object) -> None:
        self.args = args

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.args))})"


class Stripped(Named):
    """Becomes its argument when it is stripped."""

    def strip(self) -> object:
        return self.args[0]


class StripRaises(Named):
    """Cannot be stripped."""

    def strip(self) -> object:
        raise LookupError("strip")


class LenRaises(Named):
    """Has no length, which shows once a callback would get it."""

    def __len__(self) -> int:
        raise OverflowError("len")


class BoolRaises(Named):
    """Neither true nor false."""

    def __bool__(self) -> bool:
        raise ArithmeticError("bool")


class Falsy(Named):
    """False."""

    def __bool__(self) -> bool:
        return False


class StrRaises(Named):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise BufferError("str")


class StrSub(str):
    """A str, but not exactly."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"StrSub({str.__repr__(self)})"


class FalseStr(StrSub):
    """A str that claims to be empty."""

    __slots__ = ()

    def __len__(self) -> int:
        return 0


class BlankStr(StrSub):
    """A str of which nothing is left when it is stripped."""

    __slots__ = ()

    def strip(self, _chars: str | None = None) -> str:
        return ""


class CaselessStr(StrSub):
    """A str that equals any other spelling of itself, if that is of this class too."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CaselessStr) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class IntSub(int):
    """An int, but not exactly."""

    def __repr__(self) -> str:
        return f"IntSub({int.__repr__(self)})"


class Alike(Named):
    """Equal to all others of its kind, and to nothing else although it has the hash of one."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike)

    def __hash__(self) -> int:
        return hash(1)


class HashRaises(Named):
    """Refuses to be hashed."""

    def __hash__(self) -> int:
        raise RecursionError("hash")


class Unhashable(Named):
    """Has no hash."""

    __hash__ = None  # type: ignore[assignment]


class Number(enum.IntEnum):
    """Members are ints."""

    ONE = 1
    SEVEN = 7


class Word(str, enum.Enum):
    """Members are strs, and one is called like an agent type."""

    A = "a"
    WORKER = "worker"


class CustomBaseError(BaseException):
    """Nothing that ``except Exception`` would catch."""


class DictSub(dict):  # type: ignore[type-arg]
    """A dict, but not exactly."""


class NeAlways(DictSub):
    """Differs from everything."""

    def __ne__(self, _other: object) -> bool:
        return True


class NeNever(DictSub):
    """Differs from nothing."""

    def __ne__(self, _other: object) -> bool:
        return False


class NeOdd(DictSub):
    """Answers with something that is not a bool."""

    def __ne__(self, other: object) -> Any:
        return "different" if self.get("name") != other.get("name") else ""  # type: ignore[attr-defined]


class NeRaises(DictSub):
    """Refuses to be compared."""

    def __ne__(self, _other: object) -> bool:
        raise AssertionError("ne")


class GetsAnother(DictSub):
    """Has another name than its key says."""

    def get(self, _key: object, _default: object = None) -> Any:
        return "another"


class Duck(Named):
    """Serves as a caller context."""

    def to_source_dict(self) -> object:
        return self.args[0]


class DuckRaises(Named):
    """Serves as a caller context that does not know its source."""

    def to_source_dict(self) -> object:
        raise ConnectionError("source")


MAKERS: dict[str, Callable[[Any], Any]] = {
    "list": list,
    "dict": dict,
    "set": set,
    "bytearray": bytearray,
    "DictSub": DictSub,
    "OrderedDict": OrderedDict,
    "defaultdict": lambda items: defaultdict(str, items),
    "UserDict": UserDict,
    "mappingproxy": lambda items: types.MappingProxyType(dict(items)),
    "NeAlways": NeAlways,
    "NeNever": NeNever,
    "NeOdd": NeOdd,
    "NeRaises": NeRaises,
    "GetsAnother": GetsAnother,
}


# --- Values: how an operation names an object ---


@dataclass(frozen=True, eq=False)
class The:
    """An object that both worlds share, because nothing can change it; not compared, since the object may refuse."""

    value: Any


@dataclass(frozen=True)
class New:
    """A fresh object in each world."""

    maker: str
    content: Any


@dataclass(frozen=True)
class Pooled:
    """An object that the world already has: ``handler``, ``context``, ``callable`` or ``tool``."""

    pool: str
    index: int


@dataclass(frozen=True)
class Own:
    """A member of one of the module's enums."""

    enum: str
    member: str


Value = The | New | Pooled | Own
NONE = The(None)


# --- What a callback or checker does when it is called, besides telling that it was ---


@dataclass(frozen=True)
class Returns:
    """Return these values one after the other, the last one again and again."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Raises:
    """Raise this, from the given call on."""

    error: type[BaseException]
    args: tuple[Any, ...] = ()
    after: int = 0


@dataclass(frozen=True)
class Performs:
    """Perform operations the first few times."""

    operations: tuple[Operation, ...]
    times: int = 1


@dataclass(frozen=True)
class Spoils:
    """Change one part of the event."""

    part: str


@dataclass(frozen=True)
class Doubts:
    """Have a truth value that is worth looking at: ``false``, ``empty``, ``raises`` or ``counted``."""

    truth: str


Behaviour = Returns | Raises | Performs | Spoils | Doubts


# --- Operations ---


@dataclass(frozen=True)
class Call:
    """Call a function of the module; a dot leads to a class method."""

    function: str
    args: tuple[Value, ...] = ()
    kwargs: tuple[tuple[str, Value], ...] = ()


@dataclass(frozen=True)
class Handle:
    """Call a handler."""

    handler: int
    kwargs: tuple[tuple[str, Value], ...] = ()
    args: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Ask:
    """Call a method without arguments."""

    target: Pooled
    method: str


@dataclass(frozen=True)
class Emit:
    """Call a handler's ``_emit_event``."""

    handler: int
    callback: int
    category: str
    action: str
    data: Value


@dataclass(frozen=True)
class Subclass:
    """Make a handler of a subclass that overrides ``_emit_event`` or ``__call__``."""

    override: str
    kwargs: tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Get:
    """Read an attribute."""

    target: Pooled
    attribute: str


@dataclass(frozen=True)
class Set:
    """Write an attribute."""

    target: Pooled
    attribute: str
    value: Value


@dataclass(frozen=True)
class Delete:
    """Delete an attribute."""

    target: Pooled
    attribute: str


@dataclass(frozen=True)
class Change:
    """Change a tool's dictionary in place."""

    tool: int
    key: str
    value: Value


@dataclass(frozen=True)
class Copy:
    """Copy a handler, ``shallow`` or ``deep``."""

    handler: int
    depth: str


@dataclass(frozen=True)
class Redirect:
    """Put something else in the place of ``sys.stdout``: ``first``, ``second``, ``none`` or ``raises``."""

    stdout: str


@dataclass(frozen=True)
class InThread:
    """Perform operations in a thread of their own."""

    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Look:
    """Look at everything that is there; not done after each operation, since looking might change what is inside."""


Operation = (
    Call
    | Handle
    | Ask
    | Emit
    | Subclass
    | Get
    | Set
    | Delete
    | Change
    | Copy
    | Redirect
    | InThread
    | Look
)


@dataclass(frozen=True)
class Story:
    """What a world starts with, and what happens in it."""

    behaviours: tuple[Behaviour, ...]
    tools: tuple[New, ...]
    operations: tuple[Operation, ...]


# --- A world ---


class Stdout(io.TextIOBase):
    """Notes what is written, as bytes, among everything else that is seen."""

    def __init__(self, name: str, world: World) -> None:
        self._name = name
        self._world = world

    def write(self, text: str) -> int:
        if self._name == "raises":
            raise BlockingIOError("stdout")
        written = text.encode()
        log = self._world.log
        if log and log[-1][:2] == ("stdout", self._name):
            log[-1] = ("stdout", self._name, log[-1][2] + written)
        elif written:
            log.append(("stdout", self._name, written))
        return len(text)


class Recorder:
    """A callback or checker: notes each call, then behaves as it was told to."""

    def __init__(self, world: World, name: str, behaviour: Behaviour) -> None:
        self._world = world
        self._name = name
        self._behaviour = behaviour
        self._calls = 0

    def __deepcopy__(self, _memo: object) -> Recorder:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._calls += 1
        self._world.note_call(self._name, args, kwargs)
        behaviour = self._behaviour
        if isinstance(behaviour, Returns):
            return self._world.make(behaviour.values[min(self._calls, len(behaviour.values)) - 1])
        if isinstance(behaviour, Raises) and self._calls > behaviour.after:
            self._world.raised = behaviour.error(*behaviour.args)
            raise self._world.raised
        if isinstance(behaviour, Performs) and self._calls <= behaviour.times:
            self._world.perform_nested(behaviour.operations)
        if isinstance(behaviour, Spoils):
            spoil(args[0], behaviour.part)
        return None


class Doubter(Recorder):
    """A callback or checker with a truth value of its own."""

    def __bool__(self) -> bool:
        truth = getattr(self._behaviour, "truth", "counted")
        if truth == "raises":
            raise FloatingPointError("bool of a callable")
        if truth == "counted":
            self._world.log.append(("bool", self._name))
        return truth == "counted"


def spoil(event: Any, part: str) -> None:
    """Change an event as a careless callback would."""
    if part == "event":
        event.clear()
    elif part == "extra":
        event["extra"] = 1
    else:
        event[part].clear()


@dataclass
class World:
    """A module, the objects that were made with it, and what was seen."""

    module: Any
    pools: dict[str, list[Any]] = field(
        default_factory=lambda: {"handler": [], "context": [], "callable": [], "tool": []}
    )
    log: list[tuple[Any, ...]] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    raised: BaseException | None = None
    _stdout: Any = None
    _nesting: int = 0
    _run_ids: list[Any] = field(default_factory=list)
    _context: contextvars.Context = field(default_factory=contextvars.Context)

    def begin(self, story: Story) -> None:
        """Make what the story starts with."""
        self._stdout = Stdout("first", self)
        for index, behaviour in enumerate(story.behaviours):
            kind = Doubter if isinstance(behaviour, Doubts) else Recorder
            self.pools["callable"].append(kind(self, f"callable {index}", behaviour))
        self.pools["tool"] += [self.make(tool) for tool in story.tools]

    def end(self) -> None:
        """Leave nothing registered."""
        for run_id in self._run_ids:
            self._quietly(self.module.register_event_callback, run_id)
            self._quietly(self.module.register_cancellation_checker, run_id)

    @staticmethod
    def _quietly(register: Callable[[Any, None], None], run_id: Any) -> None:
        try:
            register(run_id, None)
        except (TypeError, RecursionError):
            return

    def perform(self, operation: Operation) -> Any:
        """Perform an operation, and describe what it returned or raised, and what was called and printed meanwhile."""
        self.log.clear()
        stdout = sys.stdout
        sys.stdout = self._stdout
        try:
            result = self._context.run(self._attempt, operation)
        finally:
            sys.stdout = stdout
        return {"result": result, "seen": list(self.log)}

    def perform_nested(self, operations: tuple[Operation, ...]) -> None:
        """Perform operations during another one, unless this goes too deep."""
        if self._nesting >= DEEPEST_NESTING:
            return
        self._nesting += 1
        try:
            for operation in operations:
                self.log.append(("nested", self._attempt(operation)))
        finally:
            self._nesting -= 1

    def _attempt(self, operation: Operation) -> Any:
        self.raised = None
        try:
            method = getattr(self, f"_perform_{type(operation).__name__.lower()}")
            return ("returned", self.describe(method(operation)))
        except BaseException as error:  # noqa: BLE001
            kinds = [
                kind.__name__
                for kind in (Exception, OSError, InterruptedError)
                if isinstance(error, kind)
            ]
            return ("raised", type(error).__name__, self._text(error), kinds, error is self.raised)

    @staticmethod
    def _text(error: BaseException) -> str:
        return ascii(str(error))

    # What there is.

    def make(self, value: Value) -> Any:
        """Return the object that a value names in this world."""
        if isinstance(value, The):
            return value.value
        if isinstance(value, New):
            return MAKERS[value.maker](copy.deepcopy(value.content))
        if isinstance(value, Own):
            return getattr(self.module, value.enum)[value.member]
        return self._pooled(value.pool, value.index)

    def _pooled(self, pool: str, index: int) -> Any:
        members = self.pools[pool]
        return members[index % len(members)] if members else None

    def _kwargs(self, kwargs: tuple[tuple[str, Value], ...]) -> dict[str, Any]:
        return {key: self.make(value) for key, value in kwargs}

    def _adopt(self, made: Any) -> Any:
        if isinstance(made, self.module.LLMCallbackHandler):
            self.pools["handler"].append(made)
        elif isinstance(made, self.module.CallerContext):
            self.pools["context"].append(made)
        return made

    # What can be done.

    def _perform_call(self, call: Call) -> Any:
        function = self.module
        for name in call.function.split("."):
            function = getattr(function, name)
        args = [self.make(arg) for arg in call.args]
        kwargs = self._kwargs(call.kwargs)
        if call.function.startswith(("register", "set_current")):
            self._run_ids += args[:1]
            self._run_ids += [kwargs["run_id"]] if "run_id" in kwargs else []
        return self._adopt(function(*args, **kwargs))

    def _perform_handle(self, handle: Handle) -> Any:
        args = [self.make(arg) for arg in handle.args]
        return self._pooled("handler", handle.handler)(*args, **self._kwargs(handle.kwargs))

    def _perform_ask(self, ask: Ask) -> Any:
        return getattr(self.make(ask.target), ask.method)()

    def _perform_emit(self, emit: Emit) -> Any:
        handler = self._pooled("handler", emit.handler)
        category = self.module.EventCategory[emit.category]
        action = self.module.EventAction[emit.action]
        return handler._emit_event(
            self._pooled("callable", emit.callback), category, action, self.make(emit.data)
        )

    def _perform_subclass(self, subclass: Subclass) -> Any:
        base, log = self.module.LLMCallbackHandler, self.log

        def emit(handler: Any, callback: Any, category: Any, action: Any, data: Any) -> None:
            log.append(("overridden", category.value, action.value, self.describe(data)))
            base._emit_event(handler, callback, category, action, data)

        def call(handler: Any, **kwargs: Any) -> None:
            log.append(("overridden", sorted(kwargs)))
            base.__call__(handler, **kwargs)

        overrides = (
            {"_emit_event": emit} if subclass.override == "_emit_event" else {"__call__": call}
        )
        return self._adopt(type("Derived", (base,), overrides)(**self._kwargs(subclass.kwargs)))

    def _perform_get(self, get: Get) -> Any:
        return getattr(self.make(get.target), get.attribute)

    def _perform_set(self, set_: Set) -> None:
        setattr(self.make(set_.target), set_.attribute, self.make(set_.value))

    def _perform_delete(self, delete: Delete) -> None:
        delattr(self.make(delete.target), delete.attribute)

    def _perform_change(self, change: Change) -> None:
        self._pooled("tool", change.tool)[change.key] = self.make(change.value)

    def _perform_copy(self, copy_: Copy) -> Any:
        copier = copy.copy if copy_.depth == "shallow" else copy.deepcopy
        return self._adopt(copier(self._pooled("handler", copy_.handler)))

    def _perform_redirect(self, redirect: Redirect) -> None:
        self._stdout = None if redirect.stdout == "none" else Stdout(redirect.stdout, self)
        sys.stdout = self._stdout

    def _perform_inthread(self, in_thread: InThread) -> None:
        thread = threading.Thread(
            target=self.perform_nested, args=(in_thread.operations,), daemon=True
        )
        thread.start()
        thread.join(THREAD_DEADLINE)
        if thread.is_alive():
            raise TimeoutError(f"a thread did not end within {THREAD_DEADLINE} s")

    def _perform_look(self, _look: Look) -> Any:
        return self._state()

    # What can be seen.

    def note_call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note that a callback or checker was called."""
        self.log.append(
            ("called", name, [self.describe(arg) for arg in args], self.describe(kwargs))
        )
        self.events += args

    def _state(self) -> Any:
        handlers, contexts = self.pools["handler"], self.pools["context"]
        buffers = [getattr(handler, "_buffer", None) for handler in handlers]
        parts = [
            part
            for event in self.events
            if type(event) is dict
            for part in (event, event.get("event"), event.get("data"))
            if type(part) is dict
        ]
        return {
            "handlers": [self._attributes(handler, HANDLER_ATTRIBUTES) for handler in handlers],
            "contexts": [self._attributes(context, CONTEXT_ATTRIBUTES) for context in contexts],
            "buffers": [self.describe(buffer) for buffer in buffers],
            "buffers shared": [
                next(i for i, other in enumerate(buffers) if other is buffer) for buffer in buffers
            ],
            "events": [self.describe(event) for event in self.events],
            "distinct parts of events": len({id(part) for part in parts}),
            "current run": self.describe(self.module.get_current_run_id()),
        }

    def _attributes(self, target: Any, names: tuple[str, ...]) -> Any:
        return [
            (name, self.describe(getattr(target, name, "missing"))) for name in (*names, "extra")
        ]

    def describe(self, value: Any) -> Any:
        """Say what an object is, in words that are the same in both worlds for the same object."""
        for pool, members in self.pools.items():
            for index, member in enumerate(members):
                if member is value:
                    return (pool, index)
        kind = type(value).__name__
        if isinstance(value, enum.Enum):
            return (kind, value.name)
        if isinstance(value, (dict, UserDict)):
            return (
                kind,
                [(self.describe(key), self.describe(item)) for key, item in value.items()],
            )
        if isinstance(value, (list, tuple)):
            return (kind, [self.describe(item) for item in value])
        if (
            isinstance(value, (str, bytes, bytearray, int, float, complex, set, frozenset, Named))
            or value is None
        ):
            return (kind, ascii(value))
        if isinstance(value, types.MappingProxyType):
            return (kind, self.describe(dict(value)))
        return (kind, "identity", id(value)) if isinstance(value, types.FunctionType) else (kind,)
