"""The package as a whole: its names, words and types, what it imports, and what README promises."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import threading
import types
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pytest

import llm_callback
from llm_callback import (
    _callback_registry,
    _checker_registry,
    _current_run_id,
    register_cancellation_checker,
    register_event_callback,
    set_current_run_id,
    stats,
)
from support import DEADLINE, interpreter, new_id, printed, together

PACKAGE = Path(llm_callback.__file__).parent
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

CONTRACT = {
    "CallerContext",
    "set_current_run_id",
    "get_current_run_id",
    "clear_current_run_id",
    "register_event_callback",
    "get_event_callback",
    "register_cancellation_checker",
    "get_cancellation_checker",
    "set_global_event_callback",
    "get_global_event_callback",
    "set_global_cancellation_checker",
    "get_global_cancellation_checker",
    "check_cancellation",
    "LLMCallbackHandler",
    "create_callback_handler",
    "AgentType",
    "EventCategory",
    "EventAction",
}

# Types that are no classes: they have no docstrings.
ALIASES = {"CancelKind", "Overflow", "RunState"}

# Types that `import *` does not bring.
TYPES = {"Event", "EventWord", "Overflow", "RunState", "Source"}


# --- Names ---


def test_all_is_the_public_names() -> None:
    """``__all__`` is sorted, has every public name that is no module and no type of events, and the contract's."""
    # What is imported at its first use is there from then on.
    assert [name for name in llm_callback.__all__ if not hasattr(llm_callback, name)] == []
    public = [
        name
        for name, value in vars(llm_callback).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    ]
    assert [name for name in TYPES if not hasattr(llm_callback, name)] == []
    assert sorted({*public} - TYPES) == llm_callback.__all__
    assert len(set(llm_callback.__all__)) == len(llm_callback.__all__)
    assert set(llm_callback.__all__) >= CONTRACT | {"RunCancelled", "bind", "configure", "stats"}


def stub_names() -> dict[str, ast.AST]:
    """Return what the stub of the extension declares for use at run time."""
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    names: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.ClassDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            if "type_check_only" not in decorators:
                names[node.name] = node
    return names


def test_the_stub_has_the_names_of_the_extension() -> None:
    """What Rust exports and what the stub declares are the same names, private ones included."""
    core = sys.modules["llm_callback._core"]
    runtime = {name for name in vars(core) if not name.startswith("__")}
    assert set(stub_names()) == runtime


def test_the_stub_has_the_signatures_of_the_extension() -> None:
    """Parameters have the same names, order and kind in both, also those of ``__text_signature__``."""
    core = sys.modules["llm_callback._core"]
    for name, node in stub_names().items():
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            plain = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            declared = [arg.arg for arg in plain]
            if arguments.kwarg is not None:
                declared.append(arguments.kwarg.arg)
            assert list(inspect.signature(getattr(core, name)).parameters) == declared


def test_every_public_name_is_documented() -> None:
    """Functions, classes and their public methods have docstrings, the package has one; a page has the aliases."""
    assert inspect.cleandoc(llm_callback.__doc__ or "")
    page = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    missing = [name for name in ALIASES if f"`{name}`" not in page]
    for name in {*llm_callback.__all__} - ALIASES:
        thing = getattr(llm_callback, name)
        if not (thing.__doc__ or "").strip() or thing.__doc__ == str.__doc__:
            missing.append(name)
        if isinstance(thing, type):
            missing += [
                f"{name}.{method}"
                for method, value in vars(thing).items()
                if not method.startswith("_")
                and callable(value)
                and not isinstance(value, thing)
                and not (value.__doc__ or "").strip()
            ]
    assert missing == []


def test_functions_say_that_they_are_of_the_package() -> None:
    """Classes, which pickles name, can be found where they say that they are."""
    for name in {*llm_callback.__all__} - ALIASES:
        thing = getattr(llm_callback, name)
        module = sys.modules[thing.__module__]
        assert getattr(module, thing.__qualname__) is thing


