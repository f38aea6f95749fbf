"""Pages, order and period of listings: their query fields, as the standard means them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from aiohttp import web

from broker.api.context import CONTEXT
from broker.api.errors import shown
from broker.api.reading import Query
from broker.store.paging import Paging

T = TypeVar("T")

_DESCENDING = {"desc": True, "asc": False, "true": True, "false": False}
"""The standard types `order` as a Boolean with the values desc and asc; letter case is ignored."""


def paging(query: Query, *, max_page_size: int) -> Paging:
    """The page that the fields of `fields.paged` ask for."""
    size = query.whole("pageSize", most=max_page_size)
    page = query.whole("page")
    sort = query.choice("sort")
    order = query.text("order") if query.has("order") else "desc"
    if order.lower() not in _DESCENDING:
        query.fail("0202", "order", f"must be desc or asc, not {shown(order)}")
    return Paging(page=page, size=size, sort=sort, descending=_DESCENDING.get(order.lower(), True))


def asked_page(request: web.Request) -> Paging:
    """The page that is asked for of a listing without further query fields."""
    with Query(request) as query:
        return paging(query, max_page_size=request.app[CONTEXT].max_page_size)


def period(query: Query, zone: ZoneInfo) -> tuple[int | None, int | None]:
    """The bounds that `fields.PERIOD` asks for, in milliseconds, both inclusive."""
    after = query.moment("createAfter", zone, last=False)
    before = query.moment("createBefore", zone, last=True)
    if after is not None and before is not None and after > before:
        query.fail("0230", "createAfter", "must not be later than createBefore")
    return after, before


def page_of(items: Sequence[T], wanted: Paging, keys: Mapping[str, Callable[[T], Any]]) -> list[T]:
    """One page of a listing that is in memory.  Equals stay in the order they came, reversed as a
    whole when descending."""
    ordered = sorted(items, key=keys[wanted.sort])
    if wanted.descending:
        ordered.reverse()
    start = (wanted.page - 1) * wanted.size
    return ordered[start : start + wanted.size]
