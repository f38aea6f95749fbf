"""Runs: every change of a run goes through `advance`, which asks core.machine.

What belongs here: applying steps and their commands, and what tracking reads.  What does not: calls
to be made (outbox.py) and what is owed to centers afterwards (debts.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import delete, func, union_all, update
from sqlalchemy import select as columns_of
from sqlmodel import Session, col, select

from broker.core import events, machine
from broker.core.events import DropSubmission, NewRun, OweCollect, OweStop, Start, StopRequested, Submit
from broker.core.identity import run_id
from broker.core.machine import Step
from broker.core.model import (
    CenterId,
    FailureKind,
    Health,
    JobFacts,
    JobId,
    JobState,
    OnLost,
    RemoteId,
    RunFacts,
    RunId,
    RunState,
    Stop,
    StopReason,
    TenantId,
    public_status,
)
from broker.reports import storable
from broker.store import forecasts, learned, meters, preemptors
from broker.store.codec import request_from_json
from broker.store.writer import Rejected, Tx
from broker.tables import Center, Job, Outbox, Pool, Reservation, Run, Setting
from broker.tables.columns import table
from broker.tables.jobs import run_lives

PREFIX = "name_prefix"
"""Setting: the broker's name, first part of every run id."""

WATCH_S = 24 * 3600
"""A run that was proven not to have arrived is looked for that much longer."""

ROWS_AT_ONCE = 5000
"""Of the runs of a center that are looked at."""

SUBMIT, START = "submit", "start"


class PrefixChanged(Rejected):
    """The broker's name cannot change while runs live under the old one."""


class NoSuchRun(Rejected):
    """No run of that id."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A run that tracking looks at."""

    run: RunId
    job: JobId
    center: CenterId
    state: RunState
    remote: RemoteId | None
    nodes: int
    started_ms: int | None
    not_after_ms: int
    lookup_lag_s: int
    max_run_time_s: int | None
    stop: StopReason | None
    logs_wanted_ms: int | None
    on_lost: OnLost
    missing_ms: int | None
    start_sent: bool  # two phases: a start has been claimed
    address: str
    checkpoint_ms: int | None


def job_facts(row: Job) -> JobFacts:
    return JobFacts(
        id=JobId(row.id),
        state=JobState(row.state),
        request=request_from_json(row.request),
        queued_ms=row.queued_ms,
        attempts=row.attempts,
        retries_used=row.retries_used,
        avoid=tuple((CenterId(center), until) for center, until in row.avoid),
        stop=_stop(row),
        ended_ms=row.ended_ms,
        message=row.message,
    )


def run_facts(row: Run) -> RunFacts:
    return RunFacts(
        id=RunId(row.id),
        job=JobId(row.job_id),
        attempt=row.attempt,
        state=RunState(row.state),
        center=CenterId(row.center_id) if row.center_id else None,
        remote=RemoteId(row.remote_id) if row.remote_id else None,
        stop=_stop(row),
        not_after_ms=row.not_after_ms,
        lookup_lag_s=row.lookup_lag_s,
        missing_ms=row.missing_ms,
        start_sent_ms=row.start_sent_ms,
        submitted_ms=row.submitted_ms,
        started_ms=row.started_ms,
        ended_ms=row.ended_ms,
        lost_ms=row.lost_ms,
        exit_code=row.exit_code,
        failure=FailureKind(row.failure) if row.failure else None,
        message=row.message,
    )


def _stop(row: Job | Run) -> Stop | None:
    if row.stop_reason is None:
        return None
    return Stop(StopReason(row.stop_reason), row.stop_since_ms or 0)


def advance(
    tx: Tx,
    run: RunId,
    event: events.Event,
    *,
    epoch: int | None = None,
    actor: str = "",
    address: str | None = None,
) -> RunState:
    """Apply one event to a run and its job; returns the run's state afterwards.

    `epoch` fences what the leader writes; None is a user's or operator's own change.  An event of a
    run that is over is logged and changes nothing.  Raises NoSuchRun, LostLease,
    machine.InvalidTransition.
    """
    if epoch is not None:
        tx.fence(epoch)
    row = tx.session.get(Run, run, with_for_update=True)
    if row is None:
        raise NoSuchRun(f"there is no run {run}")
    job = tx.session.get_one(Job, row.job_id, with_for_update=True)
    if isinstance(event, events.SeenCreated):
        event = replace(event, start_waiting=tx.session.get(Outbox, run) is not None)
    state = apply(tx, job, row, event, actor=actor)
    if address is not None:
        row.address = address
    return state


