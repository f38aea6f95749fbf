"""Rate limits, overload, pages of other origins, request ids."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp.test_utils import make_mocked_request

from broker.api.limits import MOST_BUCKETS, Buckets, Limits
from broker.config import LimitSettings
from broker.store.writer import Tx
from tests.api_fixtures import World, close_world, open_world, together, world
from tests.test_api_auth import log_in, login

__all__ = ["world"]


class Seconds:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# ---------------------------------------------------------------- buckets


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    clock = Seconds()
    buckets = Buckets(per_s=2, burst=3, clock_s=clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b") == 0, "another key has its own"
    clock.now += 0.25
    assert buckets.take("a") == 0.25
    clock.now += 0.25
    assert [buckets.take("a"), buckets.take("a")] == [0, 0.5]
    clock.now += 100
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 0.5], "it holds no more than its burst"
    buckets.give_back("a")
    assert [buckets.take("a"), buckets.take("a")] == [0, 0.5]
    buckets.give_back("nobody")


def test_buckets_that_are_full_are_forgotten_first() -> None:
    clock = Seconds()
    buckets = Buckets(per_s=1, burst=1, clock_s=clock)
    for each in range(MOST_BUCKETS - 1):
        buckets.take(str(each))
    clock.now += 1
    buckets.take("busy")
    buckets.take("one more")
    assert len(buckets._buckets) == 2
    assert buckets.take("busy") > 0


@pytest.mark.parametrize(
    ("peer", "said", "found"),
    [
        ("192.0.2.7", None, "192.0.2.7"),
        ("192.0.2.7", "198.51.100.1", "192.0.2.7"),  # whoever is not trusted may say anything
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),  # made up by the client
        ("127.0.0.1", "198.51.100.1, 10.1.2.3", "198.51.100.1"),  # a second proxy
        ("127.0.0.1", "10.1.2.3, 10.1.2.4", "10.1.2.3"),
        ("127.0.0.1", "nonsense", "127.0.0.1"),
        ("::ffff:127.0.0.1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", None, "2001:db8:1:2::/64"),
    ],
)
def test_who_is_counted(peer: str, said: str | None, found: str) -> None:
    limits = Limits(LimitSettings(), ("127.0.0.1", "10.0.0.0/8"), Seconds())
    headers = {} if said is None else {"X-Forwarded-For": said}
    request = make_mocked_request("GET", "/", headers=headers).clone(remote=peer)
    assert limits.address(request) == found


# ---------------------------------------------------------------- requests of an account


async def test_an_account_that_asks_too_often_waits_and_others_do_not(tmp_path: Path) -> None:
    world = await open_world(tmp_path, limits=LimitSettings(requests_per_s=0.1, request_burst=3))
    try:
        for _ in range(3):
            await world.ok("GET", "/broker/v1/me")
        answer = await world.call("GET", "/broker/v1/me")
        body = await answer.json()
        assert (answer.status, body["errorCode"], body["errorMsg"]) == (429, "", "请求过于频繁")
        assert "limits.requests_per_s" in body["detail"]
        assert 1 <= int(answer.headers["Retry-After"]) <= 10
        await world.ok("GET", "/broker/v1/me", as_="bob")
        await world.ok("GET", "/healthz", as_=None)
    finally:
        await close_world(world)


# ---------------------------------------------------------------- logins


async def test_failed_logins_of_one_address_do_not_freeze_everybody(tmp_path: Path) -> None:
    limits = LimitSettings(login_failure_burst=4, login_failures_per_minute=1)
    world = await open_world(tmp_path, limits=limits, freeze_after=3)
    try:
        names = ["alice", "bob", "carol", "eve", "root"]
        tries = [world.call("POST", "/auth/tokens", login(name, "no"), as_=None) for name in names * 3]
        statuses = [answer.status for answer in await together(*tries)]
        assert statuses.count(401) == 4
        assert statuses.count(429) == 11
        refused = await world.call("POST", "/auth/tokens", login("alice", "pw-alice"), as_=None)
        body = await refused.json()
        assert (refused.status, body["errorCode"]) == (429, "")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        listed = await world.ok("GET", "/broker/v1/accounts", as_="root")
        assert sum(each["frozen"] for each in listed["items"]) <= 1
    finally:
        await close_world(world)


async def test_right_logins_count_against_nobody(tmp_path: Path) -> None:
    world = await open_world(tmp_path, limits=LimitSettings(login_failure_burst=2))
    try:
        for _ in range(5):
            await log_in(world)
    finally:
        await close_world(world)


async def test_a_name_is_protected_whatever_the_addresses(tmp_path: Path) -> None:
    limits = LimitSettings(login_failure_burst=2, login_failures_per_minute=1)
    world = await open_world(tmp_path, limits=limits, trusted_proxies=("127.0.0.1",))
    try:

        async def attempt(address: str, name: str = "nobody") -> int:
            headers = {"X-Forwarded-For": address}
            sent = world.call("POST", "/auth/tokens", login(name, "no"), as_=None, headers=headers)
            return (await sent).status

        assert [await attempt("192.0.2.1"), await attempt("192.0.2.2"), await attempt("192.0.2.3")] == [
            401,
            401,
            429,
        ]
        assert await attempt("192.0.2.3", "bob") == 401, "what was refused was not counted to the address"
    finally:
        await close_world(world)


async def test_the_old_password_is_guessed_no_faster(tmp_path: Path) -> None:
    world = await open_world(tmp_path, limits=LimitSettings(login_failure_burst=2), freeze_after=100)
    try:
        guess = {"old": "wrong", "new": "next"}
        for _ in range(2):
            assert (await world.refused("POST", "/auth/password", guess))[:2] == (401, "0101")
        assert (await world.refused("POST", "/auth/password", guess))[:2] == (429, "")
    finally:
        await close_world(world)


# ---------------------------------------------------------------- overload


async def test_what_waits_too_long_is_refused_at_once_and_health_is_not(tmp_path: Path) -> None:
    world = await open_world(tmp_path, limits=LimitSettings(store_waiting=3))
    go_on = threading.Event()
    try:
        await world.ok("GET", "/broker/v1/me")

        under_way = threading.Event()

        def hold(tx: Tx) -> None:
            under_way.set()
            go_on.wait(20)

        held = [asyncio.create_task(world.store.write(hold))]
        assert await asyncio.to_thread(under_way.wait, 20)
        held += [asyncio.create_task(world.store.write(hold)) for _ in range(3)]
        await asyncio.sleep(0)
        assert world.store.backlog == 3
        answer = await world.call("GET", "/broker/v1/me")
        body = await answer.json()
        assert (answer.status, body["errorCode"]) == (503, "")
        assert answer.headers["Retry-After"] == "5"
        assert (await world.call("GET", "/healthz", as_=None)).status == 200
        go_on.set()
        await asyncio.gather(*held)
        await world.ok("GET", "/broker/v1/me")
    finally:
        go_on.set()
        await close_world(world)


async def test_reads_that_wait_are_counted(world: World) -> None:
    go_on = threading.Event()

    def hold(_session: Any) -> None:
        go_on.wait(20)

    held = [asyncio.create_task(world.store.read(hold)) for _ in range(6)]
    await asyncio.sleep(0)
    assert world.store.reads_waiting == 6
    go_on.set()
    await asyncio.gather(*held)
    assert world.store.reads_waiting == 0
    with pytest.raises(ZeroDivisionError):
        await world.store.read(lambda _session: 1 // 0)
    assert world.store.reads_waiting == 0


# ---------------------------------------------------------------- pages of other origins

PORTAL = "https://portal.example"


async def preflight(world: World, origin: str, path: str = "/trainjob") -> Any:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    return await world.client.request("OPTIONS", path, headers=headers)


async def test_a_page_of_an_allowed_origin_may_ask_and_read(tmp_path: Path) -> None:
    world = await open_world(tmp_path, cors_origins=(PORTAL,))
    try:
        asked = await preflight(world, PORTAL)
        assert (asked.status, await asked.read()) == (204, b"")
        assert asked.headers["Access-Control-Allow-Origin"] == PORTAL
        assert "DELETE" in asked.headers["Access-Control-Allow-Methods"]
        allowed = asked.headers["Access-Control-Allow-Headers"]
        for header in ("X-Auth-Token", "Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"):
            assert header in allowed
        assert "Access-Control-Allow-Credentials" not in asked.headers
        for path, status in (("/broker/v1/me", 200), ("/trainjob/j-0", 400), ("/nothing", 404)):
            answer = await world.call("GET", path, headers={"Origin": PORTAL})
            assert answer.status == status
            assert answer.headers["Access-Control-Allow-Origin"] == PORTAL
            assert answer.headers["Vary"] == "Origin"
            for header in ("X-Request-Id", "Retry-After", "X-Log-Offset"):
                assert header in answer.headers["Access-Control-Expose-Headers"]
        stranger = await world.call("GET", "/broker/v1/me", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in stranger.headers
        assert stranger.headers["Vary"] == "Origin"
        assert (await preflight(world, "https://evil.example")).status == 405
        assert "Access-Control-Allow-Origin" not in (await world.call("GET", "/broker/v1/me")).headers
        service = await preflight(world, PORTAL, "/services/s-1/")
        assert "Access-Control-Allow-Origin" not in service.headers
    finally:
        await close_world(world)


async def test_any_origin_where_the_file_says_so_and_none_by_default(tmp_path: Path, world: World) -> None:
    other = await open_world(tmp_path / "any", cors_origins=("*",))
    try:
        answer = await other.call("GET", "/healthz", as_=None, headers={"Origin": "null"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Vary" not in answer.headers
    finally:
        await close_world(other)
    answer = await world.call("GET", "/healthz", as_=None, headers={"Origin": PORTAL})
    assert not {"Access-Control-Allow-Origin", "Vary"} & set(answer.headers)
    assert (await preflight(world, PORTAL)).status == 405


# ---------------------------------------------------------------- request ids


@pytest.mark.parametrize("given", ["a", "01HZX-trace.7_b:c", "x" * 64])
async def test_a_sane_request_id_is_taken_over(world: World, given: str) -> None:
    answer = await world.call("GET", "/trainjob/j-0", headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"] == given
    assert (await answer.json())["requestId"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "-a", "a\"'<script>", "é"])
async def test_any_other_one_is_replaced(world: World, given: str) -> None:
    answer = await world.call("GET", "/trainjob/j-0", headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"] == (await answer.json())["requestId"]
    assert len(answer.headers["X-Request-Id"]) == 16
    int(answer.headers["X-Request-Id"], 16)


# ---------------------------------------------------------------- no HTTP


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /trainjob HTTP/1.1\r\nHost: x\r\nX-Auth-Token: hush" + b"x" * 9000 + b"\r\n\r\n",
        b"GET /trainjob?query=hush" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /trainjob HTTP/1.1\r\nhush\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_one_log_line_that_quotes_nothing(
    world: World, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    reader, writer = await asyncio.open_connection(world.client.host, world.client.port)
    try:
        with structlog.testing.capture_logs() as lines:
            writer.write(sent)
            status = await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()
    assert status == b"HTTP/1.0 400 Bad Request\r\n"
    (line,) = lines
    assert (line["event"], line["status"]) == ("request.unreadable", 400)
    assert "hush" not in str(line)
    assert caplog.records == []
