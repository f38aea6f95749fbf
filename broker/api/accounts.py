"""Accounts, as operators keep all of them and tenant-admins the users of their tenant."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from broker.api import models, wire
from broker.api.auth import GATE, kept_tenant
from broker.api.context import CALLER, CONTEXT
from broker.api.errors import ApiError
from broker.api.fields import paged
from broker.api.models import DEFAULT_TENANT, CreateAccount, Right, SetPassword
from broker.api.paging import asked_page
from broker.api.reading import no_query, read_body
from broker.api.routes import Route
from broker.client import answers
from broker.core.model import Role
from broker.store import accounts

_NAME = re.compile(r"[^\x00/]{1,255}")


async def list_all(request: web.Request) -> web.Response:
    """GET /broker/v1/accounts"""
    only = kept_tenant(request[CALLER])
    wanted = asked_page(request)
    items, total = await request.app[CONTEXT].store.read(accounts.list_accounts, wanted, only)
    return wire.answer({"items": items, "totalSize": total})


async def create(request: web.Request) -> web.Response:
    """POST /broker/v1/accounts"""
    no_query(request)
    caller = request[CALLER]
    own = kept_tenant(caller)
    body = await read_body(request, CreateAccount)
    if own and body.role != Role.USER.value:
        raise ApiError("0202", f"role: a tenant-admin creates users; {body.role} needs an operator")
    if own and body.tenant not in (None, own):
        raise ApiError("0202", f"tenant: a tenant-admin creates accounts of {own!r} only")
    hashed = await request.app[GATE].hash(body.password)
    await request.app[CONTEXT].store.write(
        accounts.add_account,
        name=body.name,
        tenant=body.tenant or own or DEFAULT_TENANT,
        role=Role(body.role),
        password_hash=hashed,
        actor=caller.actor,
    )
    return await _answer(request, body.name)


async def _answer(request: web.Request, name: str) -> web.Response:
    """The account as it is now; what was remembered of it is forgotten."""
    request.app[GATE].forget()
    return wire.answer(await request.app[CONTEXT].store.read(accounts.show_account, name))


def named(request: web.Request) -> str:
    name = request.match_info["name"]
    if not _NAME.fullmatch(name):
        raise accounts.NoSuchAccount(f"there is no account named {name[:64]!r}")
    return name


def _right(vip: bool) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def change(request: web.Request) -> web.StreamResponse:
        no_query(request)
        caller = request[CALLER]
        kept_tenant(caller)
        await read_body(request, Right)
        store = request.app[CONTEXT].store
        await store.write(accounts.set_vip, named(request), vip, actor=caller.actor, keeper=caller)
        return await _answer(request, named(request))

    return change


def _frozen(frozen: bool) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def change(request: web.Request) -> web.StreamResponse:
        no_query(request)
        caller = request[CALLER]
        kept_tenant(caller)
        store = request.app[CONTEXT].store
        await store.write(accounts.set_frozen, named(request), frozen, actor=caller.actor, keeper=caller)
        return await _answer(request, named(request))

    return change


grant, revoke = _right(True), _right(False)
"""POST /broker/v1/accounts/{name}/grant and /revoke"""
freeze, unfreeze = _frozen(True), _frozen(False)
"""POST /broker/v1/accounts/{name}/freeze and /unfreeze"""


async def set_password(request: web.Request) -> web.Response:
    """POST /broker/v1/accounts/{name}/password"""
    no_query(request)
    caller = request[CALLER]
    kept_tenant(caller)
    body = await read_body(request, SetPassword)
    hashed = await request.app[GATE].hash(body.password)
    store = request.app[CONTEXT].store
    await store.write(accounts.set_password, named(request), hashed, actor=caller.actor, keeper=caller)
    return await _answer(request, named(request))


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/broker/v1/accounts",
        list_all,
        "The accounts",
        "账号列表",
        query=paged(tuple(accounts.SORTS), default="name"),
        answer=answers.AccountPage,
        operators=True,
    ),
    Route(
        "POST",
        "/broker/v1/accounts",
        create,
        "Create an account",
        "创建账号",
        body=models.CreateAccount,
        answer=answers.Account,
        operators=True,
        example={"name": "bob", "password": "...", "role": "user", "tenant": "lab"},
    ),
    Route(
        "POST",
        "/broker/v1/accounts/{name}/grant",
        grant,
        "Give an account a right",
        "授予账号权限",
        body=models.Right,
        answer=answers.Account,
        operators=True,
        example={"right": "vip"},
    ),
    Route(
        "POST",
        "/broker/v1/accounts/{name}/revoke",
        revoke,
        "Take a right from an account",
        "收回账号权限",
        body=models.Right,
        answer=answers.Account,
        operators=True,
        example={"right": "vip"},
    ),
    Route(
        "POST",
        "/broker/v1/accounts/{name}/freeze",
        freeze,
        "Freeze an account: its tokens are refused, its jobs go on",
        "冻结账号：其 Token 被拒绝，作业继续运行",
        answer=answers.Account,
        operators=True,
    ),
    Route(
        "POST",
        "/broker/v1/accounts/{name}/unfreeze",
        unfreeze,
        "Unfreeze an account",
        "解冻账号",
        answer=answers.Account,
        operators=True,
    ),
    Route(
        "POST",
        "/broker/v1/accounts/{name}/password",
        set_password,
        "Set an account's password; ends its tokens",
        "重设账号密码，其 Token 失效",
        body=models.SetPassword,
        answer=answers.Account,
        operators=True,
    ),
)
