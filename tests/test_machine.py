"""The table of run states and events, pair by pair, and the laws that hold over any story of events."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from broker.core import events
from broker.core.events import (
    Accepted,
    DropSubmission,
    Event,
    Found,
    NewRun,
    NotFound,
    OutcomeUnknown,
    OweCollect,
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
    Start,
    StopRequested,
    Submit,
    SubmitRefused,
    WentSilent,
)
from broker.core.machine import InvalidTransition, Step, step
from broker.core.model import (
    LIVE_RUN_STATES,
    CenterId,
    FailureKind,
    JobFacts,
    JobId,
    JobRequest,
    JobState,
    Kind,
    OnLost,
    RemoteId,
    RunFacts,
    RunId,
    RunState,
    Stop,
    StopReason,
)

T0 = 1_800_000_000_000
LAG_S = 10
A = CenterId("a")
R = RemoteId("r-1")
S = RunState
ENDED = sorted(set(RunState) - LIVE_RUN_STATES)


def job(state: JobState = JobState.ACTIVE, **changes: Any) -> JobFacts:
    request = JobRequest(
        **{k: changes.pop(k) for k in ("on_lost", "max_retries", "max_run_time_s") if k in changes}
    )
    return JobFacts(id=JobId("j"), state=state, request=request, queued_ms=T0, **changes)


def run(state: RunState, **changes: Any) -> RunFacts:
    """A run as it usually is in that state: its remote id is known from PENDING on."""
    known = state not in (S.NEW, S.SUBMITTING, S.DOUBT)
    facts: dict[str, Any] = {
        "center": None if state is S.NEW else A,
        "remote": R if known else None,
        "not_after_ms": T0 - 60_000,
        "lookup_lag_s": LAG_S,
    }
    return RunFacts(id=RunId("bk-1"), job=JobId("j"), state=state, **{"attempt": 1, **facts, **changes})


def stopping(reason: StopReason) -> Stop:
    return Stop(reason, T0 - 1000)


EVENTS: dict[str, Event] = {
    "Placed": Placed(T0, A),
    "Accepted": Accepted(T0, R),
    "SubmitRefused": SubmitRefused(T0, FailureKind.REFUSED, "too large"),
    "OutcomeUnknown": OutcomeUnknown(T0, "no answer"),
    "Found": Found(T0, R),
    "NotFound": NotFound(T0),
    "SeenCreated": SeenCreated(T0, start_waiting=False),
    "SeenPending": SeenPending(T0),
    "SeenRunning": SeenRunning(T0),
    "SeenSucceeded": SeenSucceeded(T0),
    "SeenFailed": SeenFailed(T0, FailureKind.JOB, "exit code 1", exit_code=1),
    "SeenStopped": SeenStopped(T0),
    "SeenGone": SeenGone(T0),
    "WentSilent": WentSilent(T0),
    "StopRequested": StopRequested(T0, StopReason.CANCEL, claimed=True),
    "Resolved": Resolved(T0, never_ran=True),
}

# Rows: events in the order of EVENTS.  Columns: live states.  "=": same state, nothing to do.
# "miss": same state, the first "not found" is remembered.  "-": cannot happen.
COLUMNS = ("NEW", "SUBMITTING", "DOUBT", "PENDING", "RUNNING", "LOST")
MATRIX = """
Placed          SUBMITTING -          -          -          -          -
Accepted        -          PENDING    PENDING    =          =          =
SubmitRefused   -          FAILED     FAILED     FAILED     =          =
OutcomeUnknown  -          DOUBT      DOUBT      DOUBT      =          =
Found           -          -          PENDING    =          =          =
NotFound        -          -          miss       =          =          =
SeenCreated     -          -          PENDING    PENDING    =          PENDING
SeenPending     -          -          PENDING    PENDING    PENDING    PENDING
SeenRunning     -          -          RUNNING    RUNNING    RUNNING    RUNNING
SeenSucceeded   -          -          SUCCEEDED  SUCCEEDED  SUCCEEDED  SUCCEEDED
SeenFailed      -          -          FAILED     FAILED     FAILED     FAILED
SeenStopped     -          -          STOPPED    STOPPED    STOPPED    STOPPED
SeenGone        -          -          miss       miss       miss       =
WentSilent      -          =          =          LOST       LOST       =
StopRequested   STOPPED    SUBMITTING DOUBT      PENDING    RUNNING    LOST
Resolved        -          -          FAILED     -          -          FAILED
"""
EXPECTED = {
    (RunState(state), line.split()[0]): cell
    for line in MATRIX.strip().splitlines()
    for state, cell in zip(COLUMNS, line.split()[1:], strict=True)
}
LATE = {"Placed": "-", "Accepted": "dropped", "Found": "dropped"}  # with the remote id known already
EXPECTED |= {(state, name): LATE.get(name, "dropped") for state in ENDED for name in EVENTS}


def test_the_matrix_names_every_pair() -> None:
    assert set(EXPECTED) == set(itertools.product(RunState, EVENTS))
    assert set(EVENTS) == {each.__name__ for each in Event.__subclasses__()}


@pytest.mark.parametrize(("state", "name"), EXPECTED, ids=lambda part: str(part))
def test_every_pair_of_state_and_event(state: RunState, name: str) -> None:
    before, around = run(state), job(JobState.QUEUED if state is S.NEW else JobState.ACTIVE)
    expected, event = EXPECTED[state, name], EVENTS[name]
    if expected == "-":
        with pytest.raises(InvalidTransition):
            step(around, before, event)
        return
    after = step(around, before, event)
    assert after.dropped == (expected == "dropped")
    if expected in ("dropped", "="):
        assert after == Step(around, before, dropped=expected == "dropped")
    elif expected == "miss":
        assert after == Step(around, replace(before, missing_ms=T0))
    else:
        assert after.run.state == expected


def test_an_impossible_event_tells_its_story() -> None:
    with pytest.raises(InvalidTransition) as story:
        step(job(attempts=3), run(S.SUBMITTING, attempt=3), SeenRunning(T0))
    for part in ("SeenRunning", "bk-1", "SUBMITTING", "attempt 3", "job j", "ACTIVE"):
        assert part in str(story.value)


def test_a_run_of_another_job_is_refused() -> None:
    with pytest.raises(ValueError, match="bk-1 belongs to job j, not k"):
        step(replace(job(), id=JobId("k")), run(S.PENDING), SeenPending(T0))


# ---------------------------------------------------------------- variants


def test_placing_submits_and_accepting_starts_what_was_only_created() -> None:
    placed = step(job(JobState.QUEUED, message="waits"), run(S.NEW), Placed(T0, A))
    assert placed.commands == (Submit(),)
    assert (placed.job.state, placed.job.message, placed.run.center) == (JobState.ACTIVE, "", A)
    assert placed.run.submitted_ms == T0
    assert step(placed.job, placed.run, Accepted(T0, R)).commands == ()
    assert step(placed.job, placed.run, Accepted(T0, R, to_start=True)).commands == (Start(),)


def test_a_start_that_was_never_sent_is_sent_when_the_run_is_seen() -> None:
    """After a look-up by name or an operator's word; not while the outbox holds it."""
    created = SeenCreated(T0, start_waiting=False)
    for before in (run(S.PENDING), run(S.DOUBT, remote=R), run(S.LOST, lost_ms=T0)):
        after = step(job(), before, created)
        assert (after.run.state, after.run.lost_ms, after.commands) == (S.PENDING, None, (Start(),))
        assert step(job(), before, SeenCreated(T0)) == Step(job(), before)


