"""Where an agent's model and tools come from: registries of providers, scripts and tools, by name.

Registering is for a program's start. The registries are the process's; what they make is made anew for each agent.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from strands.tools import ToolProvider
from strands.types.tools import AgentTool

from llm_callback.exceptions import LlmCallbackError
from llm_callback.hierarchy.config import ConfigError, LlmConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from strands.models import Model

    from llm_callback._script import Turn

    _ModelProvider: TypeAlias = Callable[["ModelRequest"], Model]
    _Script: TypeAlias = Callable[["ModelRequest"], Model | Sequence[Turn]]


class ModelUnavailable(LlmCallbackError, RuntimeError):
    """A model cannot be used here: its package is not installed, or its key is not set; the message says which."""


@dataclass(frozen=True)
class ModelRequest:
    """An agent that needs a model."""

    agent_id: str
    agent_name: str
    llm: LlmConfig

    @property
    def name(self) -> str:
        """What follows the provider's prefix and the colon in ``model_id``."""
        return (self.llm.model_id or "").partition(":")[2]


_providers: dict[str, _ModelProvider] = {}
_scripts: dict[str, _Script] = {}
_tools: dict[str, Any] = {}


def register_model_provider(prefix: str, provider: _ModelProvider | None) -> None:
    """Have ``provider`` make the models whose id begins with ``<prefix>:``; None takes it back.

    It is called with a ModelRequest for each agent, on the thread of the agent's run, and returns a new strands model.
    Thread-safe. Raises ValueError for a prefix that is empty or holds a colon.
    """
    if not prefix or ":" in prefix:
        raise ValueError(f"a provider's prefix is a text without a colon, not {prefix!r}")
    _set(_providers, prefix, provider)


def register_script(name: str, script: _Script | None) -> None:
    """Have ``script`` say what the agents with ``model_id="scripted:<name>"`` say; None takes it back.

    It is called with a ModelRequest for each agent, so that each ``agent_id`` may have words of its own, and returns
    the script of a :class:`llm_callback.testing.ScriptedModel`, or a model. Thread-safe.
    """
    _set(_scripts, name, script)


def register_tool(name: str, tool: Any | None) -> None:
    """Let workers have ``tool``, anything that a strands agent takes, by this name; None takes it back.

    Each agent gets the same object: what it holds is shared by all runs. Its own name, which models see, may be another
    one. Thread-safe. Raises TypeError for what strands would leave out, such as a plain function.
    """
    takes = (AgentTool, ToolProvider, ModuleType, str, dict)
    if tool is not None and not isinstance(tool, takes):
        raise TypeError(
            f"the tool {name!r} must be one of strands', a ToolProvider, a module, a path or a dict, not {tool!r}: "
            "decorate a function with @strands.tool"
        )
    _set(_tools, name, tool)


def create_model(request: ModelRequest) -> Model:
    """Return a new model for an agent; where it asks for none, what strands takes by default: Bedrock's default model.

    Raises ConfigError for an id of no known provider, ModelUnavailable where the provider's package or key is missing.
    """
    model_id = request.llm.model_id
    if model_id is None:
        return _bedrock(request)
    prefix, colon, _ = model_id.partition(":")
    provider = _providers.get(prefix)
    if provider is None or not colon:
        known = ", ".join(f"{known}:…" for known in sorted(_providers))
        # The ids that strands itself takes are Bedrock's, with a colon of their own: us.anthropic.claude-…-v1:0.
        is_bare = bool(model_id) and prefix not in _providers and ("." in prefix or not colon)
        hint = f" (write 'bedrock:{model_id}' if it is Bedrock's)" if is_bare else ""
        raise ConfigError(
            f"model_id of {request.agent_name!r} must be one of {known}, not {model_id!r}{hint}; "
            "register_model_provider() adds others"
        )
    return provider(request)


