"""Jobs as people see and change them: list, show, stop, delete.  How they are created is in creates.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, or_, true
from sqlalchemy import select as plain_select
from sqlmodel import Session, col, select

from broker.core.events import Resolved
from broker.core.identity import avoiding_key, holder_key
from broker.core.model import (
    CenterId,
    JobId,
    JobRequest,
    JobState,
    Kind,
    PublicStatus,
    Role,
    RunId,
    RunState,
    Spec,
    StopReason,
    public_run_status,
)
from broker.store import debts, meters, runs
from broker.store.accounts import Caller, visible
from broker.store.codec import request_from_json, spec_from_json
from broker.store.meters import Metering
from broker.store.writer import Rejected, Tx
from broker.tables import Account, Center, Deferral, Job, Run
from broker.tables.columns import table

LIVE_STATES = frozenset(s.value for s in RunState if s.live)


class NoSuchJob(Rejected):
    """No such job, or none that the caller may see."""


class WrongState(Rejected):
    """The job's state does not allow this; `status` is the standard's word for it."""

    def __init__(self, status: PublicStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class JobSummary:
    id: JobId
    kind: Kind
    name: str
    desc: str
    account: str
    status: PublicStatus
    created_ms: int
    ended_ms: int | None = None
    center: str = ""
    tier: int = 1


@dataclass(frozen=True, slots=True)
class RunView:
    """One attempt, as shown.  `cost_micro` is metered up to `now_ms` of the read for a live run;
    `metering` is there once it has ended."""

    id: RunId
    attempt: int
    state: RunState
    status: PublicStatus
    center: str
    center_name: str
    native_pool: str
    remote: str
    spec: Spec | None
    nodes: int
    rate_micro_per_hour: int
    placement: dict[str, Any]
    created_ms: int
    submitted_ms: int | None
    started_ms: int | None
    ended_ms: int | None
    exit_code: int | None
    failure: str
    message: str
    address: str
    cost_micro: int
    metering: Metering | None
    logs_copied_ms: int | None
    collect_owed: bool
    checkpoint_ms: int | None


@dataclass(frozen=True, slots=True)
class JobView:
    """A job with its runs, oldest attempt first."""

    id: JobId
    kind: Kind
    name: str
    desc: str
    account: str
    account_name: str
    tenant: str
    state: JobState
    status: PublicStatus
    request: JobRequest
    class_key: str
    created_ms: int
    queued_ms: int
    ended_ms: int | None
    stop: StopReason | None
    message: str
    retries_used: int
    runs: tuple[RunView, ...]
    estimated_micro: int | None = None
    avoid: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What a list shows; None or empty means any.  Times are inclusive bounds of creation."""

    kind: Kind | None = None
    status: PublicStatus | None = None
    center: str = ""
    processor: str = ""
    created_after_ms: int | None = None
    created_before_ms: int | None = None
    query: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    mine: bool = False


SORTS: dict[str, Any] = {
    "id": Job.id,
    "name": Job.name,
    "status": Job.status,
    "createTime": Job.created_ms,
}


_JOB, _RUN, _ACCOUNT, _CENTER = (table(model) for model in (Job, Run, Account, Center))


def summary(row: Any) -> JobSummary:
    """A job as lists show it; `row` is a Job, or a plain row with its columns."""
    return JobSummary(
        id=JobId(row.id),
        kind=Kind(row.kind),
        name=row.name,
        desc=row.desc,
        account=row.account_id,
        status=PublicStatus(row.status),
        created_ms=row.created_ms,
        ended_ms=row.ended_ms,
        center=row.center_id,
        tier=row.tier,
    )


def visible_job(session: Session, caller: Caller, job: JobId, kind: Kind | None) -> Job:
    """The row of a job the caller may see.  Raises NoSuchJob, for a foreign job too."""
    query = select(Job).where(Job.id == job).where(visible(caller)).where(col(Job.deleted_ms).is_(None))
    row = session.exec(query).first()
    if row is None or (kind is not None and row.kind != kind.value):
        raise NoSuchJob(f"there is no job {job!r}")
    return row


