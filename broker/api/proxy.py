"""Passing requests and WebSockets on to running services, both ways as streams.

What belongs here: connections, limits, and what a failure on the way is answered.  What does not: who
may and where to (services.py), and what is passed on of a header (forwarding.py).

* Nothing is sent twice, no redirect is followed, no cookie kept, no proxy of the environment used.
* A request that may have an effect has a connection of its own: on a kept one that the service closes
  at that moment nobody could say whether it arrived.
* A client that goes away ends the request at the service; so does the broker's own end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import aiohttp
from aiohttp import WSMsgType, hdrs, web
from multidict import CIMultiDict
from yarl import URL

from broker.api import forwarding
from broker.api.context import REQUEST_ID, STARTED, STOPPING
from broker.api.errors import error_response
from broker.api.reach import Forbidden, Guarded, forbidden
from broker.config import ServiceSettings
from broker.once import NEVER_CONNECTED, send_once

LOOK_S = 0.25
"""How often a request under way is looked at: its client, its progress, the broker's end."""
SHUTDOWN_GRACE_S = 5.0
"""What is under way may still end within this when the broker does; WebSockets are told at once."""
HEARTBEAT_S = 30.0
CLOSE_S = 2.0
KEEP_S = 1.0
"""A connection is kept for so long: less than servers do, so that few are closed at the wrong moment."""
RETRY_AFTER_S = 2
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

_NO_AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

_NEVER = "its center tells an address that services are never asked at (docs/security.md)"

T = TypeVar("T")
WebSocket: TypeAlias = "aiohttp.ClientWebSocketResponse[bool] | web.WebSocketResponse"


class Unserved(Exception):
    """A request that is not passed on, or whose answer does not come: outside Annex B."""

    def __init__(self, status: int, detail: str, *, retry: bool = False) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry = retry

    def answer(self, request: web.Request) -> web.Response:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if self.retry else None
        return error_response(
            request,
            status=self.status,
            code="",
            message=_MESSAGES[self.status],
            detail=self.detail,
            headers=headers,
        )


_MESSAGES = {
    405: "请求方法不支持",
    410: "在线服务已结束",
    413: "请求体过大",
    431: "请求头过大",
    499: "客户端已断开",
    502: "在线服务应答异常",
    503: "在线服务暂不可用",
    504: "在线服务无应答",
}


@dataclass(frozen=True, slots=True)
class Onward:
    """A request as it is passed on.  `prefix` is the service's path at the broker, with a slash at its
    end; `header` is complete but for what belongs to the body and the connection.  `trusted`: the host
    is the center's own (reach.py)."""

    service: str
    url: URL
    address: str
    prefix: str
    header: CIMultiDict[str]
    trusted: bool


@dataclass(slots=True)
class _Progress:
    """When something of a request or its answer last moved, in the loop's time."""

    moved_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    too_large: bool = False

    def moved(self) -> None:
        self.moved_at = asyncio.get_running_loop().time()

    def still_for_s(self) -> float:
        return asyncio.get_running_loop().time() - self.moved_at


