"""Replays the scenarios of ``conformance/conformance.json`` against a module.

A scenario is a list of steps in a small vocabulary, each step with the outcome that was recorded for it: what it
returned or raised, what the scenario's callbacks saw meanwhile, and what was printed. Values that JSON has no word for
are objects with a ``$`` key. Three parts: ``Values`` translates between JSON and Python, ``Callables`` makes the
callbacks and checkers that a scenario asks for, ``Stage`` performs the steps.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import dataclasses
import enum
import functools
import hashlib
import inspect
import io
import json
import math
import operator
import pickle
import platform
import threading
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Json = Any
    Step = dict[str, Json]
    Outcome = dict[str, Json]

CORPUS = Path(__file__).parent / "conformance" / "conformance.json"

SCENARIO_DEADLINE = 120.0
THREAD_DEADLINE = 30.0

LARGEST_JSON_INT = 2**53
LONGEST_SPELT_OUT = 2000
DEEPEST_PLAIN_DICT = 12

# Texts of TypeErrors name the function that was called wrongly. These are the names at the time of the recording.
RECORDED_PREFIX = "VM.make_callable.<locals>."

RAISABLE: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (
        BaseException,
        Exception,
        InterruptedError,
        KeyError,
        KeyboardInterrupt,
        RuntimeError,
        StopIteration,
        TypeError,
        ValueError,
    )
}


# --- Objects that a scenario can ask for. Their names and reprs are part of the vocabulary. ---


class ForeignType(str, enum.Enum):
    """Another program's enum with the same values."""

    GLOBAL_SUPERVISOR = "global_supervisor"
    TEAM_SUPERVISOR = "team_supervisor"
    WORKER = "worker"
    OTHER = "other"


class PlainEnum(enum.Enum):
    """An enum whose members are no strings."""

    WORKER = "worker"


class StrSub(str):  # noqa: SLOT000 - scenarios set attributes on it
    """A str, but not exactly."""


class IntSub(int):
    """An int, but not exactly."""


class DictSub(dict):  # type: ignore[type-arg]
    """A dict, but not exactly."""


class NeAlways(DictSub):
    """Differs from everything."""

    def __ne__(self, other: object) -> bool:
        return True


class NeNever(DictSub):
    """Differs from nothing."""

    def __ne__(self, other: object) -> bool:
        return False


class NeRaises(DictSub):
    """Refuses to be compared."""

    def __ne__(self, other: object) -> bool:
        raise ValueError("ne")


class Obj:
    """True, and good for nothing else."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Falsy(Obj):
    """False."""

    def __bool__(self) -> bool:
        return False


class BoolRaises(Obj):
    """Neither true nor false."""

    def __bool__(self) -> bool:
        raise ValueError("bool")


class Stripper(Obj):
    """Can be stripped, and leaves whatever it was given."""

    def __init__(self, left: object) -> None:
        self.left = left

    def strip(self) -> object:
        """Return what is left."""
        return self.left


class Duck:
    """Serves as a caller context, with a source of its own."""

    def __init__(self, source: object) -> None:
        self.source = source

    def to_source_dict(self) -> object:
        """Return the source."""
        return self.source


class LoggingWriter(io.StringIO):
    """A stdout whose writes appear among the calls that a scenario saw."""

    def __init__(self, log: list[Json]) -> None:
        super().__init__()
        self._log = log

    def write(self, text: str) -> int:
        """Log the text instead of keeping it."""
        self._log.append(["stdout", text])
        return len(text)


class RaisingWriter(io.StringIO):
    """A stdout that belongs to somebody who was interrupted."""

    def write(self, _text: str) -> int:
        """Refuse."""
        raise InterruptedError("stdout write")


# --- Scenarios ---


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Steps, and the outcome that was recorded for each."""

    id: str
    group: str
    level: str
    stdout: str
    steps: list[Step]
    expect: list[Outcome]


