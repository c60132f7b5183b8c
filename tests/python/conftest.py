"""What holds for all tests: which ones pytest-xdist keeps apart, and how many examples hypothesis tries.

The profile of hypothesis is ``dev`` unless HYPOTHESIS_PROFILE says ``ci`` or ``long`` (`make stress`).
"""

from __future__ import annotations

import ast
import os
import sys
import threading
from functools import wraps
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

COMMON = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

settings.register_profile("dev", COMMON, max_examples=100)
settings.register_profile("ci", COMMON, max_examples=1_500, derandomize=True, print_blob=True)
settings.register_profile("long", COMMON, max_examples=20_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# The files whose tests start browsers, servers, and programs that fork or exit under load, in three groups of about
# the same length: more of them at once would starve each other.
GROUPS = {
    name: group
    for group, names in {
        "servers": ("test_browser.py", "test_shutdown.py", "test_web.py"),
        "programs": ("test_bad_input.py", "test_demo.py", "test_package.py", "test_run_process.py"),
        "sinks": ("test_benches.py", "test_sinks.py"),
    }.items()
    for name in names
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each group of files, and each other file, to one worker of pytest-xdist."""
    for item in items:
        name = item.path.name
        item.add_marker(pytest.mark.xdist_group(GROUPS.get(name, name)))


if sys.version_info[:2] == (3, 11):
    # Its syntax tree is made with a counter that all threads share, and hypothesis has every collection run Python,
    # which lets another thread in. Who prints a traceback parses, too.
    _parse, _parsing = ast.parse, threading.RLock()

    @wraps(_parse)
    def _parse_alone(*args: Any, **options: Any) -> ast.AST:
        with _parsing:
            return _parse(*args, **options)

    ast.parse = _parse_alone
