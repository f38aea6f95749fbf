"""The certificate of a round: a number that no plan's objective is below.

What belongs here: the Lagrangian bound from any prices.  What does not: finding prices (solver).

For prices pi >= 0 of the rows, no whole or fractional plan costs less than

    sum_kb U_kb N_kb - pi.b + sum_k min { sum_p (c_kp + pi.a_kp) y_kp - sum_b U_kb z_kb }

over 0 <= y_kp <= ub_kp, 0 <= z_kb <= N_kb and sum_p y_kp = sum_b z_kb: prices take the rows'
place, and the classes fall apart.  At the duals of a solved relaxation it equals the relaxation's
value, at older ones it is a little less, and it is never wrong.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from broker.core.problem import Problem

FloatArray = npt.NDArray[np.float64]


def reduced_costs(problem: Problem, prices: FloatArray) -> FloatArray:
    """Micro-CNY per job of every option: its cost and what it takes of the rows, at these prices."""
    if not len(problem.option_class):
        return np.zeros(0)
    if not prices.any():
        return problem.cost.astype(np.float64)
    taken = prices[problem.entry_row] * problem.entry_coef
    reduced: FloatArray = np.add.reduceat(taken, problem.entry_first[:-1])
    return reduced + problem.cost


def lower_bound(problem: Problem, prices: FloatArray, reduced: FloatArray | None = None) -> int:
    """Micro-CNY that no plan is below, from any prices per row; negative ones count as 0.

    `reduced` are the reduced costs at these prices, where at hand.
    """
    if reduced is None or (prices < 0).any():
        prices = np.maximum(prices, 0)
        reduced = reduced_costs(problem, prices)
    gain, size = _inner(problem, reduced)
    idle = problem.worth * problem.waiting.astype(np.float64)
    paid = prices * problem.row_bound
    total = float(idle.sum() - paid.sum() + gain)
    # What sums of floats of this size can be wrong by, with room to spare, stays on the safe side.
    scale = float(np.abs(idle).sum() + paid.sum() + size)
    return int(np.floor(total - 1 - 1e-11 * scale))


def marginal_values(problem: Problem, reduced: FloatArray) -> FloatArray:
    """Micro-CNY per class at which, at these reduced costs, what may start meets what waits.

    Options with a lower reduced cost are used and jobs of a higher worth served, as far as they go.
    """
    asked = problem.waiting
    top = np.where(asked > 0, problem.worth, np.iinfo(np.int64).min).max(axis=1, initial=0)
    useful = np.flatnonzero((problem.ub > 0) & (reduced < top[problem.option_class]))
    at_class, at_bucket = np.nonzero(asked)
    # 1 values at which supply grows or demand falls, by class and value
    value = np.concatenate([reduced[useful], problem.worth[at_class, at_bucket].astype(np.float64)])
    owner = np.concatenate([problem.option_class[useful], at_class])
    step = np.concatenate([problem.ub[useful], asked[at_class, at_bucket]])
    order = np.argsort(value)  # which of equal values comes first changes nothing
    order = order[_by_class(owner[order], len(problem.classes))]
    owner, value, step = owner[order], value[order], step[order]
    # 2 the first value of a class where what supply grew and demand fell makes up its demand
    total = np.cumsum(step)
    first = np.searchsorted(owner, np.arange(len(problem.classes) + 1))
    before = np.concatenate([[0], total])[first]
    enough = np.searchsorted(total, before[:-1] + asked.sum(axis=1), side="left")
    values = np.zeros(len(problem.classes))
    some = first[1:] > first[:-1]
    values[some] = value[np.minimum(enough, first[1:] - 1)[some]]
    return values


def _by_class(owner: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """A stable order by class; small numbers are sorted in one go over their digits."""
    return np.argsort(owner.astype(np.uint16 if classes <= 1 << 16 else np.int64), kind="stable")


def _inner(problem: Problem, reduced: FloatArray) -> tuple[float, float]:
    """The sum over classes of the inner minimum, at most 0, and the sum of its terms' sizes.

    For any value mu per class, sum_p ub min(0, r_p - mu) + sum_b N min(0, mu - U_b) is at most the
    inner minimum, and equal to it where supply below mu meets demand above it.
    """
    if not len(problem.option_class):
        return 0.0, 0.0
    mu = marginal_values(problem, reduced)
    below = np.minimum(0, reduced - mu[problem.option_class])
    used = np.flatnonzero(below)
    supply = below[used] * problem.ub[used]
    demand = np.minimum(0, mu[:, None] - problem.worth) * problem.waiting
    gain = float(supply.sum() + demand.sum())
    return gain, -gain + float((np.abs(reduced[used]) * problem.ub[used]).sum())
