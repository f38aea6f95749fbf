"""The life of a run and its job, as one table: `step(job, run, event)` gives the changes.

What belongs here: what each event changes in each state, and nothing that acts.  What does not:
events and commands themselves (core/events.py).  A pair of state and event that is not in the table
raises InvalidTransition with the story.  Who moves a state out is said in model.RunState.  The store
writes what a step returns in one transaction, guarded by the run's state and the leader's epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from broker.core.events import (
    Accepted,
    Command,
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
from broker.core.model import (
    EVERY_CENTER,
    STOP_STRENGTH,
    CenterId,
    FailureKind,
    JobFacts,
    JobState,
    OnLost,
    RunFacts,
    RunState,
    Stop,
    StopReason,
)
from broker.core.retry import Again, Decision, avoiding, decide, restart


@dataclass(frozen=True, slots=True)
class Step:
    """What one event changes.  `dropped`: an event of a run that is over; log it, write nothing."""

    job: JobFacts
    run: RunFacts
    commands: tuple[Command, ...] = ()
    dropped: bool = False


class InvalidTransition(Exception):
    """An event that cannot happen in this state: a defect, told with its story."""

    def __init__(self, job: JobFacts, run: RunFacts, event: Event) -> None:
        super().__init__(
            f"{type(event).__name__} cannot happen to run {run.id} in {run.state}"
            f" (attempt {run.attempt} of job {job.id} in {job.state}): {event}"
        )


# ---------------------------------------------------------------- handlers


def _end(
    job: JobFacts,
    run: RunFacts,
    state: RunState,
    at_ms: int,
    *commands: Command,
    failure: FailureKind | None = None,
    message: str = "",
) -> Step:
    """The run ends as `state`; what becomes of the job follows from it, the stop and retry.decide."""
    run = replace(
        run,
        state=state,
        failure=failure,
        message=message or run.message,
        ended_ms=run.ended_ms or at_ms,
    )
    if run.remote is not None:
        commands = (*commands, OweCollect())

    def ended(job_state: JobState) -> Step:
        text = "" if job_state is JobState.SUCCEEDED else run.message
        over = replace(job, state=job_state, ended_ms=run.ended_ms, message=text)
        return Step(over, run, commands)

    def again(*, spends_retry: bool, avoid_s: int, away_from: CenterId | None = run.center) -> Step:
        attempt = job.attempts + 1
        waiting = replace(
            job,
            state=JobState.QUEUED,
            attempts=attempt,
            retries_used=job.retries_used + spends_retry,
            avoid=avoiding(job, away_from, avoid_s=avoid_s, now_ms=at_ms),
            stop=None,
            message=run.message,
        )
        return Step(waiting, run, (*commands, NewRun(attempt)))

    def decided(decision: Decision, over: JobState) -> Step:
        match decision:
            case Again(spends_retry=spends, avoid_s=avoid_s, everywhere=everywhere):
                away_from = EVERY_CENTER if everywhere else run.center
                return again(spends_retry=spends, avoid_s=avoid_s, away_from=away_from)
        return ended(over)

    if state is RunState.SUCCEEDED and job.request.endless:
        return decided(restart(job), JobState.SUCCEEDED)
    if state is RunState.SUCCEEDED:
        return ended(JobState.SUCCEEDED)
    reason = run.stop.reason if run.stop else None
    if reason is StopReason.CANCEL:
        return ended(JobState.STOPPED)
    if reason is StopReason.DEADLINE:
        return ended(JobState.FAILED)
    if reason in (StopReason.PREEMPT, StopReason.RECALL) or state is RunState.ABANDONED:
        return again(spends_retry=False, avoid_s=0)
    if state is RunState.STOPPED:  # somebody stopped it at the center
        return ended(JobState.STOPPED)
    assert failure is not None, "a failed run has a kind"
    return decided(decide(job, failure), JobState.FAILED)


def _stop_owed(run: RunFacts) -> tuple[Command, ...]:
    return (OweStop(),) if run.stop is not None and run.remote is not None else ()


def _drop(job: JobFacts, run: RunFacts, _event: Event) -> Step:
    return Step(job, run, dropped=True)


def _nothing(job: JobFacts, run: RunFacts, _event: Event) -> Step:
    """The run is further than the event: there is nothing to change."""
    return Step(job, run)


def _placed(job: JobFacts, run: RunFacts, event: Placed) -> Step:
    return Step(
        replace(job, state=JobState.ACTIVE, message=""),
        replace(run, state=RunState.SUBMITTING, center=event.center, submitted_ms=event.at_ms),
        (Submit(),),
    )


def _accepted(job: JobFacts, run: RunFacts, event: Accepted) -> Step:
    run = replace(run, state=RunState.PENDING, remote=event.remote, missing_ms=None)
    if run.stop is not None:
        return Step(job, run, (OweStop(),))
    return Step(job, run, (Start(),) if event.to_start else ())


def _arrived_late(job: JobFacts, run: RunFacts, event: Accepted | Found) -> Step:
    """A run that was proven not to exist turns up after all: it must not go on running."""
    if run.remote is not None:
        return _drop(job, run, event)
    return Step(job, replace(run, remote=event.remote), (OweStop(),))


def _refused(job: JobFacts, run: RunFacts, event: SubmitRefused) -> Step:
    """A run that was created and is not started (two phases) must not stay at the center."""
    owed = () if run.remote is None else (OweStop(),)
    return _end(job, run, RunState.FAILED, event.at_ms, *owed, failure=event.failure, message=event.message)


def _doubtful(job: JobFacts, run: RunFacts, event: OutcomeUnknown) -> Step:
    return Step(job, replace(run, state=RunState.DOUBT, message=event.message))


def _found(job: JobFacts, run: RunFacts, event: Found) -> Step:
    run = replace(run, state=RunState.PENDING, remote=event.remote, missing_ms=None, message="")
    return Step(job, run, _stop_owed(run))


def _second_miss(run: RunFacts, at_ms: int) -> bool:
    """Law 2: "not found" counts only twice, `lookup_lag_s` apart."""
    return run.missing_ms is not None and at_ms - run.missing_ms >= run.lookup_lag_s * 1000


def _not_found(job: JobFacts, run: RunFacts, event: NotFound) -> Step:
    if event.at_ms <= run.not_after_ms:
        return Step(job, run)
    if not _second_miss(run, event.at_ms):
        return Step(job, replace(run, missing_ms=run.missing_ms or event.at_ms))
    return _end(
        job,
        run,
        RunState.FAILED,
        event.at_ms,
        failure=FailureKind.NEVER_ARRIVED,
        message="the center answered twice that it never got this run",
    )


def _seen_created(job: JobFacts, run: RunFacts, event: SeenCreated) -> Step:
    """Two phases.  A start is sent when none ever was; again only after two looks, both later than
    the last one can have left, say that the run has not been started (laws 1 and 2)."""
    if event.start_waiting:  # under way
        return Step(job, run)
    if run.started_ms is not None and (run.stop is not None or job.request.endless):
        return _created_after_start(job, run, event)
    if run.state is RunState.RUNNING:  # an answer that is late, or the word for what is not known
        return Step(job, run)
    never_sent = run.start_sent_ms is None
    if run.stop is None and run.state is not RunState.DOUBT:
        created = replace(run, state=RunState.PENDING, missing_ms=None, lost_ms=None)
        return Step(job, created, (Start(),) if never_sent else ())
    if not never_sent:
        if event.at_ms <= run.not_after_ms:
            return Step(job, run)
        if not _second_miss(run, event.at_ms):
            return Step(job, replace(run, missing_ms=run.missing_ms or event.at_ms))
    if run.stop is not None:  # nothing of it runs or is started any more, nor is it left standing there
        return _stopped(job, run, event.at_ms, OweStop())
    return Step(job, replace(run, state=RunState.PENDING, missing_ms=None, message=""), (Start(),))


def _created_after_start(job: JobFacts, run: RunFacts, event: SeenCreated) -> Step:
    """Some platforms call what is no longer started as what never was.  One look may be an answer that
    is late; two say that the run has ended, and a service without a stop of ours by itself.  It is
    stopped all the same: the word is no proof that nothing of it is left."""
    if not _second_miss(run, event.at_ms):
        return Step(job, replace(run, missing_ms=run.missing_ms or event.at_ms))
    if run.stop is not None:
        return _stopped(job, run, event.at_ms)
    message = "the center took it out of service: it had started, and is no longer started"
    return _end(job, run, RunState.FAILED, event.at_ms, OweStop(), failure=FailureKind.JOB, message=message)


def _seen_pending(job: JobFacts, run: RunFacts, event: SeenPending) -> Step:
    seen = replace(run, state=RunState.PENDING, missing_ms=None, lost_ms=None)
    return Step(job, replace(seen, message=event.message), _recovered(run))


def _seen_running(job: JobFacts, run: RunFacts, event: SeenRunning) -> Step:
    seen = replace(
        run,
        state=RunState.RUNNING,
        started_ms=event.started_ms or run.started_ms or event.at_ms,
        missing_ms=None,
        lost_ms=None,
        message="",
    )
    return Step(job, seen, _recovered(run))


def _recovered(run: RunFacts) -> tuple[Command, ...]:
    """A run that comes back from LOST or DOUBT with a stop pending owes that stop again."""
    return _stop_owed(run) if run.state in (RunState.LOST, RunState.DOUBT) else ()


def _times(run: RunFacts, event: SeenSucceeded | SeenFailed | SeenStopped) -> RunFacts:
    return replace(
        run,
        started_ms=event.started_ms or run.started_ms,
        ended_ms=event.ended_ms or event.at_ms,
        missing_ms=None,
        lost_ms=None,
    )


def _seen_succeeded(job: JobFacts, run: RunFacts, event: SeenSucceeded) -> Step:
    """Finished with success beats a stop in flight; but a service only ever ends by one."""
    run = replace(_times(run, event), exit_code=0, message="")
    if job.request.endless and run.stop is not None:
        return _stopped(job, run, event.at_ms)
    return _end(job, run, RunState.SUCCEEDED, event.at_ms)


def _seen_failed(job: JobFacts, run: RunFacts, event: SeenFailed) -> Step:
    run = replace(_times(run, event), exit_code=event.exit_code)
    if run.stop is not None:  # killed by our stop; the platform calls it a failure
        return _stopped(job, run, event.at_ms)
    return _end(job, run, RunState.FAILED, event.at_ms, failure=event.failure, message=event.message)


def _seen_stopped(job: JobFacts, run: RunFacts, event: SeenStopped) -> Step:
    run = _times(run, event)
    if run.stop is not None:
        return _stopped(job, run, event.at_ms)
    message = event.message or "stopped at the center"
    return _end(job, run, RunState.STOPPED, event.at_ms, message=message)


def _stopped(job: JobFacts, run: RunFacts, at_ms: int, *commands: Command) -> Step:
    """A stop of ours is confirmed."""
    assert run.stop is not None
    if run.stop.reason is StopReason.DEADLINE:
        limit = job.request.max_run_time_s
        return _end(
            job,
            run,
            RunState.FAILED,
            at_ms,
            *commands,
            failure=FailureKind.DEADLINE,
            message=f"ran longer than maxRunTime ({limit} s)",
        )
    return _end(job, run, RunState.STOPPED, at_ms, *commands, message=f"stopped: {run.stop.reason}")


def _seen_gone(job: JobFacts, run: RunFacts, event: SeenGone) -> Step:
    if not _second_miss(run, event.at_ms):
        return Step(job, replace(run, missing_ms=run.missing_ms or event.at_ms))
    if run.stop is not None:
        return _stopped(job, run, event.at_ms)
    return _lose(job, run, event.at_ms, "the center says that this run does not exist")


def _gone_while_lost(job: JobFacts, run: RunFacts, event: SeenGone) -> Step:
    """LOST does not expire by itself, but a run that was asked to stop and is gone has stopped."""
    return Step(job, run) if run.stop is None else _seen_gone(job, run, event)


def _silent(job: JobFacts, run: RunFacts, event: WentSilent) -> Step:
    return _lose(job, run, event.at_ms, "the center is silent")


def _lose(job: JobFacts, run: RunFacts, at_ms: int, message: str) -> Step:
    lost = replace(run, state=RunState.LOST, lost_ms=at_ms, message=message)
    if run.stop is not None or job.request.on_lost is OnLost.WAIT:
        return Step(job, lost)
    if job.request.on_lost is OnLost.RERUN:
        return _end(job, lost, RunState.ABANDONED, at_ms, OweStop())
    return _end(job, lost, RunState.FAILED, at_ms, OweStop(), failure=FailureKind.LOST)


def _stop_new(job: JobFacts, run: RunFacts, event: StopRequested) -> Step:
    if event.reason is not StopReason.CANCEL:
        return Step(job, run)  # nothing of it is anywhere
    stop = Stop(event.reason, event.at_ms)
    run = replace(run, stop=stop)
    return _end(replace(job, stop=stop), run, RunState.STOPPED, event.at_ms)


def _stop_submitting(job: JobFacts, run: RunFacts, event: StopRequested) -> Step:
    if event.claimed:
        return _stop_live(job, run, event)
    stop = Stop(event.reason, event.at_ms)
    job, run = replace(job, stop=stop), replace(run, stop=stop)
    return _end(job, run, RunState.STOPPED, event.at_ms, DropSubmission())


def _stop_live(job: JobFacts, run: RunFacts, event: StopRequested) -> Step:
    # A created run whose start nobody has claimed must not be started any more.
    dropped = () if event.claimed else (DropSubmission(),)
    if run.stop and STOP_STRENGTH[run.stop.reason] >= STOP_STRENGTH[event.reason]:
        return Step(job, run, dropped)
    stop = Stop(event.reason, event.at_ms)
    run = replace(run, stop=stop)
    return Step(replace(job, stop=stop), run, (*dropped, *_stop_owed(run)))


def _resolved(job: JobFacts, run: RunFacts, event: Resolved) -> Step:
    if event.remote is not None:
        return _found(job, replace(run, lost_ms=None), Found(event.at_ms, event.remote))
    if event.never_ran:
        return _end(
            job,
            run,
            RunState.FAILED,
            event.at_ms,
            failure=FailureKind.NEVER_ARRIVED,
            message="an operator says that it never ran",
        )
    assert event.ended is not None
    failure = FailureKind.JOB if event.ended is RunState.FAILED else None
    return _end(
        job,
        run,
        event.ended,
        event.at_ms,
        failure=failure,
        message=f"an operator says that it ended as {event.ended}",
    )


# ---------------------------------------------------------------- the table

E = TypeVar("E", bound=Event)
Handler = Callable[[JobFacts, RunFacts, E], Step]
_TABLE: dict[tuple[RunState, type[Event]], Callable[[JobFacts, RunFacts, Event], Step]] = {}


def _on(event: type[E], handler: Handler[E], *states: RunState) -> None:
    for state in states:
        _TABLE[state, event] = handler  # type: ignore[assignment]


_ENDED = (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED, RunState.ABANDONED)
_KNOWN = (RunState.DOUBT, RunState.PENDING, RunState.RUNNING, RunState.LOST)

for _event in (
    OutcomeUnknown,
    NotFound,
    SubmitRefused,
    SeenCreated,
    SeenPending,
    SeenRunning,
    SeenSucceeded,
    SeenFailed,
    SeenStopped,
    SeenGone,
    WentSilent,
    StopRequested,
    Resolved,
):
    _on(_event, _drop, *_ENDED)
_on(Accepted, _arrived_late, *_ENDED)
_on(Found, _arrived_late, *_ENDED)
_on(Placed, _placed, RunState.NEW)
_on(Accepted, _accepted, RunState.SUBMITTING, RunState.DOUBT)
_on(SubmitRefused, _refused, RunState.SUBMITTING, RunState.DOUBT, RunState.PENDING)
_on(OutcomeUnknown, _doubtful, RunState.SUBMITTING, RunState.DOUBT, RunState.PENDING)
# Tracking may see a run before the answer to its start comes, or does not come.
_on(Accepted, _nothing, RunState.PENDING, RunState.RUNNING, RunState.LOST)
_on(SubmitRefused, _nothing, RunState.RUNNING, RunState.LOST)
_on(OutcomeUnknown, _nothing, RunState.RUNNING, RunState.LOST)
_on(Found, _found, RunState.DOUBT)
_on(Found, _nothing, RunState.PENDING, RunState.RUNNING, RunState.LOST)
_on(NotFound, _not_found, RunState.DOUBT)
_on(NotFound, _nothing, RunState.PENDING, RunState.RUNNING, RunState.LOST)
_on(SeenCreated, _seen_created, *_KNOWN)
_on(SeenPending, _seen_pending, *_KNOWN)
_on(SeenRunning, _seen_running, *_KNOWN)
_on(SeenSucceeded, _seen_succeeded, *_KNOWN)
_on(SeenFailed, _seen_failed, *_KNOWN)
_on(SeenStopped, _seen_stopped, *_KNOWN)
_on(SeenGone, _seen_gone, RunState.DOUBT, RunState.PENDING, RunState.RUNNING)
_on(SeenGone, _gone_while_lost, RunState.LOST)
_on(WentSilent, _silent, RunState.PENDING, RunState.RUNNING)
_on(WentSilent, _nothing, RunState.SUBMITTING, RunState.DOUBT, RunState.LOST)
_on(StopRequested, _stop_new, RunState.NEW)
_on(StopRequested, _stop_submitting, RunState.SUBMITTING)
_on(StopRequested, _stop_live, *_KNOWN)
_on(Resolved, _resolved, RunState.DOUBT, RunState.LOST)


def step(job: JobFacts, run: RunFacts, event: Event) -> Step:
    """What `event` changes in `job` and its `run`.

    Raises InvalidTransition for a pair that is not in the table, ValueError when `run` is not a run
    of `job`.
    """
    if run.job != job.id:
        raise ValueError(f"run {run.id} belongs to job {run.job}, not {job.id}")
    handler = _TABLE.get((run.state, type(event)))
    if handler is None:
        raise InvalidTransition(job, run, event)
    return handler(job, run, event)
