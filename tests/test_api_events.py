"""Server-sent events: who sees what, what was missed, slow clients, ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientResponse

from broker.api import events
from broker.api.context import STOPPING
from broker.api.events import FEED
from broker.config import LimitSettings
from broker.core.events import SeenRunning
from broker.store import audit
from broker.store.writer import Tx
from tests.api_fixtures import START_MS, World, close_world, open_world, token_of, until, world

__all__ = ["world"]


@dataclass
class Listener:
    """What came over one stream, read as browsers read it."""

    response: ClientResponse
    events: list[dict[str, Any]] = field(default_factory=list)
    last: tuple[str, dict[str, Any]] | None = None
    comments: int = 0
    ended: bool = False

    async def read(self) -> None:
        fields: dict[str, str] = {}
        async for line in self.response.content:
            text = line.decode().rstrip("\n")
            if text:
                name, _, value = text.partition(": ")
                fields[name] = value
                self.comments += name == ":" or text.startswith(":")
            elif "data" in fields:
                document = json.loads(fields["data"])
                if "event" in fields:
                    self.last = fields["event"], document
                else:
                    assert int(fields["id"]) == document["id"]
                    self.events.append(document)
                fields = {}
        self.ended = True

    def kinds(self) -> list[str]:
        return [each["kind"] for each in self.events]

    def ids(self) -> list[int]:
        return [each["id"] for each in self.events]


@asynccontextmanager
async def listening(world: World, name: str = "alice", after: int | None = None) -> AsyncIterator[Listener]:
    headers = {"X-Auth-Token": token_of(name)}
    if after is not None:
        headers["Last-Event-ID"] = str(after)
    response = await world.client.get("/broker/v1/events", headers=headers)
    assert response.status == 200, await response.text()
    listener = Listener(response)
    task = asyncio.create_task(listener.read())
    try:
        yield listener
    finally:
        task.cancel()
        response.close()


async def came(condition: Callable[[], bool]) -> None:
    async def check() -> bool:
        return condition()

    await until(check)


async def newest(world: World) -> int:
    return await world.store.read(audit.newest)


def tell_much(tx: Tx) -> None:
    """An event that fills a good part of a client's pipe."""
    tx.event("center.call", center="sz-1", actor="root", data={"text": "x" * 200_000})


async def test_a_user_sees_what_happens_to_the_own_jobs(world: World) -> None:
    async with listening(world) as alice, listening(world, "eve") as eve:
        assert alice.response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        await world.create("foreign", as_="bob")
        job = await world.create("own")
        run = await world.run_job(job, SeenRunning(START_MS))
        await world.ok("POST", "/broker/v1/accounts/alice/grant", {"right": "vip"}, as_="root")
        foreign = await world.create("eves", as_="eve")
        await came(lambda: "run.changed" in alice.kinds() and bool(eve.events))
        assert {each["jobId"] for each in alice.events} == {job}
        assert {each["jobId"] for each in eve.events} == {foreign}
        first = alice.events[0]
        assert first == {
            "id": first["id"],
            "time": "2025-03-01 10:00:00",
            "timeMs": START_MS,
            "kind": "job.created",
            "actor": "alice",
            "apiKey": "",
            "jobId": job,
            "taskId": "",
            "centerId": "",
            "data": {},
        }
        assert run in {each["taskId"] for each in alice.events}


async def test_a_tenant_admin_sees_the_tenants_and_an_operator_all(world: World) -> None:
    async with listening(world, "carol") as carol, listening(world, "root") as root:
        await world.create("one")
        await world.ok("POST", "/broker/v1/accounts/bob/freeze", as_="root")
        await world.create("foreign", as_="eve")
        await world.ok("POST", "/broker/v1/centers/sz-1/drain", as_="root")
        await came(lambda: "center.state" in root.kinds())
        assert root.kinds() == ["job.created", "account.frozen", "job.created", "center.state"]
        assert carol.kinds() == ["job.created", "account.frozen"]


async def test_what_was_missed_comes_first_and_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PAGE", 3)
    before = await newest(world)
    jobs = [await world.create(f"missed-{each}") for each in range(10)]
    await world.create("foreign", as_="bob")
    async with listening(world, after=before) as alice:
        jobs += [await world.create(f"new-{each}") for each in range(5)]
        await came(lambda: len(alice.events) >= 15)
        assert [each["jobId"] for each in alice.events] == jobs
        assert alice.ids() == sorted(set(alice.ids()))
        middle = alice.ids()[6]
    async with listening(world, after=middle) as again:
        await came(lambda: len(again.events) >= 8)
        assert [each["jobId"] for each in again.events] == jobs[7:]


