"""Copies of data sets at centers: wanted, moving, ready, failed, owed removal.

What belongs here: what is where, which is a cache: what no waiting or living job reads may go, the
longest unused first.  What does not: moving bytes (broker.stage and adapters) and data sets as people
see them (store/datasets.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import delete, func
from sqlmodel import Session, col, select

from broker.adapter import AssetKind, CopyRef, CopySighting, CopyState
from broker.core.model import CenterId, DataFacts, JobState
from broker.store import assets, datasets
from broker.store.writer import Tx
from broker.tables import Asset, Copy, Dataset, Job, JobDataset

RETRY_S = 300
"""A copy that failed is tried again when a job still wants it after so long."""

ON_THE_WAY = (CopyState.WANTED, CopyState.MOVING, CopyState.EVICTING)


@dataclass(frozen=True, slots=True)
class CopyWork:
    """A copy that something is to be done about: brought, or removed where `evicting`."""

    ref: CopyRef
    evicting: bool
    tries: int


# ---------------------------------------------------------------- what rounds ask


def missing_copies(tx: Tx, center: CenterId, wanted: Collection[str]) -> bool:
    """True when a data set is not READY at a center; asks for those that are not."""
    missing = False
    own = assets.remotes(tx.session, center, wanted)
    for dataset in wanted:
        if dataset in own:
            continue
        row = tx.session.get(Copy, (dataset, center), with_for_update=True)
        source = tx.session.get(Dataset, dataset)
        if source is None or source.deleted_ms is not None:
            missing = True  # a center's own, of another center or gone: nothing to copy from
            continue
        if row is None:
            row = Copy(dataset_id=dataset, center_id=center, bytes=source.bytes)
            tx.event("copy.wanted", center=center, data={"dataset": dataset})
        elif row.state == CopyState.FAILED and tx.now_ms >= row.next_ms:
            row.state, row.message, row.tries, row.next_ms = CopyState.WANTED.value, "", 0, 0
        missing |= row.state != CopyState.READY
        row.used_ms = tx.now_ms
        tx.session.add(row)
    if missing:
        tx.wake("stage")
    return missing


def remotes(session: Session, center: CenterId, wanted: Collection[str]) -> tuple[tuple[str, str], ...]:
    """(data set, its name at the center) for each data set that is READY there."""
    query = select(Copy).where(Copy.center_id == center).where(col(Copy.dataset_id).in_(wanted))
    rows = {row.dataset_id: row.remote for row in session.exec(query).all() if row.state == CopyState.READY}
    rows |= assets.remotes(session, center, wanted)
    return tuple((dataset, rows[dataset]) for dataset in wanted if dataset in rows)


def facts(session: Session, now_ms: int) -> dict[str, DataFacts]:
    """How it stands with every data set that a waiting job reads."""
    query = (
        select(JobDataset.dataset_id)
        .join(Job, col(Job.id) == col(JobDataset.job_id))
        .where(Job.state == JobState.QUEUED.value)
        .distinct()
    )
    wanted = set(session.exec(query).all())
    if not wanted:
        return {}
    stored = select(Dataset.id, Dataset.bytes).where(col(Dataset.deleted_ms).is_(None))
    sizes = dict(session.exec(stored.where(col(Dataset.id).in_(wanted))).all())
    ready: dict[str, set[CenterId]] = {}
    moving: dict[str, set[CenterId]] = {}
    failed: dict[str, set[CenterId]] = {}
    arrived: dict[str, dict[CenterId, int]] = {}
    for row in session.exec(select(Copy).where(col(Copy.dataset_id).in_(wanted))).all():
        center = CenterId(row.center_id)
        if row.state == CopyState.READY:
            ready.setdefault(row.dataset_id, set()).add(center)
        elif row.state in ON_THE_WAY:
            moving.setdefault(row.dataset_id, set()).add(center)
        else:
            if now_ms < row.next_ms:
                failed.setdefault(row.dataset_id, set()).add(center)
            if row.bytes_done:
                arrived.setdefault(row.dataset_id, {})[center] = row.bytes_done
    listed = select(Asset.id, Asset.center_id).where(Asset.kind == AssetKind.DATASET.value)
    listed = listed.where(Asset.remote != "").where(col(Asset.id).in_(wanted))
    for dataset, center_id in session.exec(listed).all():
        ready.setdefault(dataset, set()).add(CenterId(center_id))
    return {
        dataset: DataFacts(
            bytes=sizes.get(dataset, 0),
            ready=frozenset(ready.get(dataset, ())),
            moving=frozenset(moving.get(dataset, ())),
            failed=frozenset(failed.get(dataset, ())),
            fixed=dataset not in sizes,
            arrived=tuple(sorted(arrived.get(dataset, {}).items())),
        )
        for dataset in wanted
    }


# ---------------------------------------------------------------- what is to be done


def due(session: Session, now_ms: int) -> list[CopyWork]:
    """Copies to bring or to remove whose next step has come, the one that waits longest first."""
    query = (
        select(Copy)
        .where(col(Copy.state).in_([state.value for state in ON_THE_WAY]))
        .where(col(Copy.next_ms) <= now_ms)
        .order_by(col(Copy.next_ms), Copy.dataset_id, Copy.center_id)
    )
    return [
        CopyWork(_ref(row), row.state == CopyState.EVICTING, row.tries) for row in session.exec(query).all()
    ]


def _ref(row: Copy) -> CopyRef:
    return CopyRef(
        dataset=row.dataset_id,
        center=CenterId(row.center_id),
        source=row.dataset_id,
        bytes=row.bytes,
        remote=row.remote,
    )


def record_copy(tx: Tx, copy: CopyRef, seen: CopySighting, *, epoch: int) -> None:
    """One step of a copy; a round may place its jobs once it is READY.  A copy whose removal was
    ordered meanwhile stays so.  Raises LostLease."""
    tx.fence(epoch)
    row = tx.session.get(Copy, (copy.dataset, copy.center), with_for_update=True)
    if row is None or row.state not in (CopyState.WANTED, CopyState.MOVING):
        return
    if row.state != seen.state:
        data = {"dataset": copy.dataset, "state": seen.state.value, "message": seen.message}
        tx.event("copy.changed", center=copy.center, data=data)
    row.state, row.remote, row.message = seen.state.value, seen.remote, seen.message
    row.bytes_done = copy.bytes if seen.state is CopyState.READY else seen.bytes_done
    row.used_ms = tx.now_ms
    row.tries = 0
    row.next_ms = tx.now_ms + RETRY_S * 1000 if seen.state is CopyState.FAILED else 0
    tx.session.add(row)
    if seen.state in (CopyState.READY, CopyState.FAILED):
        tx.wake("cycle")


def record_failed_step(tx: Tx, copy: CopyRef, message: str, *, next_ms: int, epoch: int) -> None:
    """A step had no outcome: it is made again at `next_ms`, and goes on from where the center is then.

    Raises LostLease.
    """
    tx.fence(epoch)
    row = tx.session.get(Copy, (copy.dataset, copy.center), with_for_update=True)
    if row is None:
        return
    row.tries += 1
    row.next_ms, row.message = next_ms, message
    tx.session.add(row)


def record_removed(tx: Tx, copy: CopyRef, *, epoch: int, message: str = "") -> None:
    """The center has removed a copy, or has no call for it (`message`).  A deleted data set is gone with
    its last copy.  Raises LostLease."""
    tx.fence(epoch)
    row = tx.session.get(Copy, (copy.dataset, copy.center), with_for_update=True)
    if row is None or row.state != CopyState.EVICTING:
        return
    tx.session.delete(row)
    tx.session.flush()
    tx.event("copy.removed", center=copy.center, data={"dataset": copy.dataset, "message": message})
    source = tx.session.get_one(Dataset, copy.dataset)
    more = tx.session.exec(select(Copy.center_id).where(Copy.dataset_id == copy.dataset)).first()
    if source.deleted_ms is not None and more is None:
        tx.session.delete(source)
    tx.wake("cycle")


# ---------------------------------------------------------------- the cache


def filled(session: Session) -> dict[CenterId, int]:
    """Bytes of the copies that each center has or is to get."""
    query = select(Copy.center_id, func.sum(col(Copy.bytes))).where(Copy.state != CopyState.EVICTING.value)
    rows = session.execute(query.group_by(col(Copy.center_id))).all()
    return {CenterId(center): int(size or 0) for center, size in rows}


def evict(tx: Tx, center: CenterId, *, limit_bytes: int, epoch: int) -> list[str]:
    """Order the removal of copies until a center has at most `limit_bytes`, the longest unused first,
    and never of one that a waiting or living job reads.  Which.  Raises LostLease."""
    tx.fence(epoch)
    rows = tx.session.exec(
        select(Copy).where(Copy.center_id == center).where(Copy.state != CopyState.EVICTING.value)
    ).all()
    over = sum(row.bytes for row in rows) - limit_bytes
    needed = datasets.in_use(tx.session, [row.dataset_id for row in rows]) if over > 0 else set()
    evicted = []
    for row in sorted(rows, key=lambda row: (row.used_ms, row.dataset_id)):
        if over <= 0:
            break
        if row.dataset_id in needed:
            continue
        row.state, row.tries, row.next_ms = CopyState.EVICTING.value, 0, 0
        tx.session.add(row)
        data = {"dataset": row.dataset_id, "bytes": row.bytes, "usedMs": row.used_ms}
        tx.event("copy.evicted", center=center, data=data)
        over -= row.bytes
        evicted.append(row.dataset_id)
    return evicted


def forget_center(tx: Tx, center: str) -> None:
    """A center is gone for good: nobody can say any more what it keeps."""
    for row in tx.session.exec(select(Copy).where(Copy.center_id == center)).all():
        tx.session.delete(row)
        message = "the center is gone from the configuration"
        tx.event("copy.removed", center=center, data={"dataset": row.dataset_id, "message": message})
    tx.session.execute(delete(Asset).where(col(Asset.center_id) == center))


def stored_here(session: Session) -> set[str]:
    """Uploaded data sets whose files belong in the data directory."""
    return set(session.exec(select(Dataset.id).where(col(Dataset.deleted_ms).is_(None))).all())
