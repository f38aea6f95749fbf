"""What it costs to move the data that a job reads to where it is not."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from broker.core.amounts import LARGEST_GIB, bounded
from broker.core.model import MICRO, CenterId, DataFacts, Snapshot
from broker.core.policy import IntArray
from broker.core.problem import Problem

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Locality:
    """Prefers centers that have a job's data sets ready.

    What has arrived of a copy that broke off needs not be moved again.  A data set of which no center
    has anything is missing everywhere alike and counts nothing.
    """

    price_per_gib: int = MICRO // 10
    """Micro-CNY per GiB that would have to be moved."""

    def __post_init__(self) -> None:
        if self.price_per_gib < 0:
            raise ValueError(f"price_per_gib must be at least 0 micro-CNY, not {self.price_per_gib}")

    def depends(self, snapshot: Snapshot) -> Hashable:
        """What is where."""
        return tuple(sorted(snapshot.ready_data.items(), key=lambda item: item[0]))

    def cost(self, p: Problem, k: int, pools: IntArray) -> IntArray:
        """Micro-CNY of one job, by what is missing at each pool's center."""
        facts = [p.snapshot.ready_data.get(dataset) for dataset in p.classes[k].request.datasets]
        known = [f for f in facts if f is not None and (f.ready or f.arrived)]
        missing = [sum(_left(f, c.id) for f in known) for c in p.centers]
        by_center = np.array([bounded(b * self.price_per_gib // GIB) for b in missing], dtype=np.int64)
        return by_center[p.pool.center[pools]] if len(by_center) else np.zeros(len(pools), dtype=np.int64)

    def largest(self) -> int:
        """Micro-CNY, see Policy."""
        return self.price_per_gib * LARGEST_GIB


def _left(data: DataFacts, center: CenterId) -> int:
    """Bytes that would still have to be moved."""
    return 0 if center in data.ready else max(0, data.bytes - dict(data.arrived).get(center, 0))
