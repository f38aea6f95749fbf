"""Whole jobs from the values and prices of a relaxation.

What belongs here: rounding down, and filling what that leaves.  What does not: the relaxation
(core/solver.py) and making a whole plan better (core/improve.py).
"""

from __future__ import annotations

import numpy as np

from broker.core.greedy import fill
from broker.core.problem import IntArray, Problem
from broker.core.solver import Relaxation, SolverStatus


def whole_plan(problem: Problem, relaxation: Relaxation) -> IntArray:
    """Whole jobs per option: the relaxation rounded down, checked in integers, and filled.

    Without values, jobs follow the prices: each takes the option that costs least at them, as long as
    it is worth that; then the rest fill what is left.  Where there was nothing to solve the values are
    whole.
    """
    if relaxation.status is SolverStatus.UNUSED:
        return relaxation.y.astype(np.int64)
    if relaxation.status is SolverStatus.PRICED:
        nothing = np.zeros(len(problem.option_class), dtype=np.int64)
        return fill(problem, fill(problem, nothing, by=relaxation.reduced))
    y = np.floor(np.clip(relaxation.y, 0, None) + 1e-7).astype(np.int64)
    y = np.minimum(y, problem.ub)
    if not problem.feasible(y):
        y = _clipped(problem, y)
    return fill(problem, y)


def _clipped(problem: Problem, y: IntArray) -> IntArray:
    """The largest part of `y`, option by option, that keeps every row and starts only waiting jobs."""
    left = problem.row_bound.copy()
    jobs = problem.waiting.sum(axis=1)
    kept = np.zeros_like(y)
    for option in np.flatnonzero(y).tolist():
        rows, coefs = problem.takes(option)
        k = problem.option_class[option]
        kept[option] = max(0, min(int(y[option]), int(jobs[k]), int((left[rows] // coefs).min())))
        left[rows] -= coefs * kept[option]
        jobs[k] -= kept[option]
    return kept
