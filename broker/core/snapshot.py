"""What the broker may still use of the capacity that centers report, and what-if questions about it.

What belongs here: effective free nodes (reports, minus our own claims, minus reservations), slot
units, what is held for whom and until when, and snapshots with something taken away.  What does not:
which job may use it, and making reservations (core/holds.py).

Reports are beliefs.  An exact report already contains the runs that started long enough before it;
an estimated one contains none of ours; an unknown one says nothing, so the pool has no rows at all
and only the center's in-flight room limits what is sent there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from broker.core.identity import holder_key
from broker.core.model import (
    Accuracy,
    CenterFacts,
    Claim,
    FreeNodes,
    Health,
    JobClass,
    JobId,
    JobRequest,
    NodeShape,
    Pool,
    PoolId,
    Reservation,
    RunId,
    Snapshot,
    Tier,
    Why,
)
from broker.core.queue import JobQueue, as_queue
from broker.core.resources import PART_UNITS, card_units, part_permille, unit_count

Free = Mapping[PoolId, tuple[FreeNodes, ...]]


def units(shape: NodeShape, free: FreeNodes) -> int:
    """Slot units left on one node of `shape` of which `free` is free.

    The least of free cards and of what free cores and memory allow; cores stand for cards in a pool
    without cards.
    """
    return min(host_units(shape, free), slots_on_cards(shape, free, 1))


def host_units(shape: NodeShape, free: FreeNodes) -> int:
    """Slot units that free cores and memory of one node allow."""
    total = left = unit_count(shape)
    if not shape.accelerators:
        left = free.cores
    elif shape.cores:
        left = free.cores * total // shape.cores
    if shape.memory_gib:
        left = min(left, free.memory_gib * total // shape.memory_gib)
    return max(0, min(left, total))


def slots_on_cards(shape: NodeShape, free: FreeNodes, size: int) -> int:
    """Slots of `size` units that the free cards of one node hold, each on one card or on whole ones."""
    if not shape.accelerators:
        return unit_count(shape) // size
    whole = min(free.accelerators, shape.accelerators)
    if not shape.split_permille:
        return whole // size
    if size > PART_UNITS:
        return whole * PART_UNITS // size
    return whole * (PART_UNITS // size) + sum(part * PART_UNITS // 1000 // size for part in free.parts)


def slots(shape: NodeShape, free: FreeNodes, size: int) -> int:
    """Slots of `size` units on one node.

    Taking a slot of t units takes t / size of them for every smaller size (sizes divide each other),
    wherever it is put.  So slots of several sizes pack, the largest first, exactly when for every size
    those at least as large, each counted as floor(t / size), are at most the sum over nodes.
    """
    return min(host_units(shape, free) // size, slots_on_cards(shape, free, size))


def supply(shape: NodeShape, free: Sequence[FreeNodes], size: int) -> int:
    """Slots of `size` units in a pool: the sum over its nodes."""
    return sum(group.nodes * slots(shape, group, size) for group in free)


def in_flight_room(center: CenterFacts) -> int:
    """Runs that may still be submitted before the center has too many that do not run yet."""
    return max(0, center.max_in_flight - center.in_flight)


def effective_free(
    snapshot: Snapshot, *, holder: JobId | None = None, reservations: Sequence[Reservation] | None = None
) -> dict[PoolId, tuple[FreeNodes, ...]]:
    """Free nodes of every pool after our own claims and reservations: those in force, or these.

    Reservations of the job `holder` are not taken off: they hold against others only.  Groups are
    sorted and nodes that have nothing free are left out.
    """
    holds = in_force(snapshot) if reservations is None else reservations
    lag_s = {center.id: center.report_lag_s for center in snapshot.centers}
    claims, held = _by_pool(snapshot.claims), _by_pool(holds)
    free: dict[PoolId, tuple[FreeNodes, ...]] = {}
    for pool in snapshot.pools:
        if pool.accuracy is Accuracy.UNKNOWN:
            free[pool.id] = ()
            continue
        lag = lag_s.get(pool.center, 0)
        owed = [c for c in claims.get(pool.id, ()) if not _reported(pool, c, lag)]
        histogram = _Histogram(pool)
        histogram.charge_all(owed, [r for r in held.get(pool.id, ()) if r.job != holder])
        free[pool.id] = histogram.groups()
    return free


def without(snapshot: Snapshot, runs: Collection[RunId], *, slot: int | None = None) -> Snapshot:
    """The snapshot as it would be if these runs held nothing.

    Claims that the report already contains are given back to the fullest nodes that can have held
    them, the largest first; what no node can have held is not given back.  Nobody knows which nodes a
    run is on: with `slot` it is given back to those where it makes the fewest further slots of that
    many units, so that what is believed to come free does.
    """
    gone = frozenset(runs)
    lag_s = {center.id: center.report_lag_s for center in snapshot.centers}
    claims = _by_pool(c for c in snapshot.claims if c.run in gone)

    def given_back(pool: Pool) -> Pool:
        lag = lag_s.get(pool.center, 0)
        owned = [c for c in claims.get(pool.id, ()) if _reported(pool, c, lag)]
        if not owned:
            return pool
        histogram = _Histogram(pool)
        histogram.release_all(owned, slot)
        return replace(pool, free=histogram.groups())

    return replace(
        snapshot,
        claims=tuple(c for c in snapshot.claims if c.run not in gone),
        pools=tuple(map(given_back, snapshot.pools)),
    )


class WhatIf:
    """The same two questions for one pool, asked often: what is free without some of its runs.

    `claims` are those of the pool.
    """

    def __init__(self, pool: Pool, claims: Sequence[Claim], report_lag_s: int) -> None:
        self.pool = pool
        self._claims = claims
        self._full = _Histogram(pool)
        since_ms = _reported_since_ms(pool, report_lag_s)
        self._owed = [c for c in claims if c.started_ms is None or c.started_ms >= since_ms]
        self._owed_runs = frozenset(c.run for c in self._owed)

    def free(self, before: Sequence[Reservation]) -> tuple[FreeNodes, ...]:
        """Free nodes beside what is held `before`."""
        histogram = self._full.copy()
        histogram.charge_all(self._owed, before)
        return histogram.groups()

    def slots(self, gone: Collection[Claim], slot: int, before: Sequence[Reservation] = ()) -> int:
        """Slots of `slot` units without the runs `gone`, beside what is held `before`."""
        if not (gone or before or self._owed):
            return self._full.slots(slot)
        histogram = self._full.copy()
        owned = [c for c in gone if c.run not in self._owed_runs]
        histogram.release_all(owned, slot)
        owed = self._owed
        if owed and len(owned) < len(gone):
            runs = {c.run for c in gone}
            owed = [c for c in owed if c.run not in runs]
        histogram.charge_all(owed, before)
        return histogram.slots(slot)

    def alike(self, gone: Iterable[Claim]) -> Hashable:
        """Equal for runs that cannot be told apart by what is free without them."""
        nodes: dict[Hashable, int] = {}
        for claim in gone:
            kind = claim.run if claim.run in self._owed_runs else _kind(claim.shape)
            nodes[kind] = nodes.get(kind, 0) + claim.nodes
        return frozenset(nodes.items())

    def absorbs(self, slot: int, largest: int) -> int:
        """Units that runs of at most `largest` units each may have held without a slot coming free.

        Each goes where it makes none as long as there is such a node.  0 where cards are split.
        """
        if self.pool.shape.split_permille:
            return 0
        return sum(
            nodes * max(0, slot - largest - node[0] % slot)
            for node, nodes in self._full.count.items()
            if node[0] + largest <= unit_count(self.pool.shape)
        )

    def expected_start_ms(
        self, slot: int, nodes: int, before: Sequence[Reservation], now_ms: int
    ) -> int | None:
        """When `nodes` slots of `slot` units are expected to be free after what is held `before`.

        By the planned ends of our own runs there; None when they all end and it is still too little.
        """
        if self.slots((), slot, before) >= nodes:
            return now_ms
        ends = sorted(self._claims, key=lambda c: (planned_end_ms(c, now_ms), c.run))
        ended = bisect_left(
            range(len(ends) + 1), True, key=lambda n: self.slots(ends[:n], slot, before) >= nodes
        )
        return None if ended > len(ends) else planned_end_ms(ends[ended - 1], now_ms)


# ---------------------------------------------------------------- what is held


def silent(snapshot: Snapshot) -> bool:
    """Whether no center answers: then this side may be cut off, and nothing ages or expires (law 7)."""
    return not any(center.health is Health.FRESH for center in snapshot.centers)


_RANK = {why.value: rank for rank, why in enumerate(Why)}


def in_force(snapshot: Snapshot) -> list[Reservation]:
    """The reservations that hold now, in the order in which they are served."""
    frozen = silent(snapshot)
    held = [
        r
        for r in snapshot.reservations
        if r.not_before_ms <= snapshot.now_ms and (frozen or snapshot.now_ms < r.expires_ms)
    ]
    return sorted(held, key=lambda r: (_RANK.get(r.why, len(_RANK)), r.not_before_ms, r.job))


def with_holders(snapshot: Snapshot) -> Snapshot:
    """The snapshot with every job that capacity is held for in a class of its own.

    Its key is identity.holder_key of the job's class; the class it leaves stays, if need be empty.
    """
    holds = {r.job: r for r in in_force(snapshot)}
    if not holds:
        return snapshot
    by_nodes: dict[int, list[Reservation]] = {}
    for hold in holds.values():
        by_nodes.setdefault(hold.nodes, []).append(hold)
    classes: list[JobClass] = []
    for job_class in snapshot.classes:
        likely = by_nodes.get(job_class.request.nodes, ())
        wanted = {r.job for r in likely if may_hold(job_class.request, r)}
        queue = as_queue(job_class.jobs) if wanted else JobQueue()
        holders = [queue[i] for i, job in enumerate(queue.ids) if job in wanted]
        if not holders or job_class.key.endswith(holder_key("", holders[0].id)):
            classes.append(job_class)
            continue
        others = queue.changed(holders, ()) if len(holders) < len(queue) else ()
        classes.append(replace(job_class, jobs=others))
        classes += [replace(job_class, key=holder_key(job_class.key, job.id), jobs=(job,)) for job in holders]
    return replace(snapshot, classes=tuple(classes))


def may_hold(request: JobRequest, hold: Reservation) -> bool:
    """Whether a job of this request can have the reservation: spares looking through a long queue."""
    return request.nodes == hold.nodes and (request.tier is Tier.VIP or hold.why == Why.GANG)


@dataclass(frozen=True, slots=True)
class Holding:
    """What is held in one pool.

    `reservations` are in the order in which they are served, `starts_ms` when each job is expected
    to start there.  `free[i]` is what is free when the first i are taken off.
    """

    reservations: tuple[Reservation, ...]
    starts_ms: tuple[int, ...]
    free: tuple[tuple[FreeNodes, ...], ...]

    def depth(self, job_class: JobClass, now_ms: int) -> int:
        """How many reservations, from the first, a class leaves alone; see with_holders.

        A holder leaves alone what is held for jobs before it.  Others leave all, except those that
        end before any of the jobs is expected to start: they fill in what would stand idle (EASY
        backfilling), by the longest run time that jobs of their class plan.
        """
        jobs = {job.id for job in job_class.jobs[:1]}
        depth = next((i for i, r in enumerate(self.reservations) if r.job in jobs), len(self.reservations))
        ends_ms = now_ms + longest_estimate_s(job_class.request) * 1000
        return 0 if all(ends_ms <= start for start in self.starts_ms[:depth]) else depth


def longest_estimate_s(request: JobRequest) -> int:
    """The longest planned run time in the class of a request: classes share a factor of two."""
    longest_s = (1 << request.estimate_s.bit_length()) - 1
    return longest_s if request.max_run_time_s is None else min(longest_s, request.max_run_time_s)


def holdings(snapshot: Snapshot) -> dict[PoolId, Holding]:
    """What is held in every pool where something is."""
    by_pool = _by_pool(in_force(snapshot))
    if not by_pool:
        return {}
    lag_s = {center.id: center.report_lag_s for center in snapshot.centers}
    claims = _by_pool(c for c in snapshot.claims if c.pool in by_pool)
    found = {}
    for pool in snapshot.pools:
        held = by_pool.get(pool.id)
        if held is not None and pool.accuracy is not Accuracy.UNKNOWN:
            there = WhatIf(pool, claims.get(pool.id, ()), lag_s.get(pool.center, 0))
            starts = (
                there.expected_start_ms(r.slot, r.nodes, held[:i], snapshot.now_ms) or r.expires_ms
                for i, r in enumerate(held)
            )
            frees = (there.free(held[:i]) for i in range(len(held) + 1))
            found[pool.id] = Holding(tuple(held), tuple(starts), tuple(frees))
    return found


def of_pool(snapshot: Snapshot, pool: Pool) -> Snapshot:
    """The snapshot with this pool and its claims alone."""
    claims = tuple(c for c in snapshot.claims if c.pool == pool.id)
    return replace(snapshot, pools=(pool,), claims=claims)


def planned_end_ms(claim: Claim, now_ms: int) -> int:
    """When a claim is expected to end: now, when it was asked to or is overdue."""
    if claim.stopping:
        return now_ms
    started_ms = now_ms if claim.started_ms is None else claim.started_ms
    return max(now_ms, started_ms + claim.estimate_s * 1000)


_Held = TypeVar("_Held", Claim, Reservation)


def _by_pool(items: Iterable[_Held]) -> dict[PoolId, list[_Held]]:
    found: dict[PoolId, list[_Held]] = {}
    for item in items:
        found.setdefault(item.pool, []).append(item)
    return found


def _reported(pool: Pool, claim: Claim, report_lag_s: int) -> bool:
    """Whether the pool's report already counts this claim as used."""
    return claim.started_ms is not None and claim.started_ms < _reported_since_ms(pool, report_lag_s)


