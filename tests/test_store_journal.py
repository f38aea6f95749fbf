"""Events and the rows that they tell of: numbers without gaps, whatever is written by one statement."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete
from sqlalchemy.exc import NoResultFound
from sqlmodel import Session, col, select

from broker.store import Store, Tx, checks
from broker.tables import Counter, Event, Purse, Tenant
from tests.store_fixtures import one_batch, store

__all__ = ["store"]

pytestmark = pytest.mark.both_databases


def making(tx: Tx, /, name: str, *events: str, **more: Any) -> None:
    """A row and events, in one piece."""
    for event in events:
        tx.event(event, tenant=name, **more)
    tx.flush((Tenant, [{"id": name}]))


async def written(store: Store) -> tuple[list[str], list[str]]:
    """The tenants beside the first one and the kinds of events, by number; numbers have no gap, and the
    counter stands at the last."""

    def read(session: Session) -> tuple[list[str], list[str]]:
        tenants = session.exec(select(Tenant.id).where(Tenant.id != "default").order_by(col(Tenant.id))).all()
        events = session.exec(select(Event).order_by(col(Event.seq))).all()
        last = session.exec(select(Counter.value).where(Counter.name == "events")).one()
        assert [event.seq for event in events] == list(range(1, last + 1))
        return list(tenants), [event.kind for event in events]

    return await store.read(read)


async def test_rows_and_their_events_are_written_in_one_piece(store: Store) -> None:
    await store.write(making, "a", "one", "two")
    await store.write(making, "b", "three")
    assert await written(store) == (["a", "b"], ["one", "two", "three"])


@pytest.mark.parametrize("more", [{"data": {"deep": [[{}]]}}, {"actor": "🙂"}, {"actor": "\x7f%s%%"}])
async def test_events_that_go_by_another_way_are_numbered_like_the_others(
    store: Store, more: dict[str, Any]
) -> None:
    def op(tx: Tx) -> None:
        tx.event("plain", tenant="a")
        making(tx, "a", "odd", **more)
        tx.event("last")

    await store.write(op)
    await store.write(making, "b", "then")
    assert await written(store) == (["a", "b"], ["plain", "odd", "last", "then"])

    def odd(session: Session) -> Event:
        return session.exec(select(Event).where(Event.kind == "odd")).one()

    found = await store.read(odd)
    assert more.items() <= found.model_dump().items()


async def test_rows_come_after_what_waits_in_the_session(store: Store) -> None:
    def op(tx: Tx) -> None:
        tx.session.add(Tenant(id="a"))
        tx.flush((Purse, [{"tenant_id": "a", "per_month": False}]))

    await store.write(op)
    assert await written(store) == (["a"], [])


@pytest.mark.parametrize("data", [{}, {"more": 1}])
async def test_without_its_counter_nothing_is_written(store: Store, data: dict[str, Any]) -> None:
    await store.write(lambda tx: tx.session.exec(delete(Counter)))
    with pytest.raises(NoResultFound):
        await store.write(making, "a", "one", data=data)
    assert await store.read(lambda session: session.get(Tenant, "a")) is None
    assert [each.id for each in await store.read(checks.check, store.clock())] == ["events-misnumbered"]


async def test_pieces_of_one_transaction_follow_each_other(store: Store) -> None:
    def op(tx: Tx) -> None:
        making(tx, "a", "one")
        making(tx, "b", "two", "three")
        making(tx, "c")
        tx.event("four")

    await store.write(op)
    assert await written(store) == (["a", "b", "c"], ["one", "two", "three", "four"])


async def test_a_piece_of_a_write_that_fails_leaves_neither_row_nor_gap(store: Store) -> None:
    def failing(tx: Tx) -> None:
        making(tx, "b", "lost", "lost")
        tx.wake("in vain")
        raise RuntimeError("a defect")

    kept = [lambda tx: making(tx, "a", "one"), failing, lambda tx: making(tx, "c", "two")]
    _, error, _ = await one_batch(store, *kept)
    assert isinstance(error, RuntimeError)
    assert await written(store) == (["a", "c"], ["one", "two"])
    assert not store.wakeup("in vain").is_set()