def load(path: Path = CORPUS) -> list[Scenario]:
    """Read all scenarios of a corpus."""
    return [
        Scenario(
            s["id"], s["group"], s["level"], s.get("stdout", "capture"), s["steps"], s["expect"]
        )
        for s in json.loads(path.read_text(encoding="utf-8"))["scenarios"]
    ]


def recorded_on_this_python(path: Path = CORPUS) -> bool:
    """Tell whether exceptions are worded here as they were when the corpus was recorded."""
    recorded: str = json.loads(path.read_text(encoding="utf-8"))["recorded_with"]["python"]
    return recorded.split(".")[:2] == platform.python_version().split(".")[:2]


def spelt(outcome: Json) -> str:
    """Return an outcome as text: key order counts, and ``true`` is not ``1``."""
    return json.dumps(outcome, ensure_ascii=True)


def without_texts(outcome: Json) -> Json:
    """Return an outcome whose exceptions have a type but no text."""
    if isinstance(outcome, list):
        return [without_texts(part) for part in outcome]
    if isinstance(outcome, dict):
        return {
            key: value[:1] if key == "exc" and isinstance(value, list) else without_texts(value)
            for key, value in outcome.items()
        }
    return outcome


def reworded(recorded: list[Outcome], here: list[Outcome]) -> list[Outcome]:
    """Take this interpreter's wording of exceptions for the steps where nothing else differs."""
    return [
        mine if spelt(without_texts(mine)) == spelt(without_texts(theirs)) else theirs
        for theirs, mine in zip(recorded, here, strict=True)
    ]


def replay(module: types.ModuleType, scenario: Scenario) -> list[Outcome]:
    """Perform a scenario in a fresh thread, and return one outcome per step."""
    outcomes: list[Outcome] = []
    thread = threading.Thread(
        target=lambda: outcomes.extend(Stage(module).perform(scenario)), daemon=True
    )
    thread.start()
    thread.join(SCENARIO_DEADLINE)
    if thread.is_alive():
        raise TimeoutError(f"{scenario.id} did not end within {SCENARIO_DEADLINE} s")
    return outcomes


# --- Values ---


