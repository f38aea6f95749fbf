"""Run times learned from ended runs: quantiles, correction of stated estimates, what is cut short."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.estimates import (
    FORGOTTEN,
    HALF_LIFE_S,
    STEPS,
    Histogram,
    Observation,
    RunTimes,
    keys,
    observation,
)
from broker.core.model import (
    FailureKind,
    JobId,
    JobRequest,
    Kind,
    RunFacts,
    RunId,
    RunState,
    RunTime,
    Stop,
    StopReason,
    TenantId,
)
from broker.core.problem import class_key
from tests.builders import NOW_MS, claim, request

LAB, OTHER = TenantId("lab"), TenantId("other")
BIN: float = 2 ** (1 / STEPS)
"""How far apart two values of one bin may be."""

values = st.floats(min_value=1, max_value=10**7)
samples = st.lists(st.tuples(values, st.booleans()), min_size=1, max_size=40)


def histogram(sample: list[tuple[float, bool]], at_ms: int = NOW_MS) -> Histogram:
    made = Histogram()
    for value, ended in sample:
        made = made.seen(value, at_ms, ended=ended)
    return made


def learned(*runs: tuple[JobRequest, float], tenant: TenantId = LAB, ended: bool = True) -> RunTimes:
    made = RunTimes()
    for asked, ran_s in runs:
        made.see(asked, tenant, Observation(ran_s, NOW_MS, ended))
    return made


def near(value: float, expected: float) -> bool:
    """Within what a bin and the rounding to the grid may hide."""
    return bool(expected / BIN**1.5 <= value <= expected * BIN**1.5)


# ---------------------------------------------------------------- histograms


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_a_quantile_is_that_of_the_values_but_for_the_bins(sample: list[float], q: float) -> None:
    found = histogram([(value, True) for value in sample]).quantile(q)
    ordered = sorted(sample)
    exact = ordered[max(0, math.ceil(q * len(ordered) - 1e-6) - 1)]
    assert found is not None
    assert exact / BIN <= found <= exact * BIN * (1 + 1e-9)


@settings(deadline=None)
@given(samples, st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_quantiles_rise(sample: list[tuple[float, bool]], one: float, two: float) -> None:
    made = histogram(sample)
    low, high = made.quantile(min(one, two)), made.quantile(max(one, two))
    assert low is not None
    assert high is not None
    assert low <= high


@settings(deadline=None)
@given(samples, samples, st.integers(0, 10 * HALF_LIFE_S * 1000))
def test_merging_is_the_same_either_way(
    one: list[tuple[float, bool]], two: list[tuple[float, bool]], later_ms: int
) -> None:
    a, b = histogram(one), histogram(two, NOW_MS + later_ms)
    assert a.merged(b) == b.merged(a)
    whole = len([1 for _, ended in two if ended])
    assert whole - 1e-6 <= a.merged(b).weight <= whole + len(one) + 1e-6


@settings(deadline=None)
@given(samples)
def test_what_is_cut_short_only_makes_runs_longer(sample: list[tuple[float, bool]]) -> None:
    ended_only = [(value, True) for value, ended in sample if ended]
    if ended_only:
        believed, median = histogram(sample).quantile(0.5), histogram(ended_only).quantile(0.5)
        shorter = histogram([(value, True) for value, _ in sample]).quantile(0.5)
        assert believed is not None
        assert median is not None
        assert shorter is not None
        assert believed >= shorter * (1 - 1e-9)


def test_a_run_counts_half_after_the_half_life() -> None:
    later = NOW_MS + HALF_LIFE_S * 1000
    made = histogram([(100, True)] * 6).seen(10_000, later, ended=True)
    assert made.weight == pytest.approx(4)


def test_what_is_out_of_reach_is_in_the_last_bin() -> None:
    assert Histogram().seen(0.0, NOW_MS, ended=True).ended == {-120: 1.0}
    assert Histogram().seen(1e300, NOW_MS, ended=True).ended == {120: 1.0}


# ---------------------------------------------------------------- what runs tell


def ended_run(state: RunState, **changes: Any) -> RunFacts:
    facts = RunFacts(
        id=RunId("bk-1"),
        job=JobId("j"),
        attempt=1,
        state=state,
        started_ms=NOW_MS - 90_000,
        ended_ms=NOW_MS,
    )
    return replace(facts, **changes)


@pytest.mark.parametrize(
    ("run", "ended"),
    [
        (ended_run(RunState.SUCCEEDED), True),
        (ended_run(RunState.SUCCEEDED, stop=Stop(StopReason.PREEMPT, NOW_MS)), True),
        (ended_run(RunState.FAILED, failure=FailureKind.JOB), True),
        (ended_run(RunState.STOPPED, stop=Stop(StopReason.CANCEL, NOW_MS)), True),
        (ended_run(RunState.STOPPED, stop=Stop(StopReason.PREEMPT, NOW_MS)), False),
        (ended_run(RunState.STOPPED, stop=Stop(StopReason.RECALL, NOW_MS)), False),
        (ended_run(RunState.FAILED, failure=FailureKind.DEADLINE), False),
        (ended_run(RunState.FAILED, failure=FailureKind.EVICTED), False),
        (ended_run(RunState.FAILED, failure=FailureKind.HOST), False),
        (ended_run(RunState.ABANDONED), False),
    ],
)
def test_what_an_ended_run_tells(run: RunFacts, ended: bool) -> None:
    assert observation(run) == Observation(90.0, NOW_MS, ended)


@pytest.mark.parametrize(
    "run",
    [
        ended_run(RunState.RUNNING, ended_ms=None),
        ended_run(RunState.FAILED, failure=FailureKind.REFUSED, started_ms=None),
        ended_run(RunState.ABANDONED, ended_ms=None),
    ],
)
def test_what_never_ran_tells_nothing(run: RunFacts) -> None:
    assert observation(run) is None


# ---------------------------------------------------------------- what is expected of a class


def test_too_few_runs_say_nothing() -> None:
    assert learned(*[(request(), 100.0)] * 4).of(request(), LAB) is None
    five = learned(*[(request(), 100.0)] * 5).of(request(), LAB)
    assert five is not None
    assert near(five.p50_s, 100)


def test_the_finest_key_that_knows_enough_speaks() -> None:
    whole, image = request(8), request(8, image_id="x")
    known = learned(*[(image, 1000.0)] * 5, *[(whole, 100.0)] * 20, *[(request(1), 10.0)] * 100)

    def p50(asked: JobRequest, tenant: TenantId = LAB) -> int:
        found = known.of(asked, tenant)
        assert found is not None
        return found.p50_s

    assert near(p50(image), 1000)  # the class
    assert near(p50(request(8, image_id="new")), 100)  # the tenant's jobs of that shape
    assert near(p50(request(4)), 10)  # the tenant
    assert near(p50(whole, OTHER), 100)  # the spec
    assert near(p50(request(2), OTHER), 10)  # all
    assert known.of(request(8, kind=Kind.ONLINE), LAB) is None  # services run as long as they are wanted


def test_a_stated_estimate_is_corrected_by_the_tenants_own_ratio() -> None:
    stated = [request(1, estimated_run_time_s=s) for s in (100, 1000, 10_000)]
    known = learned(*[(asked, (asked.estimated_run_time_s or 0) * 0.25) for asked in stated * 2])
    found = known.of(request(1, estimated_run_time_s=500), LAB)
    assert found is not None
    assert near(found.p50_s, 125)
    assert known.of(request(1, estimated_run_time_s=500), OTHER) is None
    unstated = known.of(request(1), LAB)
    assert unstated is not None
    assert near(unstated.p50_s, 250)


def test_nothing_runs_beyond_its_limit() -> None:
    known = learned(*[(request(), 1000.0)] * 9)
    assert known.of(request(max_run_time_s=300), LAB) == RunTime(300, 300)


def test_runs_that_still_run_count_as_at_least_so_long() -> None:
    known = learned(*[(request(), 100.0)] * 6)
    before = known.of(request(), LAB)
    long = [
        replace(claim(f"bk-{i}", started_ms=NOW_MS - 10_000_000), request=request(), tenant=LAB)
        for i in range(20)
    ]
    known.running(long, NOW_MS)
    now = known.of(request(), LAB)
    assert before is not None
    assert now is not None
    assert now.p50_s > 50 * before.p50_s
    known.running([], NOW_MS)
    assert known.of(request(), LAB) == before


def test_what_nothing_was_added_to_is_forgotten() -> None:
    known = learned(*[(request(), 100.0)] * 9)
    known.forget(NOW_MS - FORGOTTEN * HALF_LIFE_S * 1000)
    assert known.of(request(), LAB) is not None
    known.forget(NOW_MS + 1)
    assert known.of(request(), LAB) is None


requests = st.builds(
    request,
    st.sampled_from([1, 2, 8]),
    nodes=st.integers(1, 3),
    image_id=st.sampled_from(["", "a", "b"]),
    estimated_run_time_s=st.none() | st.integers(1, 10**6),
    max_run_time_s=st.none() | st.integers(1, 10**6),
)


@settings(deadline=None)
@given(st.lists(st.tuples(requests, values, st.booleans()), max_size=30), requests)
def test_half_take_no_longer_than_nine_in_ten(
    runs: list[tuple[JobRequest, float, bool]], asked: JobRequest
) -> None:
    known = RunTimes()
    for each, ran_s, ended in runs:
        known.see(each, LAB, Observation(ran_s, NOW_MS, ended))
    found = known.of(asked, LAB)
    if found is not None:
        assert 1 <= found.p50_s <= found.p90_s <= (asked.max_run_time_s or 2**31)


@settings(deadline=None)
@given(requests, requests)
def test_jobs_of_a_class_have_the_same_keys(one: JobRequest, two: JobRequest) -> None:
    if class_key(one, LAB) == class_key(two, LAB):
        assert keys(one, LAB) == keys(two, LAB)
