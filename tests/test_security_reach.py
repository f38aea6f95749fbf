"""Where the broker's own requests go: services at addresses that centers tell, redirects, links to logs,
images, and the addresses of centers themselves.

What belongs here: that nobody but an operator decides what the broker reaches.  What does not: what a
service sees of a request (test_services_requests.py, test_security_headers.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from aiohttp import WSServerHandshakeError, web
from yarl import URL

from adapters.http import Request, below
from broker.adapter import Refused, Unavailable
from broker.api.app import ROUTES
from broker.api.reach import forbidden, own_hosts, trusted
from broker.config import CenterSettings
from broker.config.values import Place, Wrong, http_url
from broker.core.model import CenterId
from tests.api_fixtures import World, close_world, open_world, token_of, world
from tests.daemon_process import daemon, eventually, local_center
from tests.emulators.tai123 import Job, Service
from tests.http_center import call, failing, opened
from tests.raw_server import Arrived, answer, document, raw_server
from tests.service_world import bare, serve, server
from tests.test_tai123 import opened as tai123

__all__ = ["world"]

# ---------------------------------------------------------------- the rule

NEVER = (
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254", "169.254.1.1", "224.0.0.1", "240.0.0.1"),
    *("255.255.255.255", "100.100.100.200", "192.0.0.192", "::1", "::", "fe80::1", "fe80::1%eth0", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("2002:7f00:1::", "fd00:ec2::254"),
)


@pytest.mark.parametrize("host", NEVER)
def test_addresses_that_are_never_asked(host: str) -> None:
    assert forbidden(host)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "192.168.1.9", "8.8.8.8", "fd00::1", "2001:4860::1", "64:ff9b::808:808"]
)
def test_addresses_of_centers_are_asked(host: str) -> None:
    assert not forbidden(host)


def center(adapter: str, **connection: Any) -> CenterSettings:
    return CenterSettings(id=CenterId("c"), adapter=adapter, connection=MappingProxyType(connection))


def test_the_hosts_of_a_center_are_those_that_its_operator_wrote() -> None:
    assert own_hosts(None) == frozenset()
    assert own_hosts(center("local", work_dir="/w")) == {"127.0.0.1"}
    assert own_hosts(center("tai123", base_url="https://up.example:8443/x")) == {"up.example"}
    known = own_hosts(center("cecstack", endpoint="http://10.1.1.1", eip="10.1.1.9", region="r"))
    assert known == {"10.1.1.1", "10.1.1.9"}
    assert trusted(URL("http://10.1.1.9:30080/"), known)
    assert not trusted(URL("http://127.0.0.1/"), known)
    assert trusted(URL("http://127.0.0.1:9/"), {"localhost"})
    assert not trusted(URL("http://127.0.0.1.nip.example/"), {"127.0.0.1"})


# ---------------------------------------------------------------- services


@pytest.fixture
async def strange(tmp_path: Path) -> AsyncIterator[World]:
    """A world whose centers are elsewhere: none of them is on this machine."""
    opened = await open_world(tmp_path, own_hosts=lambda _center: frozenset({"up.example"}))
    yield opened
    await close_world(opened)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
async def test_a_center_cannot_have_this_machine_asked(strange: World, host: str) -> None:
    """Whichever way the address is written: names are looked at where the connection is made."""
    asked = []

    async def secret(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text="for this machine only")

    async with server(secret) as here:
        port = URL(here).port
        job, _ = await serve(strange, f"http://{host}:{port}")
        for method in ("GET", "POST"):
            status, _, detail = await strange.refused(method, f"/services/{job}/x")
            assert status == 502
            assert "never asked" in detail or "InvalidUrl" in detail  # aiohttp knows some forms itself
        with pytest.raises(WSServerHandshakeError) as no:
            await strange.client.ws_connect(f"/services/{job}/x", headers={"X-Auth-Token": token_of("alice")})
        assert no.value.status == 502
    assert asked == []


async def test_a_center_on_this_machine_is_asked_here(world: World) -> None:
    async with server() as here:
        for host in ("127.0.0.1", "localhost"):
            job, _ = await serve(world, here.replace("127.0.0.1", host), f"svc-{host[:3]}")
            assert (await world.call("GET", f"/services/{job}/x")).status == 200


@pytest.mark.parametrize(
    "address",
    [
        "http://up.example/\r\nX-Evil: 1",
        "http://user:pw@up.example",
        "http://up.example\\@127.0.0.1",
        "http://up.example/a b",
        "http://up.example/#",
        "http://up.example/?x=",
        "http://up.example:99999",
        "file:///etc/passwd",
        "gopher://up.example/",
        "unix:///run/docker.sock",
        "//up.example",
        "up.example",
        "http://",
        "http://数据.example",
    ],
)
async def test_an_address_that_is_none_is_not_asked(strange: World, address: str) -> None:
    job, _ = await serve(strange, address)
    status, _, detail = await strange.refused("GET", f"/services/{job}/x")
    assert (status, detail) == (502, "its center tells an address that is none")


async def test_the_redirect_of_a_service_is_for_its_client(world: World) -> None:
    asked = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(dict(request.headers))
        return web.Response()

    async with server(elsewhere) as other:

        async def sends_away(_request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": f"{other}/take"})

        async with server(sends_away) as first:
            job, _ = await serve(world, first, public=True)
            found = await bare(world, "POST", f"/services/{job}/x", headers={"Authorization": "Bearer sk"})
            assert (found.status, found.headers["Location"]) == (307, f"{other}/take")
    assert asked == []


# ---------------------------------------------------------------- centers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_center_cannot_send_credentials_elsewhere(status: int, method: str) -> None:
    async with raw_server(lambda _r: document({"code": 0, "data": 1})) as other:

        def sends_away(_request: Arrived) -> bytes:
            return answer("", status=status, headers={"Location": f"{other.url}/take"})

        async with opened(sends_away) as (first, made):
            request = call(
                first.url, method, effect=method == "POST", headers={"Authorization": "Bearer tok-1"}
            )
            text = await failing(made, request, Unavailable)
            assert "redirects are not followed" in text
            assert [each.path for each in first.requests] == ["/api/thing"]
        assert other.requests == []


async def test_a_download_follows_no_redirect() -> None:
    async with raw_server(lambda _r: answer("x")) as other:
        away = answer("", status=302, headers={"Location": f"{other.url}/take"})
        async with opened(away) as (first, made):
            request = Request("file", "GET", f"{first.url}/f", effect=False, transfer=True)
            with pytest.raises(Unavailable, match="redirects are not followed"):
                async for _ in made.download(request):
                    pass
        assert other.requests == []


@pytest.mark.parametrize(
    "value",
    [
        "ftp://c",
        "file:///etc/passwd",
        "gopher://c",
        "//c",
        "c.example",
        "http://",
        "http://u:s3cret@c",
        "http://u@c",
    ],
)
def test_the_url_of_a_center_is_a_web_address_without_a_password(value: str) -> None:
    with pytest.raises(Wrong) as wrong:
        http_url(value, Place(Path("/"), {}))
    assert "s3cret" not in str(wrong.value)


def test_no_request_to_the_api_sets_the_url_of_a_center() -> None:
    """Centers are in the configuration file alone."""
    writing = [route for route in ROUTES if "centers" in route.path and route.method != "GET"]
    assert writing
    for route in writing:
        fields = route.body.model_fields if route.body is not None else {}
        assert not {name for name in fields if "url" in name.lower() or "host" in name.lower()}, route.path


@pytest.mark.parametrize(
    "path",
    ["//evil/x", "http://evil/x", "/\\evil", "/../x", "/a/%2e%2e/x", "@evil/x", "/a\r\nX: y", "/a#b", "/a b"],
)
def test_an_operators_call_stays_at_the_center(path: str) -> None:
    with pytest.raises(Refused):
        below("http://c.example/base", path)


@pytest.mark.parametrize(
    "link",
    [
        "http://169.254.169.254/latest",
        "http://evil.example/x",
        "//evil.example/x",
        "file:///etc/passwd",
        "http://[",
        "http://c.example:port/",
    ],
)
async def test_the_link_to_a_log_leads_to_the_center_alone(link: str) -> None:
    """What it opens is shown to the owner of the job, who may be the center's friend."""
    async with Service() as service, tai123(service) as adapter:
        service.jobs["j1"] = Job("j1", "bk-1", {}, log=b"line\n")
        own = adapter._files.service_log("j1", "j1-0", 0)
        assert b"".join([chunk async for chunk in own]) == b"line\n"

        async def elsewhere(_operation: str, _path: str, _query: Any) -> Any:
            return {"logUrl": link}

        adapter.wire.get = elsewhere  # type: ignore[method-assign,assignment]
        with pytest.raises(Unavailable, match="logUrl"):
            async for _ in adapter._files.service_log("j1", "j1-0", 0):
                pass


# ---------------------------------------------------------------- images


async def test_the_image_of_a_job_is_never_fetched(tmp_path: Path) -> None:
    """It is the center's business: the broker passes the text on."""

    def run_job(image: str) -> None:
        with daemon(tmp_path, local_center(tmp_path, "c1")) as running:
            client = running.client("alice")
            spec = eventually("specs", lambda: client.specs()["resourceSpecs"])[0]["resourceSpecId"]
            config = {"specId": spec, "imageUrl": image, "command": "echo done"}
            job = client.create_job({"jobName": "j", "config": config})["metadata"]["id"]
            eventually("it ends", lambda: client.job(job)["status"] == "SUCCEEDED")

    async with raw_server(lambda _request: answer("x")) as listener:
        await asyncio.to_thread(run_job, f"{listener.url}/img:1")
        assert (listener.requests, listener.connections) == ([], 0)
