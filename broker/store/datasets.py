"""Data sets and their copies at centers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import or_
from sqlmodel import Session, col, select

from broker.adapter import CopyRef, CopySighting, CopyState
from broker.core.model import CenterId, Role
from broker.store.accounts import Caller
from broker.store.writer import Tx
from broker.tables import Copy, Dataset


@dataclass(frozen=True, slots=True)
class NewDataset:
    id: str
    account: str
    tenant: str
    title: str
    bytes: int
    desc: str = ""
    labels: str = ""
    md5: str = ""
    public: bool = False
    actor: str = ""


def add_dataset(tx: Tx, new: NewDataset) -> None:
    """Record data that lies whole below the data directory."""
    tx.session.add(
        Dataset(
            id=new.id,
            account_id=new.account,
            tenant_id=new.tenant,
            title=new.title,
            desc=new.desc,
            labels=new.labels,
            bytes=new.bytes,
            md5=new.md5,
            public=new.public,
            created_ms=tx.now_ms,
        )
    )
    data = {"dataset": new.id, "bytes": new.bytes}
    tx.event("dataset.created", actor=new.actor or new.account, tenant=new.tenant, data=data)


def unusable(session: Session, caller: Caller, datasets: Collection[str]) -> list[str]:
    """Those of `datasets` that do not exist or that the caller may not read."""
    query = select(Dataset.id).where(col(Dataset.id).in_(datasets))
    if caller.role is not Role.OPERATOR:
        own = or_(
            col(Dataset.public).is_(True),
            col(Dataset.account_id) == caller.id,
            (col(Dataset.tenant_id) == caller.tenant) & (caller.role is Role.TENANT_ADMIN),
        )
        query = query.where(own)
    known = set(session.exec(query).all())
    return [dataset for dataset in datasets if dataset not in known]


def missing_copies(tx: Tx, center: CenterId, datasets: Collection[str]) -> bool:
    """True when a data set is not READY at a center; asks for those that are not."""
    missing = False
    for dataset in datasets:
        row = tx.session.get(Copy, (dataset, center))
        if row is None:
            size = tx.session.get_one(Dataset, dataset).bytes
            row = Copy(dataset_id=dataset, center_id=center, bytes=size)
            tx.event("copy.wanted", center=center, data={"dataset": dataset})
        elif row.state == CopyState.FAILED and tx.now_ms - row.used_ms > RETRY_S * 1000:
            row.state, row.message = CopyState.WANTED, ""
        missing |= row.state != CopyState.READY
        if row.state != CopyState.FAILED:
            row.used_ms = tx.now_ms
        tx.session.add(row)
    if missing:
        tx.wake("stage")
    return missing


RETRY_S = 300
"""A copy that failed is tried again when a job still wants it after so long."""


def moving(session: Session) -> list[CopyRef]:
    """Copies on their way, each with its source below the data directory."""
    states = [CopyState.WANTED.value, CopyState.MOVING.value]
    query = select(Copy).where(col(Copy.state).in_(states)).order_by(Copy.dataset_id)
    return [
        CopyRef(
            dataset=row.dataset_id,
            center=CenterId(row.center_id),
            source=row.dataset_id,
            bytes=row.bytes,
            remote=row.remote,
        )
        for row in session.exec(query).all()
    ]


def record_copy(tx: Tx, copy: CopyRef, seen: CopySighting, *, epoch: int) -> None:
    """One step of a copy; a round may place its jobs once it is READY."""
    tx.fence(epoch)
    row = tx.session.get_one(Copy, (copy.dataset, copy.center))
    if row.state != seen.state:
        data = {"dataset": copy.dataset, "state": seen.state.value, "message": seen.message}
        tx.event("copy.changed", center=copy.center, data=data)
    row.state, row.remote, row.message = seen.state.value, seen.remote, seen.message
    row.bytes_done = copy.bytes if seen.state is CopyState.READY else seen.bytes_done
    row.used_ms = tx.now_ms
    tx.session.add(row)
    if seen.state in (CopyState.READY, CopyState.FAILED):
        tx.wake("cycle")


def remotes(session: Session, center: CenterId, datasets: Collection[str]) -> tuple[tuple[str, str], ...]:
    """(data set, its name at the center) for each data set that is READY there."""
    query = select(Copy).where(Copy.center_id == center).where(col(Copy.dataset_id).in_(datasets))
    rows = {row.dataset_id: row.remote for row in session.exec(query).all() if row.state == CopyState.READY}
    return tuple((dataset, rows[dataset]) for dataset in datasets if dataset in rows)
