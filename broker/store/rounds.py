"""What a round decided becomes rows: placements with their outbox rows, and why others wait."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import delete
from sqlmodel import Session, col, select

from broker.core.events import Placed
from broker.core.explain import Alternative, Code, Reason, reason
from broker.core.identity import base_key, holder_key
from broker.core.model import CenterId, JobId, JobState, PoolId, Reservation, RunState
from broker.core.plan import Placement, Preemption
from broker.store import centers, codec, copies, preemptors, runs
from broker.store.writer import Tx
from broker.tables import Deferral, Job, Pool, Round, Run
from broker.tables import Reservation as ReservationRow


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """One round.  `objective_micro` and its lower bound are micro-CNY: cost of what starts plus worth
    of what waits."""

    started_ms: int
    queued: int
    placed: int
    preempted: int
    objective_micro: int
    bound_micro: int
    solve_ms: float
    total_ms: float

    @property
    def gap(self) -> float:
        """At most this share of the objective could be saved by a better plan."""
        return max(0, self.objective_micro - self.bound_micro) / max(1, abs(self.objective_micro))


CHUNK = 500
"""Placements per transaction."""
INT64 = (1 << 63) - 1
"""Largest number of a column."""


def commit_placements(
    tx: Tx,
    placements: Sequence[Placement],
    *,
    natives: Mapping[PoolId, str],
    epoch: int,
    considered: Mapping[str, Sequence[Alternative]] | None = None,
) -> int:
    """Write a chunk of a plan; run and outbox row together, a gang whole.

    A job that changed since the snapshot (cancelled, say) is left alone.  One whose data is not at
    the center yet stays queued while it moves.  `considered`: what every center was for a class of
    which jobs start (Plan.considered).  Returns how many were placed.  Raises LostLease.
    """
    tx.fence(epoch)
    placed = 0
    for placement in placements:
        job = tx.session.get(Job, placement.job, with_for_update=True)
        if job is None or job.state != JobState.QUEUED.value:
            continue
        if job.class_key != base_key(placement.class_key):
            continue
        if _lacks_data(tx, job, placement):
            continue
        _place(tx, job, placement, natives, (considered or {}).get(placement.class_key, ()))
        placed += 1
    return placed


def _lacks_data(tx: Tx, job: Job, placement: Placement) -> bool:
    """Whether the job has to wait until its data is at the center; then its class is told so."""
    return _wants_data(tx, job, placement.center, placement.class_key)


def _wants_data(tx: Tx, job: Job, center: str, class_key: str) -> bool:
    wanted = job.request.get("datasets", ())
    if not wanted or not copies.missing_copies(tx, CenterId(center), wanted):
        return False
    there = len(copies.remotes(tx.session, CenterId(center), wanted))
    _defer(tx, class_key, (reason(CenterId(center), Code.STAGING, need=len(wanted), have=there),))
    return True


def _place(
    tx: Tx,
    job: Job,
    placement: Placement,
    natives: Mapping[PoolId, str],
    considered: Sequence[Alternative],
) -> Run:
    """Give a queued job's run its center, and its submission to the outbox."""
    query = select(Run).where(Run.job_id == job.id).where(Run.state == RunState.NEW.value)
    run = tx.session.exec(query).one()
    run.pool_id = placement.pool
    run.native_pool = natives[placement.pool]
    run.spec = codec.spec_to_json(placement.spec)
    run.slot, run.nodes = placement.slot, placement.nodes
    run.rate_micro_per_hour = placement.rate_micro_per_hour
    run.tariff = centers.tariff(tx.session, placement.pool, placement.spec.shape, placement.nodes)
    run.placement = _story(placement, considered)
    runs.apply(tx, job, run, Placed(tx.now_ms, placement.center))
    if not job.spec_id:
        job.processor = codec.kind_of(placement.spec)
        tx.session.add(job)
    return run


def commit_holds(
    tx: Tx,
    reservations: Sequence[Reservation],
    preemptions: Sequence[Preemption],
    *,
    epoch: int,
    natives: Mapping[PoolId, str] | None = None,
) -> int:
    """Bring reservations to what a plan says and stop its victims, all in one transaction (law 6).

    A job that does not wait any more gets neither, and no run is stopped for a job when one of its
    victims is not what it was: then the rest may not be enough.  A preemptor that is sent first is
    placed here, with the stops that follow it; its run holds the capacity, so it needs no reservation.
    Nothing is held and nobody stopped for a job whose data is not at the center: it is asked for.
    `natives` are the native units of its pools.  Returns how many runs were asked to end, or will be.
    Raises LostLease.
    """
    tx.fence(epoch)
    stopped = 0
    victims = {p.job: p for p in preemptions}
    wanted = {r.job: r for r in reservations}
    rows = {JobId(row.job_id): row for row in tx.session.exec(select(ReservationRow)).all()}
    for job, row in rows.items():
        if job not in wanted or wanted[job].id == 0:
            tx.session.delete(row)
    tx.session.flush()
    for r in reservations:
        if r.id:
            continue
        job_row = tx.session.get(Job, r.job, with_for_update=True)
        if job_row is None or job_row.state != JobState.QUEUED.value:
            continue
        if job_row.request.get("datasets") and _waits_for_data(tx, job_row, r):
            continue
        if (preemption := victims.get(r.job)) is not None:
            ended = _preempt(tx, job_row, preemption, natives or {})
            stopped += ended
            if ended == 0 or preemption.placement is not None:
                continue
        tx.session.add(_reservation_row(r))
        data = {"pool": r.pool, "slot": r.slot, "nodeCount": r.nodes, "why": r.why, "expiresMs": r.expires_ms}
        tx.event("job.reserved", job=r.job, data=data)
    return stopped