def test_a_start_without_an_answer_is_sent_again_after_two_looks_and_no_sooner() -> None:
    doubtful = run(S.DOUBT, remote=R, start_sent_ms=T0 - 1, not_after_ms=T0)

    def created(at_ms: int) -> Event:
        return SeenCreated(at_ms, start_waiting=False)

    assert step(job(), doubtful, created(T0)) == Step(job(), doubtful)  # it may still leave
    first = step(job(), doubtful, created(T0 + 1))
    assert (first.run.state, first.commands) == (S.DOUBT, ())
    assert step(job(), first.run, created(T0 + LAG_S * 1000)).run == first.run
    second = step(job(), first.run, created(T0 + 1 + LAG_S * 1000))
    assert (second.run.state, second.commands, second.run.missing_ms) == (S.PENDING, (Start(),), None)
    pending = step(job(), first.run, SeenPending(T0 + LAG_S * 1000))
    assert (pending.run.state, pending.commands) == (S.PENDING, ())


def test_a_start_that_was_accepted_is_never_sent_again() -> None:
    accepted = run(S.PENDING, start_sent_ms=T0 - 1)
    late = SeenCreated(T0 + 10**9, start_waiting=False)
    assert step(job(), accepted, late) == Step(job(), accepted)


def test_a_stopped_run_that_was_only_created_has_ended() -> None:
    stop = stopping(StopReason.CANCEL)
    never_sent = step(job(), run(S.PENDING, stop=stop), SeenCreated(T0, start_waiting=False))
    assert (never_sent.run.state, never_sent.job.state) == (S.STOPPED, JobState.STOPPED)
    assert OweStop() in never_sent.commands, "nor does it stand there as what could be started"
    for state in (S.PENDING, S.DOUBT, S.LOST):
        sent = run(state, remote=R, stop=stop, start_sent_ms=T0 - 1, not_after_ms=T0)
        first = step(job(), sent, SeenCreated(T0 + 1, start_waiting=False))
        assert first.run.state is state  # the start may have come after the look
        second = step(job(), first.run, SeenCreated(T0 + 1 + LAG_S * 1000, start_waiting=False))
        assert (second.run.state, second.job.state) == (S.STOPPED, JobState.STOPPED)
        assert OweStop() in second.commands


