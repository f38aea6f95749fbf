"""Logins, tokens and who is asking.

A token is 256 random bits; the store keeps its SHA-256 only.  Found tokens are remembered for a
second, so that a freeze or a new password elsewhere shows soon.  Wherever a token is asked for an API
key (keys.py) serves too, within its scopes.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from broker.api import models, times, wire
from broker.api.context import CALLER, CONTEXT, Context
from broker.api.errors import ApiError, Overloaded
from broker.api.limits import LIMITS
from broker.api.reading import no_query, read_body
from broker.api.routes import Route, Scope
from broker.client import answers
from broker.core.model import Role
from broker.store import accounts, keys, views
from broker.store.accounts import Caller, Login, LoginSession
from broker.store.writer import StoreUnavailable
from broker.telemetry import log

REMEMBER_S = 1.0
REMEMBERED_TOKENS = 10_000
ARGON2_AT_ONCE = 2
"""Each takes a processor and 64 MiB for a while."""

KEY_PREFIX = "brk."
"""Of every API key, and of no login's token, which has no dot: the one or the other is looked for."""

_OURS = re.compile(rf"(?:{re.escape(KEY_PREFIX)})?[A-Za-z0-9_-]{{43}}", re.ASCII)
"""What tokens and API keys look like, as `new_token` makes them."""


class Gate:
    """Password checks and found tokens of one application."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._argon2 = asyncio.Semaphore(ARGON2_AT_ONCE)
        self._passwords = 0
        self._found: dict[str, tuple[float, LoginSession]] = {}
        self._finding: dict[str, asyncio.Task[LoginSession | None]] = {}
        self._known: set[str] = set()
        self._nobodys: dict[str, None] = {}  # in the order they last came
        self._decoy = ""
        self._noting: set[asyncio.Task[None]] = set()
        self._used_ms: dict[str, int] = {}

    async def open(self) -> None:
        """Make the hash that stands in for names that do not exist."""
        self._decoy = await self.hash(secrets.token_urlsafe())

    async def close(self) -> None:
        """Wait for failed logins and uses of keys that are being written."""
        await asyncio.gather(*self._noting)

    @asynccontextmanager
    async def _password(self) -> AsyncIterator[None]:
        """One password's turn to be checked or hashed.  Raises Overloaded when too many wait."""
        most = self._context.limits.passwords_waiting + ARGON2_AT_ONCE
        if self._passwords >= most:
            raise Overloaded(f"{self._passwords} passwords wait to be checked (limits.passwords_waiting)")
        self._passwords += 1
        try:
            async with self._argon2:
                yield
        finally:
            self._passwords -= 1

    async def hash(self, password: str) -> str:
        async with self._password():
            return await asyncio.to_thread(self._context.hasher.hash, password)

    async def matches(self, login: Login | None, password: str) -> bool:
        """Whether the password is right; takes as long for a name that does not exist."""
        expected = login.password_hash if login is not None else self._decoy
        async with self._password():
            right = await asyncio.to_thread(_verify, self._context.hasher, expected, password)
        return right and login is not None

    def note_failure(self, account: str) -> None:
        """Count a wrong password without waiting: an answer that waited would tell that the name
        exists.  The writer works in order, so a later login sees the count."""
        self._later(self._note_failure(account))

    def note_use(self, session: LoginSession) -> None:
        """Note the use of an API key, once in a while."""
        key, now = session.caller.key, self._context.clock()
        if not key or now - max(session.used_ms or 0, self._used_ms.get(key, 0)) < keys.USED_EVERY_MS:
            return
        if len(self._used_ms) >= REMEMBERED_TOKENS:
            self._used_ms.clear()
        self._used_ms[key] = now
        self._later(self._note_use(key))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    async def _note_use(self, key: str) -> None:
        try:
            await self._context.store.write(keys.note_use, key)
        except StoreUnavailable as error:
            log.error("key.use_not_noted", keyId=key, error=str(error))

    async def _note_failure(self, account: str) -> None:
        try:
            await self._context.store.write(accounts.record_failed_login, account, self._context.freeze_after)
        except StoreUnavailable as error:
            log.error("login.failure_not_counted", accountId=account, error=str(error))
        self.forget()

    async def find(self, token: str) -> LoginSession | None:
        """Whose token it is, if anybody's."""
        digest = token_hash(token)
        remembered = self._found.get(digest)
        if remembered is not None and remembered[0] > asyncio.get_running_loop().time():
            return remembered[1]
        finding = self._finding.get(digest)
        if finding is None:  # a burst of requests with one token asks once
            finding = self._finding[digest] = asyncio.create_task(self._look_up(token, digest))
        return await asyncio.shield(finding)

    async def _look_up(self, token: str, digest: str) -> LoginSession | None:
        found, under_way = self._found, self._finding  # what is older than a `forget` is not remembered
        look_up = keys.find_key if token.startswith(KEY_PREFIX) else accounts.find_token
        try:
            session = await self._context.store.look(look_up, digest)
        finally:
            del under_way[digest]
        if session is None:
            found.pop(digest, None)
            self._known.discard(digest)
            self._nobodys.pop(digest, None)
            self._nobodys[digest] = None
            if len(self._nobodys) > REMEMBERED_TOKENS:
                del self._nobodys[next(iter(self._nobodys))]
            return None
        if len(found) >= REMEMBERED_TOKENS:
            found.clear()
        found[digest] = asyncio.get_running_loop().time() + REMEMBER_S, session
        self.know(digest)
        return session

    def know(self, digest: str) -> None:
        """It is no guess: the store is asked for it whatever else comes from its address."""
        if len(self._known) >= REMEMBERED_TOKENS:
            self._known.clear()
        self._known.add(digest)

    def knows(self, digest: str) -> bool:
        """Whether it was right here before."""
        return digest in self._known or digest in self._found

    def asks(self, digest: str) -> bool:
        """Whether the store is being asked for it."""
        return digest in self._finding

    def nobodys(self, digest: str) -> bool:
        """Whether the store was asked and it is nobody's, nor will it be: tokens are drawn, not chosen.

        What comes again is remembered longest.
        """
        if digest not in self._nobodys:
            return False
        self._nobodys[digest] = self._nobodys.pop(digest)
        return True

    def forget(self) -> None:
        """An account or a token changed: look again."""
        self._found, self._finding = {}, {}


