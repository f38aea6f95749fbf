"""How fast calls are made to one center.

Here: whose turn it is.  Not here: how many may be open at once, and the calls (http.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Pace:
    """At most `per_s` calls a second, after a burst of one second's worth, in the order of asking."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._step_s = 1 / per_s
        self._burst_s = max(1.0, self._step_s) - self._step_s
        self._clock = clock
        self._next = -self._burst_s + clock()
        self._turn = asyncio.Lock()

    async def turn(self) -> None:
        """Wait for one's place.  Who gives up while others are before him has taken none."""
        async with self._turn:
            await asyncio.sleep(self.delay_s())

    def delay_s(self) -> float:
        """Take the next place; how long to wait for it."""
        now = self._clock()
        self._next = max(self._next, now - self._burst_s)
        wait_s = self._next - now
        self._next += self._step_s
        return max(0.0, wait_s)
