"""An invented platform behind a bare server, and calls to it.

What belongs here: what the tests of calls over HTTP share.  What does not: tests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from adapters import http
from adapters.http import Http, Limits, Request
from adapters.redaction import Redaction
from adapters.session import LoggedIn, Session, SessionExpired
from broker.adapter import AdapterError, Denied
from tests.raw_server import Answer, Arrived, RawServer, answer, document, raw_server

SECRET = "correct horse"
FAST = Limits(timeout_s=5, requests_per_s=10_000)


def payload(status: int, found: Any) -> Any:
    """The envelope of an invented platform: code 0 and data, or why not."""
    if found["code"] == 0:
        return found["data"]
    if found["code"] == 401:
        raise SessionExpired("session over", no_effect=found["msg"] == "nothing was done")
    if found["code"] == 403:
        raise Denied(found["msg"])
    raise http.failure(status, found["msg"])


OK = document({"code": 0, "data": "fine"})
UNAUTHORISED = answer("go away", status=401, kind="text/plain")
EXPIRED = document({"code": 401, "msg": "who are you"})


@asynccontextmanager
async def opened(
    answers: Callable[[Arrived], Answer | Awaitable[Answer]] | Answer = OK,
    *,
    limits: Limits = FAST,
    clock: Callable[[], float] = time.monotonic,
    center: str = "sz-1",
) -> AsyncIterator[tuple[RawServer, Http]]:
    by_request = answers if callable(answers) else lambda _request: answers
    async with raw_server(by_request) as server:
        made = Http(center, limits, Redaction([SECRET]), clock=clock)
        try:
            yield server, made
        finally:
            await made.aclose()


def call(url: str, method: str = "GET", *, effect: bool = False, **more: Any) -> Request:
    return Request("thing", method, f"{url}/api/thing", effect, **more)


async def failing(made: Http, request: Request, kind: type[AdapterError], **more: Any) -> str:
    with pytest.raises(kind) as caught:
        await made.json(request, payload, **more)
    assert type(caught.value) is kind
    assert caught.value.__suppress_context__ or caught.value.__cause__ is None
    return str(caught.value)


async def collected(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


class Platform:
    """Gives out sessions `s1`, `s2`, …; only the newest one is good."""

    def __init__(self, *, expired: Callable[[Arrived], Answer] = lambda _r: EXPIRED) -> None:
        self.logins = 0
        self.good = ""
        self.expired = expired
        self.password = SECRET
        self.delay_s = 0.0

    async def __call__(self, request: Arrived) -> Answer:
        if request.path == "/login":
            await asyncio.sleep(self.delay_s)
            self.logins += 1
            if request.document["password"] != self.password:
                return document({"code": 403, "msg": f"wrong password {request.document['password']}"})
            self.good = f"s{self.logins}"
            return document({"code": 0, "data": self.good})
        if request.headers.get("authorization") != self.good:
            return self.expired(request)
        return OK

    def session(self, made: Http, url: str, *, rejects: bool = False, clock: Any = None) -> Session:
        async def log_in() -> LoggedIn:
            request = Request("login", "POST", f"{url}/login", False)
            token = await made.json(request, payload, document={"username": "u", "password": SECRET})
            return LoggedIn({"Authorization": token})

        clocked = {"clock": clock} if clock else {}
        return Session("sz-1", "u", log_in, rejects_before_acting=rejects, **clocked)
