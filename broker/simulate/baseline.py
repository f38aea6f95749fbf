"""The published baselines of the simulator: strict head of line, first come first or shortest first.

What belongs here: queues in which no job passes the first.  What does not: the production scheduler.

Rules, those of the published replays: a job starts when every one of its nodes can have what it asks
for on a node of its own (consolidated), in one pool; a node is the fullest that holds it; a first job
that does not fit stops its whole queue.  Jobs that stay home have a queue per center; the others
share one queue, and a job starts in the pool whose fullest fitting node is the fullest.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.core.model import Claim, JobId, NodeShape, Pool
from broker.simulate.trace import TraceJob
from broker.simulate.world import ARCH, Round, Start, World

if TYPE_CHECKING:
    from broker.simulate import Simulation


@dataclass(slots=True)
class HeadOfLine:
    """`shortest_first` orders by the estimate, then by submission; else by submission alone."""

    world: World
    shortest_first: bool
    stays_home: bool
    _queues: dict[str, list[tuple[int, int, TraceJob]]] = field(default_factory=dict)
    _arrived: int = 0
    _never: int = 0

    def enqueue(self, job: TraceJob, *, estimate_s: int | None, queued_ms: int) -> None:
        pools = self._pools(job)
        if not any(_holds(pool.shape, shape) and job.nodes <= pool.nodes for pool, shape in pools):
            self._never += 1  # it would stop the queue for ever
            return
        self._arrived += 1
        rank = queued_ms if estimate_s is None or not self.shortest_first else estimate_s
        queue = self._queues.setdefault(job.center if self.stays_home else "", [])
        heapq.heappush(queue, (rank, self._arrived, job))

    def started(self, job: JobId) -> None:
        """The job left its queue when it was chosen."""

    def ended(self, claim: Claim, now_ms: int, *, whole: bool) -> None:
        """Baselines learn nothing."""

    def decide(self, sim: Simulation) -> Round:
        starts: list[tuple[Start, tuple[int, ...]]] = []
        for queue in self._queues.values():
            while queue and (start := self._first_fit(queue[0][2], sim)) is not None:
                heapq.heappop(queue)
                taken = sim.nodes[start.pool].take(start.shape, start.nodes)
                assert taken is not None, "it was found to fit"
                starts.append((start, taken))
        # Nodes were taken to see what fits after them; it is the simulation that starts the runs.
        for start, taken in starts:
            sim.nodes[start.pool].give_back(taken, start.shape)
        return Round(starts=tuple(start for start, _ in starts))

    def reasons(self) -> dict[str, int]:
        return {"never_fits": self._never} if self._never else {}

    def _first_fit(self, job: TraceJob, sim: Simulation) -> Start | None:
        found = [
            (sim.nodes[pool.id].holding(shape)[0], pool.id, shape)
            for pool, shape in self._pools(job)
            if sim.nodes[pool.id].fits(shape, job.nodes)
        ]
        if not found:
            return None
        _, pool_id, shape = min(found, key=lambda f: (f[0], f[1]))
        return Start(JobId(job.id), pool_id, shape, job.nodes)

    def _pools(self, job: TraceJob) -> list[tuple[Pool, NodeShape]]:
        """The pools a job may use, and what a node of it asks for there."""
        return [
            (pool, NodeShape(ARCH, job.cores, job.memory_gib, self.world.products[pool.center], job.cards))
            for pool in self.world.pools
            if self.world.may(job, pool.center, stays_home=self.stays_home)
        ]


def _holds(node: NodeShape, wanted: NodeShape) -> bool:
    return (
        wanted.accelerators <= node.accelerators
        and wanted.cores <= node.cores
        and wanted.memory_gib <= node.memory_gib
    )
