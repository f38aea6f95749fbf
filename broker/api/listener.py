"""The listening socket: how many connections there are, and which of them are cut.

What belongs here: what is done before there is a request, and to clients that take no answer.  What does
not: requests (limits.py, turns.py).

A connection on which no whole request header comes is closed by aiohttp after `idle_connection_s`, since
the runner is told so.  What a client does not take waits in the broker: of an answer that is sent whole,
all of it.  So whoever takes nothing for `stalled_s` is cut.
"""

from __future__ import annotations

import asyncio
import json
import resource

from aiohttp import web

from broker.api.errors import RETRY_AFTER_S, Overloaded
from broker.config import LimitSettings
from broker.telemetry import CONNECTIONS_CUT, CONNECTIONS_REFUSED, log

BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted."""

OWN_FILES = 256
"""Open files that the daemon needs beside its connections."""

LOOKS = 4
"""How often a client is looked at before it is cut."""

FULL_S = 1.0
"""Whoever comes when all places are taken has so long to read the answer."""

MOST_REFUSED = 128
"""That are being told so; beyond it a connection is closed without a word."""


def most_connections(wanted: int) -> int:
    """How many connections there may be: `wanted`, or fewer where this process may not open so many
    files.  Asks the kernel for as many as it gives without a privilege."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + MOST_REFUSED + OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    possible = max(soft - MOST_REFUSED - OWN_FILES, 16)
    log.warning("few_connections", possible=possible, wanted=wanted, hint="raise the limit of open files")
    return possible


class Listener(web.BaseSite):
    """As aiohttp's TCPSite, with `limits`."""

    __slots__ = ("_host", "_looking", "_most", "_port", "_refused", "_stalled_s")

    def __init__(self, runner: web.AppRunner, host: str, port: int, limits: LimitSettings) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._host, self._port = host, port
        self._most = most_connections(limits.connections)
        self._stalled_s = limits.stalled_s
        self._refused: set[asyncio.BaseTransport] = set()
        self._looking: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        """Raises OSError when it cannot listen there."""
        await super().start()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accepted, self._host, self._port, backlog=self._backlog)
        self._looking = asyncio.create_task(self._cut_stalled(), name="listener")

    async def stop(self) -> None:
        """No new connections; those there are go on."""
        await super().stop()
        if self._looking is not None:
            self._looking.cancel()

    @property
    def _serving(self) -> web.Server:
        server = self._runner.server
        assert server is not None, "the runner is set up"
        return server

    def _accepted(self) -> asyncio.Protocol:
        return _Door(self)

    def let_in(self, transport: asyncio.Transport) -> asyncio.Protocol | None:
        """What serves a new connection, None when there are enough."""
        if len(self._serving.connections) < self._most:
            return self._serving()
        CONNECTIONS_REFUSED.inc()
        if len(self._refused) < MOST_REFUSED:
            self._refused.add(transport)
            transport.write(_FULL)
            asyncio.get_running_loop().call_later(FULL_S, transport.abort)
        else:
            transport.abort()
        return None

    def gone(self, transport: asyncio.BaseTransport) -> None:
        """One that was not let in."""
        self._refused.discard(transport)

    async def _cut_stalled(self) -> None:
        """Until nobody is let in any more."""
        loop = asyncio.get_running_loop()
        waits: dict[web.RequestHandler, tuple[int, float]] = {}
        while True:
            await asyncio.sleep(self._stalled_s / LOOKS)
            now, before, waits = loop.time(), waits, {}
            for connection in self._serving.connections:
                transport = connection.transport
                if transport is None or not (size := transport.get_write_buffer_size()):
                    continue
                then, since = before.get(connection, (size, now))
                waits[connection] = size, (since if then == size else now)
                if now - waits[connection][1] >= self._stalled_s:
                    CONNECTIONS_CUT.inc()
                    transport.abort()


class _Door(asyncio.Protocol):
    """A new connection until it is let in; what is sent to one that is not is not looked at.

    Connections that come together are accepted together, so they are counted one by one here.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        inside = self._listener.let_in(transport)
        if inside is not None:
            transport.set_protocol(inside)
            inside.connection_made(transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._listener.gone(self._transport)


def _full() -> bytes:
    told = Overloaded("too many connections are open (limits.connections)")
    body = {"errorCode": "", "errorMsg": told.message, "detail": told.detail, "requestId": ""}
    text = json.dumps(body, ensure_ascii=False).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\n"
        f"Content-Length: {len(text)}\r\nRetry-After: {RETRY_AFTER_S}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + text


_FULL = _full()
