"""Headers, lines and the borders of requests: nothing that somebody writes becomes a header, a log line or
a request of its own.

What belongs here: bytes as an attacker sends them, on real sockets.  What does not: what a service sees
of a header that is meant well (test_services_requests.py), names of files (test_security_archives.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from aiohttp import web

from adapters.sent import NotSent
from adapters.session import LoggedIn, Session
from broker import telemetry
from broker.adapter import AdapterError, Unavailable
from broker.api import cors
from broker.cli.display import clean, json_lines
from broker.cli.vendor import _pretty, _shown
from tests.api_fixtures import World, close_world, create_body, open_world, token_of, world
from tests.http_center import OK, call, failing, opened
from tests.raw_server import raw_server
from tests.service_world import bare, serve, server

__all__ = ["world"]

# ---------------------------------------------------------------- where one request ends


async def exchanged(world: World, data: bytes, *, silence_s: float = 1) -> bytes:
    """Everything that is answered to some bytes, until the server closes or has said nothing for a while."""
    assert world.client.port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", world.client.port)
    writer.write(data)
    answer = b""
    try:
        while chunk := await asyncio.wait_for(reader.read(65536), silence_s if answer else 10):
            answer += chunk
    except (TimeoutError, ConnectionError):
        pass  # it waits for more, or has closed with bytes unread
    finally:
        writer.close()
    return answer


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
AMBIGUOUS = {
    "length and chunks": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": b"Content-Length: 3, 4\r\n\r\nabcd",
    "a signed length": b"Content-Length: +3\r\n\r\nabc",
    "a negative length": b"Content-Length: -1\r\n\r\n",
    "a length in hexadecimal": b"Content-Length: 0x3\r\n\r\nabc",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunked that is not last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another encoding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is none": b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "a negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n",
    "a header folded": b"X-A: b\r\n\tTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
    "a bare carriage return": b"X-A: b\rContent-Length: 3\r\n\r\n",
    "a NUL in a value": b"X-A: b\0c\r\n\r\n",
    "a name with a space": b"X A: b\r\n\r\n",
    "an empty name": b": b\r\n\r\n",
}


@pytest.mark.parametrize("rest", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_a_request_whose_end_is_ambiguous_reaches_no_service(world: World, rest: bytes) -> None:
    """Two programs that read it differently would take the rest of one for a request of its own."""
    seen = []

    async def note(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.Response(text=(await request.read()).decode())

    async with server(note) as here:
        job, _ = await serve(world, here, public=True)
        head = f"POST /services/{job}/first HTTP/1.1\r\nHost: x\r\n".encode()
        answer = await exchanged(world, head + rest + SMUGGLED)
    assert "/smuggled" not in seen
    assert answer.split(b" ")[1] in (b"400", b"501"), answer[:200]
    assert seen == []


async def test_a_body_that_was_refused_is_no_next_request(world: World) -> None:
    """What is left of a body that was not read goes with its connection."""
    big = b"x" * 300_000
    token = token_of("alice").encode()
    head = b"POST /trainjob HTTP/1.1\r\nHost: x\r\nX-Auth-Token: " + token
    answer = await exchanged(world, head + b"\r\nContent-Length: %d\r\n\r\n" % len(big) + SMUGGLED * 2 + big)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"/smuggled" not in answer


async def test_the_service_gets_one_request_with_one_length(world: World) -> None:
    async with raw_server(lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as service:
        job, _ = await serve(world, service.url, public=True)
        trick = {"Connection": "close, Content-Length, X-Secret", "X-Secret": "1", "TE": "trailers"}
        answer = await bare(world, "POST", f"/services/{job}/x", headers=trick, data=SMUGGLED)
        assert answer.status == 200
        (arrived,) = service.requests
        assert arrived.body == SMUGGLED
        assert "x-secret" not in arrived.headers
        assert "te" not in arrived.headers
        assert not {"content-length", "transfer-encoding"} <= arrived.headers.keys()


# ---------------------------------------------------------------- what becomes a header


@pytest.mark.parametrize("given", ["a\r\nSet-Cookie: x=1", "a b", "é", "x" * 65, "", "%0d%0aSet-Cookie:x"])
async def test_a_request_id_is_no_header_of_its_own(world: World, given: str) -> None:
    raw = f"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: {given}\r\nConnection: close\r\n\r\n"
    answer = (await exchanged(world, raw.encode())).lower()
    assert b"set-cookie" not in answer
    assert answer.count(b"x-request-id:") == 1


@pytest.mark.parametrize("path", ["/%0d%0aSet-Cookie:%20x=1", "/%0aX-Evil:1", "/a?x=%0d%0aSet-Cookie:y"])
async def test_a_location_is_one_header(world: World, path: str) -> None:
    """Both redirects that the broker makes itself: after a link, and to the slash of a service."""
    async with server() as here:
        job, _ = await serve(world, here)
        link = await world.ok("POST", f"/broker/v1/services/{job}/link")
        query = link["url"].partition("?")[2]
        mark = "&" if "?" in path else "?"
        for target in (f"/services/{job}{path}{mark}{query}", f"/services/{job}?x={path}"):
            raw = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            head = (await exchanged(world, raw.encode())).partition(b"\r\n\r\n")[0]
            lines = head.split(b"\r\n")
            status = lines[0].split(b" ")[1]
            assert status in (b"303", b"308", b"404")
            locations = [line for line in lines if line.lower().startswith(b"location:")]
            assert len(locations) == (0 if status == b"404" else 1)
            for location in locations:
                assert location.split(b" ")[1].startswith(f"/services/{job}/".encode())
            assert not [line for line in lines if line.lower().startswith((b"x-evil", b"set-cookie: x"))]


@pytest.mark.parametrize(
    "name", ["a\r\nX: y", "a\nb", "a b", "../x", "a\0b", "名字", "<script>", "$(id)", "%s", "a;b"]
)
async def test_the_name_of_a_job_is_plain(world: World, name: str) -> None:
    """So it is nothing else in a log line, a header, a shell, a manifest or a path of a platform."""
    status, code, _ = await world.refused("POST", "/trainjob", create_body(name))
    assert (status, code) == (400, "0205")


@pytest.mark.parametrize(("effect", "kind"), [(False, Unavailable), (True, NotSent)])
async def test_a_header_to_a_center_is_one_line(effect: bool, kind: type[AdapterError]) -> None:
    """A session's token is the center's word; one with lines in it is sent nowhere."""

    async def log_in() -> LoggedIn:
        return LoggedIn({"X-Auth-Token": "t\r\nX-Evil: 1"})

    async with opened(OK) as (center, made):
        session = Session("c", "u", log_in, rejects_before_acting=True)
        text = await failing(made, call(center.url, effect=effect, session=session), kind)
        assert "no login" in text
        await session.aclose()
        assert center.requests == []


# ---------------------------------------------------------------- pages of others


async def test_no_page_of_another_origin_may_read_unless_it_is_named(tmp_path: Any) -> None:
    allowed = "https://portal.example"
    opened = await open_world(tmp_path, cors_origins=(allowed,))
    try:
        for origin in (
            "https://evil.example",
            "null",
            "https://portal.example.evil.example",
            f"{allowed}:444",
        ):
            answer = await opened.call("GET", "/trainjob", headers={"Origin": origin})
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert answer.headers["Vary"] == "Origin"
        answer = await opened.call("GET", "/trainjob", headers={"Origin": allowed})
        assert answer.headers["Access-Control-Allow-Origin"] == allowed
        assert "Access-Control-Allow-Credentials" not in answer.headers
    finally:
        await close_world(opened)
    assert "Cookie" not in cors.REQUEST_HEADERS


@pytest.mark.parametrize(
    ("line", "header", "status"),
    [
        ("GET /broker/v1/me", b"X-Auth-Token: \xff", 401),
        ("GET /broker/v1/me", b"Authorization: Bearer brk.\xff", 401),
        ("GET /services/j-none/", b"X-Auth-Token: \xff", 401),
        ("GET /services/j-none/", b"Authorization: Bearer \xff", 401),
        ("GET /broker/v1/events", b"Last-Event-ID: \xff", 400),
        ("POST /trainjob", b"Idempotency-Key: \xff", 400),
    ],
)
async def test_a_header_that_is_no_text_is_wrong_and_no_fault(
    world: World, line: str, header: bytes, status: int
) -> None:
    body = json.dumps(create_body())
    token = "" if status == 401 else f"X-Auth-Token: {token_of('alice')}\r\n"
    head = f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{token}"
    answer = await exchanged(world, head.encode() + header + b"\r\n\r\n" + body.encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b'"errorCode": "0' in answer


async def test_a_cookie_opens_no_call_of_the_api(world: World) -> None:
    """No page can have a browser do something there: a token is a header that the page must know."""
    async with server() as here:
        job, _ = await serve(world, here)
        made = await world.ok("POST", f"/broker/v1/services/{job}/link")
        entered = await bare(world, "GET", made["url"].partition("example")[2])
        jar = {"Cookie": f"broker_service={entered.cookies['broker_service'].value}; X-Auth-Token=x"}
        for method, path in (("GET", "/trainjob"), ("DELETE", f"/onlineJob/{job}"), ("POST", "/trainjob")):
            assert (await bare(world, method, path, headers=jar)).status == 401


# ---------------------------------------------------------------- log lines

FORGED = "x\naction=forged level=error\r\x1b[2J\x1b]0;title\x07\u2028z\x85\x9b31m"


@pytest.fixture
def fresh_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("fresh_logging")
@pytest.mark.parametrize("as_json", [False, True])
def test_what_others_wrote_is_no_log_line(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    """Neither a line of its own nor a command to the terminal that shows the log."""
    telemetry.configure("debug", json=as_json)
    telemetry.log.info("center.failed", error=FORGED, center="c1")
    try:
        raise ValueError(FORGED)
    except ValueError:
        telemetry.log.exception("defect")
    text = capsys.readouterr().err
    lines = text.split("\n")
    assert len(lines) == 3
    assert lines[-1] == ""
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith("action=forged")]
    if as_json:
        assert json.loads(lines[0])["center"] == "c1"


# ---------------------------------------------------------------- terminals


@pytest.mark.parametrize(
    "value", [FORGED, [FORGED], {FORGED: FORGED}, {"body": FORGED, "bidi": "a\u202eb\U000e0001"}]
)
def test_what_others_wrote_steers_no_terminal(value: Any) -> None:
    """Answers of centers and texts of jobs, as commands show them to operators and users."""
    shown = json_lines(value)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert json.loads(shown) == value
    for text in (
        _pretty(json.dumps(value, ensure_ascii=False)),
        _pretty(FORGED),
        _shown(value),
        clean(FORGED),
    ):
        assert all(line.isprintable() for line in text.split("\n"))
