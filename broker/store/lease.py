"""Leadership: one lease row whose epoch fences every write and call of a leader (law 1).

The row's times come from this process's clock; with one host's SQLite that is the only clock there
is, and the file lock in broker.daemon refuses a second daemon before it gets here.
"""

from __future__ import annotations

from broker.store.writer import LEADER, LostLease, Tx
from broker.tables import Lease


def acquire(tx: Tx, holder: str, ttl_s: float, *, alone: bool = False) -> tuple[int, int] | None:
    """Take the lease when it is free or has run out: its epoch and its end in milliseconds.

    None while another holds it.  `alone`: a file lock proves that no other daemon lives, so a lease
    that a killed one left behind is taken at once.
    """
    row = tx.session.get(Lease, LEADER, with_for_update=True)
    if row is None:
        row = Lease(name=LEADER)
    elif row.holder not in ("", holder) and row.expires_ms > tx.now_ms and not alone:
        return None
    row.holder = holder
    row.epoch += 1
    row.expires_ms = tx.now_ms + int(ttl_s * 1000)
    tx.session.add(row)
    tx.lead(row.epoch)
    tx.event("lease.acquired", data={"holder": holder, "epoch": row.epoch})
    return row.epoch, row.expires_ms


def renew(tx: Tx, holder: str, epoch: int, ttl_s: float) -> int:
    """Hold the lease longer; its new end in milliseconds.  Raises LostLease."""
    row = tx.session.get(Lease, LEADER, with_for_update=True)
    if row is None or row.holder != holder or row.epoch != epoch:
        raise LostLease(f"epoch {epoch} of {holder} no longer leads")
    row.expires_ms = tx.now_ms + int(ttl_s * 1000)
    tx.session.add(row)
    return row.expires_ms


def release(tx: Tx, holder: str, epoch: int) -> None:
    """Let the next daemon lead at once."""
    row = tx.session.get(Lease, LEADER, with_for_update=True)
    if row is not None and row.holder == holder and row.epoch == epoch:
        row.holder, row.expires_ms = "", tx.now_ms
        tx.session.add(row)
