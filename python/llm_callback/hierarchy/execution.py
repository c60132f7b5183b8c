"""One run of a hierarchy: the objects that its agents share, and that no other run sees."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

from strands import Agent
from strands.telemetry import get_tracer
from strands.tools.executors import ConcurrentToolExecutor, SequentialToolExecutor

from llm_callback import RunCancelled
from llm_callback.hierarchy.config import ExecutionMode
from llm_callback.hierarchy.providers import ModelRequest, create_model
from llm_callback.hierarchy.topology import TopologyInfo
from llm_callback.hierarchy.tracker import ExecutionTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from strands.models import Model

    from llm_callback import CallerContext, CancelToken, Run
    from llm_callback.events import AgentCompletedData
    from llm_callback.hierarchy.config import HierarchyConfigRequest, LlmConfig

    _AgentOptions = Callable[[CallerContext], Mapping[str, Any]]

# Held while the tracer of strands is made, and for nothing else. The first agent of a process makes that tracer without
# a lock. Two agents at once would make two tracers, and the second warns on stderr that threads are instrumented twice.
_tracer_lock = threading.Lock()


class Execution:
    """The run, the configuration and the tracker that the agents of one run work with.

    ``agent_options`` is called with the :class:`CallerContext` of each agent. It returns further keyword arguments of
    the agent's ``strands.Agent``, such as ``hooks`` or a ``retry_strategy``; agents must not share these objects.
    """

    def __init__(
        self,
        run: Run,
        config: HierarchyConfigRequest,
        agent_options: _AgentOptions | None = None,
    ) -> None:
        self.run = run
        self.config = config
        self.topology: TopologyInfo = TopologyInfo.of(config)
        self.tracker: ExecutionTracker = ExecutionTracker()
        self._agent_options = agent_options or _no_options
        # Set at the run's cancel and at its end, whichever code ends it. To ask the run at each chunk would release the
        # GIL each time.
        self._over = threading.Event()
        run.token._wake_on_cancel(self._over.set)  # noqa: SLF001 - on_cancel is not called at the end
        self._models: dict[str, Model] = {}

    def prepare(self, caller: CallerContext, llm: LlmConfig) -> None:
        """Make the model of the first agent of ``caller``, and keep it until that agent is made.

        Raises ConfigError or ModelUnavailable if the agent cannot have a model.
        """
        self._models[caller.agent_id] = _model(caller, llm)

    def agent(
        self, caller: CallerContext, system_prompt: str, tools: Sequence[Any], llm: LlmConfig
    ) -> Agent:
        """Make a strands agent whose events go to the run. Each task has a new agent, so that no history stays.

        Raises ConfigError or ModelUnavailable if the agent cannot have a model.
        """
        at_once = self.config.execution_mode is ExecutionMode.PARALLEL
        callback, serve = _until_cancelled(self.run, caller, self._over)
        # A prepared model is for one agent. Later agents of the same caller may work at the same time, and get others.
        model = self._models.pop(caller.agent_id, None) or _model(caller, llm)
        options = {
            "model": model,
            "tools": list(tools),
            "system_prompt": system_prompt or None,
            "callback_handler": callback,
            "name": caller.agent_name,
            "tool_executor": ConcurrentToolExecutor() if at_once else SequentialToolExecutor(),
        }
        with _tracer_lock:
            get_tracer()
        agent = Agent(**{**options, **self._agent_options(caller)})
        serve(agent)
        return agent

    async def ask(self, agent: Agent, caller: CallerContext, token: CancelToken, task: str) -> str:
        """Give ``task`` to ``agent`` and return the answer. The agent's start and end are events of the run.

        ``token`` stops the agent. The agent's tools find the token as ``cancel_token`` in their invocation state, and
        as strands' ``tool_context.cancel_signal``.
        """
        self.run.emit("agent", "started", {"task": task}, caller)
        state = {"run_id": self.run.run_id, "cancel_token": token}
        try:
            result = await agent.invoke_async(task, invocation_state=state, cancel_signal=token)
        except Exception as error:
            if not token.is_set():
                self.run.emit("agent", "failed", {"error": describe(error)}, caller)
            raise
        finally:
            # This includes the turns before a failure or a cancel.
            self.tracker.count_usage(agent.event_loop_metrics.accumulated_usage)
        answer = str(result).strip()
        if result.stop_reason != "cancelled":
            data: AgentCompletedData = {"result": answer, "stop_reason": result.stop_reason}
            self.run.emit("agent", "completed", data, caller)
        return answer


def describe(error: BaseException) -> str:
    """Return the type and the text of the error, or of the original error if strands has wrapped it."""
    original = getattr(error, "original_exception", None)
    inner = original if isinstance(original, BaseException) else error
    return f"{type(inner).__name__}: {inner}" if str(inner) else type(inner).__name__


def _until_cancelled(
    run: Run, caller: CallerContext, over: threading.Event
) -> tuple[Callable[..., None], Callable[[Agent], None]]:
    """Return an agent's callback, and a function that must be called with the agent.

    The callback is the run's handler, but it does not raise at a cancel: it cancels the run and the agent. An exception
    from a callback would leave strands' generators to be closed in another context, and OpenTelemetry logs a traceback
    for each. The task of a cancelled run ends at its next await, and closes the generators in their own context.
    ``over`` is set when the run was cancelled or has ended.
    """
    handler, is_over = run.handler(caller), over.is_set
    # A weak reference, since the agent holds the callback.
    served: list[weakref.ref[Agent]] = []

    def callback(**kwargs: Any) -> None:
        try:
            handler(**kwargs)
        except RunCancelled as error:
            # The cause may be a checker of the host's alone, so that the run itself is not cancelled yet.
            run.cancel(error.reason or "the run's checker says so")
        else:
            if not is_over():
                return
        for agent in served:
            if (stopped := agent()) is not None:
                # Strands checks this between two chunks, also if the model never lets other tasks of the loop run.
                stopped.cancel()

    return callback, lambda agent: served.append(weakref.ref(agent))


def _model(caller: CallerContext, llm: LlmConfig) -> Model:
    return create_model(ModelRequest(caller.agent_id, caller.agent_name, llm))


def _no_options(_caller: CallerContext) -> Mapping[str, Any]:
    return {}
