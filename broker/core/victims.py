"""The runs that may be stopped for VIP jobs: which they are, what each gives and what it costs.

What belongs here: candidates as columns, priced when somebody asks for them.  What does not: which of
them are stopped (core/evictions.py), what lost work costs and whom a policy spares (policies).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from broker.core.claims import ClaimColumns, Some
from broker.core.memory import Memory
from broker.core.model import Claim, JobClass
from broker.core.policy import SPARED, victims
from broker.core.problem import IntArray, Problem, class_key, weigh
from broker.core.resources import part_permille, part_units

_UNPRICED = -2


class Candidates:
    """Running, preemptible, lower work in some of a problem's pools, one row each: in order of pools,
    in a pool of run ids.

    `size` is the units that it holds of each of its `nodes` nodes, `tenant` indexes `tenants`, `price`
    is what stopping it costs, once that was asked for, `lost_s` the seconds of work then lost.
    """

    def __init__(self, p: Problem, memory: Memory, pools: Iterable[int] | None = None) -> None:
        self._p, self._memory = p, memory
        claims = memory.claims(p.snapshot)
        wanted = range(len(p.pools)) if pools is None else pools
        pool = claims.pool_rows({p.pools[i].id: i for i in wanted})
        rows = np.flatnonzero((claims.columns.able > 0) & (pool >= 0))
        rows = rows[np.argsort(pool[rows], kind="stable")]
        self.claims: Sequence[Claim] = Some(claims, rows.tolist())
        self._columns = claims.columns.at(rows)
        self._pool = pool[rows]
        self._cuts = np.searchsorted(self._pool, np.arange(len(p.pools) + 1)).tolist()
        self._keys = claims.class_keys
        self._of_none = self._keys.index("") if "" in self._keys else -1
        self.nodes = self._columns.nodes
        numbers, self.tenant = np.unique(self._columns.tenant, return_inverse=True)
        self.tenants = tuple(claims.tenants[i] for i in numbers.tolist())
        self.size = self._sizes()
        self.price = np.full(len(rows), _UNPRICED, dtype=np.int64)
        self.lost_s = np.zeros(len(rows), dtype=np.int64)

    def _sizes(self) -> IntArray:
        """snapshot.units of every claim's shape on a node of its pool."""
        c, at, its = self._p.pool, self._pool, self._columns
        total = c.units[at]
        size = np.where(c.cards[at] > 0, its.cards * c.card_units[at], its.cores)
        for i in np.flatnonzero(c.split_permille[at]).tolist():
            if part := part_permille(self._p.pools[int(at[i])].shape, self.claims[i].shape):
                size[i] = part_units(part)
        for amount, full in ((its.cores, c.cores[at]), (its.memory_gib, c.memory_gib[at])):
            size = np.where(full > 0, np.minimum(size, amount * total // np.maximum(full, 1)), size)
        return np.clip(size, 0, total)

    def of(self, pool: int) -> IntArray:
        """Rows of one of the problem's pools, whatever they cost."""
        return np.arange(self._cuts[pool], self._cuts[pool + 1])

    def prices(self, rows: IntArray) -> IntArray:
        """Micro-CNY each, below 0 where a policy spares the run; worked out when first asked for."""
        new = rows[self.price[rows] == _UNPRICED]
        if len(new):
            claims, columns = Some(self.claims, new.tolist()), self._columns.at(new)
            worth = self._worth(claims, columns)
            asked = victims(claims, columns, worth, self._p.snapshot.now_ms)
            self.price[new] = np.maximum(self._p.policies.price(self._p, asked), SPARED)
            self.lost_s[new] = asked.lost_s
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

    def _worth(self, claims: Sequence[Claim], columns: ClaimColumns) -> IntArray:
        """What the jobs of these runs are worth once they wait again: a victim costs that, too.

        Without it a kill would only swap a running job for a waiting one.
        """
        p = self._p
        waits = {job_class.key: k for k, job_class in enumerate(p.classes)}
        # Runs of no class are looked at one by one.
        of = np.where(columns.class_key == self._of_none, -1 - np.arange(len(claims)), columns.class_key)
        distinct, first, number = np.unique(of, return_index=True, return_inverse=True)
        at = [waits.get(self._keys[i], -1) if i >= 0 else -1 for i in distinct.tolist()]
        worth = p.worth[at]
        away = [i for i, k in enumerate(at) if k < 0]
        if away:
            classes = tuple(_job_class(claims[int(first[i])]) for i in away)
            worth[away] = weigh(p, classes, self._memory)
        age_s = np.maximum(0, p.snapshot.now_ms - columns.queued_ms) // 1000
        return worth[number, np.searchsorted(p.age_s, age_s, side="right") - 1]


def _job_class(claim: Claim) -> JobClass:
    """That of a run's job."""
    assert claim.request is not None, "a run that may be stopped has a request"
    key = claim.class_key or class_key(claim.request, claim.tenant)
    return JobClass(key, claim.request, claim.tenant, jobs=())
