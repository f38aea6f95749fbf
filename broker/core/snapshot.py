"""What the broker may still use of the capacity that centers report, and what-if questions about it.

What belongs here: effective free nodes (reports, minus our own claims, minus reservations), what is
held for whom and until when, and snapshots with something taken away.  What does not: counting nodes
and slots (core/histogram.py), which job may use them, and making reservations (core/holds.py).

Reports are beliefs.  An exact report already contains the runs that started long enough before it;
an estimated one contains none of ours; an unknown one says nothing, so the pool has no rows at all
and only the center's in-flight room limits what is sent there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from broker.core.claims import Claims
from broker.core.histogram import (
    Histogram,
    host_units,
    in_order,
    kind_of,
    put,
    slots,
    slots_on_cards,
    supply,
    units,
)
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
    Pool,
    PoolId,
    Reservation,
    RunId,
    RunTime,
    Snapshot,
    Tier,
    Why,
)
from broker.core.queue import JobQueue, as_queue
from broker.core.resources import unit_count

__all__ = [
    "ENDLESS_S",
    "Free",
    "Holding",
    "ToldApart",
    "WhatIf",
    "by_pool",
    "effective_free",
    "holdings",
    "host_units",
    "in_flight_room",
    "in_force",
    "longest_estimate_s",
    "may_hold",
    "of_pool",
    "planned_end_ms",
    "put",
    "silent",
    "slots",
    "slots_on_cards",
    "still_counted",
    "supply",
    "told_apart",
    "units",
    "with_holders",
    "without",
]

Free = Mapping[PoolId, tuple[FreeNodes, ...]]


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
    claims, held = by_pool(snapshot.claims), by_pool(holds)
    free: dict[PoolId, tuple[FreeNodes, ...]] = {}
    for pool in snapshot.pools:
        if pool.accuracy is Accuracy.UNKNOWN:
            free[pool.id] = ()
            continue
        lag = lag_s.get(pool.center, 0)
        owed = [c for c in claims.get(pool.id, ()) if not _reported(pool, c, lag)]
        histogram = Histogram(pool)
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
    claims = by_pool(c for c in snapshot.claims if c.run in gone)

    def given_back(pool: Pool) -> Pool:
        lag = lag_s.get(pool.center, 0)
        owned = [c for c in claims.get(pool.id, ()) if _reported(pool, c, lag)]
        if not owned:
            return pool
        histogram = Histogram(pool)
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

    def __init__(
        self, pool: Pool, claims: Sequence[Claim], report_lag_s: int, owed: Sequence[Claim] | None = None
    ) -> None:
        """`owed` are those that the report does not count, where they are known."""
        self.pool = pool
        self._claims = claims
        self._full = Histogram(pool)
        if owed is None:
            since_ms = _reported_since_ms(pool, report_lag_s)
            owed = [c for c in claims if c.started_ms is None or c.started_ms >= since_ms]
        self._owed = in_order(owed)
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
        for claim in owed:
            histogram.charge(claim.shape, claim.nodes)
        histogram.hold_all(before)
        return histogram.slots(slot)

    def kind(self, claim: Claim) -> Hashable:
        """Equal for runs that cannot be told apart by what is free without them."""
        return claim.run if claim.run in self._owed_runs else kind_of(claim.shape)

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

        By the planned ends of our own runs there, those that the report counts although they have
        ended among them; None when they all end and it is still too little.
        """
        if self.slots((), slot, before) >= nodes:
            return now_ms
        ends = sorted(self._claims, key=lambda c: (planned_end_ms(c, now_ms), c.run))
        ended = bisect_left(
            range(len(ends) + 1), True, key=lambda n: self.slots(ends[:n], slot, before) >= nodes
        )
        return None if ended > len(ends) else planned_end_ms(ends[ended - 1], now_ms)


@dataclass(frozen=True, slots=True)
class ToldApart:
    """By pool, the claims that its report does not count, and those that were asked to end."""

    owed: Mapping[PoolId, list[Claim]]
    ending: Mapping[PoolId, list[Claim]]


def told_apart(snapshot: Snapshot, claims: Claims) -> ToldApart:
    """Of a snapshot whose claims these are."""
    lag_s = {center.id: center.report_lag_s for center in snapshot.centers}
    since_ms = [_reported_since_ms(pool, lag_s.get(pool.center, 0)) for pool in snapshot.pools]
    pool = claims.pool_rows({pool.id: i for i, pool in enumerate(snapshot.pools)})
    owed = (pool >= 0) & (claims.columns.started_ms >= np.array(since_ms)[pool])
    return ToldApart(
        owed=by_pool(claims[i] for i in np.flatnonzero(owed).tolist()),
        ending=by_pool(claims[i] for i in np.flatnonzero(claims.columns.stopping).tolist()),
    )


# ---------------------------------------------------------------- what is held


def silent(snapshot: Snapshot) -> bool:
    """Whether no center answers: then this side may be cut off, and nothing ages or expires (law 7)."""
    return not any(center.health is Health.FRESH for center in snapshot.centers)