GATE = web.AppKey("gate", Gate)
SCOPES = web.AppKey("scopes", Mapping[tuple[str, str], Scope])
"""(method, template) of a route to what an API key needs for it."""
OPEN_ROUTES = web.AppKey("open_routes", frozenset[tuple[str, str]])
"""(method, template) of the routes that need no token."""


def new_token() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """Of its bytes as they were sent; aiohttp keeps those that are no UTF-8 as half pairs."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def _verify(hasher: PasswordHasher, expected: str, password: str) -> bool:
    try:
        return hasher.verify(expected, password)
    except (VerificationError, InvalidHashError):
        return False


def request_token(request: web.Request) -> str:
    """The token or API key of the request, "" when there is none.  X-Auth-Token goes before Authorization."""
    return request.headers.get("X-Auth-Token", "").strip() or bearer_token(request)


def bearer_token(request: web.Request) -> str:
    """What Authorization has as a bearer token, "" when it has none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Sets request[CALLER].  Unknown paths are answered as such, without asking for a token."""
    resource = request.match_info.route.resource
    if request.match_info.http_exception is not None or resource is None:
        return await handler(request)
    method = "GET" if request.method == "HEAD" else request.method
    open_routes = request.app[OPEN_ROUTES]
    if (method, resource.canonical) in open_routes or (hdrs.METH_ANY, resource.canonical) in open_routes:
        return await handler(request)
    request[CALLER] = await caller_of(request, request_token(request))
    return await handler(request)


async def caller_of(request: web.Request, token: str) -> Caller:
    """Whose token or API key it is.  Raises as `caller_with`, ApiError 0101 where there is none, and TooMany
    where too many come from one address that are neither."""
    if not token:
        raise ApiError("0101", "a token is needed: X-Auth-Token, or Authorization: Bearer", 401)
    return caller_with(request, await _session(request, token))


def caller_with(request: web.Request, session: LoginSession | None) -> Caller:
    """Who asks, by what was found of the token or API key.

    Raises ApiError 0101, 0102, 0103, and 0202 for a key whose scopes are not what the route asks for.
    """
    if session is None:
        raise ApiError("0101", "the token is not known; POST /auth/tokens gives one", 401)
    if session.ended(request.app[CONTEXT].clock()):
        renewal = "its owner makes a new one" if session.caller.key else "POST /auth/tokens gives a new one"
        raise ApiError("0102", f"the token has expired; {renewal}", 401)
    if session.frozen:
        raise ApiError("0103", f"account {session.caller.name!r} is frozen; an operator unfreezes it", 401)
    if session.scopes is not None:
        _need_scope(session.scopes, _needed(request))
        request.app[GATE].note_use(session)
    return session.caller


async def _session(request: web.Request, token: str) -> LoginSession | None:
    """Whose token it is; one that is nobody's counts against the address.  Raises TooMany."""
    gate, limits, wrong = request.app[GATE], request.app[LIMITS], False
    if gate.knows(token_hash(token)):
        return await gate.find(token)
    address = limits.address(request)
    limits.unknown_token(address)
    try:
        session = await gate.find(token)
        wrong = session is None
    finally:
        if not wrong:
            limits.token_not_wrong(address)
    return session