class Proxy:
    """Everything that is on its way to services, in one application."""

    def __init__(self, limits: ServiceSettings) -> None:
        self._limits = limits
        self._under_way: dict[str, int] = {}
        self._clients: dict[tuple[bool, bool], aiohttp.ClientSession] = {}
        self._resolver: Guarded | None = None

    async def open(self) -> None:
        self._resolver = Guarded()
        self._clients = {
            (keep, trusted): self._client(keep=keep, trusted=trusted)
            for keep in (True, False)
            for trusted in (True, False)
        }

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
        if self._resolver is not None:
            await self._resolver.close()

    def _client(self, *, keep: bool, trusted: bool) -> aiohttp.ClientSession:
        # No limit of its own: `_slot` has counted the request already.
        resolver = None if trusted else self._resolver
        connector = (
            aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S, resolver=resolver)
            if keep
            else aiohttp.TCPConnector(limit=0, force_close=True, resolver=resolver)
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=_NO_AUTOMATIC,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_timeout_s),
            max_field_size=self._limits.max_header_bytes,
            max_line_size=self._limits.max_header_bytes,
            middlewares=(send_once,),
        )

    @property
    def under_way(self) -> int:
        return sum(self._under_way.values())

    @contextmanager
    def _slot(self, service: str) -> Iterator[None]:
        """Counts a request while it is under way.  Raises Unserved 503 for one too many."""
        mine = self._under_way.get(service, 0)
        if mine >= self._limits.max_concurrent_per_service:
            raise Unserved(503, f"{mine} requests to this service are under way", retry=True)
        if self.under_way >= self._limits.max_concurrent:
            raise Unserved(503, f"{self.under_way} requests to services are under way", retry=True)
        self._under_way[service] = mine + 1
        try:
            yield
        finally:
            left = self._under_way.pop(service) - 1
            if left:
                self._under_way[service] = left

    async def pass_on(self, request: web.Request, onward: Onward) -> web.StreamResponse:
        """The service's answer, sent.  Raises Unserved before anything of it was, ConnectionError after."""
        if not onward.trusted and forbidden(onward.url.host or ""):
            raise Unserved(502, _NEVER)
        with self._slot(onward.service):
            try:
                if _is_websocket(request):
                    return await self._websocket(request, onward)
                return await self._http(request, onward)
            except aiohttp.ClientSSLError as error:
                raise Unserved(502, f"no TLS with the service: {type(error).__name__}") from None
            except NEVER_CONNECTED as error:
                if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, Forbidden):
                    raise Unserved(502, _NEVER) from None
                if isinstance(error, TimeoutError):
                    raise Unserved(504, "the service cannot be connected to in time", retry=True) from None
                raise Unserved(503, "the service does not accept connections (yet)", retry=True) from None
            except aiohttp.ClientError as error:
                raise _broken(request, f"the service broke off: {type(error).__name__}") from None

    # ------------------------------------------------------------ HTTP

    async def _http(self, request: web.Request, onward: Onward) -> web.StreamResponse:
        if (request.content_length or 0) > self._limits.max_body_bytes:
            raise Unserved(413, f"the body has more than {self._limits.max_body_bytes} bytes")
        progress = _Progress()
        return await self._unless_over(request, self._exchange(request, onward, progress), progress)

    async def _exchange(
        self, request: web.Request, onward: Onward, progress: _Progress
    ) -> web.StreamResponse:
        """The request to the service and its answer to the client."""
        client = self._clients[request.method in SAFE and not request.body_exists, onward.trusted]
        header, body = onward.header.copy(), None
        if request.body_exists:
            body = self._body(request, progress)
            encoding = request.headers.get(hdrs.CONTENT_ENCODING, "")
            decoded = encoding.strip().lower() in forwarding.DECODED
            if request.content_length is not None and not decoded:
                header[hdrs.CONTENT_LENGTH] = str(request.content_length)
            if encoding and not decoded:
                header[hdrs.CONTENT_ENCODING] = encoding
        try:
            async with client.request(
                request.method, onward.url, headers=header, data=body, allow_redirects=False
            ) as answer:
                progress.moved()
                return await self._answer(request, onward, answer, progress)
        except aiohttp.ClientError:
            if progress.too_large:
                text = f"the body has more than {self._limits.max_body_bytes} bytes"
                raise Unserved(413, text) from None
            raise

    async def _body(self, request: web.Request, progress: _Progress) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
            if size > self._limits.max_body_bytes:
                progress.too_large = True
                raise aiohttp.ClientPayloadError("the body is too large")
            progress.moved()
            yield chunk

    async def _answer(
        self, request: web.Request, onward: Onward, answer: aiohttp.ClientResponse, progress: _Progress
    ) -> web.StreamResponse:
        if forwarding.size_of(answer.headers.items()) > self._limits.max_header_bytes:
            text = f"the header of the service's answer has more than {self._limits.max_header_bytes} bytes"
            raise Unserved(502, text)
        header = forwarding.back(answer.headers.items(), address=onward.address, prefix=onward.prefix)
        reason = answer.reason if answer.reason and answer.reason.isascii() else None
        response = web.StreamResponse(status=answer.status, reason=reason, headers=header)
        response.headers["X-Request-Id"] = request[REQUEST_ID]
        await response.prepare(request)
        request[STARTED] = True
        async for chunk in answer.content.iter_any():
            progress.moved()
            await response.write(chunk)
            progress.moved()
        await response.write_eof()
        return response

    async def _unless_over(
        self, request: web.Request, work: Coroutine[None, None, T], progress: _Progress
    ) -> T:
        """The result of `work`, which ends with its client, with the broker and when nothing moves."""
        task = asyncio.create_task(work)
        loop, stopping = asyncio.get_running_loop(), request.app[STOPPING]
        end_at: float | None = None
        try:
            while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
                if request.transport is None or request.transport.is_closing():
                    raise _broken(request, "the client has gone away", status=499)
                if progress.still_for_s() > self._limits.idle_timeout_s:
                    raise _broken(request, f"nothing moved for {self._limits.idle_timeout_s:g} s", status=504)
                if stopping.is_set():
                    end_at = end_at or loop.time() + SHUTDOWN_GRACE_S
                    if loop.time() > end_at:
                        raise _broken(request, "the broker is shutting down", status=503)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # told already, or of no interest any more

    # ------------------------------------------------------------ WebSockets

    async def _websocket(self, request: web.Request, onward: Onward) -> web.StreamResponse:
        offered = [p.strip() for p in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        most = self._limits.max_message_bytes + 1  # aiohttp's limit is the first size that is too much
        if not web.WebSocketResponse(protocols=offered).can_prepare(request).ok:
            raise web.HTTPBadRequest
        connecting = self._clients[False, onward.trusted].ws_connect(
            onward.url,
            protocols=[protocol for protocol in offered if protocol],
            headers=onward.header,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            heartbeat=HEARTBEAT_S,
            max_msg_size=most,
        )
        try:
            there = await self._unless_over(request, _awaited(connecting), _Progress())
        except aiohttp.WSServerHandshakeError as refused:
            status = refused.status if 400 <= refused.status < 500 else 502
            text = f"the service answers the WebSocket with HTTP status {refused.status}"
            return error_response(request, status=status, code="", message=_MESSAGES[502], detail=text)
        async with there:
            here = web.WebSocketResponse(
                protocols=[there.protocol] if there.protocol else (),
                timeout=CLOSE_S,
                heartbeat=HEARTBEAT_S,
                max_msg_size=most,
                compress=False,
            )
            here.headers["X-Request-Id"] = request[REQUEST_ID]
            await here.prepare(request)
            request[STARTED] = True
            await _exchange_messages(here, there, request.app[STOPPING])
            return here


async def _awaited(connecting: Awaitable[T]) -> T:
    return await connecting


async def _exchange_messages(here: WebSocket, there: WebSocket, stopping: asyncio.Event) -> None:
    """Both ways until one side closes, which the other is told with the same code, or the broker ends."""
    to_there = asyncio.create_task(_pump(here, there))
    to_here = asyncio.create_task(_pump(there, here))
    over = asyncio.create_task(stopping.wait())
    tasks: set[asyncio.Task[Any]] = {to_there, to_here, over}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        code, reason = aiohttp.WSCloseCode.GOING_AWAY.value, b""
        for done in (to_there, to_here):
            if done.done() and done.exception() is None:
                code, reason = done.result()
                break
        for side in (here, there):  # before the pumps are ended: a socket whose reading was cancelled
            with suppress(ConnectionError, RuntimeError, aiohttp.ClientError):  # is closed without a word
                await side.close(code=code, message=reason)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()


async def _pump(source: WebSocket, sink: WebSocket) -> tuple[int, bytes]:
    """Messages from one side to the other; the code and the reason with which the source ended."""
    while True:
        message = await source.receive()
        match message.type:
            case WSMsgType.TEXT:
                await sink.send_str(message.data)
            case WSMsgType.BINARY:
                await sink.send_bytes(message.data)
            case WSMsgType.CLOSE:
                return _told(message.data), (message.extra or "").encode()[:123]
            case _:
                return _told(source.close_code), b""


def _told(code: int | None) -> int:
    """A close code as it may be sent (RFC 6455, 7.4): 1005 and 1006 are for what was not."""
    if code is None or code == 1005:
        return aiohttp.WSCloseCode.OK.value
    if (1000 <= code <= 1014 and code not in (1004, 1006)) or 3000 <= code <= 4999:
        return code
    return aiohttp.WSCloseCode.INTERNAL_ERROR.value


def _is_websocket(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").strip().lower() == "websocket"


def _broken(request: web.Request, detail: str, *, status: int = 502) -> Exception:
    """What an end in the middle is: an answer while there is none yet, else a cut connection."""
    return ConnectionError(detail) if request.get(STARTED) else Unserved(status, detail, retry=status == 503)
