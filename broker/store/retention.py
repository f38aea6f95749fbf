"""What is forgotten, and when."""

from __future__ import annotations

from sqlalchemy import delete
from sqlmodel import col, func, select

from broker.core.model import JobState, RunId
from broker.store import debts
from broker.store.writer import Tx
from broker.tables import Event, Idempotency, Job, Round, Run

_ENDED = [s.value for s in JobState if s.ended]


def forget_events(tx: Tx, before_ms: int) -> int:
    """Events before the first that is not older than a moment; returns how many.

    By number, so that those which stay have no gaps, whatever the clock did.  The newest always stays:
    numbers go on from it.
    """
    kept = select(func.min(Event.seq)).where(col(Event.at_ms) >= before_ms).scalar_subquery()
    newest = select(func.max(Event.seq)).scalar_subquery()
    old = delete(Event).where(col(Event.seq) < func.coalesce(kept, newest))
    return int(tx.session.execute(old).rowcount)  # type: ignore[attr-defined]


def forget_rounds(tx: Tx, before_ms: int) -> int:
    """Rounds older than a moment; returns how many."""
    old = delete(Round).where(col(Round.started_ms) < before_ms)
    return int(tx.session.execute(old).rowcount)  # type: ignore[attr-defined]


def forget_keys(tx: Tx, before_ms: int) -> int:
    """Idempotency keys older than a moment whose job has ended; returns how many."""
    living = select(Job.id).where(col(Job.state).not_in(_ENDED))
    old = (
        delete(Idempotency)
        .where(col(Idempotency.created_ms) < before_ms)
        .where(col(Idempotency.job_id).not_in(living))
    )
    return int(tx.session.execute(old).rowcount)  # type: ignore[attr-defined]


def release_ended(tx: Tx, ended_before_ms: int, limit: int) -> list[RunId]:
    """Runs that ended long ago: what their centers keep of them is owed deletion.

    Returns the runs whose files here may go.
    """
    query = (
        select(Run)
        .where(col(Run.ended_ms) < ended_before_ms)
        .where(col(Run.logs_copied_ms).is_not(None))
        .limit(limit)
    )
    released = []
    for run in tx.session.exec(query).all():
        run.logs_copied_ms = None
        debts.owe_delete(tx, run)
        released.append(RunId(run.id))
    return released
