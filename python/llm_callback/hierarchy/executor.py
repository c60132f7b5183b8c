"""Executes a hierarchy: takes a configuration and returns a response, in a run of its own or in an open run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from llm_callback import CancelToken, RunCancelled, get_current_run_id, get_run, open_run
from llm_callback.hierarchy.agents import HierarchyBuilder
from llm_callback.hierarchy.config import (
    ConfigError,
    HierarchyConfigRequest,
    parse_hierarchy_config,
)
from llm_callback.hierarchy.execution import Execution, describe
from llm_callback.hierarchy.loop import run_in_loop

if TYPE_CHECKING:
    from llm_callback import Event, Run
    from llm_callback.hierarchy.execution import _AgentOptions
    from llm_callback.hierarchy.topology import TopologyInfo

# How many seconds a cancelled run waits for its tools: it has its last event within a tenth of a second.
TOOL_PATIENCE = 0.05


@dataclass
class ExecutionResponse:
    """The response of a hierarchy that has worked in a run.

    ``success``, ``result`` and ``error`` come from the run's last event, whichever code ended the run. ``events`` are
    all events that the run's log holds. ``statistics`` are calls, failures and tokens, also after a failure or a
    cancel. ``topology`` and ``statistics`` are None if the configuration could not be read.
    """

    success: bool
    topology: TopologyInfo | None
    events: list[Event]
    result: str | None = None
    error: str | None = None
    statistics: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the response as plain dicts and lists."""
        topology = self.topology and self.topology.to_dict()
        return {**vars(self), "topology": topology}


