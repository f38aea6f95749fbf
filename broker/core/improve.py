"""Local improvement of a whole plan: a pool is emptied and filled anew, and kept where that is better.

What belongs here: which pools are worth a try, and one try.  What does not: the plan it starts from
(solver.whole_plan) and any limit in seconds; effort is counted in pools.

Rounding down leaves capacity that the relaxation had a price for.  The pools where most of that value
lies idle are tried, most first; a try changes nothing outside its pool, so it costs what the pool's
options are, not what the problem is.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
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
    table = _Table(problem, y.copy(), reduced)
    for at in tried.tolist():
        table.refill(some[first[at] : first[at + 1]])
    return table.y


def _idle_value(problem: Problem, y: IntArray, prices: FloatArray) -> FloatArray:
    """Micro-CNY per pool that its unused slots are worth at these prices."""
    value = np.zeros(len(problem.pools))
    slots = len(problem.row_pool)
    np.add.at(value, problem.row_pool, (prices * problem.left(y))[:slots])
    return value


class _Table:
    """The plan as it is improved: jobs per option, what rows have left, jobs served per class."""

    def __init__(self, p: Problem, y: IntArray, reduced: FloatArray) -> None:
        self.y = y
        self._p = p
        self._reduced = reduced
        self._left = p.left(y)
        self._served = p.started(y)
        self._values: dict[int, tuple[list[int], list[int]]] = {}

    def refill(self, options: IntArray) -> None:
        """Empties the pool of these options and fills it by value for what it takes, in two orders."""
        p = self._p
        before = self.y[options]
        classes = p.option_class[options].tolist()
        entries = [
            slice(int(a), int(b))
            for a, b in zip(p.entry_first[options], p.entry_first[options + 1], strict=True)
        ]
        rows = [p.entry_row[e].tolist() for e in entries]
        coefs = [p.entry_coef[e].tolist() for e in entries]
        costs = p.cost[options].tolist()
        left = {r: int(self._left[r]) for row in rows for r in row}
        served = {k: int(self._served[k]) for k in classes}
        now = 0  # what the pool is worth today: worth of the jobs in it, less their costs
        for n, k, row, coef, cost in zip(before.tolist(), classes, rows, coefs, costs, strict=True):
            if n:
                for r, a in zip(row, coef, strict=True):
                    left[r] += a * n
                now += self._worth(k, served[k] - n, served[k]) - cost * n
                served[k] -= n
        best, chosen = now, None
        # What a job takes at the prices of the rows: its reduced cost without its cost.
        taken = np.maximum(self._reduced[options] - p.cost[options], 1).tolist()
        gains = [
            self._worth(k, served[k], served[k] + 1) - c if served[k] < self._jobs(k) else 0
            for k, c in zip(classes, costs, strict=True)
        ]
        some = [i for i, gain in enumerate(gains) if gain > 0]
        by_price = sorted(some, key=lambda i: (-gains[i] / taken[i], i))
        by_size = sorted(some, key=lambda i: (-coefs[i][0], -gains[i] / taken[i], i))
        for order in (by_price, by_size):
            value, counts = self._filled(order, classes, rows, coefs, costs, dict(left), dict(served))
            if value > best:
                best, chosen = value, counts
        if chosen is not None:
            self._take(options, before, chosen, rows, coefs, classes)

    def _filled(
        self,
        order: list[int],
        classes: list[int],
        rows: list[list[int]],
        coefs: list[list[int]],
        costs: list[int],
        left: dict[int, int],
        served: dict[int, int],
    ) -> tuple[int, dict[int, int]]:
        """(value, jobs by place in `order`'s numbers) of filling in this order."""
        value, counts = 0, {}
        for i in order:
            k, row, coef = classes[i], rows[i], coefs[i]
            room = min(map(floordiv, map(left.__getitem__, row), coef))
            count = min(room, self._worthwhile(k, served[k], costs[i]))
            if count > 0:
                for r, a in zip(row, coef, strict=True):
                    left[r] -= a * count
                value += self._worth(k, served[k], served[k] + count) - costs[i] * count
                served[k] += count
                counts[i] = count
        return value, counts

    def _take(
        self,
        options: IntArray,
        before: IntArray,
        chosen: dict[int, int],
        rows: list[list[int]],
        coefs: list[list[int]],
        classes: list[int],
    ) -> None:
        after = np.zeros_like(before)
        after[list(chosen)] = list(chosen.values())
        for i in np.flatnonzero(after != before).tolist():
            more = int(after[i] - before[i])
            self._served[classes[i]] += more
            for r, a in zip(rows[i], coefs[i], strict=True):
                self._left[r] -= a * more
        self.y[options] = after

    # ------------------------------------------------------------ what jobs of a class are worth

    def _of(self, k: int) -> tuple[list[int], list[int]]:
        """Of class `k`: jobs up to and including each age bucket, oldest first, and their worth each."""
        if k not in self._values:
            jobs = self._p.waiting[k, ::-1].tolist()
            self._values[k] = (list(accumulate(jobs)), self._p.worth[k, ::-1].tolist())
        return self._values[k]

    def _jobs(self, k: int) -> int:
        return self._of(k)[0][-1]

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
        last = next((at for at in reversed(range(len(worth))) if worth[at] > cost), None)
        return 0 if last is None else max(0, ends[last] - served)
