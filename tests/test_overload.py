"""More than the daemon can do: bursts, floods, slow clients; what is answered, and that the rest goes on.

`bench/overload.py` does the same in full size and tells figures.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.api.errors import TooMany
from broker.api.turns import Turns
from broker.config import LimitSettings
from tests import api_fixtures, crowd
from tests.api_fixtures import World, close_world, open_world, together
from tests.daemon_process import PATIENCE_S, DaemonProcess, daemon, eventually, local_center

USERS = ("ada", "ben", "cyd", "dov", "eve")
MORE_KIB = 200 << 10
"""What a crowd may add to the memory of the daemon: far more than it does, and less than a leak."""


def crowded(folder: Path, limits: str) -> Any:
    """A daemon whose center takes no jobs, so that rounds have all of them in the queue."""
    extra = f"[limits]\n{limits}"
    return daemon(folder, local_center(folder, "one", more='state = "drain"'), extra=extra)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    limits = "requests_at_once = 16\nrequests_waiting = 60\nevent_streams = 20\nall_event_streams = 100"
    with crowded(tmp_path_factory.mktemp("overload"), limits) as running:
        for name in USERS:
            running.add_user(name)
        yield running


def is_refusal(answer: tuple[int, str | None, Any]) -> bool:
    """In the standard's form, and telling when to come again."""
    status, retry_after, body = answer
    assert set(body) == {"errorCode", "errorMsg", "detail", "requestId"}, body
    return status == 429 and body["errorCode"] == "" and int(retry_after or 0) >= 1


# ---------------------------------------------------------------- bursts


async def test_a_burst_is_taken_or_refused_whole_and_others_go_on(broker: DaemonProcess) -> None:
    tokens = {name: crowd.token_of(broker, name) for name in USERS[:4]}
    alice, spec = crowd.token_of(broker, "alice"), broker.client("alice").specs()["resourceSpecs"][0]
    before, rounds = crowd.resident_kib(broker), crowd.number(broker, "broker_rounds_total")
    async with crowd.visiting(broker, alice, "/broker/v1/me") as visitor:
        bursts = await crowd.create_all_at_once(broker, tokens, 500, spec["resourceSpecId"])
    for name, burst in bursts.items():
        assert len(burst.made) + len(burst.refused) == 500
        assert len(burst.made) >= 76, "what may be worked on and what may wait is taken"
        assert burst.refused, f"{name} asked for more than may wait"
        assert all(is_refusal(answer) for answer in burst.refused.values())
        assert await crowd.listed(broker, tokens[name]) == dict.fromkeys(burst.made.items(), 1)
    assert set(visitor.statuses) == {200}
    assert visitor.most_kib <= before + MORE_KIB
    assert crowd.number(broker, "broker_rounds_total") > rounds


async def test_streams_outlast_a_flood_of_tokens_and_end_with_the_daemon(broker: DaemonProcess) -> None:
    tokens = [crowd.token_of(broker, name) for name in USERS]
    spec = broker.client("alice").specs()["resourceSpecs"][0]["resourceSpecId"]
    before = crowd.resident_kib(broker)
    async with crowd.streams(broker, tokens, each=20) as opened:
        assert [each.status for each in opened] == [200] * 100
        async with crowd.streams(broker, tokens[:1], each=1) as one_more:
            assert one_more[0].status == 429, "of this account"
        async with crowd.streams(broker, [crowd.token_of(broker, "alice")], each=1) as one_more:
            assert one_more[0].status == 503, "of all accounts"

        async with crowd.visiting(broker, tokens[0], "/broker/v1/me") as visitor:
            guessed = await crowd.guess_tokens(broker, 5000, at_once=50)
        assert set(visitor.statuses) == {200}, "from the same address, with a token that was right before"
        assert guessed.total() == 5000
        assert 200 <= guessed[401] <= 300, "the burst, and what comes with time"
        assert guessed[429] == 5000 - guessed[401]

        made = await crowd.create_at_once(broker, tokens[1], ["heard"], spec)
        assert made.made
        of_ben = opened[20:40]
        await until(lambda: all("job.created" in each.kinds() for each in of_ben))
        assert not any("job.created" in each.kinds() for each in opened[40:]), "of others' jobs nothing"
        assert crowd.resident_kib(broker) <= before + MORE_KIB

        assert await asyncio.to_thread(broker.stop) == 0, "streams do not keep the daemon from ending"
        await until(lambda: all(each.ended for each in opened))
        assert {each.last for each in opened} == {"end"}
    assert not broker.logged("shutdown_cut_short")