def find_tools(names: Sequence[str], place: str) -> list[Any]:
    """Return the tools of these names: those registered, else those of the package strands-agents-tools.

    Raises ConfigError for a name that neither has.
    """
    return [_find_tool(name, place) for name in names]


def _find_tool(name: str, place: str) -> Any:
    if (tool := _tools.get(name)) is not None:
        return tool
    if name.isidentifier():
        try:
            return import_module(f"strands_tools.{name}")
        except ModuleNotFoundError as error:
            # One that is missing inside a tool is another problem; keep its own words.
            if not (error.name or "").startswith("strands_tools"):
                raise
    raise ConfigError(
        f"{place} has no tool {name!r}: register_tool({name!r}, …), or install strands-agents-tools "
        f"for one of its own; known are {sorted(_tools)}"
    )


def _set(registry: dict[str, Any], name: str, value: Any) -> None:
    if value is None:
        registry.pop(name, None)
    else:
        registry[name] = value


def _import_model(module: str, extra: str, request: ModelRequest) -> Any:
    try:
        return import_module(f"strands.models.{module}")
    except ImportError as error:
        raise ModelUnavailable(
            f"{extra}:{request.name} of {request.agent_name!r} needs a package that is not installed "
            f"({error}): pip install 'strands-agents[{extra}]'"
        ) from error


def _key(variable: str, extra: str, request: ModelRequest) -> str:
    key = os.environ.get(variable)
    if not key:
        raise ModelUnavailable(
            f"{extra}:{request.name} of {request.agent_name!r} needs a key: set {variable} in the environment"
        )
    return key


def _bedrock(request: ModelRequest) -> Model:
    models = _import_model("bedrock", "bedrock", request)
    boto3 = import_module("boto3")
    has_key = os.environ.get("AWS_BEARER_TOKEN_BEDROCK") or boto3.Session().get_credentials()
    if not has_key:
        what = (
            f"bedrock:{request.name}"
            if request.name
            else "Bedrock, the default without a model_id,"
        )
        raise ModelUnavailable(
            f"{what} of {request.agent_name!r} needs AWS credentials: "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    named = {"model_id": request.name} if request.name else {}
    model: Model = models.BedrockModel(
        temperature=request.llm.temperature, max_tokens=request.llm.max_tokens, **named
    )
    return model


def _openai(request: ModelRequest) -> Model:
    models = _import_model("openai", "openai", request)
    model: Model = models.OpenAIModel(
        client_args={"api_key": _key("OPENAI_API_KEY", "openai", request)},
        model_id=request.name,
        params={"temperature": request.llm.temperature, "max_tokens": request.llm.max_tokens},
    )
    return model


def _anthropic(request: ModelRequest) -> Model:
    models = _import_model("anthropic", "anthropic", request)
    model: Model = models.AnthropicModel(
        client_args={"api_key": _key("ANTHROPIC_API_KEY", "anthropic", request)},
        model_id=request.name,
        max_tokens=request.llm.max_tokens,
        params={"temperature": request.llm.temperature},
    )
    return model


def _ollama(request: ModelRequest) -> Model:
    models = _import_model("ollama", "ollama", request)
    model: Model = models.OllamaModel(
        os.environ.get("OLLAMA_HOST", "http://localhost:11434"),
        model_id=request.name,
        temperature=request.llm.temperature,
        max_tokens=request.llm.max_tokens,
    )
    return model


def _scripted(request: ModelRequest) -> Model:
    from llm_callback.testing import ScriptedModel  # noqa: PLC0415

    script = _scripts.get(request.name)
    if script is None:
        raise ConfigError(
            f"scripted:{request.name} of {request.agent_name!r} has no script: "
            f"register_script({request.name!r}, …); known are {sorted(_scripts)}"
        )
    made = script(request)
    return ScriptedModel(made) if isinstance(made, Sequence) else made


_providers.update(
    anthropic=_anthropic, bedrock=_bedrock, ollama=_ollama, openai=_openai, scripted=_scripted
)