def apply(tx: Tx, job: Job, run: Run, event: events.Event, *, actor: str = "") -> RunState:
    """The same for rows that the caller has read and locked in this transaction."""
    state = _apply(tx, job, run, event, actor=actor)
    for victim in preemptors.due(tx, job, run):
        preempt(tx, victim, for_job=job.id)
    return state


def _apply(tx: Tx, job: Job, run: Run, event: events.Event, *, actor: str) -> RunState:
    before, facts = run_facts(run), job_facts(job)
    step = machine.step(facts, before, event)
    name = type(event).__name__
    if step.dropped:
        tx.event("run.event_dropped", job=job.id, run=run.id, data={"event": name, "state": run.state})
        return before.state
    if step.run == before and not step.commands:
        return before.state
    _write_run(tx, run, step)
    if before.state.live:  # a late arrival of an earlier attempt is not news of the job
        _write_job(tx, job, step)
    if isinstance(event, events.SeenRunning) and before.started_ms is None:
        _learn_wait(tx, run)
        job.kill_sets = 0  # the victims were not stopped for nothing
    if before.started_ms is None and step.run.started_ms is not None:
        forecasts.settle(tx, run)
    if before.state.live and not step.run.state.live:
        learned.learn(tx, facts.request, TenantId(job.tenant_id), step.run)
        meters.end(tx, job, run, step.run)
    data = {"event": name, "from": before.state.value, "to": step.run.state.value}
    if step.run.message:
        data["message"] = storable(step.run.message)
    tx.event("run.changed", job=job.id, run=run.id, center=run.center_id, actor=actor, data=data)
    if before.state.live and step.job.state.ended:
        tx.event(f"job.{job.state.lower()}", job=job.id, center=run.center_id, actor=actor)
    return step.run.state


def _write_run(tx: Tx, run: Run, step: Step) -> None:
    """Copy a step's facts of the run into its row and carry out its commands."""
    facts = step.run
    run.state = facts.state.value
    run.center_id = facts.center
    run.remote_id = facts.remote
    run.stop_reason = facts.stop.reason.value if facts.stop else None
    run.stop_since_ms = facts.stop.since_ms if facts.stop else None
    run.missing_ms = facts.missing_ms
    run.submitted_ms = facts.submitted_ms
    run.started_ms = facts.started_ms
    run.ended_ms = facts.ended_ms
    run.lost_ms = facts.lost_ms
    run.exit_code = facts.exit_code
    run.failure = facts.failure.value if facts.failure else None
    run.message = facts.message
    if not facts.state.live:
        # the end itself confirms a stop; an abandoned or late run is told again below
        run.stop_owed_ms = None
        if facts.failure is FailureKind.NEVER_ARRIVED and facts.remote is None:
            run.watched_until_ms = tx.now_ms + WATCH_S * 1000
    for command in step.commands:
        _carry_out(tx, run, command)
    plan_next_try(run, tx.now_ms)
    tx.session.add(run)
    tx.session.flush()  # the ended run leaves the index of live runs before the next one enters


def _write_job(tx: Tx, job: Job, step: Step) -> None:
    """Copy a step's facts of the job into its row, with its next run if it gets one."""
    wanted, facts = step.job, step.run
    job.state = wanted.state.value
    job.attempts = wanted.attempts
    job.retries_used = wanted.retries_used
    job.avoid = [[center, until] for center, until in wanted.avoid]
    job.stop_reason = wanted.stop.reason.value if wanted.stop else None
    job.stop_since_ms = wanted.stop.since_ms if wanted.stop else None
    job.ended_ms = wanted.ended_ms
    job.message = wanted.message
    job.version += 1
    new = [c for c in step.commands if isinstance(c, NewRun)]
    job.status = public_status(wanted.state, None if new else facts.state).value
    if facts.center is not None:
        job.center_id = "" if new else facts.center
    tx.session.add(job)
    if wanted.state is not JobState.QUEUED:  # it is placed or has ended: nothing is held for it any more
        tx.session.execute(delete(Reservation).where(col(Reservation.job_id) == job.id))
    for command in new:
        tx.session.add(new_run(tx, job.id, command.attempt))
    tx.session.flush()
    if wanted.state.ended or new:
        tx.wake("cycle")


