"""What a failure leads to: who pays for the next attempt, and how long a center is avoided."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.model import CenterId, FailureKind, JobFacts, JobId, JobRequest, JobState
from broker.core.retry import AVOID_S, Again, GiveUp, avoiding, debt_pause_s, decide

T0 = 1_800_000_000_000
A, B = CenterId("a"), CenterId("b")
HOUR_MS = 3_600_000


def job(*, max_retries: int = 0, **changes: Any) -> JobFacts:
    return JobFacts(JobId("j"), JobState.ACTIVE, JobRequest(max_retries=max_retries), T0, **changes)


@pytest.mark.parametrize(
    ("used", "allowed", "again"), [(0, 0, False), (0, 1, True), (1, 1, False), (1, 2, True)]
)
def test_only_its_own_failures_spend_the_retries_of_a_job(used: int, allowed: int, again: bool) -> None:
    decision = decide(job(max_retries=allowed, retries_used=used), FailureKind.JOB)
    assert decision == (Again(spends_retry=True, avoid_s=0) if again else GiveUp())


@pytest.mark.parametrize("kind", [FailureKind.COMMAND, FailureKind.LOST, FailureKind.DEADLINE])
def test_what_another_attempt_cannot_mend_ends_the_job(kind: FailureKind) -> None:
    assert decide(job(max_retries=9), kind) == GiveUp()


@pytest.mark.parametrize(
    ("kind", "first_s", "longest_s"),
    [
        (FailureKind.NO_CAPACITY, 30, 600),
        (FailureKind.HOST, 60, 3600),
        (FailureKind.EVICTED, 0, 0),
        (FailureKind.NEVER_ARRIVED, 60, 3600),
        (FailureKind.DENIED, 600, 3600),
        (FailureKind.REFUSED, 86_400, 86_400),
    ],
)
def test_what_a_center_caused_is_free_and_keeps_away_longer_each_time(
    kind: FailureKind, first_s: int, longest_s: int
) -> None:
    waits = []
    for remembered in range(12):
        decision = decide(job(avoid=tuple((A, T0 + i) for i in range(remembered))), kind)
        assert isinstance(decision, Again)
        assert not decision.spends_retry
        waits.append(decision.avoid_s)
    assert (waits[0], waits[-1]) == (first_s, longest_s)
    assert waits == sorted(waits)


def test_every_kind_of_failure_is_decided() -> None:
    for kind in FailureKind:
        assert isinstance(decide(job(), kind), Again | GiveUp)
    assert set(AVOID_S) == set(FailureKind) - {
        FailureKind.JOB,
        FailureKind.COMMAND,
        FailureKind.LOST,
        FailureKind.DEADLINE,
    }


def test_a_refusal_is_remembered_for_an_hour_after_it_has_expired() -> None:
    refused = job(avoid=((A, T0),))
    assert avoiding(refused, B, avoid_s=30, now_ms=T0) == ((A, T0), (B, T0 + 30_000))
    assert avoiding(refused, B, avoid_s=30, now_ms=T0 + HOUR_MS) == ((B, T0 + HOUR_MS + 30_000),)
    assert avoiding(refused, B, avoid_s=0, now_ms=T0 + HOUR_MS - 1) == ((A, T0),)
    assert avoiding(refused, None, avoid_s=30, now_ms=T0 + 1) == ((A, T0),)


@given(st.integers(0, 10**6))
def test_a_debt_is_tried_again_ever_more_slowly_and_never_given_time_off(tries: int) -> None:
    assert 1 <= debt_pause_s(tries) <= debt_pause_s(tries + 1) <= 300
    assert debt_pause_s(0) == 1
