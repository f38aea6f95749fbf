"""Calls over HTTP to a center, against real local servers: what is sent, how often, and what each
kind of answer means."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from adapters import http
from adapters.http import Limits, Request, Unintelligible, below, open_http
from adapters.pace import Pace
from adapters.sent import RETRY_AFTER_S, NotSent
from adapters.values import parse_json
from broker.adapter import AdapterError, Connection, Denied, Refused, Throttled, Unavailable
from broker.core.model import CenterId
from tests.http_center import (
    OK,
    SECRET,
    UNAUTHORISED,
    Platform,
    call,
    collected,
    failing,
    opened,
    payload,
)
from tests.raw_server import Answer, Arrived, answer, document

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


# ---------------------------------------------------------------- once


@pytest.mark.parametrize("effect", [True, False])
@pytest.mark.parametrize("method", METHODS)
async def test_a_dropped_call_arrives_once_on_a_fresh_connection(method: str, effect: bool) -> None:
    async with opened(lambda _request: None) as (server, made):
        text = await failing(made, call(server.url, method, effect=effect), Unavailable)
        assert "thing" in text
        assert [r.method for r in server.requests] == [method]


@pytest.mark.parametrize("effect", [True, False])
@pytest.mark.parametrize("method", METHODS)
async def test_a_dropped_call_arrives_once_after_a_connection_was_used(method: str, effect: bool) -> None:
    async with opened(lambda r: None if "drop" in r.path else OK) as (server, made):
        assert await made.json(call(server.url), payload) == "fine"
        drop = Request("thing", method, f"{server.url}/drop", effect)
        await failing(made, drop, Unavailable)
        assert [r.path for r in server.requests] == ["/api/thing", "/drop"]
        reused = server.requests[1].connection == 1
        assert reused is not effect, "reading calls share a connection, one with an effect has its own"


async def test_without_the_guard_the_same_call_arrives_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the two tests above rest on: aiohttp does repeat, so they would notice."""

    async def straight(request: Any, handler: Any) -> Any:
        return await handler(request)

    monkeypatch.setattr(http, "send_once", straight)
    async with opened(lambda r: None if "drop" in r.path else OK) as (server, made):
        await made.json(call(server.url), payload)
        await failing(made, Request("thing", "GET", f"{server.url}/drop", False), Unavailable)
        assert [r.path for r in server.requests] == ["/api/thing", "/drop", "/drop"]


async def test_an_answer_cut_off_leaves_the_effect_unknown() -> None:
    async with opened(answer('{"code": 0, "data": 1}', cut=5)) as (server, made):
        await failing(made, call(server.url, "POST", effect=True), Unavailable)
        assert len(server.requests) == 1


async def test_no_connection_is_no_effect() -> None:
    async with opened() as (_server, made):
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
            assert "no connection to 127.0.0.1" in await failing(made, call(url, effect=True), NotSent)
            assert "no connection to 127.0.0.1" in await failing(made, call(url), Unavailable)
    assert issubclass(NotSent, Throttled), "the broker sends a throttled submission again"


async def test_no_answer_in_time() -> None:
    async def never(_request: Arrived) -> Answer:
        await asyncio.Event().wait()
        return None

    async with opened(never, limits=Limits(timeout_s=0.2, requests_per_s=1000)) as (server, made):
        assert "no answer within 0.2 s" in await failing(made, call(server.url, effect=True), Unavailable)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await made.json(call(server.url), payload)
        assert len(server.requests) == 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_error_that_names_the_host(status: int) -> None:
    moved = answer("", status=status, headers={"Location": f"http://other.example/x?token={SECRET}"})
    async with opened(moved) as (server, made):
        text = await failing(made, call(server.url, "POST", effect=True), Unavailable)
        assert "other.example" in text
        assert SECRET not in text
        assert len(server.requests) == 1


