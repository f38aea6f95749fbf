"""Resource specs and what is idle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from broker.api import wire
from broker.api.admission import offered_specs
from broker.api.centers import CENTER_FILTER, chosen
from broker.api.context import CONTEXT
from broker.api.fields import paged
from broker.api.paging import page_of, paging
from broker.api.reading import Query
from broker.api.routes import Route
from broker.client import answers
from broker.core.model import Spec

_SORTS: Mapping[str, Callable[[Spec], Any]] = {
    "resourceSpecId": lambda s: s.id,
    "resourceSpecName": lambda s: (s.name, s.id),
}

SPECS_QUERY = (*paged(tuple(_SORTS), default="resourceSpecId"), CENTER_FILTER)
IDLE_QUERY = (CENTER_FILTER,)


async def specs(request: web.Request) -> web.Response:
    """GET /resource/specs: each spec once, whichever centers offer it."""
    context = request.app[CONTEXT]
    with Query(request) as query:
        wanted = paging(query, max_page_size=context.max_page_size)
        center_id = query.text("centerId")
    offered = offered_specs(await chosen(request, center_id), context.extra_specs)
    page = page_of(list(offered.values()), wanted, _SORTS)
    return wire.answer({"resourceSpecs": [wire.spec(spec) for spec in page], "totalSize": len(offered)})


async def idle(request: web.Request) -> web.Response:
    """GET /resource/idle"""
    with Query(request) as query:
        center_id = query.text("centerId")
    centers = await chosen(request, center_id)
    zone = request.app[CONTEXT].timezone
    return wire.answer({"centerResources": [wire.idle(center, zone) for center in centers]})


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/resource/specs",
        specs,
        "What one node of a job can get",
        "资源规格列表",
        query=SPECS_QUERY,
        answer=answers.SpecPage,
        refusals=("0210",),
    ),
    Route(
        "GET",
        "/resource/idle",
        idle,
        "Total and idle resources of each center, as last reported",
        "各智算中心的资源总量与空闲资源",
        query=IDLE_QUERY,
        answer=answers.Idle,
        refusals=("0210",),
    ),
)
