"""What specs cost at the centers: the price now, and its windows.

What belongs here: prices of offered specs.  What does not: what a run has cost (bills.py).  Prices are
of one node for an hour; a pool without a price costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from broker.api import wire, wire_money
from broker.api.admission import pool_specs
from broker.api.centers import CENTER_FILTER, chosen
from broker.api.context import CONTEXT
from broker.api.errors import ApiError, shown
from broker.api.fields import Text, paged
from broker.api.paging import page_of, paging
from broker.api.reading import Query
from broker.api.routes import Route
from broker.client import answers
from broker.core.charges import estimate_micro
from broker.core.localtime import minute_of_week
from broker.core.model import CenterId, JobRequest, Pool, Price, Spec
from broker.core.resources import (
    Products,
    effective_gflops,
    price_at,
    rate_micro_per_hour,
    same_card_memory,
    same_devices,
    slot_size,
    tariff,
)
from broker.store.centers import CenterView


@dataclass(frozen=True, slots=True)
class Offer:
    """A spec at a center: its prices per node and hour, and the price now; None: the center states none.

    `pools` are the native units that offer it so; pools of other prices are another offer.
    """

    center: CenterId
    spec: Spec
    tariff: tuple[Price, ...]
    micro_per_hour: int | None
    pools: tuple[str, ...]


_SORTS: Mapping[str, Callable[[Offer], Any]] = {
    "centerId": lambda o: (o.center, o.spec.id, o.pools),
    "resourceSpecId": lambda o: (o.spec.id, o.center, o.pools),
    "unitPrice": lambda o: (o.micro_per_hour or 0, o.center, o.spec.id, o.pools),
}


LIST_QUERY = (
    *paged(tuple(_SORTS), default="centerId"),
    CENTER_FILTER,
    Text("resourceSpecId", "Of this spec only.", "仅该资源规格。"),
)


async def list_all(request: web.Request) -> web.Response:
    """GET /resource/prices"""
    context = request.app[CONTEXT]
    with Query(request) as query:
        wanted = paging(query, max_page_size=context.max_page_size)
        center_id, spec_id = query.text("centerId"), query.text("resourceSpecId")
    minute = minute_of_week(context.clock(), context.timezone)
    found = list(offers(await chosen(request, center_id), context.extra_specs, minute))
    if spec_id:
        found = [offer for offer in found if offer.spec.id == spec_id]
        if not found:
            where = f"by center {center_id}" if center_id else "by any center"
            raise ApiError("0211", f"resourceSpecId: {shown(spec_id)} is not offered {where}")
    page = page_of(found, wanted, _SORTS)
    return wire.answer({"prices": [wire_money.offer(each) for each in page], "totalSize": len(found)})


def offers(centers: Sequence[CenterView], extra: Sequence[Spec], minute: int) -> Iterator[Offer]:
    """Every spec that some centers offer, once for each center and tariff."""
    for center in centers:
        found: dict[tuple[Spec, tuple[Price, ...]], list[str]] = {}
        for pool in center.pools:
            specs = {spec.id: spec for spec in pool_specs(pool, extra)}
            for spec in specs.values():
                prices = tariff(pool.prices, pool.shape, spec.shape, 1)
                found.setdefault((spec, prices), []).append(pool.native)
        for (spec, prices), pools in found.items():
            yield Offer(center.id, spec, prices, price_at(prices, minute), tuple(sorted(pools)))


def cheapest(centers: Sequence[CenterView], extra: Sequence[Spec], minute: int) -> dict[str, Offer]:
    """The cheapest stated price of every spec now."""
    found: dict[str, Offer] = {}
    for offer in offers(centers, extra, minute):
        if offer.micro_per_hour is None:
            continue
        known = found.get(offer.spec.id)
        if known is None or offer.micro_per_hour < (known.micro_per_hour or 0):
            found[offer.spec.id] = offer
    return found


def expected_micro(
    centers: Sequence[CenterView], request: JobRequest, products: Products, minute: int
) -> int | None:
    """What a job would cost at its estimate where it is cheapest now; None where nothing is known of it."""
    rates = [
        rate_micro_per_hour(pool, spec.shape, request.nodes, minute)
        for center in centers
        if not request.centers or center.id in request.centers
        for pool in center.pools
        for spec in _wanted(pool, request, products)
    ]
    return estimate_micro(min(rates), request.estimate_s) if rates else None


def _wanted(pool: Pool, request: JobRequest, products: Products) -> Iterator[Spec]:
    """The specs of a pool that a job asks for."""
    if request.spec is None:
        for spec in pool_specs(pool, ()):
            if effective_gflops(spec.shape, products) >= request.min_gflops:
                yield spec
        return
    wanted, node = request.spec.shape, pool.shape
    alike = (wanted.arch, wanted.accelerator) == (node.arch, node.accelerator)
    if pool.specs and all(spec.id != request.spec.id for spec in pool.specs):
        return
    if alike and same_card_memory(node, wanted) and same_devices(node, wanted) and slot_size(node, wanted):
        yield request.spec


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/resource/prices",
        list_all,
        "What a node costs per hour: now, and by windows of the day",
        "一个节点每小时的价格:当前价格与分时段价格",
        query=LIST_QUERY,
        answer=answers.PricePage,
        refusals=("0210", "0211"),
    ),
)
