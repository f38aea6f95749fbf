"""Local improvement: whatever it starts from, it ends with a plan that can be carried out and is no worse."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.improve import improve
from broker.core.model import Snapshot
from broker.core.problem import IntArray, Problem, build
from broker.core.solver import solve
from tests.builders import center, free, job_class, policy_set, pool, snapshot, worlds


def some_plan(problem: Problem, data: st.DataObject) -> IntArray:
    """A feasible plan, mostly a poor one: options in any order, as many jobs as drawn."""
    y = np.zeros(len(problem.option_class), dtype=np.int64)
    for j in data.draw(st.permutations(range(len(y)))):
        y[j] = data.draw(st.integers(0, int(problem.ub[j])))
        if not problem.feasible(y):
            y[j] = 0
    return y


@settings(deadline=None, max_examples=80)
@given(worlds(), st.data())
def test_it_is_feasible_and_never_worse(world: Snapshot, data: st.DataObject) -> None:
    problem = build(world, policy_set())
    if not len(problem.option_class):
        return
    y = some_plan(problem, data)
    before = y.copy()
    better = improve(problem, y, -solve(problem).duals)
    assert (y == before).all()  # the argument is left alone
    assert problem.feasible(better)
    assert problem.objective(better) <= problem.objective(y)


def test_a_pool_is_given_to_what_fills_it() -> None:
    # Two jobs of 4 cards are worth more than one of 4 beside one of 1 that was there first.
    big, small = job_class("big", 4, jobs=2), job_class("small", 1)
    problem = build(snapshot(big, small, center("a"), pool("a/0", free=(free(8),))), policy_set())
    at = {problem.classes[k].key: j for j, k in enumerate(problem.option_class.tolist())}
    y = np.zeros(len(problem.option_class), dtype=np.int64)
    y[at["big"]] = y[at["small"]] = 1
    prices = np.ones(len(problem.row_bound))
    better = improve(problem, y, prices)
    assert (better[at["big"]], better[at["small"]]) == (2, 0)
    assert problem.objective(better) < problem.objective(y)
    assert (improve(problem, better, prices) == better).all()


def test_nothing_is_tried_where_nothing_of_value_lies_idle() -> None:
    problem = build(snapshot(job_class(), center("a"), pool("a/0")), policy_set())
    y = np.zeros(len(problem.option_class), dtype=np.int64)
    assert improve(problem, y, np.zeros(len(problem.row_bound))) is y
