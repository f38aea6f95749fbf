"""Requests to online services: who may, where to, and the link that lets a browser in.

What belongs here: /services/… and the signed links.  What does not: the jobs themselves
(onlinejob.py) and passing a request on (proxy.py).

A request brings the token of somebody who may see the job, or the cookie that a signed link has left
in a browser; a public service asks for nothing.  The service never sees any of these.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from urllib.parse import parse_qsl, urlencode, urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict
from yarl import URL

from broker.api import forwarding, times, wire
from broker.api.auth import bearer_token, caller_of, caller_with, find_among_others
from broker.api.context import CALLER, CONTEXT, REQUEST_ID, Context
from broker.api.errors import ApiError, shown
from broker.api.proxy import Onward, Proxy, Unserved
from broker.api.reach import trusted
from broker.api.reading import no_query
from broker.api.routes import Route
from broker.api.trainjob import path_job, read_job
from broker.api.turns import TURN
from broker.client import answers
from broker.core.model import JobId, Kind, PublicStatus
from broker.store import services
from broker.store.accounts import Caller, LoginSession, may_see
from broker.store.jobs import NoSuchJob
from broker.store.services import Service

PATH = "/services/{id}/{path}"
"""The canonical form of the route, whose `path` may be empty and have slashes."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
LINK = "brokerLink"
"""Query field of a signed link; never passed on."""
COOKIE = f"{forwarding.OWN_COOKIES}service"
REMEMBER_S = 1.0
REMEMBERED = 10_000
_SIGNED = re.compile(r"([A-Za-z0-9_-]{1,64})\.([0-9]{1,15})\.([0-9a-f]{64})", re.ASCII)

_ENDED = (PublicStatus.SUCCEEDED, PublicStatus.FAILED, PublicStatus.STOPPED)


class Services:
    """Found services, remembered for a second: a page asks for many things at once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._found: dict[tuple[JobId, str], tuple[float, Service | None]] = {}
        self.proxy = Proxy(context.services)

    async def find(self, job: JobId, visitor: str) -> Service | None:
        now = asyncio.get_running_loop().time()
        remembered = self._found.get((job, visitor))
        if remembered is not None and remembered[0] > now:
            return remembered[1]
        known = self._found
        found = await self._context.store.read(services.find, job, visitor)
        if len(known) >= REMEMBERED:
            known.clear()
        known[job, visitor] = now + REMEMBER_S, found
        return found

    def forget(self) -> None:
        """A service changed: look again.  What is being read now may be older and is not remembered."""
        self._found = {}


SERVICES = web.AppKey("services", Services)


# ---------------------------------------------------------------- signed links


async def link(request: web.Request) -> web.Response:
    """POST /broker/v1/services/{id}/link: lets a browser in, as the caller."""
    no_query(request)
    context = request.app[CONTEXT]
    job = await read_job(request, Kind.ONLINE)
    expires_s = context.clock() // 1000 + context.link_ttl_s
    signed = _signed(context, "link", job.id, request[CALLER].id, expires_s)
    url = f"{wire.service_url(job.id, context.services_url)}?{urlencode({LINK: signed})}"
    return wire.answer({"url": url, "expiresAt": times.written(expires_s * 1000, context.timezone)})


def _signed(context: Context, use: str, job: str, account: str, expires_s: int) -> str:
    text = f"/services/{job}\n{use}\n{account}\n{expires_s}"
    signature = hmac.new(context.signing_key, text.encode(), hashlib.sha256).hexdigest()
    return f"{account}.{expires_s}.{signature}"


def _signer(context: Context, use: str, job: str, given: str) -> str:
    """The account that was signed for; "" when the signature is wrong or too old."""
    parts = _SIGNED.fullmatch(given)
    if parts is None:
        return ""
    account, expires_s = parts[1], int(parts[2])
    right = _signed(context, use, job, account, expires_s)
    in_time = context.clock() < expires_s * 1000
    return account if hmac.compare_digest(right, given) and in_time else ""


def _let_in(request: web.Request, job: JobId, rest: str, query: str) -> web.Response:
    """Changes a signed link into a cookie and sends the browser to where it leads."""
    context = request.app[CONTEXT]
    pairs = parse_qsl(query, keep_blank_values=True)
    account = _signer(context, "link", job, next(value for name, value in pairs if name == LINK))
    if not account:
        raise ApiError("0101", f"{LINK}: the link is not of this broker or has expired; make a new one", 401)
    left = urlencode([(name, value) for name, value in pairs if name != LINK])
    prefix = _prefix(context, job)
    response = web.Response(
        status=303,
        headers={
            "Location": f"{prefix}{rest}" + (f"?{left}" if left else ""),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
        },
    )
    expires_s = context.clock() // 1000 + context.services.cookie_ttl_s
    response.set_cookie(
        COOKIE,
        _signed(context, "cookie", job, account, expires_s),
        path=prefix,
        max_age=context.services.cookie_ttl_s,
        httponly=True,
        samesite="Lax",
        secure=urlsplit(context.services_url).scheme == "https",
    )
    return response


# ---------------------------------------------------------------- requests


async def add_slash(request: web.Request) -> web.Response:
    """ANY /services/{id}: a service's own relative links need the slash at the end."""
    context = request.app[CONTEXT]
    query = request.rel_url.raw_query_string
    target = _prefix(context, path_job(request)) + (f"?{query}" if query else "")
    return web.Response(status=308, headers={"Location": target})


