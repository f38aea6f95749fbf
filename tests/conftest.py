"""What concerns every test: however slow the machine is, no property fails for that."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "tests", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")
