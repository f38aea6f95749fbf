"""What leaving a job waiting is weighed at: its tier, and how soon it would be done.

Where capacity is short, the sum of all waits is least when short jobs go first, so per card the worth
falls with the estimated run time: from the whole to a quarter.  Tiers are at least a factor of
four apart by default, so at equal age run time does not turn tiers round, and what age adds
(policies/age.py) lets a long job overtake shorter ones that came later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from broker.core.amounts import LARGEST_CARDS, bounded
from broker.core.model import MICRO, Tier
from broker.core.policy import IntArray
from broker.core.problem import Problem

_WHOLE = 64
_DOUBLINGS = 16
"""Doublings of the run time down to a quarter: from a minute to 45 days."""


@dataclass(frozen=True, slots=True)
class Priority:
    """Higher tiers first where capacity is short, and of a tier shorter jobs first.

    The worth of a job is its dearest allowed option plus a gain: the tier's factor times the
    reference price per card times the job's shortness.  So any allowed option beats waiting (as long
    as the policy's own weight is at least 1), whatever runs cost.
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
    """Micro-CNY per card of a job as short as can be; a core counts as resources.CORE_MILLICARDS."""
    short_s: int = 60
    """Estimated run time, in seconds, up to which a job is as short as can be."""

    def __post_init__(self) -> None:
        tiers = (self.low, self.normal, self.high, self.vip)
        if min(tiers) < 1 or list(tiers) != sorted(tiers):
            raise ValueError(f"low, normal, high and vip must rise from at least 1, not {tiers}")
        if self.reference_price < 1:
            raise ValueError(f"reference_price must be at least 1 micro-CNY, not {self.reference_price}")
        if self.short_s < 1:
            raise ValueError(f"short_s must be at least 1 second, not {self.short_s}")

    def worth(self, p: Problem, k: int) -> IntArray:
        """Micro-CNY per age bucket, the same in all."""
        request = p.classes[k].request
        options = p.options(k)
        if options.start == options.stop:
            return np.zeros(len(p.age_s), dtype=np.int64)
        cards = int(p.least_millicards[k])
        gain = self.reference_price * cards // 1000 * self.shortness(p.classes[k].estimate_s) // _WHOLE
        factor = {Tier.LOW: self.low, Tier.NORMAL: self.normal, Tier.HIGH: self.high, Tier.VIP: self.vip}
        dearest = int(p.cost[options].max())
        worth = bounded(dearest + factor[request.tier] * max(gain, 1))
        return np.full(len(p.age_s), worth, dtype=np.int64)

    def largest(self) -> int:
        """Micro-CNY, see Policy; of the gain alone, since the dearest option is the cost's."""
        return self.vip * self.reference_price * LARGEST_CARDS

    def shortness(self, estimate_s: int) -> int:
        """64 for a short job, 3 less for every doubling of its run time, 16 for the longest.

        In steps of a factor of two, since that is how near the run times of one class are.
        """
        doublings = max(0, estimate_s.bit_length() - self.short_s.bit_length())
        return _WHOLE - 3 * min(doublings, _DOUBLINGS)