@pytest.mark.parametrize("state", [S.PENDING, S.RUNNING, S.LOST])
def test_a_service_that_is_only_created_after_it_ran_has_ended(state: RunState) -> None:
    ran = run(state, started_ms=T0 - 60_000, start_sent_ms=T0 - 90_000)
    service = replace(job(), request=JobRequest(kind=Kind.ONLINE, max_retries=1))
    again = SeenCreated(T0 + LAG_S * 1000, start_waiting=False)
    first = step(service, ran, SeenCreated(T0, start_waiting=False))
    assert (first.run.state, first.run.missing_ms, first.commands) == (state, T0, ())  # it may be late
    assert step(service, first.run, SeenRunning(T0 + 1)).run.missing_ms is None
    second = step(service, first.run, again)
    assert (second.run.state, second.run.failure) == (S.FAILED, FailureKind.JOB)
    assert OweStop() in second.commands
    assert (second.job.state, second.job.retries_used) == (JobState.QUEUED, 1)
    for stopped in (service, job()):
        after = step(stopped, replace(first.run, stop=stopping(StopReason.CANCEL)), again)
        assert (after.run.state, after.job.state) == (S.STOPPED, JobState.STOPPED)


def test_a_job_that_runs_is_not_ended_by_the_word_for_what_was_never_started() -> None:
    """A platform may use it for what it does not know, too: what runs must not run twice."""
    ran = run(S.RUNNING, started_ms=T0 - 60_000, start_sent_ms=T0 - 90_000)
    assert step(job(), ran, SeenCreated(T0 + 10**9, start_waiting=False)) == Step(job(), ran)


@pytest.mark.parametrize("reason", StopReason)
def test_a_stop_meanwhile_is_owed_when_the_answer_comes(reason: StopReason) -> None:
    waiting = run(S.SUBMITTING, stop=stopping(reason))
    accepted = step(job(), waiting, Accepted(T0, R, to_start=True))
    assert accepted.commands == (OweStop(),)  # and it is not started
    assert accepted.run.state is S.PENDING
    assert step(job(), replace(waiting, state=S.DOUBT), Found(T0, R)).commands == (OweStop(),)
    resolved = step(job(), replace(waiting, state=S.DOUBT), Resolved(T0, remote=R))
    assert resolved.commands == (OweStop(),)


@pytest.mark.parametrize("reason", StopReason)
@pytest.mark.parametrize("state", sorted(LIVE_RUN_STATES))
def test_a_stop_of_a_live_run(state: RunState, reason: StopReason) -> None:
    around = job(JobState.QUEUED if state is S.NEW else JobState.ACTIVE)
    after = step(around, run(state), StopRequested(T0, reason))
    if state is S.NEW:
        assert (after.run.state is S.STOPPED) == (reason is StopReason.CANCEL)
        assert (after.job.state is JobState.STOPPED) == (reason is StopReason.CANCEL)
        return
    assert (after.run.state, after.run.stop, after.job.stop) == (state, Stop(reason, T0), Stop(reason, T0))
    known = state not in (S.SUBMITTING, S.DOUBT)
    assert after.commands == ((OweStop(),) if known else ())


@pytest.mark.parametrize(
    ("reason", "run_state", "job_state"),
    [
        (StopReason.CANCEL, S.STOPPED, JobState.STOPPED),
        (StopReason.PREEMPT, S.STOPPED, JobState.QUEUED),
        (StopReason.RECALL, S.STOPPED, JobState.QUEUED),
        (StopReason.DEADLINE, S.STOPPED, JobState.FAILED),
    ],
)
def test_a_stop_before_the_claim_ends_at_once(
    reason: StopReason, run_state: RunState, job_state: JobState
) -> None:
    after = step(job(), run(S.SUBMITTING), StopRequested(T0, reason, claimed=False))
    assert (after.run.state, after.job.state) == (run_state, job_state)
    assert DropSubmission() in after.commands
    assert (NewRun(2) in after.commands) == (job_state is JobState.QUEUED)
    assert after.job.retries_used == 0


