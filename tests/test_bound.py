"""The certificate: below every plan from any prices, and equal to the relaxation at its duals."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.bound import lower_bound, marginal_values, reduced_costs
from broker.core.model import Snapshot, Tier
from broker.core.problem import Problem, build
from broker.core.solver import SolverStatus, solve
from tests.builders import center, free, job_class, policy_set, pool, snapshot, worlds


def optimum(problem: Problem) -> int:
    """The least objective of all feasible whole plans, by trying them all."""
    spans = [range(int(u) + 1) for u in problem.ub.tolist()]
    tried = (np.array(y, dtype=np.int64) for y in itertools.product(*spans))
    return min(problem.objective(y) for y in tried if problem.feasible(y))


def tiny(draw: np.random.Generator) -> Snapshot:
    pools = [
        pool(
            f"a/{i}",
            nodes=3,
            free=[free(int(draw.integers(1, 9)), 2)],
            price=int(draw.integers(1, 20)) * 10**6,
        )
        for i in range(2)
    ]
    classes = [
        job_class(
            f"k{i}",
            int(draw.choice([1, 2, 4, 8])),
            jobs=int(draw.integers(1, 4)),
            nodes=int(draw.integers(1, 3)),
            tier=Tier(int(draw.integers(0, 3))),
            age_s=int(draw.choice([0, 500, 90_000])),
        )
        for i in range(3)
    ]
    return snapshot(center("a", max_in_flight=int(draw.integers(1, 6))), *pools, *classes)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0, 4))
def test_no_prices_give_a_bound_above_the_optimum(seed: int, scale: float) -> None:
    draw = np.random.default_rng(seed)
    problem = build(tiny(draw), policy_set())
    best = optimum(problem)
    duals = -solve(problem).duals
    for prices in (
        np.zeros(len(duals)),
        duals,
        duals * scale,
        duals + draw.uniform(-1, 1, len(duals)) * 10**7,
        draw.uniform(0, scale * 10**8 + 1, len(duals)),
    ):
        assert lower_bound(problem, prices) <= best


@settings(deadline=None)
@given(worlds())
def test_at_the_duals_the_bound_is_the_relaxation(world: Snapshot) -> None:
    problem = build(world, policy_set())
    relaxation = solve(problem)
    if relaxation.status is SolverStatus.OPTIMAL:
        bound = lower_bound(problem, -relaxation.duals, relaxation.reduced)
        # Nothing but what floats of money of this size lose.
        size = float((problem.worth * problem.waiting.astype(float)).sum()) + abs(relaxation.objective)
        assert abs(bound - relaxation.objective) <= 2 + 1e-6 * size


def test_upper_bounds_stay_in_the_inner_problem() -> None:
    """Without prices each class takes its cheapest pools only as far as they can hold it."""
    cheap, dear = pool("a/1", nodes=1, price=10**6), pool("a/2", nodes=1, price=2 * 10**6)
    wish = job_class(wish=8, jobs=3, estimated_run_time_s=3600)
    problem = build(snapshot(center("a"), cheap, dear, wish), policy_set())
    nothing = np.zeros(len(problem.row_bound))
    assert marginal_values(problem, reduced_costs(problem, nothing)).tolist() == [float(problem.worth[0, 0])]
    expected = int(problem.cost.sum()) + int(problem.worth[0, 0])
    assert expected - 10 <= lower_bound(problem, nothing) <= expected


def test_a_problem_without_options_is_bound_by_what_waits() -> None:
    problem = build(snapshot(center(), pool(), job_class(wish=16)), policy_set())
    assert not len(problem.option_class)
    assert lower_bound(problem, np.zeros(len(problem.row_bound))) <= 0
