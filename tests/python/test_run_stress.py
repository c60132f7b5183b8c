"""Many threads, runs and readers for a long time: nothing foreign, nothing lost, one end each, and nothing stays."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import random
import threading
from collections import defaultdict
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from llm_callback import RunCancelled, get_run, open_run, stats
from readers import events_of, kind, say
from support import DEADLINE, new_id, scaled, together, worker

if TYPE_CHECKING:
    from llm_callback import Run

THREADS = 16
READERS = 6
NAMES = 4
EVENTS = 60

ENDS = {"lifecycle.completed", "lifecycle.failed", "lifecycle.cancelled"}


def resident() -> int:
    """Return how many bytes of memory this process has."""
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class World:
    """Threads that open runs and speak in their own and in others' runs, and threads that read them."""

    def __init__(self, rounds: int, seed: int) -> None:
        self.rounds = rounds
        self.seed = seed
        self.names = [[new_id(f"t{number}") for _ in range(NAMES)] for number in range(THREADS)]
        self.live: list[Run | None] = [None] * THREADS
        self.to_read: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        # What was accepted, by run and generation.
        self.said: defaultdict[tuple[Any, int], list[str]] = defaultdict(list)
        self.ends: defaultdict[tuple[Any, int], int] = defaultdict(int)
        self.read = 0
        self.left = THREADS

    def speak(self, number: int) -> None:
        """Open one run after another, and speak, cancel and end in all of them."""
        chance = random.Random(self.seed * THREADS + number)  # noqa: S311
        for serial in range(0, self.rounds * EVENTS, EVENTS):
            run = open_run(chance.choice(self.names[number]))
            self.live[number] = run
            for _ in range(chance.randrange(3)):
                self.to_read.put(run)
            for count in range(serial, serial + EVENTS):
                other = self.live[chance.randrange(THREADS)] or run
                self.say(other, f"{number} {count}", by_handler=chance.random() < 0.5)
                if chance.random() < 0.005:
                    other.cancel("chance")
                if chance.random() < 0.002:
                    self.end(other, chance)
            self.to_read.put(run)
            self.end(run, chance)
            assert run.wait(DEADLINE)
        with self.lock:
            self.left -= 1
            if self.left == 0:
                for _ in range(READERS):
                    self.to_read.put(None)

    def say(self, run: Run, words: str, *, by_handler: bool) -> None:
        """Say something that names its run and its generation."""
        key = (run.run_id, run.generation)
        content = f"{run.run_id} {run.generation} {words}"
        if by_handler:
            # It does not say whether it came too late.
            with suppress(RunCancelled):
                run.handler(worker("w"))(data=f"{content} handler")
        elif run.emit("llm", "stream", {"content": content}) is not None:
            with self.lock:
                self.said[key].append(content)

    def end(self, run: Run, chance: random.Random) -> None:
        """End a run, in one of the ways; count whether this was its end."""
        key = (run.run_id, run.generation)
        is_end = run.complete() if chance.random() < 0.5 else run.fail("error")
        if is_end:
            with self.lock:
                self.ends[key] += 1

    def follow(self, number: int) -> None:
        """Read runs as they come, each to its end or not, in one of three ways."""
        chance = random.Random(self.seed * THREADS - number - 1)  # noqa: S311
        while (run := self.to_read.get(timeout=DEADLINE)) is not None:
            way, leaves = number % 3, chance.random() < 0.2
            subscription = run.subscribe("start", overflow=chance.choice(["disconnect", "block"]))
            if leaves:
                subscription.read(chance.randrange(1, 9), timeout=0)
                continue
            if way == 0:
                events = list(subscription)
            elif way == 1:
                events = events_of(b"".join(subscription.sse(heartbeat=0.001)))
            else:
                events = asyncio.run(self.follow_in_loop(run))
            self.check(run, events)

    async def follow_in_loop(self, run: Run) -> list[dict[str, Any]]:
        """Read with three readers at once, and one that is cancelled."""

        async def read() -> list[dict[str, Any]]:
            return [event async for event in run.subscribe("start")]

        gone = asyncio.create_task(read())
        waits = asyncio.create_task(run.token.cancelled())
        reading = [asyncio.create_task(read()) for _ in range(3)]
        await asyncio.sleep(0)
        gone.cancel()
        results = await asyncio.wait_for(asyncio.gather(*reading), DEADLINE)
        waits.cancel()
        await asyncio.wait([gone, waits])
        assert results[0] == results[1] == results[2]
        return results[0]

    def check(self, run: Run, events: list[dict[str, Any]]) -> None:
        """Check that a reader has seen all of its run, and nothing else."""
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert [kind(event) in ENDS for event in events] == [False] * (len(events) - 1) + [True]
        assert kind(events[-1]) == f"lifecycle.{run.state}"
        assert {event["run_id"] for event in events} == {run.run_id}
        contents = [event["data"]["content"] for event in events[1:-1]]
        own = f"{run.run_id} {run.generation} "
        assert all(content.startswith(own) for content in contents)
        for number in range(THREADS):
            counts = [int(one.split()[3]) for one in contents if one.split()[2] == str(number)]
            assert counts == sorted(counts)
        # Each emit that was accepted is there; its speaker may not have noted it yet.
        with self.lock:
            said = self.said[run.run_id, run.generation].copy()
        assert set(said) <= set(contents)
        assert len(set(contents)) == len(contents)
        with self.lock:
            self.read += 1


