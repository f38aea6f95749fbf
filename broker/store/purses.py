"""What tenants may spend and have spent: budgets, balances, ledger entries.

What belongs here: the rows and how they move.  What does not: what is left by them
(core.charges.Purse) and bill lines (meters.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import func
from sqlmodel import Session, col, select

from broker.core import localtime
from broker.core.charges import Purse
from broker.core.model import Role, RunState, TenantId
from broker.store.accounts import Caller
from broker.store.writer import Rejected, Tx
from broker.tables import Job, LedgerEntry, Run, Setting, Tenant
from broker.tables import Purse as PurseRow

BILLING = "billing"
"""Setting: how runs are billed, as the configuration says."""

DEFAULT_ZONE = "Asia/Shanghai"

MOST_MICRO = 10**18
"""A balance or budget is at most a million million CNY: sums stay inside int64."""


class NoSuchTenant(Rejected):
    """No tenant of that id, or none that the caller may see."""


class TooMuch(Rejected):
    """A balance would pass what an account can hold."""


@dataclass(frozen=True, slots=True)
class Billing:
    """[billing] of the configuration, and the zone of its days, months and price windows.

    `interrupted`: runs that the broker or a center ended are billed too.  `by_center`: a bill is
    corrected to the center's own record when that comes.
    """

    zone: ZoneInfo
    interrupted: bool = False
    by_center: bool = True


@dataclass(frozen=True, slots=True)
class PurseView:
    """A tenant's purse as shown.  `committed_micro`: what its live runs are expected to cost yet."""

    tenant: TenantId
    purse: Purse
    month: str
    committed_micro: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One ledger entry."""

    id: int
    amount_micro: int
    balance_micro: int
    note: str
    actor: str
    at_ms: int


# ---------------------------------------------------------------- the configuration's word


def set_billing(tx: Tx, billing: Billing) -> None:
    value = f"{billing.zone.key} {int(billing.interrupted)} {int(billing.by_center)}"
    tx.session.merge(Setting(name=BILLING, value=value))


def billing(session: Session) -> Billing:
    """What the daemon has set; the defaults before it did."""
    row = session.get(Setting, BILLING)
    if row is None:
        return Billing(ZoneInfo(DEFAULT_ZONE))
    zone, interrupted, by_center = row.value.split(" ")
    return Billing(ZoneInfo(zone), interrupted == "1", by_center == "1")


# ---------------------------------------------------------------- moving


def purse(row: PurseRow | None) -> Purse:
    if row is None:
        return Purse()
    return Purse(
        spent_micro=row.spent_micro,
        month=row.month,
        month_micro=row.month_micro,
        budget_micro=row.budget_micro,
        per_month=row.per_month,
        base_micro=row.base_micro,
        balance_micro=row.balance_micro,
    )


def _locked(tx: Tx, tenant: str) -> PurseRow:
    row = tx.session.get(PurseRow, tenant, with_for_update=True)
    if row is None:
        row = PurseRow(tenant_id=tenant)
        tx.session.add(row)
        tx.session.flush()
    return row


def charge(tx: Tx, tenant: str, micro: int, zone: ZoneInfo) -> None:
    """A bill line was written; `micro` is below 0 in a correction to less."""
    row, month = _locked(tx, tenant), localtime.month(tx.now_ms, zone)
    if row.month != month:
        row.month, row.month_micro = month, 0
    row.spent_micro += micro
    row.month_micro += micro
    if row.balance_micro is not None:
        row.balance_micro -= micro
    tx.session.add(row)


def set_budget(tx: Tx, tenant: TenantId, budget_micro: int | None, *, per_month: bool, actor: str) -> None:
    """Give a tenant a budget, per month or from now on, or none.

    Another amount of a budget that it has goes on counting from where that began.  Raises NoSuchTenant.
    """
    _known(tx.session, tenant)
    row = _locked(tx, tenant)
    if row.budget_micro is None or row.per_month:
        row.base_micro = row.spent_micro
    row.budget_micro, row.per_month = budget_micro, per_month
    tx.session.add(row)
    data = {"tenant": tenant, "budgetMicro": budget_micro, "perMonth": per_month}
    tx.event("tenant.budget", tenant=tenant, actor=actor, data=data)
    tx.wake("cycle", "desk")


def enter(tx: Tx, tenant: TenantId, amount_micro: int, *, note: str, actor: str) -> Entry:
    """Add to a tenant's balance, or take from it.  From the first entry on what it has prepaid is all it
    may spend.  Raises NoSuchTenant, TooMuch."""
    _known(tx.session, tenant)
    row = _locked(tx, tenant)
    balance = (row.balance_micro or 0) + amount_micro
    if abs(balance) > MOST_MICRO:
        raise TooMuch(f"amount: the balance of {tenant!r} would pass {MOST_MICRO // 10**6} CNY")
    row.balance_micro = balance
    tx.session.add(row)
    entry = LedgerEntry(
        tenant_id=tenant,
        amount_micro=amount_micro,
        balance_micro=balance,
        note=note,
        actor=actor,
        at_ms=tx.now_ms,
    )
    tx.session.add(entry)
    tx.session.flush()
    data = {"tenant": tenant, "amountMicro": amount_micro, "balanceMicro": balance, "note": note}
    tx.event("tenant.ledger", tenant=tenant, actor=actor, data=data)
    tx.wake("cycle", "desk")
    return _entry(entry)


# ---------------------------------------------------------------- looking


def _known(session: Session, tenant: str) -> None:
    if session.get(Tenant, tenant) is None:
        raise NoSuchTenant(f"there is no tenant {tenant!r}")


def _visible(session: Session, caller: Caller, tenant: str) -> None:
    """Everybody sees the own tenant, operators all; a foreign one is as one that does not exist."""
    if caller.role is not Role.OPERATOR and tenant != caller.tenant:
        raise NoSuchTenant(f"there is no tenant {tenant!r}")
    _known(session, tenant)


def view(session: Session, caller: Caller, tenant: str, now_ms: int) -> PurseView:
    """Raises NoSuchTenant."""
    _visible(session, caller, tenant)
    return PurseView(
        TenantId(tenant),
        purse(session.get(PurseRow, tenant)),
        localtime.month(now_ms, billing(session).zone),
        _committed(session, tenant),
    )


def _committed(session: Session, tenant: str) -> int:
    """What live runs of a tenant were expected to cost when they were placed."""
    live = [s.value for s in RunState if s.at_center]
    query = (
        select(Run.placement)
        .join(Job, col(Job.id) == col(Run.job_id))
        .where(col(Run.state).in_(live))
        .where(Job.tenant_id == tenant)
    )
    return sum(int(placement.get("estimatedCostMicro", 0)) for placement in session.exec(query).all())


def left(session: Session, now_ms: int) -> dict[TenantId, int]:
    """What every tenant with a budget or balance may still spend."""
    rows: Sequence[PurseRow] = session.exec(
        select(PurseRow).where(
            col(PurseRow.budget_micro).is_not(None) | col(PurseRow.balance_micro).is_not(None)
        )
    ).all()
    if not rows:
        return {}
    month = localtime.month(now_ms, billing(session).zone)
    found = {TenantId(row.tenant_id): purse(row).left(month) for row in rows}
    return {tenant: micro for tenant, micro in found.items() if micro is not None}


def ledger(session: Session, caller: Caller, tenant: str, *, page: int, size: int) -> tuple[list[Entry], int]:
    """One page of a tenant's entries, the newest first, and how many there are.  Raises NoSuchTenant."""
    _visible(session, caller, tenant)
    where = LedgerEntry.tenant_id == tenant
    total = session.execute(select(func.count()).select_from(LedgerEntry).where(where)).scalar_one()
    query = select(LedgerEntry).where(where).order_by(col(LedgerEntry.id).desc())
    rows = session.exec(query.limit(size).offset((page - 1) * size)).all()
    return [_entry(row) for row in rows], int(total)


def _entry(row: LedgerEntry) -> Entry:
    values: dict[str, Any] = row.model_dump(exclude={"tenant_id"})
    return Entry(**values)
