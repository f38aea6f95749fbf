"""Local improvement of a whole plan: a pool is emptied and filled anew, and kept where that is better.

What belongs here: which pools are worth a try, and one try.  What does not: the plan it starts from
(rounding.whole_plan) and any limit in seconds; effort is counted in pools.

Rounding down leaves capacity that the relaxation had a price for.  The pools where most of that value
lies idle are tried, most first; a try changes nothing outside its pool, so it costs what the pool's
options are, not what the problem is.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise
from operator import floordiv

import numpy as np
import numpy.typing as npt

from broker.core.bound import reduced_costs
from broker.core.problem import IntArray, Problem

FloatArray = npt.NDArray[np.float64]

POOLS = 64
"""Pools tried per round."""
NEAR = 1.05
"""Options are looked at whose reduced cost is below this times the worth of a job that waits."""


def improve(
    problem: Problem,
    y: IntArray,
    prices: FloatArray,
    reduced: FloatArray | None = None,
    pools: int = POOLS,
) -> IntArray:
    """`y`, which must be feasible, or a better plan; the argument is left alone.

    `prices` are micro-CNY per unit of each row, as of the solved relaxation, and `reduced` the reduced
    costs at them, where at hand; at most `pools` pools are tried.
    """
    worth_trying = _idle_value(problem, y, prices)
    tried = np.argsort(-worth_trying, kind="stable")[:pools]
    tried = tried[worth_trying[tried] > 0]
    if not len(tried):
        return y
    reduced = reduced_costs(problem, prices) if reduced is None else reduced
    waits = np.where(problem.unserved(y) > 0, problem.worth, 0).max(axis=1)
    chosen = np.zeros(len(problem.pools), dtype=np.bool_)
    chosen[tried] = True
    near = (y > 0) | (reduced < NEAR * waits[problem.option_class])
    some = np.flatnonzero(near & chosen[problem.option_pool])
    some = some[np.argsort(problem.option_pool[some], kind="stable")]
    first = np.searchsorted(problem.option_pool[some], np.arange(len(problem.pools) + 1))
    table = _Table(problem, y, reduced, some)
    for at in tried.tolist():
        table.refill(range(first[at], first[at + 1]))
    return table.plan()


def _idle_value(problem: Problem, y: IntArray, prices: FloatArray) -> FloatArray:
    """Micro-CNY per pool that its unused slots are worth at these prices."""
    value = np.zeros(len(problem.pools))
    slots = len(problem.row_pool)
    np.add.at(value, problem.row_pool, (prices * problem.left(y))[:slots])
    return value


class _Table:
    """The plan as it is improved: jobs of some options, what rows have left, jobs served per class.

    Of plain numbers, since a pool has a handful of options that count; i is a place among them.
    """

    def __init__(self, p: Problem, y: IntArray, reduced: FloatArray, options: IntArray) -> None:
        self._p = p
        self._before = y
        self._options = options
        self._jobs: list[int] = y[options].tolist()
        self._class: list[int] = p.option_class[options].tolist()
        self._cost: list[int] = p.cost[options].tolist()
        # What a job takes at the prices of the rows: its reduced cost without its cost.
        self._taken: list[float] = np.maximum(reduced[options] - p.cost[options], 1).tolist()
        entries, spans = p.entries(options)
        row, coef = p.entry_row[entries].tolist(), p.entry_coef[entries].tolist()
        ends = list(accumulate(spans.tolist(), initial=0))
        self._rows: list[list[int]] = [row[a:b] for a, b in pairwise(ends)]
        self._coefs: list[list[int]] = [coef[a:b] for a, b in pairwise(ends)]
        self._left: list[int] = p.left(y).tolist()
        self._served: list[int] = p.started(y).tolist()
        self._values: dict[int, tuple[list[int], list[int]]] = {}

    def plan(self) -> IntArray:
        """Jobs per option, as they are now."""
        y = self._before.copy()
        y[self._options] = self._jobs
        return y

    def refill(self, pool: range) -> None:
        """Empties the pool of these options and fills it by value for what it takes, in two orders."""
        served = self._served
        now = 0  # what the pool is worth today: worth of the jobs in it, less their costs
        for i in pool:
            if n := self._jobs[i]:
                k = self._class[i]
                now += self._worth(k, served[k] - n, served[k]) - self._cost[i] * n
                self._start(i, -n)
        gains = {i: gain for i in pool if (gain := self._gain(i)) > 0}
        by_price = sorted(gains, key=lambda i: (-gains[i] / self._taken[i], i))
        by_size = sorted(gains, key=lambda i: (-self._coefs[i][0], -gains[i] / self._taken[i], i))
        best, chosen = now, None
        for order in (by_price, by_size):
            value, counts = self._filled(order)
            if value > best:
                best, chosen = value, counts
        for i in pool:
            n = self._jobs[i] if chosen is None else chosen.get(i, 0)
            self._jobs[i] = n
            if n:
                self._start(i, n)

    def _start(self, i: int, count: int) -> None:
        """Takes what so many jobs of an option take; gives it back where `count` is negative."""
        self._served[self._class[i]] += count
        for r, a in zip(self._rows[i], self._coefs[i], strict=True):
            self._left[r] -= a * count

    def _filled(self, order: list[int]) -> tuple[int, dict[int, int]]:
        """(value, jobs per option) of filling in this order; nothing stays taken."""
        left, served = self._left, self._served
        value, counts = 0, {}
        for i in order:
            k, cost = self._class[i], self._cost[i]
            room = min(map(floordiv, map(left.__getitem__, self._rows[i]), self._coefs[i]))
            count = min(room, self._worthwhile(k, served[k], cost)) if room > 0 else 0
            if count > 0:
                value += self._worth(k, served[k], served[k] + count) - cost * count
                self._start(i, count)
                counts[i] = count
        for i, count in counts.items():
            self._start(i, -count)
        return value, counts

    # ------------------------------------------------------------ what jobs of a class are worth

    def _of(self, k: int) -> tuple[list[int], list[int]]:
        """Of class `k`: jobs up to and including each age bucket, oldest first, and their worth each."""
        if k not in self._values:
            jobs = self._p.waiting[k, ::-1].tolist()
            self._values[k] = (list(accumulate(jobs)), self._p.worth[k, ::-1].tolist())
        return self._values[k]

    def _gain(self, i: int) -> int:
        """What one more job by an option is worth more than it costs; 0 where none waits."""
        k = self._class[i]
        ends, worth = self._of(k)
        at = bisect_right(ends, self._served[k])
        return worth[at] - self._cost[i] if at < len(ends) else 0

    def _worth(self, k: int, first: int, last: int) -> int:
        """Worth of the jobs first … last-1 of class `k`, oldest first."""
        ends, worth = self._of(k)
        total, at = 0, bisect_right(ends, first)
        while first < last:
            upto = min(ends[at], last)
            total += (upto - first) * worth[at]
            first, at = upto, at + 1
        return total

    def _worthwhile(self, k: int, served: int, cost: int) -> int:
        """Further jobs of class `k` that are worth more than `cost` each; worth falls with youth."""
        ends, worth = self._of(k)
        at = len(worth)
        while at and worth[at - 1] <= cost:
            at -= 1
        return max(0, ends[at - 1] - served) if at else 0