async def test_what_goes_on_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    cookie = document({"code": 0, "data": 1}, headers={"Set-Cookie": "a=b; Path=/"})
    async with opened(cookie) as (server, made):
        more: dict[str, Any] = {"query": {"page": 1, "名": "深圳 一"}, "headers": {"x-regionid": "r1"}}
        for _ in range(2):
            await made.json(call(server.url, "POST", **more), payload, document={"名": "é", "n": 1})
        first, second = server.requests
        assert first.path == "/api/thing?page=1&%E5%90%8D=%E6%B7%B1%E5%9C%B3+%E4%B8%80"
        assert first.headers["x-regionid"] == "r1"
        assert first.headers["content-type"] == "application/json"
        assert first.headers["user-agent"].startswith("computing-broker/")
        assert first.document == {"名": "é", "n": 1}
        assert "cookie" not in second.headers
        signed = URL(f"{server.url}/a%2Fb?x=%7E+%20", encoded=True)
        await made.json(Request("thing", "GET", signed, False), payload)
        assert server.requests[-1].path == "/a%2Fb?x=%7E+%20", "a signed address is sent as it was signed"


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (answer("<html>Bad Gateway</html>", status=502, kind="text/html"), "<html>Bad Gateway"),
        (answer("<html>log in</html>"), "<html>log in"),
        (answer('{"code": 0}', kind="text/html"), "text/html"),
        (answer('{"code": 0, "da'), '{"code": 0, "da'),
        (answer(""), "(empty)"),
        (answer('{"code": 0, "data": NaN}'), "NaN"),
        (answer('{"code": 0, "data": -Infinity}'), "-Infinity"),
        (answer('{"code": 0, "code": 1}'), "'code' is there twice"),
        (answer(b'{"code": 0, "data": "\xff"}'), "utf-8"),
        (answer("[" * 100_000), "too deeply"),
        (answer('{"code": 0, "data": ' + "9" * 5000 + "}"), "digits"),
    ],
)
async def test_what_cannot_be_read_says_nothing(given: bytes, why: str) -> None:
    async with opened(given) as (server, made):
        text = await failing(made, call(server.url, "POST", effect=True), Unintelligible)
        assert why in text
        assert len(text) < 500


async def test_numbers_are_exact() -> None:
    async with opened(answer('{"code": 0, "data": [0.1, 9007199254740993, 1e400]}')) as (server, made):
        found = await made.json(call(server.url), payload)
        assert found == [Decimal("0.1"), 9007199254740993, Decimal("1e400")]
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


async def test_an_answer_that_is_too_large() -> None:
    async with opened(answer(b'"' + b"x" * 5000 + b'"')) as (server, made):
        assert "more than 4096 bytes" in await failing(made, call(server.url, max_bytes=4096), Unavailable)


async def test_what_a_status_means() -> None:
    given = {
        "429": answer("slow down", status=429, headers={"Retry-After": "17"}),
        "429x": answer("slow down", status=429, headers={"Retry-After": "soon"}),
        "403": document({"code": 9, "msg": "not yours"}, status=403),
        "422": document({"code": 9, "msg": "shm: too large"}, status=422),
        "500": document({"code": 9, "msg": "oops"}, status=500),
    }
    async with opened(lambda r: given[r.path.strip("/")]) as (server, made):

        async def meets(path: str) -> AdapterError:
            with pytest.raises(AdapterError) as caught:
                await made.json(Request("thing", "POST", f"{server.url}/{path}", True), payload)
            return caught.value

        throttled = await meets("429")
        assert isinstance(throttled, Throttled)
        assert throttled.retry_after_s == 17
        unreadable = await meets("429x")
        assert isinstance(unreadable, Throttled)
        assert unreadable.retry_after_s == RETRY_AFTER_S
        assert type(await meets("403")) is Denied
        assert type(await meets("422")) is Refused
        assert type(await meets("500")) is Unavailable


async def test_a_defect_of_an_envelope_is_not_hidden() -> None:
    async with opened(document({"no": "code"})) as (server, made):
        with pytest.raises(KeyError):
            await made.json(call(server.url), payload)


async def test_half_a_character_is_refused_before_it_is_sent() -> None:
    async with opened() as (server, made):
        request = call(server.url, "POST", effect=True)
        assert "ud800" in await failing(made, request, Refused, document={"name": "\ud800"})
        assert server.requests == []


# ---------------------------------------------------------------- limits


