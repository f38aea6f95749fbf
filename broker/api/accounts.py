"""Accounts, as operators keep all of them and tenant-admins the users of their tenant."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from broker.api import models, wire
from broker.api.auth import GATE, kept_tenant
from broker.api.context import CALLER, CONTEXT
from broker.api.errors import ApiError
from broker.api.fields import paged
from broker.api.models import DEFAULT_TENANT, Body, CreateAccount, Right, SetPassword
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


def _changing(body: type[Body] | None, change: Callable[..., None], value: bool) -> Handler:
    """A handler that does `change`, a write of the store, with a value to the account of the path."""

    async def handler(request: web.Request) -> web.StreamResponse:
        no_query(request)
        caller = request[CALLER]
        kept_tenant(caller)
        if body is not None:
            await read_body(request, body)
        store = request.app[CONTEXT].store
        await store.write(change, named(request), value, actor=caller.actor, keeper=caller)
        return await _answer(request, named(request))

    return handler


grant, revoke = (_changing(Right, accounts.set_vip, vip) for vip in (True, False))
"""POST /broker/v1/accounts/{name}/grant and /revoke"""
freeze, unfreeze = (_changing(None, accounts.set_frozen, frozen) for frozen in (True, False))
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


def _of_one(
    action: str, handler: Handler, en: str, zh: str, body: type[Body] | None = None, example: Any = None
) -> Route:
    """What changes one account, and answers how it is then."""
    return Route(
        "POST",
        f"/broker/v1/accounts/{{name}}/{action}",
        handler,
        en,
        zh,
        body=body,
        answer=answers.Account,
        operators=True,
        example=example,
    )


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
    _of_one("grant", grant, "Give an account a right", "授予账号权限", models.Right, {"right": "vip"}),
    _of_one("revoke", revoke, "Take a right from an account", "收回账号权限", models.Right, {"right": "vip"}),
    _of_one(
        "freeze",
        freeze,
        "Freeze an account: its tokens are refused, its jobs go on",
        "冻结账号：其 Token 被拒绝，作业继续运行",
    ),
    _of_one("unfreeze", unfreeze, "Unfreeze an account", "解冻账号"),
    _of_one(
        "password",
        set_password,
        "Set an account's password; ends its tokens",
        "重设账号密码，其 Token 失效",
        models.SetPassword,
    ),
)
