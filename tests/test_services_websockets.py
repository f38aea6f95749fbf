"""WebSockets of online services through the broker."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from broker.api.context import STOPPING
from tests.api_fixtures import World, token_of, world
from tests.service_world import (
    bare,
    narrow,
    serve,
    server,
    under_way,
    until,
)

__all__ = ["narrow", "world"]


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
