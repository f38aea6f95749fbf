"""What creates are judged by: read by one statement, whose answer about centers is understood anew only when
it changed.

What belongs here: that statement, and what it found last.  What does not: what the rows of a center mean
(centers.py), and the judging (creates.py).

The database says it as JSON texts; where a text is that of before, so is what it means.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from json import dumps, loads
from operator import itemgetter
from types import SimpleNamespace

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect

from broker.core.model import Pool
from broker.store.centers import CenterView, pool_of, view_of
from broker.store.rows import as_document, listed, looked_up
from broker.store.runs import PREFIX
from broker.tables import Center, Idempotency, Image, Job, Setting
from broker.tables import Pool as PoolRow
from broker.tables.columns import table

Owned = tuple[str, str]
"""An account, and what it calls a job by."""


@dataclass(frozen=True, slots=True)
class Grounds:
    """`centers`: every one that is not archived, by id, with its pools, its runs not counted.  `places`: the
    centers that offer each image asked for.  `named`: the job that has each name asked for, `keyed`: the job
    that came with each idempotency key; None where there is none.  `prefix`: the first part of every remote
    name."""

    centers: Sequence[CenterView]
    places: Mapping[str, Collection[str]]
    named: Sequence[str | None]
    keyed: Sequence[str | None]
    prefix: str


def grounds(
    connection: Connection, *, images: Collection[str], names: Sequence[Owned], keys: Sequence[Owned]
) -> Grounds:
    """As this transaction sees it.  What is asked for has neither NUL nor halves of UTF-16 pairs."""
    asked = (dumps(list(images)), dumps(names), dumps(keys))
    said = connection.exec_driver_sql(_statement(connection.dialect), asked).one()
    centers, pools, offered, named, keyed, prefix = said
    places: dict[str, set[str]] = {}
    for image, center in loads(offered):
        places.setdefault(image, set()).add(center)
    return Grounds(_views(centers, pools), places, _in_order(named), _in_order(keyed), prefix)


def _in_order(document: str) -> list[str | None]:
    return [found for _, found in sorted(loads(document), key=itemgetter(0))]


_CENTERS, _POOLS = tuple(table(Center).c.keys()), tuple(table(PoolRow).c.keys())


@lru_cache(maxsize=2)
def _views(centers: str, pools: str) -> tuple[CenterView, ...]:
    by_center: dict[str, list[Pool]] = {}
    for pool in _rows(pools, _POOLS):
        by_center.setdefault(pool.center_id, []).append(pool_of(pool))
    return tuple(view_of(row, by_center.get(row.id, ())) for row in _rows(centers, _CENTERS))


def _rows(document: str, columns: Sequence[str]) -> list[SimpleNamespace]:
    """By id."""
    rows = (SimpleNamespace(**dict(zip(columns, values, strict=True))) for values in loads(document))
    return sorted(rows, key=lambda row: str(row.id))


@lru_cache
def _statement(dialect: Dialect) -> str:
    documents = (
        f"{as_document(dialect, Center, _CENTERS)} WHERE archived_ms IS NULL",
        as_document(dialect, PoolRow, _POOLS),
        f"{as_document(dialect, Image, ('id', 'center_id'))} WHERE id IN ({listed(dialect)})",
        looked_up(dialect, Job, ("account_id", "name"), "id", where="deleted_ms IS NULL"),
        looked_up(dialect, Idempotency, ("account_id", "key"), "job_id"),
        f"SELECT value FROM {table(Setting).name} WHERE name = '{PREFIX}'",
    )
    return "SELECT " + ", ".join(f"({document})" for document in documents)
