"""The look ahead: when waiting jobs are expected to start, from planned ends and the queue before them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.forecast import (
    SCENARIOS,
    UNLEARNED_SPREAD,
    Eta,
    end_of,
    level_of,
    time_left_s,
)
from broker.core.model import Claim, JobId, RunTime, Snapshot, TenantId, Tier, Why
from broker.core.policy import PolicySet
from broker.core.scheduler import schedule
from policies.quota import Quota, Share
from policies.vip import Vip
from tests.builders import (
    NOW_MS,
    center,
    claim,
    free,
    job_class,
    policy_set,
    pool,
    request,
    reservation,
    snapshot,
    worlds,
)

SURE = RunTime(600, 600)
"""Every run takes ten minutes."""


def running(run: str, cards: int = 8, *, ran_s: int = 0, **changes: Any) -> Claim:
    """A run that the pool's report has."""
    facts = {"learned": SURE, "request": request(cards), **changes}
    return replace(claim(run, cards, started_ms=NOW_MS - ran_s * 1000 - 1), **facts)


def forecast(world: Snapshot, *jobs: str, policies: PolicySet | None = None, **limits: Any) -> dict[str, Eta]:
    outlook = schedule(world, policies or policy_set()).outlook
    assert outlook is not None
    return {str(job): eta for job, eta in outlook.of([JobId(job) for job in jobs], **limits).items()}


def seconds(eta: Eta | None) -> tuple[int, int | None] | None:
    return None if eta is None else (eta.p50_s, eta.p90_s)


# ---------------------------------------------------------------- run times


def test_a_run_takes_every_quantile_once() -> None:
    for name in ("a", "b", "bk-0123456789"):
        levels = sorted(level_of(name, scenario) for scenario in range(SCENARIOS))
        assert levels == [n / 10 for n in range(1, SCENARIOS + 1)]


@pytest.mark.parametrize(
    ("ran_s", "level", "left_s"),
    [(0, 0.5, 100), (0, 0.9, 400), (100, 0.0, 0), (100, 0.8, 300)],  # past its median 0.9 is 0.8 of the rest
)
def test_time_left_is_that_of_runs_that_got_so_far(ran_s: int, level: float, left_s: int) -> None:
    if level:
        assert time_left_s(RunTime(100, 400), ran_s, level) == pytest.approx(left_s, abs=1)
    assert time_left_s(RunTime(100, 400), ran_s, level or 0.1, limit_s=100) == min(left_s, 100 - ran_s)


def test_what_has_outlived_all_runs_as_long_again() -> None:
    assert time_left_s(SURE, 1000, 0.5) == 1000
    assert time_left_s(RunTime(10, 11), 10_000, 0.5) == 10_000
    assert time_left_s(SURE, 599, 0.9) == 1


@given(
    st.integers(1, 10**6), st.integers(0, 5), st.integers(0, 10**7), st.floats(0.1, 0.9), st.floats(0.1, 0.9)
)
def test_a_higher_quantile_ends_no_sooner(p50: int, spread: int, ran_s: int, one: float, two: float) -> None:
    expected = RunTime(p50, p50 * (1 + spread))
    low, high = (time_left_s(expected, ran_s, level) for level in sorted((one, two)))
    assert 0 <= low <= high


def test_when_a_run_ends() -> None:
    assert end_of(running("r", ran_s=200), NOW_MS) == RunTime(400, 400)
    stated = replace(claim("r", started_ms=NOW_MS), estimate_s=100, request=request(estimated_run_time_s=100))
    assert end_of(stated, NOW_MS) == RunTime(100, 100 * UNLEARNED_SPREAD)
    assert end_of(replace(stated, stopping=True), NOW_MS) == RunTime(15, 27)
    assert end_of(running("r", learned=None), NOW_MS) is None


# ---------------------------------------------------------------- the look


def test_a_job_starts_when_what_is_before_it_has_ended() -> None:
    """One node; two jobs wait before the third, and each takes ten minutes."""
    world = snapshot(
        center(),
        pool(nodes=1, free=[]),
        running("r", ran_s=200),
        replace(job_class("k", 8, jobs=3), learned=SURE),
    )
    found = forecast(world, "k-0", "k-1", "k-2")
    assert {job: seconds(eta) for job, eta in found.items()} == {
        "k-0": (400, 400),
        "k-1": (1000, 1000),
        "k-2": (1600, 1600),
    }
    assert found["k-0"].center == "sz-1"


