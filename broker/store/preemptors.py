"""Runs that are to end for a run that was sent first (law 6).

Where a platform's own queue knows priorities, a VIP job is sent before its victims are stopped: what
they free goes to it and to nobody else, and when the platform refuses it nobody has ended for nothing.
What belongs here: the plan of such stops, and when they are due or withdrawn, by the state that the
preemptor's run has after each of its events.  What does not: asking a run to end (runs.py) and
choosing victims (core/holds.py).

The plan is the column `stop_for` of the victims, written with the preemptor's outbox row.  No stop of
it is owed to a center before the preemptor's submission was taken, so a crash at any point leaves
either a plan that the preemptor's next event settles, or stops that are owed.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, col, func, select

from broker.core.model import RunState, TenantId, Tier
from broker.store.writer import Tx
from broker.tables import Center, Job, Outbox, Run


def plan(tx: Tx, preemptor: Run, victims: Sequence[Run]) -> None:
    """Write down that these runs are to end for a run whose submission waits in the outbox."""
    for victim in victims:
        victim.stop_for = preemptor.id
        tx.session.add(victim)
        data = {"preemptor": preemptor.id, "preemptedFor": preemptor.job_id}
        tx.event("run.to_preempt", job=victim.job_id, run=victim.id, center=victim.center_id, data=data)


def planned(tx: Tx, preemptor: str) -> bool:
    """Whether runs are still to end for this one."""
    return tx.session.exec(select(Run.id).where(Run.stop_for == preemptor).limit(1)).first() is not None


def due(tx: Tx, job: Job, run: Run) -> list[Run]:
    """The victims that are to be asked to end now that `run` is in the state it is in; each once.

    They are due when the run waits at its center; a run that was created there and is not started
    yet does not.  Nobody ends for a run that was refused, has ended, was itself asked to end, or runs
    already: then the plan is withdrawn.  While the outcome is unknown nothing changes.
    """
    if job.tier != Tier.VIP:
        return []
    query = select(Run).where(Run.stop_for == run.id).order_by(Run.id).with_for_update()
    victims = tx.session.exec(query).all()
    if not victims:
        return []
    state = RunState(run.state)
    if run.stop_reason is not None or not state.live or state is RunState.RUNNING:
        _withdraw(tx, job, run, victims)
        return []
    if state is not RunState.PENDING or _to_start(tx, run):
        return []
    for victim in victims:
        victim.stop_for = None
        tx.session.add(victim)
    # One that was lost meanwhile is asked, too: it held what was promised, and may still.
    return [v for v in victims if RunState(v.state).live and v.stop_reason is None]


def _to_start(tx: Tx, run: Run) -> bool:
    """Two phases: whether the run exists at its center and its start is still to be taken."""
    if tx.session.get(Outbox, run.id) is not None:
        return True
    center = tx.session.get_one(Center, run.center_id)
    return bool(center.traits.get("two_phase_create")) and run.start_sent_ms is None


def _withdraw(tx: Tx, job: Job, run: Run, victims: Sequence[Run]) -> None:
    """Nobody ends, so no victim set is spent; the pause before the next one stays, lest the same
    refusal come in every round."""
    for victim in victims:
        victim.stop_for = None
        tx.session.add(victim)
        data = {"preemptor": run.id, "preemptedFor": job.id}
        tx.event("run.spared", job=victim.job_id, run=victim.id, center=victim.center_id, data=data)
    job.kill_sets = max(0, job.kill_sets - 1)
    tx.session.add(job)


def to_preempt(session: Session) -> dict[TenantId, int]:
    """Runs per tenant that are to end and were not asked yet: they count as stopped."""
    query = (
        select(Job.tenant_id, func.count())
        .join(Run, col(Run.job_id) == col(Job.id))
        .where(col(Run.stop_for).is_not(None))
        .group_by(col(Job.tenant_id))
    )
    return {TenantId(tenant): int(count) for tenant, count in session.exec(query).all()}
