"""What a job is expected to cost in a pool: price per hour at this minute times the estimate."""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.amounts import LARGEST_CARDS, LARGEST_HOURS, LARGEST_RATE_MICRO, added, times
from broker.core.policy import IntArray
from broker.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Cost:
    """Prefers cheap pools.  It has no keys besides its weight; a pool without a price costs nothing."""

    def cost(self, p: Problem, k: int, pools: IntArray) -> IntArray:
        """Micro-CNY of one job at its estimated run time."""
        rate, estimate_s = p.job_rate(k, pools), p.classes[k].estimate_s
        # rate * estimate_s // 3600, in steps that stay inside int64
        return added(times(rate // 3600, estimate_s), rate % 3600 * estimate_s // 3600)

    def largest(self) -> int:
        """Micro-CNY, see Policy."""
        return LARGEST_CARDS * LARGEST_HOURS * LARGEST_RATE_MICRO
