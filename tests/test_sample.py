"""Problems with too many classes: prices of a part, prices that follow demand, plans that follow prices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from broker.core import solver
from broker.core.bound import reduced_costs
from broker.core.check import violations
from broker.core.model import Snapshot
from broker.core.plan import Source
from broker.core.problem import build
from broker.core.sample import LEAST, adjusted, sampled
from broker.core.scheduler import schedule
from broker.core.solver import LP, SolverStatus, solve
from tests.builders import center, free, job_class, policy_set, pool, snapshot, worlds


def crowded(jobs: int = 24) -> Snapshot:
    """Every job a class of its own; a third of them finds room."""
    classes = [job_class(f"k{i}", 2, age_s=i, estimated_run_time_s=600 + 60 * i) for i in range(jobs)]
    pools = [pool(f"{c}/0", free=(free(8),), price=10_000_000 + i) for i, c in enumerate(("a", "b"))]
    return snapshot(*classes, *pools, center("a"), center("b"))


def test_a_part_stands_for_all_on_the_same_rows() -> None:
    problem = build(crowded(), policy_set())
    part = sampled(problem, 3)
    assert 0 < len(part.classes) < len(problem.classes)
    assert part.row_name == problem.row_name
    assert (part.row_bound == problem.row_bound).all()
    assert part.waiting.sum() == 3 * len(part.classes)
    whole = {c.key: k for k, c in enumerate(problem.classes)}
    for k, c in enumerate(part.classes):
        mine, theirs = part.options(k), problem.options(whole[c.key])
        assert (part.option_pool[mine] == problem.option_pool[theirs]).all()
        assert (part.cost[mine] == problem.cost[theirs]).all()
    assert sampled(problem, 1).waiting.tolist() == problem.waiting.tolist()


def test_prices_rise_where_more_is_asked_for_than_there_is_and_fall_where_less() -> None:
    crowd, few = build(crowded(), policy_set()), build(crowded(1), policy_set())
    nothing = np.zeros(len(crowd.row_bound))
    slots = crowd.row_code == crowd.row_code[0]
    first = adjusted(crowd, nothing, reduced_costs(crowd, nothing))
    assert (first[slots] >= LEAST).any()
    second = adjusted(crowd, first, reduced_costs(crowd, first))
    assert second.sum() > first.sum()
    some = np.full(len(few.row_bound), 1e6)
    assert (adjusted(few, some, reduced_costs(few, some)) < some).all()


def test_bounds_rise_from_round_to_round_and_come_near_the_relaxation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(solver, "MOST", 0)
    world = crowded()
    problem = build(world, policy_set())
    lp = LP(prices=dict.fromkeys(problem.row_name, 0.0))  # all that is known is that nothing is known
    bounds = []
    for _ in range(30):
        bounds.append(schedule(world, policy_set(), lp).bound)
        lp.settle()
    best = LP()._relax(problem).objective
    assert bounds == sorted(bounds)
    assert bounds[-1] <= best + 1
    assert best - bounds[-1] < 0.1 * (best - bounds[0])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(worlds())
def test_a_plan_that_follows_prices_is_valid_and_so_is_its_bound(
    monkeypatch: pytest.MonkeyPatch, world: Snapshot
) -> None:
    exact = solve(build(world, policy_set()))
    with monkeypatch.context() as patch:
        patch.setattr(solver, "MOST", 0)
        lp = LP()
        for _ in range(3):  # without prices, with those of the part, with better ones
            plan = schedule(world, policy_set(), lp)
            assert violations(plan, world) == []
            assert plan.bound <= plan.objective
            if exact.status is SolverStatus.OPTIMAL:
                assert plan.bound <= exact.objective + 1
            lp.settle()


def test_following_prices_beats_the_greedy_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "MOST", 0)
    lp, world = LP(), crowded()
    for _ in range(8):
        plan = schedule(world, policy_set(), lp)
        lp.settle()
    assert plan.solver_status is SolverStatus.PRICED
    assert plan.source is Source.LP
    assert (plan.objective - plan.bound) / plan.objective < 0.05
