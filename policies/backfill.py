"""Gangs and large jobs that have waited too long get a reservation; small ones fill in before it."""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.model import Why
from broker.core.policy import Hold
from broker.core.problem import Problem


@dataclass(frozen=True, slots=True)
class Backfill:
    """No starvation: small jobs cannot take for ever what a large one needs together.

    What is held stays in use: a job that ends before the large one is expected to start may run
    there (EASY backfilling), by the longest run time that its class plans.
    """

    wait_limit_s: int = 86_400
    """Seconds that a gang or a large job waits before capacity is held for it; held sooner, it makes
    all others wait longer."""
    depth: int = 4
    """Such jobs that hold capacity at a time, one in a pool."""
    large_cards: int = 8
    """Cards from which a job on one node counts as large; every job of several nodes is a gang."""
    expiry_s: int = 86_400
    """Seconds that a reservation holds; the job that has then waited longest gets the next."""

    def __post_init__(self) -> None:
        if min(self.wait_limit_s, self.depth) < 0 or min(self.large_cards, self.expiry_s) < 1:
            raise ValueError(
                "wait_limit_s and depth must be at least 0, large_cards and expiry_s at least 1, not"
                f" {self.wait_limit_s}, {self.depth}, {self.large_cards} and {self.expiry_s}"
            )

    def hold(self, p: Problem, k: int) -> Hold | None:
        """For classes of several nodes or many cards."""
        least = int(p.least_millicards[k])  # 0 without options
        if not least or (p.classes[k].request.nodes == 1 and least < self.large_cards * 1000):
            return None
        return Hold(Why.GANG, after_s=self.wait_limit_s, expires_s=self.expiry_s, depth=self.depth)
