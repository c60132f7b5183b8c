"""Any interleaving of what runs and readers can do, against a plain model: a list of events for each generation."""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from llm_callback import RunCancelled, SubscriberLagged, configure, open_run
from readers import HELD, HELD_BYTES, events_of, kind, parse, parse_with_httpx, text
from support import new_id, worker

if TYPE_CHECKING:
    from llm_callback import Run, SseStream, Subscription

# Three of them fit into a log, beside all else that is said here; a fourth does not.
LARGE = "x" * (5 << 20)
SMALL = 300
# So many events, and bytes of them, iteration and streams take from the log at once, or one event that is larger.
BATCH = 256
CHUNK = 64 << 10

ENDS = ("lifecycle.completed", "lifecycle.failed", "lifecycle.cancelled")


@dataclass(frozen=True)
class Said:
    """An event of the model."""

    id: str
    kind: str
    data: Any
    source: str | None

    @property
    def sequence(self) -> int:
        return int(self.id.partition("-")[2])

    @property
    def ms(self) -> int:
        return int(self.id.partition("-")[0])

    @property
    def size(self) -> int:
        return SMALL + (len(LARGE) if self.data == {"content": LARGE} else 0)

    @property
    def token(self) -> str | None:
        """Its text, if it is a token and nothing else."""
        return self.data["content"] if self.kind == "llm.stream" else None


@dataclass
class Gap:
    """What a reader is told to have missed."""

    requested: str
    oldest: str
    lost: int

    @property
    def size(self) -> int:
        return SMALL


@dataclass(eq=False)
class Generation:
    """A run, and what it has said so far."""

    run: Run
    said: list[Said] = field(default_factory=list)
    oldest: int = 1
    ended: bool = False
    cancelled: bool = False

    def say(self, event_id: str | None, word: str, data: Any, source: str | None = None) -> None:
        """Take note of an event, and of those that make room for it."""
        if self.ended:
            assert event_id is None
            return
        assert event_id == self.run.last_event_id is not None
        said = Said(event_id, word, data, source)
        assert said.sequence == len(self.said) + 1
        self.ended = word in ENDS
        held = self.said[self.oldest - 1 :]
        size = sum(one.size for one in held)
        while not self.ended and held and (len(held) >= HELD or size + said.size > HELD_BYTES):
            size -= held.pop(0).size
            self.oldest += 1
        self.said.append(said)

    def knows(self, event_id: str) -> bool:
        """Whether the log holds the event of this id."""
        held = self.said[:1] + self.said[self.oldest - 1 :]
        return any(one.id == event_id for one in held)


@dataclass(eq=False)
class Reader:
    """A subscription, and the place where the model has it."""

    of: Generation
    subscription: Subscription
    overflow: str
    next: int
    requested: str | None = None
    unknown: bool = False
    ready: deque[Said | Gap] = field(default_factory=deque)
    lost: int = 0
    closed: bool = False
    stream: SseStream | None = None
    last: Said | None = None

    def take(self, most: int, bytes_: float = math.inf) -> list[Said | Gap]:
        """Return what the subscription has to give next. Raises SubscriberLagged."""
        if self.ready:
            number = len(fitting(list(self.ready), most, bytes_))
            return [self.ready.popleft() for _ in range(number)]
        if self.closed:
            return []
        taken: list[Said | Gap] = []
        log, oldest = self.of.said, self.of.oldest
        if self.next < oldest or self.requested is not None:
            if self.next == 1 and oldest > 1:
                taken.append(log[0])
            lost = max(0, oldest - self.next - len(taken))
            if lost and self.requested is None and self.overflow == "disconnect":
                self.closed = True
                raise SubscriberLagged(self.next, oldest)
            if lost or self.unknown:
                asked = self.requested if self.requested is not None else str(self.next - 1)
                taken.append(Gap(asked, log[oldest - 1].id, lost))
                self.lost += lost
            self.requested, self.unknown = None, False
            self.next = max(self.next, oldest)
        held = fitting(log[self.next - 1 :], most, bytes_)
        self.next += len(held)
        taken += held
        return merged(taken) if self.overflow == "coalesce" else taken