def _reported_since_ms(pool: Pool, report_lag_s: int) -> float:
    """The pool's report counts the runs that started before."""
    return pool.as_of_ms - report_lag_s * 1000 if pool.accuracy is Accuracy.EXACT else float("-inf")


def _size(shape: NodeShape) -> tuple[int, int, int, int]:
    return (shape.accelerators, shape.card_permille, shape.cores, shape.memory_gib)


_Kind = tuple[int, int, int, int, int]
"""What tells apart shapes that claims of one pool have; sorts by size."""


def _kind(shape: NodeShape) -> _Kind:
    return (*_size(shape), shape.accelerator_memory_gib)


def _slot_shape(node: NodeShape, slot: int) -> NodeShape:
    """The share of a node that `slot` units own, rounded up."""
    total = max(1, unit_count(node))
    part = bool(node.split_permille) and slot < PART_UNITS
    return replace(
        node,
        cores=-(-node.cores * slot // total),
        memory_gib=-(-node.memory_gib * slot // total),
        accelerators=min(-(-slot // card_units(node)), node.accelerators),
        accelerator_memory_gib=0 if part else node.accelerator_memory_gib,
        card_permille=-(-slot * 1000 // PART_UNITS) if part else node.card_permille,
    )


_Node = tuple[int, int, int, int, tuple[int, ...]]
"""(units, accelerators, cores, memory_gib, parts) free: sorts from the fullest node to the emptiest."""


def put(cards: int, parts: tuple[int, ...], permille: int) -> tuple[int, tuple[int, ...]] | None:
    """What is left of free cards when a part is put on the fullest card that holds it; None: none does.

    `parts` are ascending, as in FreeNodes.
    """
    at = bisect_left(parts, permille)
    if at < len(parts):
        rest = parts[at] - permille
        return cards, _sorted_parts((*parts[:at], *parts[at + 1 :]), rest)
    return (cards - 1, _sorted_parts(parts, 1000 - permille)) if cards > 0 else None


def _sorted_parts(parts: tuple[int, ...], further: int) -> tuple[int, ...]:
    return tuple(sorted((*parts, further))) if further else parts


_NODES: dict[NodeShape, dict[tuple[int, int, int, tuple[int, ...]], _Node]] = {}
_BACK: dict[NodeShape, dict[_Kind, dict[_Node, _Node | None]]] = {}
_SLOTS: dict[NodeShape, dict[int, NodeShape]] = {}
"""By node shape: nodes by what is free, nodes without a claim of a kind, and the shapes of slots.  The
same few are asked for again and again."""


class _Histogram:
    """Counts of nodes by what is free, while claims are given back and charged to it."""

    def __init__(self, pool: Pool) -> None:
        self.shape = pool.shape
        self._nodes = _NODES.setdefault(pool.shape, {})
        self._back = _BACK.setdefault(pool.shape, {})
        self._slots = _SLOTS.setdefault(pool.shape, {})
        self.count: dict[_Node, int] = {}
        for group in pool.free:
            self._add(self._node(group.accelerators, group.cores, group.memory_gib, group.parts), group.nodes)
        # Full nodes need not be reported, but runs that end are given back to them.
        full = pool.nodes - sum(group.nodes for group in pool.free)
        if full > 0:
            self._add((0, 0, 0, 0, ()), full)

    def _node(self, accelerators: int, cores: int, memory_gib: int, parts: tuple[int, ...] = ()) -> _Node:
        key = (accelerators, cores, memory_gib, parts)
        node = self._nodes.get(key)
        if node is None:
            node = (units(self.shape, FreeNodes(cores, memory_gib, accelerators, 1, parts)), *key)
            self._nodes[key] = node
        return node

    def copy(self) -> _Histogram:
        made = _Histogram.__new__(_Histogram)
        made.shape, made._nodes, made._back = self.shape, self._nodes, self._back
        made._slots, made.count = self._slots, self.count.copy()
        return made

    def _add(self, node: _Node, nodes: int) -> None:
        count = self.count.get(node, 0) + nodes
        if count > 0:
            self.count[node] = count
        else:
            self.count.pop(node, None)

    def _take(self, node: _Node, shape: NodeShape, nodes: int) -> None:
        """Moves `nodes` nodes to what remains after `shape`, never below zero."""
        _, cards, cores, memory, parts = node
        if part := part_permille(self.shape, shape):
            # Where nothing holds the part, the card with the most left of it is taken to be full.
            cards, parts = put(cards, parts, part) or (cards, parts[:-1])
        else:
            cards = max(0, cards - shape.accelerators)
        after = self._node(cards, max(0, cores - shape.cores), max(0, memory - shape.memory_gib), parts)
        self._add(node, -nodes)
        self._add(after, nodes)

    def charge_all(self, claims: Iterable[Claim], reservations: Iterable[Reservation]) -> None:
        """Charges claims, then what is held."""
        # Large claims first: they have the fewest nodes to be on.  Ties end with the id.
        for claim in sorted(claims, key=lambda c: (_size(c.shape), c.run), reverse=True):
            self.charge(claim.shape, claim.nodes)
        for hold in sorted(reservations, key=lambda r: (-r.slot, r.job)):
            shape = self._slots.get(hold.slot)
            if shape is None:
                shape = self._slots[hold.slot] = _slot_shape(self.shape, hold.slot)
            self.charge(shape, hold.nodes)

    def release_all(self, claims: Iterable[Claim], slot: int | None) -> None:
        """Gives claims back, large ones first for the same reason; which of equal ones, is the same."""
        shapes: dict[_Kind, NodeShape] = {}
        nodes: dict[_Kind, int] = {}
        for claim in claims:
            kind = _kind(claim.shape)
            shapes[kind] = claim.shape
            nodes[kind] = nodes.get(kind, 0) + claim.nodes
        for kind in sorted(nodes, reverse=True):
            self.release(shapes[kind], nodes[kind], slot)

    def slots(self, size: int) -> int:
        """Slots of `size` units."""
        if not self.shape.split_permille:
            return sum(nodes * (node[0] // size) for node, nodes in self.count.items())
        return sum(slots(self.shape, _group(node, 1), size) * nodes for node, nodes in self.count.items())

    def charge(self, shape: NodeShape, nodes: int) -> None:
        """Charges one claim: the fullest nodes that still fit, a node for each of its nodes.

        Where there are too few, its nodes share one; where none fits, the emptiest is charged, so
        that the error is on the safe side.  A part of a card goes to a card that is partly used before
        a whole one is broken, and there to the fullest that holds it.
        """
        part = part_permille(self.shape, shape)

        def fits(node: _Node) -> bool:
            _, cards, cores, memory, parts = node
            held = put(cards, parts, part) is not None if part else cards >= shape.accelerators
            return held and cores >= shape.cores and memory >= shape.memory_gib

        def breaks(node: _Node) -> bool:
            return part > 0 and (not node[4] or node[4][-1] < part)

        left = nodes
        fitting = ((n, c) for n, c in self.count.items() if fits(n))
        for node, count in sorted(fitting, key=lambda f: (breaks(f[0]), f)):
            taken = min(left, count)
            self._take(node, shape, taken)
            left -= taken
            if not left:
                return
        while left > 0:
            candidates = [n for n in self.count if fits(n)]
            full: _Node = (0, 0, 0, 0, ())
            node = min(candidates, key=lambda n: (breaks(n), n), default=max(self.count, default=full))
            if node[1:] == full[1:]:
                return
            taken = min(left, self.count[node])
            self._take(node, shape, taken)
            left -= taken

    def release(self, shape: NodeShape, nodes: int, slot: int | None = None) -> None:
        """Gives a claim back to the fullest nodes that can have held it, or with `slot` to those where
        it makes the fewest slots of that many units."""
        known = self._back.setdefault(_kind(shape), {})
        left = nodes
        while left > 0:
            for node in self.count:
                if node not in known:
                    known[node] = self._given_back(node, shape)
            back = ((node, known[node]) for node in self.count)
            held = [(self._gain(n, after, slot), n, after) for n, after in back if after is not None]
            if not held:
                return
            _, node, after = min(held)
            taken = min(left, self.count[node])
            self._add(node, -taken)
            self._add(after, taken)
            left -= taken

    def _given_back(self, node: _Node, shape: NodeShape) -> _Node | None:
        """The node without a claim of `shape`; None when it cannot have held it.

        A part is given back to a card that is fully used, where there is one: nobody knows which card
        it was on, and so it makes the fewest whole cards.
        """
        _, cards, cores, memory, parts = node
        whole = self.shape
        cores, memory = cores + shape.cores, memory + shape.memory_gib
        if part := part_permille(whole, shape):
            if cards + len(parts) < whole.accelerators:
                parts = _sorted_parts(parts, part)
            elif parts and parts[0] + part < 1000:
                parts = _sorted_parts(parts[1:], parts[0] + part)
            elif parts and parts[0] + part == 1000:
                cards, parts = cards + 1, parts[1:]
            else:
                return None
        elif cards + len(parts) + shape.accelerators <= whole.accelerators:
            cards += shape.accelerators
        else:
            return None
        fits = cores <= whole.cores and memory <= whole.memory_gib
        return self._node(cards, cores, memory, parts) if fits else None

    def _gain(self, node: _Node, after: _Node, slot: int | None) -> tuple[int, int]:
        """Slots that a node gains by a release, and what it is away from one without it."""
        if slot is None:
            return (0, 0)
        if not self.shape.split_permille:
            return (after[0] // slot - node[0] // slot, node[0] % slot)
        had, has = (slots(self.shape, _group(n, 1), slot) for n in (node, after))
        return (has - had, node[0] % slot)

    def groups(self) -> tuple[FreeNodes, ...]:
        """The histogram without nodes that have nothing free, fullest first."""
        return tuple(
            _group(node, nodes) for node, nodes in sorted(self.count.items()) if node[1:] != (0, 0, 0, ())
        )


def _group(node: _Node, nodes: int) -> FreeNodes:
    _, cards, cores, memory, parts = node
    return FreeNodes(cores=cores, memory_gib=memory, accelerators=cards, nodes=nodes, parts=parts)