_SHOWN = {
    role: plain_select(*_JOB.c, _ACCOUNT.c.name.label("account_name"))
    .join_from(_JOB, _ACCOUNT, _ACCOUNT.c.id == _JOB.c.account_id)
    .where(_JOB.c.id == bindparam("job"), _JOB.c.deleted_ms.is_(None), condition)
    for role, condition in (
        (Role.USER, _JOB.c.account_id == bindparam("account")),
        (Role.TENANT_ADMIN, _JOB.c.tenant_id == bindparam("tenant")),
        (Role.OPERATOR, true()),
    )
}
"""One job for those who may see it, as `visible` has it."""
_RUNS_SHOWN = (
    plain_select(*_RUN.c, _CENTER.c.name.label("center_name"))
    .join_from(_RUN, _CENTER, _CENTER.c.id == _RUN.c.center_id, isouter=True)
    .where(_RUN.c.job_id == bindparam("job"))
    .order_by(_RUN.c.attempt)
)


def show_job(
    session: Session, caller: Caller, job: JobId, kind: Kind | None, now_ms: int, *, costs: bool = True
) -> JobView:
    """A job with all its runs; without `costs` what they cost is not worked out, but 0.

    Raises NoSuchJob.
    """
    connection = session.connection()
    asked = {"job": job, "account": caller.id, "tenant": caller.tenant}
    row: Any = connection.execute(_SHOWN[caller.role], asked).first()
    if row is None or (kind is not None and row.kind != kind.value):
        raise NoSuchJob(f"there is no job {job!r}")
    found = connection.execute(_RUNS_SHOWN, asked).all()
    metered = meters.of_job(session, job) if costs else {}
    spent = meters.spent(session, found, metered, now_ms) if costs else {}
    attempts = tuple(_run_view(run, metered.get(run.id), spent.get(run.id, 0)) for run in found)
    return JobView(
        id=JobId(row.id),
        kind=Kind(row.kind),
        name=row.name,
        desc=row.desc,
        account=row.account_id,
        account_name=row.account_name,
        tenant=row.tenant_id,
        state=JobState(row.state),
        status=PublicStatus(row.status),
        request=request_from_json(row.request),
        class_key=row.class_key,
        created_ms=row.created_ms,
        queued_ms=row.queued_ms,
        ended_ms=row.ended_ms,
        stop=StopReason(row.stop_reason) if row.stop_reason else None,
        message=row.message,
        retries_used=row.retries_used,
        runs=attempts,
        estimated_micro=row.estimated_micro,
        avoid=tuple((center, until) for center, until in row.avoid),
    )


def _run_view(run: Any, metering: Metering | None, cost_micro: int) -> RunView:
    """`run` is a row of _RUNS_SHOWN."""
    state = RunState(run.state)
    return RunView(
        id=RunId(run.id),
        attempt=run.attempt,
        state=state,
        status=public_run_status(state),
        center=run.center_id or "",
        center_name=run.center_name or "",
        native_pool=run.native_pool,
        remote=run.remote_id or "",
        spec=spec_from_json(run.spec),
        nodes=run.nodes,
        rate_micro_per_hour=run.rate_micro_per_hour,
        placement=run.placement,
        created_ms=run.created_ms,
        submitted_ms=run.submitted_ms,
        started_ms=run.started_ms,
        ended_ms=run.ended_ms,
        exit_code=run.exit_code,
        failure=run.failure or "",
        message=run.message,
        address=run.address,
        cost_micro=cost_micro,
        metering=metering,
        logs_copied_ms=run.logs_copied_ms,
        collect_owed=run.collect_owed_ms is not None,
        checkpoint_ms=run.checkpoint_ms,
    )


def _live_run(tx: Tx, job: str) -> Run | None:
    query = select(Run).where(Run.job_id == job).where(col(Run.state).in_(LIVE_STATES))
    return tx.session.exec(query.with_for_update()).first()


