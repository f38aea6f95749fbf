"""Pages of other origins, where the configuration allows them (`[server] cors_origins`).

Credentials are never allowed: the API knows no cookies, a page sends the token as a header itself.
What an online service answers (/services/) is the service's own affair.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from broker.api.context import CONTEXT

ANY = "*"
METHODS = "GET, HEAD, POST, DELETE"
REQUEST_HEADERS = "Authorization, X-Auth-Token, Content-Type, Idempotency-Key, Last-Event-ID, X-Request-Id"
EXPOSED_HEADERS = "X-Request-Id, Retry-After, X-Log-Offset, Content-Disposition"
PREFLIGHT_S = "600"
SERVICES = "/services/"


@web.middleware
async def preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers what a browser asks before it sends a page's request."""
    asked = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    if asked and _allowed(request):
        headers = {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": REQUEST_HEADERS,
            "Access-Control-Max-Age": PREFLIGHT_S,
        }
        return web.Response(status=204, headers=headers)
    return await handler(request)


async def allow_origin(request: web.Request, response: web.StreamResponse) -> None:
    """Adds what lets the page read the answer; a signal, so that streams and errors have it too."""
    origins = request.app[CONTEXT].cors_origins
    if not origins or request.path.startswith(SERVICES):
        return
    if ANY not in origins:
        response.headers.add("Vary", "Origin")
    if (origin := _allowed(request)) is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS


def _allowed(request: web.Request) -> str | None:
    """The value of Access-Control-Allow-Origin; None for an origin that is not allowed, or none."""
    origins, origin = request.app[CONTEXT].cors_origins, request.headers.get("Origin")
    if origin is None or request.path.startswith(SERVICES):
        return None
    if ANY in origins:
        return ANY
    return origin if origin in origins else None
