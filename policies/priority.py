"""What leaving a job waiting is weighed at: its tier times what the job is about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from broker.core.model import MICRO, Tier
from broker.core.policy import IntArray
from broker.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Priority:
    """Higher tiers first where capacity is short.

    The worth of a job is its tier's factor times the larger of its reference price and twice its
    dearest allowed option.  So any allowed option beats waiting (as long as the policy's own weight
    is at least 0.5), and no constant has to be larger than everything else.
    """

    low: int = 1
    """Factor of low-priority jobs."""
    normal: int = 4
    """Factor of jobs without a priority."""
    high: int = 16
    """Factor of high-priority jobs."""
    vip: int = 64
    """Factor of VIP jobs."""
    reference_price: int = 20 * MICRO
    """Micro-CNY per accelerator-hour; a core counts as resources.CORE_MILLICARDS of a card."""

    def __post_init__(self) -> None:
        tiers = (self.low, self.normal, self.high, self.vip)
        if min(tiers) < 1 or list(tiers) != sorted(tiers):
            raise ValueError(f"low, normal, high and vip must rise from at least 1, not {tiers}")
        if self.reference_price < 1:
            raise ValueError(f"reference_price must be at least 1 micro-CNY, not {self.reference_price}")

    def worth(self, p: Problem, k: int) -> IntArray:
        """Micro-CNY per age bucket, the same in all."""
        request = p.classes[k].request
        options = p.options(k)
        if options.start == options.stop:
            return np.zeros(len(p.age_s), dtype=np.int64)
        cards = int(p.job_millicards(k, p.option_pool[options]).min())
        reference = self.reference_price * cards // 1000 * request.estimate_s // 3600
        factor = {Tier.LOW: self.low, Tier.NORMAL: self.normal, Tier.HIGH: self.high, Tier.VIP: self.vip}
        base = max(reference, 2 * int(p.cost[options].max()), 1)
        return np.full(len(p.age_s), factor[request.tier] * base, dtype=np.int64)
