"""The writer: many writes in few transactions, each write with its own fate, events without gaps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, col, select

from broker.core.model import Role
from broker.store import LostLease, Rejected, Store, StoreUnavailable, Tx, accounts, lease
from broker.tables import Counter, Event, Setting, Tenant
from tests.databases import database
from tests.store_fixtures import Gate, one_batch, store

__all__ = ["store"]

pytestmark = pytest.mark.both_databases


class Declined(Rejected):
    pass


def engine_of(store: Store) -> Engine:
    return store._write_engine


def tenant(name: str) -> Any:
    def op(tx: Tx) -> str:
        tx.session.add(Tenant(id=name))
        tx.event("made", data={"name": name})
        return name

    return op


def declined(tx: Tx) -> None:
    raise Declined("not this one")


def broken(tx: Tx) -> None:
    tx.session.add(Tenant(id="half done"))
    tx.session.flush()
    tx.event("half done")
    raise ZeroDivisionError


def unreadable(tx: Tx) -> None:
    tx.session.add(Tenant(id="unreadable"))
    tx.event("made", data={"name": object()})


def names(session: Session) -> list[str]:
    return list(session.exec(select(Tenant.id).order_by(Tenant.id)).all())


def events(session: Session) -> list[tuple[int, str]]:
    rows = session.exec(select(Event).order_by(col(Event.seq))).all()
    return [(row.seq, row.data.get("name", row.kind)) for row in rows]


async def test_writes_that_wait_share_a_transaction(store: Store) -> None:
    commits: list[Any] = []
    event.listen(engine_of(store), "commit", commits.append)
    written = await one_batch(store, *(tenant(f"t{i:03}") for i in range(200)))
    assert written == [f"t{i:03}" for i in range(200)]
    assert len(commits) == 1
    assert len(await store.read(names)) == 200


async def test_a_refusal_undoes_nothing_of_the_others(store: Store) -> None:
    commits: list[Any] = []
    event.listen(engine_of(store), "commit", commits.append)
    one, no, other = await one_batch(store, tenant("a"), declined, tenant("b"))
    assert (one, other) == ("a", "b")
    assert isinstance(no, Declined)
    assert await store.read(names) == ["a", "b"]
    assert len(commits) == 1


@pytest.mark.parametrize("bad", [broken, unreadable])
async def test_a_defect_fails_its_own_write_only(store: Store, bad: Any) -> None:
    one, failed, other = await one_batch(store, tenant("a"), bad, tenant("b"))
    assert (one, other) == ("a", "b")
    assert isinstance(failed, Exception)
    assert await store.read(names) == ["a", "b"]
    assert [name for _, name in await store.read(events)] == ["a", "b"]
    assert await store.write(tenant("c")) == "c"  # and the writer lives on


async def test_a_conflict_stays_with_its_own_row(store: Store) -> None:
    outcomes = await one_batch(store, tenant("a"), tenant("same"), tenant("same"), tenant("b"))
    assert [o for o in outcomes if not isinstance(o, Exception)] == ["a", "same", "b"]
    assert await store.read(names) == ["a", "b", "same"]


async def test_what_is_asked_for_together_is_one_write_with_an_answer_for_each(store: Store) -> None:
    seen: list[list[str]] = []

    def made(tx: Tx, items: Sequence[str]) -> list[str | Rejected]:
        seen.append(list(items))
        for item in items:
            tx.event("made", data={"name": item})
        return [Declined(item) if item == "no" else item for item in items]

    gate = Gate(store)
    await gate.shut()
    asked = [asyncio.ensure_future(store.write_together(made, item)) for item in ("a", "no", "b")]
    await asyncio.sleep(0)
    asked[2].cancel()  # whoever leaves undoes nothing
    await gate.open()
    one, no, left = await asyncio.gather(*asked, return_exceptions=True)
    assert one == "a"
    assert isinstance(no, Declined)
    assert isinstance(left, asyncio.CancelledError)
    assert seen == [["a", "no", "b"]]
    assert [name for _, name in await store.read(events)] == ["a", "no", "b"]


async def test_of_what_is_asked_for_together_a_defect_fails_its_own_only(store: Store) -> None:
    def made(tx: Tx, items: Sequence[str]) -> list[str | Rejected]:
        for item in items:
            tx.session.add(Tenant(id=item))
            tx.session.flush()
        return list(items)

    gate = Gate(store)
    await gate.shut()
    asked = [asyncio.ensure_future(store.write_together(made, item)) for item in ("a", "same", "same", "b")]
    await asyncio.sleep(0)
    await gate.open()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [o for o in outcomes if not isinstance(o, Exception)] == ["a", "same", "b"]
    assert await store.read(names) == ["a", "b", "same"]


@pytest.mark.parametrize("odd", ["\0", "\ud800", "\\u0000", "a 'b' 作业"])
async def test_an_event_may_say_anything(store: Store, odd: str) -> None:
    await store.write(lambda tx: tx.event("made", data={"name": odd}))
    assert await store.read(events) == [(1, odd)]


async def test_event_numbers_have_no_gaps_and_follow_the_commits(store: Store) -> None:
    finished: list[str] = []

    async def write(name: str, op: Any) -> None:
        try:
            await store.write(op)
            finished.append(name)
        except (Rejected, ZeroDivisionError):
            pass

    ops = [
        (f"e{i}", broken if i % 7 == 3 else declined if i % 5 == 2 else tenant(f"e{i}")) for i in range(150)
    ]
    await asyncio.gather(*(write(name, op) for name, op in ops))
    recorded = await store.read(events)
    assert [seq for seq, _ in recorded] == list(range(1, len(recorded) + 1))
    assert [name for _, name in recorded] == finished
    counted = await store.read(lambda session: session.get_one(Counter, "events").value)
    assert counted == len(recorded)


async def test_no_increment_is_lost(store: Store) -> None:
    def increment(tx: Tx) -> None:
        row = tx.session.get(Setting, "n") or Setting(name="n", value="0")
        row.value = str(int(row.value) + 1)
        tx.session.add(row)

    async def some() -> None:
        for _ in range(25):
            await store.write(increment)

    await asyncio.gather(*(some() for _ in range(8)))
    assert await store.write(accounts.setting, "n", "") == "200"


async def test_two_processes_lose_no_increment(tmp_path: Path, store: Store) -> None:
    other = Store(database(tmp_path))
    await other.open()

    def increment(tx: Tx) -> None:
        row = tx.session.get(Setting, "n", with_for_update=True)
        assert row is not None
        row.value = str(int(row.value) + 1)
        tx.session.add(row)

    await store.write(accounts.setting, "n", "0")

    async def some(which: Store) -> None:
        for _ in range(50):
            await which.write(increment)

    await asyncio.gather(some(store), some(other))
    await other.close()
    assert await store.write(accounts.setting, "n", "") == "100"


async def test_what_was_answered_is_there_after_reopening(tmp_path: Path) -> None:
    first = Store(database(tmp_path))
    await first.open()
    await first.write(tenant("kept"))
    await first.close()
    second = Store(database(tmp_path))
    await second.open()
    assert await second.read(names) == ["kept"]
    await second.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await second.write(tenant("late"))


async def test_a_caller_that_goes_away_undoes_nothing(store: Store) -> None:
    gate = Gate(store)
    await gate.shut()
    task = asyncio.ensure_future(store.write(tenant("a")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await gate.open()
    await store.write(tenant("b"))
    assert await store.read(names) == ["a", "b"]


async def test_a_database_that_refuses_fails_the_batch_and_the_next_one_works(store: Store) -> None:
    engine = engine_of(store)

    def refuse(connection: Any) -> None:
        raise OperationalError("COMMIT", {}, OSError("disk full"))

    event.listen(engine, "commit", refuse)
    outcomes = await one_batch(store, tenant("a"), declined)
    event.remove(engine, "commit", refuse)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert "disk full" in str(outcomes[0])
    assert await store.write(tenant("b")) == "b"
    assert await store.read(names) == ["b"]


async def test_loops_are_woken_after_the_commit_and_not_by_what_failed(store: Store) -> None:
    def wakes(tx: Tx) -> None:
        tx.wake("cycle")

    def wakes_and_breaks(tx: Tx) -> None:
        tx.wake("dispatch")
        raise ZeroDivisionError

    await one_batch(store, wakes, wakes_and_breaks)
    await asyncio.wait_for(store.wakeup("cycle").wait(), 5)
    assert not store.wakeup("dispatch").is_set()


async def test_a_lease_taken_in_the_same_batch_fences_what_follows(store: Store) -> None:
    def fenced(epoch: int) -> Any:
        return lambda tx: tx.fence(epoch)

    epoch = await store.write(lease.acquire, "one", 15)
    assert epoch is not None
    before, taken, late, new = await one_batch(
        store,
        fenced(epoch),
        lambda tx: lease.acquire(tx, "two", 15, alone=True),
        fenced(epoch),
        fenced(epoch + 1),
    )
    assert before is None
    assert taken == epoch + 1
    assert isinstance(late, LostLease)
    assert new is None


async def test_a_read_sees_the_last_write(store: Store) -> None:
    await store.write(accounts.add_account, name="alice", tenant="lab", role=Role.USER, password_hash="x")
    assert await store.read(accounts.count_accounts) == 1
    with pytest.raises(StoreUnavailable, match="refused a read"):
        await store.read(lambda session: session.execute(text("SELECT nothing FROM nowhere")))
