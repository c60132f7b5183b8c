"""What holds for all tests: how many examples hypothesis tries.

The profile of hypothesis is ``dev`` unless HYPOTHESIS_PROFILE says ``ci`` or ``long`` (`make stress`).
"""

from __future__ import annotations

import ast
import os
import sys
import threading
from functools import wraps
from typing import Any

from hypothesis import HealthCheck, settings

COMMON = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

settings.register_profile("dev", COMMON, max_examples=100)
settings.register_profile("ci", COMMON, max_examples=1_500, derandomize=True, print_blob=True)
settings.register_profile("long", COMMON, max_examples=20_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

if sys.version_info[:2] == (3, 11):
    # Its syntax tree is made with a counter that all threads share, and hypothesis has every collection run Python,
    # which lets another thread in. Who prints a traceback parses, too.
    _parse, _parsing = ast.parse, threading.RLock()

    @wraps(_parse)
    def _parse_alone(*args: Any, **options: Any) -> ast.AST:
        with _parsing:
            return _parse(*args, **options)

    ast.parse = _parse_alone
