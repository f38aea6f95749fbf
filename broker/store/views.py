"""What the queue API reads in one transaction, and logins.

What belongs here: reads that join what several store modules know, for one request each.  What does
not: rules; those are in the modules named by the nouns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, select

from broker.core.model import CenterId, JobId, Pool, RunId, RunState, TenantId
from broker.store import accounts, centers, datasets, jobs, lease, purses
from broker.store.accounts import Caller
from broker.store.centers import CenterView, NoSuchCenter
from broker.store.datasets import CopyView
from broker.store.job_pages import list_jobs
from broker.store.jobs import JobFilter, JobSummary, JobView, NoSuchJob
from broker.store.paging import Paging
from broker.store.writer import Rejected, Tx
from broker.tables import Account, Center, Job, Run, UserLink


class LoginChanged(Rejected):
    """The account was frozen or got another password while the login was checked."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A job, its place in the queue, why it waits, and how it stands with its data at centers."""

    job: JobView
    position: int | None
    reasons: tuple[dict[str, Any], ...]
    data: tuple[CopyView, ...] = ()


@dataclass(frozen=True, slots=True)
class RunLog:
    """What reading the log of a run needs to know of it."""

    run: RunId
    job: JobId
    state: RunState
    nodes: int
    placed: bool
    collect_owed: bool
    logs_copied_ms: int


def login(tx: Tx, account: str, password_hash: str, token_hash: str, expires_ms: int) -> None:
    """Record a login whose password was checked against `password_hash`.  Raises LoginChanged."""
    row = tx.session.get_one(Account, account)
    if row.frozen_ms is not None or row.password_hash != password_hash:
        raise LoginChanged(f"account {row.name!r} has changed meanwhile")
    accounts.add_token(tx, account, token_hash, expires_ms)
    tx.event("account.login", actor=row.name, tenant=row.tenant_id, data={"account": row.name})


def job_summary(session: Session, job: JobId) -> JobSummary:
    """A job as lists show it, whoever asks.  Raises NoSuchJob."""
    row = session.get(Job, job)
    if row is None:
        raise NoSuchJob(f"there is no job {job!r}")
    return jobs.summary(row)


def job_page(
    session: Session, caller: Caller, wanted: JobFilter, paging: Paging
) -> tuple[list[JobSummary], int]:
    """A page of jobs and how many match.  Raises NoSuchCenter when the filter names an unknown one;
    a center that has left still has jobs."""
    if wanted.center and session.get(Center, wanted.center) is None:
        raise NoSuchCenter(f"centerId: there is no center {wanted.center!r}")
    return list_jobs(session, caller, wanted, paging)


def explanation(session: Session, caller: Caller, job: JobId, now_ms: int) -> Explanation:
    """Why a job waits, or where it is.  Raises NoSuchJob."""
    view = jobs.show_job(session, caller, job, None, now_ms)
    position = jobs.queue_position(session, view)
    reasons = jobs.deferral(session, view, now_ms) if position is not None else []
    waits = position is not None and view.request.datasets
    data = datasets.copies_of(session, view.request.datasets) if waits else []
    return Explanation(view, position, tuple(reasons), tuple(data))


def run_log(session: Session, run: RunId) -> RunLog | None:
    """The run of a log, whoever asks; None when there is none or its job is deleted."""
    query = select(Run, Job).join(Job, col(Job.id) == col(Run.job_id)).where(Run.id == run)
    found = session.exec(query.where(col(Job.deleted_ms).is_(None))).first()
    if found is None:
        return None
    row, job = found
    return RunLog(
        run=run,
        job=JobId(job.id),
        state=RunState(row.state),
        nodes=row.nodes,
        placed=row.center_id is not None,
        collect_owed=row.collect_owed_ms is not None,
        logs_copied_ms=row.logs_copied_ms or 0,
    )


def centers_and_leader(session: Session, now_ms: int) -> tuple[list[CenterView], str]:
    """Every center that is not archived, without counts of its runs, and who leads; "" when nobody does."""
    return centers.list_centers(session, counts=False), lease.held(session, now_ms).holder


@dataclass(frozen=True, slots=True)
class DeskFacts:
    """What platforms may ask about.  `users` are (center, its user) to (tenant, whether the account is
    frozen); `left` is purses.left."""

    users: Mapping[tuple[CenterId, str], tuple[TenantId, bool]]
    left: Mapping[TenantId, int]
    pools: Mapping[CenterId, tuple[Pool, ...]]


def desk_facts(session: Session, now_ms: int) -> DeskFacts:
    """All that is linked, limited and priced."""
    query = select(UserLink, Account).join(Account, col(Account.id) == col(UserLink.account_id))
    pools: dict[CenterId, tuple[Pool, ...]] = {}
    for pool in centers.pools(session):
        pools[pool.center] = (*pools.get(pool.center, ()), pool)
    return DeskFacts(
        users={
            (CenterId(link.center_id), link.native): (TenantId(who.tenant_id), who.frozen_ms is not None)
            for link, who in session.exec(query).all()
        },
        left=purses.left(session, now_ms),
        pools=pools,
    )