def test_the_package_is_typed() -> None:
    """``py.typed`` and the stub are installed with it."""
    files = {path.name for path in resources.files("llm_callback").iterdir()}
    assert {"py.typed", "_core.pyi"} <= files


def test_the_distribution_needs_nothing() -> None:
    """All requirements are of an extra, and the version is one of pip's."""
    distribution = metadata.distribution("llm-callback")
    assert [line for line in distribution.requires or [] if "extra ==" not in line] == []
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", distribution.version)


# --- What the import brings ---


def modules_after(code: str) -> set[str]:
    """Return the modules that are there after ``code``, in an interpreter without site-packages' hooks."""
    return set(printed(f"{code}\nimport sys\nprint(*sys.modules)").split())


def test_the_import_brings_no_third_party_module() -> None:
    """Only the standard library and the package itself are imported."""
    brought = modules_after("import llm_callback") - modules_after("")
    top_level = {name.partition(".")[0] for name in brought}
    assert top_level - set(sys.stdlib_module_names) == {"llm_callback"}


def test_the_import_brings_little_of_the_standard_library() -> None:
    """No ``typing``, ``asyncio`` or the like is imported that ``dataclasses`` and its like do not bring."""
    needed = modules_after(
        "import atexit, dataclasses, enum, contextvars, threading, functools, collections.abc, json"
    )
    brought = modules_after("import llm_callback") - needed
    assert {name for name in brought if not name.startswith("llm_callback")} <= {"__future__"}
    assert not {"typing", "asyncio", "logging", "uuid", "traceback"} & brought


def test_the_import_brings_no_part_that_is_not_needed() -> None:
    """The demo, the command, the testing helpers and the types are imported by who uses them."""
    brought = {name for name in modules_after("import llm_callback") if "llm_callback" in name}
    names = {name.rpartition(".")[2] for name in brought}
    assert not {"testing", "demo", "cli", "_run", "_script", "_display", "_signatures"} & names
    assert not {"_event_types", "_version", "bound_executor"} & names


def test_the_import_starts_nothing() -> None:
    """No thread is started, and neither streams, hooks nor handlers of the process are replaced."""
    assert printed(
        """
        import signal, sys, threading
        def state():
            return (threading.active_count(), sys.stdout, sys.stderr, sys.excepthook,
                threading.excepthook, threading.Thread.start, sys.meta_path[:], sys.path_hooks[:],
                [signal.getsignal(number) for number in signal.valid_signals()])
        before = state()
        import llm_callback
        print(state() == before)
        """
    ) == ("True\n")


def test_the_package_can_be_imported_by_many_threads_at_once() -> None:
    """Eight first imports at once all get the same complete module."""
    assert printed(
        """
        import threading
        gate, got = threading.Barrier(8), []
        def job():
            gate.wait(30)
            import llm_callback
            got.append((id(llm_callback), len([getattr(llm_callback, n) for n in llm_callback.__all__])))
        threads = [threading.Thread(target=job) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join(30)
        print(len(got), len(set(got)))
        """
    ) == ("8 1\n")


def test_the_package_can_be_imported_again() -> None:
    """After its modules were taken out of ``sys.modules`` an import gives a package that works."""
    assert printed(
        """
        import sys
        import llm_callback as first
        first.register_event_callback(1, print)
        for name in [name for name in sys.modules if name.startswith("llm_callback")]:
            del sys.modules[name]
        import llm_callback as second
        got = []
        second.register_event_callback(2, got.append)
        handler = second.create_callback_handler(second.CallerContext.worker("w", "W", "T"), run_id=2)
        handler(data="x")
        print(got[0]["source"]["agent_type"], first is second)
        """
    ) == ("worker False\n")


# --- The views ---


