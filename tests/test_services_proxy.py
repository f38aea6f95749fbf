"""Requests to online services through the broker: who may, what arrives, what comes back, limits."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import ClientResponse, WSMsgType, web
from yarl import URL

from broker.api.context import STOPPING
from broker.config import ServiceSettings
from broker.core.events import SeenFailed, SeenStopped, StopRequested, WentSilent
from broker.core.model import FailureKind, StopReason
from broker.store import accounts
from tests.api_fixtures import World, close_world, open_world, together, token_of, world
from tests.raw_server import Arrived, Stalled, answer, raw_server
from tests.service_world import create, forget, happen, serve, server, start, under_way, until

__all__ = ["world"]


def sent(data: dict[str, Any], name: str) -> list[str]:
    """Values of a header as the service saw them."""
    return [value for key, value in data["headers"] if key.lower() == name.lower()]


async def seen(response: ClientResponse) -> dict[str, Any]:
    data: dict[str, Any] = await response.json()
    assert response.status == 200, data
    return data


async def bare(world: World, method: str, path: str, **kwargs: Any) -> ClientResponse:
    """A request without a token, without following redirects and with no cookies but those given."""
    world.client.session.cookie_jar.clear()
    return await world.client.request(method, path, allow_redirects=False, **kwargs)


# ---------------------------------------------------------------- what arrives


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_a_request_arrives_as_it_was_sent(world: World, method: str) -> None:
    async with server() as address:
        job, _ = await serve(world, address)
        body = b"x" * 1000 if method in ("POST", "PUT", "PATCH") else None
        path = f"/services/{job}/a%20b/%E4%BD%9C//c;d=1?q=%2F&q=&empty"
        url = URL(f"{world.client.make_url('/')}".rstrip("/") + path, encoded=True)
        headers = {"X-Own": "作", "X-Auth-Token": token_of("alice")}
        data = await seen(await world.client.session.request(method, url, data=body, headers=headers))
        assert (data["method"], data["path"]) == (method, "/a%20b/%E4%BD%9C//c;d=1?q=%2F&q=&empty")
        assert data["size"] == (1000 if body else 0)
        assert sent(data, "X-Own") == ["作"]


async def test_the_root_and_a_missing_slash(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address)
        assert (await seen(await world.call("GET", f"/services/{job}/")))["path"] == "/"
        response = await bare(world, "GET", f"/services/{job}?a=1")
        assert (response.status, response.headers["Location"]) == (308, f"/services/{job}/?a=1")
        assert (await seen(await world.call("POST", f"/services/{job}?a=1", b"z")))["path"] == "/?a=1"


async def test_head_has_the_length_and_no_body(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address)
        response = await world.call("HEAD", f"/services/{job}/")
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > 0
        assert await response.read() == b""


async def test_tokens_of_the_broker_are_never_passed_on(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address, public=True)
        token = token_of("alice")
        for headers in (
            {"X-Auth-Token": token},
            {"Authorization": f"Bearer {token}"},
            {"authorization": f"bearer  {token}", "x-auth-token": token},
            {"Connection": "X-Secret, close", "X-Secret": token, "X-Auth-Token": token},
            {"Cookie": f"broker_service={token}; BROKER_x={token}", "X-Auth-Token": token},
        ):
            response = await bare(world, "GET", f"/services/{job}/", headers=headers)
            assert token not in await response.text()
            assert response.status == 200


async def test_a_services_own_authorization_and_cookies_are_passed_on(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address)
        for own in ("Bearer sk-of-the-service", "Basic YTpi"):
            headers = {"Authorization": own, "Cookie": "a=1; broker_service=x; b=2"}
            data = await seen(await world.call("GET", f"/services/{job}/", headers=headers))
            assert sent(data, "Authorization") == [own]
            assert sent(data, "Cookie") == ["a=1; b=2"]


async def test_what_is_said_of_the_way(world: World) -> None:
    async with server() as address:
        job, _ = await serve(world, address)
        headers = {
            "X-Forwarded-For": "10.0.0.1",
            "X-Forwarded-Proto": "gopher",
            "X-Forwarded-Host": "evil.example",
            "X-Real-IP": "10.0.0.2",
            "Forwarded": "for=10.0.0.3",
            "Proxy-Authorization": "Basic eDp5",
            "TE": "trailers",
            "Host": "evil.example",
        }
        response = await world.call("GET", f"/services/{job}/", headers=headers)
        data = await seen(response)
        assert sent(data, "X-Forwarded-For") == ["10.0.0.1, 127.0.0.1"]
        assert sent(data, "X-Forwarded-Proto") == ["http"]
        assert sent(data, "X-Forwarded-Host") == ["broker.example"]
        assert sent(data, "X-Forwarded-Prefix") == [f"/services/{job}"]
        assert sent(data, "Host") == [urlsplit(address).netloc]
        assert sent(data, "X-Request-Id") == [response.headers["X-Request-Id"]]
        for name in ("X-Real-IP", "Forwarded", "Proxy-Authorization", "TE"):
            assert sent(data, name) == []


@pytest.mark.parametrize("path", ["..", "a/../b", "%2e%2E/x", "a/./b", ".", "a\\..\\b"])
async def test_paths_that_lead_elsewhere_are_refused(world: World, path: str) -> None:
    async with raw_server(lambda _: answer("{}")) as upstream:
        job, _ = await serve(world, upstream.url)
        line = f"GET /services/{job}/{path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token_of('alice')}\r\n\r\n"
        reply = await talk(world, line.encode())
        assert reply.split(b" ")[1] in (b"400", b"404"), reply
        assert upstream.requests == []


async def talk(world: World, request: bytes, within_s: float = 10) -> bytes:
    """What the broker answers to bytes, headers and the first of the body."""
    host, port = world.client.server.host, world.client.server.port
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request)
    async with asyncio.timeout(within_s):
        reply = await reader.read(4096)
    writer.close()
    return reply


async def test_only_the_address_of_the_run_is_asked(world: World) -> None:
    """Whatever the request line names, its host is not where the request goes."""
    async with raw_server(lambda _: answer("yes")) as there, raw_server(lambda _: answer("no")) as elsewhere:
        job, _ = await serve(world, there.url)
        netloc = urlsplit(elsewhere.url).netloc
        token = f"Host: {netloc}\r\nX-Auth-Token: {token_of('alice')}\r\nConnection: close\r\n\r\n"
        for target in (
            f"{elsewhere.url}/services/{job}/",
            f"/services/{job}//{netloc}/",
            f"/services/{job}/@{netloc}/",
            f"/services/{job}/{elsewhere.url}",
        ):
            reply = await talk(world, f"GET {target} HTTP/1.1\r\n{token}".encode())
            assert reply.endswith(b"yes"), reply
        assert len(there.requests) == 4
        assert elsewhere.requests == []


async def test_a_redirect_is_the_clients_to_follow(world: World) -> None:
    async with raw_server(lambda _: answer("no")) as elsewhere:

        async def redirect(request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": request.query["to"]})

        async with server(redirect) as address:
            job, _ = await serve(world, address)
            prefix = f"/services/{job}"
            for to, seen_as in (
                (elsewhere.url, elsewhere.url),
                ("/login?a=b", f"{prefix}/login?a=b"),
                (f"{address}/login", f"{prefix}/login"),
                (f"{prefix}/login", f"{prefix}/login"),
                ("next", "next"),
                ("//other.example/", "//other.example/"),
            ):
                response = await world.call("GET", f"{prefix}/", params={"to": to}, allow_redirects=False)
                assert (response.status, response.headers["Location"]) == (302, seen_as)
        assert elsewhere.requests == []


# ---------------------------------------------------------------- bodies


async def test_a_big_body_passes_both_ways_unharmed(world: World) -> None:
    size = 32 << 20
    pattern = bytes(range(256)) * 256

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // len(pattern)):
            yield pattern

    async def back(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"X-Length": request.headers.get("Content-Length", "")})
        await response.prepare(request)
        async for chunk in request.content.iter_any():
            await response.write(chunk)
        return response

    async with server(back) as address:
        job, _ = await serve(world, address)
        expected = hashlib.sha256(pattern * (size // len(pattern))).hexdigest()
        for headers in ({}, {"Content-Length": str(size)}):
            response = await world.client.post(
                f"/services/{job}/", data=body(), headers={"X-Auth-Token": token_of("alice"), **headers}
            )
            found, count = hashlib.sha256(), 0
            async for chunk in response.content.iter_any():
                found.update(chunk)
                count += len(chunk)
            assert (count, found.hexdigest()) == (size, expected)
            assert response.headers["X-Length"] == headers.get("Content-Length", "")


async def test_an_answer_streams_while_it_is_made(world: World) -> None:
    more = asyncio.Event()

    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await more.wait()
        await response.write(b"data: 2\n\n")
        return response

    async with server(slowly) as address:
        job, _ = await serve(world, address)
        response = await world.call("GET", f"/services/{job}/")
        assert await response.content.readany() == b"data: 1\n\n"
        more.set()
        assert await response.read() == b"data: 2\n\n"


async def test_encodings_come_through(world: World) -> None:
    packed = gzip.compress(b"hello " * 100)

    async def zipped(request: web.Request) -> web.Response:
        body = await request.read()
        headers = {"Content-Encoding": "gzip", "X-Got": hashlib.sha256(body).hexdigest()}
        return web.Response(body=packed, headers=headers)

    async with server(zipped) as address:
        job, _ = await serve(world, address)
        response = await world.call("POST", f"/services/{job}/", packed, headers={"Content-Encoding": "gzip"})
        assert response.headers["Content-Encoding"] == "gzip"
        assert await response.read() == b"hello " * 100  # the client takes it off
        # Taken off on the way: the service gets the same text, and no word of an encoding.
        assert response.headers["X-Got"] == hashlib.sha256(b"hello " * 100).hexdigest()


# ---------------------------------------------------------------- what comes back


async def test_a_service_cannot_touch_what_browsers_keep_for_others(world: World) -> None:
    async def grabbing(_: web.Request) -> web.Response:
        response = web.Response(text="x")
        for cookie in (
            "a=1; Path=/; HttpOnly",
            "b=2; Domain=broker.example",
            "broker_service=stolen; Path=/",
            "c=3; Path=/sub; Secure",
        ):
            response.headers.add("Set-Cookie", cookie)
        response.headers["Service-Worker-Allowed"] = "/"
        response.headers["Clear-Site-Data"] = '"*"'
        response.headers["Strict-Transport-Security"] = "max-age=99"
        response.headers["Keep-Alive"] = "timeout=5"
        response.headers["X-Own"] = "kept"
        return response

    async with server(grabbing) as address:
        job, _ = await serve(world, address)
        response = await world.call("GET", f"/services/{job}/")
        assert response.headers.getall("Set-Cookie") == [
            f"a=1; HttpOnly; Path=/services/{job}/",
            f"b=2; Path=/services/{job}/",
            f"c=3; Secure; Path=/services/{job}/sub",
        ]
        for name in ("Service-Worker-Allowed", "Clear-Site-Data", "Strict-Transport-Security", "Keep-Alive"):
            assert name not in response.headers
        assert response.headers["X-Own"] == "kept"


@pytest.mark.parametrize("status", [201, 204, 304, 404, 418, 500, 599])
async def test_statuses_come_through(world: World, status: int) -> None:
    async def odd(_: web.Request) -> web.Response:
        return web.Response(status=status)

    async with server(odd) as address:
        job, _ = await serve(world, address)
        response = await world.call("GET", f"/services/{job}/")
        assert (response.status, await response.read()) == (status, b"")


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


# ---------------------------------------------------------------- before, between and after


async def test_what_is_answered_while_it_does_not_run(world: World) -> None:
    async with server() as address:
        job = await create(world)
        path = f"/services/{job}/"

        async def told() -> tuple[int, str | None, str]:
            forget(world)
            response = await world.call("GET", path)
            data = await response.json()
            assert data["errorCode"] == ""
            return response.status, response.headers.get("Retry-After"), data["detail"]

        assert await told() == (503, "2", f"service {job} is PENDING, not serving yet")
        run = await start(world, job, address)
        await seen(await world.call("GET", path))
        await happen(world, run, WentSilent(world.clock()))
        assert (await told())[0] == 503
        assert "UNKNOWN" in (await told())[2]
        await world.advance(run, SeenFailed(world.clock(), FailureKind.JOB, "exit code 1", exit_code=1))
        assert (await told())[2] == f"service {job} is PENDING, not serving yet"
        run = await start(world, job, address)
        await seen(await world.call("GET", path))  # at once, wherever its new run is
        ended = StopRequested(world.clock(), StopReason.CANCEL, claimed=True), SeenStopped(world.clock())
        await happen(world, run, *ended)
        assert await told() == (410, None, f"service {job} has ended: STOPPED")
        assert (await world.call("DELETE", f"/onlineJob/{job}")).status == 204
        forget(world)
        assert (await world.refused("GET", path))[:2] == (400, "0240")


async def test_a_service_that_does_not_listen_yet_is_tried_again(world: World) -> None:
    async with server() as address:
        pass  # nobody listens there any more
    job, _ = await serve(world, address)
    response = await world.call("GET", f"/services/{job}/")
    assert (response.status, response.headers["Retry-After"]) == (503, "2")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await world.client.ws_connect(f"/services/{job}/", headers={"X-Auth-Token": token_of("alice")})
    assert refused.value.status == 503


@pytest.mark.parametrize("address", ["", "ftp://127.0.0.1/", "127.0.0.1:80", "http:///x"])
async def test_an_address_that_is_none(world: World, address: str) -> None:
    job, _ = await serve(world, address)
    status, code, _ = await world.refused("GET", f"/services/{job}/")
    assert (status, code) in ((503, ""), (400, "0202"))


# ---------------------------------------------------------------- failures and limits


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
async def test_nothing_is_sent_twice(world: World, method: str) -> None:
    """Also on a connection that was kept, where aiohttp would send again by itself."""

    def answers(request: Arrived) -> bytes | None:
        return answer("{}") if request.path == "/first" else None

    async with raw_server(answers) as upstream:
        job, _ = await serve(world, upstream.url)
        for round_ in range(3):
            await world.ok("GET", f"/services/{job}/first")
            body = b"x" if method in ("PUT", "POST") else None
            response = await world.call(method, f"/services/{job}/again{round_}", body)
            assert response.status == 502
        again = [request for request in upstream.requests if request.path.startswith("/again")]
        assert [request.method for request in again] == [method] * 3


async def whole(world: World, path: str) -> bytes:
    return await (await world.call("GET", path)).read()


async def test_an_answer_that_breaks_off_is_cut(world: World) -> None:
    async with raw_server(lambda _: answer("x" * 1000, cut=500)) as upstream:
        job, _ = await serve(world, upstream.url)
        with pytest.raises(aiohttp.ClientError):
            await whole(world, f"/services/{job}/")


async def test_an_answer_that_is_none(world: World) -> None:
    for bytes_ in (b"nonsense\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b""):
        async with raw_server(lambda _, reply=bytes_: reply or None) as upstream:  # type: ignore[misc]
            job, _ = await serve(world, upstream.url, f"svc{len(bytes_)}")
            assert (await world.refused("GET", f"/services/{job}/"))[:2] == (502, "")


async def test_a_client_that_goes_away_ends_the_request_at_the_service(world: World) -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def never(request: web.Request) -> web.Response:
        arrived.set()
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()
        raise AssertionError

    async with server(never) as address:
        job, _ = await serve(world, address)
        asking = asyncio.create_task(world.call("GET", f"/services/{job}/"))
        await asyncio.wait_for(arrived.wait(), 10)
        assert under_way(world) == 1
        asking.cancel()
        await asyncio.wait_for(gone.wait(), 10)
        await until(lambda: under_way(world) == 0)


@pytest.fixture
async def narrow(tmp_path: Any) -> AsyncIterator[World]:
    limits = ServiceSettings(
        max_concurrent=3,
        max_concurrent_per_service=2,
        max_header_bytes=4096,
        max_body_bytes=10_000,
        max_message_bytes=1024,
        connect_timeout_s=0.5,
        idle_timeout_s=0.6,
    )
    opened = await open_world(tmp_path, services=limits)
    yield opened
    await close_world(opened)


async def test_no_more_at_once_than_allowed(narrow: World) -> None:
    going = asyncio.Event()

    async def held(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not going.is_set():
            await response.write(b".")
            await asyncio.sleep(0.05)
        return response

    async with server(held) as address:
        jobs = [(await serve(narrow, address, f"svc{i}"))[0] for i in range(3)]
        first = await together(*(narrow.call("GET", f"/services/{jobs[0]}/") for _ in range(2)))
        status, code, detail = await narrow.refused("GET", f"/services/{jobs[0]}/")
        assert (status, code) == (503, "")
        assert "2 requests to this service" in detail
        other = await narrow.call("GET", f"/services/{jobs[1]}/")
        assert [r.status for r in (*first, other)] == [200] * 3
        assert "3 requests to services" in (await narrow.refused("GET", f"/services/{jobs[2]}/"))[2]
        going.set()
        await together(*(r.read() for r in (*first, other)))
        await until(lambda: under_way(narrow) == 0)
        assert (await narrow.call("GET", f"/services/{jobs[0]}/")).status == 200


async def test_each_of_many_services_has_its_own_limit(tmp_path: Any) -> None:
    """A crowded service keeps no other from answering, and all slots are given back."""
    limits = ServiceSettings(max_concurrent=40, max_concurrent_per_service=2)
    opened = await open_world(tmp_path, services=limits)
    release, arrived = asyncio.Event(), 0

    async def held(request: web.Request) -> web.Response:
        nonlocal arrived
        arrived += request.raw_path == "/wait"
        await release.wait() if request.raw_path == "/wait" else None
        return web.Response(text="ok")

    async with server(held) as address:
        jobs = [(await serve(opened, address, f"svc{i}", public=True))[0] for i in range(10)]

        async def status(path: str) -> int:
            return (await bare(opened, "GET", path)).status

        waiting = [asyncio.create_task(status(f"/services/{job}/wait")) for job in jobs[:5] for _ in "ab"]
        try:
            await until(lambda: arrived == 10)
            others = await together(
                *(status(f"/services/{job}/") for job in jobs),
                *(status(f"/services/{job}x/") for job in jobs),
            )
            assert others == [503] * 5 + [200] * 5 + [401] * 10
            assert under_way(opened) == 10
            metrics = await (await bare(opened, "GET", "/metrics")).text()
            assert "broker_service_requests 10.0" in metrics
        finally:
            release.set()
        assert await asyncio.gather(*waiting) == [200] * 10
        await until(lambda: under_way(opened) == 0)
        assert await together(*(status(f"/services/{job}/") for job in jobs)) == [200] * 10
    await close_world(opened)


async def test_bodies_and_headers_that_are_too_large(narrow: World) -> None:
    async with server() as address:
        job, _ = await serve(narrow, address)
        path = f"/services/{job}/"
        assert (await seen(await narrow.call("POST", path, b"x" * 10_000)))["size"] == 10_000
        assert (await narrow.refused("POST", path, b"x" * 10_001))[0] == 413

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 1000

        headers = {"X-Auth-Token": token_of("alice")}
        try:
            response = await narrow.client.post(path, data=endless(), headers=headers)
            assert response.status == 413
        except aiohttp.ClientError:
            pass  # cut while it was still sending
        await until(lambda: under_way(narrow) == 0)
        many = {f"X-{i}": "y" * 100 for i in range(40)}
        assert (await narrow.refused("GET", path, headers=many))[0] == 431

    async def wordy(_: web.Request) -> web.Response:
        return web.Response(headers=many)

    async with server(wordy) as address:
        job, _ = await serve(narrow, address, "wordy")
        assert (await narrow.refused("GET", f"/services/{job}/"))[:2] == (502, "")
    async with raw_server(lambda _: answer("{}", headers={"X": "y" * 9000})) as upstream:
        job, _ = await serve(narrow, upstream.url, "long")
        assert (await narrow.refused("GET", f"/services/{job}/"))[:2] == (502, "")


async def test_a_service_that_says_nothing_is_given_up(narrow: World) -> None:
    async with raw_server(lambda _: Stalled(b"")) as upstream:
        job, _ = await serve(narrow, upstream.url)
        assert (await narrow.refused("GET", f"/services/{job}/"))[:2] == (504, "")
        assert (await narrow.refused("POST", f"/services/{job}/", b"x"))[:2] == (504, "")
        assert len(upstream.requests) == 2
    async with raw_server(lambda _: Stalled(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")) as upstream:
        job, _ = await serve(narrow, upstream.url, "half")
        with pytest.raises(aiohttp.ClientError):
            await whole(narrow, f"/services/{job}/")


async def test_what_is_under_way_ends_with_the_broker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.api.proxy.SHUTDOWN_GRACE_S", 0.0)
    async with raw_server(lambda _: Stalled(b"")) as upstream:
        job, _ = await serve(world, upstream.url)
        asking = asyncio.create_task(world.call("GET", f"/services/{job}/"))
        await until(lambda: len(upstream.requests) == 1)
        app = world.client.app
        assert app is not None
        app[STOPPING].set()
        response = await asyncio.wait_for(asking, 10)
        assert (response.status, response.headers["Retry-After"]) == (503, "2")


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


# ---------------------------------------------------------------- WebSockets


async def sockets(request: web.Request) -> web.StreamResponse:
    """Echoes messages; says of itself what it was asked with."""
    socket = web.WebSocketResponse(protocols=["chat", "other"])
    await socket.prepare(request)
    await socket.send_str(json.dumps([request.raw_path, socket.ws_protocol, dict(request.headers)]))
    async for message in socket:
        if message.type is WSMsgType.TEXT and message.data == "bye":
            await socket.close(code=4001, message=b"as asked")
        elif message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def test_a_websocket_passes_both_ways(world: World) -> None:
    async with server(sockets) as address:
        job, _ = await serve(world, address)
        token = token_of("alice")
        async with world.client.ws_connect(
            f"/services/{job}/ws?x=1",
            headers={"X-Auth-Token": token, "Origin": "https://there.example", "Cookie": "a=1"},
            protocols=["nope", "chat"],
        ) as socket:
            path, protocol, headers = json.loads(await socket.receive_str())
            assert (path, protocol, socket.protocol) == ("/ws?x=1", "chat", "chat")
            assert (headers["Origin"], headers["Cookie"]) == ("https://there.example", "a=1")
            assert token not in json.dumps(headers)
            assert under_way(world) == 1
            for text in ("hello", "作业", ""):
                await socket.send_str(text)
                assert await socket.receive_str() == text
            big = bytes(range(256)) * 4096
            await socket.send_bytes(big)
            assert await socket.receive_bytes() == big
            await socket.send_str("bye")
            closed = await socket.receive()
            assert (closed.type, closed.data, closed.extra) == (WSMsgType.CLOSE, 4001, "as asked")
        await until(lambda: under_way(world) == 0)


async def test_a_websocket_asks_for_the_token_too(world: World) -> None:
    async with server(sockets) as address:
        job, _ = await serve(world, address)
        for headers, status in (({}, 401), ({"X-Auth-Token": token_of("eve")}, 400)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await world.client.ws_connect(f"/services/{job}/", headers=headers)
            assert refused.value.status == status


async def test_the_service_hears_that_a_websocket_was_closed(world: World) -> None:
    codes: asyncio.Queue[int | None] = asyncio.Queue()

    async def listening(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            pass
        codes.put_nowait(socket.close_code)
        return socket

    async with server(listening) as address:
        job, _ = await serve(world, address, public=True)
        async with world.client.ws_connect(f"/services/{job}/") as socket:
            await socket.close(code=4002)
        assert await asyncio.wait_for(codes.get(), 10) == 4002
        socket = await world.client.ws_connect(f"/services/{job}/")
        connection = socket._response.connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()
        assert await asyncio.wait_for(codes.get(), 10) == 1011
        await until(lambda: under_way(world) == 0)


async def test_websockets_are_told_of_the_brokers_end(world: World) -> None:
    async with server(sockets) as address:
        job, _ = await serve(world, address, public=True)
        async with world.client.ws_connect(f"/services/{job}/") as socket:
            await socket.receive_str()
            app = world.client.app
            assert app is not None
            app[STOPPING].set()
            closed = await socket.receive(timeout=10)
            assert (closed.type, closed.data) == (WSMsgType.CLOSE, 1001)


async def test_messages_that_are_too_large_end_the_websocket(narrow: World) -> None:
    async with server(sockets) as address:
        job, _ = await serve(narrow, address, public=True)
        async with narrow.client.ws_connect(f"/services/{job}/") as socket:
            await socket.receive_str()
            await socket.send_bytes(b"x" * 1024)
            assert len(await socket.receive_bytes()) == 1024
            await socket.send_bytes(b"x" * 1025)
            closed = await socket.receive(timeout=10)
            assert (closed.type, closed.data) == (WSMsgType.CLOSE, 1009)


async def test_a_service_without_websockets_refuses(world: World) -> None:
    async def forbidden(_: web.Request) -> web.Response:
        return web.Response(status=403)

    async with server(forbidden) as address:
        job, _ = await serve(world, address, public=True)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await world.client.ws_connect(f"/services/{job}/")
        assert refused.value.status == 403
        assert (await bare(world, "GET", f"/services/{job}/", headers={"Upgrade": "websocket"})).status == 400
