"""What a job gains by having waited: older jobs first, and no job waits for ever."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from broker.core.amounts import LARGEST_CARDS, bounded
from broker.core.model import MICRO
from broker.core.policy import IntArray
from broker.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Age:
    """Adds to the worth of a job for every hour it waits, for each card it asks for.

    The gain does not depend on the run time, so a long job that waits overtakes shorter ones.
    """

    growth: int = 10 * MICRO
    """Micro-CNY per card and hour of waiting."""
    longest_h: int = 24
    """Hours after which worth grows no more; the last age bucket begins at 24."""

    def __post_init__(self) -> None:
        if self.growth < 0 or self.longest_h < 1:
            raise ValueError(
                f"growth must be at least 0 and longest_h at least 1, not {self.growth} and {self.longest_h}"
            )

    def worth(self, p: Problem, k: int) -> IntArray:
        """Micro-CNY per age bucket, by the bucket's lower edge."""
        options = p.options(k)
        if options.start == options.stop:
            return np.zeros(len(p.age_s), dtype=np.int64)
        cards = int(p.least_millicards[k])
        ages_s = np.minimum(p.age_s, self.longest_h * 3600).tolist()
        worth = [bounded(age_s * (self.growth * cards // 1000) // 3600) for age_s in ages_s]
        return np.array(worth, dtype=np.int64)

    def largest(self) -> int:
        """Micro-CNY, see Policy; the last age bucket begins at 24 hours."""
        return self.growth * min(self.longest_h, 24) * LARGEST_CARDS
