"""Online services that do not answer: before, between and after their runs, and what breaks."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from broker.api.context import STOPPING
from broker.core.events import SeenFailed, SeenStopped, StopRequested, WentSilent
from broker.core.model import FailureKind, StopReason
from tests.api_fixtures import World, token_of, world
from tests.raw_server import Arrived, Stalled, answer, raw_server
from tests.service_world import (
    create,
    forget,
    happen,
    seen,
    serve,
    server,
    start,
    under_way,
    until,
    whole,
)

__all__ = ["world"]


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
    assert (status, code) == ((502, "") if address else (503, ""))


# ---------------------------------------------------------------- failures


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
