"""The runs that may be stopped for VIP jobs: which they are, what each gives and what it costs.

What belongs here: candidates as columns, priced when somebody asks for them.  What does not: which of
them are stopped (core/evictions.py), what lost work costs and whom a policy spares (policies).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

import numpy as np

from broker.core.fitting import ints
from broker.core.memory import Memory
from broker.core.model import Claim, JobClass, RunState, TenantId, Tier
from broker.core.policy import SPARED, victims
from broker.core.problem import IntArray, Problem, class_key, weigh
from broker.core.resources import part_permille, part_units

_UNPRICED = -2


class Candidates:
    """Running, preemptible, lower work, one row each, in order of run ids.

    `size` is the units that it holds of each of its `nodes` nodes, `tenant` indexes `tenants`, `price`
    is what stopping it costs, once that was asked for, `lost_s` the seconds of work then lost.
    """

    def __init__(self, p: Problem, memory: Memory) -> None:
        self._p, self._memory = p, memory
        at = {pool.id: i for i, pool in enumerate(p.pools)}
        running = RunState.RUNNING
        able = [
            c
            for c in p.snapshot.claims
            if c.state is running
            and not c.stopping
            and c.tier < Tier.VIP
            and c.request is not None
            and c.request.preemptible
            and c.pool in at
        ]
        able.sort(key=lambda c: c.run)
        self.claims: Sequence[Claim] = able
        self._pool = ints(map(at.__getitem__, map(attrgetter("pool"), able)))
        self.nodes = ints(map(attrgetter("nodes"), able))
        names = [c.tenant for c in able]
        self.tenants: tuple[TenantId, ...] = tuple(dict.fromkeys(names))
        number = {name: i for i, name in enumerate(self.tenants)}
        self.tenant = ints(map(number.__getitem__, names))
        self.size = self._sizes()
        self.price = np.full(len(able), _UNPRICED, dtype=np.int64)
        self.lost_s = np.zeros(len(able), dtype=np.int64)
        order = np.argsort(self._pool, kind="stable")
        cuts = np.searchsorted(self._pool[order], np.arange(len(p.pools) + 1))
        self._order, self._cuts = order, cuts.tolist()

    def _sizes(self) -> IntArray:
        """snapshot.units of every claim's shape on a node of its pool."""
        c, at = self._p.pool, self._pool
        shapes = [claim.shape for claim in self.claims]
        cards, cores, memory_gib = (
            ints(map(attrgetter(name), shapes)) for name in ("accelerators", "cores", "memory_gib")
        )
        total = c.units[at]
        size = np.where(c.cards[at] > 0, cards * c.card_units[at], cores)
        for i in np.flatnonzero(c.split_permille[at]).tolist():
            if part := part_permille(self._p.pools[int(at[i])].shape, shapes[i]):
                size[i] = part_units(part)
        for amount, full in ((cores, c.cores[at]), (memory_gib, c.memory_gib[at])):
            size = np.where(full > 0, np.minimum(size, amount * total // np.maximum(full, 1)), size)
        return np.clip(size, 0, total)

    def of(self, pool: int) -> IntArray:
        """Rows of one of the problem's pools, whatever they cost."""
        return self._order[self._cuts[pool] : self._cuts[pool + 1]]

    def prices(self, rows: IntArray) -> IntArray:
        """Micro-CNY each, below 0 where a policy spares the run; worked out when first asked for."""
        new = rows[self.price[rows] == _UNPRICED]
        if len(new):
            claims = [self.claims[i] for i in new.tolist()]
            columns = victims(claims, self._worth(claims), self._p.snapshot.now_ms)
            self.price[new] = np.maximum(self._p.policies.price(self._p, columns), SPARED)
            self.lost_s[new] = columns.lost_s
        return self.price[rows]

    def total(self, rows: Iterable[int]) -> int:
        """What these cost together, micro-CNY."""
        return sum(int(self.price[i]) for i in rows)

    def whole(self, i: int) -> tuple[int, int, str]:
        """Sorts cheap runs first, each priced whole; of equal ones the largest."""
        return (int(self.price[i]), -self._units(i), self.claims[i].run)

    def per_unit(self, i: int) -> tuple[float, int, str]:
        """Sorts runs that are cheap for what they give first."""
        return (int(self.price[i]) / max(1, self._units(i)), int(self.price[i]), self.claims[i].run)

    def _units(self, i: int) -> int:
        return int(self.size[i] * self.nodes[i])

    def _worth(self, claims: Sequence[Claim]) -> IntArray:
        """What the jobs of these runs are worth once they wait again: a victim costs that, too.

        Without it a kill would only swap a running job for a waiting one.
        """
        classes: dict[str, JobClass] = {}
        at: dict[str, int] = {}
        rows = []
        for claim in claims:
            key = claim.class_key
            if key not in at or not key:
                assert claim.request is not None, "a run that may be stopped has a request"
                key = key or class_key(claim.request, claim.tenant)
                if key not in at:
                    at[key] = len(classes)
                    classes[key] = JobClass(key, claim.request, claim.tenant, jobs=())
            rows.append(at[key])
        worth = weigh(self._p, tuple(classes.values()), self._memory)
        age_s = np.maximum(0, self._p.snapshot.now_ms - ints(c.queued_ms for c in claims)) // 1000
        return worth[rows, np.searchsorted(self._p.age_s, age_s, side="right") - 1]