def live(rounds: int, seed: int) -> None:
    """Let a world run, and check what it leaves."""
    world = World(rounds, seed)
    speakers = [partial(world.speak, number) for number in range(THREADS)]
    followers = [partial(world.follow, number) for number in range(READERS)]
    together([*speakers, *followers], deadline=DEADLINE + rounds)
    assert set(world.ends.values()) == {1}
    assert len(world.ends) == THREADS * rounds
    assert world.read > 0
    for run_id in chain(*world.names):
        if (run := get_run(run_id)) is not None:
            world.check(run, list(run.subscribe("start")))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_few_runs_and_readers(seed: int) -> None:
    """Threads that speak in each other's runs, cancel, end and read them: nothing foreign or lost, one end."""
    live(3, seed)


@pytest.mark.thread_unsafe(reason="counts the process's runs")
def test_finished_runs_are_bounded() -> None:
    """Of the runs that have ended the latest 1 000 can be found and read; what they said goes with the others."""
    before = stats()["runs"]

    def open_and_end() -> list[str]:
        ids = []
        for _ in range(400):
            with open_run() as run:
                say(run)
            ids.append(run.run_id)
        return ids

    ids = together([open_and_end] * 4)
    after = stats()["runs"]
    assert (after["live"], after["finished"]) == (before["live"], 1_000)
    assert after["opened"] - before["opened"] == 1_600
    assert sum(get_run(run_id) is not None for run_id in chain(*ids)) == 1_000
    for own in ids:
        # Each thread's earlier ones have gone first.
        found = [run for run_id in own if (run := get_run(run_id)) is not None]
        assert [run.run_id for run in found] == own[len(own) - len(found) :]
        assert all(len(run.subscribe("start").read()) == 3 for run in found)


@pytest.mark.stress
@pytest.mark.thread_unsafe(reason="counts the process's runs and memory")
@pytest.mark.parametrize("seed", scaled(0, 1)[1:])
def test_many_runs_and_readers(request: pytest.FixtureRequest, seed: int) -> None:
    """Runs and readers that come and go for a long time leave no live run, and no more memory than after a while."""
    # The ids say which of `make stress`'s repetitions it is.
    seed = 1_000 * (seed + int(request.node.callspec.id.split()[-1]))
    before = stats()["runs"]["live"]
    for number in range(5):
        live(15, seed + number)
    gc.collect()
    warm = resident()
    for number in range(5, 15):
        live(15, seed + number)
        assert stats()["runs"]["live"] == before
        assert stats()["runs"]["finished"] <= 1_000
    gc.collect()
    assert resident() - warm < 64 << 20
