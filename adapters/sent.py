"""Whether a call may have left: what tells a call in doubt from one that was certainly not sent.

Here: the error for a call that was not sent, and how far an exchange has come.  Not here: calls
(http.py), what keeps the HTTP library from sending one twice (broker/once.py), and what a platform did
with one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from broker.adapter import MAY_CALL, Throttled, Unavailable

RETRY_AFTER_S = 5.0
"""After a call that was not sent, and after HTTP 429 without Retry-After."""


class NotSent(Throttled):
    """No connection or no login could be made, the center is left alone, or the caller's time was up
    before: nothing was sent."""

    def __init__(self, message: str, *, retry_after_s: float = RETRY_AFTER_S) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


def may_leave(what: str, *, effect: bool) -> None:
    """Right before a request.  Raises NotSent, or Unavailable without an effect, once this daemon does
    not lead."""
    if not MAY_CALL.get()():
        text = f"{what}: not sent, the lease has run out"
        raise NotSent(text) if effect else Unavailable(text)


@contextmanager
def preparing(what: str) -> Iterator[None]:
    """The reading calls before one with an effect: where they fail or are cancelled, nothing was sent.

    Raises NotSent for that.
    """
    try:
        yield
    except Unavailable as error:
        raise NotSent(f"{what}: not sent: {error}") from None
    except asyncio.CancelledError:
        raise NotSent(f"{what}: not sent, the time was up while it was prepared") from None


@contextmanager
def begun(what: str) -> Iterator[None]:
    """The calls after the first one with an effect: that one of them was not sent is no news of all.

    Raises Unavailable for that.
    """
    try:
        yield
    except Throttled as error:
        raise Unavailable(f"{what}: begun and not finished: {error}") from None


@dataclass(slots=True)
class Line:
    """How far one exchange has come: bytes may have left since `connected`."""

    connected: bool = False


def watched() -> aiohttp.TraceConfig:
    """Sets `connected` of the Line that is a request's `trace_request_ctx`."""

    async def connected(_client: aiohttp.ClientSession, trace: Any, _told: object) -> None:
        trace.trace_request_ctx.connected = True

    config = aiohttp.TraceConfig()
    config.on_connection_create_end.append(connected)
    config.on_connection_reuseconn.append(connected)
    return config