class Values:
    """Translates between JSON and Python, for one scenario with its named objects."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module
        self.named: dict[str, Any] = {}
        worker = module.CallerContext.worker("", "", "")
        self._own_enum: type[enum.Enum] = type(worker.agent_type)
        self._own_classes = (module.CallerContext, module.LLMCallbackHandler)
        self._makers: dict[str, Callable[[Any], Any]] = {
            "tuple": lambda v: tuple(self.to_python(v)),
            "bytes": bytes.fromhex,
            "float": float,
            "bigint": int,
            "chr": lambda v: "".join(map(chr, v)),
            "strsub": StrSub,
            "intsub": IntSub,
            "dictsub": lambda v: DictSub(self.to_python(v)),
            "nealways": lambda v: NeAlways(self.to_python(v)),
            "nenever": lambda v: NeNever(self.to_python(v)),
            "neraises": lambda v: NeRaises(self.to_python(v)),
            "mappingproxy": lambda v: types.MappingProxyType(self.to_python(v)),
            "duck": lambda v: Duck(self.to_python(v)),
            "stripper": lambda v: Stripper(self.to_python(v)),
            "obj": lambda _: Obj(),
            "falsy": lambda _: Falsy(),
            "boolraises": lambda _: BoolRaises(),
        }

    def find(self, name: str) -> Any:
        """Return what the scenario, or else the module, calls by this name."""
        return self.named[name] if name in self.named else getattr(self.module, name)

    def to_python(self, value: Json) -> Any:
        """Make the object that a JSON value describes."""
        if isinstance(value, list):
            return [self.to_python(item) for item in value]
        if not isinstance(value, dict):
            return value
        kind = value.get("$")
        if kind is None:
            return {key: self.to_python(item) for key, item in value.items()}
        if kind == "ref":
            return self.find(value["name"])
        if kind == "own":
            return self._own_enum[value["name"]]
        if kind == "foreign":
            return ForeignType[value["name"]]
        if kind == "plainenum":
            return PlainEnum[value["name"]]
        if kind == "rep":
            return value["v"] * value["n"]
        return self._makers[kind](value.get("v"))

    def to_json(self, value: Any, depth: int = 0) -> Json:
        """Describe an object; one that the scenario has a name for, by that name."""
        if value is None or type(value) is bool:
            return value
        if type(value) in {str, int, float}:
            return self._scalar_to_json(value)
        name = self._name_of(value)
        if name is not None:
            return {"$": "is", "name": name}
        if isinstance(value, enum.Enum):
            return {"$": self._enum_kind(value), "name": value.name}
        if type(value) is StrSub:
            return {"$": "strsub", "v": str(value)}
        if type(value) is IntSub:
            return {"$": "intsub", "v": int(value)}
        if type(value) is bytes:
            return {"$": "bytes", "v": value.hex()}
        if type(value) is list:
            return [self.to_json(item, depth + 1) for item in value]
        if type(value) is tuple:
            return {"$": "tuple", "v": [self.to_json(item, depth + 1) for item in value]}
        if isinstance(value, dict):
            return self._dict_to_json(value, depth)
        return {"$": "object", "type": type(value).__name__}

    @staticmethod
    def _scalar_to_json(value: float | str) -> Json:
        if isinstance(value, str):
            try:
                utf8 = value.encode()
            except UnicodeEncodeError:
                return {"$": "chr", "v": [ord(char) for char in value]}
            if len(value) <= LONGEST_SPELT_OUT:
                return value
            return {
                "$": "longstr",
                "len": len(value),
                "md5": hashlib.md5(utf8, usedforsecurity=False).hexdigest(),
            }
        if isinstance(value, int):
            return value if abs(value) < LARGEST_JSON_INT else {"$": "bigint", "v": str(value)}
        return value if math.isfinite(value) else {"$": "float", "v": str(value)}

    def _dict_to_json(self, value: dict[Any, Any], depth: int) -> Json:
        if type(value) is not dict or depth >= DEEPEST_PLAIN_DICT:
            content = {str(key): self.to_json(item, depth + 1) for key, item in value.items()}
            return {"$": type(value).__name__, "v": content}
        if all(type(key) is str and key != "$" for key in value):
            return {key: self.to_json(item, depth + 1) for key, item in value.items()}
        return {
            "$": "items",
            "v": [
                [self.to_json(key), self.to_json(item, depth + 1)] for key, item in value.items()
            ],
        }

    def _enum_kind(self, member: enum.Enum) -> str:
        kinds: dict[type, str] = {
            self._own_enum: "own",
            ForeignType: "foreign",
            PlainEnum: "plainenum",
        }
        return kinds.get(type(member), type(member).__name__)

    def _name_of(self, value: object) -> str | None:
        has_identity = (
            isinstance(value, (dict, list, set))
            or callable(value)
            or type(value).__module__ == __name__
            or type(value) in self._own_classes
        )
        if not has_identity:
            return None
        return next((name for name, known in self.named.items() if known is value), None)


# --- Callbacks and checkers ---


def recorded_as(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Give a function the name that the recorded texts know it by."""

    def rename(function: Callable[..., Any]) -> Any:
        function.__qualname__ = RECORDED_PREFIX + name
        return function

    return rename


