"""Resource specs, images and what is idle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from broker.api import wire, wire_catalogue, wire_money, wire_pools
from broker.api.admission import offered_specs
from broker.api.centers import CENTER_FILTER, chosen
from broker.api.context import CONTEXT
from broker.api.fields import PERIOD, Text, paged
from broker.api.paging import page_of, paging, period
from broker.api.prices import cheapest
from broker.api.reading import Query
from broker.api.routes import Route
from broker.client import answers
from broker.core.localtime import minute_of_week
from broker.core.model import CenterId, Spec
from broker.store import centers as stored
from broker.store.centers import ImageView

_SORTS: Mapping[str, Callable[[Spec], Any]] = {
    "resourceSpecId": lambda s: s.id,
    "resourceSpecName": lambda s: (s.name, s.id),
}

SPECS_QUERY = (*paged(tuple(_SORTS), default="resourceSpecId"), CENTER_FILTER)
IDLE_QUERY = (CENTER_FILTER,)


async def specs(request: web.Request) -> web.Response:
    """GET /resource/specs: each spec once, whichever centers offer it, with its cheapest stated price."""
    context = request.app[CONTEXT]
    with Query(request) as query:
        wanted = paging(query, max_page_size=context.max_page_size)
        center_id = query.text("centerId")
    centers = await chosen(request, center_id)
    offered = offered_specs(centers, context.extra_specs)
    page = page_of(list(offered.values()), wanted, _SORTS)
    minute = minute_of_week(context.clock(), context.timezone)
    prices = cheapest(centers, context.extra_specs, minute)
    shown = [
        {
            **wire.spec(spec),
            **({"price": wire_money.spec_price(prices[spec.id])} if spec.id in prices else {}),
        }
        for spec in page
    ]
    return wire.answer({"resourceSpecs": shown, "totalSize": len(offered)})


async def idle(request: web.Request) -> web.Response:
    """GET /resource/idle"""
    with Query(request) as query:
        center_id = query.text("centerId")
    centers = await chosen(request, center_id)
    zone = request.app[CONTEXT].timezone
    told = [{**wire.idle(center, zone), "pools": wire_pools.pools(center)} for center in centers]
    return wire.answer({"centerResources": told})


_IMAGE_SORTS: Mapping[str, Callable[[ImageView], Any]] = {
    "imageId": lambda v: v.image.id,
    "imageName": lambda v: (v.image.name or v.image.id, v.image.id),
    "arch": lambda v: (v.image.arch, v.image.id),
    "processor": lambda v: (v.image.processor, v.image.id),
    "framework": lambda v: (v.image.framework, v.image.id),
    "createTime": lambda v: (v.created_ms, v.image.id),
}
IMAGES_QUERY = (
    *paged(tuple(_IMAGE_SORTS), default="imageId"),
    CENTER_FILTER,
    Text("processor", "For cards of this type, such as GPU.", "处理器类型，如 GPU。"),
    Text("framework", "Of this framework, with or without its version.", "框架，可带或不带版本。"),
    *PERIOD,
)


async def images(request: web.Request) -> web.Response:
    """GET /resource/images: each logical image once, whichever centers offer it.

    A framework is meant by its name alone too: "PyTorch" finds "PyTorch 2.3".
    """
    context = request.app[CONTEXT]
    with Query(request) as query:
        wanted = paging(query, max_page_size=context.max_page_size)
        center_id = query.text("centerId")
        processor, framework = query.text("processor").lower(), query.text("framework").lower()
        after, before = period(query, context.timezone)
    if center_id:
        await chosen(request, center_id)
    found = [
        view
        for view in await context.store.read(stored.list_images, CenterId(center_id) if center_id else None)
        if (not processor or view.image.processor.lower() == processor)
        and (not framework or framework in (view.image.framework.lower(), _plain_name(view.image.framework)))
        and (after is None or view.created_ms >= after)
        and (before is None or view.created_ms <= before)
    ]
    page = page_of(found, wanted, _IMAGE_SORTS)
    shown = [wire_catalogue.image(view, context.timezone) for view in page]
    return wire.answer({"images": shown, "totalSize": len(found)})


def _plain_name(framework: str) -> str:
    """Without its version."""
    return framework.lower().partition(" ")[0]


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
    Route(
        "GET",
        "/resource/images",
        images,
        "The images that jobs can name, each once",
        "镜像列表",
        query=IMAGES_QUERY,
        answer=answers.ImagePage,
        refusals=("0210",),
    ),
)