@pytest.mark.thread_unsafe(reason="looks at all registrations of the process")
@pytest.mark.parametrize(
    ("view", "register"),
    [
        (_callback_registry, register_event_callback),
        (_checker_registry, register_cancellation_checker),
    ],
    ids=["callbacks", "checkers"],
)
def test_a_view_is_a_live_mapping(view: Any, register: Any) -> None:
    """It shows what is registered at the moment, and is equal to a dict of that."""
    before = dict(view)
    ids = [new_id(), hash(new_id()), (new_id(), 1)]
    for run_id in ids:
        assert run_id not in view
        assert view.get(run_id) is None
        register(run_id, len)
        assert run_id in view
        assert view[run_id] is view.get(run_id) is len
    expected = {**before, **dict.fromkeys(ids, len)}
    assert view == expected
    assert expected == view
    assert view != before
    assert len(view) == len(expected)
    assert set(view) == set(view.keys()) == set(expected)
    assert dict(view.items()) == dict(view) == {**view} == expected
    assert len(list(view.values())) == len(expected)
    assert repr(view).startswith("{")
    assert all(f"{run_id!r}: <built-in function len>" in repr(view) for run_id in ids)
    keys = view.keys()
    for run_id in ids:
        register(run_id, None)
    assert view == before
    assert set(keys) == set(before)
    with pytest.raises(KeyError) as caught:
        view[ids[0]]
    assert caught.value.args == (ids[0],)
    with pytest.raises(TypeError, match="unhashable type: 'list'"):
        view[[]]
    assert bool(view) is bool(before)


@pytest.mark.parametrize("view", [_callback_registry, _checker_registry, _current_run_id])
def test_a_view_cannot_be_changed(view: Any) -> None:
    """It is a read-only mapping: it has none of the methods that change a dict."""
    assert isinstance(view, Mapping)
    assert not isinstance(view, dict)
    with pytest.raises(TypeError):
        view["a"] = 1
    with pytest.raises(TypeError):
        del view["a"]
    for name in ["pop", "popitem", "clear", "update", "setdefault", "__setitem__", "__delitem__"]:
        assert not hasattr(view, name)
    with pytest.raises(AttributeError):
        view.further = 1
    with pytest.raises(TypeError):
        view |= {}
    with pytest.raises(TypeError):
        hash(view)


def test_an_iterator_of_a_view_is_one_moment() -> None:
    """What is registered or removed during an iteration does not disturb it, as in the host's cleanup loops."""
    ids = [new_id() for _ in range(5)]
    for run_id in ids:
        register_event_callback(run_id, len)
    seen = []
    for run_id in _callback_registry:
        if run_id in ids:
            seen.append(run_id)
            register_event_callback(run_id, None)
            register_event_callback(run_id + "more", len)
    assert sorted(seen) == sorted(ids)
    for run_id in ids:
        assert _callback_registry[run_id + "more"] is len
        register_event_callback(run_id + "more", None)


@pytest.mark.parametrize(
    "use",
    [
        list,
        len,
        repr,
        lambda view: list(view.items()),
        lambda view: list(view.values()),
        lambda view: view == {},
        lambda view: view.get("nothing"),
    ],
    ids=["list", "len", "repr", "items", "values", "equality", "get"],
)
def test_a_view_can_be_read_while_others_register(use: Any) -> None:
    """No read of a view fails because another thread removes a run in the middle of it."""
    done = threading.Event()

    def change() -> None:
        mine = [new_id() for _ in range(20)] + [(new_id(), 1)]
        while not done.is_set():
            for run_id in mine:
                register_event_callback(run_id, len)
            for run_id in mine:
                register_event_callback(run_id, None)

    def read() -> None:
        try:
            for _ in range(1_000):
                use(_callback_registry)
        finally:
            done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        together([change, change, read], DEADLINE)
    finally:
        sys.setswitchinterval(interval)


def test_the_view_of_the_current_run() -> None:
    """It has this thread's ident and run, or nothing, and says so in its repr."""
    ident = threading.get_ident()
    set_current_run_id("mine")
    try:
        assert _current_run_id == {ident: "mine"}
        assert repr(_current_run_id) == f"{{{ident}: 'mine'}}"
        assert (len(_current_run_id), list(_current_run_id)) == (1, [ident])
        assert ident in _current_run_id
        assert 0 not in _current_run_id
    finally:
        set_current_run_id(None)
    assert _current_run_id == {}
    assert not _current_run_id