def _waits_for_data(tx: Tx, job: Job, wanted: Reservation) -> bool:
    """As _lacks_data, for a job that was to hold capacity: the round may have told so under its own key."""
    own_key = holder_key(job.class_key, JobId(job.id))
    key = own_key if tx.session.get(Deferral, own_key) is not None else job.class_key
    return _wants_data(tx, job, tx.session.get_one(Pool, wanted.pool).center_id, key)


def _preempt(tx: Tx, job: Job, preemption: Preemption, natives: Mapping[PoolId, str]) -> int:
    """Ask the victims to end, or send the job first and plan their stops, and write down for whom; how
    many there were, 0 when the plan is stale."""
    rows = [tx.session.get_one(Run, run, with_for_update=True) for run in preemption.victims]
    running = [row for row in rows if row.state == RunState.RUNNING.value and row.stop_reason is None]
    ending = [row for row in rows if not RunState(row.state).live or row.stop_reason is not None]
    promised = any(row.stop_for is not None for row in rows)
    if not running or len(running) + len(ending) < len(rows) or promised:
        return 0
    first = preemption.placement
    if first is None:
        for row in running:
            runs.preempt(tx, row, for_job=job.id)
    else:
        if job.class_key != base_key(first.class_key):
            return 0
        preemptors.plan(tx, _place(tx, job, first, natives, ()), running)
    job.kill_sets += 1
    job.last_kill_ms = tx.now_ms
    tx.session.add(job)
    data = {
        "runs": [row.id for row in running],
        "priceMicro": preemption.price_micro,
        "lostAcceleratorSeconds": preemption.lost_card_s,
        "sentFirst": first is not None,
    }
    tx.event("job.preempting", job=job.id, data=data)
    return len(running)


def _reservation_row(r: Reservation) -> ReservationRow:
    return ReservationRow(
        pool_id=r.pool,
        slot=r.slot,
        nodes=r.nodes,
        node_names=list(r.node_names),
        job_id=r.job,
        not_before_ms=r.not_before_ms,
        expires_ms=r.expires_ms,
        why=r.why,
    )


def _story(placement: Placement, considered: Sequence[Alternative]) -> dict[str, Any]:
    """Why the run is where it is, for `explain` of a placed job."""
    return {
        "centerId": placement.center,
        "pool": placement.pool,
        "specId": placement.spec.id,
        "slot": placement.slot,
        "nodeCount": placement.nodes,
        "estimatedCostMicro": placement.cost_micro,
        "alternatives": [
            {
                "centerId": other.center,
                "rateMicroPerHour": other.rate_micro_per_hour,
                "weighedCostMicro": other.weighed_micro,
                "reason": None if other.reason is None else _document(other.reason),
            }
            for other in considered
            if other.center != placement.center
        ],
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


def _document(why: Reason) -> dict[str, Any]:
    return {
        "centerId": why.center,
        "code": why.code.word,
        "message": why.message,
        "need": why.need,
        "have": why.have,
        "unit": why.unit.value,
    }


def _defer(tx: Tx, class_key: str, reasons: Sequence[Reason]) -> None:
    documents = [_document(each) for each in reasons]
    tx.session.merge(Deferral(class_key=class_key, reasons=documents, at_ms=tx.now_ms))


def record_round(tx: Tx, made: RoundFacts, *, epoch: int) -> None:
    """Keep what a round came to.  Raises LostLease."""
    tx.fence(epoch)
    kept = asdict(made)
    for name in ("objective_micro", "bound_micro"):  # sums over all jobs may pass that
        kept[name] = max(-INT64, min(INT64, kept[name]))
    tx.session.add(Round(**kept))


def last_rounds(session: Session, limit: int) -> list[RoundFacts]:
    """The newest rounds first."""
    query = select(Round).order_by(col(Round.id).desc()).limit(limit)
    return [RoundFacts(**row.model_dump(exclude={"id"})) for row in session.exec(query).all()]


def deferred_classes(session: Session) -> list[str]:
    """The classes that have reasons in the store; what a new leader starts from."""
    return list(session.exec(select(Deferral.class_key)).all())