async def forward(request: web.Request) -> web.StreamResponse:
    """ANY /services/{id}/{path}"""
    try:
        return await _forward(request)
    except Unserved as no:
        return no.answer(request)


async def _forward(request: web.Request) -> web.StreamResponse:
    # 1. what is asked for
    context, found = request.app[CONTEXT], request.app[SERVICES]
    if request.method not in METHODS:
        raise web.HTTPMethodNotAllowed(request.method, METHODS)
    if context.services.public_url and request.host != urlsplit(context.services.public_url).netloc:
        raise web.HTTPNotFound
    job, rest, query = path_job(request), _rest(request), request.rel_url.raw_query_string
    if forwarding.size_of(request.headers.items()) > context.services.max_header_bytes:
        raise Unserved(431, f"the header has more than {context.services.max_header_bytes} bytes")
    # 2. who asks
    if request.method == "GET" and LINK in request.rel_url.query:
        return _let_in(request, job, rest, query)
    if LINK in request.rel_url.query:
        raise ApiError("0202", f"{LINK}: a link is opened by GET")  # the service must not see it
    visitor = _signer(context, "cookie", job, request.cookies.get(COOKIE, ""))
    service = await found.find(job, visitor)
    session = await find_among_others(request, bearer_token(request))
    if service is None or not service.public:
        await _admit(request, job, service, session)
    assert service is not None, "nobody is admitted to what is not there"
    # 3. whether it can answer, and where
    if service.status in _ENDED:
        raise Unserved(410, f"service {job} has ended: {service.status}")
    if service.status is not PublicStatus.RUNNING or not service.address:
        raise Unserved(503, f"service {job} is {service.status}, not serving yet", retry=True)
    url = forwarding.below(service.address, rest, query)
    if url is None:
        if not forwarding.usable(service.address):
            raise Unserved(502, "its center tells an address that is none")
        raise ApiError("0202", f"path: {shown(rest)} is none that can be passed on")
    # a token of the broker is never the service's
    authorization = request.headers.get("Authorization", "") if session is None else ""
    header = _header(request, job, url, authorization)
    own = trusted(url, context.own_hosts(service.center))
    request[TURN].give_up()  # the proxy has limits of its own
    onward = Onward(job, url, service.address, _prefix(context, job), header, own)
    return await found.proxy.pass_on(request, onward)


def _prefix(context: Context, job: str) -> str:
    """The path of a service in a browser."""
    return urlsplit(wire.service_url(job, context.services_url)).path


def _rest(request: web.Request) -> str:
    """The service's own path, as it was sent.  Raises NoSuchJob where the id was written differently."""
    start = f"/services/{request.match_info['id']}/"
    path = request.rel_url.raw_path
    if not path.startswith(start):
        raise NoSuchJob(f"there is no job {shown(request.match_info['id'])}")
    return path.removeprefix(start)


async def _admit(
    request: web.Request, job: JobId, service: Service | None, session: LoginSession | None
) -> None:
    """Raises ApiError 0101, 0102, 0103 without a right to ask, and NoSuchJob for what must not be seen,
    in this order: nobody learns which services there are.  `session` is that of the bearer token."""
    visitor = None if service is None else service.visitor
    own = request.headers.get("X-Auth-Token", "").strip()
    caller: Caller
    if own or (visitor is None and not bearer_token(request)):
        caller = await caller_of(request, own)
    elif visitor is None or session is not None:
        caller = caller_with(request, session)
    else:
        caller = visitor
    request[CALLER] = caller
    if service is None or not may_see(caller, account=service.account, tenant=service.tenant):
        raise NoSuchJob(f"there is no job {job!r}")


def _header(request: web.Request, job: JobId, url: URL, authorization: str) -> CIMultiDict[str]:
    """The header that the service gets.  Raises ApiError 0202 for what cannot be sent again."""
    context = request.app[CONTEXT]
    sent = list(request.headers.items())
    header: CIMultiDict[str] = CIMultiDict()
    websocket = request.headers.get("Upgrade", "").strip().lower() == "websocket"
    for name, value in forwarding.onward(sent, websocket=websocket):
        if name.lower() != "x-forwarded-for":
            header.add(name, value)
    if cookies := forwarding.others_cookies(sent):
        header[hdrs.COOKIE] = cookies
    if authorization:
        header[hdrs.AUTHORIZATION] = authorization
    outside = urlsplit(context.services_url)
    before = request.headers.getall("X-Forwarded-For", [])
    header["X-Forwarded-For"] = ", ".join([*before, request.remote or "unknown"])
    header["X-Forwarded-Proto"] = outside.scheme
    header["X-Forwarded-Host"] = outside.netloc
    header["X-Forwarded-Prefix"] = _prefix(context, job).rstrip("/")
    header["X-Request-Id"] = request[REQUEST_ID]
    for name, value in header.items():
        if not forwarding.sendable(value):
            raise ApiError("0202", f"{name}: a header must be text in UTF-8")
    return header


# ---------------------------------------------------------------- routes

PASSED_ON: tuple[tuple[str, Handler], ...] = (("/services/{id}", add_slash), (PATH, forward))
"""What online services answer, by any method; who may is decided here."""

ROUTES = (
    Route(
        "POST",
        "/broker/v1/services/{id}/link",
        link,
        "A signed link that lets a browser in to a service",
        "获取供浏览器访问在线服务的临时链接",
        answer=answers.ServiceLink,
        refusals=("0240",),
    ),
)
