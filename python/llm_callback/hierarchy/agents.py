"""The agents of a hierarchy. The global supervisor calls teams as its tools; a team's supervisor calls workers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING, Any

from strands import tool

from llm_callback import RunCancelled, get_current_run_id, set_current_run_id
from llm_callback.hierarchy.providers import find_tools

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from strands import Agent

    from llm_callback import CallerContext, CancelToken
    from llm_callback.events import DispatchTeamData, DispatchWorkerData, SystemWarningData
    from llm_callback.hierarchy.config import LlmConfig, TeamConfigRequest, WorkerConfigRequest
    from llm_callback.hierarchy.execution import Execution
    from llm_callback.hierarchy.topology import TeamInfo

# The number of characters that providers allow in a tool's name.
_LONGEST_NAME = 64


class _CurrentRun(type):
    @property
    def _current_run_id(cls) -> Any:
        """The id of the run that is current in the calling context, which no other task or thread changes."""
        return get_current_run_id()

    @_current_run_id.setter
    def _current_run_id(cls, run_id: int | str | None) -> None:
        set_current_run_id(run_id)


@dataclass(frozen=True)
class TeamWork:
    """A team that works on one task, as its agents need it. ``token`` stops the agents of this team only."""

    execution: Execution
    config: TeamConfigRequest
    info: TeamInfo
    token: CancelToken


class WorkerAgentFactory(metaclass=_CurrentRun):
    """Makes the workers of a team: as agents, and as tools of the team's supervisor.

    ``_current_run_id`` and ``set_current_run_id`` have the names that the original has for a class variable. Here they
    read and set the current run of the calling context. The agents that the factory makes always belong to the run of
    their ``execution``.
    """

    @staticmethod
    def set_current_run_id(run_id: int | str | None) -> None:
        """Make ``run_id`` the current run of the calling context; None leaves the context without a run."""
        set_current_run_id(run_id)

    @staticmethod
    def create(execution: Execution, worker: WorkerConfigRequest, caller: CallerContext) -> Agent:
        """Make a worker. Raises ConfigError for an unknown tool or model."""
        prompt = "\n\n".join(filter(None, (worker.role, worker.system_prompt)))
        tools = find_tools(worker.tools, f"the worker {worker.name!r}")
        return execution.agent(caller, prompt, tools, worker.llm)

    @classmethod
    def create_tool(
        cls, team: TeamWork, worker: WorkerConfigRequest, caller: CallerContext, name: str
    ) -> Any:
        """Make the tool with which a team's supervisor calls the worker."""
        execution = team.execution

        async def work(task: str) -> str:
            agent = cls.create(execution, worker, caller)
            return await execution.ask(agent, caller, team.token.child(), task)

        async def call(task: str) -> str:
            data: DispatchWorkerData = {
                "worker_id": caller.agent_id,
                "worker_name": worker.name,
                "task": task,
            }
            execution.run.emit("dispatch", "worker", data, team.info.supervisor)
            return await _once(execution, caller, task, work, prevent=team.config.prevent_duplicate)

        does = worker.role or worker.system_prompt
        return _as_tool(
            call, name, f"Give a task to {worker.name}. {does}".strip(), worker.user_message
        )


class TeamSupervisorFactory:
    """Makes the supervisors of teams, as agents and as the tools of the global supervisor."""

    @staticmethod
    def create(team: TeamWork) -> Agent:
        """Make a team's supervisor, with the team's workers as tools. Raises ConfigError for an unknown model."""
        workers = team.config.workers
        names = _tool_names("worker", [worker.name for worker in workers])
        tools = [
            WorkerAgentFactory.create_tool(team, worker, team.info.worker(info), name)
            for worker, info, name in zip(workers, team.info.workers, names, strict=True)
        ]
        members = _members(names, [worker.name for worker in workers])
        prompt = "\n\n".join(filter(None, (team.config.supervisor_prompt, members)))
        return team.execution.agent(team.info.supervisor, prompt, tools, team.config.llm)

    @classmethod
    def create_tool(
        cls, execution: Execution, config: TeamConfigRequest, info: TeamInfo, name: str
    ) -> Any:
        """Make the tool with which the global supervisor calls the team."""
        caller, tracker = info.supervisor, execution.tracker
        shares = execution.config.enable_context_sharing and config.share_context

        async def work(task: str) -> str:
            team = TeamWork(execution, config, info, execution.run.token.child())
            findings = tracker.findings_for(config.name) if shares else ""
            prompt = "\n\n".join(filter(None, (task, findings)))
            answer = await execution.ask(cls.create(team), caller, team.token, prompt)
            tracker.add_finding(config.name, answer)
            return answer

        async def call(task: str) -> str:
            data: DispatchTeamData = {
                "team_id": info.team_id,
                "team_name": config.name,
                "task": task,
            }
            execution.run.emit("dispatch", "team", data, execution.topology.supervisor)
            return await _once(execution, caller, task, work, prevent=config.prevent_duplicate)

        workers = ", ".join(worker.name for worker in config.workers)
        return _as_tool(
            call, name, f"Give a task to the team {config.name}: {workers}.", config.user_message
        )


