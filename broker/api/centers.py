"""Computing centers as people see them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from broker.api import wire
from broker.api.context import CONTEXT
from broker.api.errors import ApiError, shown
from broker.api.fields import Flag, Text, paged
from broker.api.paging import page_of, paging
from broker.api.reading import Query
from broker.api.routes import Route
from broker.client import answers
from broker.core.model import CenterId
from broker.store import centers
from broker.store.centers import CenterView, NoSuchCenter

_CENTER_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

_SORTS: Mapping[str, Callable[[CenterView], Any]] = {
    "centerId": lambda c: c.id,
    "centerName": lambda c: (c.name, c.id),
    "processorType": lambda c: (wire.capacity(c).kind, c.id),
    "createTime": lambda c: (c.created_ms, c.id),
}

LIST_QUERY = (
    *paged(tuple(_SORTS), default="centerId"),
    Text("processorType", "Has cards of this type, such as GPU.", "处理器类型，如 GPU。"),
    Flag("connected", "Can be reached now, or cannot.", "当前是否可连接。"),
)
CENTER_FILTER = Text("centerId", "Of this center only.", "仅该智算中心。")


async def list_all(request: web.Request) -> web.Response:
    """GET /centers"""
    context = request.app[CONTEXT]
    with Query(request) as query:
        wanted = paging(query, max_page_size=context.max_page_size)
        kind = query.text("processorType").lower()
        connected = query.flag("connected")
    found = [
        center
        for center in await context.store.read(centers.list_centers)
        if (not kind or kind in wire.capacity(center).kind.lower().split(","))
        and (connected is None or wire.connected(center) is connected)
    ]
    page = page_of(found, wanted, _SORTS)
    shown_centers = [wire.center(center, context.catalogue, context.timezone) for center in page]
    return wire.answer({"centers": shown_centers, "totalSize": len(found)})


async def chosen(request: web.Request, center_id: str) -> list[CenterView]:
    """The center of that id, or all of them for "".  Raises ApiError 0210."""
    known = await request.app[CONTEXT].store.read(centers.list_centers)
    if not center_id:
        return known
    found = [center for center in known if center.id == center_id]
    if not found:
        raise ApiError("0210", f"centerId: there is no center {shown(center_id)}")
    return found


def path_center(request: web.Request) -> CenterId:
    """The center that the path names, if the name can be one.  Raises NoSuchCenter."""
    center = request.match_info["id"]
    if not _CENTER_ID.fullmatch(center):
        raise NoSuchCenter(f"there is no center {center[:64]!r}")
    return CenterId(center)


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/centers",
        list_all,
        "The computing centers",
        "智算中心列表",
        query=LIST_QUERY,
        answer=answers.CenterPage,
    ),
)
