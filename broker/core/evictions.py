"""Which runs are stopped for the VIP jobs of a round: the least dear sets that are enough, together.

What belongs here: the search over pools, jobs and victims.  What does not: who may have runs stopped
and what is held for it (core/holds.py), and what a victim costs (core/victims.py).

1. Per pool a curve: what so many further slots cost, by runs that give slots wherever they are
   (core/curves.py).  Smaller runs, which give a slot only together, are searched for where they pay.
2. Jobs to pools, so that all together cost least (core/assignment.py).  What a large victim frees in
   excess serves the next job in the pool.
3. The runs of a tenant that would lose more than it may are made dearer, and the search is made again.
4. Each job in its order takes of its pool's victims what it needs and no more, by the belief itself
   (snapshot.WhatIf): no victim of a set can be spared.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from broker.core.assignment import Takes, assigned
from broker.core.curves import NEVER, Curves, Runs, exchanged, regret
from broker.core.fitting import BoolArray, IntArray
from broker.core.model import Claim, JobId, Reservation, TenantId
from broker.core.problem import Problem
from broker.core.resources import unit_count
from broker.core.snapshot import WhatIf
from broker.core.victims import Candidates

PASSES = 6
"""How often jobs that found no victims are tried again beside those that did."""
DEARER = 6
"""How often runs of tenants that would lose too many are made dearer, before some are left out."""


@dataclass(frozen=True, slots=True, eq=False)
class Wish:
    """A job for which runs may be stopped; its options with their pools and slot sizes."""

    job: JobId
    nodes: int
    options: Sequence[int]
    pools: IntArray
    slots: Sequence[int]

    def sizes(self) -> dict[int, int]:
        """The size of slots by pool."""
        return dict(zip(self.pools.tolist(), self.slots, strict=True))


class Table(Protocol):
    """What is held and left in the round; core/holds.py keeps it."""

    def takes(self, option: int) -> Takes:
        """What a job takes by an option, besides capacity."""
        ...

    def left(self) -> list[int]:
        """What is left of every row."""
        ...

    def beside(self, pool: int, jobs: Collection[JobId] = ()) -> list[Reservation]:
        """What is held in a pool, before VIP jobs too, for others than these jobs."""
        ...

    def what_if(self, pool: int) -> tuple[WhatIf, list[Claim]]:
        """The belief about a pool, and its runs that are asked to end."""
        ...

    def take(self, job: JobId, option: int, victims: Sequence[int]) -> None:
        """Holds capacity for a job for which these candidates are stopped; none: what ends is enough."""
        ...


@dataclass(slots=True)
class _Pool:
    """The belief about a pool, the runs that end there, and for whom runs were stopped."""

    there: WhatIf
    ending: list[Claim]
    claims: Sequence[Claim]  # the candidates
    served: list[tuple[JobId, int, int]] = field(default_factory=list)  # job, slot, nodes
    known: dict[object, int] = field(default_factory=dict)
    kinds: dict[int, tuple[Hashable, int]] = field(default_factory=dict)  # of candidates, and nodes

    def slots(self, rows: Iterable[int], slot: int, before: Sequence[Reservation]) -> int:
        """Slots without these candidates and the runs that end; equal questions are answered once."""
        rows, nodes = list(rows), dict[Hashable, int]()
        for row in rows:
            if row not in self.kinds:
                claim = self.claims[row]
                self.kinds[row] = self.there.kind(claim), claim.nodes
            kind, n = self.kinds[row]
            nodes[kind] = nodes.get(kind, 0) + n
        held = tuple((r.job, r.slot, r.nodes) for r in before) if before else ()
        key = (slot, len(self.ending), held, frozenset(nodes.items()))
        if key not in self.known:
            gone = [*self.ending, *(self.claims[row] for row in rows)]
            self.known[key] = self.there.slots(gone, slot, before)
        return self.known[key]

    def uneven(self, slot: int) -> bool:
        """Whether slots leave rests of cores or memory, so that more than their number counts."""
        shape = self.there.pool.shape
        total = max(1, unit_count(shape))
        return bool(shape.cores * slot % total or shape.memory_gib * slot % total)


@dataclass(frozen=True, slots=True)
class _Slots:
    """Slots of one size in a pool, beside what is held there, without some of the candidates."""

    pool: _Pool
    slot: int
    before: Sequence[Reservation]

    def without(self, rows: Iterable[int]) -> int:
        return self.pool.slots(rows, self.slot, self.before)


@dataclass(slots=True)
class _Share:
    """A pool's victims while jobs take theirs: those left, those taken, and the slots used."""

    left: list[int]
    gone: list[int] = field(default_factory=list)
    used: int = 0