def fitting(rows: list[Any], most: int, bytes_: float) -> list[Any]:
    """Return as many of the first rows as are allowed, but one at least."""
    sizes = itertools.accumulate(row.size for row in rows[:most])
    number = sum(1 for _ in itertools.takewhile(lambda size: size <= bytes_, sizes))
    return rows[: max(number, 1)]


def merged(taken: list[Said | Gap]) -> list[Said | Gap]:
    """Return events with consecutive tokens of one source in one."""
    rows: list[Said | Gap] = []
    for one in taken:
        before = rows[-1] if rows else None
        if (
            isinstance(one, Said)
            and isinstance(before, Said)
            and one.token is not None
            and before.token is not None
            and one.source == before.source
        ):
            data = {"content": whole(before.token + one.token)}
            rows[-1] = Said(one.id, one.kind, data, one.source)
        else:
            rows.append(one)
    return rows


def whole(value: Any) -> Any:
    """Return a value as JSON has it: two halves of a character are that character."""
    return json.loads(json.dumps(value))


TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
SOURCES = st.sampled_from(["a", "b", None])


class Runs(RuleBasedStateMachine):
    """Runs of three names, generation after generation, and their readers."""

    runs: Bundle[Generation] = Bundle("runs")
    readers: Bundle[Reader] = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.names = [new_id() for _ in range(3)]
        self.latest: dict[str, Generation] = {}
        self.all_readers: list[Reader] = []
        self.ids: list[str] = []

    @initialize(target=runs)
    def begin(self) -> Any:
        """Open one run, so that there is something to do."""
        return self.open(0)

    @rule(target=runs, name=st.integers(0, 2))
    def open_again(self, name: int) -> Any:
        """Open a run; refused while the one before is live."""
        before = self.latest.get(self.names[name])
        if before is not None and not before.ended:
            with pytest.raises(RuntimeError, match="is live"):
                open_run(self.names[name])
            return multiple()
        return self.open(name)

    def open(self, name: int) -> Generation:
        """Open a run, and a reader that sees all of it."""
        run_id = self.names[name]
        before = self.latest.get(run_id)
        run = open_run(run_id, note=name)
        assert run.generation == (before.run.generation + 1 if before else 1)
        self.latest[run_id] = one = Generation(run)
        one.say(run.last_event_id, "lifecycle.started", {"note": name})
        return one

    @rule(one=runs, content=TEXTS, source=SOURCES)
    def emit(self, one: Generation, content: str, source: str | None) -> None:
        """Say something with `run.emit`."""
        context = None if source is None else worker(source)
        event_id = one.run.emit("llm", "stream", {"content": content}, context)
        one.say(event_id, "llm.stream", {"content": whole(content)}, source)

    @rule(one=runs, content=TEXTS.filter(bool), source=st.sampled_from(["a", "b"]))
    def handle(self, one: Generation, content: str, source: str) -> None:
        """Say something with a handler: refused once the run was asked to stop."""
        handler = one.run.handler(worker(source))
        if one.cancelled:
            # After the end nothing is raised into a framework, or it is told once more to stop: nothing is said.
            with suppress(RunCancelled) if one.ended else pytest.raises(RunCancelled):
                handler(data=content)
            return
        handler(data=content)
        if not one.ended:
            one.say(one.run.last_event_id, "llm.stream", {"content": whole(content)}, source)

    @rule(one=runs, number=st.integers(1, 4))
    def emit_much(self, one: Generation, number: int) -> None:
        """Say so much that the log has to let go of something."""
        for _ in range(number):
            event_id = one.run.emit("llm", "stream", {"content": LARGE})
            one.say(event_id, "llm.stream", {"content": LARGE})

    @rule(one=runs, word=st.sampled_from(["llm.reasoning", "system.warning", "lifecycle.started"]))
    def emit_other(self, one: Generation, word: str) -> None:
        """Say something that is no token."""
        one.say(one.run.emit(*word.split("."), [word]), word, [word])

    @rule(one=runs)
    def cancel(self, one: Generation) -> None:
        """Ask a run to stop: the first time, and before the end, it says so."""
        assert one.run.cancel("enough") == (not one.cancelled and not one.ended)
        one.cancelled |= not one.ended

    @rule(one=runs, way=st.sampled_from(["complete", "fail", "emit"]))
    def finish(self, one: Generation, way: str) -> None:
        """End a run, in one of three ways; after that in none."""
        data: dict[str, Any] = {"result": 1}
        word = "lifecycle.completed"
        if way == "complete":
            is_end = one.run.complete(result=1)
        elif way == "fail" or one.cancelled:
            is_end = one.run.fail("error", "details")
            word, data = "lifecycle.failed", {"error": "error", "details": "details"}
        else:
            is_end = one.run.emit("lifecycle", "completed", data) is not None
        assert is_end == (not one.ended)
        if is_end:
            if one.cancelled:
                word, data = (
                    "lifecycle.cancelled",
                    {**data, "kind": "user", "reason": "enough"},
                )
            one.say(one.run.last_event_id, word, data)
            assert one.run.state == word.partition(".")[2]

    @rule(
        target=readers,
        one=runs,
        other=runs,
        where=st.sampled_from(["live", "start", "sequence", "id", "foreign"]),
        place=st.integers(0, 40),
        overflow=st.sampled_from(["disconnect", "gap", "coalesce", "block"]),
    )
    def subscribe(
        self, one: Generation, other: Generation, where: str, place: int, overflow: str
    ) -> Reader:
        """Begin to read, anywhere."""
        after: str | int | None = None
        asked, unknown, first = "", False, len(one.said) + 1
        if where == "start":
            after, first = "start", 1
        elif where == "sequence":
            after, unknown = place, place > len(one.said)
            first = 1 if unknown else place + 1
        elif where in ("id", "foreign"):
            of = one if where == "id" else other
            said = of.said[place % len(of.said)]
            after, first = said.id, said.sequence + 1
            went = said.sequence < one.oldest and said.ms >= one.said[0].ms
            unknown = not one.knows(said.id) and not went
            first = 1 if unknown else first
        asked = str(after)
        missed = where != "live" and (unknown or first < one.oldest)
        reader = Reader(
            one,
            one.run.subscribe(
                after, overflow=overflow, patience=0 if overflow == "block" else None
            ),
            overflow,
            first,
            asked if missed else None,
            unknown,
        )
        self.all_readers.append(reader)
        return reader

    @rule(reader=readers, most=st.integers(1, 12))
    def read(self, reader: Reader, most: int) -> None:
        """Read so many at once."""
        self.expect(reader, most, lambda: reader.subscription.read(most, timeout=0))

    @rule(reader=readers)
    def iterate(self, reader: Reader) -> None:
        """Read one event by iteration, as far as that does not wait."""

        def one() -> list[dict[str, Any]]:
            try:
                event = reader.subscription._next_now()
            except StopAsyncIteration:
                return []
            return [] if event is None else [event]

        if not reader.ready:
            try:
                reader.ready.extend(reader.take(BATCH, CHUNK))
            except SubscriberLagged as expected:
                self.lagged(expected, one)
                return
        self.expect(reader, 1, one)

    @rule(reader=readers)
    def stream(self, reader: Reader) -> None:
        """Read a piece of what SSE sends."""
        if reader.stream is None:
            reader.stream = reader.subscription.sse(heartbeat=1e-9)
        stream = reader.stream
        self.expect(reader, BATCH, lambda: events_of(next(stream, b"")), CHUNK)

    def expect(self, reader: Reader, most: int, read: Any, bytes_: float = math.inf) -> None:
        """Check that ``read`` gives what the model's reader takes."""
        try:
            taken = reader.take(most, bytes_)
        except SubscriberLagged as expected:
            self.lagged(expected, read)
            return
        # A gap and the run's first event may come beyond what is asked for: they wait for the next reading.
        taken, rest = taken[:most], taken[most:]
        reader.ready.extendleft(reversed(rest))
        events = read()
        assert len(events) == len(taken)
        for event, one in zip(events, taken, strict=True):
            self.check(reader, event, one)
        log = reader.of
        at_the_end = log.ended and reader.requested is None and reader.next > len(log.said)
        assert reader.subscription.ended == (not reader.ready and (reader.closed or at_the_end))
        assert reader.subscription.lost == reader.lost

    @staticmethod
    def lagged(expected: SubscriberLagged, read: Any) -> None:
        """Check that ``read`` raises what is expected."""
        with pytest.raises(SubscriberLagged) as raised:
            read()
        assert (raised.value.next, raised.value.oldest) == (expected.next, expected.oldest)

    @staticmethod
    def check(reader: Reader, event: dict[str, Any], one: Said | Gap) -> None:
        """Check that an event is what the model has, of the reader's own run."""
        assert event["run_id"] == reader.of.run.run_id
        if isinstance(one, Gap):
            assert kind(event) == "stream.gap"
            assert event["data"] == vars(one)
            return
        is_same = event["data"] == one.data
        source = event["source"] and event["source"]["agent_id"]
        assert (event["id"], event["sequence"]) == (one.id, one.sequence)
        assert (kind(event), source, is_same) == (one.kind, one.source, True)
        assert reader.last is None or reader.last.sequence < one.sequence
        reader.last = one

    @rule(reader=readers)
    def close(self, reader: Reader) -> None:
        """Close a subscription: nothing comes from it any more."""
        reader.subscription.close()
        reader.closed = True
        reader.ready.clear()

    @rule(reader=consumes(readers))
    def drop(self, reader: Reader) -> None:
        """Let go of a subscription."""
        self.all_readers.remove(reader)
        reader.stream = None
        del reader.subscription

    def teardown(self) -> None:
        """End all runs; each reader that is left reads to the end, which is there once, and last."""
        for one in self.latest.values():
            self.finish(one, "complete")
            assert [said for said in one.said if said.kind in ENDS] == one.said[-1:]
        for reader in self.all_readers:
            for _ in range(2):
                self.read(reader, 10**6)
            assert reader.subscription.ended
            is_at_the_end = reader.last and reader.last.sequence == len(reader.of.said)
            assert reader.closed or reader.last is None or is_at_the_end
        # The runs of all examples together would be beyond the bound in bytes, which takes events from what is kept.
        configure(keep_runs=0)
        configure(keep_runs=1_000)


