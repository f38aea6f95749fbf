"""Tenants' budgets and balances: shown to their members, changed by operators."""

from __future__ import annotations

import re

from aiohttp import web

from broker.api import wire, wire_money
from broker.api.auth import need_operator
from broker.api.context import CALLER, CONTEXT
from broker.api.fields import paged
from broker.api.models_money import AddEntry, SetBudget
from broker.api.reading import Query, no_query, read_body
from broker.api.routes import Route
from broker.client import answers
from broker.core.charges import micro
from broker.core.model import TenantId
from broker.store import purses
from broker.store.purses import NoSuchTenant

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def _path_tenant(request: web.Request) -> TenantId:
    """The tenant that the path names, if the name can be one.  Raises NoSuchTenant."""
    tenant = request.match_info["id"]
    if not _ID.fullmatch(tenant):
        raise NoSuchTenant(f"there is no tenant {tenant[:64]!r}")
    return TenantId(tenant)


async def balance(request: web.Request) -> web.Response:
    """GET /broker/v1/tenants/{id}/balance"""
    no_query(request)
    return await _answer(request, _path_tenant(request))


async def _answer(request: web.Request, tenant: TenantId) -> web.Response:
    store = request.app[CONTEXT].store
    view = await store.read(purses.view, request[CALLER], tenant, store.clock())
    return wire.answer(wire_money.balance(view))


LEDGER_QUERY = paged((), default="")[:2]
"""Pages without a choice of order."""


async def ledger(request: web.Request) -> web.Response:
    """GET /broker/v1/tenants/{id}/ledger: the newest entry first"""
    context = request.app[CONTEXT]
    with Query(request) as query:
        size = query.whole("pageSize", most=context.max_page_size)
        page = query.whole("page")
    entries, total = await context.store.read(
        purses.ledger, request[CALLER], _path_tenant(request), page=page, size=size
    )
    items = [wire_money.entry(each, context.timezone) for each in entries]
    return wire.answer({"items": items, "totalSize": total})


async def set_budget(request: web.Request) -> web.Response:
    """POST /broker/v1/tenants/{id}/budget"""
    no_query(request)
    caller = request[CALLER]
    need_operator(caller)
    body = await read_body(request, SetBudget)
    tenant = _path_tenant(request)
    await request.app[CONTEXT].store.write(
        purses.set_budget, tenant, micro(body.cny), per_month=body.per == "month", actor=caller.actor
    )
    return await _answer(request, tenant)


async def remove_budget(request: web.Request) -> web.Response:
    """DELETE /broker/v1/tenants/{id}/budget: only the balance, if it has one, limits it from now on."""
    no_query(request)
    caller = request[CALLER]
    need_operator(caller)
    await request.app[CONTEXT].store.write(
        purses.set_budget, _path_tenant(request), None, per_month=False, actor=caller.actor
    )
    return web.Response(status=204)


async def add_entry(request: web.Request) -> web.Response:
    """POST /broker/v1/tenants/{id}/ledger"""
    no_query(request)
    caller = request[CALLER]
    need_operator(caller)
    body = await read_body(request, AddEntry)
    context = request.app[CONTEXT]
    made = await context.store.write(
        purses.enter, _path_tenant(request), micro(body.amount), note=body.note, actor=caller.actor
    )
    return wire.answer(wire_money.entry(made, context.timezone))


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/broker/v1/tenants/{id}/balance",
        balance,
        "What a tenant may spend and has spent",
        "租户可花费与已花费的金额",
        answer=answers.Balance,
    ),
    Route(
        "GET",
        "/broker/v1/tenants/{id}/ledger",
        ledger,
        "What was added to a tenant's balance or taken from it",
        "租户余额的充值与扣减记录",
        query=LEDGER_QUERY,
        answer=answers.LedgerPage,
    ),
    Route(
        "POST",
        "/broker/v1/tenants/{id}/ledger",
        add_entry,
        "Add to a tenant's balance, or take from it",
        "为租户余额充值或扣减",
        body=AddEntry,
        answer=answers.LedgerItem,
        operators=True,
        example={"amount": 1000, "note": "invoice 2026-17"},
    ),
    Route(
        "POST",
        "/broker/v1/tenants/{id}/budget",
        set_budget,
        "Give a tenant a budget",
        "设定租户预算",
        body=SetBudget,
        answer=answers.Balance,
        operators=True,
        example={"cny": 5000, "per": "month"},
    ),
    Route(
        "DELETE",
        "/broker/v1/tenants/{id}/budget",
        remove_budget,
        "No budget for a tenant any more",
        "取消租户预算",
        operators=True,
    ),
)
