"""What it costs to be sent where little is left: spreads work over pools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from broker.core.amounts import LARGEST_CARDS, times
from broker.core.model import MICRO
from broker.core.policy import IntArray
from broker.core.problem import Problem
from broker.core.snapshot import supply


@dataclass(frozen=True, slots=True)
class Balance:
    """Prefers pools of which much is free, so that none is full while another stands empty."""

    reads_free: ClassVar[bool] = True

    price: int = 1 * MICRO
    """Micro-CNY per card of the job in a pool that is full; half of it in one that is half full."""

    def __post_init__(self) -> None:
        if self.price < 0:
            raise ValueError(f"price must be at least 0 micro-CNY, not {self.price}")

    def cost(self, p: Problem, k: int, pools: IntArray) -> IntArray:
        """Micro-CNY of one job.  A pool that does not tell what is idle counts as half full."""
        used = np.fromiter((self._used_permille(p, at) for at in pools.tolist()), dtype=np.int64)
        return times(times(p.job_millicards(k, pools), self.price) // 1000, used) // 1000

    def largest(self) -> int:
        """Micro-CNY, see Policy."""
        return self.price * LARGEST_CARDS

    def _used_permille(self, p: Problem, at: int) -> int:
        total = int(p.pool.units[at] * p.pool.nodes[at])
        if p.pool.unknown[at] or total == 0:
            return 500
        free = supply(p.pools[at].shape, p.free.get(p.pools[at].id, ()), 1)
        return 1000 - min(1000, 1000 * free // total)
