"""What the broker may still use of the capacity that centers report, and what-if questions about it.

What belongs here: effective free nodes (reports, minus our own claims, minus reservations), slot
units, and snapshots with something taken away.  What does not: which job may use it.

Reports are beliefs.  An exact report already contains the runs that started long enough before it;
an estimated one contains none of ours; an unknown one says nothing, so the pool has no rows at all
and only the center's in-flight room limits what is sent there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from broker.core.model import (
    Accuracy,
    CenterFacts,
    Claim,
    FreeNodes,
    JobId,
    NodeShape,
    Pool,
    PoolId,
    RunId,
    Snapshot,
)
from broker.core.resources import unit_count

Free = Mapping[PoolId, tuple[FreeNodes, ...]]


def units(shape: NodeShape, free: FreeNodes) -> int:
    """Slot units left on one node of `shape` of which `free` is free.

    The least of free cards and of what free cores and memory allow; cores stand for cards in a pool
    without cards.
    """
    total = unit_count(shape)
    left = free.accelerators if shape.accelerators else free.cores
    if shape.accelerators and shape.cores:
        left = min(left, free.cores * total // shape.cores)
    if shape.memory_gib:
        left = min(left, free.memory_gib * total // shape.memory_gib)
    return max(0, min(left, total))


def supply(shape: NodeShape, free: Sequence[FreeNodes], size: int) -> int:
    """Slots of `size` units in a pool: the sum over nodes of floor(units / size)."""
    return sum(group.nodes * (units(shape, group) // size) for group in free)


def in_flight_room(center: CenterFacts) -> int:
    """Runs that may still be submitted before the center has too many that do not run yet."""
    return max(0, center.max_in_flight - center.in_flight)


def effective_free(snapshot: Snapshot, *, holder: JobId | None = None) -> dict[PoolId, tuple[FreeNodes, ...]]:
    """Free nodes of every pool after our own claims and the reservations in force.

    Reservations of the job `holder` are not taken off: they hold against others only.  Groups are
    sorted and nodes that have nothing free are left out.
    """
    lag_s = {center.id: center.report_lag_s for center in snapshot.centers}
    claims: dict[PoolId, list[Claim]] = {}
    for claim in snapshot.claims:
        claims.setdefault(claim.pool, []).append(claim)
    free: dict[PoolId, tuple[FreeNodes, ...]] = {}
    for pool in snapshot.pools:
        if pool.accuracy is Accuracy.UNKNOWN:
            free[pool.id] = ()
            continue
        histogram = _Histogram(pool)
        owed = [c for c in claims.get(pool.id, ()) if not _reported(pool, c, lag_s.get(pool.center, 0))]
        # Large claims first: they have the fewest nodes to be on.  Ties end with the id.
        for claim in sorted(owed, key=lambda c: (_size(c.shape), c.run), reverse=True):
            histogram.charge(claim.shape, claim.nodes)
        held = [r for r in snapshot.reservations if r.pool == pool.id and r.job != holder]
        for hold in sorted(held, key=lambda r: (-r.slot, r.id)):
            if hold.not_before_ms <= snapshot.now_ms < hold.expires_ms:
                histogram.charge(_slot_shape(pool.shape, hold.slot), hold.nodes)
        free[pool.id] = histogram.groups()
    return free


def without(snapshot: Snapshot, runs: Collection[RunId]) -> Snapshot:
    """The snapshot as it would be if these runs held nothing.

    A claim that the report already contains is given back to the fullest nodes that can have held
    it; what no node can have held is not given back.
    """
    gone = frozenset(runs)
    lag_s = {center.id: center.report_lag_s for center in snapshot.centers}
    pools = {pool.id: pool for pool in snapshot.pools}
    histograms: dict[PoolId, _Histogram] = {}
    for claim in sorted((c for c in snapshot.claims if c.run in gone), key=lambda c: (c.pool, c.run)):
        pool = pools.get(claim.pool)
        if pool is not None and _reported(pool, claim, lag_s.get(pool.center, 0)):
            histograms.setdefault(pool.id, _Histogram(pool)).release(claim.shape, claim.nodes)
    return replace(
        snapshot,
        claims=tuple(c for c in snapshot.claims if c.run not in gone),
        pools=tuple(
            replace(p, free=histograms[p.id].groups()) if p.id in histograms else p for p in snapshot.pools
        ),
    )


def _reported(pool: Pool, claim: Claim, report_lag_s: int) -> bool:
    """Whether the pool's report already counts this claim as used."""
    if pool.accuracy is not Accuracy.EXACT or claim.started_ms is None:
        return False
    return claim.started_ms < pool.as_of_ms - report_lag_s * 1000