class Callables:
    """Makes the callbacks and checkers of a scenario; most note each call in the log first."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def make(self, step: Step) -> Any:
        """Make the callable that a step describes."""
        maker = cast("Callable[[Note, Step], Any]", getattr(self, f"_{step.get('kind', 'record')}"))
        return maker(Note(self._stage, step["name"]), step)

    def _value(self, step: Step) -> Any:
        return self._stage.values.to_python(step.get("value"))

    @staticmethod
    def _record(note: Note, _step: Step) -> Any:
        @recorded_as("record")
        def record(*args: Any) -> None:
            note(*args)

        return record

    def _return(self, note: Note, step: Step) -> Any:
        @recorded_as("f")
        def returning(*args: Any) -> Any:
            note(*args)
            return self._value(step)

        return returning

    def _seq(self, note: Note, step: Step) -> Any:
        @recorded_as("f")
        def one_after_the_other(*args: Any) -> Any:
            nth = min(note.calls, len(step["values"]) - 1)
            note(*args)
            return self._stage.values.to_python(step["values"][nth])

        return one_after_the_other

    @staticmethod
    def _raise(note: Note, step: Step) -> Any:
        @recorded_as("f")
        def raising(*args: Any) -> None:
            note(*args)
            if note.calls > step.get("after", 0):
                raise RAISABLE[step["exc"]](*step.get("args", []))

        return raising

    def _run(self, note: Note, step: Step) -> Any:
        @recorded_as("f")
        def running(*args: Any) -> Any:
            note(*args)
            if note.calls <= step.get("times", 1):
                for inner in step["steps"]:
                    result = result_or_exception(self._stage.attempt(inner))
                    self._stage.log.append([f"{note.name}>{inner['op']}", result])
            return self._value(step)

        return running

    @staticmethod
    def _mutate(note: Note, _step: Step) -> Any:
        @recorded_as("f")
        def mutating(ev: dict[str, Any]) -> None:
            note(ev)
            ev["data"]["added"] = True
            ev["data"].pop("content", None)
            if ev["source"]:
                ev["source"].clear()
            ev["event"]["category"] = "changed"
            ev["extra"] = 1

        return mutating

    def _object(self, note: Note, step: Step, **specials: Any) -> Any:
        @recorded_as("C.__call__")
        def call(_self: object, *args: Any) -> Any:
            note(*args)
            return self._value(step)

        return type("C", (), {"__module__": __name__, "__call__": call, **specials})()

    def _falsy(self, note: Note, step: Step) -> Any:
        return self._object(note, step, __bool__=lambda _: False)

    def _len0(self, note: Note, step: Step) -> Any:
        return self._object(note, step, __len__=lambda _: 0)

    def _boolraises(self, note: Note, step: Step) -> Any:
        def refuse(_self: object) -> bool:
            raise ValueError("bool of callable")

        return self._object(note, step, __bool__=refuse)

    def _counted(self, note: Note, step: Step) -> Any:
        def count(_self: object) -> bool:
            self._stage.log.append([f"{note.name}.bool"])
            return True

        return self._object(note, step, __bool__=count)

    @staticmethod
    def _method(note: Note, _step: Step) -> Any:
        @recorded_as("C.go")
        def go(_self: object, *args: Any) -> None:
            note(*args)

        return type("C", (), {"__module__": __name__, "go": go})().go

    @staticmethod
    def _class(note: Note, _step: Step) -> Any:
        @recorded_as("C.__init__")
        def init(_self: object, *args: Any) -> None:
            note(*args)

        return type("C", (), {"__module__": __name__, "__init__": init})

    @staticmethod
    def _partial(note: Note, _step: Step) -> Any:
        @recorded_as("<lambda>")
        def after_one(_one: int, *args: Any) -> None:
            note(*args)

        return functools.partial(after_one, 1)

    @staticmethod
    def _noargs(_note: Note, _step: Step) -> Any:
        @recorded_as("<lambda>")
        def nothing() -> None:
            pass

        return nothing

    @staticmethod
    def _kwonly(_note: Note, _step: Step) -> Any:
        @recorded_as("f")
        def by_keyword(*, event: Any) -> None:
            del event

        return by_keyword


class Note:
    """Notes the calls of one callable in the log of its scenario."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.name = name
        self.calls = 0
        self._stage = stage

    def __call__(self, *args: Any) -> None:
        self.calls += 1
        if args and isinstance(args[0], dict) and "event" in args[0]:
            self._stage.events.append(args[0])
        self._stage.log.append([self.name, *map(self._stage.values.to_json, args)])


# --- Steps ---


