"""``llm_callback`` and the plain reference model, side by side, through the same random operations."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

import llm_callback
import reference_model
import worlds as w
from worlds import NONE, New, Own, Pooled, Story, The, World

pytestmark = pytest.mark.thread_unsafe(reason="sys.stdout is the whole process's")

# --- Strategies: small pools, so that operations meet each other ---

HASHABLE_IDS: list[Any] = [
    *(0, 1, 2, -1, True, False, 1.0, -0.0, 1.5, math.nan, math.inf, 1 + 0j),
    *(2**53, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 2**80, float(2**63)),
    *(
        "",
        "1",
        "a",
        "A",
        "\u4e3b\u7ba1",
        "\ud800",
        "\x00",
        b"a",
        (1, "x"),
        (1.0, "x"),
        (),
        frozenset({1}),
    ),
    *(w.StrSub("a"), w.CaselessStr("b"), w.CaselessStr("B"), w.IntSub(1), w.Alike(1), w.Alike(2)),
    *(
        w.Number.ONE,
        w.Number.SEVEN,
        w.Word.A,
        Decimal(1),
        Decimal("1.5"),
        Fraction(1),
        Fraction(3, 2),
        None,
        int,
    ),
]
UNHASHABLE_IDS = [
    *(
        New("list", [1]),
        New("dict", {"a": 1}),
        New("set", [1]),
        New("bytearray", b"a"),
        The(([],)),
        The(w.Unhashable()),
    ),
    *(The(w.HashRaises()), The(Decimal("sNaN"))),
]


def weighted(*choices: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Choose between strategies by weight; ``one_of`` would count a repeated one once."""
    tickets = [strategy for weight, strategy in choices for _ in range(weight)]
    return st.integers(0, len(tickets) - 1).flatmap(lambda ticket: tickets[ticket])


