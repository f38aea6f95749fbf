"""Calls with an effect that are still to be made, or whose outcome is not recorded (law 1)."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete
from sqlmodel import Session, col, select

from broker.core import events
from broker.core.model import (
    CenterId,
    JobId,
    JobRequest,
    RemoteId,
    RunId,
    RunState,
    Spec,
    StopReason,
)
from broker.store import preemptors, runs
from broker.store.codec import request_from_json, spec_from_json
from broker.store.writer import Tx
from broker.tables import Job, Outbox, Run


@dataclass(frozen=True, slots=True)
class Submission:
    """A claimed call: everything dispatch needs to make it, read in the claiming transaction."""

    run: RunId
    job: JobId
    action: str
    center: CenterId
    attempt: int
    native_pool: str
    spec: Spec
    nodes: int
    request: JobRequest
    remote: RemoteId | None
    not_after_ms: int
    resume_from: RunId | None = None  # an earlier run there whose work a resumable job goes on from
    victims: bool = False  # runs are to be stopped for it (store/preemptors.py)


def claim(
    tx: Tx, *, epoch: int, center: CenterId, limit: int, not_after_ms: int, lookup_lag_s: int
) -> list[Submission]:
    """Claim calls to one center, oldest first; committed before any of them is made (law 1).

    `not_after_ms`: no claimed call may leave after this moment.  `lookup_lag_s`: how late the center's
    look-ups are, which a later leader needs for a call without an outcome.  Raises LostLease.
    """
    tx.fence(epoch)
    query = (
        select(Outbox)
        .where(Outbox.center_id == center)
        .where(col(Outbox.claimed_ms).is_(None))
        .where(Outbox.not_before_ms <= tx.now_ms)
        .order_by(col(Outbox.not_before_ms), col(Outbox.run_id))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = []
    for row in tx.session.exec(query).all():
        run = tx.session.get_one(Run, row.run_id)
        if not RunState(run.state).live:  # it ended between its creation and its start
            tx.session.delete(row)
            continue
        row.claimed_ms, row.epoch, row.not_after_ms = tx.now_ms, epoch, not_after_ms
        tx.session.add(row)
        run.not_after_ms, run.lookup_lag_s = not_after_ms, lookup_lag_s
        if row.action == runs.START:
            run.start_sent_ms, run.missing_ms = tx.now_ms, None
        tx.session.add(run)
        job = tx.session.get_one(Job, run.job_id)
        spec = spec_from_json(run.spec)
        assert spec is not None, "a placed run has a spec"
        request = request_from_json(job.request)
        claimed.append(
            Submission(
                run=RunId(run.id),
                job=JobId(job.id),
                action=row.action,
                center=center,
                attempt=run.attempt,
                native_pool=run.native_pool,
                spec=spec,
                nodes=run.nodes,
                request=request,
                remote=RemoteId(run.remote_id) if run.remote_id else None,
                not_after_ms=not_after_ms,
                resume_from=_resume_from(tx, run) if request.resumable and run.attempt > 1 else None,
                victims=preemptors.planned(tx, run.id),
            )
        )
    return claimed


def _resume_from(tx: Tx, run: Run) -> RunId | None:
    """The newest earlier run of the job at the same center of which a checkpoint was seen, else the
    newest that started there at all."""
    query = (
        select(Run.id)
        .where(Run.job_id == run.job_id)
        .where(Run.center_id == run.center_id)
        .where(Run.attempt < run.attempt)
        .where(col(Run.started_ms).is_not(None))
        .order_by(col(Run.checkpoint_ms).is_(None), col(Run.attempt).desc())
    )
    found = tx.session.exec(query.limit(1)).first()
    return None if found is None else RunId(found)


def waiting_centers(session: Session, now_ms: int) -> list[CenterId]:
    """Centers that have an unclaimed call whose time has come."""
    query = (
        select(Outbox.center_id)
        .where(col(Outbox.claimed_ms).is_(None))
        .where(Outbox.not_before_ms <= now_ms)
        .distinct()
    )
    return [CenterId(c) for c in session.exec(query).all()]


def record_outcome(tx: Tx, run: RunId, event: events.Event, *, epoch: int) -> RunState:
    """The outcome of a claimed call: removes its outbox row and advances the run."""
    tx.fence(epoch)
    tx.session.execute(delete(Outbox).where(col(Outbox.run_id) == run))
    return runs.advance(tx, run, event, epoch=epoch)


def recall_unsent(tx: Tx, center: CenterId, *, epoch: int, starts: bool = False) -> int:
    """Calls to a center that takes none now, and that nobody has claimed: their jobs queue again.

    `starts`: also those of runs that it has created and not started.
    """
    tx.fence(epoch)
    query = select(Outbox).where(Outbox.center_id == center).where(col(Outbox.claimed_ms).is_(None))
    rows = [row for row in tx.session.exec(query).all() if starts or row.action == runs.SUBMIT]
    for row in rows:
        runs.request_stop(tx, RunId(row.run_id), StopReason.RECALL, epoch=epoch)
    return len(rows)


def unclaim(tx: Tx, run: RunId, *, epoch: int, not_before_ms: int) -> None:
    """Give a claimed call back: it was certainly not made (throttled, or too late to leave).

    A run that was asked to stop meanwhile ends here.
    """
    tx.fence(epoch)
    outbox = tx.session.get_one(Outbox, run, with_for_update=True)
    outbox.claimed_ms, outbox.not_before_ms = None, not_before_ms
    tx.session.add(outbox)
    row = tx.session.get_one(Run, run, with_for_update=True)
    if row.stop_reason is not None:
        job = tx.session.get_one(Job, row.job_id, with_for_update=True)
        runs.stop(tx, job, row, StopReason(row.stop_reason), actor="broker")


def doubt_unfinished(tx: Tx, *, epoch: int) -> int:
    """Calls that an earlier leader claimed and whose outcome it never recorded: into DOUBT.

    Returns how many.
    """
    tx.fence(epoch)
    query = select(Outbox).where(col(Outbox.claimed_ms).is_not(None)).where(Outbox.epoch != epoch)
    rows = tx.session.exec(query).all()
    for row in rows:
        tx.session.delete(row)
        tx.session.flush()
        text = "the broker ended between the call and its answer"
        runs.advance(tx, RunId(row.run_id), events.OutcomeUnknown(tx.now_ms, text), epoch=epoch)
    return len(rows)