def result_or_exception(outcome: Outcome) -> Json:
    """Return what a step returned, or its exception."""
    return outcome["ret"] if "ret" in outcome else {"exc": outcome["exc"]}


class Stage:
    """Performs the steps of one scenario."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module
        self.values = Values(module)
        self.log: list[Json] = []
        self.events: list[Any] = []
        self._callables = Callables(self)
        self._questions = Questions(self.values)
        self._run_ids: list[Json] = list(range(-5, 60))
        self._there = [*module._callback_registry, *module._checker_registry]

    def perform(self, scenario: Scenario) -> list[Outcome]:
        """Perform all steps, leave nothing registered, and return the outcomes."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._clean_up)
            return [self._perform_step(step, scenario.stdout) for step in scenario.steps]

    def _perform_step(self, step: Step, stdout: str) -> Outcome:
        seen_before = len(self.log)
        writer = self._stdout(stdout)
        with contextlib.redirect_stdout(writer):
            outcome = self.attempt(step)
        if len(self.log) > seen_before:
            outcome["log"] = copy.deepcopy(self.log[seen_before:])
        printed = writer.getvalue() if writer is not None else ""
        if printed:
            outcome["out"] = self.values.to_json(printed)
        return outcome

    def _stdout(self, kind: str) -> io.StringIO | None:
        if kind == "none":
            return None
        if kind == "log":
            return LoggingWriter(self.log)
        return RaisingWriter() if kind == "raise" else io.StringIO()

    def _clean_up(self) -> None:
        for spec in self._run_ids:
            with contextlib.suppress(Exception):
                run_id = self.values.to_python(spec)
                self.module.register_event_callback(run_id, None)
                self.module.register_cancellation_checker(run_id, None)
        # An id that equals nothing, as a NaN does not, is found by the object itself only.
        for run_id in [*self.module._callback_registry]:
            if run_id not in self._there:
                self.module.register_event_callback(run_id, None)
        for run_id in [*self.module._checker_registry]:
            if run_id not in self._there:
                self.module.register_cancellation_checker(run_id, None)
        self.module.clear_current_run_id()

    def attempt(self, step: Step) -> Outcome:
        """Perform one step; whatever it raises is its outcome."""
        try:
            operation = cast("Callable[[Step], Any]", getattr(self, f"_do_{step['op']}"))
            return {"ret": self.values.to_json(operation(step))}
        except BaseException as error:  # noqa: BLE001
            return {"exc": [type(error).__name__, str(error)]}

    def _keep(self, step: Step, result: Any) -> Any:
        if "as" in step:
            self.values.named[step["as"]] = result
        return result

    def _call(self, function: Any, step: Step) -> Any:
        args = [self.values.to_python(arg) for arg in step.get("args", [])]
        given = step.get("kwargs", {})
        pairs: Iterable[tuple[str, Json]] = given.items() if isinstance(given, dict) else given
        return self._keep(
            step, function(*args, **{key: self.values.to_python(value) for key, value in pairs})
        )

    def _at(self, path: list[Any]) -> Any:
        first, *keys = path
        found: Any = self.events if first == "ev" else self.values.named[first]
        for key in keys:
            found = found[key] if isinstance(found, (dict, list)) else getattr(found, key)
        return found

    def _do_new(self, step: Step) -> None:
        self.values.named[step["name"]] = self.values.to_python(step["value"])

    def _do_callback(self, step: Step) -> None:
        self.values.named[step["name"]] = self._callables.make(step)

    _do_checker = _do_callback

    def _do_fn(self, step: Step) -> Any:
        if step["fn"].startswith(("register_", "set_current")):
            self._run_ids += step.get("args", [])[:1]
            given = step.get("kwargs", {})
            self._run_ids += [value for key, value in dict(given).items() if key == "run_id"]
        return self._call(getattr(self.module, step["fn"]), step)

    def _do_invoke(self, step: Step) -> Any:
        return self._call(self.values.find(step["on"]), step)

    def _do_method(self, step: Step) -> Any:
        return self._call(getattr(self.values.find(step["on"]), step["name"]), step)

    def _do_get(self, step: Step) -> Any:
        return self._keep(step, getattr(self.values.find(step["on"]), step["attr"]))

    def _do_set(self, step: Step) -> None:
        setattr(self.values.find(step["on"]), step["attr"], self.values.to_python(step["value"]))

    def _do_del(self, step: Step) -> None:
        delattr(self.values.find(step["on"]), step["attr"])

    def _do_item_set(self, step: Step) -> None:
        self._at(step["path"])[step["key"]] = self.values.to_python(step["value"])

    def _do_identity(self, step: Step) -> bool:
        return self._at(step["a"]) is self._at(step["b"])

    def _do_event_count(self, _step: Step) -> int:
        return len(self.events)

    def _do_py(self, step: Step) -> Any:
        question = PLAIN_QUESTIONS.get(step["fn"]) or cast(
            "Callable[..., Any]", getattr(self._questions, step["fn"])
        )
        return self._keep(step, question(*map(self.values.to_python, step.get("args", []))))

    def _do_thread(self, step: Step) -> list[Json]:
        outcomes: list[Json] = []

        def body() -> None:
            outcomes.extend(result_or_exception(self.attempt(inner)) for inner in step["steps"])
            if step.get("clear", True):
                self.module.clear_current_run_id()

        start = (
            functools.partial(contextvars.copy_context().run, body)
            if step.get("context") == "copy"
            else body
        )
        join_all([threading.Thread(target=start, daemon=True)])
        return outcomes

    def _do_storm(self, step: Step) -> Json:
        return Storm(self.module, step["threads"], step["n"], step.get("base", 1000)).blow()


