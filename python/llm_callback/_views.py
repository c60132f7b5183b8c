"""Live read-only mappings, for hosts that look at the original module's private dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from threading import get_ident

from llm_callback._core import _callbacks, _checkers, get_current_run_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, ItemsView, Iterator, ValuesView
    from typing import Any


class _View(Mapping["Hashable", "Any"]):
    """A mapping that calls ``snapshot`` at each access. Thread-safe; never blocks."""

    __slots__ = ("_snapshot",)

    def __init__(self, snapshot: Callable[[], dict[Any, Any]]) -> None:
        self._snapshot = snapshot

    def __getitem__(self, key: Hashable) -> Any:
        return self._snapshot()[key]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._snapshot())

    def __len__(self) -> int:
        return len(self._snapshot())

    def __contains__(self, key: object) -> bool:
        return key in self._snapshot()

    # Each takes one snapshot: the mixin classes would look up the keys one by one, and a key may be gone by then.

    def items(self) -> ItemsView[Hashable, Any]:
        return self._snapshot().items()

    def values(self) -> ValuesView[Any]:
        return self._snapshot().values()

    def __repr__(self) -> str:
        return repr(self._snapshot())


def _current() -> dict[int, Any]:
    run_id = get_current_run_id()
    return {} if run_id is None else {get_ident(): run_id}


_callback_registry: Mapping[Hashable, Callable[..., object]] = _View(_callbacks)
_checker_registry: Mapping[Hashable, Callable[..., object]] = _View(_checkers)
_current_run_id: Mapping[Hashable, Hashable] = _View(_current)
