"""Bill lines as people see them: listed, and summed by center, spec, day, tenant or job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, true
from sqlmodel import Session, col, select

from broker.core.model import Role
from broker.store.accounts import Caller
from broker.store.centers import NoSuchCenter
from broker.store.paging import Paging
from broker.tables import Account, Bill, Center, Job

SORTS: dict[str, Any] = {"createTime": Bill.created_ms, "id": Bill.id, "amount": Bill.amount_micro}

GROUPS: dict[str, Any] = {
    "center": Bill.center_id,
    "spec": Bill.spec_id,
    "day": Bill.day,
    "tenant": Bill.tenant_id,
    "job": Bill.job_id,
}
"""What bills are summed by."""


@dataclass(frozen=True, slots=True)
class BillFilter:
    """None or empty means any.  Times are inclusive bounds of when a line was written."""

    created_after_ms: int | None = None
    created_before_ms: int | None = None
    center: str = ""
    job: str = ""
    spec: str = ""
    mine: bool = False


@dataclass(frozen=True, slots=True)
class BillView:
    """One line."""

    id: str
    kind: str
    job: str
    job_name: str
    run: str
    account: str
    account_name: str
    tenant: str
    center: str
    spec: str
    nodes: int
    started_ms: int | None
    ended_ms: int | None
    seconds: int
    amount_micro: int
    created_ms: int


@dataclass(frozen=True, slots=True)
class BillSum:
    """The lines of one group; `seconds` is the time of their runs, whatever their nodes."""

    key: str
    name: str
    lines: int
    runs: int
    seconds: int
    amount_micro: int


@dataclass(frozen=True, slots=True)
class Summary:
    """One page of sums, how many groups there are, and what all of them come to."""

    sums: list[BillSum]
    groups: int
    amount_micro: int


def _where(session: Session, caller: Caller, wanted: BillFilter) -> list[ColumnElement[bool]]:
    """Raises NoSuchCenter; a center that has left still has bills."""
    if wanted.center and session.get(Center, wanted.center) is None:
        raise NoSuchCenter(f"centerId: there is no center {wanted.center!r}")
    where = [_visible(caller)]
    if wanted.mine:
        where.append(col(Bill.account_id) == caller.id)
    for column, value in (
        (Bill.center_id, wanted.center),
        (Bill.job_id, wanted.job),
        (Bill.spec_id, wanted.spec),
    ):
        if value:
            where.append(col(column) == value)
    if wanted.created_after_ms is not None:
        where.append(col(Bill.created_ms) >= wanted.created_after_ms)
    if wanted.created_before_ms is not None:
        where.append(col(Bill.created_ms) <= wanted.created_before_ms)
    return where


def _visible(caller: Caller) -> ColumnElement[bool]:
    """As jobs are: a user their own, a tenant-admin the tenant's, an operator all."""
    if caller.role is Role.OPERATOR:
        return true()
    if caller.role is Role.TENANT_ADMIN:
        return col(Bill.tenant_id) == caller.tenant
    return col(Bill.account_id) == caller.id


def list_bills(
    session: Session, caller: Caller, wanted: BillFilter, paging: Paging
) -> tuple[list[BillView], int]:
    """One page of lines, and how many match; those of deleted jobs are there too.  Raises NoSuchCenter."""
    where = _where(session, caller, wanted)
    total = session.execute(select(func.count()).select_from(Bill).where(*where)).scalar_one()
    key = col(SORTS[paging.sort])
    order = [key.desc(), col(Bill.id).desc()] if paging.descending else [key, col(Bill.id)]
    query = (
        select(Bill, Job.name, Account.name)
        .join(Job, col(Job.id) == col(Bill.job_id))
        .join(Account, col(Account.id) == col(Bill.account_id))
        .where(*where)
        .order_by(*order)
        .limit(paging.size)
        .offset((paging.page - 1) * paging.size)
    )
    return [_view(bill, job, account) for bill, job, account in session.exec(query).all()], int(total)


def _view(bill: Bill, job_name: str, account_name: str) -> BillView:
    return BillView(
        id=bill.id,
        kind=bill.kind,
        job=bill.job_id,
        job_name=job_name,
        run=bill.run_id,
        account=bill.account_id,
        account_name=account_name,
        tenant=bill.tenant_id,
        center=bill.center_id,
        spec=bill.spec_id,
        nodes=bill.nodes,
        started_ms=bill.started_ms,
        ended_ms=bill.ended_ms,
        seconds=bill.seconds,
        amount_micro=bill.amount_micro,
        created_ms=bill.created_ms,
    )


def summarize(session: Session, caller: Caller, wanted: BillFilter, group_by: str, paging: Paging) -> Summary:
    """Sums per group, sorted by key or amount.  Raises NoSuchCenter."""
    where = _where(session, caller, wanted)
    key, amount = col(GROUPS[group_by]), func.sum(Bill.amount_micro)
    groups, whole = session.execute(
        select(func.count(func.distinct(key)), func.coalesce(amount, 0)).where(*where)
    ).one()
    by = amount if paging.sort == "amount" else key
    order = [by.desc(), key.desc()] if paging.descending else [by, key]
    columns: Any = (key, func.count(), func.count(func.distinct(Bill.run_id)), func.sum(Bill.seconds), amount)
    query = (
        select(*columns)
        .where(*where)
        .group_by(key)
        .order_by(*order)
        .limit(paging.size)
        .offset((paging.page - 1) * paging.size)
    )
    rows = session.execute(query).all()
    names = _names(session, group_by, [str(row[0]) for row in rows])
    sums = [
        BillSum(str(of), names.get(str(of), ""), int(lines), int(runs), int(seconds), int(micro))
        for of, lines, runs, seconds, micro in rows
    ]
    return Summary(sums, int(groups), int(whole))


def _names(session: Session, group_by: str, keys: list[str]) -> dict[str, str]:
    """What people call the groups, where they have names."""
    if group_by == "center":
        return dict(session.exec(select(Center.id, Center.name).where(col(Center.id).in_(keys))).all())
    if group_by == "job":
        return dict(session.exec(select(Job.id, Job.name).where(col(Job.id).in_(keys))).all())
    return {}
