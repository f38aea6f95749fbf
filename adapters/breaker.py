"""The circuit breaker of one center: after failures in a row it is left alone for a while.

Here: when a call may be made, judged by how earlier ones ended.  Not here: what counts as a failure
and the calls themselves (http.py).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from prometheus_client import Gauge

FAILURES = 5
"""Calls in a row without an intelligible answer after which the breaker opens."""
PAUSE_S = 5.0
"""How long it stays open at first; doubled each time the trial call fails too."""
MAX_PAUSE_S = 60.0


class BreakerState(IntEnum):
    """The numbers that /metrics shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


BREAKER = Gauge(
    "broker_center_breaker", "Circuit breaker of a center: 0 closed, 1 on trial, 2 open", ["center"]
)


class BreakerOpen(Exception):
    """The call may not be made now."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"failed {FAILURES} times in a row; it is left alone for {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Breaker:
    """`enter` before a call, `leave` after it with what `enter` gave.

    An urgent call passes in every state: a stop that is owed, and a login on behalf of a call that
    has passed.  How it ends counts like any other's.  `clock` is in seconds and never goes back.
    """

    def __init__(self, center: str, clock: Callable[[], float]) -> None:
        self._gauge = BREAKER.labels(center)
        self._clock = clock
        self._failures = 0
        self._pause_s = PAUSE_S
        self._until: float | None = None  # None: closed
        self._on_trial = False
        self._show()

    @property
    def state(self) -> BreakerState:
        if self._until is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._on_trial else BreakerState.OPEN

    def enter(self, *, urgent: bool = False) -> bool:
        """True for the one trial call of a breaker that has been open long enough.

        Raises BreakerOpen.
        """
        if self._until is None or urgent:
            return False
        left_s = self._until - self._clock()
        if left_s > 0 or self._on_trial:
            raise BreakerOpen(max(left_s, 1.0))
        self._on_trial = True
        self._show()
        return True

    def leave(self, trial: bool, *, answered: bool | None) -> None:
        """`answered`: whether the center answered intelligibly; None when it was not asked."""
        if trial:
            self._on_trial = False
        if answered:
            self._failures, self._pause_s, self._until = 0, PAUSE_S, None
        elif answered is False:
            self._failures += 1
            if self._until is None and self._failures >= FAILURES:
                self._until = self._clock() + self._pause_s
            elif trial:
                self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
                self._until = self._clock() + self._pause_s
        self._show()

    def _show(self) -> None:
        self._gauge.set(self.state)
