"""One's own account: registering it, and its logins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from broker.api import models_people, times, wire
from broker.api.auth import GATE, request_token, token_hash
from broker.api.context import CALLER, CONTEXT
from broker.api.errors import ApiError, shown
from broker.api.fields import Flag, paged
from broker.api.limits import LIMITS
from broker.api.paging import asked_page, page_of
from broker.api.reading import Query, no_query, read_body
from broker.api.routes import Route, Scope
from broker.client import answers
from broker.core.model import Role
from broker.store import accounts
from broker.store.accounts import LoginView

_SORTS: Mapping[str, Callable[[LoginView], Any]] = {
    "createTime": lambda login: (login.created_ms, login.token_hash),
    "expiresAt": lambda login: (login.expires_ms, login.token_hash),
}


async def register(request: web.Request) -> web.Response:
    """POST /auth/users"""
    no_query(request)
    context, limits = request.app[CONTEXT], request.app[LIMITS]
    tenant = context.registration_tenant
    if tenant is None:
        raise ApiError("0202", "registration is closed (auth.registration); an operator creates accounts")
    body = await read_body(request, models_people.Register)
    if body.tenant not in (None, tenant):
        told = f"tenant: registration is for tenant {tenant!r} only, not {shown(body.tenant)}"
        raise ApiError("0202", f"{told}; who keeps another tenant creates its accounts")
    limits.registration(limits.address(request))
    hashed = await request.app[GATE].hash(body.password)
    made = await context.store.write(
        accounts.add_account, name=body.name, tenant=tenant, role=Role.USER, password_hash=hashed
    )
    return wire.answer({"userId": made.id, "name": made.name, "tenant": made.tenant, "role": made.role.value})


async def list_logins(request: web.Request) -> web.Response:
    """GET /auth/tokens"""
    context = request.app[CONTEXT]
    wanted = asked_page(request)
    found = await context.store.read(accounts.list_logins, request[CALLER].id, context.clock())
    own = token_hash(request_token(request))
    items = [
        {
            "createTime": times.written(login.created_ms, context.timezone),
            "expiresAt": times.written(login.expires_ms, context.timezone),
            "current": login.token_hash == own,
        }
        for login in page_of(found, wanted, _SORTS)
    ]
    return wire.answer({"items": items, "totalSize": len(found)})


async def log_out(request: web.Request) -> web.Response:
    """DELETE /auth/tokens: the token that is used here ends, or all others of the account do."""
    with Query(request) as query:
        others = query.flag("others")
    context, caller = request.app[CONTEXT], request[CALLER]
    used = token_hash(request_token(request))
    await context.store.write(accounts.remove_tokens, caller, used, others=bool(others))
    request.app[GATE].forget()
    return web.Response(status=204)


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "POST",
        "/auth/users",
        register,
        "Register an account, where registration is open",
        "注册账户（开放注册时可用）",
        body=models_people.Register,
        answer=answers.Registered,
        open=True,
        example={"name": "alice", "password": "..."},
    ),
    Route(
        "GET",
        "/auth/tokens",
        list_logins,
        "One's live logins",
        "本人当前有效的登录",
        query=paged(tuple(_SORTS), default="createTime"),
        answer=answers.LoginPage,
        scope=Scope.LOGIN,
    ),
    Route(
        "DELETE",
        "/auth/tokens",
        log_out,
        "Log out: this token ends, or all others of the account do",
        "退出登录：本 Token 失效，或本账号其他 Token 全部失效",
        query=(Flag("others", "End all other logins instead of this one.", "改为使其他登录全部失效。"),),
        scope=Scope.LOGIN,
    ),
)