@dataclass(frozen=True)
class HierarchyResult:
    """The answer of a hierarchy, and how it came about."""

    result: str
    topology: TopologyInfo
    statistics: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the data of ``lifecycle.completed``."""
        return {"result": self.result, "statistics": self.statistics}


class HierarchyExecutor:
    """Executes hierarchies. An executor keeps nothing between runs, and may execute many at once, each on its thread.

    ``agent_options`` is called for each agent and returns further arguments of its ``strands.Agent``. A run that was
    cancelled, or is done, waits ``tool_patience`` seconds for the work that goes on, such as synchronous tools.
    """

    def __init__(
        self,
        *,
        agent_options: _AgentOptions | None = None,
        tool_patience: float = TOOL_PATIENCE,
    ) -> None:
        self._agent_options = agent_options
        self._tool_patience = tool_patience

    def execute(
        self, config: HierarchyConfigRequest | Mapping[str, Any], *, deadline: float | None = None
    ) -> ExecutionResponse:
        """Open a run with the id ``config.run_id``, do the task, end the run, and return the response.

        Blocks until the run has ended. The agents work on this thread, in an event loop of their own. A failure, a
        cancel or a configuration that cannot be used ends the run; the response then has ``success=False``, and
        ``error`` says why. The run is cancelled ``deadline`` seconds from now.

        **In an open run.** If ``config.run_id`` is the id of the calling context's current run, as in code that a
        RunManager executes, the hierarchy works in that run. The code that opened the run ends it. As with
        ``execute_in``, a failure raises an exception. The response has no ``events``, since the run goes on.

        Raises RuntimeError if another run of this id is live, TypeError or ValueError for an invalid ``run_id``. An
        exception that is not an Exception, such as KeyboardInterrupt, is raised after the end of the run.
        """
        is_request = isinstance(config, HierarchyConfigRequest)
        entries = vars(config) if is_request else config if isinstance(config, Mapping) else {}
        if (current := _current_run(entries.get("run_id"))) is not None:
            return self._execute_within(current, config, deadline)
        run = open_run(entries.get("run_id"), deadline=deadline, task=entries.get("task", ""))
        execution: Execution | None = None
        failure: Exception | None = None
        try:
            with run:
                execution = self._begin(run, config)
                run.complete(**self._work(execution).to_dict())
        except Exception as error:  # noqa: BLE001 - the response tells it
            failure = error
        response = ExecutionResponse(
            success=False, topology=None, events=list(run.subscribe("start", overflow="gap"))
        )
        # Other code may have ended the run. Only the last event says how the run has ended.
        told = response.events[-1]["data"]
        if run.state == "completed":
            response.success, response.result = True, told.get("result")
        elif run.state == "cancelled":
            response.error = str(RunCancelled(run.run_id))
        else:
            response.error = str(told.get("error", ""))
            if failure is not None and (described := describe(failure)).endswith(response.error):
                # The same text, with the type of the exception.
                response.error = described
        if execution is not None:
            response.topology = execution.topology
            response.statistics = execution.tracker.statistics()
        return response

    def execute_in(
        self, run: Run, config: HierarchyConfigRequest | Mapping[str, Any]
    ) -> HierarchyResult:
        """Do the task in an open run and return the answer. The code that opened the run ends it.

        The run is annotated with the ``statistics`` of this hierarchy. They replace those of an earlier hierarchy in
        the same run.

        Blocks, as ``execute`` does. Raises ConfigError for a configuration that cannot be used, ModelUnavailable,
        RunCancelled if the run was cancelled or has ended, RuntimeError on a thread that runs an event loop already,
        and the exceptions of the global supervisor's model.
        """
        return self._work(self._begin(run, config))

    def _execute_within(
        self,
        run: Run,
        config: HierarchyConfigRequest | Mapping[str, Any],
        deadline: float | None,
    ) -> ExecutionResponse:
        limit = None if deadline is None else CancelToken(deadline)
        late = None if limit is None else limit.on_cancel(partial(run.cancel, kind="deadline"))
        try:
            result = self.execute_in(run, config)
        finally:
            if late is not None:
                late.stop()
        return ExecutionResponse(
            success=True,
            topology=result.topology,
            events=[],
            result=result.result,
            statistics=result.statistics,
        )

    def _begin(self, run: Run, config: HierarchyConfigRequest | Mapping[str, Any]) -> Execution:
        request = (
            config if isinstance(config, HierarchyConfigRequest) else parse_hierarchy_config(config)
        )
        execution = Execution(run, request, self._agent_options)
        run.emit("system", "topology", execution.topology.to_dict())
        return execution

    def _work(self, execution: Execution) -> HierarchyResult:
        run = execution.run

        def work() -> str:
            hierarchy = HierarchyBuilder(execution).build()
            return run_in_loop(run, hierarchy.work, self._tool_patience)

        try:
            answer = run.bind(work)()
        finally:
            # For the run's last event, also after a failure or a cancel.
            run.annotate(statistics=execution.tracker.statistics())
        if run.token.is_set() or run.finished_at is not None:
            # Strands answers a cancel with a result, and does not raise.
            raise RunCancelled(run.run_id, run.token.kind, run.token.reason)
        return HierarchyResult(answer, execution.topology, execution.tracker.statistics())


def _current_run(run_id: object) -> Run | None:
    """Return the run of this id, if it is the current run of the calling context."""
    current = get_current_run_id()
    if current is None or isinstance(run_id, bool) or not isinstance(run_id, (int, str, UUID)):
        return None
    if current != (str(run_id) if isinstance(run_id, UUID) else run_id):
        return None
    return get_run(current)


def execute_hierarchy(config: Mapping[str, Any]) -> dict[str, Any]:
    """Do what ``HierarchyExecutor().execute(config)`` does, and return the response as a dict.

    May be the ``execute`` of a RunManager.
    """
    return HierarchyExecutor().execute(config).to_dict()


def run_in(config: Mapping[str, Any]) -> HierarchyResult:
    """Do the task in the open run of the id ``config["run_id"]``: the default ``execute`` of a RunManager.

    Blocks. Raises what ``HierarchyExecutor.execute_in`` raises, and ConfigError if there is no such run.
    """
    run_id = config.get("run_id")
    run = None if run_id is None else get_run(run_id)
    if run is None:
        raise ConfigError(f"run_id must be that of an open run, not {run_id!r}")
    return HierarchyExecutor().execute_in(run, config)
