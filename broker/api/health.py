"""Whether the daemon is alive and ready, and its numbers."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from broker.api import wire
from broker.api.context import CONTEXT
from broker.api.reading import no_query
from broker.api.routes import Media, Route
from broker.api.services import SERVICES
from broker.client import answers
from broker.store import views
from broker.store.writer import StoreUnavailable
from broker.telemetry import SERVICE_REQUESTS, WRITER_BACKLOG


async def healthz(request: web.Request) -> web.Response:
    """GET /healthz"""
    no_query(request)
    return wire.answer({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """GET /readyz: the store answers and the first poll of every active center was tried; which of the
    daemons on it leads."""
    no_query(request)
    context = request.app[CONTEXT]
    started = context.ready()  # first: what is read afterwards is of the configuration now in force
    try:
        known, leader = await context.store.read(views.centers_and_leader, context.clock())
    except StoreUnavailable as error:
        silent = {"ready": False, "store": str(error), "leads": context.leader(), "leader": "", "centers": []}
        return wire.answer(silent, status=503)
    trouble = context.store.trouble
    ready = not trouble and started and all(wire.polled(center) for center in known)
    shown = [
        {
            "centerId": c.id,
            "health": c.health.value,
            "error": c.error,
            # pools that are not used, and why: GET /broker/v1/centers
            **({"quarantined": len(c.quarantined)} if c.quarantined else {}),
        }
        for c in known
    ]
    told = {
        "ready": ready,
        "store": trouble or "ok",
        "leads": context.leader(),
        "leader": leader,
        "centers": shown,
    }
    return wire.answer(told, status=200 if ready else 503)


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics"""
    no_query(request)
    WRITER_BACKLOG.set(request.app[CONTEXT].store.backlog)
    SERVICE_REQUESTS.set(request.app[SERVICES].proxy.under_way)
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


# ---------------------------------------------------------------- routes

ROUTES = (
    Route("GET", "/healthz", healthz, "Alive", "存活检查", answer=answers.Health, open=True),
    Route(
        "GET",
        "/readyz",
        readyz,
        "The store answers and every active center was polled once",
        "就绪检查：存储可用，且各启用中心均已轮询过一次",
        answer=answers.Readiness,
        open=True,
        others=(503,),
    ),
    Route(
        "GET",
        "/metrics",
        metrics,
        "Numbers for Prometheus",
        "Prometheus 指标",
        answer=Media(("text/plain",), "Prometheus text.", "Prometheus 文本。"),
        open=True,
    ),
)
