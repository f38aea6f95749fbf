"""The application: routes and middlewares, from one Context."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from broker.api import (
    accounts,
    audit,
    auth,
    bills,
    broker_v1,
    center_calls,
    centers,
    cors,
    dataset_upload,
    datasets,
    docs,
    events,
    health,
    keys,
    limits,
    links,
    logins,
    logs,
    onlinejob,
    prices,
    purses,
    resources,
    results,
    services,
    tenants,
    trainjob,
    turns,
    uploads,
)
from broker.api.context import CONTEXT, FORESIGHT, STOPPING, Context
from broker.api.errors import errors, log_unreadable
from broker.api.foresight import Foresight
from broker.api.reading import QUERY_FIELDS
from broker.api.routes import Route, Scope

__all__ = ["ROUTES", "Context", "application"]

ROUTES: tuple[Route, ...] = (
    *auth.ROUTES,
    *logins.ROUTES,
    *keys.ROUTES,
    *centers.ROUTES,
    *resources.ROUTES,
    *prices.ROUTES,
    *bills.ROUTES,
    *trainjob.ROUTES,
    *onlinejob.ROUTES,
    *services.ROUTES,
    *logs.ROUTES,
    *results.ROUTES,
    *broker_v1.ROUTES,
    *datasets.ROUTES,
    *dataset_upload.ROUTES,
    *uploads.ROUTES,
    *center_calls.ROUTES,
    *accounts.ROUTES,
    *tenants.ROUTES,
    *purses.ROUTES,
    *links.ROUTES,
    *audit.ROUTES,
    *events.ROUTES,
    *health.ROUTES,
    *docs.ROUTES,
)
"""Every route but the paths that platforms call; each stands beside its handler."""


UNDER_WAY: web.AppKey[set[asyncio.Future[None]]] = web.AppKey("under_way", set)
"""One for each request that is being answered; done with it."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(context: Context) -> web.Application:
    """The whole API.  Bodies are limited by their readers, not by aiohttp."""
    app = web.Application(
        middlewares=[
            *(under_way, errors, cors.preflight, limits.shed),
            *(auth.authenticate, limits.throttle, turns.take_turns),
        ]
    )
    log_unreadable()
    app[CONTEXT] = context
    app[STOPPING] = asyncio.Event()
    app[UNDER_WAY] = set()
    app[FORESIGHT] = Foresight(
        context.store,
        policies=context.policies,
        learn=context.learn,
        accelerators=context.catalogue.products,
        zone=context.timezone,
    )
    app[auth.GATE] = auth.Gate(context)
    app[limits.LIMITS] = limits.Limits(context.limits, context.trusted_proxies, time.monotonic)
    app[turns.TURNS] = turns.Turns(context.limits)
    app[events.FEED] = events.Feed(context.store)
    open_routes = [(route.method, route.path) for route in ROUTES if route.open]
    passed_on = [(hdrs.METH_ANY, path) for path, _ in services.PASSED_ON]
    app[auth.OPEN_ROUTES] = frozenset((*open_routes, *context.platform_paths, *passed_on))
    scopes = {(route.method, route.path): route.needs for route in ROUTES}
    app[auth.SCOPES] = {**scopes, **dict.fromkeys(passed_on, Scope.JOBS)}
    app[services.SERVICES] = services.Services(context)
    app[QUERY_FIELDS] = {
        (route.method, route.path): {each.name: each for each in route.query} for route in ROUTES
    }
    app[docs.DESCRIPTION] = docs.Description(ROUTES, context)
    app[uploads.UNPACKING] = asyncio.Semaphore(uploads.UNPACK_AT_ONCE)
    for route in ROUTES:
        app.router.add_route(route.method, _pattern(route.path), route.handler)
    for path, handler in services.PASSED_ON:
        app.router.add_route(hdrs.METH_ANY, path.replace("{path}", "{path:.*}"), handler)
    for method, path in context.platform_paths:
        app.router.add_route(method, path, center_calls.platform_path(method, path))
    app.on_response_prepare.append(cors.allow_origin)
    app.on_startup.append(_open_parts)
    app.on_shutdown.append(_stop_waiting)
    app.on_cleanup.append(_close_parts)
    return app


@web.middleware
async def under_way(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keeps what is being answered, for `finish`."""
    answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    request.app[UNDER_WAY].add(answered)
    try:
        return await handler(request)
    finally:
        request.app[UNDER_WAY].discard(answered)
        answered.set_result(None)


async def finish(app: web.Application, within_s: float) -> None:
    """Tell streams to end and wait for the requests that are under way now.

    To be called while connections are still read: once aiohttp shuts down, it drops what arrives, and an
    upload would never get the rest of its body.
    """
    app[STOPPING].set()
    answering = app[UNDER_WAY].copy()
    if answering:
        await asyncio.wait(answering, timeout=within_s)


def _pattern(path: str) -> str:
    """The path for the router: a parameter at its end is none of the words that stand there in other
    paths, so that each URL is of one path and allows its methods alone."""
    parent, _, last = path.rpartition("/")
    if not last.startswith("{"):
        return path
    others = (each.path.rpartition("/") for each in ROUTES)
    words = {word for before, _, word in others if before == parent and word and not word.startswith("{")}
    return f"{parent}/{{{last[1:-1]}:(?!(?:{'|'.join(sorted(words))})$)[^{{}}/]+}}" if words else path


async def _open_parts(app: web.Application) -> None:
    await app[auth.GATE].open()
    await app[services.SERVICES].proxy.open()


async def _close_parts(app: web.Application) -> None:
    await app[services.SERVICES].proxy.close()
    await app[auth.GATE].close()


async def _stop_waiting(app: web.Application) -> None:
    """Open streams would otherwise hold the server for the whole shutdown time."""
    app[STOPPING].set()