def test_what_runs_take_is_not_sure() -> None:
    world = snapshot(
        center(),
        pool(nodes=1, free=[]),
        running("r", learned=RunTime(600, 2400)),
        job_class("k", 8),
    )
    (eta,) = forecast(world, "k-0").values()
    assert eta.p50_s == pytest.approx(600, abs=2)
    assert eta.p90_s == pytest.approx(2400, abs=2)


def test_higher_tiers_and_shorter_jobs_go_first() -> None:
    world = snapshot(
        center(),
        pool(nodes=1, free=[]),
        running("r"),
        replace(job_class("low", 8, tier=Tier.LOW), learned=SURE),
        replace(job_class("long", 8), learned=RunTime(20_000, 20_000)),
        replace(job_class("short", 8), learned=SURE),
    )
    found = forecast(world, "low-0", "long-0", "short-0")
    assert [found[job].p50_s for job in ("short-0", "long-0", "low-0")] == [600, 1200, 21_200]


def test_who_is_small_goes_by_and_a_gang_waits_for_all_its_nodes() -> None:
    world = snapshot(
        center(),
        pool(nodes=2, free=[free(4)]),
        running("a", 8, ran_s=100),
        running("b", 4),
        replace(job_class("gang", 8, nodes=2), learned=SURE),
        replace(job_class("small", 4, jobs=2), learned=SURE),
    )
    found = forecast(world, "gang-0", "small-1")
    assert found["small-1"].p50_s == 500  # the first is placed at once
    assert found["gang-0"].p50_s == 1100


def test_in_flight_room_and_the_wait_there_count() -> None:
    world = snapshot(
        center(max_in_flight=2, in_flight=1),
        pool(nodes=4, expected_wait_s=300),
        replace(claim("new", 8), learned=SURE),
        replace(job_class("k", 8, jobs=3), learned=SURE),
    )
    assert seconds(forecast(world, "k-1")["k-1"]) == (600, 600)  # one is sent at once, this one in its place


def test_what_is_held_is_for_the_holder() -> None:
    world = snapshot(
        center(),
        pool(nodes=2, free=[free(8)]),
        running("r"),
        replace(job_class("vip", 8, nodes=2, tier=Tier.VIP), learned=SURE),
        replace(job_class("k", 8), learned=SURE),
        reservation(8, nodes=2, job=JobId("vip-0"), why=Why.VIP),
    )
    found = forecast(world, "vip-0", "k-0", policies=policy_set(Vip()))
    assert (found["vip-0"].p50_s, found["k-0"].p50_s) == (600, 1200)


@pytest.mark.parametrize(
    "world",
    [
        snapshot(center(), pool(nodes=1, free=[]), job_class("k", 8)),  # others' work is in the way
        snapshot(center(), pool(), job_class("k", 16)),  # it fits nowhere
    ],
)
def test_where_nothing_can_be_said(world: Snapshot) -> None:
    assert forecast(world, "k-0") == {}


def test_a_quota_that_only_runs_of_before_give_back_says_nothing() -> None:
    quota = Quota(shares=(Share("t", ceiling=8),))
    mine = replace(running("r"), tenant=TenantId("t"))
    world = snapshot(center(), pool(nodes=4), mine, job_class("k", 8))
    assert forecast(world, "k-0", policies=policy_set(quota)) == {}


def test_a_job_with_too_many_before_it_has_no_forecast() -> None:
    world = snapshot(center(), pool(nodes=1, free=[]), running("r"), job_class("k", 8, jobs=9))
    assert set(forecast(world, "k-3", "k-8", starts=5)) == {"k-3"}


@settings(deadline=None, max_examples=60)
@given(worlds())
def test_forecasts_are_of_who_waits_and_p50_comes_first(world: Snapshot) -> None:
    plan = schedule(world, policy_set())
    if plan.outlook is None:
        return
    every = {job.id for each in world.classes for job in each.jobs}
    found = plan.outlook.of(every)
    assert not {p.job for p in plan.placements} & set(found)
    for eta in found.values():
        assert 0 <= eta.p50_s <= (eta.p50_s if eta.p90_s is None else eta.p90_s)
    assert found == schedule(world, policy_set()).outlook.of(every)  # type: ignore[union-attr]
