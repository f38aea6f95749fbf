"""Which users of centers' platforms an account is, as operators keep them."""

from __future__ import annotations

from aiohttp import web

from broker.api import wire
from broker.api.accounts import named
from broker.api.auth import need_operator
from broker.api.context import CALLER, CONTEXT
from broker.api.models_money import LinkUser
from broker.api.reading import no_query, read_body
from broker.api.routes import Route
from broker.api.times import written
from broker.client import answers
from broker.core.model import CenterId
from broker.store import links


async def list_all(request: web.Request) -> web.Response:
    """GET /broker/v1/accounts/{name}/links"""
    no_query(request)
    need_operator(request[CALLER])
    return await _answer(request)


async def _answer(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    found = await context.store.read(links.links_of, named(request))
    items = [
        {
            "centerId": each.center,
            "user": each.native,
            "createTime": written(each.created_ms, context.timezone),
        }
        for each in found
    ]
    return wire.answer({"items": items, "totalSize": len(items)})


async def link(request: web.Request) -> web.Response:
    """POST /broker/v1/accounts/{name}/link"""
    no_query(request)
    need_operator(request[CALLER])
    body = await read_body(request, LinkUser)
    store, actor = request.app[CONTEXT].store, request[CALLER].actor
    await store.write(links.link, named(request), CenterId(body.center_id), body.user, actor=actor)
    return await _answer(request)


async def unlink(request: web.Request) -> web.Response:
    """POST /broker/v1/accounts/{name}/unlink"""
    no_query(request)
    need_operator(request[CALLER])
    body = await read_body(request, LinkUser)
    store, actor = request.app[CONTEXT].store, request[CALLER].actor
    await store.write(links.unlink, named(request), CenterId(body.center_id), body.user, actor=actor)
    return await _answer(request)


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "GET",
        "/broker/v1/accounts/{name}/links",
        list_all,
        "Which users of centers' platforms an account is",
        "该账号是各智算中心平台上的哪些用户",
        answer=answers.LinkPage,
        operators=True,
    ),
    Route(
        "POST",
        "/broker/v1/accounts/{name}/link",
        link,
        "Say that a user of a center's platform is this account",
        "将平台用户关联到该账号",
        body=LinkUser,
        answer=answers.LinkPage,
        refusals=("0210",),
        operators=True,
        example={"centerId": "hz-1", "user": "6"},
    ),
    Route(
        "POST",
        "/broker/v1/accounts/{name}/unlink",
        unlink,
        "Take a link of a platform's user back",
        "取消平台用户的关联",
        body=LinkUser,
        answer=answers.LinkPage,
        operators=True,
        example={"centerId": "hz-1", "user": "6"},
    ),
)
