"""How much an online service may be asked for at once, and how large and slow requests may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from broker.config import ServiceSettings
from tests.api_fixtures import World, close_world, open_world, together, token_of, world
from tests.raw_server import Stalled, answer, raw_server
from tests.service_world import (
    bare,
    narrow,
    seen,
    serve,
    server,
    under_way,
    until,
    whole,
)

__all__ = ["narrow", "world"]


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