_RANK = {why.value: rank for rank, why in enumerate(Why)}


def in_force(snapshot: Snapshot) -> list[Reservation]:
    """The reservations that hold now, in the order in which they are served."""
    if not snapshot.reservations:
        return []
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
        backfilling), by the time within which nine in ten of their like end, or else by the longest
        run time that jobs of their class plan.
        """
        jobs = {job.id for job in job_class.jobs[:1]}
        depth = next((i for i, r in enumerate(self.reservations) if r.job in jobs), len(self.reservations))
        ends_ms = now_ms + longest_estimate_s(job_class.request, job_class.learned) * 1000
        return 0 if all(ends_ms <= start for start in self.starts_ms[:depth]) else depth


ENDLESS_S = 1 << 31
"""Longer than any planned run time, in seconds."""


def longest_estimate_s(request: JobRequest, learned: RunTime | None = None) -> int:
    """The time by which a run of the class of a request has ended, as far as can be planned.

    By `learned` nine in ten have; else it is the longest planned run time: classes share a factor of
    two.  Nothing runs beyond its limit.  An online service is never taken to end: whatever it says,
    it fills in nowhere.
    """
    if request.endless:
        return ENDLESS_S
    longest_s = (1 << request.estimate_s.bit_length()) - 1 if learned is None else learned.p90_s
    return longest_s if request.max_run_time_s is None else min(longest_s, request.max_run_time_s)


def holdings(snapshot: Snapshot) -> dict[PoolId, Holding]:
    """What is held in every pool where something is."""
    held_in = by_pool(in_force(snapshot))
    if not held_in:
        return {}
    lag_s = {center.id: center.report_lag_s for center in snapshot.centers}
    claims = by_pool(c for c in snapshot.claims if c.pool in held_in)
    ended = still_counted(snapshot)
    found = {}
    for pool in snapshot.pools:
        held = held_in.get(pool.id)
        if held is not None and pool.accuracy is not Accuracy.UNKNOWN:
            runs = [*claims.get(pool.id, ()), *ended.get(pool.id, ())]
            there = WhatIf(pool, runs, lag_s.get(pool.center, 0))
            starts = (
                there.expected_start_ms(r.slot, r.nodes, held[:i], snapshot.now_ms) or r.expires_ms
                for i, r in enumerate(held)
            )
            frees = (there.free(held[:i]) for i in range(len(held) + 1))
            found[pool.id] = Holding(tuple(held), tuple(starts), tuple(frees))
    return found


def still_counted(snapshot: Snapshot) -> dict[PoolId, list[Claim]]:
    """By pool, the runs that have ended and that its report counts as used.

    What they held is free with the next report: whoever waits for it starts at once then, and nobody
    fills in meanwhile.
    """
    ended = by_pool(snapshot.ended)
    if not ended:
        return {}
    lag_s = {center.id: center.report_lag_s for center in snapshot.centers}
    pools = ((pool, lag_s.get(pool.center, 0)) for pool in snapshot.pools if pool.id in ended)
    return {pool.id: [c for c in ended[pool.id] if _reported(pool, c, lag)] for pool, lag in pools}


def of_pool(snapshot: Snapshot, pool: Pool) -> Snapshot:
    """The snapshot with this pool and its claims alone."""
    claims = tuple(c for c in snapshot.claims if c.pool == pool.id)
    return replace(snapshot, pools=(pool,), claims=claims)


def planned_end_ms(claim: Claim, now_ms: int) -> int:
    """When a claim is expected to end: now, when it was asked to.

    A run that outlives what half of its like take is planned by what nine in ten take, and one that
    outlives that by twice as long, again and again: that a run is overdue does not mean that it ends.
    Nothing runs beyond its limit.
    """
    if claim.stopping:
        return now_ms
    if claim.started_ms is None or claim.started_ms > now_ms:
        return now_ms + run_time(claim).p50_s * 1000
    ran_ms = now_ms - claim.started_ms
    plan_ms, longer_ms = (seconds * 1000 for seconds in (run_time(claim).p50_s, run_time(claim).p90_s))
    if plan_ms < ran_ms:
        plan_ms = max(1000, longer_ms)
    while plan_ms < ran_ms:
        plan_ms *= 2
    if claim.request is not None and claim.request.max_run_time_s is not None:
        plan_ms = min(plan_ms, claim.request.max_run_time_s * 1000)
    return max(now_ms, claim.started_ms + plan_ms)


def run_time(claim: Claim) -> RunTime:
    """What was learned of a run's like, or else its plan, which nothing tells to be longer or shorter."""
    return claim.learned or RunTime(claim.estimate_s, claim.estimate_s)


_Held = TypeVar("_Held", Claim, Reservation)


def by_pool(items: Iterable[_Held]) -> dict[PoolId, list[_Held]]:
    """Claims or reservations by their pools, in their order."""
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