async def until(check: Callable[[], bool]) -> None:
    async def checked() -> bool:
        return check()

    await api_fixtures.until(checked, within_s=PATIENCE_S)


# ---------------------------------------------------------------- slow clients


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    limits = "idle_connection_s = 1\nstalled_s = 1\nconnections = 100"
    with crowded(tmp_path_factory.mktemp("slow"), limits) as running:
        yield running


def connected(broker: DaemonProcess) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(PATIENCE_S)
    client.connect(("127.0.0.1", broker.port))
    return client


def rest(client: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = bytearray()
    try:
        while data := client.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return bytes(found)


def test_a_header_that_does_not_come_ends_the_connection(impatient: DaemonProcess) -> None:
    with connected(impatient) as silent, connected(impatient) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: b\r\nX-Slow: ")
        assert rest(silent) == b""
        assert rest(slow) == b""


def test_a_body_that_does_not_come_is_answered_408(impatient: DaemonProcess) -> None:
    token = crowd.token_of(impatient, "alice")
    with connected(impatient) as client:
        head = f"POST /trainjob HTTP/1.1\r\nHost: b\r\nX-Auth-Token: {token}\r\nContent-Length: 1000\r\n\r\n"
        client.sendall(head.encode() + b'{"jobName"')
        answer = rest(client).decode()
    assert answer.startswith("HTTP/1.1 408 ")
    assert "Retry-After: " in answer
    assert '"errorCode": ""' in answer
    assert "limits.stalled_s" in answer


def test_whoever_takes_nothing_is_cut(impatient: DaemonProcess) -> None:
    cut = crowd.number(impatient, "broker_connections_cut_total")
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: b\r\n\r\n"
    with connected(impatient) as client:
        client.sendall(asked * 200)
        client.recv(1)
        eventually("the client is cut", lambda: crowd.number(impatient, "broker_connections_cut_total") > cut)
        assert len(rest(client)) < 200 * 100_000
    assert impatient.get("/healthz")[0] == 200


def test_more_connections_than_there_may_be_are_told_so(impatient: DaemonProcess) -> None:
    clients = [connected(impatient) for _ in range(120)]
    try:
        refused = [answer for client in clients if (answer := rest(client))]
    finally:
        for client in clients:
            client.close()
    assert refused
    for answer in refused:
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 5\r\n" in answer
        assert b"limits.connections" in answer
    eventually("there is room again", lambda: impatient.get("/healthz")[0] == 200)


# ---------------------------------------------------------------- turns


async def test_an_account_waits_for_itself_only() -> None:
    turns = Turns(LimitSettings(requests_at_once=1, requests_waiting=1))
    first = await turns.begin("ada")
    second = asyncio.create_task(turns.begin("ada"))
    await asyncio.sleep(0)
    with pytest.raises(TooMany, match=r"limits\.requests_waiting"):
        await turns.begin("ada")
    (await turns.begin("ben")).end()
    assert not second.done()
    first.end()
    (await second).end()
    assert not turns._lines, "nobody is remembered who is not here"


async def test_who_leaves_the_line_takes_no_turn() -> None:
    turns = Turns(LimitSettings(requests_at_once=1, requests_waiting=2))
    first = await turns.begin("ada")
    leaves, stays = (asyncio.create_task(turns.begin("ada")) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.wait([leaves])
    first.end()
    (await stays).end()
    assert not turns._lines


async def test_a_transfer_takes_nobodys_turn() -> None:
    turns = Turns(LimitSettings(requests_at_once=1, transfers=1))
    download = await turns.begin("ada")
    download.transfer()
    download.transfer()
    second = await turns.begin("ada")
    with pytest.raises(TooMany, match=r"limits\.transfers"):
        second.transfer()
    second.end()
    download.end()
    third = await turns.begin("ada")
    third.transfer()
    third.end()
    assert not turns._lines
    assert not turns._transfers


async def test_passwords_beyond_those_that_may_wait_are_refused(tmp_path: Path) -> None:
    limits = LimitSettings(passwords_waiting=1, login_failure_burst=1000)
    world = await open_world(tmp_path, limits=limits)
    try:
        await check_passwords(world)
    finally:
        await close_world(world)


async def check_passwords(world: World) -> None:
    body = {"authMethod": "password", "user": {"name": "alice", "password": "wrong"}}
    answers = await together(*(world.call("POST", "/auth/tokens", body, as_=None) for _ in range(50)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {401, 503}
    refused = next(answer for answer in answers if answer.status == 503)
    assert (await refused.json())["errorCode"] == ""
    assert int(refused.headers["Retry-After"]) >= 1
