"""Data sets as people see and change them: upload, list, show, delete.

What belongs here: uploaded ones, and together with them those that centers have of their own
(store/assets.py).  What does not: their copies at centers (store/copies.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, true, union_all
from sqlalchemy import select as columns_of
from sqlmodel import Session, col, select

from broker.adapter import AssetKind, CopyState
from broker.core.model import CenterId, JobState, Role
from broker.store import assets
from broker.store.accounts import Caller
from broker.store.paging import Paging
from broker.store.writer import Rejected, Tx
from broker.tables import Account, Asset, Copy, Dataset, Job, JobDataset

_LIVE_JOBS = [s.value for s in JobState if not s.ended]


class NoSuchDataset(Rejected):
    """No such data set, or none that the caller may read."""


class DatasetRefused(Rejected):
    """It is there and may not be deleted: by this caller, or now, or at all."""


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


@dataclass(frozen=True, slots=True)
class DatasetView:
    """A data set as lists show it; `centers` have it ready.  One of a center's own has no `md5`."""

    id: str
    title: str
    owner: str
    bytes: int
    desc: str
    labels: str
    public: bool
    created_ms: int
    centers: tuple[str, ...] = ()
    md5: str = ""


@dataclass(frozen=True, slots=True)
class CopyView:
    """A data set at a center, or on its way; `used_ms` is 0 for a center's own."""

    dataset: str
    center: CenterId
    state: CopyState
    bytes: int
    bytes_done: int
    message: str
    used_ms: int


@dataclass(frozen=True, slots=True)
class DatasetFilter:
    """`query` is text in title or description, `category` one of the labels."""

    query: str = ""
    category: str = ""
    mine: bool = False


# ---------------------------------------------------------------- write


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
            tags=assets.tags_of(new.labels),
            bytes=new.bytes,
            md5=new.md5,
            public=new.public,
            created_ms=tx.now_ms,
        )
    )
    data = {"dataset": new.id, "bytes": new.bytes, "public": new.public}
    tx.event("dataset.created", actor=new.actor or new.account, tenant=new.tenant, data=data)


def delete_dataset(tx: Tx, caller: Caller, dataset: str) -> None:
    """Hide a data set; its copies at centers are owed removal.  The caller removes its files.

    Raises NoSuchDataset, DatasetRefused.
    """
    row = tx.session.get(Dataset, dataset, with_for_update=True)
    if row is None or row.deleted_ms is not None or not _may_read(caller, row):
        if assets.find(tx.session, AssetKind.DATASET, dataset):
            raise DatasetRefused(f"data set {dataset} is a center's own and cannot be deleted here")
        raise NoSuchDataset(f"there is no data set {dataset!r} that you may read")
    if not _may_delete(caller, row):
        raise DatasetRefused(f"data set {dataset} belongs to another account")
    if in_use(tx.session, [dataset]):
        raise DatasetRefused(f"data set {dataset} is read by a job that has not ended; stop it first")
    row.deleted_ms = tx.now_ms
    tx.session.add(row)
    copies = tx.session.exec(select(Copy).where(Copy.dataset_id == dataset)).all()
    for copy in copies:
        copy.state, copy.tries, copy.next_ms = CopyState.EVICTING.value, 0, 0
        tx.session.add(copy)
    tx.event("dataset.deleted", actor=caller.actor, tenant=row.tenant_id, data={"dataset": dataset})
    if copies:
        tx.wake("stage")
    else:
        tx.session.delete(row)


# ---------------------------------------------------------------- read


def in_use(session: Session, datasets: Collection[str]) -> set[str]:
    """Those that a job reads which has not ended, whether it waits or runs."""
    query = (
        select(JobDataset.dataset_id)
        .join(Job, col(Job.id) == col(JobDataset.job_id))
        .where(col(JobDataset.dataset_id).in_(datasets))
        .where(col(Job.state).in_(_LIVE_JOBS))
        .distinct()
    )
    return set(session.exec(query).all())


def unusable(session: Session, caller: Caller, datasets: Collection[str]) -> list[str]:
    """Those of `datasets` that do not exist or that the caller may not read."""
    query = select(Dataset.id).where(col(Dataset.id).in_(datasets)).where(_readable(caller))
    known = set(session.exec(query).all())
    known |= assets.usable(session, [dataset for dataset in datasets if dataset not in known])
    return [dataset for dataset in datasets if dataset not in known]


def list_datasets(
    session: Session, caller: Caller, wanted: DatasetFilter, paging: Paging
) -> tuple[list[DatasetView], int]:
    """One page of the public data sets, uploaded ones and those of centers, each once; or of one's own."""
    mine = col(Dataset.account_id) == caller.id
    uploaded = _uploaded(mine if wanted.mine else col(Dataset.public).is_(True))
    source = uploaded if wanted.mine else union_all(uploaded, assets.listed(AssetKind.DATASET))
    return _page(session, source.subquery(), wanted, paging, AssetKind.DATASET)