def join_all(threads: list[threading.Thread]) -> None:
    """Start threads, and wait for all of them, but not for ever."""
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(THREAD_DEADLINE)
        if thread.is_alive():
            raise TimeoutError(f"a thread did not end within {THREAD_DEADLINE} s")


class Storm:
    """Many threads, each with a run and a handler of its own, all sending at once."""

    def __init__(self, module: types.ModuleType, threads: int, tokens: int, first_run: int) -> None:
        self._module = module
        self._run_ids = range(first_run, first_run + threads)
        self._tokens = tokens
        self._received: dict[int, list[Any]] = {run_id: [] for run_id in self._run_ids}
        self._errors: list[str] = []
        self._together = threading.Barrier(threads)

    def blow(self) -> Json:
        """Send all tokens, and tell who got what."""
        with self._registered():
            join_all(
                [threading.Thread(target=self._send, args=(i,), daemon=True) for i in self._run_ids]
            )
        own_in_order = all(
            [event["data"]["content"] for event in events] == self._tokens_of(run_id)
            for run_id, events in self._received.items()
        )
        return {
            "all_in_order_in_own_run": own_in_order,
            "counts": [len(events) for events in self._received.values()],
            "errors": self._errors,
        }

    @contextlib.contextmanager
    def _registered(self) -> Iterator[None]:
        for run_id, events in self._received.items():
            self._module.register_event_callback(run_id, events.append)
            self._module.register_cancellation_checker(run_id, lambda: False)
        try:
            yield
        finally:
            for run_id in self._run_ids:
                self._module.register_event_callback(run_id, None)
                self._module.register_cancellation_checker(run_id, None)

    def _tokens_of(self, run_id: int) -> list[str]:
        return [f"{run_id}:{i}" for i in range(self._tokens)]

    def _send(self, run_id: int) -> None:
        try:
            context = self._module.CallerContext.worker("w", "n", "t")
            handler = self._module.create_callback_handler(context, run_id=run_id)
            self._together.wait(THREAD_DEADLINE)
            for token in self._tokens_of(run_id):
                handler(data=token)
        except BaseException as error:  # noqa: BLE001
            self._errors.append(repr(error))


