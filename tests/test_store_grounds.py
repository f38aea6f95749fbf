"""What creates are judged by, read by one statement: it is what the other ways of reading it say too."""

from __future__ import annotations

from typing import Any

import pytest
from sqlmodel import Session, col, select

from broker.store import Tx, centers
from broker.store.grounds import Grounds, grounds
from broker.tables import Center, Pool
from tests.api_fixtures import World, create_body, world

__all__ = ["world"]

pytestmark = pytest.mark.both_databases


async def asked(world: World, **wanted: Any) -> Grounds:
    def read(session: Session) -> Grounds:
        return grounds(session.connection(), **{"images": (), "names": (), "keys": (), **wanted})

    return await world.store.read(read)


async def listed(world: World) -> list[centers.CenterView]:
    return await world.store.read(lambda session: centers.list_centers(session, counts=False))


async def test_centers_are_those_that_are_listed(world: World) -> None:
    found = (await asked(world)).centers
    assert any(center.pools for center in found)
    assert list(found) == await listed(world)


async def test_whatever_a_center_says_of_itself(world: World) -> None:
    def odd(tx: Tx) -> None:
        row = tx.session.exec(select(Center).order_by(Center.id)).first()
        assert row is not None
        row.name, row.desc, row.error = '"{[杭州]}\\', "a\n\tb\x1f", "😀 ' %s ?"
        row.quarantined = [["gpu-9", 'it\'s "100%"']]
        row.queue_length = None
        tx.session.add(row)
        pool = tx.session.exec(select(Pool).order_by(Pool.id)).first()
        assert pool is not None
        pool.prices = [{**price, "micro_per_hour": 2**53 + 1} for price in pool.prices]
        tx.session.add(pool)

    await world.store.write(odd)
    assert list((await asked(world)).centers) == await listed(world)


async def test_a_change_is_seen_at_once_and_what_did_not_change_is_not_understood_anew(world: World) -> None:
    before = (await asked(world)).centers
    assert (await asked(world)).centers is before

    def larger(tx: Tx) -> None:
        for row in tx.session.exec(select(Pool)).all():
            row.nodes += 1
            tx.session.add(row)

    await world.store.write(larger)
    after = (await asked(world)).centers
    assert list(after) == await listed(world) != list(before)


async def test_a_center_that_is_archived_is_not_known(world: World) -> None:
    def archive(tx: Tx) -> None:
        for row in tx.session.exec(select(Center).where(col(Center.id) == "hz")).all():
            row.archived_ms = tx.now_ms
            tx.session.add(row)

    await world.store.write(archive)
    found = (await asked(world)).centers
    assert found
    assert "hz" not in [center.id for center in found]


async def test_images_names_and_keys(world: World) -> None:
    account = world.accounts["alice"].id
    body = create_body("b")
    headers = {"Idempotency-Key": 'k"1'}
    job = (await world.ok("POST", "/trainjob", json=body, headers=headers))["metadata"]["id"]
    other = await world.create("a")
    found = await asked(
        world,
        images=["pytorch-2.3", "none"],
        names=[(account, "a"), (account, "none"), (account, "b"), ("none", "a")],
        keys=[(account, "none"), (account, 'k"1')],
    )
    assert found.places == {"pytorch-2.3": {"gz-2"}}
    assert found.named == [other, None, job, None]
    assert found.keyed == [None, job]


async def test_a_name_is_free_again_when_its_job_is_deleted(world: World) -> None:
    account = world.accounts["alice"].id
    job = await world.create("a")
    await world.ok("POST", f"/trainjob/{job}/stop")
    assert (await asked(world, names=[(account, "a")])).named == [job]
    await world.call("DELETE", f"/trainjob/{job}")
    assert (await asked(world, names=[(account, "a")])).named == [None]
