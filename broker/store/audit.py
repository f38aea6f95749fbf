"""The event log as people read it: the audit of what people changed, and what happens as it does.

What belongs here: reading events.  What does not: writing them (Tx.event), and what the leader's mirror
reads of them (feed.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_
from sqlalchemy import text as sql
from sqlmodel import Session, col, select

from broker.core.model import Role
from broker.store.accounts import KEY_SIGN, Caller
from broker.store.journal import EVENTS
from broker.store.paging import Paging
from broker.tables import Counter, Event, Job

BY_PEOPLE = "event.actor <> '' AND event.actor <> 'broker'"
"""As the partial index has it; with bound values SQLite would not use the index."""


@dataclass(frozen=True, slots=True)
class EventView:
    """An event, and whom it concerns: the tenant, and the account whose job it is about."""

    seq: int
    at_ms: int
    kind: str
    job: str
    run: str
    center: str
    actor: str
    data: dict[str, Any]
    tenant: str
    account: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Empty and None mean any.  `kind` is one, or the first word of several: "account"."""

    actor: str = ""
    kind: str = ""
    from_ms: int | None = None
    to_ms: int | None = None


Sight = tuple[Role, str]
"""What somebody sees of the events: a user those of the own jobs, a tenant-admin those of the tenant, an
operator all."""


def sight(caller: Caller) -> Sight:
    match caller.role:
        case Role.OPERATOR:
            return Role.OPERATOR, ""
        case Role.TENANT_ADMIN:
            return Role.TENANT_ADMIN, caller.tenant
    return Role.USER, caller.id


def seen_in(event: EventView) -> tuple[Sight, ...]:
    """Every sight that has the event."""
    return (Role.OPERATOR, ""), (Role.TENANT_ADMIN, event.tenant), (Role.USER, event.account)


def may_see(caller: Caller, event: EventView) -> bool:
    return sight(caller) in seen_in(event)


def audit(session: Session, tenant: str, wanted: AuditFilter, paging: Paging) -> tuple[list[EventView], int]:
    """One page of what people changed, in the order of time, and how much it is in all; of one tenant
    unless `tenant` is ""."""
    where: list[ColumnElement[bool]] = [and_(sql(BY_PEOPLE))]
    if tenant:
        where.append(or_(col(Event.tenant_id) == tenant, col(Job.tenant_id) == tenant))
    if wanted.actor:
        keyed = col(Event.actor).startswith(wanted.actor + KEY_SIGN, autoescape=True)
        where.append(or_(col(Event.actor) == wanted.actor, keyed))
    if wanted.kind:
        grouped = col(Event.kind).startswith(wanted.kind + ".", autoescape=True)
        where.append(or_(col(Event.kind) == wanted.kind, grouped))
    if wanted.from_ms is not None:
        where.append(col(Event.at_ms) >= wanted.from_ms)
    if wanted.to_ms is not None:
        where.append(col(Event.at_ms) <= wanted.to_ms)
    counted = select(func.count()).select_from(Event)
    counted = counted.join(Job, col(Job.id) == col(Event.job_id), isouter=True)
    total = session.exec(counted.where(*where)).one()
    order = col(Event.seq).desc() if paging.descending else col(Event.seq)
    page = _events().where(*where).order_by(order)
    page = page.limit(paging.size).offset((paging.page - 1) * paging.size)
    return [_view(*row) for row in session.exec(page).all()], total


def newest(session: Session) -> int:
    """The number of the last event."""
    row = session.get(Counter, EVENTS)
    return row.value if row is not None else 0


def events_after(session: Session, seq: int, *, upto: int, limit: int) -> list[EventView]:
    """Whoever's events in the order of their numbers, from behind `seq` to `upto`, at most `limit`."""
    query = _events().where(col(Event.seq) > seq).where(col(Event.seq) <= upto)
    return [_view(*row) for row in session.exec(query.order_by(col(Event.seq)).limit(limit)).all()]


def _events() -> Any:
    return select(Event, Job.account_id, Job.tenant_id).join(
        Job, col(Job.id) == col(Event.job_id), isouter=True
    )


def _view(row: Event, account: str | None, tenant: str | None) -> EventView:
    return EventView(
        seq=row.seq,
        at_ms=row.at_ms,
        kind=row.kind,
        job=row.job_id or "",
        run=row.run_id or "",
        center=row.center_id or "",
        actor=row.actor,
        data=row.data,
        tenant=tenant or row.tenant_id or "",
        account=account or "",
    )
