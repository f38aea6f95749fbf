"""Prices of a problem that has too many classes: from a part of them, and made better step by step.

What belongs here: drawing the part, and one step.  What does not: when that is done, and what the
prices are used for (core/solver.py).

Where every job is a class of its own, the relaxation of all of them takes longer than a round may.
Prices that are nearly right are enough for a bound that is valid, and for a plan that follows them.
The first come from some of the classes, each standing for as many as it is one of.  Then every price
follows demand: it rises where jobs that choose by these prices ask for more than there is, and falls
where they ask for less.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from broker.core.problem import Problem

FloatArray = npt.NDArray[np.float64]

LEAST = 10_000.0
"""Micro-CNY that a price is at least where demand exceeds supply: one of 0 could not rise."""
NEAR = 0.02
"""Options within this share of a class's least reduced cost get most of its jobs in the demand."""


def sampled(problem: Problem, one_in: int) -> Problem:
    """About one class in `one_in`, with `one_in` times its jobs; rows and bounds are those of `problem`.

    The draw goes by the keys, so that a class that waits is in every round's part or in none.
    """
    chosen = np.flatnonzero([zlib.crc32(c.key.encode()) % one_in == 0 for c in problem.classes])
    at = np.full(len(problem.classes), -1, dtype=np.int64)
    at[chosen] = np.arange(len(chosen))
    options = np.flatnonzero(at[problem.option_class] >= 0)
    entries, spans = problem.entries(options)
    option_class = at[problem.option_class[options]]
    waiting = problem.waiting[chosen] * one_in
    row_ub = problem.row_ub[options]
    return replace(
        problem,
        classes=tuple(problem.classes[k] for k in chosen.tolist()),
        fittings=tuple(problem.fittings[k] for k in chosen.tolist()),
        waiting=waiting,
        codes=problem.codes[chosen],
        first=np.searchsorted(option_class, np.arange(len(chosen) + 1)),
        option_class=option_class,
        option_pool=problem.option_pool[options],
        tau=problem.tau[options],
        cost=problem.cost[options],
        rate=problem.rate[options],
        ub=np.minimum(waiting.sum(axis=1)[option_class], row_ub),
        row_ub=row_ub,
        worth=problem.worth[chosen],
        entry_first=np.concatenate([[0], np.cumsum(spans)]),
        entry_row=problem.entry_row[entries],
        entry_coef=problem.entry_coef[entries],
    )


def adjusted(problem: Problem, prices: FloatArray, reduced: FloatArray, step: float = 0.5) -> FloatArray:
    """Prices of the rows one step on; `reduced` are the reduced costs at `prices`.

    A price is multiplied by demand over supply, within 0.2 and 2, to the power of `step`.
    """
    if not len(problem.option_class):
        return prices
    k, some = problem.option_class, np.flatnonzero(problem.first[1:] > problem.first[:-1])
    first = problem.first[some]
    least = np.zeros(len(problem.classes))
    least[some] = np.minimum.reduceat(reduced, first)
    # The jobs of a class share out over its cheap options, so that demand does not jump.
    spread = NEAR * np.abs(least) + LEAST
    share = np.exp(-np.minimum((reduced - least[k]) / spread[k], 50.0)) * problem.ub
    whole = np.ones(len(problem.classes))
    whole[some] = np.maximum(np.add.reduceat(share, first), 1e-9)
    jobs = problem.waiting.sum(axis=1)
    best = np.where(problem.waiting > 0, problem.worth, 0).max(axis=1)
    y = np.where(reduced < best[k], np.minimum(share / whole[k] * jobs[k], problem.ub), 0.0)
    spans = np.diff(problem.entry_first)
    demand = np.bincount(
        problem.entry_row, weights=problem.entry_coef * np.repeat(y, spans), minlength=len(prices)
    )
    ratio = demand / np.maximum(problem.row_bound, 0.5)
    risen = np.where(ratio > 1, np.maximum(prices, LEAST), prices)
    moved: FloatArray = risen * np.clip(ratio, 0.2, 2.0) ** step
    return moved
