"""Holding capacity: reservations of jobs that wait, and for whom runs are stopped.

What belongs here: who gets a reservation and where, and who has runs stopped.  What does not: which
jobs may, for how long, and what a victim costs (policies), which runs are stopped (core/evictions.py),
and what a reservation means for others (core/snapshot.py, core/backfill.py).

A VIP job with preemptPolicy 2 for which nothing is idle gets victims when nothing but capacity is in
its way; every other job that a policy names gets a reservation where it is expected to start first.
What comes free is held for it, so its victims, queued again, wait behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from broker.core.assignment import Takes
from broker.core.evictions import Evictions, Wish
from broker.core.explain import Code
from broker.core.memory import Memory
from broker.core.model import CenterState, Claim, JobId, JobRequest, PoolId, QueuedJob, Reservation, Tier, Why
from broker.core.plan import Placement, Placements, Plan, Preemption, claims_of, grouped
from broker.core.policy import Hold
from broker.core.problem import IntArray, Problem
from broker.core.snapshot import ToldApart, WhatIf, by_pool, in_force, silent, still_counted, told_apart
from broker.core.victims import Candidates


def hold(problem: Problem, plan: Plan, y: IntArray, memory: Memory | None = None) -> Plan:
    """`plan` with the reservations that hold after it, victims, and what platforms make room for.

    `y` is the plan as jobs per option, `memory` the one that the problem was built with.
    """
    kept = in_force(problem.snapshot)
    if silent(problem.snapshot) or not (kept or problem.policies.holds):
        return replace(plan, reservations=tuple(kept))
    waiters = _waiters(problem, y)
    if not (kept or waiters):
        return plan
    table = _Table(problem, plan, y, kept, Memory() if memory is None else memory)
    for together in _together(table, waiters):
        table.serve(together)
    return replace(
        plan,
        placements=Placements(grouped(plan.placements)) + table.further,
        reservations=tuple(table.held.values()),
        preemptions=tuple(table.preemptions),
    )


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
    for k, (job_class, first) in enumerate(zip(p.classes, p.started(y).tolist(), strict=True)):
        if first >= len(job_class.jobs) or (wanted := p.policies.hold(p, k)) is None:
            continue
        for job in job_class.jobs[first : first + wanted.depth]:
            if p.snapshot.now_ms - job.queued_ms < wanted.after_s * 1000:
                break
            found.append(_Waiter(job, k, wanted))
    return sorted(found, key=lambda w: w.order)


def _together(table: _Table, waiters: Sequence[_Waiter]) -> Iterator[list[_Waiter]]:
    """Jobs that are decided together, in order: one by one, but VIP jobs that may have runs stopped."""
    batch: list[_Waiter] = []
    for waiter in waiters:
        if table.may_preempt(waiter):
            batch.append(waiter)
        elif not table.keeps(waiter):
            if batch:
                yield batch
                batch = []
            yield [waiter]
    if batch:
        yield batch


class _Table:
    """What is decided so far; `serve` takes waiters in their order."""

    def __init__(
        self, p: Problem, plan: Plan, y: IntArray, kept: Sequence[Reservation], memory: Memory
    ) -> None:
        self.preemptions: list[Preemption] = []
        self.further: list[Placement] = []
        self._p, self._plan, self._memory = p, plan, memory
        self._now_ms = p.snapshot.now_ms
        self._left = p.left(y)
        # What is in a job's way besides capacity.
        self._binds = ~np.isin(p.row_code, (Code.CAPACITY, Code.RESERVED))
        self._takes: dict[int, Takes] = {}
        self._at = {pool.id: i for i, pool in enumerate(p.pools)}
        self._what_ifs: dict[int, tuple[WhatIf, list[Claim]]] = {}
        self._evictions: Evictions | None = None
        # When jobs are expected to start in a pool: many ask the same.
        self._starts: dict[tuple[object, ...], int | None] = {}
        self._waiters: dict[JobId, _Waiter] = {}
        self.held: dict[JobId, Reservation] = {}
        if kept:
            self._keep(kept, y)

    # ------------------------------------------------------------ what holds already

    def _keep(self, kept: Sequence[Reservation], y: IntArray) -> None:
        """Reservations of jobs that still wait, where the pool still takes runs."""
        p, started = self._p, self._p.started(y)
        jobs = {r.job for r in kept}
        waiting = {
            c.jobs[0].id: k
            for k, c in enumerate(p.classes)
            if c.jobs and started[k] < len(c.jobs) and c.jobs[0].id in jobs
        }
        state = {c.id: c.state for c in p.centers}
        for r in kept:
            k, at = waiting.get(r.job), self._at.get(r.pool)
            if k is None or at is None or state[p.pools[at].center] is not CenterState.ACTIVE:
                continue
            self.held[r.job] = r
            span = p.options(k)
            for option in (span.start + np.flatnonzero(p.option_pool[span] == at)).tolist():
                self._give(option)

    def keeps(self, waiter: _Waiter) -> bool:
        """Whether the job holds already and that is not to be made anew."""
        now = self.held.get(waiter.job.id)
        return now is not None and not self._to_renew(now, waiter.hold)

    def _to_renew(self, now: Reservation, hold: Hold) -> bool:
        """A VIP job's reservation is made anew half-way, so that nothing slips in at its end."""
        return now.why != Why.GANG and now.expires_ms - self._now_ms < hold.expires_s * 500

    # ------------------------------------------------------------ what is left and held (evictions.Table)

    def takes(self, option: int) -> Takes:
        """Rows of an option, other than those of capacity, and its coefficients."""
        if option not in self._takes:
            rows, coefs = self._p.takes(option)
            binds = self._binds[rows]
            self._takes[option] = tuple(zip(rows[binds].tolist(), coefs[binds].tolist(), strict=True))
        return self._takes[option]

    def _give(self, option: int) -> None:
        """A job that will start by this option takes its share of every row but those of slots."""
        for row, n in self.takes(option):
            self._left[row] -= n

    def left(self) -> list[int]:
        found: list[int] = self._left.tolist()
        return found

    def beside(self, pool: int, jobs: Collection[JobId] = ()) -> list[Reservation]:
        return self._beside(pool, jobs, Why.PREEMPTING, Why.VIP)

    def _beside(self, pool: int, jobs: Collection[JobId], *whys: Why) -> list[Reservation]:
        """What is held in a pool for other jobs for one of these reasons."""
        here = self._p.pools[pool].id
        return [r for r in self.held.values() if r.pool == here and r.why in whys and r.job not in jobs]

    @cached_property
    def _starting(self) -> dict[PoolId, list[Claim]]:
        """The placements of this round as runs that have not started."""
        return by_pool(claims_of(self._p.snapshot, self._plan.placements))

    @cached_property
    def _ended(self) -> dict[PoolId, list[Claim]]:
        return still_counted(self._p.snapshot)

    @cached_property
    def _told_apart(self) -> ToldApart:
        return told_apart(self._p.snapshot, self._memory.claims(self._p.snapshot))

    def what_if(self, pool: int) -> tuple[WhatIf, list[Claim]]:
        """With the placements of this round as runs that have not started."""
        if pool not in self._what_ifs:
            p, there = self._p, self._p.pools[pool]
            starting = self._starting.get(there.id, ())
            ended = self._ended.get(there.id, ())
            claims = [*self._memory.by_pool(p.snapshot).get(there.id, ()), *ended, *starting]
            owed = [*self._told_apart.owed.get(there.id, ()), *starting]
            lag_s = p.centers[int(p.pool.center[pool])].report_lag_s
            ending = self._told_apart.ending.get(there.id, [])
            self._what_ifs[pool] = WhatIf(there, claims, lag_s, owed), ending
        return self._what_ifs[pool]

    def take(self, job: JobId, option: int, victims: Sequence[int]) -> None:
        waiter = self._waiters[job]
        if not victims:
            if not self.keeps(waiter):
                self._reserve(waiter, option)
            return
        assert self._evictions is not None
        candidates = self._evictions.candidates
        reservation = self._reservation(waiter, option, Why.PREEMPTING)
        self.held[job] = reservation
        self._give(option)
        claims = [candidates.claims[i] for i in victims]
        lost_s = candidates.lost_s[list(victims)].tolist()
        self.preemptions.append(
            Preemption(
                job=job,
                pool=reservation.pool,
                victims=tuple(sorted(c.run for c in claims)),
                price_micro=candidates.total(victims),
                lost_card_s=sum(
                    c.shape.accelerators * c.shape.card_permille * c.nodes * s // 1000
                    for c, s in zip(claims, lost_s, strict=True)
                ),
                placement=self._sent_first(waiter, option),
            )
        )

    # ------------------------------------------------------------ waiters

    def may_preempt(self, waiter: _Waiter) -> bool:
        """Whether runs may be stopped for the job in this round."""
        now, request = self.held.get(waiter.job.id), self._p.classes[waiter.k].request
        if now is not None and now.why == Why.PREEMPTING and not self._to_renew(now, waiter.hold):
            return False
        return _preempts(request) and self._p.policies.may_preempt(self._p, waiter.job.id)

    def serve(self, together: Sequence[_Waiter]) -> None:
        """Victims, a platform's own kill, or a reservation; a job that holds already keeps it."""
        served: set[JobId] = set()
        preempting = [w for w in together if self.may_preempt(w)]
        if preempting:
            self._waiters |= {w.job.id: w for w in preempting}
            if self._evictions is None:
                candidates = Candidates(self._p, self._memory, self._preempted_in())
                self._evictions = Evictions(self._p, candidates, self)
            served = self._evictions.search(self._wishes(preempting))
        for waiter in together:
            if waiter.job.id in served or (waiter in preempting and self._left_to_the_platform(waiter)):
                continue
            if not self.keeps(waiter):
                self.held.pop(waiter.job.id, None)
                if (option := self._first_start(waiter)) is not None:
                    self._reserve(waiter, option)

    def _preempted_in(self) -> list[int]:
        """Pools that jobs which may have runs stopped can use."""
        p = self._p
        pools = np.zeros(len(p.pools), dtype=np.bool_)
        for k, job_class in enumerate(p.classes):
            if _preempts(job_class.request):
                pools[p.option_pool[p.options(k)]] = True
        found: list[int] = np.flatnonzero(pools).tolist()
        return found

    def _wishes(self, waiters: Sequence[_Waiter]) -> list[Wish]:
        p = self._p
        return [
            Wish(
                job=waiter.job.id,
                nodes=p.classes[waiter.k].request.nodes,
                options=options.tolist(),
                pools=p.option_pool[options],
                slots=p.tau[options].tolist(),
            )
            for waiter, options in zip(waiters, self._open(waiters), strict=True)
        ]

    def _reserve(self, waiter: _Waiter, option: int) -> None:
        """Holds for the job without a kill, unless as many hold for the same reason as may."""
        why = waiter.hold.why
        self.held.pop(waiter.job.id, None)
        if sum(r.why == why for r in self.held.values()) < waiter.hold.depth:
            self.held[waiter.job.id] = self._reservation(waiter, option, why)
            self._give(option)

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

    def _open(self, waiters: Sequence[_Waiter]) -> list[IntArray]:
        """For each, the options that nothing but capacity keeps the job from.

        What a quota or the in-flight room keeps back, no held capacity and no kill can start.
        """
        p, k = self._p, np.array([w.k for w in waiters], dtype=np.int64)
        spans = [p.options(w.k) for w in waiters]
        options = np.concatenate([np.arange(span.start, span.stop) for span in spans])
        if not len(options):
            return [options] * len(waiters)
        entries, counts = p.entries(options)
        rows = p.entry_row[entries]
        lacking = self._binds[rows] & (self._left[rows] < p.entry_coef[entries])
        able = ~np.logical_or.reduceat(lacking, np.cumsum(counts) - counts)
        able &= ~p.pool.unknown[p.option_pool[options]]
        sizes = [span.stop - span.start for span in spans]
        able &= p.cost[options] < np.repeat(p.worth[k].max(axis=1, initial=0), sizes)
        ends = np.cumsum(sizes).tolist()
        return [options[e - n : e][able[e - n : e]] for n, e in zip(sizes, ends, strict=True)]

    def _first_start(self, waiter: _Waiter) -> int | None:
        """The option where the job is expected to start first, the cheapest of equal ones.

        A pool holds for one gang at a time.  Where the pool's own runs leave too little even when all
        have ended, others' work is in the way: such a pool comes last.
        """
        p, why, job = self._p, waiter.hold.why, (waiter.job.id,)
        nodes = p.classes[waiter.k].request.nodes
        found: list[tuple[float, int, int]] = []
        for option in self._open([waiter])[0].tolist():
            at, slot = int(p.option_pool[option]), int(p.tau[option])
            if why is Why.GANG and self._beside(at, job, Why.GANG):
                continue
            before = self.beside(at, job)
            asked = (at, slot, nodes, *((r.job, r.slot, r.nodes) for r in before))
            if asked not in self._starts:
                there, _ = self.what_if(at)
                self._starts[asked] = there.expected_start_ms(slot, nodes, before, self._now_ms)
            start = self._starts[asked]
            found.append((float("inf") if start is None else start, int(p.cost[option]), option))
        return min(found)[2] if found else None

    def _sent_first(self, waiter: _Waiter, option: int) -> Placement | None:
        """Its placement where the platform's queue keeps what comes free for it; None: it waits here."""
        center = self._p.centers[int(self._p.pool.center[int(self._p.option_pool[option])])]
        if not center.vip_first:
            return None
        return self._p.placement(option, waiter.job.id)

    def _left_to_the_platform(self, waiter: _Waiter) -> bool:
        """Sends the job where the platform kills for it by itself and its operator allows that."""
        p = self._p
        kills = {c.id for c in p.centers if c.vip_kill}
        if not kills:
            return False
        able = [j for j in self._open([waiter])[0].tolist() if p.pools[int(p.option_pool[j])].center in kills]
        if not able:
            return False
        option = min(able, key=lambda j: int(p.cost[j]))
        self.held.pop(waiter.job.id, None)
        self._give(option)
        self.further.append(replace(p.placement(option, waiter.job.id), platform_kills=True))
        return True


def _preempts(request: JobRequest) -> bool:
    return request.tier is Tier.VIP and request.preempt_policy == 2