# --- stats() ---


@pytest.mark.thread_unsafe(reason="counts all registrations of the process")
def test_stats_are_plain_numbers() -> None:
    """A new dict each time, of ints and dicts of such; what is registered is counted once."""

    def shape(value: Any) -> Any:
        return {key: shape(value[key]) for key in value} if isinstance(value, dict) else type(value)

    with llm_callback.open_run():
        # Perhaps a run that another test has left open.
        oldest = shape(stats()["runs"]["oldest"])
    assert oldest in ({"run_id": each, "opened_at": float} for each in (int, str))
    before = stats()
    plain = stats()
    del plain["runs"]["oldest"]
    assert shape(plain) == {
        "emitted": int,
        "dropped": {"no_callback": int, "route": int},
        "cancelled": int,
        "callbacks": int,
        "checkers": int,
        "runs": {
            "live": int,
            "finished": int,
            "finished_bytes": int,
            "opened": int,
            "late": int,
        },
        "readers": {"open": int, "lag": int},
        "sinks": {},
    }
    run_ids = [new_id(), (new_id(), 1)]
    for run_id in run_ids * 2:
        register_event_callback(run_id, len)
        register_cancellation_checker(run_id, len)
    now = stats()
    assert now["callbacks"] - before["callbacks"] == now["checkers"] - before["checkers"] == 2
    now["dropped"]["route"] = now["emitted"] = -1
    assert stats()["emitted"] == before["emitted"]
    assert stats()["dropped"] == before["dropped"]
    for run_id in run_ids * 2:
        register_event_callback(run_id, None)
        register_cancellation_checker(run_id, None)
    assert stats() == before


def test_stats_of_a_fresh_process_are_zero() -> None:
    """Importing counts nothing."""
    zero = {
        "emitted": 0,
        "dropped": {"no_callback": 0, "route": 0},
        "cancelled": 0,
        "callbacks": 0,
        "checkers": 0,
        "runs": {
            "live": 0,
            "oldest": None,
            "finished": 0,
            "finished_bytes": 0,
            "opened": 0,
            "late": 0,
        },
        "readers": {"open": 0, "lag": 0},
        "sinks": {},
    }
    told = printed("import json, llm_callback; print(json.dumps(llm_callback.stats()))")
    assert json.loads(told) == zero


# --- README and docs/ ---


def blocks() -> list[Any]:
    """Return the Python blocks of all pages, each named by its page and line. A fence ```py shows, and is not run."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match[1], id=f"{page.name} line {line}"))
    return found


def test_pages_have_python_blocks() -> None:
    """README and the pages of docs/ have examples to run, and none hides behind another fence."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(blocks()) == len(re.findall(r"(?:```|~~~)\s*python", text)) > 10


@pytest.mark.parametrize("block", blocks())
def test_a_block_of_a_page_runs(block: str) -> None:
    """Each example runs as it is printed, in a fresh interpreter, and raises nothing."""
    done = interpreter(block)
    assert (done.returncode, done.stderr) == (0, "")


def test_links_of_pages_lead_somewhere() -> None:
    """Each relative link of a page names a file of the project."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_each_guarantee_names_tests_that_are_there() -> None:
    """Each name in docs/guarantees.md is a test of the project, and each guarantee has one."""
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    files = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("tests/**/*.rs"), *ROOT.glob("src/**/*.rs")]
    there = set(re.findall(r"(?:def|fn) (\w+)\(", "".join(file.read_text() for file in files)))
    parts = re.split(r"\n\n(?=\*\*G)", page)
    assert len(parts) == 11
    for part in parts:
        names = set(re.findall(r"`([a-z]\w*_\w+)`", part.replace("`llm_callback`", "")))
        assert names <= there, names - there
        assert names or part is parts[0]
