"""What a round decided becomes rows: placements with their outbox rows, and why others wait."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import delete
from sqlmodel import Session, col, select

from broker.core.explain import Code, Reason, reason
from broker.core.identity import base_key
from broker.core.machine import Placed
from broker.core.model import JobState, PoolId, RunState
from broker.core.plan import Placement
from broker.store import codec, datasets, runs
from broker.store.writer import Tx
from broker.tables import Deferral, Job, Run

CHUNK = 500
"""Placements per transaction."""


def commit_placements(
    tx: Tx, placements: Sequence[Placement], *, natives: Mapping[PoolId, str], epoch: int
) -> int:
    """Write a chunk of a plan; run and outbox row together, a gang whole.

    A job that changed since the snapshot (cancelled, say) is left alone.  One whose data is not at
    the center yet stays queued while it moves.  Returns how many were placed.  Raises LostLease.
    """
    tx.fence(epoch)
    placed = 0
    for placement in placements:
        job = tx.session.get(Job, placement.job, with_for_update=True)
        if job is None or job.state != JobState.QUEUED.value or job.class_key != base_key(placement.class_key):
            continue
        wanted = job.request.get("datasets", ())
        if wanted and datasets.missing_copies(tx, placement.center, wanted):
            waits = reason(placement.center, Code.STAGING, need=len(wanted), have=0)
            _defer(tx, placement.class_key, (waits,))
            continue
        query = select(Run).where(Run.job_id == job.id).where(Run.state == RunState.NEW.value)
        run = tx.session.exec(query).one()
        run.pool_id = placement.pool
        run.native_pool = natives[placement.pool]
        run.spec = codec.spec_to_json(placement.spec)
        run.slot, run.nodes = placement.slot, placement.nodes
        run.rate_micro_per_hour = placement.rate_micro_per_hour
        run.placement = _story(placement)
        runs.apply(tx, job, run, Placed(tx.now_ms, placement.center))
        if not job.spec_id:
            job.processor = codec.kind_of(placement.spec)
            tx.session.add(job)
        placed += 1
    return placed


def _story(placement: Placement) -> dict[str, Any]:
    """Why the run is where it is, for `explain` of a placed job."""
    return {
        "centerId": placement.center,
        "pool": placement.pool,
        "specId": placement.spec.id,
        "slot": placement.slot,
        "nodeCount": placement.nodes,
        "estimatedCostMicro": placement.cost_micro,
    }


def commit_deferrals(
    tx: Tx, deferrals: Mapping[str, Sequence[Reason]], gone: Collection[str], *, epoch: int
) -> None:
    """Write reasons that changed and forget classes that no longer wait.  Raises LostLease."""
    tx.fence(epoch)
    for class_key, reasons in deferrals.items():
        _defer(tx, class_key, reasons)
    for class_key in gone:
        tx.session.execute(delete(Deferral).where(col(Deferral.class_key) == class_key))


def _defer(tx: Tx, class_key: str, reasons: Sequence[Reason]) -> None:
    documents = [
        {
            "centerId": r.center,
            "code": r.code.word,
            "message": r.message,
            "need": r.need,
            "have": r.have,
            "unit": r.unit.value,
        }
        for r in reasons
    ]
    tx.session.merge(Deferral(class_key=class_key, reasons=documents, at_ms=tx.now_ms))


def deferred_classes(session: Session) -> list[str]:
    """The classes that have reasons in the store; what a new leader starts from."""
    return list(session.exec(select(Deferral.class_key)).all())