def _size(shape: NodeShape) -> tuple[int, int, int]:
    return (shape.accelerators, shape.cores, shape.memory_gib)


def _slot_shape(node: NodeShape, slot: int) -> NodeShape:
    """The share of a node that `slot` units own, rounded up."""
    total = max(1, unit_count(node))
    return replace(
        node,
        cores=-(-node.cores * slot // total),
        memory_gib=-(-node.memory_gib * slot // total),
        accelerators=min(slot, node.accelerators),
    )


_Node = tuple[int, int, int, int]
"""(units, accelerators, cores, memory_gib) free: sorts from the fullest node to the emptiest."""


class _Histogram:
    """Counts of nodes by what is free, while claims are charged to it."""

    def __init__(self, pool: Pool) -> None:
        self.shape = pool.shape
        self.count: dict[_Node, int] = {}
        for group in pool.free:
            self._add(self._node(group.accelerators, group.cores, group.memory_gib), group.nodes)

    def _node(self, accelerators: int, cores: int, memory_gib: int) -> _Node:
        left = units(self.shape, FreeNodes(cores, memory_gib, accelerators, 1))
        return (left, accelerators, cores, memory_gib)

    def _add(self, node: _Node, nodes: int) -> None:
        self.count[node] = self.count.get(node, 0) + nodes
        if self.count[node] <= 0:
            del self.count[node]

    def _take(self, node: _Node, shape: NodeShape, nodes: int) -> None:
        """Moves `nodes` nodes to what remains after `shape`, never below zero."""
        _, cards, cores, memory = node
        after = self._node(
            max(0, cards - shape.accelerators), max(0, cores - shape.cores), max(0, memory - shape.memory_gib)
        )
        self._add(node, -nodes)
        self._add(after, nodes)

    def charge(self, shape: NodeShape, nodes: int) -> None:
        """Charges one claim: the fullest nodes that still fit, a node for each of its nodes.

        Where there are too few, its nodes share one; where none fits, the emptiest is charged, so
        that the error is on the safe side.
        """

        def fits(node: _Node) -> bool:
            return node[1] >= shape.accelerators and node[2] >= shape.cores and node[3] >= shape.memory_gib

        left = nodes
        for node, count in sorted((n, c) for n, c in self.count.items() if fits(n)):
            taken = min(left, count)
            self._take(node, shape, taken)
            left -= taken
        while left > 0:
            candidates = [n for n in self.count if fits(n)]
            node = min(candidates) if candidates else max(self.count, default=(0, 0, 0, 0))
            if node[1:] == (0, 0, 0):
                return
            taken = min(left, self.count[node])
            self._take(node, shape, taken)
            left -= taken

    def release(self, shape: NodeShape, nodes: int) -> None:
        """Gives a claim back to the fullest nodes that can have held it."""
        full = self.shape
        left = nodes
        for (_, cards, cores, memory), count in sorted(self.count.items()):
            held = (
                cards + shape.accelerators <= full.accelerators
                and cores + shape.cores <= full.cores
                and memory + shape.memory_gib <= full.memory_gib
            )
            if held:
                taken = min(left, count)
                after = (cards + shape.accelerators, cores + shape.cores, memory + shape.memory_gib)
                self._add(self._node(cards, cores, memory), -taken)
                self._add(self._node(*after), taken)
                left -= taken

    def groups(self) -> tuple[FreeNodes, ...]:
        """The histogram without nodes that have nothing free, fullest first."""
        return tuple(
            FreeNodes(cores=cores, memory_gib=memory, accelerators=cards, nodes=nodes)
            for (_, cards, cores, memory), nodes in sorted(self.count.items())
            if (cards, cores, memory) != (0, 0, 0)
        )
