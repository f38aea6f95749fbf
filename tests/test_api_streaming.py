"""Streams to clients: what becomes of the file when the client goes away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator

from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from broker.api.context import REQUEST_ID
from broker.api.streaming import send
from broker.api.turns import TURN, Turns
from broker.config import LimitSettings


async def test_a_client_that_leaves_while_a_thread_reads_leaves_nothing_open() -> None:
    reading, cancelled, go_on, closed = (threading.Event() for _ in range(4))

    def chunks() -> Generator[bytes, None, None]:
        try:
            yield b"first"
            reading.set()
            go_on.wait(10)
            yield b"second"
        finally:
            closed.set()

    async def handler(request: web.Request) -> web.StreamResponse:
        request[REQUEST_ID], request[TURN] = "r", await turns.begin("alice")
        try:
            return await send(request, {}, chunks())
        finally:
            cancelled.set()

    turns = Turns(LimitSettings())
    app = web.Application()
    app.router.add_get("/", handler)
    server = TestServer(app)  # handlers of clients that are gone are cancelled, as by a shutdown
    await server.start_server()
    try:
        async with ClientSession() as client:
            response = await client.get(server.make_url("/"))
            assert await response.content.readexactly(5) == b"first"
            assert await asyncio.to_thread(reading.wait, 10)
            response.close()
            await asyncio.to_thread(cancelled.wait, 10)
        go_on.set()
        assert await asyncio.to_thread(closed.wait, 10)
    finally:
        await server.close()