def _learn_wait(tx: Tx, run: Run) -> None:
    """Moving average of how long runs wait in a pool between submission and start."""
    pool = tx.session.get(Pool, run.pool_id) if run.pool_id else None
    if pool is None or run.submitted_ms is None or run.started_ms is None:
        return
    waited_s = max(0, run.started_ms - run.submitted_ms) // 1000
    pool.wait_s = (3 * pool.wait_s + waited_s) // 4
    pool.wait_at_ms = tx.now_ms
    tx.session.add(pool)


def fix_prefix(tx: Tx, prefix: str) -> None:
    """Store the broker's name, the first part of every remote name.  Raises PrefixChanged."""
    row = tx.session.get(Setting, PREFIX)
    if row is not None and row.value != prefix:
        query = select(Run.id).where(col(Run.state).in_(LIVE) | col(Run.owed_next_ms).is_not(None))
        if (run := tx.session.exec(query.limit(1)).first()) is not None:
            raise PrefixChanged(
                f"[server] name is {prefix!r}, but runs live under {row.value!r} (such as {run}):"
                " change it when none does"
            )
    tx.session.merge(Setting(name=PREFIX, value=prefix))


_PREFIX = columns_of(table(Setting).c.value).where(table(Setting).c.name == PREFIX)


def new_run(tx: Tx, job: str, attempt: int) -> Run:
    """A run row without a center, with an id of its own."""
    prefix = tx.session.execute(_PREFIX).scalar_one()
    return Run(**_new_run(prefix, job, attempt, tx.now_ms))


def first_of(jobs: Iterable[str], prefix: str, now_ms: int) -> list[dict[str, Any]]:
    """The first runs of new jobs, as rows: creates are too many for objects of the session."""
    return [_new_run(prefix, job, 1, now_ms) for job in jobs]


def _new_run(prefix: str, job: str, attempt: int, now_ms: int) -> dict[str, Any]:
    return {
        "id": run_id(prefix, secrets.token_bytes(7)),
        "job_id": job,
        "attempt": attempt,
        "state": RunState.NEW.value,
        "created_ms": now_ms,
    }


def _carry_out(tx: Tx, run: Run, command: events.Command) -> None:
    match command:
        case Submit() | Start():
            action = SUBMIT if isinstance(command, Submit) else START
            tx.session.merge(
                Outbox(run_id=run.id, action=action, center_id=run.center_id or "", not_before_ms=0)
            )
            tx.wake("dispatch")
        case DropSubmission():
            tx.session.execute(delete(Outbox).where(col(Outbox.run_id) == run.id))
        case OweStop():
            if run.stop_owed_ms is None:
                run.stop_owed_ms = tx.now_ms
            run.owed_tries = 0
            tx.wake("dispatch")
        case OweCollect():
            if run.delete_owed_ms is None:  # of a deleted job nothing is kept
                run.collect_owed_ms = tx.now_ms
                run.owed_tries = 0
                tx.wake("collect")
        case NewRun():
            pass  # written after the ended run, see _write_job


def plan_next_try(run: Run, at_ms: int) -> None:
    """What is owed for a run is tried from `at_ms` on; nothing when nothing is owed."""
    owed = run.stop_owed_ms or run.collect_owed_ms or run.delete_owed_ms
    run.owed_next_ms = at_ms if owed is not None and run.remote_id is not None else None


def request_stop(tx: Tx, run: RunId, reason: StopReason, *, epoch: int) -> None:
    """The broker itself asks a live run to end.  Raises NoSuchRun, LostLease."""
    tx.fence(epoch)
    row = tx.session.get(Run, run, with_for_update=True)
    if row is None:
        raise NoSuchRun(f"there is no run {run}")
    if RunState(row.state).live:
        stop(tx, tx.session.get_one(Job, row.job_id, with_for_update=True), row, reason, actor="broker")


def preempt(tx: Tx, run: Run, *, for_job: str) -> None:
    """Ask a live run to end for a VIP job, and count it.  The caller has fenced the transaction."""
    victim = tx.session.get_one(Job, run.job_id, with_for_update=True)
    victim.preempted += 1
    stop(tx, victim, run, StopReason.PREEMPT, actor="broker")
    data = {"preemptedFor": for_job}
    tx.event("run.preempted", job=victim.id, run=run.id, center=run.center_id, data=data)


# ---------------------------------------------------------------- tracking

LIVE = [s.value for s in RunState if s.live]
_LOOKED_AT = [s.value for s in (RunState.DOUBT, RunState.PENDING, RunState.RUNNING, RunState.LOST)]


