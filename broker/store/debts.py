"""What is owed to centers after a decision: stops, copies of logs and results, deletions.

A debt is a column of the run that outlives its life, tried again until the center confirms (law 11).
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement
from sqlmodel import Session, col, select

from broker.core.model import (
    CenterId,
    JobId,
    RemoteId,
    RunId,
)
from broker.store import runs
from broker.store.codec import request_from_json
from broker.store.writer import Tx
from broker.tables import Job, Run


@dataclass(frozen=True, slots=True)
class Debt:
    """What is still owed to a center for a run."""

    run: RunId
    job: JobId
    center: CenterId
    remote: RemoteId
    nodes: int
    stop_grace_s: int
    stop: bool
    tries: int


def calls_owed(session: Session, now_ms: int, limit: int) -> list[Debt]:
    """Stops and deletions whose next try has come, the longest waiting first.

    A run is deleted at its center after it has ended and its logs and results are here.
    """
    deletable = (
        col(Run.delete_owed_ms).is_not(None)
        & col(Run.collect_owed_ms).is_(None)
        & col(Run.state).not_in(runs.LIVE)
    )
    return _debts(session, now_ms, limit, col(Run.stop_owed_ms).is_not(None) | deletable)


def collections_owed(session: Session, now_ms: int, limit: int) -> list[Debt]:
    """Ended runs whose logs and results are still to be copied, the longest waiting first."""
    due = col(Run.collect_owed_ms).is_not(None) & col(Run.stop_owed_ms).is_(None)
    return _debts(session, now_ms, limit, due)


def _debts(session: Session, now_ms: int, limit: int, which: ColumnElement[bool]) -> list[Debt]:
    query = (
        select(Run, Job)
        .join(Job, col(Job.id) == col(Run.job_id))
        .where(col(Run.owed_next_ms) <= now_ms)
        .where(which)
        .order_by(col(Run.owed_next_ms))
        .limit(limit)
    )
    return [
        Debt(
            run=RunId(run.id),
            job=JobId(job.id),
            center=CenterId(run.center_id or ""),
            remote=RemoteId(run.remote_id or ""),
            nodes=run.nodes,
            stop_grace_s=request_from_json(job.request).stop_grace_s,
            stop=run.stop_owed_ms is not None,
            tries=run.owed_tries,
        )
        for run, job in session.exec(query).all()
    ]


def postpone_debt(
    tx: Tx, run: RunId, *, epoch: int, next_ms: int, stop: bool = False, message: str = ""
) -> None:
    """The center has not confirmed yet: try again at `next_ms`.

    `stop`: it was the stop that was tried; when the run has ended meanwhile, what is owed now is
    another debt and is left as it is.
    """
    tx.fence(epoch)
    row = tx.session.get_one(Run, run)
    if row.owed_next_ms is None or (stop and row.stop_owed_ms is None):
        return
    row.owed_tries += 1
    row.owed_next_ms = next_ms
    tx.session.add(row)
    if message:
        tx.event("run.debt_failed", run=run, job=row.job_id, data={"message": message})


def settle(
    tx: Tx, run: RunId, *, epoch: int, stop: bool = False, collect: bool = False, delete: bool = False
) -> None:
    """The center confirmed: the debt is paid."""
    tx.fence(epoch)
    row = tx.session.get_one(Run, run)
    if stop:
        row.stop_owed_ms = None
    if collect:
        row.collect_owed_ms = None
        row.logs_copied_ms = tx.now_ms
    if delete:
        row.delete_owed_ms = None
    row.owed_tries = 0
    runs.plan_next_try(row, tx.now_ms)
    tx.session.add(row)
    paid = {"stop": stop, "collect": collect, "delete": delete}
    tx.event("run.settled", job=row.job_id, run=run, data={"paid": [k for k, v in paid.items() if v]})
    if stop:
        tx.wake("cycle")


def owe_delete(tx: Tx, run: Run) -> None:
    """The job is deleted: what the center keeps of the run goes too, after the run has ended."""
    run.collect_owed_ms = None
    if run.remote_id is not None:
        run.delete_owed_ms = tx.now_ms
        runs.plan_next_try(run, tx.now_ms)
        tx.wake("dispatch")
    tx.session.add(run)
