"""Online services in the world of the API's tests: running ones, and servers that answer for them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestServer

from broker.api.services import SERVICES
from broker.config import ServiceSettings
from broker.core.events import Accepted, Event, SeenRunning
from broker.core.model import RemoteId, RunId
from broker.store import runs
from tests.api_fixtures import World, close_world, create_body, open_world


async def create(world: World, name: str = "svc", *, as_: str = "alice", **config: Any) -> str:
    """The id of a new service."""
    data = await world.ok("POST", "/onlineJob", create_body(name, **config), as_=as_)
    return str(data["metadata"]["id"])


async def serve(
    world: World, address: str, name: str = "svc", *, as_: str = "alice", **config: Any
) -> tuple[str, str]:
    """A service that runs at an address: its id and that of its run."""
    job = await create(world, name, as_=as_, **config)
    return job, await start(world, job, address)


async def start(world: World, job: str, address: str) -> str:
    """Place a service that waits and let it run; its new run."""
    run = await world.place(job)
    await world.advance(run, Accepted(world.clock(), RemoteId(f"r:{run}")))
    seen = SeenRunning(world.clock())
    await world.store.write(runs.advance, RunId(run), seen, epoch=world.epoch, address=address)
    forget(world)
    return run


async def happen(world: World, run: str, *events: Event) -> None:
    await world.advance(run, *events)
    forget(world)


def forget(world: World) -> None:
    """What the proxy remembers of services for a second."""
    app = world.client.app
    assert app is not None
    app[SERVICES].forget()


def under_way(world: World) -> int:
    """Requests on their way to services."""
    app = world.client.app
    assert app is not None
    return app[SERVICES].proxy.under_way


async def echo(request: web.Request) -> web.Response:
    """What arrived, as JSON."""
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "path": request.raw_path,
            "headers": [[name, value] for name, value in request.headers.items()],
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
    )


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server(handler: Handler = echo) -> AsyncIterator[str]:
    """The address of a real server that gives every request to one handler."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    running = TestServer(app)
    await running.start_server()
    try:
        yield str(running.make_url("")).rstrip("/")
    finally:
        await running.close()


async def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    deadline = asyncio.get_running_loop().time() + within_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not happen"
        await asyncio.sleep(0.01)


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


async def whole(world: World, path: str) -> bytes:
    return await (await world.call("GET", path)).read()
