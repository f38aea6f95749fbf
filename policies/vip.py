"""VIP jobs go before all others, and what lower jobs free is held for those that wait."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from broker.core.amounts import LARGEST_CARDS, bounded
from broker.core.model import MICRO, Tier, Why
from broker.core.policy import Hold, IntArray
from broker.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Vip:
    """First place for VIP jobs, whatever their length or price, and a reservation while they wait."""

    bonus: int = 100_000 * MICRO
    """Micro-CNY per card that a VIP job is worth on top: more than any other job's worth per card."""
    expiry_s: int = 1800
    """Seconds that a reservation holds.  Half-way it is made anew, where the job is expected to start
    first by then; a victim set whose capacity was not got by then is lost."""
    depth: int = 64
    """VIP jobs that hold capacity at a time."""

    def __post_init__(self) -> None:
        if self.bonus < 0 or self.expiry_s < 1 or self.depth < 0:
            raise ValueError(
                "bonus and depth must be at least 0 and expiry_s at least 1,"
                f" not {self.bonus}, {self.depth} and {self.expiry_s}"
            )

    def worth(self, p: Problem, k: int) -> IntArray:
        """Micro-CNY per age bucket, the same in all; 0 for other tiers."""
        options = p.options(k)
        if p.classes[k].request.tier is not Tier.VIP or options.start == options.stop:
            return np.zeros(len(p.age_s), dtype=np.int64)
        cards = int(p.least_millicards[k])
        return np.full(len(p.age_s), bounded(max(1, self.bonus * cards // 1000)), dtype=np.int64)

    def largest(self) -> int:
        """Micro-CNY, see Policy."""
        return self.bonus * LARGEST_CARDS

    def hold(self, p: Problem, k: int) -> Hold | None:
        """At once, and for VIP jobs alone."""
        if p.classes[k].request.tier is not Tier.VIP:
            return None
        return Hold(Why.VIP, after_s=0, expires_s=self.expiry_s, depth=self.depth)
