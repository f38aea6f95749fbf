"""Leadership: one lease row whose epoch fences every write and call of a leader (law 1).

The row's times come from the one clock that all who want the lease share: the database's on PostgreSQL,
where they may be on several hosts, and this host's on SQLite, where the file lock of broker.daemon
refuses a second daemon before it gets here.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlmodel import Session, col, select

from broker.store.writer import LEADER, LostLease, Tx
from broker.tables import Lease

WOKEN = "lease"
"""Who is woken when the lease is given back."""


@dataclass(frozen=True, slots=True)
class Held:
    """Who leads, and for how long unless the lease is renewed: 0 or less when nobody does."""

    holder: str
    epoch: int
    left_ms: int


def acquire(tx: Tx, holder: str, ttl_s: float, *, alone: bool = False) -> int | None:
    """Take the lease when it is free or has run out: its epoch.

    None while another holds it.  `alone`: a file lock proves that no other daemon lives, so a lease
    that a killed one left behind is taken at once.
    """
    row = tx.session.get(Lease, LEADER, with_for_update=True)
    now_ms = _now_ms(tx.session, tx.now_ms)
    if row is None:
        row = Lease(name=LEADER)
    elif row.holder not in ("", holder) and row.expires_ms > now_ms and not alone:
        return None
    row.holder = holder
    row.epoch += 1
    row.expires_ms = now_ms + int(ttl_s * 1000)
    tx.session.add(row)
    tx.lead(row.epoch)
    tx.event("lease.acquired", data={"holder": holder, "epoch": row.epoch})
    return row.epoch


def renew(tx: Tx, holder: str, epoch: int, ttl_s: float) -> None:
    """Hold the lease longer.  Raises LostLease."""
    row = tx.session.get(Lease, LEADER, with_for_update=True)
    if row is None or row.holder != holder or row.epoch != epoch:
        raise LostLease(f"epoch {epoch} of {holder} no longer leads")
    row.expires_ms = _now_ms(tx.session, tx.now_ms) + int(ttl_s * 1000)
    tx.session.add(row)


def release(tx: Tx, holder: str, epoch: int) -> None:
    """Let the next daemon lead at once."""
    row = tx.session.get(Lease, LEADER, with_for_update=True)
    if row is not None and row.holder == holder and row.epoch == epoch:
        row.holder, row.expires_ms = "", _now_ms(tx.session, tx.now_ms)
        tx.session.add(row)
        tx.wake(WOKEN)


def held(session: Session, now_ms: int) -> Held:
    """Who leads now; `now_ms` is this host's clock."""
    query = select(Lease.holder, Lease.epoch, Lease.expires_ms).where(col(Lease.name) == LEADER)
    found = session.exec(query).first()
    if found is None:
        return Held("", 0, 0)
    holder, epoch, expires_ms = found
    return Held(holder, epoch, expires_ms - _now_ms(session, now_ms) if holder else 0)


def _now_ms(session: Session, now_ms: int) -> int:
    if session.get_bind().dialect.name != "postgresql":
        return now_ms
    clock = text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)")
    found: int = session.execute(clock).scalar_one()
    return found