def list_assets(
    session: Session, kind: AssetKind, wanted: DatasetFilter, paging: Paging
) -> tuple[list[DatasetView], int]:
    """One page of the models or applications that centers have, each once."""
    return _page(session, assets.listed(kind).subquery(), wanted, paging, kind)


def show_dataset(session: Session, caller: Caller, dataset: str) -> tuple[DatasetView, list[CopyView]]:
    """A data set and how it stands with it at centers.  Raises NoSuchDataset."""
    query = _uploaded(_readable(caller) & (col(Dataset.id) == dataset))
    found = session.execute(query).mappings().first()
    copies = copies_of(session, [dataset])
    if found is None:
        listed = assets.listed(AssetKind.DATASET).where(col(Asset.id) == dataset)
        found = session.execute(listed).mappings().first()
        if found is None:
            raise NoSuchDataset(f"there is no data set {dataset!r} that you may read")
    ready = tuple(copy.center for copy in copies if copy.state is CopyState.READY)
    row = session.get(Dataset, dataset)
    return _view(found, ready, md5=row.md5 if row is not None else ""), copies


def copies_of(session: Session, datasets: Collection[str]) -> list[CopyView]:
    """How it stands with data sets at centers, those that are a center's own included."""
    query = select(Copy).where(col(Copy.dataset_id).in_(datasets))
    found = [
        CopyView(
            dataset=row.dataset_id,
            center=CenterId(row.center_id),
            state=CopyState(row.state),
            bytes=row.bytes,
            bytes_done=row.bytes_done,
            message=row.message,
            used_ms=row.used_ms,
        )
        for row in session.exec(query).all()
    ]
    for id, center, size in assets.places(session, AssetKind.DATASET, datasets):
        found.append(CopyView(id, center, CopyState.READY, size, size, "", 0))
    return sorted(found, key=lambda copy: (copy.dataset, copy.center))


# ---------------------------------------------------------------- how


def _readable(caller: Caller) -> ColumnElement[bool]:
    there = col(Dataset.deleted_ms).is_(None)
    if caller.role is Role.OPERATOR:
        return there
    own: list[ColumnElement[bool]] = [col(Dataset.public).is_(True), col(Dataset.account_id) == caller.id]
    if caller.role is Role.TENANT_ADMIN:
        own.append(col(Dataset.tenant_id) == caller.tenant)
    return there & or_(*own)


def _may_delete(caller: Caller, row: Dataset) -> bool:
    admin = caller.role is Role.TENANT_ADMIN and row.tenant_id == caller.tenant
    return caller.role is Role.OPERATOR or row.account_id == caller.id or admin


def _may_read(caller: Caller, row: Dataset) -> bool:
    return row.public or _may_delete(caller, row)


def _uploaded(where: ColumnElement[bool]) -> Select[Any]:
    """The columns of a DatasetView, of uploaded data sets that are not deleted."""
    names = ("id", "title", "bytes", "desc", "labels", "tags", "public", "created_ms")
    columns: list[Any] = [col(getattr(Dataset, name)).label(name) for name in names]
    # In the order of assets.listed: a union goes by it.
    columns.insert(2, col(Account.name).label("owner"))
    query = columns_of(*columns).join(Account, col(Account.id) == col(Dataset.account_id))
    return query.where(col(Dataset.deleted_ms).is_(None)).where(where)


def _page(
    session: Session, source: Any, wanted: DatasetFilter, paging: Paging, kind: AssetKind
) -> tuple[list[DatasetView], int]:
    where: ColumnElement[bool] = true()
    if wanted.query:
        found = [source.c[name].icontains(wanted.query, autoescape=True) for name in ("title", "desc")]
        where &= or_(*found)
    if wanted.category:
        where &= source.c.tags.contains(f",{wanted.category.strip().lower()},", autoescape=True)
    total = session.execute(columns_of(func.count()).select_from(source).where(where)).scalar_one()
    keys = [source.c[paging.sort], source.c.id] if paging.sort != "id" else [source.c.id]
    order = [key.desc() for key in keys] if paging.descending else keys
    start = (paging.page - 1) * paging.size
    query = columns_of(source).where(where).order_by(*order).limit(paging.size).offset(start)
    rows = session.execute(query).mappings().all()
    ready = _ready_at(session, kind, [row["id"] for row in rows])
    return [_view(row, ready.get(row["id"], ())) for row in rows], total


def _ready_at(session: Session, kind: AssetKind, ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for id, center, _ in assets.places(session, kind, ids):
        found.setdefault(id, set()).add(center)
    if kind is AssetKind.DATASET:
        query = select(Copy.dataset_id, Copy.center_id).where(Copy.state == CopyState.READY.value)
        for id, where in session.exec(query.where(col(Copy.dataset_id).in_(ids))).all():
            found.setdefault(id, set()).add(where)
    return {id: tuple(sorted(there)) for id, there in found.items()}


def _view(row: Mapping[Any, Any], centers: tuple[str, ...], *, md5: str = "") -> DatasetView:
    names = ("id", "title", "owner", "bytes", "desc", "labels", "created_ms")
    return DatasetView(
        **{name: row[name] for name in names}, public=bool(row["public"]), centers=centers, md5=md5
    )
