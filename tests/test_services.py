"""Online services in the core: planned without an end, started again after a pause, never filling in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.estimates import Observation, RunTimes
from broker.core.events import (
    Event,
    NewRun,
    OweCollect,
    SeenFailed,
    SeenGone,
    SeenStopped,
    SeenSucceeded,
)
from broker.core.explain import Code
from broker.core.forecast import end_of
from broker.core.machine import step
from broker.core.model import (
    EVERY_CENTER,
    SERVICE_ESTIMATE_S,
    CenterId,
    FailureKind,
    JobClass,
    JobFacts,
    JobId,
    JobRequest,
    JobState,
    Kind,
    RemoteId,
    RunFacts,
    RunId,
    RunState,
    Stop,
    StopReason,
    TenantId,
)
from broker.core.retry import RESTART_S, Again, GiveUp, decide, restart
from broker.core.scheduler import schedule
from broker.core.snapshot import ENDLESS_S, longest_estimate_s, planned_end_ms
from policies.backfill import Backfill
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
)

A = CenterId("a")


def service(*, max_retries: int = 10, **changes: Any) -> JobFacts:
    asked = JobRequest(
        kind=Kind.ONLINE, max_retries=max_retries, max_run_time_s=changes.pop("max_run_time_s", None)
    )
    return JobFacts(JobId("j"), JobState.ACTIVE, asked, NOW_MS, **changes)


def run(**changes: Any) -> RunFacts:
    return RunFacts(RunId("bk-1"), JobId("j"), 1, RunState.RUNNING, A, RemoteId("r-1"), **changes)


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("said", "planned_s"),
    [
        ({}, SERVICE_ESTIMATE_S),
        ({"estimated_run_time_s": 60}, 60),
        ({"max_run_time_s": 3600}, 3600),
        ({"max_run_time_s": 10 * SERVICE_ESTIMATE_S}, SERVICE_ESTIMATE_S),
        ({"estimated_run_time_s": 60, "max_run_time_s": 3600}, 60),
    ],
)
def test_a_service_is_planned_over_its_estimate_or_seven_days(said: dict[str, Any], planned_s: int) -> None:
    assert SERVICE_ESTIMATE_S == 7 * 24 * 3600
    assert JobRequest(kind=Kind.ONLINE, **said).estimate_s == planned_s


def test_a_price_ceiling_is_spread_over_the_planned_time() -> None:
    asked = JobRequest(kind=Kind.ONLINE, max_price_micro=168_000_000)
    assert asked.max_rate_micro == 1_000_000


@pytest.mark.parametrize("said", [{}, {"estimated_run_time_s": 60}, {"max_run_time_s": 60}])
def test_a_service_fills_in_nowhere(said: dict[str, Any]) -> None:
    """Whatever it says: what is held for a large job would be gone for good."""
    assert longest_estimate_s(request(1, kind=Kind.ONLINE, **said)) == ENDLESS_S
    hold = reservation(8, nodes=2, job=JobId("gang-0"), expires_ms=NOW_MS + 86_400_000, why="gang")
    gang = job_class("gang", 8, nodes=2, age_s=4000)
    other = replace(
        claim("r", 8, started_ms=NOW_MS - 60_000),
        request=request(8, estimated_run_time_s=86_000),
        estimate_s=86_000,
    )
    short = {"estimated_run_time_s": 60, **said}
    job, endless = job_class("job", 8, **short), job_class("service", 8, kind=Kind.ONLINE, **short)
    policies = policy_set(Vip(), Backfill(wait_limit_s=3600))

    def placed(wanted: JobClass) -> set[JobId]:
        there = (center(services=True), pool(nodes=2, free=[free(8)]), other, hold, gang)
        return {p.job for p in schedule(snapshot(*there, wanted), policies).placements}

    assert placed(job) == {"job-0"}
    assert placed(endless) == set()


def test_nobody_expects_a_service_to_end() -> None:
    held = replace(claim("r", 1, started_ms=NOW_MS), request=request(1, kind=Kind.ONLINE))
    stated = replace(held, request=request(1, kind=Kind.ONLINE, estimated_run_time_s=60), estimate_s=60)
    limited = replace(held, request=request(1, kind=Kind.ONLINE, max_run_time_s=60), estimate_s=60)
    assert end_of(held, NOW_MS) is None
    assert end_of(stated, NOW_MS) is None
    assert end_of(limited, NOW_MS) is not None
    assert planned_end_ms(stated, NOW_MS) == NOW_MS + 60_000  # planned all the same
    assert end_of(replace(held, stopping=True), NOW_MS) is not None


def test_nothing_is_learned_of_services() -> None:
    known, lab, asked = RunTimes(), TenantId("lab"), request(1, kind=Kind.ONLINE)
    for _ in range(9):
        known.see(asked, lab, Observation(100.0, NOW_MS, ended=True))
    assert known.of(asked, lab) is None
    known.running([replace(claim("r", started_ms=NOW_MS - 1000), request=asked)], NOW_MS)
    assert known.of(asked, lab) is None


def test_centers_that_run_no_services_are_filtered_with_their_code() -> None:
    wanted = job_class(kind=Kind.ONLINE)
    world = snapshot(center("no"), center("yes", services=True), pool("no/a"), pool("yes/a"), wanted)
    (placement,) = schedule(world, policy_set()).placements
    assert placement.center == "yes"
    alone = schedule(snapshot(center("no"), pool("no/a"), wanted), policy_set())
    assert [r.code for r in alone.deferrals["k"]] == [Code.SERVICE_UNSUPPORTED]


def test_a_service_that_pauses_waits_whatever_the_centers_offer() -> None:
    wanted = job_class(kind=Kind.ONLINE, avoid=[EVERY_CENTER])
    parts = [center(name, services=True) for name in "ab"] + [pool(f"{name}/p") for name in "ab"]
    plan = schedule(snapshot(*parts, wanted), policy_set())
    assert plan.placements == ()
    assert {r.code for r in plan.deferrals["k"]} == {Code.RESTART_PAUSE}


# ---------------------------------------------------------------- its ends


ENDS: dict[str, Event] = {
    "exit 0": SeenSucceeded(NOW_MS),
    "exit 1": SeenFailed(NOW_MS, FailureKind.JOB, "exit code 1", exit_code=1),
    "exit 127": SeenFailed(NOW_MS, FailureKind.COMMAND, "not found", exit_code=127),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_service_is_started_again_whatever_its_exit_code(end: str) -> None:
    done = step(service(), run(), ENDS[end])
    assert (done.job.state, done.job.attempts, done.job.retries_used) == (JobState.QUEUED, 2, 1)
    assert done.job.avoid == ((EVERY_CENTER, NOW_MS + RESTART_S[0] * 1000),)
    assert done.commands == (OweCollect(), NewRun(2))
    assert not done.run.state.live


@pytest.mark.parametrize(
    ("end", "state"), [("exit 0", "SUCCEEDED"), ("exit 1", "FAILED"), ("exit 127", "FAILED")]
)
def test_with_its_retries_spent_a_service_ends_as_its_last_run_did(end: str, state: str) -> None:
    for job in (service(max_retries=0), service(max_retries=3, retries_used=3)):
        done = step(job, run(), ENDS[end])
        assert (done.job.state, done.run.state) == (state, state)
        assert not any(isinstance(command, NewRun) for command in done.commands)


@pytest.mark.parametrize("end", ENDS)
def test_a_service_that_was_asked_to_stop_is_stopped_however_it_ends(end: str) -> None:
    done = step(service(), run(stop=Stop(StopReason.CANCEL, NOW_MS)), ENDS[end])
    assert (done.job.state, done.run.state) == (JobState.STOPPED, RunState.STOPPED)
    done = step(service(), run(stop=Stop(StopReason.PREEMPT, NOW_MS)), ENDS[end])
    assert (done.job.state, done.job.retries_used, done.job.avoid) == (JobState.QUEUED, 0, ())
    limited = service(max_run_time_s=60)
    done = step(limited, run(stop=Stop(StopReason.DEADLINE, NOW_MS)), ENDS[end])
    assert (done.job.state, done.run.failure) == (JobState.FAILED, FailureKind.DEADLINE)


def test_what_ends_a_service_besides_its_process_is_as_for_any_job() -> None:
    done = step(service(), run(), SeenStopped(NOW_MS))  # somebody at the center meant it
    assert done.job.state is JobState.STOPPED
    for kind in (FailureKind.DEADLINE, FailureKind.LOST):
        assert decide(service(), kind) == GiveUp()
    lost = run(missing_ms=NOW_MS - 60_000)
    assert step(service(), lost, SeenGone(NOW_MS)).run.state is RunState.LOST
    again = decide(service(), FailureKind.HOST)
    assert isinstance(again, Again)
    assert not again.spends_retry


@given(st.integers(0, 40))
def test_pauses_double_up_to_the_longest(ends: int) -> None:
    first, longest = RESTART_S
    job = service(max_retries=1000, avoid=((A, NOW_MS), *((EVERY_CENTER, NOW_MS),) * ends))
    decision = restart(job)
    assert isinstance(decision, Again)
    assert decision.avoid_s == min(longest, first * 2**ends)
    assert decision.everywhere
