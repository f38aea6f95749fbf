"""What a job is expected to cost in a pool: price per hour at this minute times the estimate."""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.policy import IntArray
from broker.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Cost:
    """Prefers cheap pools.  It has no keys besides its weight; a pool without a price costs nothing."""

    def cost(self, p: Problem, k: int, pools: IntArray) -> IntArray:
        """Micro-CNY of one job at its estimated run time."""
        rate, estimate_s = p.job_rate(k, pools), p.classes[k].request.estimate_s
        # rate * estimate_s // 3600, in steps that stay far from the end of int64
        return rate // 3600 * estimate_s + rate % 3600 * estimate_s // 3600
