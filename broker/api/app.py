"""The application: routes and middlewares, from one Context."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler

from broker.api import (
    accounts,
    auth,
    broker_v1,
    center_calls,
    centers,
    health,
    logs,
    resources,
    results,
    trainjob,
    uploads,
)
from broker.api.context import CONTEXT, FORESIGHT, STOPPING, Context
from broker.api.errors import errors
from broker.api.foresight import Foresight

__all__ = ["Context", "application"]

OPEN: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/auth/tokens", auth.log_in),
    ("GET", "/logs/{taskId}", logs.open_link),
    ("GET", "/healthz", health.healthz),
    ("GET", "/readyz", health.readyz),
    ("GET", "/metrics", health.metrics),
)
"""Routes without a token."""

CLOSED: tuple[tuple[str, str, Handler], ...] = (
    ("DELETE", "/auth/tokens", auth.log_out),
    ("POST", "/auth/password", auth.change_password),
    ("GET", "/centers", centers.list_all),
    ("GET", "/resource/specs", resources.specs),
    ("GET", "/resource/idle", resources.idle),
    ("POST", "/trainjob", trainjob.create),
    ("GET", "/trainjob", trainjob.list_all),
    ("GET", "/trainjob/{id}", trainjob.show),
    ("DELETE", "/trainjob/{id}", trainjob.delete),
    ("POST", "/trainjob/{id}/stop", trainjob.stop),
    ("GET", "/trainjob/{id}/tasks/{taskId}/logs/url", logs.link),
    ("GET", "/trainjob/{id}/download", results.download),
    ("GET", "/broker/v1/info", broker_v1.info),
    ("GET", "/broker/v1/me", broker_v1.me),
    ("GET", "/broker/v1/jobs/{id}", broker_v1.show),
    ("GET", "/broker/v1/jobs/{id}/explain", broker_v1.explain),
    ("GET", "/broker/v1/jobs/{id}/logs", logs.read),
    ("POST", "/broker/v1/jobs/{id}/retry", broker_v1.retry),
    ("POST", "/broker/v1/jobs/{id}/resolve", broker_v1.resolve),
    ("GET", "/broker/v1/rounds", broker_v1.list_rounds),
    ("POST", "/broker/v1/uploads", uploads.upload),
    ("GET", "/broker/v1/centers", broker_v1.list_centers),
    ("POST", "/broker/v1/centers/{id}/drain", broker_v1.drain),
    ("POST", "/broker/v1/centers/{id}/resume", broker_v1.resume),
    ("POST", "/broker/v1/centers/{id}/call", center_calls.call),
    ("POST", "/broker/v1/centers/{id}/doctor", center_calls.doctor),
    ("GET", "/broker/v1/centers/{id}/commands", center_calls.list_commands),
    ("POST", "/broker/v1/centers/{id}/commands/{name}", center_calls.run_command),
    ("GET", "/broker/v1/accounts", accounts.list_all),
    ("POST", "/broker/v1/accounts", accounts.create),
    ("POST", "/broker/v1/accounts/{name}/grant", accounts.grant),
    ("POST", "/broker/v1/accounts/{name}/revoke", accounts.revoke),
    ("POST", "/broker/v1/accounts/{name}/freeze", accounts.freeze),
    ("POST", "/broker/v1/accounts/{name}/unfreeze", accounts.unfreeze),
    ("POST", "/broker/v1/accounts/{name}/password", accounts.set_password),
)


def application(context: Context) -> web.Application:
    """The whole API.  Bodies are limited by their readers, not by aiohttp."""
    app = web.Application(middlewares=[errors, auth.authenticate])
    app[CONTEXT] = context
    app[STOPPING] = asyncio.Event()
    app[FORESIGHT] = Foresight(
        context.store,
        policies=context.policies,
        learn=context.learn,
        accelerators=context.catalogue.products,
        zone=context.timezone,
    )
    app[auth.GATE] = auth.Gate(context)
    called = [(*each, center_calls.platform_path(*each)) for each in context.platform_paths]
    app[auth.OPEN_ROUTES] = frozenset((method, path) for method, path, _ in (*OPEN, *called))
    app[uploads.UNPACKING] = asyncio.Semaphore(uploads.UNPACK_AT_ONCE)
    for method, path, handler in (*OPEN, *CLOSED, *called):
        app.router.add_route(method, path, handler)
    app.on_startup.append(_open_gate)
    app.on_shutdown.append(_stop_waiting)
    app.on_cleanup.append(_close_gate)
    return app


async def _open_gate(app: web.Application) -> None:
    await app[auth.GATE].open()


async def _close_gate(app: web.Application) -> None:
    await app[auth.GATE].close()


async def _stop_waiting(app: web.Application) -> None:
    """Open streams would otherwise hold the server for the whole shutdown time."""
    app[STOPPING].set()
