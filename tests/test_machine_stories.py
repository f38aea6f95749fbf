"""The laws of runs and jobs, over any story of events."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.events import (
    Accepted,
    Event,
    Found,
    NewRun,
    NotFound,
    OutcomeUnknown,
    OweStop,
    Placed,
    Resolved,
    SeenCreated,
    SeenFailed,
    SeenGone,
    SeenPending,
    SeenRunning,
    SeenStopped,
    SeenSucceeded,
    StopRequested,
    Submit,
    SubmitRefused,
    WentSilent,
)
from broker.core.machine import InvalidTransition, Step, step
from broker.core.model import (
    CenterId,
    FailureKind,
    JobFacts,
    JobId,
    JobRequest,
    JobState,
    OnLost,
    RemoteId,
    RunFacts,
    RunId,
    RunState,
    StopReason,
)

T0 = 1_800_000_000_000
LAG_S = 10
A = CenterId("a")
R = RemoteId("r-1")
S = RunState


KINDS_THAT_END_A_JOB = {FailureKind.JOB, FailureKind.COMMAND, FailureKind.LOST, FailureKind.DEADLINE}
REFUSALS = (FailureKind.NO_CAPACITY, FailureKind.REFUSED, FailureKind.DENIED)
ENDS = (FailureKind.JOB, FailureKind.COMMAND, FailureKind.EVICTED, FailureKind.HOST)


@dataclass
class Story:
    """A job and its runs under events, with the commands carried out as the store does."""

    job: JobFacts
    runs: list[RunFacts]
    owed: set[RunId] = field(default_factory=set)
    misses: dict[RunId, list[int]] = field(default_factory=dict)

    def tell(self, at: int, event: Event) -> None:
        before_job, before = self.job, self.runs[at]
        try:
            after = step(before_job, before, event)
        except InvalidTransition:
            return
        if isinstance(event, NotFound) and event.at_ms > before.not_after_ms:
            self.misses.setdefault(before.id, []).append(event.at_ms)
        self.check(before_job, before, event, after)
        self.job, self.runs[at] = after.job, after.run
        if before.state.live and not after.run.state.live:
            self.owed.discard(before.id)
        for command in after.commands:
            match command:
                case Submit():
                    self.runs[at] = replace(after.run, not_after_ms=event.at_ms + 30_000, lookup_lag_s=LAG_S)
                case OweStop():
                    self.owed.add(before.id)
                case NewRun(attempt):
                    self.runs.append(RunFacts(RunId(f"bk-{attempt}"), self.job.id, attempt, S.NEW))
        self.check_all()

    def check(self, before_job: JobFacts, before: RunFacts, event: Event, after: Step) -> None:
        if not before.state.live:
            assert after.run.state is before.state, "an ended run changed"
            assert after.job == before_job, "an ended run changed its job"
        if before_job.state.ended:
            assert after.job == before_job, "an ended job changed"
        new = [c for c in after.commands if isinstance(c, NewRun)]
        assert bool(new) == (after.job.attempts > before_job.attempts)
        if new:
            assert after.job.state is JobState.QUEUED
            assert new == [NewRun(before_job.attempts + 1)]
        elif before_job.state is JobState.ACTIVE:
            assert after.job.state is not JobState.QUEUED
        stop = after.run.stop.reason if after.run.stop else None
        if after.job.retries_used != before_job.retries_used:
            assert stop is None, "a stop spent a retry"
            assert after.run.failure is FailureKind.JOB
        if after.job.state.ended and not before_job.state.ended:
            assert not after.run.state.live
            if stop is StopReason.CANCEL:
                succeeded = after.run.state is S.SUCCEEDED
                assert after.job.state is (JobState.SUCCEEDED if succeeded else JobState.STOPPED)
            if after.job.state is JobState.FAILED and stop is not StopReason.DEADLINE:
                assert after.run.failure in KINDS_THAT_END_A_JOB
        if stop is StopReason.CANCEL:
            assert not new, "a cancelled job goes on"
        if (
            after.run.failure is FailureKind.NEVER_ARRIVED
            and isinstance(event, NotFound)
            and before.state.live
        ):
            seen = self.misses[before.id]
            assert seen[-1] - seen[0] >= LAG_S * 1000
            assert min(seen) > before.not_after_ms

    def check_all(self) -> None:
        live = [r for r in self.runs if r.state.live]
        assert len(live) == (0 if self.job.state.ended else 1)
        for each in live:
            if each.stop is not None and each.remote is not None:
                assert each.id in self.owed, f"no stop is owed for {each}"
            assert (each.state is S.NEW) == (self.job.state is JobState.QUEUED)


VERDICTS: list[dict[str, Any]] = [
    {"never_ran": True},
    {"remote": R},
    *({"ended": state} for state in (S.SUCCEEDED, S.FAILED, S.STOPPED)),
]


def _events() -> st.SearchStrategy[Any]:
    """Functions from a time to an event."""
    kinds = [
        st.just(lambda t: Placed(t, A)),
        st.booleans().map(lambda to_start: lambda t: Accepted(t, R, to_start)),
        st.sampled_from(REFUSALS).map(lambda kind: lambda t: SubmitRefused(t, kind, "no")),
        st.just(lambda t: OutcomeUnknown(t, "silence")),
        st.just(lambda t: Found(t, R)),
        st.just(NotFound),
        st.booleans().map(lambda waiting: lambda t: SeenCreated(t, start_waiting=waiting)),
        st.just(SeenPending),
        st.just(SeenRunning),
        st.just(SeenSucceeded),
        st.sampled_from(ENDS).map(lambda kind: lambda t: SeenFailed(t, kind, "failed")),
        st.just(SeenStopped),
        st.just(SeenGone),
        st.just(WentSilent),
        st.tuples(st.sampled_from(StopReason), st.booleans()).map(
            lambda pair: lambda t: StopRequested(t, pair[0], claimed=pair[1])
        ),
        st.sampled_from(VERDICTS).map(lambda verdict: lambda t: Resolved(t, **verdict)),
    ]
    return st.one_of(kinds)


STORIES = st.lists(
    st.tuples(st.sampled_from([0, 1, 5, 40]), st.sampled_from([-1, -1, -1, 0]), _events()), max_size=25
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    story=STORIES,
    on_lost=st.sampled_from(OnLost),
    max_retries=st.integers(0, 2),
)
def test_the_laws_hold_in_any_story(story: Any, on_lost: OnLost, max_retries: int) -> None:
    request = JobRequest(on_lost=on_lost, max_retries=max_retries)
    around = JobFacts(id=JobId("j"), state=JobState.QUEUED, request=request, queued_ms=T0)
    told = Story(around, [RunFacts(RunId("bk-1"), around.id, 1, S.NEW)])
    now = T0
    for pause_s, at, make in [(0, -1, lambda t: Placed(t, A)), *story]:
        now += pause_s * 1000
        told.tell(at if at >= 0 else len(told.runs) - 1, make(now))
    assert told.job.retries_used <= max_retries
