"""Who may send requests to an online service: tokens, public services, signed links."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_urlsafe
from typing import Any
from urllib.parse import urlsplit

import pytest

from broker.api.auth import token_hash
from broker.config import LimitSettings, ServiceSettings
from broker.store import accounts
from tests.api_fixtures import World, close_world, noted_lookups, open_world, together, token_of, world
from tests.service_world import (
    bare,
    forget,
    seen,
    sent,
    serve,
    server,
)

__all__ = ["world"]


# ---------------------------------------------------------------- who may


async def test_who_may_ask_a_private_service(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address)
        for who in ("alice", "carol", "root"):  # the owner, the tenant's admin, an operator
            await seen(await world.call("GET", f"/services/{job}/", as_=who))
        for who in ("bob", "eve"):
            assert (await world.refused("GET", f"/services/{job}/", as_=who))[:2] == (400, "0240")
            unknown = (await world.refused("GET", "/services/j-none/", as_=who))[2]
            known = (await world.refused("GET", f"/services/{job}/", as_=who))[2]
            assert known == unknown.replace("j-none", job)
        for path in (f"/services/{job}/", "/services/j-none/"):
            assert (await world.refused("GET", path, as_=None))[:2] == (401, "0101")
            wrong = {"X-Auth-Token": "wrong"}
            assert (await world.refused("GET", path, as_=None, headers=wrong))[:2] == (401, "0101")
            own = {"Authorization": "Bearer of-the-service"}
            assert (await world.refused("GET", path, as_=None, headers=own))[:2] == (401, "0101")


async def test_a_frozen_or_expired_token_is_told(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address)
        await world.store.write(accounts.set_frozen, "alice", True, actor="root")
        app = world.client.app
        assert app is not None
        from broker.api.auth import GATE

        app[GATE].forget()
        assert (await world.refused("GET", f"/services/{job}/"))[:2] == (401, "0103")
        world.clock.now_ms += 10**13
        assert (await world.refused("GET", f"/services/{job}/", as_="root"))[:2] == (401, "0102")


async def test_a_public_service_asks_for_nothing(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address, public=True)
        for headers in ({}, {"X-Auth-Token": "wrong"}, {"X-Auth-Token": token_of("eve")}):
            response = await bare(world, "POST", f"/services/{job}/v1", headers=headers, data=b"x")
            assert (await seen(response))["path"] == "/v1"
        # its address is open, the job is not
        assert (await world.refused("GET", f"/onlineJob/{job}", as_="eve"))[:2] == (400, "0240")


async def test_jobs_that_are_no_services_are_not_there(world: World) -> None:
    train = await world.create("train")
    for path in (f"/services/{train}/", "/services/%20/", "/services/..%2f/", f"/services/{'x' * 65}/"):
        assert (await world.refused("GET", path))[:2] == (400, "0240"), path
    assert (await world.refused("POST", f"/broker/v1/services/{train}/link"))[:2] == (400, "0240")


async def test_methods_of_another_kind(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address, public=True)
        for method in ("TRACE", "PROPFIND", "CONNECT"):
            response = await world.call(method, f"/services/{job}/")
            assert response.status in (404, 405), method
            if response.status == 405:
                assert "GET" in response.headers["Allow"]


# ---------------------------------------------------------------- tokens of the service's own


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return noted_lookups(monkeypatch)


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[World]:
    """Two unknown tokens of one address at once, and hardly one more while a test runs."""
    limits = LimitSettings(unknown_token_burst=2, unknown_tokens_per_minute=1)
    opened = await open_world(tmp_path, limits=limits, trusted_proxies=("127.0.0.1",))
    yield opened
    await close_world(opened)


def bearer(token: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **more}


def web_token(number: int) -> str:
    """One that a service may sign anew for each request."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": "visitor", "jti": number})
    packed = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=").decode() for each in parts]
    return ".".join([*packed, token_urlsafe(32)])


