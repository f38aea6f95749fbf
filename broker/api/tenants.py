"""Tenants.  Their quotas are in the policy; who is in them is accounts.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from broker.api import models_people, times, wire
from broker.api.auth import kept_tenant, need_operator
from broker.api.context import CALLER, CONTEXT
from broker.api.fields import paged
from broker.api.paging import asked_page, page_of
from broker.api.reading import no_query, read_body
from broker.api.routes import Route
from broker.client import answers
from broker.store import accounts
from broker.store.accounts import TenantView

_SORTS: Mapping[str, Callable[[TenantView], Any]] = {
    "id": lambda t: t.id,
    "createTime": lambda t: (t.created_ms, t.id),
}


async def list_all(request: web.Request) -> web.Response:
    """GET /broker/v1/tenants: all of them, or a tenant-admin's own"""
    context = request.app[CONTEXT]
    only = kept_tenant(request[CALLER])
    wanted = asked_page(request)
    found = await context.store.read(accounts.list_tenants, only)
    items = [_shown(each, request) for each in page_of(found, wanted, _SORTS)]
    return wire.answer({"items": items, "totalSize": len(found)})


async def create(request: web.Request) -> web.Response:
    """POST /broker/v1/tenants"""
    no_query(request)
    caller = request[CALLER]
    need_operator(caller)
    body = await read_body(request, models_people.CreateTenant)
    store = request.app[CONTEXT].store
    await store.write(accounts.add_tenant, body.id, actor=caller.actor)
    (made,) = await store.read(accounts.list_tenants, body.id)
    return wire.answer(_shown(made, request))


def _shown(tenant: TenantView, request: web.Request) -> dict[str, Any]:
    zone = request.app[CONTEXT].timezone
    return {
        "id": tenant.id,
        "createTime": times.written(tenant.created_ms, zone),
        "accounts": tenant.accounts,
    }


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/broker/v1/tenants",
        list_all,
        "The tenants; a tenant-admin's own",
        "租户列表；租户管理员仅见本租户",
        query=paged(tuple(_SORTS), default="id"),
        answer=answers.TenantPage,
        operators=True,
    ),
    Route(
        "POST",
        "/broker/v1/tenants",
        create,
        "Create a tenant",
        "创建租户",
        body=models_people.CreateTenant,
        answer=answers.Tenant,
        operators=True,
        example={"id": "vision"},
    ),
)
