"""BoundExecutor: whose run a pool's worker works for, and that it is an executor like any other."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from llm_callback import BoundExecutor, bind, get_current_run_id, set_current_run_id
from support import DEADLINE, in_thread, new_id, printed, together


def current(*_arguments: Any) -> Any:
    """Return the current run; for a pool of processes it can be imported by name."""
    return get_current_run_id()


def under(run_id: Any, job: Any) -> Any:
    """Call ``job`` on a fresh thread with this run, so that no test leaves one here."""

    def run() -> Any:
        set_current_run_id(run_id)
        return job()

    return in_thread(run)


def test_a_callable_runs_under_the_run_that_submitted_it() -> None:
    """On the one worker each call has its submitter's run, also none, whoever came before."""
    with BoundExecutor(ThreadPoolExecutor(1)) as executor:
        for run_id in [new_id(), None, new_id(), 7]:
            assert under(run_id, lambda: executor.submit(current).result(DEADLINE)) == run_id
            assert under(run_id, lambda: list(executor.map(current, range(3)))) == [run_id] * 3
        assert executor.submit(partial(pow, 2), 3).result(DEADLINE) == 8


def test_the_worker_is_left_as_it_was() -> None:
    """After a bound call, also one that failed, the thread of the pool has no run."""
    pool = ThreadPoolExecutor(1)

    def fail() -> None:
        raise LookupError(get_current_run_id())

    with BoundExecutor(pool) as executor:
        run_id = new_id()
        with pytest.raises(LookupError, match=run_id):
            under(run_id, lambda: executor.submit(fail).result(DEADLINE))
        assert pool.submit(current).result(DEADLINE) is None


def test_runs_that_share_an_executor_are_apart() -> None:
    """Of eight runs that submit to four workers at once, each call sees only its own."""
    with BoundExecutor(ThreadPoolExecutor(4)) as executor:

        def job(name: str) -> set[Any]:
            set_current_run_id(name)
            futures = [executor.submit(current) for _ in range(50)]
            return {future.result(DEADLINE) for future in futures}

        names = [new_id() for _ in range(8)]
        assert together([partial(job, name) for name in names]) == [{name} for name in names]


def test_map_is_bound_where_it_is_called() -> None:
    """Its options are the executor's, and who reads its results may have another run."""
    with BoundExecutor(ThreadPoolExecutor(2)) as executor:
        run_id = new_id()
        results = under(run_id, lambda: executor.map(current, range(5), timeout=DEADLINE))
        assert under(new_id(), lambda: list(results)) == [run_id] * 5
        assert list(executor.map(max, [1, 5], [4, 2], chunksize=2)) == [4, 5]
        with pytest.raises(TypeError):
            executor.map(current, [1], unknown=1)


def test_it_is_an_executor() -> None:
    """Whoever takes one takes it, such as asyncio; arguments pass through, and shutdown is passed on."""
    pool = ThreadPoolExecutor(1)
    executor = BoundExecutor(pool)
    assert isinstance(executor, Executor)
    assert repr(pool) in repr(executor)

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        set_current_run_id("here")
        return await asyncio.wait_for(loop.run_in_executor(executor, current), DEADLINE)

    assert in_thread(lambda: asyncio.run(main())) == "here"
    assert executor.submit(dict, fn=1, self=2).result(DEADLINE) == {"fn": 1, "self": 2}
    executor.shutdown(wait=True, cancel_futures=True)
    for one in (executor, pool):
        with pytest.raises(RuntimeError, match="shutdown"):
            one.submit(current)


def test_what_cannot_be_bound_is_refused() -> None:
    """A generator function would run in its consumer's context; what is no executor has none of its methods."""

    def generator() -> Any:
        yield

    with BoundExecutor(ThreadPoolExecutor(1)) as executor:
        with pytest.raises(TypeError, match="generator"):
            executor.submit(generator)
        with pytest.raises(TypeError, match="generator"):
            executor.map(generator, [])
    for thing in (None, 4, ThreadPoolExecutor):
        with pytest.raises(TypeError, match=r"must be a concurrent\.futures\.Executor, not"):
            BoundExecutor(thing)


@pytest.mark.thread_unsafe(reason="starts processes")
def test_processes_know_the_run_too() -> None:
    """A pool of processes gets what it can pickle, and its workers know the id of the run."""
    context = multiprocessing.get_context("spawn")
    with BoundExecutor(ProcessPoolExecutor(1, mp_context=context)) as executor:
        run_id = new_id()
        assert under(run_id, lambda: executor.submit(get_current_run_id).result(DEADLINE)) == run_id
        assert executor.submit(get_current_run_id).result(DEADLINE) is None
        assert bind(get_current_run_id)() is None


def test_it_is_imported_when_it_is_asked_for() -> None:
    """The package alone brings no ``concurrent.futures``; dir() and a wrong name tell what there is."""
    assert (
        printed(
            """
            import sys
            import llm_callback
            print("concurrent.futures" in sys.modules, "BoundExecutor" in llm_callback.__all__)
            from llm_callback import BoundExecutor
            print(BoundExecutor is llm_callback.BoundExecutor, BoundExecutor.__module__)
            try:
                llm_callback.Bound
            except AttributeError as error:
                print(error)
            """
        )
        == "False True\nTrue llm_callback.bound_executor\n"
        "module 'llm_callback' has no attribute 'Bound'\n"
    )
