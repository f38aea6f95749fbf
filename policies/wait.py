"""What it costs to be sent where runs are expected to wait before they start."""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.amounts import LARGEST_CARDS, LARGEST_HOURS, times
from broker.core.policy import IntArray
from broker.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Wait:
    """Prefers pools that start runs soon."""

    price: int = 1000
    """Micro-CNY per second of expected waiting and card the job asks for (1000: 3.6 CNY per hour)."""

    def __post_init__(self) -> None:
        if self.price < 0:
            raise ValueError(f"price must be at least 0 micro-CNY, not {self.price}")

    def cost(self, p: Problem, k: int, pools: IntArray) -> IntArray:
        """Micro-CNY of one job: expected wait times cards times price."""
        return times(times(p.pool.wait_s[pools], p.job_millicards(k, pools)), self.price) // 1000

    def largest(self) -> int:
        """Micro-CNY, see Policy."""
        return self.price * LARGEST_CARDS * LARGEST_HOURS * 3600