def watched(session: Session, center: CenterId, now_ms: int) -> list[Watched]:
    """The runs of a center that tracking looks at: live ones, and ended ones that owe a stop or may
    still turn up under a remote id that nobody has told us yet.

    Each kind comes from an index of its own, so that a poll costs what lives and not what ever was.
    """
    here = Run.center_id == center
    query = (
        columns_of(
            *(col(Run.id), col(Run.job_id), col(Run.state), col(Run.remote_id), col(Run.nodes)),
            *(col(Run.started_ms), col(Run.not_after_ms), col(Run.lookup_lag_s), col(Run.stop_reason)),
            col(Run.logs_wanted_ms),
            *(col(Run.missing_ms), col(Run.start_sent_ms), col(Run.address), col(Run.checkpoint_ms)),
            col(Job.request),
        )
        .join(Job, col(Job.id) == col(Run.job_id))
        .where(
            col(Run.id).in_(
                union_all(
                    select(Run.id).where(here, run_lives(), col(Run.state).in_(_LOOKED_AT)),
                    select(Run.id).where(here, col(Run.stop_owed_ms).is_not(None)),
                    select(Run.id).where(
                        here, col(Run.watched_until_ms) > now_ms, col(Run.remote_id).is_(None)
                    ),
                )
            )
        )
        .where(col(Run.state) != RunState.SUBMITTING.value)
    )
    return [
        Watched(
            run=RunId(run.id),
            job=JobId(run.job_id),
            center=center,
            state=RunState(run.state),
            remote=RemoteId(run.remote_id) if run.remote_id else None,
            nodes=run.nodes,
            started_ms=run.started_ms,
            not_after_ms=run.not_after_ms,
            lookup_lag_s=run.lookup_lag_s,
            max_run_time_s=run.request.get("max_run_time_s"),
            stop=StopReason(run.stop_reason) if run.stop_reason else None,
            logs_wanted_ms=run.logs_wanted_ms,
            on_lost=OnLost(run.request.get("on_lost", OnLost.WAIT)),
            missing_ms=run.missing_ms,
            start_sent=run.start_sent_ms is not None,
            address=run.address,
            checkpoint_ms=run.checkpoint_ms,
        )
        for run in session.execute(query, execution_options={"yield_per": ROWS_AT_ONCE})
    ]


def note_checkpoint(tx: Tx, run: RunId, at_ms: int, *, epoch: int) -> None:
    """A checkpoint of a run was seen that is newer than any before.  Raises LostLease."""
    tx.fence(epoch)
    row = tx.session.get_one(Run, run, with_for_update=True)
    row.checkpoint_ms = at_ms
    tx.session.add(row)
    tx.event("run.checkpoint", job=row.job_id, run=run, center=row.center_id, data={"atMs": at_ms})


def touch_logs(tx: Tx, run: RunId, *, epoch: int) -> None:
    """The log on disk is as long as the center's was a moment ago."""
    tx.fence(epoch)
    tx.session.execute(update(Run).where(col(Run.id) == run).values(logs_copied_ms=tx.now_ms))


def want_logs(tx: Tx, run: RunId, until_ms: int) -> None:
    """Somebody reads the log of a live run: copy it as it grows until then."""
    row = tx.session.get(Run, run)
    if row is not None:
        row.logs_wanted_ms = until_ms
        tx.session.add(row)
        tx.wake(f"track:{row.center_id}")


def stop(tx: Tx, job: Job, run: Run, reason: StopReason, *, actor: str) -> RunState:
    """Ask a live run to end; ends it at once when nothing of it has left the broker."""
    outbox = tx.session.get(Outbox, run.id, with_for_update=True)
    claimed = outbox is None or outbox.claimed_ms is not None
    return apply(tx, job, run, StopRequested(tx.now_ms, reason, claimed=claimed), actor=actor)


def no_center_answers(session: Session) -> bool:
    """True when there are several centers and every one is silent: then doubt this side first."""
    health = session.exec(select(Center.health).where(col(Center.archived_ms).is_(None))).all()
    polled = [h for h in health if h != Health.UNKNOWN]
    return len(polled) > 1 and not any(h == Health.FRESH for h in polled)


def live_by_state(session: Session) -> dict[str, int]:
    """How many live runs there are in each state, states without any included."""
    query = select(Run.state, func.count()).where(col(Run.state).in_(LIVE)).group_by(col(Run.state))
    return dict.fromkeys(LIVE, 0) | {state: int(count) for state, count in session.exec(query).all()}