def stop_job(tx: Tx, caller: Caller, job: JobId, kind: Kind | None) -> JobSummary:
    """Ask a job to stop.  One that is STOPPED already is answered as it is.

    Raises NoSuchJob, WrongState.
    """
    row = visible_job(tx.session, caller, job, kind)
    status = PublicStatus(row.status)
    if status is PublicStatus.STOPPED:
        return summary(row)
    if status not in (PublicStatus.PENDING, PublicStatus.RUNNING):
        raise WrongState(status, f"job {job} is {status}; only PENDING and RUNNING jobs can be stopped")
    run = _live_run(tx, job)
    assert run is not None, "a job that has not ended has a live run"
    runs.stop(tx, row, run, StopReason.CANCEL, actor=caller.actor)
    tx.event("job.stop_requested", job=job, actor=caller.actor)
    return summary(row)


def delete_job(tx: Tx, caller: Caller, job: JobId, kind: Kind | None) -> list[RunId]:
    """Hide an ended or UNKNOWN job; what its runs still hold at centers stays owed until it is gone.

    Returns its runs, whose files the caller removes.  Raises NoSuchJob, WrongState.
    """
    row = visible_job(tx.session, caller, job, kind)
    status = PublicStatus(row.status)
    if status in (PublicStatus.PENDING, PublicStatus.RUNNING):
        raise WrongState(status, f"job {job} is {status}; stop it first, a job is deleted when it has ended")
    run = _live_run(tx, job)
    if run is not None:
        runs.stop(tx, row, run, StopReason.CANCEL, actor=caller.actor)
    row.deleted_ms = tx.now_ms
    row.version += 1
    tx.session.add(row)
    attempts = tx.session.exec(select(Run).where(Run.job_id == job)).all()
    for attempt in attempts:
        debts.owe_delete(tx, attempt)
    tx.event("job.deleted", job=job, actor=caller.actor)
    return [RunId(attempt.id) for attempt in attempts]


def resolve_job(tx: Tx, caller: Caller, job: JobId, verdict: Resolved) -> JobSummary:
    """An operator settles a run in doubt or lost.  Raises NoSuchJob, WrongState."""
    row = visible_job(tx.session, caller, job, None)
    run = _live_run(tx, job)
    if run is None or run.state not in (RunState.DOUBT.value, RunState.LOST.value):
        state = run.state if run is not None else row.state
        raise WrongState(
            PublicStatus(row.status),
            f"job {job} is {state}; only a run in DOUBT or LOST is resolved by an operator",
        )
    runs.apply(tx, row, run, verdict, actor=caller.actor)
    data = {"neverRan": verdict.never_ran, "remote": verdict.remote, "ended": verdict.ended}
    tx.event("job.resolved", job=job, run=run.id, actor=caller.actor, data=data)
    return summary(row)


def queue_position(session: Session, job: JobView) -> int | None:
    """1 for the job that is next in queue order, None for a job that does not wait."""
    if job.state is not JobState.QUEUED:
        return None
    ahead = or_(
        col(Job.tier) > int(job.request.tier),
        (col(Job.tier) == int(job.request.tier)) & (col(Job.queued_ms) < job.queued_ms),
        (col(Job.tier) == int(job.request.tier))
        & (col(Job.queued_ms) == job.queued_ms)
        & (col(Job.id) < job.id),
    )
    query = select(func.count()).select_from(Job).where(Job.state == JobState.QUEUED.value).where(ahead)
    return int(session.execute(query).scalar_one()) + 1


def deferral(session: Session, job: JobView, now_ms: int) -> list[dict[str, Any]]:
    """Why a job waits, as the last round that looked at its class said; empty when none has said.

    Each: centerId, code, message, need, have, unit.
    """
    avoids = [CenterId(center) for center, until in job.avoid if until > now_ms]
    key = avoiding_key(job.class_key, avoids)
    row = session.get(Deferral, holder_key(key, job.id)) or session.get(Deferral, key)
    return [] if row is None else list(row.reasons)


def free_name(session: Session, account: str, name: str) -> str:
    """`name`, or the first of `name-2`, `name-3` … that the account does not use (64 characters)."""
    query = select(Job.name).where(Job.account_id == account).where(col(Job.deleted_ms).is_(None))
    stem = name[:56]
    used = set(session.exec(query.where(col(Job.name).startswith(stem, autoescape=True))).all())
    if name not in used:
        return name
    number = 2
    while f"{stem}-{number}" in used:
        number += 1
    return f"{stem}-{number}"
