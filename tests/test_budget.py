"""Budgets in rounds: what a tenant may spend bounds what starts, and nothing stops a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.budget import budget_limits, committed_micro, overspent, spendable
from broker.core.check import violations
from broker.core.explain import Code
from broker.core.model import Claim, RunState, RunTime, Snapshot, TenantId
from broker.core.plan import grouped
from broker.core.problem import build
from broker.core.scheduler import schedule
from policies.packing import Packing
from tests import builders
from tests.builders import NOW_MS, center, claim, job_class, policy_set, pool, worlds

HOUR = 3600
PRICE = 10_000_000


def world(left: int, *parts: Any, jobs: int = 8, hours: int = 1) -> Snapshot:
    """Sixteen free cards for 10 CNY an hour each, and jobs of one card."""
    queue = job_class("k", 1, jobs=jobs, estimated_run_time_s=hours * HOUR)
    made = builders.snapshot(center(), pool(price=PRICE), queue, *parts)
    return replace(made, funds={TenantId("t"): left})


def started(snapshot: Snapshot, *further: object) -> int:
    plan = schedule(snapshot, policy_set(*further))
    assert violations(plan, snapshot) == []
    return len(plan.placements)


@pytest.mark.parametrize(
    ("left", "jobs"), [(-1, 0), (0, 0), (9_999_999, 0), (10_000_000, 1), (39_999_999, 3), (10**12, 8)]
)
def test_a_round_starts_what_the_tenant_can_pay(left: int, jobs: int) -> None:
    assert started(world(left)) == jobs


def test_jobs_placed_one_after_the_other_obey_too() -> None:
    assert started(world(30_000_000), Packing()) == 3


def test_a_longer_job_takes_more() -> None:
    assert started(world(100_000_000, hours=5)) == 2


def test_with_nothing_left_not_even_a_free_job_starts() -> None:
    queue = job_class("k", 1, jobs=2)
    free = builders.snapshot(center(), pool(), queue)
    assert started(replace(free, funds={TenantId("t"): 0})) == 0
    assert started(replace(free, funds={TenantId("t"): 10**6})) == 2


def test_others_are_not_bound() -> None:
    other = job_class("o", 1, jobs=3, tenant="o", estimated_run_time_s=HOUR)
    plan = schedule(world(0, other), policy_set())
    assert {p.class_key for p in plan.placements} == {"o"}
    assert len(plan.placements) == 3


def test_live_runs_count_at_what_they_are_expected_to_cost() -> None:
    one = replace(claim("bk-1"), tenant=TenantId("t"), rate_micro_per_hour=PRICE, estimate_s=2 * HOUR)
    assert started(world(50_000_000, one)) == 3


@pytest.mark.parametrize(
    ("facts", "micro"),
    [
        ({}, PRICE),
        ({"started_ms": NOW_MS - 3 * HOUR * 1000}, 3 * PRICE),
        ({"learned": RunTime(2 * HOUR, 9 * HOUR)}, 2 * PRICE),
        (
            {"learned": RunTime(2 * HOUR, 9 * HOUR), "request": builders.request(estimated_run_time_s=HOUR)},
            PRICE,
        ),
        ({"state": RunState.STOPPED}, 0),
        ({"state": RunState.LOST}, PRICE),
        ({"started_ms": NOW_MS + 10**9}, PRICE),
    ],
)
def test_what_a_run_commits_its_tenant_to(facts: dict[str, Any], micro: int) -> None:
    one: Claim = replace(claim(), rate_micro_per_hour=PRICE, estimate_s=HOUR, **facts)
    assert committed_micro(one, NOW_MS) == micro


def test_the_reason_has_need_and_have() -> None:
    snapshot = world(25_000_000)
    (why,) = schedule(snapshot, policy_set()).deferrals["k"]
    assert (why.code, why.need, why.have) == (Code.BUDGET, 10_000_000, 5_000_000)
    assert why.message == "is expected to cost 10 CNY there, the tenant may spend 5 CNY more"
    (none,) = schedule(world(-7), policy_set()).deferrals["k"]
    assert (none.code, none.need, none.have) == (Code.BUDGET, 10_000_000, 0)


def test_the_budget_is_told_before_a_full_center() -> None:
    queue = job_class("k", 1, jobs=1, estimated_run_time_s=HOUR)
    full = builders.snapshot(center(), pool(price=PRICE, free=[builders.free(0, 2)]), queue)
    (why,) = schedule(replace(full, funds={TenantId("t"): 0}), policy_set()).deferrals["k"]
    assert why.code is Code.BUDGET


def test_the_check_finds_what_is_overspent() -> None:
    rich, poor = world(10**12), world(20_000_000)
    plan = schedule(rich, policy_set())
    (fault,) = overspent(grouped(plan.placements), poor)
    assert fault == "tenant t: jobs for 80000000 micro-CNY start, 20000000 are left"
    assert fault in violations(plan, poor)


@settings(deadline=None)
@given(worlds(), st.integers(-(10**9), 10**9), st.integers(0, 1 << 61))
def test_no_round_spends_more_than_there_is(snapshot: Snapshot, left: int, much: int) -> None:
    for funds in (left, much):
        bound = replace(snapshot, funds={TenantId("t"): funds})
        plan = schedule(bound, policy_set())
        assert violations(plan, bound) == []
        assert sum(p.cost_micro for p in plan.placements) <= spendable(bound)[TenantId("t")]
        assert plan.bound <= plan.objective


@settings(deadline=None)
@given(worlds())
def test_enough_money_changes_nothing(snapshot: Snapshot) -> None:
    plan = schedule(snapshot, policy_set())
    rich = replace(snapshot, funds={TenantId("t"): 1 << 60, TenantId("nobody"): 0})
    assert schedule(rich, policy_set()).objective == plan.objective


def test_a_row_for_every_tenant_that_waits() -> None:
    other = job_class("o", 1, tenant="o")
    snapshot = replace(world(5, other), funds={TenantId(t): 5 for t in ("t", "o", "away")})
    names = [limit.name for limit in budget_limits(build(snapshot, policy_set()))]
    assert names == ["budget:o", "budget:t"]
