"""Holding capacity: reservations of jobs that wait, and the runs that are stopped for VIP jobs.

What belongs here: who gets a reservation and where, and the least dear set of victims that is enough.
What does not: which jobs may, for how long, and what a victim costs (policies), and what a
reservation means for others (core/snapshot.py, core/backfill.py).

A VIP job with preemptPolicy 2 for which nothing is idle gets victims when nothing but capacity is in
its way; every other job that a policy names gets a reservation where it is expected to start first.
What comes free is held for it, so its victims, queued again, wait behind it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from broker.core.explain import Code
from broker.core.model import (
    CenterState,
    Claim,
    JobClass,
    JobId,
    NodeShape,
    Pool,
    PoolId,
    QueuedJob,
    Reservation,
    RunId,
    RunState,
    Snapshot,
    TenantId,
    Tier,
    Why,
)
from broker.core.plan import Placement, Placements, Plan, Preemption, after, grouped
from broker.core.policy import Hold, Protected, Victim
from broker.core.problem import IntArray, Problem, build, class_key
from broker.core.resources import card_units, part_permille, part_units
from broker.core.snapshot import (
    effective_free,
    expected_start_ms,
    in_force,
    of_pool,
    silent,
    supply,
    without,
)

T = TypeVar("T")
Victims = tuple["Priced", ...]

SEARCHES_PER_ROUND = 32
"""VIP jobs that a round looks for victims for; the others come in the next ones."""


def hold(problem: Problem, plan: Plan, y: IntArray) -> Plan:
    """`plan` with the reservations that hold after it, victims, and what platforms make room for.

    `y` is the plan as jobs per option.
    """
    kept = in_force(problem.snapshot)
    if silent(problem.snapshot) or not (kept or problem.policies.holds):
        return replace(plan, reservations=tuple(kept))
    table = _Table(problem, plan, y, kept)
    for waiter in _waiters(problem, y):
        table.serve(waiter)
    return replace(
        plan,
        placements=Placements(grouped(plan.placements)) + table.further,
        reservations=tuple(table.held.values()),
        preemptions=tuple(table.preemptions),
    )


@dataclass(frozen=True, slots=True)
class Priced:
    """A run that may be stopped, what that costs, and the seconds of work that are lost."""

    claim: Claim
    price: int
    lost_s: int


@dataclass(frozen=True, slots=True)
class _Waiter:
    """A job that waits and that a policy gives a reservation."""

    job: QueuedJob
    k: int
    hold: Hold

    @property
    def order(self) -> tuple[int, int, str]:
        return (list(Why).index(self.hold.why), self.job.queued_ms, self.job.id)


def _waiters(p: Problem, y: IntArray) -> list[_Waiter]:
    """Those that wait for longer than their policy says, in the order in which they are served."""
    found: list[_Waiter] = []
    started = p.started(y)
    for k, job_class in enumerate(p.classes):
        first = int(started[k])
        if first >= len(job_class.jobs) or (wanted := p.policies.hold(p, k)) is None:
            continue
        for job in job_class.jobs[first : first + wanted.depth]:
            if p.snapshot.now_ms - job.queued_ms < wanted.after_s * 1000:
                break
            found.append(_Waiter(job, k, wanted))
    return sorted(found, key=lambda w: w.order)


class _Table:
    """What is decided so far; `serve` takes one waiter after the other."""

    def __init__(self, p: Problem, plan: Plan, y: IntArray, kept: Sequence[Reservation]) -> None:
        self.preemptions: list[Preemption] = []
        self.further: list[Placement] = []
        self._p = p
        self._now_ms = p.snapshot.now_ms
        self._world = after(p.snapshot, plan.placements)
        self._parts: dict[PoolId, Snapshot] = {}
        self._left = p.left(y)
        self._stops: set[RunId] = set()
        self._killed: Counter[TenantId] = Counter()
        self._worths = _Worths(p)
        self._searches = 0
        # Per pool, until something is held or stopped there: answers that many waiters ask for.
        self._known: dict[PoolId, dict[object, Any]] = {}
        self.held = self._kept(kept, y)

    # ------------------------------------------------------------ what holds already

    def _kept(self, kept: Sequence[Reservation], y: IntArray) -> dict[JobId, Reservation]:
        """Reservations of jobs that still wait, where the pool still takes runs."""
        p, started = self._p, self._p.started(y)
        waiting = {c.jobs[0].id: k for k, c in enumerate(p.classes) if c.jobs and started[k] < len(c.jobs)}
        state = {c.id: c.state for c in p.centers}
        pools = {pool.id: pool for pool in p.pools}
        held = {}
        for r in kept:
            k, pool = waiting.get(r.job), pools.get(r.pool)
            if k is None or pool is None or state[pool.center] is not CenterState.ACTIVE:
                continue
            held[r.job] = r
            for j in range(p.options(k).start, p.options(k).stop):
                if p.pools[int(p.option_pool[j])].id == r.pool:
                    self._take(j)
        return held

    def _take(self, option: int) -> None:
        """A job that will start by this option takes its share of every row but those of slots."""
        rows, coefs = self._rows(option)
        self._left[rows] -= coefs

    def _rows(self, option: int) -> tuple[IntArray, IntArray]:
        """Rows and coefficients of an option other than those of capacity."""
        p = self._p
        entries = slice(int(p.entry_first[option]), int(p.entry_first[option + 1]))
        rows, coefs = p.entry_row[entries], p.entry_coef[entries]
        other = ~np.isin(p.row_code[rows], (Code.CAPACITY, Code.RESERVED))
        return rows[other], coefs[other]

    # ------------------------------------------------------------ one waiter

    def serve(self, waiter: _Waiter) -> None:
        """Victims, a platform's own kill, or a reservation; a job that holds already keeps it."""
        job, now = waiter.job, self.held.get(waiter.job.id)
        if now is not None and now.why == Why.PREEMPTING and not self._to_renew(now, waiter.hold):
            return
        request = self._p.classes[waiter.k].request
        if request.tier is Tier.VIP and request.preempt_policy == 2 and self._preempt(waiter):
            return
        if now is not None:
            if not self._to_renew(now, waiter.hold):
                return
            self._known.pop(self.held.pop(job.id).pool, None)
        if sum(r.why == waiter.hold.why for r in self.held.values()) >= waiter.hold.depth:
            return
        option = self._first_start(waiter)
        if option is not None:
            self._hold(self._reservation(waiter, option, waiter.hold.why))
            self._take(option)

    def _hold(self, reservation: Reservation) -> None:
        before = self.held.get(reservation.job)
        self.held[reservation.job] = reservation
        for r in (before, reservation):
            if r is not None:
                self._known.pop(r.pool, None)

    def _once(self, pool: Pool, question: object, answer: Callable[[], T]) -> T:
        """The answer to a question about a pool, worked out once as long as it stays true."""
        known = self._known.setdefault(pool.id, {})
        if question not in known:
            known[question] = answer()
        found: T = known[question]
        return found

    def _to_renew(self, now: Reservation, hold: Hold) -> bool:
        """A VIP job's reservation is made anew half-way, so that nothing slips in at its end."""
        return now.why != Why.GANG and now.expires_ms - self._now_ms < hold.expires_s * 500

    def _reservation(self, waiter: _Waiter, option: int, why: Why) -> Reservation:
        p = self._p
        request = p.classes[waiter.k].request
        return Reservation(
            id=0,
            pool=p.pools[int(p.option_pool[option])].id,
            slot=int(p.tau[option]),
            nodes=request.nodes,
            job=waiter.job.id,
            not_before_ms=self._now_ms,
            expires_ms=self._now_ms + waiter.hold.expires_s * 1000,
            why=why,
            node_names=request.vip_nodes,
        )

    def _open(self, waiter: _Waiter) -> Iterator[tuple[int, Pool]]:
        """Options that nothing but capacity keeps the job from, with their pools.

        What a quota or the in-flight room keeps back, no held capacity and no kill can start.
        """
        p, k = self._p, waiter.k
        worth = int(p.worth[k].max(initial=0))
        for option in range(p.options(k).start, p.options(k).stop):
            rows, coefs = self._rows(option)
            at = int(p.option_pool[option])
            if not p.pool.unknown[at] and int(p.cost[option]) < worth and (self._left[rows] >= coefs).all():
                yield option, p.pools[at]

    def _part(self, pool: Pool) -> Snapshot:
        if pool.id not in self._parts:
            self._parts[pool.id] = of_pool(self._world, pool)
        return self._parts[pool.id]

    def _beside(self, pool: Pool, job: JobId, *whys: Why) -> list[Reservation]:
        """What is held in a pool for other jobs for one of these reasons."""
        return [r for r in self.held.values() if r.pool == pool.id and r.job != job and r.why in whys]

    def _first_start(self, waiter: _Waiter) -> int | None:
        """The option where the job is expected to start first, the cheapest of equal ones.

        A pool holds for one gang at a time.  Where the pool's own runs leave too little even when all
        have ended, others' work is in the way: such a pool comes last.
        """
        p, why = self._p, waiter.hold.why
        nodes = p.classes[waiter.k].request.nodes
        found: list[tuple[float, int, int]] = []
        for option, pool in self._open(waiter):
            if why is Why.GANG and self._beside(pool, waiter.job.id, Why.GANG):
                continue
            before = self._beside(pool, waiter.job.id, Why.PREEMPTING, Why.VIP)
            part, slot = self._part(pool), int(p.tau[option])
            ask = partial(expected_start_ms, part, pool, slot, nodes, before)
            start = self._once(pool, ("start", slot, nodes, tuple(before)), ask)
            found.append((float("inf") if start is None else start, int(p.cost[option]), option))
        return min(found)[2] if found else None

    # ------------------------------------------------------------ victims

    def _preempt(self, waiter: _Waiter) -> bool:
        """Whether the job got victims, or is left to a platform that makes room by itself."""
        if not self._p.policies.may_preempt(self._p, waiter.job.id) or self._searches >= SEARCHES_PER_ROUND:
            return False
        self._searches += 1
        options = sorted(self._open(waiter), key=lambda o: self._cheapest(o[1]))
        best: tuple[int, int, int, Victims] | None = None
        for option, pool in options:
            victims = self._victims(waiter, option, pool, below=None if best is None else best[0])
            if victims == ():
                return False  # enough comes free without a kill
            if victims is not None:
                candidate = (_price(victims), len(victims), option, victims)
                best = candidate if best is None or candidate[:3] < best[:3] else best
        if best is None:
            return self._left_to_the_platform(waiter, options)
        price, _, option, victims = best
        self._stops |= {v.claim.run for v in victims}
        self._killed.update(v.claim.tenant for v in victims)
        reservation = self._reservation(waiter, option, Why.PREEMPTING)
        self._hold(reservation)
        self._take(option)
        self.preemptions.append(
            Preemption(
                job=waiter.job.id,
                pool=reservation.pool,
                victims=tuple(sorted(v.claim.run for v in victims)),
                price_micro=price,
                lost_card_s=sum(_cards_s(v) for v in victims),
            )
        )
        return True

    def _left_to_the_platform(self, waiter: _Waiter, options: Iterable[tuple[int, Pool]]) -> bool:
        """Sends the job where the platform kills for it by itself and its operator allows that."""
        p = self._p
        kills = {c.id for c in p.centers if c.vip_kill}
        able = [option for option, pool in options if pool.center in kills]
        if not able:
            return False
        option = min(able, key=lambda j: int(p.cost[j]))
        if (now := self.held.pop(waiter.job.id, None)) is not None:
            self._known.pop(now.pool, None)
        self._take(option)
        self.further.append(_placement(p, waiter, option))
        return True

    def _victims(self, waiter: _Waiter, option: int, pool: Pool, *, below: int | None) -> Victims | None:
        """The least dear set of runs in a pool without which the job fits, () when it fits anyway.

        None: there is none, or none that costs less than `below`.
        """
        p, job = self._p, waiter.job.id
        slot, nodes = int(p.tau[option]), p.classes[waiter.k].request.nodes
        part = self._part(pool)
        before = self._beside(pool, job, Why.PREEMPTING, Why.VIP)
        ending = [c.run for c in part.claims if c.stopping or c.run in self._stops]

        def slots(gone: Iterable[Priced]) -> int:
            runs = [*ending, *(v.claim.run for v in gone)]
            then = effective_free(without(part, runs, slot=slot), reservations=before)
            return supply(pool.shape, then[pool.id], slot)

        def fits(gone: Iterable[Priced]) -> bool:
            return slots(gone) >= nodes

        spare = self._once(pool, ("slots", slot, tuple(before)), partial(slots, ()))
        if spare >= nodes:
            return ()
        candidates = self._candidates(pool)
        if not candidates:
            return None
        # However they lie, so many are needed at least: the cheapest of them are a bound.
        gives = max(v.claim.nodes * -(-_units(pool.shape, v.claim) // slot) for v in candidates)
        needed = -(-(nodes - spare) // gives)
        if needed > len(candidates) or (below is not None and _price(candidates[:needed]) >= below):
            return None
        best: Victims | None = None
        for order in (_whole, _pro_rata):
            ordered = self._within_limits(sorted(candidates, key=order))
            enough = bisect_left(range(len(ordered) + 1), True, key=lambda n: fits(ordered[:n]))
            if enough <= len(ordered):
                found = _filled_back(ordered[:enough], fits)
                if best is None or (_price(found), len(found)) < (_price(best), len(best)):
                    best = found
        return best

    def _cheapest(self, pool: Pool) -> float:
        candidates = self._candidates(pool)
        return candidates[0].price if candidates else float("inf")

    def _candidates(self, pool: Pool) -> list[Priced]:
        """Running, preemptible, lower work that no policy protects, the cheapest first."""
        return self._once(pool, "candidates", partial(self._priced, self._part(pool)))

    def _priced(self, part: Snapshot) -> list[Priced]:
        found = []
        able = [c for c in part.claims if _may_be_stopped(c) and c.run not in self._stops]
        for claim, worth in self._worths.of(able):
            victim = Victim(claim, worth)
            price = self._p.policies.price(self._p, victim)
            if not isinstance(price, Protected):
                found.append(Priced(claim, price, victim.lost_s(self._now_ms)))
        return sorted(found, key=_whole)

    def _within_limits(self, ordered: Sequence[Priced]) -> list[Priced]:
        """The first of each tenant, as many as may still be stopped within this hour."""
        taken: Counter[TenantId] = Counter(self._killed)
        kept = []
        for victim in ordered:
            tenant = victim.claim.tenant
            if taken[tenant] < self._p.policies.kill_room(self._p, tenant):
                taken[tenant] += 1
                kept.append(victim)
        return kept


def _may_be_stopped(claim: Claim) -> bool:
    return (
        claim.request is not None
        and claim.request.preemptible
        and claim.tier < Tier.VIP
        and claim.state is RunState.RUNNING
        and not claim.stopping
    )


def _whole(victim: Priced) -> tuple[int, int, str]:
    """Cheap runs first, each priced whole; of equal ones the largest."""
    return (victim.price, -_size(victim.claim), victim.claim.run)


def _pro_rata(victim: Priced) -> tuple[float, int, str]:
    """Runs that are cheap for what they give first."""
    return (victim.price / max(1, _size(victim.claim)), victim.price, victim.claim.run)


def _size(claim: Claim) -> int:
    """Thousandths of cards that a claim holds, or of cores where it has no cards."""
    shape = claim.shape
    return (shape.accelerators * shape.card_permille or shape.cores * 1000) * claim.nodes


def _units(node: NodeShape, claim: Claim) -> int:
    """Units of a node that one node of a claim holds, by its cards or else its cores."""
    part = part_permille(node, claim.shape)
    return part_units(part) if part else claim.shape.accelerators * card_units(node) or claim.shape.cores


def _cards_s(victim: Priced) -> int:
    shape = victim.claim.shape
    return shape.accelerators * shape.card_permille * victim.claim.nodes * victim.lost_s // 1000


def _price(victims: Iterable[Priced]) -> int:
    return sum(v.price for v in victims)


def _filled_back(victims: Sequence[Priced], fits: Callable[[Iterable[Priced]], bool]) -> Victims:
    """The set without those that turn out not to be needed, the dearest spared first."""
    kept = list(victims)
    for victim in sorted(victims, key=lambda v: (v.price, _size(v.claim), v.claim.run), reverse=True):
        fewer = [v for v in kept if v is not victim]
        if fits(fewer):
            kept = fewer
    return tuple(kept)


def _placement(p: Problem, waiter: _Waiter, option: int) -> Placement:
    at, job_class = int(p.option_pool[option]), p.classes[waiter.k]
    rate = int(p.rate[option])
    return Placement(
        job=waiter.job.id,
        class_key=job_class.key,
        center=p.pools[at].center,
        pool=p.pools[at].id,
        spec=p.specs[int(p.fittings[waiter.k].spec[at])],
        slot=int(p.tau[option]),
        nodes=job_class.request.nodes,
        cost_micro=rate * job_class.request.estimate_s // 3600,
        rate_micro_per_hour=rate,
        platform_kills=True,
    )


class _Worths:
    """What the jobs of running runs are worth once they wait again: a victim costs that, too.

    Without it a kill would only swap a running job for a waiting one.
    """

    def __init__(self, p: Problem) -> None:
        self._p = p
        self._worth: dict[tuple[str, int], int] | None = None

    def of(self, claims: Sequence[Claim]) -> list[tuple[Claim, int]]:
        """Claims that may be stopped, with micro-CNY."""
        if not claims:
            return []
        if self._worth is None:
            self._worth = self._weighed()
        return [(c, self._worth[_class_of(c), self._bucket(c)]) for c in claims]

    def _bucket(self, claim: Claim) -> int:
        age_s = max(0, self._p.snapshot.now_ms - claim.queued_ms) // 1000
        return int(np.searchsorted(self._p.age_s, age_s, side="right")) - 1

    def _weighed(self) -> dict[tuple[str, int], int]:
        """By class and age bucket, as the policies weigh a waiting job."""
        jobs: dict[str, JobClass] = {}
        for claim in self._p.snapshot.claims:
            if _may_be_stopped(claim) and claim.request is not None:
                key = _class_of(claim)
                jobs.setdefault(key, JobClass(key, claim.request, claim.tenant, jobs=()))
        world = replace(self._p.snapshot, classes=tuple(jobs.values()), reservations=())
        waiting = build(world, self._p.policies)
        return {
            (job_class.key, b): int(waiting.worth[k, b])
            for k, job_class in enumerate(waiting.classes)
            for b in range(len(waiting.age_s))
        }


def _class_of(claim: Claim) -> str:
    assert claim.request is not None, "a run that may be stopped has a request"
    return claim.class_key or class_key(claim.request, claim.tenant)
