"""The greedy plan: the fallback, the baseline to beat, and what fills a rounded-down one.

What belongs here: taking jobs in order of worth and giving each its cheapest option with room.
What does not: anything that takes a job back.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import floordiv

import numpy as np
import numpy.typing as npt

from broker.core.problem import IntArray, Problem
from broker.core.queue import as_queue


def greedy(problem: Problem) -> IntArray:
    """Jobs per option: most worth per card first, then the oldest, then the class key."""
    return fill(problem, np.zeros(len(problem.option_class), dtype=np.int64))


def fill(problem: Problem, y: IntArray, *, by: npt.NDArray[np.float64] | None = None) -> IntArray:
    """`y` with every job added that still has room and is worth more than its option costs.

    `y` must be feasible; the argument is left alone.  `by`: what an option costs, where that is not
    its cost alone.
    """
    y = y.copy()
    waiting = problem.unserved(y)
    rows = problem.left(y)
    choices = _choices(problem, rows, waiting, by)
    left = rows.tolist()
    full = np.zeros(len(problem.classes), dtype=np.bool_)
    for k, b in _order(problem, waiting, [k for k, some in enumerate(choices) if some is not None]):
        if not full[k]:
            wanted, options = int(waiting[k, b]), choices[k]
            assert options is not None
            placed = _place(problem, y, left, options, wanted=wanted, worth=int(problem.worth[k, b]))
            full[k] = placed < wanted
    return y


@dataclass(frozen=True, slots=True, eq=False)
class _Choices:
    """Options of a class that have room, cheapest first.

    The entries of option i are first[i] … first[i+1]-1 of `row` and `coef`, which all classes share.
    """

    options: list[int]
    costs: list[int]
    first: list[int]
    row: list[int]
    coef: list[int]


def _choices(
    problem: Problem, left: IntArray, waiting: IntArray, by: npt.NDArray[np.float64] | None
) -> list[_Choices | None]:
    """Per class what it may still use: room only shrinks, so the rest need not be looked at again."""
    found: list[_Choices | None] = [None] * len(problem.classes)
    if not len(problem.option_class):
        return found
    best = np.where(waiting > 0, problem.worth, 0).max(axis=1)
    room = np.minimum.reduceat(left[problem.entry_row] - problem.entry_coef, problem.entry_first[:-1]) >= 0
    cost, order = problem.cost, problem.by_cost
    if by is not None:
        cost = by.astype(np.int64)
        order = np.lexsort((cost, problem.option_class))
    open_ = order[(room & (cost < best[problem.option_class]))[order]]
    options, costs = open_.tolist(), cost[open_].tolist()
    entries, spans = problem.entries(open_)
    row, coef = problem.entry_row[entries].tolist(), problem.entry_coef[entries].tolist()
    starts = [0, *np.cumsum(spans).tolist()]
    classes = problem.option_class[open_]
    first = np.flatnonzero(np.diff(classes, prepend=-1))
    classes, cuts = classes[first], [*first.tolist(), len(options)]
    for k, a, b in zip(classes.tolist(), cuts, cuts[1:], strict=False):
        found[k] = _Choices(options[a:b], costs[a:b], starts[a : b + 1], row, coef)
    return found


def _order(problem: Problem, waiting: IntArray, classes: list[int]) -> list[tuple[int, int]]:
    """(class, bucket) pairs of these classes that have jobs, best first."""
    mine = np.array(classes, dtype=np.int64)
    which, at_bucket = np.nonzero(waiting[mine])
    at_class = mine[which]
    if not len(at_class):
        return []
    oldest = np.zeros(len(problem.classes), dtype=np.int64)
    for k in classes:
        queue = as_queue(problem.classes[k].jobs)
        oldest[k] = queue.queued_ms[0] if len(queue) else 0
    density = problem.worth[at_class, at_bucket] // np.maximum(problem.least_millicards[at_class], 1)
    order = np.lexsort((at_class, oldest[at_class], -at_bucket, -density))
    return list(zip(at_class[order].tolist(), at_bucket[order].tolist(), strict=True))


def _place(problem: Problem, y: IntArray, left: list[int], mine: _Choices, *, wanted: int, worth: int) -> int:
    """Starts up to `wanted` jobs of a class in `y`, cheapest options first; returns how many.

    `left` is what the rows have left and is kept in step, as is `mine`: what is full leaves it.
    """
    started = at = 0
    while started < wanted and at < len(mine.options) and mine.costs[at] < worth:
        a, b = mine.first[at], mine.first[at + 1]
        if left[mine.row[a]] < mine.coef[a]:  # most are full by their first row: all slots of the pool
            at += 1
            continue
        rows, coefs = mine.row[a:b], mine.coef[a:b]
        count = min(wanted - started, *map(floordiv, map(left.__getitem__, rows), coefs))
        if count > 0:
            for row, coef in zip(rows, coefs, strict=True):
                left[row] -= coef * count
            y[mine.options[at]] += count
            started += count
        if started < wanted:
            at += 1
    for column in (mine.options, mine.costs, mine.first):
        del column[:at]
    return started
