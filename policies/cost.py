"""What a job is expected to cost in a pool: price per hour at this minute times the estimate."""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.amounts import LARGEST_CARDS, LARGEST_HOURS, LARGEST_RATE_MICRO, priced
from broker.core.policy import IntArray
from broker.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Cost:
    """Prefers cheap pools.  It has no keys besides its weight; a pool without a price costs nothing."""

    def cost(self, p: Problem, k: int, pools: IntArray) -> IntArray:
        """Micro-CNY of one job at its estimated run time."""
        return priced(p.job_rate(k, pools), p.classes[k].estimate_s)

    def largest(self) -> int:
        """Micro-CNY, see Policy."""
        return LARGEST_CARDS * LARGEST_HOURS * LARGEST_RATE_MICRO
