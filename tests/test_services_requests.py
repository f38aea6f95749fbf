"""Requests to online services through the broker: what arrives there, and what comes back."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from yarl import URL

from tests.api_fixtures import World, token_of, world
from tests.raw_server import answer, raw_server
from tests.service_world import (
    bare,
    seen,
    sent,
    serve,
    server,
)

__all__ = ["world"]


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
