"""Bills: the lines, and what they come to."""

from __future__ import annotations

from aiohttp import web

from broker.api import wire, wire_money
from broker.api.centers import CENTER_FILTER
from broker.api.context import CALLER, CONTEXT, Context
from broker.api.fields import OWNER, PERIOD, Choice, Text, paged
from broker.api.paging import paging, period
from broker.api.reading import Query
from broker.api.routes import Route
from broker.client import answers
from broker.store import bills
from broker.store.bills import BillFilter

FILTERS = (
    *PERIOD,
    CENTER_FILTER,
    Text("jobId", "Of this job only, deleted or not.", "仅该作业(含已删除的)。"),
    Text("specId", "With this spec only.", "仅该资源规格。"),
    OWNER,
)
LIST_QUERY = (*paged(tuple(bills.SORTS), default="createTime"), *FILTERS)
SUMMARY_QUERY = (
    *paged(("key", "amount"), default="key"),
    *FILTERS,
    Choice(
        "groupBy",
        "What the lines are summed by.",
        "统计方式。",
        required=True,
        options=tuple(bills.GROUPS),
    ),
)


async def list_all(request: web.Request) -> web.Response:
    """GET /bills"""
    context = request.app[CONTEXT]
    with Query(request) as query:
        wanted = paging(query, max_page_size=context.max_page_size)
        chosen = _filter(query, context)
    lines, total = await context.store.read(bills.list_bills, request[CALLER], chosen, wanted)
    items = [wire_money.bill(line, context.timezone) for line in lines]
    return wire.answer({"items": items, "totalSize": total})


async def summary(request: web.Request) -> web.Response:
    """GET /bills/summary"""
    context = request.app[CONTEXT]
    with Query(request) as query:
        wanted = paging(query, max_page_size=context.max_page_size)
        if not query.has("groupBy"):
            query.fail("0203", "groupBy", f"is required: one of {', '.join(bills.GROUPS)}")
        group_by = query.choice("groupBy")
        chosen = _filter(query, context)
    found = await context.store.read(bills.summarize, request[CALLER], chosen, group_by, wanted)
    return wire.answer(
        {
            "groupBy": group_by,
            "items": [wire_money.bill_sum(one) for one in found.sums],
            "totalSize": found.groups,
            "amount": wire.money(found.amount_micro),
            "currency": wire_money.CURRENCY,
        }
    )


def _filter(query: Query, context: Context) -> BillFilter:
    after, before = period(query, context.timezone)
    return BillFilter(
        created_after_ms=after,
        created_before_ms=before,
        center=query.text("centerId"),
        job=query.text("jobId"),
        spec=query.text("specId"),
        mine=query.choice("owner") == "me",
    )


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/bills",
        list_all,
        "The bill lines",
        "账单明细",
        query=LIST_QUERY,
        answer=answers.BillPage,
        refusals=("0210", "0230"),
    ),
    Route(
        "GET",
        "/bills/summary",
        summary,
        "What the bill lines come to",
        "账单统计",
        query=SUMMARY_QUERY,
        answer=answers.BillSummary,
        refusals=("0210", "0230"),
    ),
)
