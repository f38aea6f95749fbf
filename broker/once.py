"""An HTTP client that sends every request at most once.

aiohttp's client repeats an aborted GET, PUT or DELETE by itself when the connection was a kept one.
What belongs here: the middleware that keeps it from doing so, for whoever calls others over HTTP.
What does not: what a failed call means.
"""

from __future__ import annotations

import aiohttp

NEVER_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""Errors before anything was sent: there was no connection."""


class Aborted(aiohttp.ClientError):
    """Stands for an error after which aiohttp would send the request again."""


async def send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """A client middleware."""
    try:
        return await handler(request)
    except NEVER_CONNECTED:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise Aborted(str(error) or type(error).__name__) from error