async def test_tokens_that_cannot_be_of_the_broker_are_never_asked_for(
    strict: World, looked: list[str]
) -> None:
    async with server() as address:
        job, _ = await serve(strict, address, public=True)
        looked.clear()
        others = (token_urlsafe(31), token_urlsafe(33), f"sk-{token_urlsafe(32)}", f"brk.{token_urlsafe(31)}")
        for token in (*map(web_token, range(20)), *others, "x", token_urlsafe(6000)[:7000]):
            data = await seen(await bare(strict, "GET", f"/services/{job}/", headers=bearer(token)))
            assert sent(data, "Authorization") == [f"Bearer {token}"]
    assert looked == []


async def test_a_token_that_might_be_of_the_broker_is_asked_for_once(
    strict: World, looked: list[str]
) -> None:
    """However often it comes, alone or at once."""
    async with server() as address:
        job, _ = await serve(strict, address, public=True)
        looked.clear()
        token = token_urlsafe(32)
        sending = (bare(strict, "GET", f"/services/{job}/", headers=bearer(token)) for _ in range(30))
        for response in await together(*sending):
            assert sent(await seen(response), "Authorization") == [f"Bearer {token}"]
        for _ in range(30):
            data = await seen(await bare(strict, "GET", f"/services/{job}/", headers=bearer(token)))
            assert sent(data, "Authorization") == [f"Bearer {token}"]
    assert looked == [token_hash(token)]


async def test_beyond_the_limit_nothing_that_might_be_of_the_broker_is_passed_on(
    strict: World, looked: list[str]
) -> None:
    async with server() as address:
        job, _ = await serve(strict, address, public=True)
        path, known, new = f"/services/{job}/", token_of("alice"), token_of("bob")
        first, second, third = (token_urlsafe(32) for _ in range(3))
        for token in (first, second):
            await seen(await bare(strict, "GET", path, headers=bearer(token)))
        looked.clear()
        for token in (third, new, f"brk.{third}"):
            refused = await bare(strict, "GET", path, headers=bearer(token))
            told = await refused.json()
            assert (refused.status, told["errorCode"]) == (429, "")
            assert "limits.unknown_tokens_per_minute" in told["detail"]
            assert int(refused.headers["Retry-After"]) >= 1
        assert looked == []
        # what is known by now goes on, and so do others
        for token, arrives in ((first, [f"Bearer {first}"]), (second, [f"Bearer {second}"]), (known, [])):
            data = await seen(await bare(strict, "GET", path, headers=bearer(token)))
            assert sent(data, "Authorization") == arrives
        elsewhere = {"X-Forwarded-For": "192.0.2.1"}
        for token, arrives in ((third, [f"Bearer {third}"]), (new, [])):
            data = await seen(await bare(strict, "GET", path, headers=bearer(token, **elsewhere)))
            assert sent(data, "Authorization") == arrives


async def test_a_private_service_refuses_them_without_asking_twice(strict: World, looked: list[str]) -> None:
    async with server() as address:
        job, _ = await serve(strict, address)
        looked.clear()
        token = token_urlsafe(32)
        for _ in range(5):
            for given in (token, web_token(1)):
                answer = await strict.refused("GET", f"/services/{job}/", as_=None, headers=bearer(given))
                assert answer[:2] == (401, "0101")
                assert "is not known" in answer[2]
    assert looked == [token_hash(token)]


async def test_tokens_and_keys_as_they_are_drawn_never_arrive(world: World) -> None:
    login = {"authMethod": "password", "user": {"name": "alice", "password": "pw-alice"}}
    token = (await world.ok("POST", "/auth/tokens", login, as_=None))["token"]
    key = (await world.ok("POST", "/auth/apikeys", {"name": "ci", "scopes": ["jobs"]}))["key"]
    async with server() as address:
        for job, _ in (await serve(world, address, "open", public=True), await serve(world, address)):
            for own in (token, key):
                data = await seen(await bare(world, "GET", f"/services/{job}/", headers=bearer(own)))
                assert sent(data, "Authorization") == []


# ---------------------------------------------------------------- signed links


