"""What the leader's mirror reads: everything once, then only jobs that changed since an event."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, select

from broker.core.model import (
    CenterFacts,
    CenterId,
    Claim,
    JobId,
    JobRequest,
    JobState,
    Pool,
    PoolId,
    Reservation,
    RunId,
    RunState,
    TenantId,
    Tier,
)
from broker.store import centers, codec, datasets
from broker.tables import Event, Job, Run
from broker.tables import Reservation as ReservationRow

IDS_PER_QUERY = 500


@dataclass(frozen=True, slots=True)
class QueuedRow:
    """A job that waits; `request` is given once per class, in the first row of it."""

    id: JobId
    class_key: str
    tenant: TenantId
    queued_ms: int
    avoid: tuple[tuple[CenterId, int], ...]


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
    """The small tables, read whole for every round.  `moving`: data sets on their way somewhere."""

    centers: tuple[CenterFacts, ...]
    pools: tuple[Pool, ...]
    reservations: tuple[Reservation, ...]
    moving: frozenset[str]


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
    queued: list[QueuedRow] = []
    claims: list[tuple[JobId, Claim]] = []
    for chunk in _chunks(touched):
        queued += _queued(session, chunk)
        claims += _claims(session, chunk)
    news = {row.class_key: row.id for row in queued if row.class_key not in known_classes}
    requests: dict[str, JobRequest] = {}
    for chunk in _chunks(frozenset(news.values())):
        assert chunk is not None
        rows = session.exec(select(Job.class_key, Job.request).where(col(Job.id).in_(chunk)))
        requests |= {key: codec.request_from_json(request) for key, request in rows.all()}
    return Changes(version, touched, tuple(queued), tuple(claims), requests)


def _chunks(jobs: frozenset[JobId] | None) -> Iterable[list[JobId] | None]:
    if jobs is None:
        return [None]
    ordered = sorted(jobs)
    return [ordered[i : i + IDS_PER_QUERY] for i in range(0, len(ordered), IDS_PER_QUERY)]


def _queued(session: Session, jobs: list[JobId] | None) -> list[QueuedRow]:
    query = select(Job.id, Job.class_key, Job.tenant_id, Job.queued_ms)
    avoiding = select(Job.id, Job.avoid)
    where: list[Any] = [Job.state == JobState.QUEUED.value]
    if jobs is not None:
        where.append(col(Job.id).in_(jobs))
    avoid = {
        job: tuple((CenterId(center), until) for center, until in pairs)
        for job, pairs in session.exec(avoiding.where(*where).where(Job.attempts > 1)).all()
    }
    return [
        QueuedRow(JobId(job), key, TenantId(tenant), queued_ms, avoid.get(job, ()))
        for job, key, tenant, queued_ms in session.exec(query.where(*where)).all()
    ]


_AT_CENTER = [s.value for s in RunState if s.at_center]


def _claims(session: Session, jobs: list[JobId] | None) -> list[tuple[JobId, Claim]]:
    """Live runs at centers, and ended ones that still owe a stop: both hold capacity (law 7)."""
    query = (
        select(Run, Job.tier, Job.tenant_id)
        .join(Job, col(Job.id) == col(Run.job_id))
        .where(col(Run.state).in_(_AT_CENTER) | col(Run.stop_owed_ms).is_not(None))
        .where(col(Run.pool_id).is_not(None))
    )
    if jobs is not None:
        query = query.where(col(Run.job_id).in_(jobs))
    found = []
    for run, tier, tenant in session.exec(query).all():
        spec = codec.spec_from_json(run.spec)
        assert spec is not None, "a placed run has a spec"
        claim = Claim(
            run=RunId(run.id),
            center=CenterId(run.center_id or ""),
            pool=PoolId(run.pool_id or ""),
            shape=spec.shape,
            nodes=run.nodes,
            started_ms=run.started_ms,
            tier=Tier(tier),
            tenant=TenantId(tenant),
        )
        found.append((JobId(run.job_id), claim))
    return found


def world(session: Session) -> World:
    rows = session.exec(select(ReservationRow).order_by(col(ReservationRow.id))).all()
    return World(
        centers=tuple(centers.center_facts(session)),
        pools=tuple(centers.pools(session)),
        moving=frozenset(copy.dataset for copy in datasets.moving(session)),
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