class GlobalSupervisorFactory:
    """Makes the global supervisor."""

    @staticmethod
    def create(execution: Execution) -> Agent:
        """Make the global supervisor, with the teams as tools. Raises ConfigError for an unknown model."""
        config, topology = execution.config, execution.topology
        names = _tool_names("team", [team.name for team in config.teams])
        tools = [
            TeamSupervisorFactory.create_tool(execution, team, info, name)
            for team, info, name in zip(config.teams, topology.teams, names, strict=True)
        ]
        members = _members(names, [team.name for team in config.teams])
        prompt = "\n\n".join(filter(None, (config.global_prompt, members)))
        return execution.agent(topology.supervisor, prompt, tools, config.global_llm)


@dataclass(frozen=True)
class Hierarchy:
    """The agents of one run, ready to work."""

    execution: Execution
    supervisor: Agent

    async def work(self) -> str:
        """Do the task in the run's event loop, and return the global supervisor's answer."""
        execution, config = self.execution, self.execution.config
        caller, token = execution.topology.supervisor, execution.run.token.child()
        task = config.task or config.global_user_message or ""
        return await execution.tracker.counted(
            caller.agent_id, lambda: execution.ask(self.supervisor, caller, token, task)
        )


class HierarchyBuilder:
    """Builds the agents of a run from its configuration. Runs share none of these objects."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def build(self) -> Hierarchy:
        """Make the global supervisor. The other agents are made anew for each task, when they are called.

        All models are made here, and all tools are looked up, so that a mistake is found before the first request to a
        model. Raises ConfigError and ModelUnavailable for such a mistake, and RunCancelled if the run is cancelled
        meanwhile.
        """
        execution = self._execution
        for team, info in zip(execution.config.teams, execution.topology.teams, strict=True):
            self._prepare(info.supervisor, team.llm)
            for worker, worker_info in zip(team.workers, info.workers, strict=True):
                find_tools(worker.tools, f"the worker {worker.name!r}")
                self._prepare(info.worker(worker_info), worker.llm)
        self._prepare(execution.topology.supervisor, execution.config.global_llm)
        return Hierarchy(execution, GlobalSupervisorFactory.create(execution))

    def _prepare(self, caller: CallerContext, llm: LlmConfig) -> None:
        run = self._execution.run
        if run.token.is_set():
            # Making some models takes a while.
            raise RunCancelled(run.run_id, run.token.kind, run.token.reason)
        self._execution.prepare(caller, llm)


async def _once(
    execution: Execution,
    caller: CallerContext,
    task: str,
    work: Callable[[str], Awaitable[str]],
    *,
    prevent: bool,
) -> str:
    """Do the task and return the answer.

    With ``prevent``, a task that this agent had before is not done again: a ``system.warning`` says so, and the earlier
    answer is returned.
    """
    tracker = execution.tracker
    if not prevent:
        return await tracker.counted(caller.agent_id, lambda: work(task))
    is_duplicate = tracker.is_duplicate(caller.agent_id, task)
    if is_duplicate:
        message = f"{caller.agent_name} had this task before: its result is used again"
        data: SystemWarningData = {
            "message": message,
            "agent_id": caller.agent_id,
            "task": task,
        }
        execution.run.emit("system", "warning", data, caller)
    answer = await tracker.once(caller.agent_id, task, lambda: work(task))
    return f"(The result of the same task before.)\n{answer}" if is_duplicate else answer


def _as_tool(
    call: Callable[[str], Awaitable[str]], name: str, description: str, user_message: str | None
) -> Any:
    """Return a tool that calls ``call`` with the model's task, or with ``user_message`` if the model gives no task."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"task": {"type": "string", "description": "What is to be done."}},
    }
    if not user_message:
        # Strands tells a model that leaves out the task, and the model may try again.
        schema["required"] = ["task"]
        return tool(name=name, description=description, inputSchema={"json": schema})(call)

    async def call_anyway(task: str = "") -> str:
        return await call(task or user_message)

    return tool(name=name, description=description, inputSchema={"json": schema})(call_anyway)


def _tool_names(kind: str, names: Sequence[str]) -> list[str]:
    """Return a name for each tool, such as ``team_research``: all different, and with characters that providers allow.

    A name without such characters, or one that another tool has, gets a number in its place.
    """
    found: list[str] = []
    for number, name in enumerate(names, start=1):
        words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        wanted = f"{kind}_{words or number}"[:_LONGEST_NAME]
        others = (f"{kind}_{other}" for other in count(number))
        found.append(next(one for one in chain([wanted], others) if one not in found))
    return found


def _members(tools: Sequence[str], names: Sequence[str]) -> str:
    lines = [f"- {name}: call the tool {tool}" for tool, name in zip(tools, names, strict=True)]
    return "\n".join(("You give tasks to:", *lines)) if lines else ""
