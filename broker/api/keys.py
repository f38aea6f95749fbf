"""API keys, and the applications that act for an account with them.

A key is 256 random bits behind a prefix that tells it from a login's token; it is shown once, and the
store keeps its SHA-256 only.  What a key may is its scopes, within the rights of its account.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

from aiohttp import web

from broker.api import models_people, times, wire
from broker.api.auth import GATE, KEY_PREFIX, new_token, token_hash
from broker.api.context import CALLER, CONTEXT, Context
from broker.api.errors import ApiError, shown
from broker.api.fields import paged
from broker.api.paging import asked_page, page_of
from broker.api.reading import no_query, read_body
from broker.api.routes import Route, Scope
from broker.client import answers
from broker.store import keys
from broker.store.keys import ApplicationView, KeyView, NewKey

_SORTS: Mapping[str, Callable[[KeyView], Any]] = {
    "createTime": lambda k: (k.created_ms, k.id),
    "id": lambda k: k.id,
    "name": lambda k: (k.name, k.id),
    "application": lambda k: (k.application, k.id),
}
_APPLICATION_SORTS: Mapping[str, Callable[[ApplicationView], Any]] = {
    "application": lambda a: a.name,
    "createTime": lambda a: (a.created_ms, a.name),
}


async def create(request: web.Request) -> web.Response:
    """POST /auth/apikeys"""
    no_query(request)
    body = await read_body(request, models_people.CreateKey)
    context = request.app[CONTEXT]
    secret = KEY_PREFIX + new_token()
    new = NewKey(
        id=f"k-{secrets.token_hex(6)}",
        hash=token_hash(secret),
        name=body.name,
        application=body.application or "",
        scopes=tuple(dict.fromkeys(body.scopes)),
        expires_ms=_end(body.expires_at, context),
    )
    made = await context.store.write(keys.add_key, request[CALLER], new)
    return wire.answer({**_shown(made, context.timezone), "key": secret})


def _end(text: str | None, context: Context) -> int | None:
    """When a key ends; of a day its last moment.  Raises ApiError."""
    if text is None:
        return None
    try:
        end_ms = times.bounds(text, context.timezone)[1]
    except ValueError:
        told = f"expiresAt: must be a time such as 2030-12-31 18:00:00, not {shown(text)}"
        raise ApiError("0202", told) from None
    if end_ms <= context.clock():
        raise ApiError("0204", f"expiresAt: must be a time that is to come, not {shown(text)}")
    return end_ms


async def list_all(request: web.Request) -> web.Response:
    """GET /auth/apikeys"""
    context = request.app[CONTEXT]
    wanted = asked_page(request)
    found = await context.store.read(keys.list_keys, request[CALLER].id)
    items = [_shown(key, context.timezone) for key in page_of(found, wanted, _SORTS)]
    return wire.answer({"items": items, "totalSize": len(found)})


async def revoke(request: web.Request) -> web.Response:
    """DELETE /auth/apikeys/{id}"""
    no_query(request)
    await request.app[CONTEXT].store.write(keys.revoke_key, request[CALLER], _named(request, "id"))
    request.app[GATE].forget()
    return web.Response(status=204)


async def list_applications(request: web.Request) -> web.Response:
    """GET /auth/applications"""
    context = request.app[CONTEXT]
    wanted = asked_page(request)
    found = await context.store.read(keys.list_applications, request[CALLER].id, context.clock())
    page = page_of(found, wanted, _APPLICATION_SORTS)
    items = [_shown_application(each, context.timezone) for each in page]
    return wire.answer({"items": items, "totalSize": len(found)})


async def revoke_application(request: web.Request) -> web.Response:
    """DELETE /auth/applications/{name}"""
    no_query(request)
    name = _named(request, "name")
    await request.app[CONTEXT].store.write(keys.revoke_application, request[CALLER], name)
    request.app[GATE].forget()
    return web.Response(status=204)


def _named(request: web.Request, part: str) -> str:
    """A part of the path; one with a NUL, which databases refuse, becomes a name nothing has."""
    return request.match_info[part].replace("\0", "\N{REPLACEMENT CHARACTER}")


def _shown(key: KeyView, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "application": key.application,
        "scopes": list(key.scopes),
        "createTime": times.written(key.created_ms, zone),
        "expiresAt": times.written(key.expires_ms, zone),
        "lastUsedTime": times.written(key.used_ms, zone),
    }


def _shown_application(application: ApplicationView, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "application": application.name,
        "scopes": list(application.scopes),
        "keys": application.keys,
        "createTime": times.written(application.created_ms, zone),
        "lastUsedTime": times.written(application.used_ms, zone),
    }


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "POST",
        "/auth/apikeys",
        create,
        "Create an API key; it is shown this once",
        "申请 API 密钥，密钥仅显示这一次",
        body=models_people.CreateKey,
        answer=answers.NewApiKey,
        scope=Scope.LOGIN,
        example={"name": "ci", "scopes": ["read", "jobs"], "expiresAt": "2030-12-31"},
    ),
    Route(
        "GET",
        "/auth/apikeys",
        list_all,
        "One's API keys, without the keys themselves",
        "本人的 API 密钥列表（不含密钥本身）",
        query=paged(tuple(_SORTS), default="createTime"),
        answer=answers.ApiKeyPage,
        scope=Scope.LOGIN,
    ),
    Route("DELETE", "/auth/apikeys/{id}", revoke, "Revoke an API key", "吊销 API 密钥", scope=Scope.LOGIN),
    Route(
        "GET",
        "/auth/applications",
        list_applications,
        "The applications that may act for the account",
        "已获授权、可代表本账号操作的应用",
        query=paged(tuple(_APPLICATION_SORTS), default="application"),
        answer=answers.ApplicationPage,
        scope=Scope.LOGIN,
    ),
    Route(
        "DELETE",
        "/auth/applications/{name}",
        revoke_application,
        "Take an application's right to act: all its keys are revoked",
        "取消应用授权：吊销其全部密钥",
        scope=Scope.LOGIN,
    ),
)
