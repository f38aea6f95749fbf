"""Online services as those who pass requests on to them see them."""

from __future__ import annotations

from dataclasses import dataclass

from sqlmodel import Session, col, select

from broker.core.model import JobId, Kind, PublicStatus, RunState
from broker.store import accounts
from broker.store.accounts import Caller
from broker.tables import Job, Run


@dataclass(frozen=True, slots=True)
class Service:
    """`address` is that of its running run, "" when there is none or its center has not told it, and
    `center` is who told it.

    `visitor` is the account that was asked for, None when it does not exist or is frozen.
    """

    job: JobId
    account: str
    tenant: str
    status: PublicStatus
    public: bool
    address: str
    center: str
    visitor: Caller | None


def find(session: Session, job: JobId, visitor: str = "") -> Service | None:
    """A service that is not deleted, whoever asks; `visitor` is the id of an account to look up too."""
    query = select(Job).where(Job.id == job).where(Job.kind == Kind.ONLINE.value)
    row = session.exec(query.where(col(Job.deleted_ms).is_(None))).first()
    if row is None:
        return None
    runs = select(Run.address, Run.center_id).where(Run.job_id == job)
    address, center = session.exec(runs.where(Run.state == RunState.RUNNING.value)).first() or ("", "")
    return Service(
        job=job,
        account=row.account_id,
        tenant=row.tenant_id,
        status=PublicStatus(row.status),
        public=bool(row.request.get("public")),
        address=address or "",
        center=center or "",
        visitor=accounts.unfrozen(session, visitor) if visitor else None,
    )
