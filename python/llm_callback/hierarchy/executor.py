"""Running a hierarchy: from a configuration to what came out of it, in a run of its own or one that is open."""

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

# A cancelled run has its last event within a tenth of a second, whatever its tools do.
TOOL_PATIENCE = 0.05


@dataclass
class ExecutionResponse:
    """What came out of a run of a hierarchy.

    ``success``, ``result`` and ``error`` are what the run's last event says, whoever has ended it. ``events`` are all
    that the run's log holds, ``statistics`` the tracker's. ``topology`` and ``statistics`` are None where the
    configuration could not be read, and are there also after a failure or a cancel.
    """

    success: bool
    topology: TopologyInfo | None
    events: list[Event]
    result: str | None = None
    error: str | None = None
    statistics: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dicts and lists."""
        topology = self.topology and self.topology.to_dict()
        return {**vars(self), "topology": topology}


@dataclass(frozen=True)
class HierarchyResult:
    """What a hierarchy has answered."""

    result: str
    topology: TopologyInfo
    statistics: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the data of ``lifecycle.completed``."""
        return {"result": self.result, "statistics": self.statistics}


class HierarchyExecutor:
    """Runs hierarchies. It keeps nothing between runs: one executor may run many at once, each on its own thread.

    ``agent_options`` is called for each agent and returns further arguments of its ``strands.Agent``.
    ``tool_patience`` is how many seconds a run that was cancelled, or is done, waits for all that has not ended
    with it, such as synchronous tools.
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
        """Open the run that ``config.run_id`` names, do the task, end the run, and say what came out.

        Blocks until the run has ended, on this thread, in an event loop of its own. A failure, a cancel and a
        configuration that cannot be used end the run, and are told by the response: ``success`` is False, and
        ``error`` says why. The run is cancelled when ``deadline`` seconds have passed.

        **In a run that is open already**, where ``config.run_id`` names the live run that is the calling context's
        current one, as in what a RunManager calls, it works in that run and leaves its end to whoever has opened it:
        it raises what fails, as ``execute_in`` does, and the response has no ``events``: they are the run's, which goes
        on, and would be in its last event once more.

        Raises RuntimeError where another run of this id is live; TypeError or ValueError where ``run_id`` is no run id;
        and what is no Exception, such as KeyboardInterrupt, after the end of the run.
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
        # Somebody else may have ended it: what it has ended with is in its last event, and nowhere else.
        told = response.events[-1]["data"]
        if run.state == "completed":
            response.success, response.result = True, told.get("result")
        elif run.state == "cancelled":
            response.error = str(RunCancelled(run.run_id))
        else:
            response.error = str(told.get("error", ""))
            if failure is not None and (described := describe(failure)).endswith(response.error):
                # The same, with its type.
                response.error = described
        if execution is not None:
            response.topology = execution.topology
            response.statistics = execution.tracker.statistics()
        return response

    def execute_in(
        self, run: Run, config: HierarchyConfigRequest | Mapping[str, Any]
    ) -> HierarchyResult:
        """Do the task in a run that is open, and leave its end to whoever has opened it.

        The run is annotated with the ``statistics`` of this hierarchy, in place of those of one before it in the run.

        Blocks, as ``execute`` does. Raises ConfigError for a configuration that cannot be used, ModelUnavailable,
        RunCancelled if the run was cancelled, or somebody else has ended it, RuntimeError on a thread that runs an
        event loop already, and what the global supervisor's model raises.
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
            # For the run's last event, also where it is a failure or a cancel.
            run.annotate(statistics=execution.tracker.statistics())
        if run.token.is_set() or run.finished_at is not None:
            # Strands' own answer to a cancel is a result that says so.
            raise RunCancelled(run.run_id, run.token.kind, run.token.reason)
        return HierarchyResult(answer, execution.topology, execution.tracker.statistics())


def _current_run(run_id: object) -> Run | None:
    """Return the live run of this id, if it is the current one here."""
    current = get_current_run_id()
    if current is None or isinstance(run_id, bool) or not isinstance(run_id, (int, str, UUID)):
        return None
    if current != (str(run_id) if isinstance(run_id, UUID) else run_id):
        return None
    return get_run(current)


def execute_hierarchy(config: Mapping[str, Any]) -> dict[str, Any]:
    """Do what ``HierarchyExecutor().execute(config)`` does, and return its response as a dict.

    Also as what a RunManager calls.
    """
    return HierarchyExecutor().execute(config).to_dict()


def run_in(config: Mapping[str, Any]) -> HierarchyResult:
    """Do the task in the live run that ``config["run_id"]`` names: what a RunManager calls.

    Blocks; raises as ``HierarchyExecutor.execute_in``, and ConfigError where no such run is live.
    """
    run_id = config.get("run_id")
    run = None if run_id is None else get_run(run_id)
    if run is None:
        raise ConfigError(f"run_id must be that of an open run, not {run_id!r}")
    return HierarchyExecutor().execute_in(run, config)