def many(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Make lists of about fifteen, in three parts; a list in one part has about five."""
    part = st.lists(strategy, max_size=12)
    return st.tuples(part, part, part).map(lambda parts: [*itertools.chain(*parts)])


indices = st.integers(-2, 2)  # the newest as often as the oldest
common_ids = st.sampled_from([0, 1, "a"]).map(The)
hashable_ids = st.sampled_from(HASHABLE_IDS).map(The)
run_ids = weighted((6, common_ids), (5, hashable_ids), (1, st.sampled_from(UNHASHABLE_IDS)))

WHITE_SPACE = [chr(i) for i in range(0x3001) if chr(i).isspace()]
ALMOST_WHITE_SPACE = ["\u200b", "\x00", "\ufeff", "\u180e", "\u2060", "\x1b", "\x84"]

texts = st.one_of(
    st.sampled_from(["token", "", " ", "\n", "  padded\t"]),
    st.lists(st.sampled_from(WHITE_SPACE + ALMOST_WHITE_SPACE), max_size=4).map("".join),
    st.text(st.characters(), max_size=5),
)
odd_things: st.SearchStrategy[Any] = st.sampled_from(
    [
        *map(
            The,
            (
                None,
                True,
                False,
                0,
                1,
                -5,
                2**80,
                0.0,
                1.5,
                math.nan,
                b"",
                b" \t",
                b"ab",
                (),
                (1,),
                1j,
            ),
        ),
        *map(
            The,
            (
                w.StrSub("s"),
                w.StrSub("  "),
                w.FalseStr("f"),
                w.BlankStr("b"),
                w.Word.A,
                w.Number.ONE,
            ),
        ),
        *map(
            The,
            (w.Falsy(), w.BoolRaises(), w.StrRaises(), w.LenRaises(), w.StripRaises(), w.Named()),
        ),
        *(The(w.Stripped(left)) for left in ("", "x", (), (1,), 0, None, w.LenRaises())),
        *(
            New("list", []),
            New("list", ["a"]),
            New("dict", {"a": 1}),
            New("set", [1]),
            New("bytearray", b" x"),
        ),
    ],
)
contents = weighted((3, texts.map(The)), (2, odd_things))
flags = weighted((3, st.sampled_from([True, False]).map(The)), (1, odd_things))

odd_names = st.sampled_from(
    ["", None, 0, 7, "\ud800", w.StrSub("s"), w.StrRaises(), w.BoolRaises(), ("x",)]
)
names = weighted((4, st.sampled_from(["search", "read"])), (1, odd_names))
mappings = ["dict", "DictSub", "OrderedDict", "defaultdict", "UserDict", "mappingproxy"]
contrary = ["NeAlways", "NeNever", "NeOdd", "NeRaises", "GetsAnother"]
tool_contents = weighted(
    (
        3,
        st.builds(
            lambda name, tool_input: {"name": name, "input": tool_input},
            names,
            st.sampled_from(["", "{}"]),
        ),
    ),
    (2, st.builds(lambda name: {"name": name}, names)),
    (1, st.sampled_from([{}, {"toolUseId": "u"}, {"Name": "search"}])),
)
tools = weighted(
    (4, st.builds(New, st.just("dict"), tool_contents)),
    (3, st.builds(New, st.sampled_from(mappings), tool_contents)),
    (2, st.builds(New, st.sampled_from(contrary), tool_contents)),
)
pooled_tools = st.builds(Pooled, st.just("tool"), indices)
tool_uses = weighted((4, pooled_tools), (4, tools), (1, odd_things))

callables = st.builds(Pooled, st.just("callable"), indices)
callbacks = weighted((6, callables), (2, st.just(NONE)), (1, odd_things))

agent_types = st.one_of(
    st.builds(
        Own,
        st.just("AgentType"),
        st.sampled_from(["GLOBAL_SUPERVISOR", "TEAM_SUPERVISOR", "WORKER"]),
    ),
    st.sampled_from(
        ["worker", "team_supervisor", "global_supervisor", "boss", w.Word.WORKER, None, 3]
    ).map(The),
)
words = weighted((2, st.sampled_from(["w-1", "Researcher", "Team A"]).map(The)), (1, odd_things))
caller_contexts = weighted(
    (8, st.builds(Pooled, st.just("context"), indices)),
    (1, st.sampled_from([NONE, The(w.Duck("anything")), The(w.DuckRaises())])),
)


def pairs(
    **strategies: st.SearchStrategy[Any],
) -> st.SearchStrategy[tuple[tuple[str, w.Value], ...]]:
    """Keyword arguments, each of which may be left out."""
    return st.fixed_dictionaries({}, optional=strategies).map(lambda kwargs: tuple(kwargs.items()))


def with_(
    **strategies: st.SearchStrategy[Any],
) -> st.SearchStrategy[tuple[tuple[str, w.Value], ...]]:
    """Keyword arguments, all of them given."""
    return st.fixed_dictionaries(strategies).map(lambda kwargs: tuple(kwargs.items()))


def call(function: str, *args: st.SearchStrategy[w.Value]) -> st.SearchStrategy[w.Operation]:
    """Call a function with the right number of arguments."""
    return st.builds(w.Call, st.just(function), st.tuples(*args))


FUNCTIONS: dict[str, tuple[st.SearchStrategy[w.Value], ...]] = {
    "register_event_callback": (run_ids, callbacks),
    "register_cancellation_checker": (run_ids, callbacks),
    "get_event_callback": (run_ids,),
    "get_cancellation_checker": (run_ids,),
    "set_current_run_id": (run_ids,),
    "get_current_run_id": (),
    "clear_current_run_id": (),
    "set_global_event_callback": (callbacks,),
    "get_global_event_callback": (),
    "set_global_cancellation_checker": (callbacks,),
    "get_global_cancellation_checker": (),
    "check_cancellation": (),
    "CallerContext": (words, agent_types, words),
    "CallerContext.global_supervisor": (words,),
    "CallerContext.team_supervisor": (words, words, words),
    "CallerContext.worker": (words, words, words),
}
PARAMETERS = [
    "run_id",
    "callback",
    "checker",
    "caller_context",
    "event_callback",
    "verbose",
    "agent_id",
    "self",
    "x",
]

function_calls = st.one_of(*(call(function, *args) for function, args in FUNCTIONS.items()))
current_run_calls = weighted(
    (4, call("set_current_run_id", weighted((2, common_ids), (1, run_ids)))),
    (1, call("clear_current_run_id")),
    (1, call("get_current_run_id")),
    (2, call("set_global_event_callback", callbacks)),
    (2, call("get_global_event_callback")),
    (2, call("set_global_cancellation_checker", callbacks)),
    (2, call("get_global_cancellation_checker")),
    (2, call("check_cancellation")),
)
common_registrations = st.one_of(
    call("register_event_callback", common_ids, callbacks),
    call("register_cancellation_checker", common_ids, callbacks),
)
# One keyword: where two do not fit, each for another reason, Python tells of the first, ours of the one given twice.
wrong_calls = st.builds(
    w.Call,
    st.sampled_from([*FUNCTIONS, "create_callback_handler", "LLMCallbackHandler"]),
    st.lists(common_ids, max_size=6).map(tuple),
    st.dictionaries(st.sampled_from(PARAMETERS), common_ids, max_size=1).map(
        lambda kwargs: tuple(kwargs.items())
    ),
)
handler_options = st.builds(
    lambda context, rest: context + rest,
    with_(caller_context=caller_contexts),
    pairs(event_callback=callbacks, verbose=flags, run_id=run_ids),
)
factories = st.sampled_from(["create_callback_handler", "LLMCallbackHandler"])
positional = st.tuples(caller_contexts, callbacks, flags, run_ids)
made_handlers = st.one_of(
    st.builds(w.Call, factories, st.just(()), handler_options),
    st.builds(
        lambda factory, args, count: w.Call(factory, args[:count]),
        factories,
        positional,
        st.integers(1, 4),
    ),
    st.builds(w.Subclass, st.sampled_from(["_emit_event", "__call__"]), handler_options),
)
stream_kwargs = pairs(
    reasoningText=contents,
    data=contents,
    current_tool_use=tool_uses,
    complete=flags,
    event=odd_things,
    reasoning_text=contents,
)
handled = st.builds(w.Handle, indices, stream_kwargs)
wrongly_handled = st.builds(
    w.Handle, indices, pairs(self=flags, data=contents), st.lists(contents, max_size=2).map(tuple)
)

CONTEXT_METHODS = ["to_source_dict", "to_db_fields", "get_source_label", "__repr__"]

handlers = st.builds(Pooled, st.just("handler"), indices)
contexts = st.builds(Pooled, st.just("context"), indices)
handler_changes = st.one_of(
    st.builds(w.Set, handlers, st.just("caller_context"), caller_contexts),
    st.builds(w.Set, handlers, st.just("event_callback"), callbacks),
    st.builds(w.Set, handlers, st.just("verbose"), flags),
    st.builds(w.Set, handlers, st.just("run_id"), run_ids),
    st.builds(
        w.Set, handlers, st.just("tool_count"), st.sampled_from([0, -1, 2**80, 1.5, True]).map(The)
    ),
    st.builds(w.Set, handlers, st.just("previous_tool_use"), tool_uses),
    st.builds(
        w.Set,
        handlers,
        st.just("_buffer"),
        weighted((4, st.just(New("list", ["old"]))), (1, odd_things)),
    ),
    st.builds(w.Set, handlers, st.just("extra"), odd_things),
    st.builds(w.Delete, handlers, st.just("extra")),
)
context_changes = st.one_of(
    st.builds(
        w.Set, contexts, st.sampled_from(["agent_id", "agent_name", "team_name", "extra"]), words
    ),
    st.builds(w.Set, contexts, st.just("agent_type"), agent_types),
    st.builds(w.Delete, contexts, st.sampled_from([*w.CONTEXT_ATTRIBUTES, "extra"])),
)
other_operations = st.one_of(
    st.builds(w.Ask, contexts, st.sampled_from(CONTEXT_METHODS)),
    st.builds(
        w.Get,
        st.one_of(handlers, contexts),
        st.sampled_from(
            [
                *w.HANDLER_ATTRIBUTES,
                *w.CONTEXT_ATTRIBUTES,
                "_buffer",
                "extra",
                "missing",
                "__dict__",
            ]
        ),
    ),
    st.builds(
        w.Emit,
        indices,
        indices,
        st.sampled_from(["LIFECYCLE", "LLM", "DISPATCH", "SYSTEM", "AGENT"]),
        st.sampled_from(["STARTED", "TOOL_RESULT", "TEAM", "WORKER", "WARNING"]),
        st.one_of(st.builds(New, st.just("dict"), st.just({"k": "v"})), odd_things),
    ),
    st.builds(w.Change, indices, st.sampled_from(["name", "input"]), names.map(The)),
    st.builds(w.Copy, indices, st.sampled_from(["shallow", "deep"])),
    st.just(w.Look()),
)
redirections = st.builds(
    w.Redirect, st.sampled_from(["first", "first", "second", "none", "raises"])
)
# Deferred, since hypothesis spells a strategy out in full otherwise, however large it is.
simple_operations: st.SearchStrategy[w.Operation] = st.deferred(lambda: one_simple_operation)
one_simple_operation: st.SearchStrategy[w.Operation] = weighted(
    (12, handled),
    (3, function_calls),
    (3, current_run_calls),
    (3, common_registrations),
    (3, made_handlers),
    (2, handler_changes),
    (1, context_changes),
    (2, other_operations),
    (1, redirections),
    (1, st.one_of(wrong_calls, wrongly_handled)),
)
operations: st.SearchStrategy[w.Operation] = st.deferred(lambda: one_operation)
one_operation: st.SearchStrategy[w.Operation] = weighted(
    (12, simple_operations),
    (1, st.builds(w.InThread, st.lists(simple_operations, min_size=1, max_size=4).map(tuple))),
)

ERRORS: list[type[BaseException]] = [
    *(
        ValueError,
        KeyError,
        RuntimeError,
        InterruptedError,
        StopIteration,
        TypeError,
        AttributeError,
        UnicodeError,
    ),
    *(BaseException, KeyboardInterrupt, SystemExit, GeneratorExit, w.CustomBaseError),
]
several_values = st.lists(weighted((3, flags), (1, tools)), min_size=1, max_size=3).map(tuple)
error_args = st.sampled_from([(), ("boom",), (1, 2), ("\ud800",)])
some_operations = st.lists(
    weighted((1, common_registrations), (1, simple_operations)), min_size=1, max_size=3
).map(tuple)
returning_nothing = w.Returns((NONE,))
behaviours = weighted(
    (4, st.just(returning_nothing)),
    (2, st.builds(w.Returns, several_values)),
    (1, st.builds(w.Raises, st.sampled_from(ERRORS), error_args, st.integers(0, 2))),
    (2, st.builds(w.Performs, some_operations, st.integers(1, 3))),
    (1, st.builds(w.Spoils, st.sampled_from(["event", "extra", "source", "data"]))),
    (2, st.builds(w.Doubts, st.sampled_from(["false", "empty", "raises", "counted"]))),
)

BEGINNING = (
    w.Call("CallerContext.worker", (The("w-1"), The("Worker"), The("Team"))),
    w.Call("register_event_callback", (The(1), Pooled("callable", 0))),
    w.Call("register_cancellation_checker", (The(1), Pooled("callable", 1))),
    w.Call("create_callback_handler", (Pooled("context", 0),), (("run_id", The(1)),)),
    w.Call("create_callback_handler", (Pooled("context", 0), NONE, The(True), The(0))),
    w.Call("create_callback_handler", (Pooled("context", 0), Pooled("callable", 0), The(True))),
    w.Subclass("_emit_event", (("caller_context", Pooled("context", 0)), ("run_id", The(1)))),
    w.Copy(0, "shallow"),
)
stories = st.builds(
    Story,
    st.lists(behaviours, min_size=2, max_size=4).map(tuple),
    st.lists(tools, min_size=1, max_size=3).map(tuple),
    many(operations).map(lambda listed: (*BEGINNING, *listed)),
)


def assert_same(story: Story) -> None:
    """Let a story happen in both worlds, and compare after every operation."""
    ours, plain = World(llm_callback), World(reference_model)
    try:
        for world in (ours, plain):
            world.begin(story)
        for operation in (*story.operations, w.Look()):
            assert ours.perform(operation) == plain.perform(operation), operation
    finally:
        for world in (ours, plain):
            world.end()


# A checker that gives the handler another run: the callback is that of the other one.
GIVEN_ANOTHER_RUN = Story(
    (
        w.Returns((The(None),)),
        w.Performs((w.Set(Pooled("handler", 0), "run_id", The(0)),), 1),
    ),
    (New("dict", {"name": "search", "input": ""}),),
    (*BEGINNING, w.Handle(0, (("reasoningText", The("token")),))),
)


@given(stories)
@example(GIVEN_ANOTHER_RUN)
def test_same_story_in_both_worlds(story: Story) -> None:
    """Whatever a host does, it sees, prints and catches what it would with the plain model."""
    assert_same(story)


@given(many(texts.map(The)), st.booleans(), st.booleans())
def test_same_tokens_in_both_worlds(tokens: list[The], verbose: bool, complete: bool) -> None:
    """A stream of tokens is emitted, withheld, printed and buffered as by the plain model."""
    handler = w.Call(
        "create_callback_handler", (Pooled("context", 0), Pooled("callable", 0), The(verbose))
    )
    handle = [w.Handle(0, (("data", token), ("complete", The(complete)))) for token in tokens]
    assert_same(Story((returning_nothing,), (), (BEGINNING[0], handler, *handle)))


@given(many(st.tuples(st.booleans(), run_ids, callbacks)), st.lists(run_ids, max_size=10))
def test_same_registry_in_both_worlds(
    entries: list[tuple[bool, w.Value, w.Value]], asked: list[w.Value]
) -> None:
    """Which run ids are one and the same is decided as a dictionary decides it."""
    kinds = {True: "event_callback", False: "cancellation_checker"}
    register = [
        w.Call(f"register_{kinds[is_callback]}", (run_id, what))
        for is_callback, run_id, what in entries
    ]
    asked = [*asked, *(run_id for _, run_id, _ in entries)]
    ask = [w.Call(f"get_{kind}", (run_id,)) for kind in kinds.values() for run_id in asked]
    assert_same(Story((returning_nothing,), (), (*register, *ask)))


@given(many(current_run_calls))
def test_same_current_run_in_both_worlds(calls: list[w.Operation]) -> None:
    """The current run is what was set last, and the old setters and getters mean that run."""
    assert_same(Story((returning_nothing, w.Returns((The(True),))), (), tuple(calls)))


registering = st.builds(
    w.Performs, st.lists(common_registrations, min_size=1, max_size=3).map(tuple), st.integers(1, 3)
)
meddlers = st.one_of(st.just(returning_nothing), registering)


@given(
    st.tuples(meddlers, meddlers, meddlers),
    st.lists(weighted((3, handled), (1, current_run_calls)), max_size=10),
)
def test_same_choice_of_callback_in_both_worlds(
    callables_: tuple[w.Behaviour, ...],
    operations_: list[w.Operation],
) -> None:
    """A call asks the checker first, then chooses its callback once, whatever these two register and deregister."""
    everything = (("reasoningText", The("r")), ("data", The("d")), ("complete", The(True)))
    assert_same(
        Story(
            callables_,
            (),
            (*BEGINNING, w.Handle(0, everything), *operations_, w.Handle(0, everything)),
        )
    )


@given(words, agent_types, words, words, st.lists(context_changes, max_size=3))
def test_same_context_in_both_worlds(
    agent_id: w.Value,
    agent_type: w.Value,
    agent_name: w.Value,
    team_name: w.Value,
    changes: list[w.Operation],
) -> None:
    """Whatever a context was made of, its source, its columns, its label and its repr are the plain model's."""
    make = w.Call("CallerContext", (agent_id, agent_type, agent_name, team_name))
    handler = w.Call("create_callback_handler", (Pooled("context", 0), Pooled("callable", 0)))
    ask = [w.Ask(Pooled("context", 0), method) for method in CONTEXT_METHODS]
    handle = w.Handle(0, (("reasoningText", The("why")),))
    assert_same(Story((returning_nothing,), (), (make, handler, *ask, *changes, *ask, handle)))


@pytest.mark.parametrize(
    "char", [*WHITE_SPACE, *ALMOST_WHITE_SPACE], ids=lambda char: f"U+{ord(char):04X}"
)
def test_same_white_space_in_both_worlds(char: str) -> None:
    """Each character that could be white space is taken for it exactly when Python takes it for it."""
    handler = w.Call("create_callback_handler", (Pooled("context", 0), Pooled("callable", 0)))
    handle = [w.Handle(0, (("data", The(text)),)) for text in (char, char * 3, f"{char}x{char}")]
    assert_same(Story((returning_nothing,), (), (BEGINNING[0], handler, *handle)))


@pytest.mark.parametrize("attribute", [*w.HANDLER_ATTRIBUTES, "_buffer"])
def test_same_deleted_attribute_in_both_worlds(attribute: str) -> None:
    """An attribute of a handler can be deleted once, is missing then, and can be set again."""
    handler = Pooled("handler", 0)
    values: dict[str, w.Value] = {
        "caller_context": Pooled("context", 0),
        "tool_count": The(3),
        "_buffer": New("list", ["old"]),
    }
    delete, look = w.Delete(handler, attribute), w.Get(handler, attribute)
    restore = w.Set(handler, attribute, values.get(attribute, NONE))
    handle = w.Handle(
        0, (("data", The("x")), ("current_tool_use", New("dict", {"name": "search"})))
    )
    steps = (handle, delete, look, delete, look, w.Get(handler, "__dict__"), restore, handle, look)
    assert_same(Story((returning_nothing, returning_nothing), (), (*BEGINNING, *steps)))
