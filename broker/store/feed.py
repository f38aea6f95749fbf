"""What the leader's mirror reads: everything once, then only jobs that changed since an event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Executable, Result, func, or_
from sqlalchemy import select as columns
from sqlmodel import Session, col, select

from broker.core.model import (
    CenterFacts,
    CenterId,
    Claim,
    DataFacts,
    Health,
    JobId,
    JobRequest,
    JobState,
    Kills,
    NodeShape,
    Pool,
    PoolId,
    Reservation,
    RunId,
    RunState,
    TenantId,
    Tier,
)
from broker.store import centers, codec, copies, preemptors, purses
from broker.store.rows import among
from broker.tables import Event, Job, Run
from broker.tables import Reservation as ReservationRow

ROWS_AT_ONCE = 5000
"""Of everything that waits or runs: the rows of a million jobs are not in memory together."""

T = TypeVar("T", bound=Hashable)


class _Once(Generic[T]):
    """Gives for equal values always the same one, so that what many rows say is in memory once."""

    def __init__(self) -> None:
        self._values: dict[T, T] = {}

    def __call__(self, value: T) -> T:
        return self._values.setdefault(value, value)


@dataclass(frozen=True, slots=True)
class QueuedRow:
    """A job that waits; `request` is given once per class, in the first row of it."""

    id: JobId
    class_key: str
    tenant: TenantId
    queued_ms: int
    avoid: tuple[tuple[CenterId, int], ...]
    kills: Kills | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """The present state of every job in `jobs` (None: of all): waiting, holding capacity, or neither."""

    version: int
    jobs: frozenset[JobId] | None
    queued: tuple[QueuedRow, ...]
    claims: tuple[tuple[JobId, Claim], ...]
    requests: dict[str, JobRequest]


@dataclass(frozen=True, slots=True)
class World:
    """The small tables, read whole for every round."""

    centers: tuple[CenterFacts, ...]
    pools: tuple[Pool, ...]
    reservations: tuple[Reservation, ...]
    ready_data: dict[str, DataFacts]
    kills: dict[TenantId, int]
    funds: dict[TenantId, int]
    ended: tuple[Claim, ...] = ()


def changes(session: Session, since: int | None, known_classes: frozenset[str]) -> Changes:
    """What happened to jobs after event number `since`, or everything when it is None.

    The version is read first: a row that is newer than it is read again next time, which is harmless.
    """
    version = session.exec(select(Event.seq).order_by(col(Event.seq).desc()).limit(1)).first() or 0
    touched: frozenset[JobId] | None = None
    if since is not None:
        query = select(Event.job_id).where(Event.seq > since).where(Event.seq <= version).distinct()
        ids = session.exec(query.where(col(Event.job_id).is_not(None))).all()
        touched = frozenset(JobId(job) for job in ids if job)
        if not touched:
            return Changes(version, touched, (), (), {})
    jobs = None if touched is None else sorted(touched)
    queued, claims = _queued(session, jobs), _claims(session, jobs)
    news = {row.class_key: row.id for row in queued if row.class_key not in known_classes}
    return Changes(version, touched, tuple(queued), tuple(claims), _requests(session, sorted(news.values())))


def _requests(session: Session, jobs: list[JobId]) -> dict[str, JobRequest]:
    """Of a job of each class, by class."""
    if not jobs:
        return {}
    query = select(Job.class_key, Job.request).where(among(session.connection(), col(Job.id), jobs))
    return {key: codec.request_from_json(request) for key, request in session.exec(query).all()}


def _queued(session: Session, jobs: list[JobId] | None) -> list[QueuedRow]:
    query = columns(col(Job.id), col(Job.class_key), col(Job.tenant_id), col(Job.queued_ms))
    avoiding = select(Job.id, Job.avoid)
    preempting = select(Job.id, Job.kill_sets, Job.last_kill_ms, Job.preempted)
    where: list[Any] = [Job.state == JobState.QUEUED.value]
    if jobs is not None:
        where.append(among(session.connection(), col(Job.id), jobs))
    avoid = {
        job: tuple((CenterId(center), until) for center, until in pairs)
        for job, pairs in session.exec(avoiding.where(*where).where(Job.attempts > 1)).all()
    }
    touched = (col(Job.preempted) > 0) | col(Job.last_kill_ms).is_not(None)
    kills = {
        job: Kills(sets, last_ms, suffered)
        for job, sets, last_ms, suffered in session.exec(preempting.where(*where).where(touched)).all()
    }
    once = _Once[str]()
    return [
        QueuedRow(
            id=JobId(row.id),
            class_key=once(row.class_key),
            tenant=TenantId(once(row.tenant_id)),
            queued_ms=row.queued_ms,
            avoid=avoid.get(row.id, ()),
            kills=kills.get(row.id),
        )
        for row in _read(session, query.where(*where))
    ]


def _read(session: Session, query: Executable) -> Result[Any]:
    return session.execute(query, execution_options={"yield_per": ROWS_AT_ONCE})


_AT_CENTER = [s.value for s in RunState if s.at_center]

_HOLDS = col(Run.state).in_(_AT_CENTER) | col(Run.stop_owed_ms).is_not(None)


def _claims(session: Session, jobs: list[JobId] | None) -> list[tuple[JobId, Claim]]:
    """Live runs at centers, and ended ones that still owe a stop: both hold capacity (law 7)."""
    where = [_HOLDS] if jobs is None else [_HOLDS, among(session.connection(), col(Run.job_id), jobs)]
    return _read_claims(session, where)


def _ended(session: Session, pools: Sequence[Pool], facts: Sequence[CenterFacts]) -> tuple[Claim, ...]:
    """Runs that have ended since the reports of these pools were made.

    A center that does not answer has none: nobody saw them end.
    """
    lag_ms = {center.id: center.report_lag_s * 1000 for center in facts if center.health is Health.FRESH}
    since: dict[int, list[PoolId]] = {}  # a center reports all its pools at once
    for pool in pools:
        if pool.center in lag_ms:
            since.setdefault(pool.as_of_ms - lag_ms[pool.center], []).append(pool.id)
    if not since:
        return ()
    connection = session.connection()
    later = [
        (col(Run.ended_ms) > at_ms) & among(connection, col(Run.pool_id), there)
        for at_ms, there in since.items()
    ]
    where = [~_HOLDS, col(Run.ended_ms) > min(since), or_(*later)]
    return tuple(claim for _, claim in _read_claims(session, where))


def _read_claims(session: Session, where: Sequence[ColumnElement[bool]]) -> list[tuple[JobId, Claim]]:
    run_columns: tuple[Any, ...] = (
        *(col(Run.id), col(Run.job_id), col(Run.center_id), col(Run.pool_id), col(Run.spec), col(Run.nodes)),
        *(col(Run.started_ms), col(Run.state), col(Run.stop_reason), col(Run.stop_for)),
        *(col(Run.rate_micro_per_hour), col(Run.checkpoint_ms)),
    )
    job_columns: tuple[Any, ...] = (
        *(col(Job.tier), col(Job.tenant_id), col(Job.class_key)),
        *(col(Job.request), col(Job.queued_ms), col(Job.preempted)),
    )
    query = (
        columns(*run_columns, *job_columns)
        .join(Job, col(Job.id) == col(Run.job_id))
        .where(*where)
        .where(col(Run.pool_id).is_not(None))
    )
    name, shape, request_of = _Once[str](), _Once[NodeShape](), _Once[JobRequest]()
    found = []
    for row in _read(session, query):
        spec = codec.spec_from_json(row.spec)
        assert spec is not None, "a placed run has a spec"
        request = request_of(_placed(codec.request_from_json(row.request)))
        job = JobId(row.job_id)
        claim = Claim(
            run=RunId(row.id),
            center=CenterId(name(row.center_id or "")),
            pool=PoolId(name(row.pool_id)),
            shape=shape(spec.shape),
            nodes=row.nodes,
            started_ms=row.started_ms,
            tier=Tier(row.tier),
            tenant=TenantId(name(row.tenant_id)),
            job=job,
            class_key=name(row.class_key),
            state=RunState(row.state),
            stopping=_to_end(row),
            estimate_s=request.estimate_s,
            rate_micro_per_hour=row.rate_micro_per_hour,
            request=request,
            queued_ms=row.queued_ms,
            checkpoint_ms=row.checkpoint_ms if request.resumable else None,
            preempted=row.preempted,
        )
        found.append((job, claim))
    return found


def _placed(request: JobRequest) -> JobRequest:
    """What of a request matters for placement: see core.problem.class_key."""
    return replace(request, command="", env=(), labels=())


def _to_end(run: Any) -> bool:
    """Asked to end, or to be asked once its preemptor was taken, or over and still owing a stop."""
    asked = run.stop_reason is not None or run.stop_for is not None
    return asked or not RunState(run.state).live


USAGE_HALF_LIVES = 8
"""Usage that is older than so many half-lives counts less than a half per cent and is left out."""


def usage(session: Session, now_ms: int, half_life_s: int) -> dict[TenantId, int]:
    """Accelerator-seconds of ended runs per tenant, each halved for every half-life since its end.

    Ends are taken together by the hour.  A node without accelerators counts nothing.
    """
    hour = col(Run.ended_ms) // 3_600_000
    shape = col(Run.spec)["shape"]
    # Shapes written before cards had parts are of whole ones.
    permille = func.coalesce(shape["card_permille"].as_integer(), 1000)
    cards = shape["accelerators"].as_integer() * permille / 1000.0
    taken = func.sum((col(Run.ended_ms) - col(Run.started_ms)) * cards * col(Run.nodes))
    since_ms = now_ms - USAGE_HALF_LIVES * half_life_s * 1000
    query = (
        select(Job.tenant_id, func.max(Run.ended_ms), taken)
        .join(Job, col(Job.id) == col(Run.job_id))
        .where(col(Run.ended_ms) > since_ms)
        .where(col(Run.started_ms).is_not(None))
        .group_by(col(Job.tenant_id), hour)
    )
    sums: dict[TenantId, float] = {}
    for tenant, ended_ms, card_ms in session.execute(query).all():
        age_s = max(0, now_ms - ended_ms) / 1000
        left = (card_ms or 0) / 1000 * 0.5 ** (age_s / half_life_s)
        sums[TenantId(tenant)] = sums.get(TenantId(tenant), 0.0) + left
    return {tenant: int(seconds) for tenant, seconds in sums.items()}


def _kills(session: Session, since_ms: int) -> dict[TenantId, int]:
    """Runs per tenant that were stopped for others since then, and those that are to be."""
    query = (
        select(Job.tenant_id, func.count())
        .join(Event, col(Event.job_id) == col(Job.id))
        .where(Event.at_ms > since_ms)
        .where(Event.kind == "run.preempted")
        .group_by(col(Job.tenant_id))
    )
    kills = Counter(preemptors.to_preempt(session))
    kills.update({TenantId(tenant): int(count) for tenant, count in session.exec(query).all()})
    return dict(kills)


def world(session: Session, now_ms: int = 0) -> World:
    """What a round reads anew each time.

    `now_ms` ends the hour in which kills count, and learned waits are aged to it.
    """
    rows = session.exec(select(ReservationRow).order_by(col(ReservationRow.id))).all()
    facts, pools = centers.center_facts(session), centers.pools(session, now_ms=now_ms)
    held_in = {row.pool_id for row in rows}
    return World(
        centers=tuple(facts),
        pools=tuple(pools),
        ended=_ended(session, [pool for pool in pools if pool.id in held_in], facts),
        ready_data=copies.facts(session, now_ms),
        kills=_kills(session, now_ms - 3_600_000),
        funds=purses.left(session, now_ms),
        reservations=tuple(
            Reservation(
                id=row.id or 0,
                pool=PoolId(row.pool_id),
                slot=row.slot,
                nodes=row.nodes,
                job=JobId(row.job_id),
                not_before_ms=row.not_before_ms,
                expires_ms=row.expires_ms,
                why=row.why,
                node_names=tuple(row.node_names),
            )
            for row in rows
        ),
    )
