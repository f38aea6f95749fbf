"""Calls over HTTP to one center: what the adapters of remote platforms share.

Here: the connections of a center, its limits, what an answer must be to be read at all, and what a
failure means.  Not here: any platform's paths, envelopes or words; when to log in (session.py), when
to leave a center alone (breaker.py), what is secret (redaction.py), what may have left (sent.py).

A call states whether it has an effect at the platform, whatever its method: some start jobs by GET.

* Nothing is sent twice.  aiohttp would repeat an aborted GET, PUT or DELETE by itself; that is off.
* A call with an effect has a connection of its own.  On a kept one that the server closes at that
  moment, nobody could say whether the call arrived.
* A failed call with an effect is Unavailable (effect unknown), unless no connection could be made at
  all or no login: then it is NotSent, which is Throttled to the callers of an adapter.  So is one that
  is cancelled, as by its caller's deadline, before it has a connection: only what may have left is in
  doubt.
* After an expired session a reading call is made once more with the new one; a call with an effect
  only if the platform's answer proves that nothing was done.
* Redirects are not followed, cookies are not kept, the environment's proxies are not used.
* The caller sets the deadline by cancelling; `timeout_s` of the connection bounds each call below it.
  A cancelled call with an effect answers with what it means, as above; whoever cancels for another
  reason than a deadline has to look whether that was so (broker.connections.timed does).
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
from prometheus_client import Counter
from yarl import URL

from adapters.breaker import Breaker, BreakerOpen
from adapters.pace import Pace
from adapters.redaction import Redaction
from adapters.sent import RETRY_AFTER_S, Line, NotSent, may_leave, watched
from adapters.session import LOGGING_IN, LoggedIn, Session, SessionExpired
from adapters.values import parse_json
from broker import __version__
from broker.adapter import (
    AdapterError,
    Connection,
    Denied,
    RawAnswer,
    Refused,
    Throttled,
    Unavailable,
)
from broker.once import NEVER_CONNECTED, send_once

T = TypeVar("T")
Body = bytes | AsyncIterator[bytes] | aiohttp.FormData | None
Query = Mapping[str, str | int]
HeaderReader = Callable[[Mapping[str, str]], None]
Envelope = Callable[[int, Any], Any]
"""A platform's check of an answer: HTTP status and document in, payload out.

Raises an adapter error; SessionExpired where the answer says so.
"""

CONNECT_TIMEOUT_S = 10.0
"""For name, TCP and TLS together."""
MAX_ANSWER_BYTES = 16 << 20
MAX_RAW_BYTES = 2 << 20
"""Of an operator's call; twice what the API shows."""
CHUNK_BYTES = 64 << 10
MAX_TOLD = 2000  # characters of an error: a platform's words may be as long as an answer
MAX_RETRY_AFTER_S = 3600.0
USER_AGENT = f"computing-broker/{__version__}"

REQUESTS = Counter("broker_center_requests", "HTTP calls to a center", ["center", "operation", "outcome"])

_REDIRECTS = (301, 302, 303, 307, 308)
_GATEWAY = (502, 503, 504)  # something before the platform answers: the platform itself did not
_JSON_TYPES = ("", "application/json", "text/json", "text/plain")