@pytest.mark.thread_unsafe(reason="how many runs are kept is the whole process's")
def test_runs_and_readers_against_a_model() -> None:
    """Whatever runs and readers do, each reader sees the model's events: in order, its own, none missed untold."""
    # An example is hundreds of calls.
    examples = max(30, settings.default.max_examples // 10)
    run_state_machine_as_test(
        Runs, settings=settings(max_examples=examples, stateful_step_count=40)
    )


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()))
)
KEYS = st.text(st.characters(exclude_categories=()), max_size=5)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@given(data=JSON.filter(lambda data: data is not None))
def test_any_json_comes_back(data: Any) -> None:
    """Any data that JSON has comes out of iteration and out of a parsed stream as `json` itself gives it back."""
    with open_run() as run:
        run.emit("system", "warning", data)
    _, event, _ = run.subscribe("start")
    stream = b"".join(run.subscribe("start").sse())
    assert json.dumps(event["data"]) == json.dumps(whole(data))
    assert events_of(stream)[1] == event
    assert parse_with_httpx(stream) == parse(stream)


@given(contents=st.lists(st.text(st.characters(exclude_categories=())), max_size=8))
def test_any_text_comes_back_coalesced(contents: list[str]) -> None:
    """Tokens of any text, merged or not, are one text: each as `json` gives it back, or whole."""
    with open_run() as run:
        handler = run.handler(worker())
        for content in contents:
            handler(data=content)
    plain = list(run.subscribe("start"))
    merged_ = run.subscribe("start", overflow="coalesce").read()
    assert [event["data"]["content"] for event in plain[1:-1]] == [
        whole(content) for content in contents if content
    ]
    assert text(merged_) == whole("".join(contents))
    assert len(merged_) == 2 + any(contents)
