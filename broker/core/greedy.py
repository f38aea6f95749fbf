"""The greedy plan: the fallback, the baseline to beat, and what fills a rounded-down one.

What belongs here: taking jobs in order of worth and giving each its cheapest option with room.
What does not: anything that takes a job back.
"""

from __future__ import annotations

import numpy as np

from broker.core.problem import IntArray, Problem


def greedy(problem: Problem) -> IntArray:
    """Jobs per option: most worth per card first, then the oldest, then the class key."""
    return fill(problem, np.zeros(len(problem.option_class), dtype=np.int64))


def fill(problem: Problem, y: IntArray) -> IntArray:
    """`y` with every job added that still has room and is worth more than its option costs.

    `y` must be feasible; the argument is left alone.
    """
    y = y.copy()
    left = problem.left(y)
    waiting = problem.unserved(y)
    full = np.zeros(len(problem.classes), dtype=np.bool_)
    for k, b in _order(problem, waiting):
        if not full[k]:
            wanted = int(waiting[k, b])
            full[k] = _place(problem, y, left, k=k, wanted=wanted, worth=int(problem.worth[k, b])) < wanted
    return y


def _order(problem: Problem, waiting: IntArray) -> list[tuple[int, int]]:
    """(class, bucket) pairs that have jobs and options, best first."""
    at_class, at_bucket = np.nonzero(waiting * (np.diff(problem.first) > 0)[:, None])
    if not len(at_class):
        return []
    cards = np.ones(len(problem.classes), dtype=np.int64)
    for k in np.unique(at_class).tolist():
        pools = problem.option_pool[problem.options(k)]
        cards[k] = max(1, int(problem.job_millicards(k, pools).min()))
    oldest = np.array([c.jobs[0].queued_ms if c.jobs else 0 for c in problem.classes], dtype=np.int64)
    density = problem.worth[at_class, at_bucket] // cards[at_class]
    order = np.lexsort((at_class, oldest[at_class], -at_bucket, -density))
    return list(zip(at_class[order].tolist(), at_bucket[order].tolist(), strict=True))


def _place(problem: Problem, y: IntArray, left: IntArray, *, k: int, wanted: int, worth: int) -> int:
    """Starts up to `wanted` jobs of class `k` in `y`, cheapest options first; returns how many.

    `left` is what the rows have left and is kept in step.
    """
    options = problem.options(k)
    cost = problem.cost[options]
    starts = problem.entry_first[options.start : options.stop + 1]
    entries = slice(int(starts[0]), int(starts[-1]))
    rows, coefs = problem.entry_row[entries], problem.entry_coef[entries]
    started = 0
    while started < wanted:
        room = np.minimum.reduceat(left[rows] // coefs, starts[:-1] - starts[0])
        usable = np.flatnonzero((room > 0) & (cost < worth))
        if not len(usable):
            break
        best = int(usable[np.argmin(cost[usable])])
        count = min(wanted - started, int(room[best]))
        mine = slice(int(starts[best] - starts[0]), int(starts[best + 1] - starts[0]))
        # An option has a row at most once, so plain indexing subtracts every entry.
        left[rows[mine]] -= coefs[mine] * count
        y[options.start + best] += count
        started += count
    return started