async def find_among_others(request: web.Request, token: str) -> LoginSession | None:
    """Whose token it is, where it may as well be none of the broker's and come with every request.

    So the store is asked for it once, and not at all for what does not look like one of ours.  Raises
    TooMany for what does, when too many unknown ones come from one address.
    """
    gate = request.app[GATE]
    if not _OURS.fullmatch(token) or gate.nobodys(digest := token_hash(token)):
        return None
    if gate.asks(digest):
        return await gate.find(token)
    return await _session(request, token)


def _needed(request: web.Request) -> Scope:
    """What the route asks of an API key; LOGIN where nothing is said."""
    resource = request.match_info.route.resource
    path = resource.canonical if resource is not None else ""
    method = "GET" if request.method == "HEAD" else request.method
    scopes = request.app[SCOPES]
    return scopes.get((method, path)) or scopes.get((hdrs.METH_ANY, path), Scope.LOGIN)


def _need_scope(scopes: frozenset[str], needed: Scope) -> None:
    """Raises ApiError 0202 when a route is not what an API key is for."""
    if needed is Scope.LOGIN:
        raise ApiError("0202", "this needs a login (POST /auth/tokens): no API key may do it")
    if needed not in scopes:
        has = ", ".join(sorted(scopes))
        raise ApiError("0202", f"the API key has scopes {has}; this needs {needed}")


def kept_tenant(caller: Caller) -> str:
    """The tenant that a tenant-admin keeps, "" for an operator, who keeps all of them.

    Raises ApiError 0202.
    """
    if caller.role is Role.USER:
        told = f"account {caller.name!r} has role {caller.role}; this needs operator or tenant-admin"
        raise ApiError("0202", told)
    return "" if caller.role is Role.OPERATOR else caller.tenant


def need_operator(caller: Caller) -> None:
    """Raises ApiError 0202: the standard has no code for a missing right."""
    if caller.role is not Role.OPERATOR:
        raise ApiError("0202", f"account {caller.name!r} has role {caller.role}; this needs operator")


# ---------------------------------------------------------------- handlers


async def log_in(request: web.Request) -> web.Response:
    """POST /auth/tokens"""
    no_query(request)
    body = await read_body(request, models.Login)
    context, gate, limits = request.app[CONTEXT], request.app[GATE], request.app[LIMITS]
    name, address = body.user.name, limits.address(request)
    limits.login(name, address)
    wrong = ApiError("0101", "user.name or user.password is wrong", 401)
    login = await context.store.read(accounts.find_login, body.user.name)
    right = await gate.matches(login, body.user.password)
    if login is None:
        raise wrong
    if not right:
        gate.note_failure(login.caller.id)
        raise wrong
    limits.logged_in(name, address)
    token = new_token()
    expires_ms = context.clock() + context.token_ttl_s * 1000
    try:
        await context.store.write(
            views.login, login.caller.id, login.password_hash, token_hash(token), expires_ms
        )
    except views.LoginChanged:
        again = await context.store.read(accounts.find_login, body.user.name)
        if again is not None and again.frozen:
            raise ApiError("0103", f"account {body.user.name!r} is frozen", 401) from None
        raise wrong from None
    gate.know(token_hash(token))
    return wire.answer({"token": token, "expiresAt": times.written(expires_ms, context.timezone)})


async def change_password(request: web.Request) -> web.Response:
    """POST /auth/password: every login of the account ends, this one too."""
    no_query(request)
    body = await read_body(request, models.ChangePassword)
    context, gate, caller = request.app[CONTEXT], request.app[GATE], request[CALLER]
    limits, address = request.app[LIMITS], request.app[LIMITS].address(request)
    limits.login(caller.name, address)
    login = await context.store.read(accounts.find_login, caller.name)
    if login is None or not await gate.matches(login, body.old):
        gate.note_failure(caller.id)
        raise ApiError("0101", "old: the password is wrong", 401)
    limits.logged_in(caller.name, address)
    hashed = await gate.hash(body.new)
    await context.store.write(accounts.set_password, caller.name, hashed, actor=caller.actor)
    gate.forget()
    return web.Response(status=204)


# ---------------------------------------------------------------- routes

ROUTES = (
    Route(
        "POST",
        "/auth/tokens",
        log_in,
        "Log in: a token",
        "登录，获取 Token",
        body=models.Login,
        answer=answers.Token,
        errors=((401, "0101"), (401, "0103")),
        open=True,
        example={"authMethod": "password", "user": {"name": "alice", "password": "..."}},
    ),
    Route(
        "POST",
        "/auth/password",
        change_password,
        "Change one's password; ends all one's tokens",
        "修改密码，本账号的全部 Token 失效",
        body=models.ChangePassword,
        scope=Scope.LOGIN,
    ),
)