class Unintelligible(Unavailable):
    """An answer that cannot be read: it says nothing of the effect."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """One call.  `operation` names it in /metrics: a word of the adapter, never a path.

    `url` is complete but for `query`; given as a yarl.URL it is sent as it is.  `urgent`: it is made
    even while the center is left alone (stops are).  `transfer`: its length is unknown, so
    `timeout_s` bounds each silence while the answer is read and not the whole, which the caller does.
    """

    operation: str
    method: str
    url: str | URL
    effect: bool
    query: Query = field(default_factory=dict)
    body: Body = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    session: Session | None = None
    urgent: bool = False
    transfer: bool = False
    max_bytes: int = MAX_ANSWER_BYTES


@dataclass(frozen=True, slots=True)
class Limits:
    """The keys of [centers.connection] that bound calls: seconds, calls a second, calls at once."""

    timeout_s: float = 30.0
    requests_per_s: float = 10.0
    concurrency: int = 8

    @classmethod
    def of(cls, connection: Connection) -> Limits:
        names = ("timeout_s", "requests_per_s", "concurrency")
        return cls(**{name: connection.options[name] for name in names if name in connection.options})


class Http:
    """The HTTP side of one center.  `redact` knows its secrets."""

    def __init__(
        self,
        center: str,
        limits: Limits,
        redact: Redaction,
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Needs a running event loop; `open_http` makes one from a Connection."""
        self.center = center
        self.redact = redact
        self.breaker = Breaker(center, clock)
        self._limits = limits
        self._pace = Pace(limits.requests_per_s, clock)
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._reading = _client(tls, keep=True)
        self._acting = _client(tls, keep=False)

    async def aclose(self) -> None:
        await self._reading.close()
        await self._acting.close()

    # ------------------------------------------------------------ calls

    async def json(self, request: Request, envelope: Envelope, *, document: Any = None) -> Any:
        """Make a call and read its answer as JSON; what `envelope` makes of it.

        `document` is sent as JSON where given.  Numbers with a fraction come as Decimal.  Raises
        adapter errors only.
        """
        if document is not None:
            headers = {"Content-Type": "application/json", **request.headers}
            request = replace(request, body=_encoded(document), headers=headers)

        async def read(response: aiohttp.ClientResponse) -> Any:
            body = await self._body(response, request.max_bytes)
            return envelope(response.status, self._document(response, body))

        return await self._call(request, read)

    async def raw(self, request: Request) -> RawAnswer:
        """Make an operator's call: whatever the platform answers, secrets taken out.

        An answer longer than MAX_RAW_BYTES is cut there, and not read further.
        """

        async def read(response: aiohttp.ClientResponse) -> RawAnswer:
            body = b""
            while len(body) < MAX_RAW_BYTES and (chunk := await response.content.read(CHUNK_BYTES)):
                body += chunk
            shown = self.redact(body[:MAX_RAW_BYTES].decode(errors="replace")).encode()
            return RawAnswer(response.status, shown, response.content_type)

        return await self._call(request, read)

    async def download(
        self,
        request: Request,
        envelope: Envelope | None = None,
        *,
        any_type: bool = False,
        headers: HeaderReader = lambda _: None,
    ) -> AsyncIterator[bytes]:
        """The bytes of a file, at most `max_bytes`, in chunks.

        With `envelope`, an answer in JSON is the platform's word why there is no file; with `any_type`
        only where its status is no success.  `headers` is given those of the file.
        """
        for again in (False, True):
            try:
                async with self._exchange(request) as response:
                    word = not (any_type and response.status in (200, 206))
                    if envelope is not None and word and response.content_type == "application/json":
                        body = await self._body(response, MAX_ANSWER_BYTES)
                        envelope(response.status, self._document(response, body))
                        raise self._unintelligible(response, body, "expected a file, got JSON")
                    if response.status not in (200, 206):
                        body = await self._body(response, MAX_ANSWER_BYTES)
                        raise self._unintelligible(response, body, "expected a file")
                    headers(response.headers)
                    async for chunk in self._limited(response, request.max_bytes):
                        yield chunk
                return
            except SessionExpired as ended:
                self._may_repeat(request, ended)
                if again:
                    raise Denied(f"a new session was rejected: {ended}") from None

    async def _call(self, request: Request, read: Callable[[aiohttp.ClientResponse], Awaitable[T]]) -> T:
        """Make a call, once more where an expired session allows it."""
        try:
            async with self._exchange(request) as response:
                return await read(response)
        except SessionExpired as ended:
            self._may_repeat(request, ended)
        try:
            async with self._exchange(request) as response:
                return await read(response)
        except SessionExpired as ended:
            self._may_repeat(request, ended)
            raise Denied(f"a new session was rejected: {ended}") from None

    def _may_repeat(self, request: Request, ended: SessionExpired) -> None:
        """Raises what an expired session means where the call must not be made again."""
        if request.session is None:
            raise Denied(str(ended)) from None
        if request.effect and not ended.no_effect:
            raise Unavailable(f"{ended}; whether the call had its effect is unknown") from None
        if isinstance(request.body, AsyncIterator | aiohttp.FormData):
            raise Throttled(f"{ended}; its body is used up", retry_after_s=1.0) from None

    @asynccontextmanager
    async def _exchange(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request on the wire and the reading of its answer, which is the caller's block.

        Every error that leaves is an adapter error without secrets.
        """
        # 1. may it be made, and with which session
        session, outcome, line = request.session, "NotSent", Line()
        answered: bool | None = None  # None: the center was not asked
        try:
            trial = self.breaker.enter(urgent=request.urgent or LOGGING_IN.get())
        except BreakerOpen as left_alone:
            REQUESTS.labels(self.center, request.operation, outcome).inc()
            text = f"{self.center} {left_alone}"
            if request.effect:
                raise NotSent(text, retry_after_s=left_alone.retry_after_s) from None
            raise Unavailable(text) from None
        try:
            used = await self._session_of(request)
            # 2. its turn
            await self._pace.turn()
            async with self._slots:
                # 3. the request and its answer
                may_leave(request.operation, effect=request.effect)
                answered = False
                async with self._send(request, used, line) as response:
                    answered = response.status not in _GATEWAY
                    self._status(request, response)
                    yield response
            outcome = "ok"
            if session is not None and used is not None:
                session.works(used)
        except SessionExpired as error:
            outcome, answered = "SessionExpired", True
            self._clean(error)
            if session is not None and used is not None:
                session.reject(used)
            raise
        except Unintelligible as error:
            outcome, answered = "Unintelligible", 400 <= error.status < 500
            raise
        except AdapterError as error:
            outcome = type(error).__name__
            self._clean(error)
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            answered = False
            translated = self._translated(request, error, line)
            outcome = type(translated).__name__
            raise translated from None  # the cause holds URLs and headers
        except asyncio.CancelledError:
            # The caller's deadline: a center that stops in the middle of an answer has not answered.
            outcome, answered = "cancelled", None if answered is None else False
            if not request.effect:
                raise
            if not line.connected:
                outcome = "NotSent"
                text = f"{request.operation}: not sent, the time was up while it waited for its turn"
                raise NotSent(text) from None
            raise Unavailable(f"{request.operation}: no answer when the time was up") from None
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            self.breaker.leave(trial, answered=answered)
            REQUESTS.labels(self.center, request.operation, outcome).inc()

    async def _session_of(self, request: Request) -> LoggedIn | None:
        """The session for a call.  Whatever becomes of a login, the call itself has not been sent."""
        if request.session is None:
            return None
        try:
            used = await request.session.current()
        except Unavailable as error:
            text = f"{request.operation}: not sent, no login: {error}"
            raise (NotSent(text) if request.effect else Unavailable(text)) from None
        for value in used.headers.values():  # secrets, whole and without their scheme ("Bearer")
            self.redact.add(value)
            self.redact.add(value.rpartition(" ")[2])
        return used

    @asynccontextmanager
    async def _send(
        self, request: Request, used: LoggedIn | None, line: Line
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        limit_s = self._limits.timeout_s
        timeout = aiohttp.ClientTimeout(
            total=None if request.transfer else limit_s,
            connect=min(CONNECT_TIMEOUT_S, limit_s),
            sock_read=limit_s,
        )
        client = self._acting if request.effect else self._reading
        async with client.request(
            request.method,
            request.url,
            params=request.query or None,
            data=request.body,
            headers={**(used.headers if used is not None else {}), **request.headers},
            timeout=timeout,
            allow_redirects=False,
            trace_request_ctx=line,
        ) as response:
            yield response

    # ------------------------------------------------------------ answers

    def _status(self, request: Request, response: aiohttp.ClientResponse) -> None:
        """What the HTTP status alone decides.  Raises SessionExpired, Throttled, Unavailable."""
        status = response.status
        if status == 401:
            no_effect = request.session is not None and request.session.rejects_before_acting
            raise SessionExpired(f"{request.operation}: HTTP 401", no_effect=no_effect)
        if status == 429:
            wait_s = _retry_after_s(response.headers.get("Retry-After", ""))
            raise Throttled(f"{request.operation}: HTTP 429, too many requests", retry_after_s=wait_s)
        if status in _REDIRECTS:
            host = _host(response.headers.get("Location", ""), default=response.url.host or "?")
            raise Unavailable(
                f"{request.operation}: HTTP {status}, a redirect to {host}; redirects are not followed:"
                " set the final address in the configuration"
            )

    async def _body(self, response: aiohttp.ClientResponse, most: int) -> bytes:
        return b"".join([chunk async for chunk in self._limited(response, most)])

    async def _limited(self, response: aiohttp.ClientResponse, most: int) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            size += len(chunk)
            if size > most:
                raise Unavailable(f"HTTP {response.status}: the answer has more than {most} bytes")
            yield chunk

    def _document(self, response: aiohttp.ClientResponse, body: bytes) -> Any:
        """The answer's JSON.  Raises Unintelligible, with what it is instead."""
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind not in _JSON_TYPES and not kind.endswith("+json"):
            raise self._unintelligible(response, body, f"content type {kind!r}, expected JSON")
        try:
            return parse_json(body)
        except ValueError as error:
            raise self._unintelligible(response, body, self.redact.excerpt(str(error))) from None

    def _clean(self, error: AdapterError) -> None:
        """Platforms quote what they were sent, and envelopes quote platforms."""
        text, tell = str(error), self.redact
        error.args = (tell(text) if len(text) <= MAX_TOLD else tell.excerpt(text, MAX_TOLD), *error.args[1:])

    def _unintelligible(self, response: aiohttp.ClientResponse, body: bytes, why: str) -> Unintelligible:
        start = self.redact.excerpt(body.decode(errors="replace"))
        text = f"HTTP {response.status}: {why}: {start or '(empty)'}"
        return Unintelligible(text, status=response.status)

    def _translated(self, request: Request, error: Exception, line: Line) -> AdapterError:
        """What a failed exchange means to the callers of an adapter."""
        text = self.redact.excerpt(str(error)) or type(error).__name__
        if isinstance(error, NEVER_CONNECTED) or (isinstance(error, TimeoutError) and not line.connected):
            host = URL(request.url).host if isinstance(request.url, str) else request.url.host
            text = f"{request.operation}: no connection to {host}: {text}"
            return NotSent(text) if request.effect else Unavailable(text)
        if isinstance(error, TimeoutError):
            text = f"no answer within {self._limits.timeout_s:g} s"
        return Unavailable(f"{request.operation}: {text}")


async def open_http(connection: Connection, *, secret_options: tuple[str, ...] = ()) -> Http:
    """The HTTP side of a configured center; `secret_options` are the options that are secret too.

    Raises ValueError for a `ca_file` that cannot be used.
    """
    secrets = list(connection.credentials.values())
    secrets += [str(connection.options[name]) for name in secret_options if connection.options.get(name)]
    tls = None
    if ca_file := connection.options.get("ca_file"):
        try:
            tls = await asyncio.to_thread(ssl.create_default_context, cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            reason = error.strerror or error
            raise ValueError(f"ca_file is {ca_file!r}, expected certificates in PEM: {reason}") from None
    return Http(connection.center, Limits.of(connection), Redaction(secrets), tls=tls)


def _client(tls: ssl.SSLContext | None, *, keep: bool) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # No limit of its own: calls wait for their turn before they have a connection.
        connector=aiohttp.TCPConnector(ssl=tls if tls is not None else True, limit=0, force_close=not keep),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": USER_AGENT, "Accept": "application/json, */*;q=0.5"},
        trust_env=False,
        middlewares=(send_once,),
        trace_configs=[watched()],
    )


def _host(location: str, *, default: str) -> str:
    try:
        return urlsplit(location).hostname or default
    except ValueError:
        return "an address that is none"


def _retry_after_s(text: str) -> float:
    """Seconds, or until a date, as RFC 9110 has it."""
    try:
        wait_s = (
            float(text) if text.strip().isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
        )
    except (ValueError, TypeError, OverflowError):
        return RETRY_AFTER_S
    return min(max(wait_s, 1.0), MAX_RETRY_AFTER_S)


# ---------------------------------------------------------------- what the adapters share beside calls


def _encoded(document: Any) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise Refused(f"the request has a character that is none: {error.object[error.start]!a}") from None


def failure(status: int, message: str) -> AdapterError:
    """What a failing HTTP status means by RFC 9110, for envelopes of platforms that keep to it."""
    if status == 403:
        return Denied(message)
    if status >= 500 or status in (408, 425):
        return Unavailable(message)
    return Refused(message)


def below(base: str, path: str) -> URL:
    """An operator's path below a center's base URL.  Raises Refused for one that leads elsewhere."""
    bad = any(char.isspace() or not char.isprintable() or char in "\\#" for char in path)
    steps = path.partition("?")[0].lower().replace("%2e", ".").split("/")
    if not path.startswith("/") or path.startswith("//") or bad or ".." in steps or "." in steps:
        raise Refused(f"path is {path!r}, expected an absolute path such as /api/v1/tasks?page=1")
    return URL(base.rstrip("/") + path)


async def file_chunks(path: Path, *, offset: int = 0, size: int | None = None) -> AsyncIterator[bytes]:
    """`size` bytes of a file from `offset` (without: to its end), in chunks of CHUNK_BYTES.

    Raises OSError, and Unavailable when the file has become shorter.
    """
    with await asyncio.to_thread(path.open, "rb") as file:
        left = (await asyncio.to_thread(path.stat)).st_size - offset if size is None else size
        await asyncio.to_thread(file.seek, offset)
        while left > 0:
            chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, left))
            if not chunk:
                raise Unavailable(f"{path} has become shorter, {left} bytes are missing")
            left -= len(chunk)
            yield chunk
