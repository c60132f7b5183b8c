"""Hypothesis profiles: ``dev`` unless HYPOTHESIS_PROFILE says ``ci`` or ``long``."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

COMMON = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

settings.register_profile("dev", COMMON, max_examples=300)
settings.register_profile("ci", COMMON, max_examples=1_500, derandomize=True, print_blob=True)
settings.register_profile("long", COMMON, max_examples=20_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