PLAIN_QUESTIONS: dict[str, Callable[..., Any]] = {
    "repr": repr,
    "str": str,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "bool": bool,
    "len": len,
    "callable": callable,
    "isinstance": isinstance,
    "has": hasattr,
    "contains": operator.contains,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "is_dataclass": dataclasses.is_dataclass,
    "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
    "match_args": operator.attrgetter("__match_args__"),
    "name": operator.attrgetter("__name__"),
}


class Questions:
    """What a scenario can ask Python about an object, besides the plain questions; each method is a word."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._module = values.module

    def hash(self, value: object) -> Json:
        """Tell whether an object has a hash."""
        return isinstance(hash(value), int)

    def pickle(self, value: object) -> Any:
        """Send an object through pickle."""
        return pickle.loads(pickle.dumps(value))  # noqa: S301

    def replace(self, value: Any, changes: dict[Any, Any]) -> Any:
        """Return a changed copy of a dataclass instance."""
        return dataclasses.replace(value, **changes)

    def fields(self, value: Any) -> Json:
        """Describe the fields of a dataclass."""
        return [
            [
                field.name,
                self._default(field.default, dataclasses.MISSING),
                field.init,
                field.repr,
                field.compare,
            ]
            for field in dataclasses.fields(value)
        ]

    def params(self, value: Any) -> Json:
        """Describe the parameters of a callable."""
        return [
            [
                parameter.name,
                parameter.kind.name,
                self._default(parameter.default, inspect.Parameter.empty),
            ]
            for parameter in inspect.signature(value).parameters.values()
        ]

    def _default(self, default: Any, missing: object) -> Json:
        return "MISSING" if default is missing else self._values.to_json(default)

    def type_name(self, value: object) -> Json:
        """Name the class of an object."""
        return type(value).__name__

    def vars(self, value: object) -> Json:
        """Name the attributes of an object."""
        return sorted(vars(value))

    def mod_has(self, name: Any) -> Json:
        """Tell whether the module has a name."""
        return hasattr(self._module, name)

    def doc(self, value: object) -> Json:
        """Tell whether an object is documented."""
        return bool(value.__doc__)

    def match(self, value: object) -> Json:
        """Take a context apart by position."""
        context_class = self._module.CallerContext
        match value:
            case context_class(first, second, third, fourth):
                return [self._values.to_json(part) for part in (first, second, third, fourth)]
        return "no match"

    def subclass_context(self, _unused: object) -> Json:
        """Derive a class from the context, and look at an instance."""
        base = self._module.CallerContext
        sub: Any = type("Sub", (base,), {})
        context = sub.worker("a", "b", "c")
        equal = context == base.worker("a", "b", "c")
        return [
            type(context).__name__,
            isinstance(context, base),
            equal,
            context.get_source_label(),
        ]

    def subclass_handler(self, context: object) -> Json:
        """Derive a handler that looks at each event before it is emitted."""
        emitted: list[Json] = []
        received: list[Any] = []
        base = self._module.LLMCallbackHandler

        def emit(handler: Any, callback: Any, category: Any, action: Any, data: Any) -> None:
            emitted.append([category.value, action.value, dict(data)])
            base._emit_event(handler, callback, category, action, data)

        handler = type("Sub", (base,), {"_emit_event": emit})(context, received.append)
        handler(reasoningText="r", data="d", current_tool_use={"name": "t"}, complete=True)
        return [emitted, len(received), type(handler).__name__]

    def subclass_handler_call(self, context: object) -> Json:
        """Derive a handler that has an attribute of its own and changes what it is called with."""
        received: list[Any] = []
        base = self._module.LLMCallbackHandler

        def init(handler: Any, *args: Any, **kwargs: Any) -> None:
            base.__init__(handler, *args, **kwargs)
            handler.extra = 1

        def call(handler: Any, **kwargs: Any) -> None:
            base.__call__(handler, **{**kwargs, "data": kwargs.get("data", "") + "!"})

        handler = type("Sub", (base,), {"__init__": init, "__call__": call})(
            context, received.append
        )
        handler(data="d")
        return [handler.extra, [event["data"] for event in received]]