class _Together:
    """Jobs that are decided together, and the pools that they ask for: row g of curves is pools[g]."""

    def __init__(self, wishes: Sequence[Wish], there: dict[int, _Slots]) -> None:
        self.wishes, self.pools, self.there = wishes, list(there), list(there.values())
        pools = np.array(self.pools, dtype=np.int64)
        self.rows = [np.searchsorted(pools, w.pools) for w in wishes]
        self.nodes = [w.nodes for w in wishes]
        self.spare = [slots.without(()) for slots in there.values()]

    def needs(self, jobs: Iterable[int]) -> list[list[int]]:
        """By pool: the numbers of slots that some of the jobs ask for."""
        found: list[set[int]] = [set() for _ in self.pools]
        for i in jobs:
            for g in self.rows[i].tolist():
                found[g].add(self.nodes[i])
        return [sorted(nodes) for nodes in found]

    def used(self, plan: Sequence[int]) -> list[int]:
        """Slots that a plan uses in each pool."""
        found = [0] * len(self.pools)
        for mine, nodes, choice in zip(self.rows, self.nodes, plan, strict=True):
            if choice >= 0:
                found[int(mine[choice])] += nodes
        return found


class Evictions:
    """What is stopped so far in a round; `search` decides for further jobs."""

    def __init__(self, p: Problem, candidates: Candidates, table: Table) -> None:
        self.candidates = candidates
        self._p, self._c, self._table = p, candidates, table
        self._pools: dict[int, _Pool] = {}
        self._out = np.zeros(len(candidates.claims), dtype=np.bool_)  # stopped already
        self._killed: Counter[TenantId] = Counter()
        self._paying: dict[tuple[int, int], bool] = {}

    def search(self, wishes: Sequence[Wish]) -> set[JobId]:
        """Stops runs for these jobs, for those named first where there is too little for all.

        Returns who found a place; what is decided is told to the table.
        """
        served: set[JobId] = set()
        waiting = [w for w in wishes if w.options]
        for _ in range(PASSES):
            made: set[JobId] = set()
            for group in _of_one_slot(waiting):
                made |= self._serve(group)
            served |= made
            waiting = [w for w in waiting if w.job not in made]
            if not made or not waiting:
                break
        return served

    def _pool(self, at: int) -> _Pool:
        if at not in self._pools:
            there, ending = self._table.what_if(at)
            self._pools[at] = _Pool(there, list(ending), self._c.claims)
        return self._pools[at]

    def _slots(self, at: int, slot: int, jobs: Collection[JobId]) -> _Slots:
        """Slots in a pool beside what is held for others than these jobs."""
        return _Slots(self._pool(at), slot, self._table.beside(at, jobs))

    # ------------------------------------------------------------ jobs whose slots are of one size in a pool

    def _serve(self, wishes: list[Wish]) -> set[JobId]:
        while wishes:
            asking = {w.job for w in wishes}
            sizes: dict[int, int] = {}
            for w in wishes:
                sizes.update(w.sizes())
            there = {at: self._slots(at, slot, asking) for at, slot in sorted(sizes.items())}
            jobs = _Together(wishes, there)
            plan, victims = self._within_limits_of_all(jobs)
            # Who holds something and found no victims goes on holding it: others must fit beside it.
            stay = {w.job for w, choice in zip(wishes, plan, strict=True) if choice < 0}
            holding = {r.job for at in there for r in self._table.beside(at)} & stay if stay else stay
            if not holding or len(stay) == len(wishes):
                return self._take(jobs, plan, victims)
            wishes = [w for w in wishes if w.job not in holding]
        return set()

    def _within_limits_of_all(self, jobs: _Together) -> tuple[list[int], list[list[int]]]:
        """The choice of every job, and the candidates to be stopped in each pool.

        The runs of a tenant that would lose too many are made dearer until others take their place;
        where that does not do it, the dearest are left out.
        """
        out = self._out.copy()
        dearer = np.zeros(len(self._c.tenants), dtype=np.int64)
        runs = self._runs(jobs)
        needs = jobs.needs(range(len(jobs.wishes)))
        plan: list[int] = []
        for tries in itertools.count(1):
            able = ~out[runs.who]
            price = runs.price[able] + dearer[self._c.tenant[runs.who[able]]]
            some = Runs(runs.pools, runs.who[able], runs.pool[able], runs.gain[able], price)
            curves = Curves(some, jobs.spare, jobs.nodes)
            self._offer_small(jobs, curves, needs, out, only_where_short=False)
            plan = self._assigned(jobs, curves, plan if plan else None)
            short = [i for i, choice in enumerate(plan) if choice < 0]
            if short and self._offer_small(jobs, curves, jobs.needs(short), out, only_where_short=True):
                plan = self._assigned(jobs, curves, None)
            victims = curves.chosen(jobs.used(plan))
            over = self._over(victims)
            if not over:
                break
            for tenant, n in over.items():
                if tries < DEARER:
                    dearer[tenant] += regret(some, self._c.tenant, tenant, n, victims)
                else:
                    self._leave_out(tenant, victims, out)
        if dearer.any():
            room = [self._room(tenant) for tenant in self._c.tenants]
            victims = exchanged(runs, self._c.tenant, room, victims)
        return plan, victims

    def _assigned(self, jobs: _Together, curves: Curves, start: Sequence[int] | None) -> list[int]:
        def takes(i: int, choice: int) -> Takes:
            return self._table.takes(jobs.wishes[i].options[choice])

        return assigned(curves.cost, jobs.nodes, jobs.rows, takes, self._table.left(), start)

    def _runs(self, jobs: _Together) -> Runs:
        """The runs that give slots by themselves, wherever they are."""
        mine = [self._c.of(at) for at in jobs.pools]
        who = np.concatenate([*mine, np.zeros(0, dtype=np.int64)])
        pool = np.repeat(np.arange(len(mine)), [len(m) for m in mine])
        slots = np.array([s.slot for s in jobs.there], dtype=np.int64)
        gain = self._c.nodes[who] * (self._c.size[who] // slots[pool])
        able = (gain > 0) & ~self._out[who]
        who, pool, gain = who[able], pool[able], gain[able]
        price = self._c.prices(who)
        able = price >= 0
        return Runs(len(mine), who[able], pool[able], gain[able], price[able])

    # ------------------------------------------------------------ limits of tenants

    def _room(self, tenant: TenantId) -> int:
        """Runs of a tenant that may still be stopped."""
        return self._p.policies.kill_room(self._p, tenant) - self._killed[tenant]

    def _over(self, victims: Sequence[Sequence[int]]) -> dict[int, int]:
        """Tenants, by number, that would lose more runs than they may, and how many more."""
        rows = [i for mine in victims for i in mine]
        counts = np.bincount(self._c.tenant[rows], minlength=len(self._c.tenants)).tolist() if rows else []
        beyond = {t: n - self._room(self._c.tenants[t]) for t, n in enumerate(counts) if n}
        return {t: n for t, n in beyond.items() if n > 0}

    def _leave_out(self, tenant: int, victims: Sequence[Sequence[int]], out: BoolArray) -> None:
        """Leaves to choose from only as many runs of the tenant as may be stopped: cheap chosen ones."""
        chosen = {i for mine in victims for i in mine}
        mine = np.flatnonzero((self._c.tenant == tenant) & (self._c.price >= 0) & ~out).tolist()
        mine.sort(key=lambda i: (i not in chosen, self._c.per_unit(i)))
        out[mine[max(0, self._room(self._c.tenants[tenant])) :]] = True

    # ------------------------------------------------------------ who gets which victims

    def _take(self, jobs: _Together, plan: Sequence[int], victims: Sequence[Sequence[int]]) -> set[JobId]:
        """Each job in turn: of its pool's victims as few as are enough."""
        served: set[JobId] = set()
        shares = [_Share(list(mine)) for mine in victims]
        for i, (w, choice) in enumerate(zip(jobs.wishes, plan, strict=True)):
            if choice < 0:
                continue
            g = int(jobs.rows[i][choice])
            slots, share = jobs.there[g], shares[g]
            mine = self._needed(slots, share, w.nodes)
            if not self._fits(jobs.pools[g], slots, share, w, mine):
                # The runs were believed to give more than they do: any others, if no one was served here.
                others = None if share.used else self._least_dear(self._able(jobs.pools[g]), slots, w.nodes)
                if others is None or not self._fits(jobs.pools[g], slots, share, w, others):
                    continue
                mine, share.left = others, list(others)
            self._table.take(w.job, w.options[choice], mine)
            for row in mine:
                self._out[row] = True
                self._killed[self._c.claims[row].tenant] += 1
                share.left.remove(row)
            share.gone += mine
            share.used += w.nodes
            if mine:
                slots.pool.served.append((w.job, slots.slot, w.nodes))
            served.add(w.job)
        for slots, share in zip(jobs.there, shares, strict=True):
            slots.pool.ending += [self._c.claims[row] for row in share.gone]
        return served

    def _able(self, at: int) -> list[int]:
        """Candidates of a pool that are not stopped yet and not spared."""
        rows = self._c.of(at)
        rows = rows[~self._out[rows]]
        found: list[int] = rows[self._c.prices(rows) >= 0].tolist()
        return found

    def _needed(self, slots: _Slots, share: _Share, nodes: int) -> list[int]:
        """Of what is left of a pool's victims those that give so many slots more."""
        if slots.without(share.gone) - share.used >= nodes:
            return []
        return self._filled_back(share.left, slots, share.used + nodes, share.gone)

    def _fits(self, at: int, slots: _Slots, share: _Share, w: Wish, victims: Sequence[int]) -> bool:
        """Whether the job fits, and those with slots of other sizes for which runs were stopped there.

        Where all slots are of one size and leave no rest, their number is all that counts.
        """
        gone = [*share.gone, *victims]
        if slots.without(gone) - share.used < w.nodes:
            return False
        pool, plain = slots.pool, not slots.pool.uneven(slots.slot)
        if plain and all(r.slot == slots.slot for r in slots.before):
            return True
        here = Reservation(0, pool.there.pool.id, slots.slot, w.nodes, w.job, 0, 0, "")
        return self._slots(at, slots.slot, (w.job,)).without(gone) >= w.nodes and all(
            pool.slots(gone, slot, [*self._table.beside(at, (job, w.job)), here]) >= nodes
            for job, slot, nodes in pool.served
            if slot != slots.slot or not plain
        )

    # ------------------------------------------------------------ sets with small runs

    def _offer_small(
        self,
        jobs: _Together,
        curves: Curves,
        needs: Sequence[Sequence[int]],
        out: BoolArray,
        *,
        only_where_short: bool,
    ) -> bool:
        """Offers sets with runs of less than a slot; whether there are any.

        Only where the curve gives too little, or where such runs hold so much that they may be cheaper.
        """
        offered = False
        for g, (at, slots) in enumerate(zip(jobs.pools, jobs.there, strict=True)):
            if only_where_short:
                dear = [n for n in needs[g] if curves.cost[g, n] >= NEVER]
            else:
                dear = [n for n in needs[g] if curves.cost[g, n] > 0] if self._may_pay(at, slots) else []
            if dear and len(self._small(at, slots)):
                offered |= self._offer(curves, g, at, slots, dear, out)
        return offered

    def _small(self, at: int, slots: _Slots) -> IntArray:
        """Candidates that hold less than a slot of a node."""
        rows = self._c.of(at)
        size = self._c.size[rows]
        return rows[(size < slots.slot) & (size > 0)]

    def _first(self, rows: IntArray, slots: _Slots) -> int:
        """So many units of these runs come free before a slot surely does."""
        return slots.pool.there.absorbs(slots.slot, int(self._c.size[rows].max(initial=0)))

    def _may_pay(self, at: int, slots: _Slots) -> bool:
        """Whether small runs hold so much that a slot surely comes free without all of them."""
        if (at, slots.slot) not in self._paying:
            rows = self._small(at, slots)
            units = int((self._c.size[rows] * self._c.nodes[rows]).sum())
            self._paying[at, slots.slot] = units > self._first(rows, slots)
        return self._paying[at, slots.slot]

    def _offer(
        self,
        curves: Curves,
        g: int,
        at: int,
        slots: _Slots,
        needs: Sequence[int],
        out: BoolArray,
    ) -> bool:
        """Sets for these numbers of slots."""
        rows = self._c.of(at)
        rows = rows[~out[rows]]
        if slots.without(rows.tolist()) < needs[0]:
            return False
        small = self._small(at, slots)
        small = small[~out[small]]
        units = self._c.size[small] * self._c.nodes[small]
        least = _least_price(self._c.prices(small), units, self._first(small, slots))
        able = rows[self._c.prices(rows) >= 0].tolist()
        offered = False
        for n in needs:
            found = self._least_dear(able, slots, n) if least < curves.cost[g, n] else None
            if found is not None:
                curves.offer(g, n, found, self._c.total(found))
                offered = True
        return offered

    def _least_dear(self, rows: Sequence[int], slots: _Slots, nodes: int) -> list[int] | None:
        """A cheap set by which `nodes` slots come free, None without any; runs are tried in two orders:
        each priced whole, and for what it gives."""
        best: list[int] | None = None
        for order in (self._c.whole, self._c.per_unit):
            ordered = self._within_limits(sorted(rows, key=order))
            if slots.without(ordered) < nodes:
                continue

            def enough(n: int, ordered: Sequence[int] = ordered) -> bool:
                return slots.without(ordered[:n]) >= nodes

            found = self._filled_back(
                ordered[: bisect_left(range(len(ordered)), True, key=enough)], slots, nodes
            )
            if best is None or (self._c.total(found), len(found)) < (self._c.total(best), len(best)):
                best = found
        return best

    def _within_limits(self, ordered: Sequence[int]) -> list[int]:
        """The first of each tenant, as many as may still be stopped."""
        room: dict[TenantId, int] = {}
        kept = []
        for i in ordered:
            tenant = self._c.claims[i].tenant
            if room.setdefault(tenant, self._room(tenant)) > 0:
                room[tenant] -= 1
                kept.append(i)
        return kept

    def _filled_back(
        self, rows: Sequence[int], slots: _Slots, nodes: int, gone: Sequence[int] = ()
    ) -> list[int]:
        """The set without those that are not needed, the dearest spared first; `gone` are stopped anyway."""
        kept, before = list(rows), -1
        while before != len(kept):
            before = len(kept)
            for i in sorted(kept, key=self._c.whole, reverse=True):
                fewer = [k for k in kept if k != i]
                if slots.without([*gone, *fewer]) >= nodes:
                    kept = fewer
        return kept


def _least_price(price: IntArray, units: IntArray, wanted: int) -> float:
    """What so many units cost at least, runs taken in part; those that are spared give none."""
    price, units = price[price >= 0], units[price >= 0]
    order = np.argsort(price / units, kind="stable")
    price, units = price[order], units[order]
    before = np.cumsum(units) - units
    return float((price * np.clip((wanted - before) / units, 0, 1)).sum())


def _of_one_slot(wishes: Sequence[Wish]) -> Iterator[list[Wish]]:
    """The jobs in groups in each of which a pool has slots of one size; the first job is in the first."""
    left = list(wishes)
    while left:
        sizes: dict[int, int] = {}
        group, others = [], []
        for w in left:
            mine = w.sizes()
            if all(sizes.get(at, slot) == slot for at, slot in mine.items()):
                sizes.update(mine)
                group.append(w)
            else:
                others.append(w)
        yield group
        left = others
