"""Data sets, models and applications that centers have of their own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Select, func, literal
from sqlalchemy import select as columns_of
from sqlmodel import Session, col, select

from broker import adapter
from broker.adapter import AssetKind
from broker.core.identity import base32
from broker.core.model import CenterId
from broker.store.writer import Tx
from broker.tables import Asset, Center

_BETWEEN = re.compile(r"[,;，；、\n]")


def tags_of(labels: str) -> str:
    """Labels one by one between commas, in lower case: ",cv,detection,"; "" for none."""
    words = dict.fromkeys(word.strip().lower() for word in _BETWEEN.split(labels))
    words.pop("", None)
    return f",{','.join(words)}," if words else ""


def opaque_id(kind: AssetKind, center: str, native: str) -> str:
    """The broker's own id of what a center lists: the same for ever, and telling nothing of it."""
    digest = hashlib.sha256("\0".join((kind, center, native)).encode()).digest()
    return f"c-{base32(int.from_bytes(digest[:10], 'big'), 16)}"


def record_assets(
    tx: Tx, center: CenterId, found: Mapping[AssetKind, Sequence[adapter.Asset]], *, epoch: int
) -> None:
    """What a center has now replaces what it had.  Raises LostLease."""
    tx.fence(epoch)
    rows = tx.session.exec(select(Asset).where(Asset.center_id == center)).all()
    known = {(row.kind, row.id): row for row in rows}
    for kind, listed in found.items():
        for each in {e.id or opaque_id(kind, center, e.native): e for e in listed}.items():
            id, asset = each
            row = known.pop((kind.value, id), None)
            if row is None:
                row = Asset(kind=kind.value, center_id=center, id=id, native="", title="")
                row.created_ms = tx.now_ms
            for name in ("native", "title", "desc", "labels", "owner", "bytes", "remote"):
                setattr(row, name, getattr(asset, name))
            row.tags = tags_of(asset.labels)
            tx.session.add(row)
    for gone in known.values():
        tx.session.delete(gone)
    tx.wake("cycle")


def listed(kind: AssetKind) -> Select[Any]:
    """The columns of a DatasetView, each logical id once, of centers that are not gone."""
    owner = func.min(func.coalesce(func.nullif(col(Asset.owner), ""), col(Asset.center_id)))
    return (
        columns_of(
            col(Asset.id).label("id"),
            func.min(Asset.title).label("title"),
            owner.label("owner"),
            func.max(Asset.bytes).label("bytes"),
            func.min(Asset.desc).label("desc"),
            func.min(Asset.labels).label("labels"),
            func.min(Asset.tags).label("tags"),
            literal(True).label("public"),
            func.min(Asset.created_ms).label("created_ms"),
        )
        .join(Center, col(Center.id) == col(Asset.center_id))
        .where(col(Center.archived_ms).is_(None))
        .where(col(Asset.kind) == kind.value)
        .group_by(col(Asset.id))
    )


def find(session: Session, kind: AssetKind, id: str) -> bool:
    """Whether some center has it."""
    return bool(places(session, kind, [id]))


def usable(session: Session, datasets: Collection[str]) -> set[str]:
    """Those that jobs can be given at some center."""
    query = select(Asset.id).where(Asset.kind == AssetKind.DATASET.value).where(Asset.remote != "")
    return set(session.exec(query.where(col(Asset.id).in_(datasets))).all())


def places(session: Session, kind: AssetKind, ids: Collection[str]) -> list[tuple[str, CenterId, int]]:
    """(id, center that has it, bytes)"""
    query = select(Asset.id, Asset.center_id, Asset.bytes).where(Asset.kind == kind.value)
    rows = session.exec(query.where(col(Asset.id).in_(ids))).all()
    return [(id, CenterId(center), size) for id, center, size in rows]


def remotes(session: Session, center: CenterId, datasets: Collection[str]) -> dict[str, str]:
    """What a run at a center is told of data sets that are the center's own."""
    query = (
        select(Asset.id, Asset.remote)
        .where(Asset.kind == AssetKind.DATASET.value)
        .where(Asset.center_id == center)
        .where(col(Asset.id).in_(datasets))
        .where(Asset.remote != "")
    )
    return dict(session.exec(query).all())
