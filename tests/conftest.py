"""What concerns every test: slow machines, and garbage."""

from __future__ import annotations

import gc

from hypothesis import HealthCheck, settings

# however slow the machine is, no property fails for that
settings.register_profile(
    "tests", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """What modules are made of stays: full garbage collections need not go through it each time."""
    gc.collect()
    gc.freeze()
