"""What is PostgreSQL's alone: several writers, notices between daemons, a server that goes away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import col, select

from broker.store import LostLease, Store, StoreUnavailable, Tx, accounts, lease, writer
from broker.store import store as store_module
from broker.store.journal import EVENTS
from broker.tables import Event, Setting
from tests import postgres
from tests.databases import database

pytestmark = pytest.mark.on_postgresql

PATIENCE_S = 60


async def opened(folder: Path, stack: AsyncExitStack, *, empty: bool = False) -> Store:
    store = Store(database(folder, empty=empty))
    store.wakeup("listening")  # before it listens: only who waits is woken
    await store.open()
    stack.push_async_callback(store.close)
    return store


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    """The stores of two daemons on one database, both listening."""
    async with AsyncExitStack() as stack:
        stores = await opened(tmp_path, stack), await opened(tmp_path, stack)
        for store in stores:
            await listening(store)
        yield stores


async def listening(store: Store) -> None:
    """Wait until the store listens: then it wakes everybody, because it may have missed something."""
    await woken(store, "listening")


async def woken(store: Store, name: str) -> None:
    await asyncio.wait_for(store.wakeup(name).wait(), PATIENCE_S)
    store.wakeup(name).clear()


def waking(*names: str) -> Any:
    return lambda tx: tx.wake(*names)


@pytest.mark.parametrize(
    "events", [[], [{}], [{}, {"data": {"why": "ü"}}]], ids=["none", "plain", "of all kinds"]
)
async def test_a_commit_wakes_the_loops_and_streams_of_other_daemons(
    pair: tuple[Store, Store], events: list[dict[str, Any]]
) -> None:
    one, other = pair
    names = ["cycle", "track:" + "a" * 3000, "track:" + "b" * 3000]

    def op(tx: Tx) -> None:
        for event in events:
            tx.event("something", **event)
        tx.wake(*names)

    await one.write(op)
    for name in (*names, *([EVENTS] if events else ())):
        await woken(other, name)


async def test_what_is_woken_after_rows_were_written_is_woken_too(pair: tuple[Store, Store]) -> None:
    one, other = pair

    def op(tx: Tx) -> None:
        tx.event("something")
        tx.wake("early")
        tx.flush()
        tx.wake("late")

    await one.write(op)
    for name in ("early", EVENTS, "late"):
        await woken(other, name)


async def test_a_store_is_not_woken_twice_by_its_own_commit(pair: tuple[Store, Store]) -> None:
    one, other = pair
    await one.write(waking("cycle"))
    await woken(one, "cycle")
    await other.write(waking("later"))  # comes after the notice of the commit above
    await woken(one, "later")
    assert not one.wakeup("cycle").is_set()


async def test_a_listener_that_was_cut_off_wakes_everybody_and_listens_again(
    pair: tuple[Store, Store],
) -> None:
    one, other = pair
    waits = other.wakeup("cycle")
    assert not waits.is_set()
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    await one.read(lambda session: session.execute(text(cut)).all())
    await woken(other, "cycle")  # nobody asked for it: what came meanwhile is not known
    await one.write(waking("dispatch"))
    await woken(other, "dispatch")


async def test_writers_of_several_daemons_lose_no_update_without_row_locks(pair: tuple[Store, Store]) -> None:
    def increment(tx: Tx) -> None:
        row = tx.session.exec(select(Setting).where(Setting.name == "n")).one()
        row.value = str(int(row.value) + 1)
        tx.session.add(row)
        tx.event("incremented")

    await pair[0].write(accounts.setting, "n", "0")

    async def some(store: Store) -> None:
        for _ in range(30):
            await store.write(increment)

    await asyncio.gather(*(some(store) for store in pair for _ in range(2)))
    assert await pair[0].write(accounts.setting, "n", "") == "120"
    numbers = await pair[1].read(
        lambda session: session.exec(select(Event.seq).order_by(col(Event.seq))).all()
    )
    assert numbers == list(range(1, 121))


async def test_a_leader_that_is_stopped_in_a_write_keeps_nobody_waiting_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "IDLE_S", 1)
    begun, wakes = threading.Event(), threading.Event()
    async with AsyncExitStack() as stack:
        stopped, other = await opened(tmp_path, stack), await opened(tmp_path, stack)
        epoch = await stopped.write(lease.acquire, "one", 0.1)
        assert epoch is not None

        def write(tx: Tx) -> None:
            tx.fence(epoch)
            begun.set()
            assert wakes.wait(PATIENCE_S)
            tx.event("late")

        late = asyncio.ensure_future(stopped.write(write))
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        assert await other.write(lease.acquire, "other", 15) == epoch + 1
        wakes.set()
        with pytest.raises((LostLease, StoreUnavailable)):
            await late
        kinds = await other.read(lambda session: session.exec(select(Event.kind)).all())
        assert kinds == ["lease.acquired"] * 2


async def test_a_lease_ends_by_the_clock_of_the_database(tmp_path: Path) -> None:
    """Whatever the clocks of its daemons say."""
    async with AsyncExitStack() as stack:
        one = Store(database(tmp_path), clock=lambda: 0)
        other = Store(database(tmp_path), clock=lambda: 2**50)
        for store in (one, other):
            await store.open()
            stack.push_async_callback(store.close)
        assert await one.write(lease.acquire, "one", 3600) == 1
        assert await other.write(lease.acquire, "other", 3600) is None
        held = await other.read(lease.held, 2**50)
        assert held.holder == "one"
        assert 0 < held.left_ms <= 3_600_000
        await one.write(lease.renew, "one", 1, 0)
        assert await other.write(lease.acquire, "other", 3600) == 2
        with pytest.raises(LostLease):
            await one.write(lease.renew, "one", 1, 3600)


async def test_a_server_that_goes_away_and_comes_back(pair: tuple[Store, Store]) -> None:
    one, other = pair
    server = postgres.server()
    server.stop()
    try:
        with pytest.raises(StoreUnavailable):
            await one.write(waking("cycle"))
        with pytest.raises(StoreUnavailable):
            await one.read(accounts.count_accounts)
    finally:
        server.start()
    other.wakeup("cycle").clear()
    await woken(other, "cycle")  # it listens again
    await one.write(waking("dispatch"))
    await woken(other, "dispatch")


async def test_a_connection_that_was_cut_between_two_writes_is_made_again(
    pair: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "KEPT_S", PATIENCE_S)
    one, other = pair
    await one.write(accounts.setting, "n", "1")
    cut = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query NOT LIKE 'LISTEN%'"
    )
    await other.read(lambda session: session.connection().execute(text(cut)).all())
    with pytest.raises(StoreUnavailable, match="refused the transaction"):
        await one.write(accounts.setting, "n", "2")
    assert await one.write(accounts.setting, "n", "3") == "1"


async def test_daemons_that_start_together_make_the_schema_once(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        stores = await asyncio.gather(*(opened(tmp_path, stack, empty=True) for _ in range(3)))
        await stores[0].write(accounts.setting, "n", "1")
        assert await stores[2].write(accounts.setting, "n", "") == "1"


async def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="does not exist"):
        await Store(postgres.server().url("nowhere")).open()


async def test_a_password_in_the_url_is_not_shown() -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await Store("postgresql://someone:secret@/nowhere?host=/nowhere").open()
    assert "someone:***@" in str(caught.value)
    assert "secret" not in str(caught.value)