async def test_without_a_number_a_stream_begins_now(world: World) -> None:
    await world.create("before")
    async with listening(world) as alice:
        job = await world.create("after")
        await came(lambda: bool(alice.events))
        assert [each["jobId"] for each in alice.events] == [job]


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "", "9" * 19, "999999999"])
async def test_a_number_that_cannot_be_is_refused(world: World, given: str) -> None:
    answer = await world.refused("GET", "/broker/v1/events", headers={"Last-Event-ID": given})
    assert answer[:2] == (400, "0202")
    assert answer[2].startswith("Last-Event-ID: ")


async def test_no_query_is_understood(world: World) -> None:
    assert (await world.refused("GET", "/broker/v1/events?kind=job"))[:2] == (400, "0202")


async def test_a_shutdown_ends_streams_with_a_word(world: World) -> None:
    async with listening(world) as alice, listening(world, "bob") as bob:
        await world.create()
        await came(lambda: bool(alice.events))
        world.client.app[STOPPING].set()
        await came(lambda: alice.ended and bob.ended)
        reason = {"reason": "the broker shuts down", "lastEventId": alice.ids()[-1]}
        assert alice.last == ("end", reason)
        assert bob.last is not None


async def test_a_token_that_ends_ends_its_streams(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.05)
    async with listening(world) as alice, listening(world, "bob") as bob:
        await came(lambda: bob.comments > 0)
        await world.ok("POST", "/broker/v1/accounts/alice/freeze", as_="root")
        await came(lambda: alice.ended)
        assert alice.last is not None
        assert alice.last[0] == "end"
        assert "token" in alice.last[1]["reason"]
        assert not bob.ended


async def test_a_client_that_reads_too_slowly_is_told_and_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer fills while the client's pipe is full; what did not fit is in the store."""
    monkeypatch.setattr(events, "BUFFER", 5)
    before = await newest(world)
    written = 0

    response = await world.client.get("/broker/v1/events", headers={"X-Auth-Token": token_of("root")})

    async def overflowed() -> bool:
        nonlocal written
        await world.sql(tell_much)
        written += 1
        return any(each.overflowed for each in world.client.app[FEED]._streams)

    await until(overflowed)
    slow = Listener(response)
    await slow.read()
    assert slow.last is not None
    kind, last = slow.last
    assert kind == "dropped"
    assert "read faster" in last["reason"]
    assert last["lastEventId"] == slow.ids()[-1]
    assert len(slow.events) < written

    monkeypatch.setattr(events, "BUFFER", 10_000)
    async with listening(world, "root", after=slow.ids()[-1]) as again:
        await came(lambda: len(slow.events) + len(again.events) >= written)
        assert slow.ids() + again.ids() == list(range(before + 1, before + written + 1))


async def test_a_client_that_takes_nothing_is_cut(tmp_path: Path) -> None:
    world = await open_world(tmp_path, limits=LimitSettings(stalled_s=1))
    try:
        response = await world.client.get("/broker/v1/events", headers={"X-Auth-Token": token_of("root")})

        async def cut() -> bool:
            await world.sql(tell_much)
            return not world.client.app[FEED]._streams

        await until(cut)
        stalled = Listener(response)
        with pytest.raises(ClientPayloadError):
            await stalled.read()
        assert (stalled.ended, stalled.last) == (False, None), "no last word: nothing was taken any more"
        async with listening(world, "root", after=stalled.ids()[-1]) as again:
            await came(lambda: bool(again.events))
            assert again.ids()[0] == stalled.ids()[-1] + 1
    finally:
        await close_world(world)


async def test_streams_of_an_account_are_counted(tmp_path: Path) -> None:
    world = await open_world(tmp_path, limits=LimitSettings(event_streams=2))
    try:
        async with listening(world), listening(world):
            answer = await world.call("GET", "/broker/v1/events")
            assert (answer.status, (await answer.json())["errorCode"]) == (429, "")
            assert "Retry-After" in answer.headers
            async with listening(world, "bob"):
                pass

        async def all_left() -> bool:
            await world.create(f"wakes-{await newest(world)}")
            await world.create(f"wakes-{await newest(world)}", as_="bob")
            return not world.client.app[FEED]._streams

        await until(all_left)
        assert world.client.app[FEED]._reader is None
        async with listening(world), listening(world):
            pass
    finally:
        await close_world(world)


async def test_many_streams_share_one_reader(world: World) -> None:
    async with listening(world), listening(world, "bob"), listening(world, "root"), listening(world, "eve"):
        readers = {
            task
            for task in asyncio.all_tasks()
            if "Feed._read" in getattr(task.get_coro(), "__qualname__", "")
        }
        assert len(readers) == 1
