"""What it costs to break a whole node for a small job while broken ones have room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from broker.core.amounts import LARGEST_CARDS, bounded
from broker.core.model import MICRO
from broker.core.policy import IntArray
from broker.core.problem import Problem
from broker.core.resources import card_units
from broker.core.snapshot import supply, units


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """Keeps whole nodes for those that need them.

    A job that takes part of a node pays for the rest of it where every slot of its size is on a node
    that is wholly free, and nothing where a broken node holds it.
    """

    reads_free: ClassVar[bool] = True

    price: int = 1 * MICRO
    """Micro-CNY per card (core of a pool without cards: a twentieth) of a node that is left over."""

    def __post_init__(self) -> None:
        if self.price < 0:
            raise ValueError(f"price must be at least 0 micro-CNY, not {self.price}")

    def cost(self, p: Problem, k: int, pools: IntArray) -> IntArray:
        """Micro-CNY of one job."""
        fitting, nodes = p.fittings[k], p.classes[k].request.nodes
        return np.fromiter(
            (self._cost(p, at, int(fitting.tau[at]), nodes) for at in pools.tolist()), dtype=np.int64
        )

    def largest(self) -> int:
        """Micro-CNY, see Policy; of one node, whatever the number of the job's."""
        return self.price * LARGEST_CARDS

    def _cost(self, p: Problem, at: int, slot: int, nodes: int) -> int:
        total = int(p.pool.units[at])
        if slot in (0, total) or p.pool.unknown[at]:
            return 0
        shape = p.pools[at].shape
        broken = [group for group in p.free.get(p.pools[at].id, ()) if units(shape, group) < total]
        if supply(shape, broken, slot) >= nodes:
            return 0
        left_over = (total - slot) * self.price
        return bounded(left_over // card_units(shape) if shape.accelerators else left_over // 20)
