"""Names of a module that are imported at their first use."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any


def import_at_first_use(module: dict[str, Any], places: Mapping[str, Iterable[str]]) -> None:
    """Add names to a module that are imported when somebody asks for them, and that ``dir()`` lists before.

    ``module`` is what its ``globals()`` returns. ``places`` maps each submodule of ``llm_callback`` to the names that
    are imported from it. The module gets a ``__getattr__`` by this call and not by a ``def``: a type checker that sees
    a module's ``__getattr__`` takes every misspelt name for one of the module's.
    """
    sources = {name: place for place, names in places.items() for name in names}

    def import_name(name: str) -> object:
        if name not in sources:
            raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415

        found = getattr(import_module(f"llm_callback.{sources[name]}"), name)
        # From now on it is found without a call.
        module[name] = found
        return found

    module["__getattr__"] = import_name
    module["__dir__"] = lambda: sorted({*module, *sources})
