"""Pages and order of listings: pageSize, page, sort and order, as the standard means them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from broker.api.errors import shown
from broker.api.reading import Query
from broker.store.jobs import Paging

T = TypeVar("T")

PAGING = ("pageSize", "page", "sort", "order")
"""The fields that `paging` reads."""

PAGE_SIZE = 50
LAST_PAGE = 2**31 - 1

_DESCENDING = {"desc": True, "asc": False, "true": True, "false": False}
"""The standard types `order` as a Boolean with the values desc and asc; letter case is ignored."""


def paging(query: Query, sorts: Sequence[str], *, default: str, max_page_size: int) -> Paging:
    size = query.whole("pageSize", min(PAGE_SIZE, max_page_size), least=1, most=max_page_size)
    page = query.whole("page", 1, least=1, most=LAST_PAGE)
    sort = query.choice("sort", sorts, default)
    order = query.text("order") if query.has("order") else "desc"
    if order.lower() not in _DESCENDING:
        query.fail("0202", "order", f"must be desc or asc, not {shown(order)}")
    return Paging(page=page, size=size, sort=sort, descending=_DESCENDING.get(order.lower(), True))


def page_of(items: Sequence[T], wanted: Paging, keys: Mapping[str, Callable[[T], Any]]) -> list[T]:
    """One page of a listing that is in memory.  Equals stay in the order they came, reversed as a
    whole when descending."""
    ordered = sorted(items, key=keys[wanted.sort])
    if wanted.descending:
        ordered.reverse()
    start = (wanted.page - 1) * wanted.size
    return ordered[start : start + wanted.size]