async def test_a_signed_link_lets_a_browser_in(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address)
        made = await world.ok("POST", f"/broker/v1/services/{job}/link")
        url = urlsplit(made["url"])
        assert (url.netloc, url.path) == ("broker.example", f"/services/{job}/")
        assert made["expiresAt"] == "2025-03-01 10:05:00"
        response = await bare(world, "GET", f"{url.path}?{url.query}&page=2")
        assert (response.status, response.headers["Location"]) == (303, f"{url.path}?page=2")
        cookie = response.cookies["broker_service"]
        assert (cookie["path"], cookie["httponly"], cookie["samesite"]) == (url.path, True, "Lax")
        jar = {"Cookie": f"own=1; broker_service={cookie.value}"}
        data = await seen(await bare(world, "GET", f"/services/{job}/app", headers=jar))
        assert sent(data, "Cookie") == ["own=1"]
        # with it the service may have an authorization of its own
        both = {**jar, "Authorization": "Bearer sk-1"}
        data = await seen(await bare(world, "GET", f"/services/{job}/app", headers=both))
        assert sent(data, "Authorization") == ["Bearer sk-1"]


async def test_a_link_opens_one_service_and_not_for_ever(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address)
        other, _ = await serve(world, address, "other")
        link = urlsplit((await world.ok("POST", f"/broker/v1/services/{job}/link"))["url"])
        assert (await bare(world, "GET", f"/services/{other}/?{link.query}")).status == 401
        for bad in (link.query + "0", link.query.replace(".", ".9", 1), "brokerLink=", "brokerLink=a.1.b"):
            assert (await bare(world, "GET", f"{link.path}?{bad}")).status == 401
        entered = await bare(world, "GET", f"{link.path}?{link.query}")
        jar = {"Cookie": f"broker_service={entered.cookies['broker_service'].value}"}
        assert (await bare(world, "GET", f"/services/{other}/", headers=jar)).status == 401
        as_link = entered.cookies["broker_service"].value
        assert (await bare(world, "GET", f"{link.path}?brokerLink={as_link}")).status == 401
        signed = link.query.partition("=")[2]
        as_cookie = {"Cookie": f"broker_service={signed}"}
        assert (await bare(world, "GET", link.path, headers=as_cookie)).status == 401
        world.clock.now_ms += 301_000
        assert (await bare(world, "GET", f"{link.path}?{link.query}")).status == 401
        await seen(await bare(world, "GET", link.path, headers=jar))
        world.clock.now_ms += 86_400_000
        assert (await bare(world, "GET", link.path, headers=jar)).status == 401


async def test_a_cookie_ends_with_the_right_of_its_account(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address)
        assert (await world.refused("POST", f"/broker/v1/services/{job}/link", as_="bob"))[1] == "0240"
        link = urlsplit((await world.ok("POST", f"/broker/v1/services/{job}/link"))["url"])
        entered = await bare(world, "GET", f"{link.path}?{link.query}")
        jar = {"Cookie": f"broker_service={entered.cookies['broker_service'].value}"}
        await seen(await bare(world, "GET", link.path, headers=jar))
        await world.store.write(accounts.set_frozen, "alice", True, actor="root")
        forget(world)
        assert (await bare(world, "GET", link.path, headers=jar)).status == 401


async def test_services_on_a_host_of_their_own(tmp_path: Any) -> None:
    own = ServiceSettings(public_url="https://svc.example")
    opened = await open_world(tmp_path, services=own)
    async with server() as address:
        job, _ = await serve(opened, address)
        shown = await opened.ok("GET", f"/onlineJob/{job}")
        assert shown["metadata"]["url"] == f"https://svc.example/services/{job}/"
        assert (await opened.call("GET", f"/services/{job}/")).status == 404
        data = await seen(await opened.call("GET", f"/services/{job}/", headers={"Host": "svc.example"}))
        assert sent(data, "X-Forwarded-Proto") == ["https"]
        link = urlsplit((await opened.ok("POST", f"/broker/v1/services/{job}/link"))["url"])
        entered = await bare(opened, "GET", f"{link.path}?{link.query}", headers={"Host": "svc.example"})
        assert entered.cookies["broker_service"]["secure"] is True
    await close_world(opened)