def test_a_created_run_that_is_stopped_is_not_started() -> None:
    stopped = step(job(), run(S.PENDING), StopRequested(T0, StopReason.CANCEL, claimed=False))
    assert stopped.commands == (DropSubmission(), OweStop())
    given_back = step(stopped.job, stopped.run, StopRequested(T0, StopReason.CANCEL, claimed=False))
    assert given_back.commands == (DropSubmission(),)


def test_a_refused_start_leaves_nothing_at_the_center() -> None:
    after = step(job(), run(S.PENDING), SubmitRefused(T0, FailureKind.NO_CAPACITY, "full"))
    assert after.run.state is S.FAILED
    assert {OweStop(), NewRun(2)} <= set(after.commands)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(StopReason, StopReason)))
def test_a_stronger_stop_replaces_a_weaker_one(first: StopReason, second: StopReason) -> None:
    order = [StopReason.PREEMPT, StopReason.RECALL, StopReason.DEADLINE, StopReason.CANCEL]
    after = step(job(), run(S.RUNNING, stop=stopping(first)), StopRequested(T0, second))
    stronger = order.index(second) > order.index(first)
    assert after.run.stop == (Stop(second, T0) if stronger else stopping(first))
    assert after.commands == ((OweStop(),) if stronger else ())


STOPPED_AS = [
    (None, S.STOPPED, JobState.STOPPED, None),
    (StopReason.CANCEL, S.STOPPED, JobState.STOPPED, None),
    (StopReason.PREEMPT, S.STOPPED, JobState.QUEUED, None),
    (StopReason.RECALL, S.STOPPED, JobState.QUEUED, None),
    (StopReason.DEADLINE, S.FAILED, JobState.FAILED, FailureKind.DEADLINE),
]


@pytest.mark.parametrize("state", [S.DOUBT, S.PENDING, S.RUNNING, S.LOST])
@pytest.mark.parametrize(("reason", "run_state", "job_state", "failure"), STOPPED_AS)
def test_what_a_seen_stop_means(
    state: RunState,
    reason: StopReason | None,
    run_state: RunState,
    job_state: JobState,
    failure: FailureKind | None,
) -> None:
    before = run(state, remote=R, stop=stopping(reason) if reason else None)
    after = step(job(max_run_time_s=5), before, SeenStopped(T0))
    assert (after.run.state, after.job.state, after.run.failure) == (run_state, job_state, failure)
    assert OweCollect() in after.commands
    assert (NewRun(2) in after.commands) == (job_state is JobState.QUEUED)
    if reason is not None:  # a platform may call a stopped run failed, or deny that it ever was
        as_failed = step(job(max_run_time_s=5), before, SeenFailed(T0, FailureKind.JOB, "killed"))
        assert (as_failed.run.state, as_failed.job.state) == (run_state, job_state)
        missing = replace(before, missing_ms=T0 - LAG_S * 1000)
        as_gone = step(job(max_run_time_s=5), missing, SeenGone(T0))
        assert (as_gone.run.state, as_gone.job.state) == (run_state, job_state)


@pytest.mark.parametrize("reason", [None, *StopReason])
@pytest.mark.parametrize("state", [S.DOUBT, S.PENDING, S.RUNNING, S.LOST])
def test_success_beats_every_stop(state: RunState, reason: StopReason | None) -> None:
    before = run(state, remote=R, stop=stopping(reason) if reason else None, message="no answer")
    after = step(job(), before, SeenSucceeded(T0, T0 - 5000, T0 - 1000))
    assert (after.run.state, after.job.state) == (S.SUCCEEDED, JobState.SUCCEEDED)
    assert (after.run.started_ms, after.run.ended_ms, after.run.exit_code) == (T0 - 5000, T0 - 1000, 0)
    assert after.commands == (OweCollect(),)
    assert after.run.message == after.job.message == ""


