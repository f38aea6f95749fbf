"""Notices that the wall clock was set.

What belongs here: telling of it.  What does not: what follows; times in the store are the wall clock's,
and what was planned by the old one is due by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from broker.telemetry import CLOCK_JUMPS, log

TOLERATED_MS = 5_000
"""Between two looks; time services slew by less."""


class ClockWatch:
    """`once()` compares how far the wall clock went with how far the monotonic one did."""

    def __init__(self, wall_ms: Callable[[], int], steady_s: Callable[[], float] = time.monotonic) -> None:
        self._wall_ms = wall_ms
        self._steady_s = steady_s
        self._apart_ms = self._now()

    async def once(self) -> None:
        apart_ms = self._now()
        by_ms = apart_ms - self._apart_ms
        self._apart_ms = apart_ms
        if abs(by_ms) > TOLERATED_MS:
            CLOCK_JUMPS.inc()
            log.warning("clock_jumped", by_s=round(by_ms / 1000, 1))

    def _now(self) -> int:
        return self._wall_ms() - int(self._steady_s() * 1000)