async def test_concurrency_and_pace() -> None:
    now, most = 0, 0

    async def slow(_request: Arrived) -> Answer:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return OK

    async with opened(slow, limits=Limits(concurrency=3, requests_per_s=10_000)) as (server, made):
        await asyncio.gather(*(made.json(call(server.url, effect=i % 2 == 0), payload) for i in range(20)))
        assert len(server.requests) == 20
    assert most == 3

    pace = Pace(1.0, lambda: 0.0)
    await pace.turn()
    waiting = [asyncio.create_task(pace.turn()) for _ in range(50)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert pace.delay_s() <= 2.0, "those who gave up have not taken their places"

    at = [100.0]
    pace = Pace(2.0, lambda: at[0])
    assert [pace.delay_s() for _ in range(4)] == [0.0, 0.0, 0.5, 1.0], "a burst of a second, then the rate"
    at[0] = 1000.0
    assert [pace.delay_s() for _ in range(3)] == [0.0, 0.0, 0.5], "what was not used is not kept"
    slow_pace = Pace(0.1, lambda: at[0])
    assert [slow_pace.delay_s() for _ in range(2)] == [0.0, 10.0]


# ---------------------------------------------------------------- files


async def test_download() -> None:
    content = bytes(range(256)) * 1024
    given = {
        "/file": answer(content, kind="application/octet-stream"),
        "/cut": answer(content, kind="application/octet-stream", cut=10),
        "/none": document({"code": 9, "msg": "no such file"}, status=404),
        "/page": answer("<html>", status=500, kind="text/html"),
    }
    async with opened(lambda r: given[r.path]) as (server, made):

        def got(path: str, **more: Any) -> AsyncIterator[bytes]:
            request = Request("fetch", "GET", server.url + path, False, transfer=True, **more)
            return made.download(request, payload)

        assert await collected(got("/file")) == content
        with pytest.raises(Unavailable, match="more than 1000 bytes"):
            await collected(got("/file", max_bytes=1000))
        with pytest.raises(Unavailable):
            await collected(got("/cut"))
        with pytest.raises(Refused, match="no such file"):
            await collected(got("/none"))
        with pytest.raises(Unintelligible, match="<html>"):
            await collected(got("/page"))


async def test_download_logs_in_again() -> None:
    platform = Platform()
    async with opened(platform) as (server, made):
        session = platform.session(made, server.url)
        await made.json(call(server.url, session=session), payload)
        platform.good = "nobody's"

        def as_file(status: int, found: Any) -> None:
            payload(status, found)
            raise Refused("a document")

        with pytest.raises(Refused, match="a document"):
            await collected(made.download(call(server.url, session=session), as_file))
        assert platform.logins == 2


async def test_upload_by_chunks(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(range(256)) * 1000)
    async with opened() as (server, made):
        body = http.file_chunks(file, offset=100, size=200_000)
        request = call(server.url, "PUT", effect=True, body=body, transfer=True)
        assert await made.json(request, payload) == "fine"
        assert server.requests[0].body == file.read_bytes()[100:200_100]
        assert await collected(http.file_chunks(file, offset=1)) == file.read_bytes()[1:]
        with pytest.raises(Unavailable, match="shorter"):
            await collected(http.file_chunks(file, size=300_000))


async def test_a_stream_is_not_sent_again() -> None:
    platform = Platform(expired=lambda _request: UNAUTHORISED)

    async def parts() -> AsyncIterator[bytes]:
        yield b"once"

    async with opened(platform) as (server, made):
        session = platform.session(made, server.url, rejects=True)
        await made.json(call(server.url, session=session), payload)
        platform.good = "nobody's"
        request = call(server.url, "PUT", effect=True, session=session, body=parts())
        assert "used up" in await failing(made, request, Throttled)
        assert sum(r.method == "PUT" for r in server.requests) == 1


# ---------------------------------------------------------------- opening, addresses


async def test_open_from_a_connection(tmp_path: Path) -> None:
    options = {"timeout_s": 3.0, "requests_per_s": 50.0, "concurrency": 2, "key": "0123456789"}
    made = await open_http(
        Connection(CenterId("sz-1"), "bk", options, {"password": SECRET}), secret_options=("key",)
    )
    assert made.redact(f"{SECRET} 0123456789") == "*** ***"
    await made.aclose()
    wrong = tmp_path / "ca.pem"
    wrong.write_text("nothing")
    for path in (wrong, tmp_path / "missing.pem"):
        with pytest.raises(ValueError, match="ca_file"):
            await open_http(Connection(CenterId("sz-1"), "bk", {"ca_file": str(path)}))


async def test_a_certificate_is_checked_against_the_centers_own_authority(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    made_by = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key)]
    about = ["-out", str(cert), "-days", "2", "-subj", "/CN=localhost", "-addext", names]
    process = await asyncio.create_subprocess_exec(*made_by, *about, stderr=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    arrived = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await reader.readuntil(b"\r\n\r\n")
        arrived += 1
        writer.write(OK)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    trusting = await open_http(Connection(CenterId("sz-1"), "bk", {"ca_file": str(cert)}))
    strict = await open_http(Connection(CenterId("sz-1"), "bk"))
    try:
        assert await trusting.json(call(url), payload) == "fine"
        assert "certificate" in await failing(strict, call(url, effect=True), NotSent)
        assert arrived == 1
    finally:
        await trusting.aclose()
        await strict.aclose()
        server.close()
        await server.wait_closed()


def test_an_operators_path_stays_at_the_center() -> None:
    assert str(below("https://c:8443/base/", "/api/x?a=1&b=%20")) == "https://c:8443/base/api/x?a=1&b=%20"
    for path in (
        "api",
        "//evil/x",
        "http://evil/",
        "/a/../b",
        "/a/%2e%2E/b",
        "/a b",
        "/a\\b",
        "/a#b",
        "/a\nb",
    ):
        with pytest.raises(Refused, match="path is"):
            below("https://c/base", path)