@pytest.mark.parametrize("event", [SeenGone(T0), WentSilent(T0)])
@pytest.mark.parametrize(
    ("on_lost", "run_state", "job_state"),
    [
        (OnLost.WAIT, S.LOST, JobState.ACTIVE),
        (OnLost.RERUN, S.ABANDONED, JobState.QUEUED),
        (OnLost.FAIL, S.FAILED, JobState.FAILED),
    ],
)
def test_what_a_lost_run_leads_to(
    event: Event, on_lost: OnLost, run_state: RunState, job_state: JobState
) -> None:
    before = run(S.RUNNING, missing_ms=T0 - LAG_S * 1000)
    after = step(job(on_lost=on_lost), before, event)
    assert (after.run.state, after.job.state) == (run_state, job_state)
    assert (OweStop() in after.commands) == (on_lost is not OnLost.WAIT)
    assert after.job.retries_used == 0
    being_stopped = step(job(on_lost=on_lost), replace(before, stop=stopping(StopReason.CANCEL)), event)
    assert being_stopped.run.state is (S.LOST if isinstance(event, WentSilent) else S.STOPPED)


def test_a_lost_run_that_was_asked_to_stop_ends_when_it_is_gone() -> None:
    lost = run(S.LOST, stop=stopping(StopReason.CANCEL))
    first = step(job(), lost, SeenGone(T0))
    assert (first.run.state, first.run.missing_ms) == (S.LOST, T0)
    second = step(job(), first.run, SeenGone(T0 + LAG_S * 1000))
    assert (second.run.state, second.job.state) == (S.STOPPED, JobState.STOPPED)


@pytest.mark.parametrize("state", [S.LOST, S.DOUBT])
@pytest.mark.parametrize("event", [SeenPending(T0), SeenRunning(T0)])
def test_a_run_that_comes_back_owes_its_stop_again(state: RunState, event: Event) -> None:
    back = step(job(), run(state, remote=R, lost_ms=T0, stop=stopping(StopReason.CANCEL)), event)
    assert back.commands == (OweStop(),)
    assert back.run.lost_ms is None


def test_not_found_counts_only_twice_and_late_enough() -> None:
    doubtful = run(S.DOUBT, not_after_ms=T0)
    early = step(job(), doubtful, NotFound(T0))
    assert early == Step(job(), doubtful)  # the call may still be under way
    first = step(job(), doubtful, NotFound(T0 + 1))
    assert first.run.missing_ms == T0 + 1
    too_soon = step(job(), first.run, NotFound(T0 + LAG_S * 1000))
    assert too_soon.run == first.run
    second = step(job(), first.run, NotFound(T0 + 1 + LAG_S * 1000))
    assert (second.run.failure, second.job.state) == (FailureKind.NEVER_ARRIVED, JobState.QUEUED)
    assert second.commands == (NewRun(2),)
    assert second.job.avoid[0][0] == A


def test_a_sighting_takes_a_miss_back() -> None:
    for event in (SeenPending(T0), SeenRunning(T0)):
        assert step(job(), run(S.PENDING, missing_ms=T0 - 999_999), event).run.missing_ms is None


@pytest.mark.parametrize("state", ENDED)
@pytest.mark.parametrize("event", [Accepted(T0, R), Found(T0, R)])
def test_a_run_that_arrives_after_its_end_is_stopped(state: RunState, event: Event) -> None:
    after = step(job(), run(state, remote=None), event)
    assert after == Step(job(), run(state, remote=R), (OweStop(),))


@pytest.mark.parametrize(
    ("verdict", "run_state", "job_state"),
    [
        ({"never_ran": True}, S.FAILED, JobState.QUEUED),
        ({"remote": R}, S.PENDING, JobState.ACTIVE),
        ({"ended": S.SUCCEEDED}, S.SUCCEEDED, JobState.SUCCEEDED),
        ({"ended": S.FAILED}, S.FAILED, JobState.FAILED),
        ({"ended": S.STOPPED}, S.STOPPED, JobState.STOPPED),
    ],
)
@pytest.mark.parametrize("state", [S.DOUBT, S.LOST])
def test_an_operators_word(
    state: RunState, verdict: dict[str, Any], run_state: RunState, job_state: JobState
) -> None:
    after = step(job(), run(state), Resolved(T0, **verdict))
    assert (after.run.state, after.job.state) == (run_state, job_state)
    cancelled = step(
        job(stop=stopping(StopReason.CANCEL)),
        run(state, stop=stopping(StopReason.CANCEL)),
        Resolved(T0, **verdict),
    )
    if run_state is S.SUCCEEDED:
        assert cancelled.job.state is JobState.SUCCEEDED
    elif run_state.live:
        assert cancelled.commands == (OweStop(),)
    else:
        assert cancelled.job.state is JobState.STOPPED


def test_every_command_is_known_to_the_store() -> None:
    assert set(events.Command.__args__) == {Submit, Start, DropSubmission, OweStop, OweCollect, NewRun}
