"""The lease, centers and their inventories, accounts, data sets, retention, and the schema's versions."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlmodel import SQLModel, select

from broker.adapter import CopyRef, CopySighting, CopyState, Image, Inventory, PoolReport
from broker.core.events import Accepted, SeenSucceeded
from broker.core.model import (
    Accuracy,
    CenterId,
    CenterState,
    FreeNodes,
    Health,
    NodeShape,
    Price,
    RemoteId,
    Role,
    RunId,
)
from broker.store import (
    LostLease,
    Store,
    StoreUnavailable,
    Tx,
    accounts,
    centers,
    copies,
    datasets,
    lease,
    retention,
    runs,
)
from broker.store.accounts import NameInUse, NoSuchAccount
from broker.store.centers import AdapterChanged, CenterEntry, NoSuchCenter
from broker.store.copies import RETRY_S
from broker.store.datasets import NewDataset
from broker.store.schema import SchemaTooNew, configuration
from broker.tables import Center, Copy, Event, Idempotency, Pool, Run, Token
from tests.builders import node
from tests.databases import database
from tests.harness import Harness, center, harness
from tests.test_store_jobs import new_job

pytestmark = pytest.mark.both_databases

A, B = CenterId("a"), CenterId("b")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Harness]:
    async with harness(tmp_path, center("a"), center("b")) as broker:
        yield broker


# ---------------------------------------------------------------- lease


@pytest.mark.sqlite_only("moves this host's clock; PostgreSQL's own counts: test_store_postgresql.py")
async def test_one_leads_at_a_time(broker: Harness) -> None:
    epoch = broker.lease.epoch
    take = broker.store.write
    assert await take(lease.acquire, "other", 15) is None
    broker.clock.now_ms += 14_999
    assert await take(lease.acquire, "other", 15) is None
    broker.clock.now_ms += 1
    assert await take(lease.acquire, "other", 15) == epoch + 1
    with pytest.raises(LostLease, match=f"epoch {epoch} of test-1 no longer leads"):
        await broker.lease.renew()
    with pytest.raises(LostLease, match="has run out"):
        broker.lease.check()
    await broker.lease.release()  # not ours any more: changes nothing
    assert not await broker.lease.acquire(alone=False)
    assert await broker.lease.acquire(alone=True)  # a file lock proves that the other is dead
    await broker.lease.renew()
    broker.lease.check()


async def test_a_released_lease_is_free_at_once(broker: Harness) -> None:
    await broker.lease.release()
    assert await broker.store.write(lease.acquire, "other", 15) == broker.lease.epoch + 1


async def test_renewing_holds_it_longer(broker: Harness) -> None:
    for _ in range(5):
        broker.clock.now_ms += 10_000
        await broker.lease.renew()
        assert await broker.store.write(lease.acquire, "other", 15) is None
        assert broker.lease.left_s() == 15


# ---------------------------------------------------------------- centers


def entry(id: str, **changes: Any) -> CenterEntry:
    facts: dict[str, Any] = {"province": "", "city": "", "desc": "", "adapter": "fake", "account": "fake"}
    facts |= {"state": CenterState.ACTIVE, "max_in_flight": 32, "name": id}
    return CenterEntry(id=CenterId(id), **{**facts, **changes})


async def state_of(broker: Harness, id: str) -> str:
    (row,) = await broker.rows(Center, id=id)
    return centers.effective_state(row).value


async def test_a_center_gone_from_the_file_drains_and_is_archived_when_nothing_lives(broker: Harness) -> None:
    run = await running_at_a(broker)
    await broker.store.write(centers.configure, [entry("b")])
    assert await state_of(broker, "a") == "drain"
    assert [c.id for c in await broker.store.read(centers.list_centers)] == ["a", "b"]
    await advance(broker, run, SeenSucceeded(broker.clock()))
    await broker.gather()
    await broker.store.write(centers.configure, [entry("b")])
    assert [c.id for c in await broker.store.read(centers.list_centers)] == ["b"]
    assert [p.center_id for p in await broker.rows(Pool)] == ["b"]
    with pytest.raises(NoSuchCenter):
        await broker.drain_center("a")
    await broker.store.write(centers.configure, [entry("a"), entry("b")])
    assert [c.id for c in await broker.store.read(centers.list_centers)] == ["a", "b"]
    assert await state_of(broker, "a") == "active"


async def running_at_a(broker: Harness) -> RunId:
    """A run that lives at center `a`, whatever a planner would say."""

    def put(tx: Tx, job: str) -> RunId:
        run = tx.session.exec(select(Run).where(Run.job_id == job)).one()
        run.center_id, run.state = "a", "SUBMITTING"
        tx.session.add(run)
        return RunId(run.id)

    run = await broker.store.write(put, await broker.submit())
    await advance(broker, run, Accepted(broker.clock(), RemoteId("r")))
    return run


async def advance(broker: Harness, run: RunId, event: Any) -> None:
    await broker.store.write(runs.advance, run, event, epoch=broker.lease.epoch)


async def test_an_account_cannot_change_under_live_runs_and_a_refusal_changes_nothing(
    broker: Harness,
) -> None:
    await running_at_a(broker)
    before = await broker.rows(Center)
    changed = [entry("b", name="new name"), entry("a", account="another")]
    with pytest.raises(AdapterChanged, match="'a' has live runs under 'fake'"):
        await broker.store.write(centers.configure, changed)
    assert await broker.rows(Center) == before
    await broker.store.write(centers.configure, [entry("a"), entry("b", account="another")])


@pytest.mark.parametrize("file", CenterState)
@pytest.mark.parametrize("command", [None, *CenterState])
async def test_the_more_restrictive_word_wins(
    broker: Harness, file: CenterState, command: CenterState | None
) -> None:
    order = [CenterState.ACTIVE, CenterState.DRAIN, CenterState.INACTIVE]
    await broker.store.write(centers.configure, [entry("a", state=file), entry("b")])
    await broker.drain_center("a", command)
    expected = max([file, command or file], key=order.index)
    assert await state_of(broker, "a") == expected
    await broker.store.write(centers.configure, [entry("a", state=file), entry("b")])
    assert await state_of(broker, "a") == expected  # a command outlives a reload


async def record(broker: Harness, *reports: PoolReport, quarantined: Any = ()) -> None:
    inventory = Inventory(broker.clock(), Accuracy.EXACT, reports, 3, quarantined)
    prices: Sequence[tuple[PoolReport, tuple[Price, ...]]] = [(r, (Price(5),)) for r in reports]
    await broker.store.write(
        centers.record_inventory, A, inventory, epoch=broker.lease.epoch, traits={"gang": True}, prices=prices
    )


async def pools_of_a(broker: Harness) -> dict[str, NodeShape]:
    return {p.id: p.shape for p in await broker.store.read(centers.pools, A)}


async def test_pools_of_one_unit_keep_their_ids_in_any_order(broker: Harness) -> None:
    small, large, cpu = node(4), node(8, memory_gib=2048), node(0, cores=64, memory_gib=256)
    reports = [PoolReport("q", shape, 2, (FreeNodes(1, 1, 1, 1),)) for shape in (small, large, cpu)]
    await record(broker, *reports)
    first = await pools_of_a(broker)
    assert first == {"a/q": small, "a/q#1": large, "a/q#2": cpu}
    await record(broker, *reversed(reports))
    assert await pools_of_a(broker) == first
    await record(broker, reports[2], reports[1])  # the small nodes are away
    assert await pools_of_a(broker) == {"a/q#1": large, "a/q#2": cpu}
    await record(broker, *reports)
    assert await pools_of_a(broker) == first
    twins = [reports[0], reports[0], PoolReport("q#1", small, 1, ())]
    await record(broker, *twins)
    assert len(await pools_of_a(broker)) == 3


async def test_a_pool_whose_nodes_changed_keeps_its_id(broker: Harness) -> None:
    assert list(await pools_of_a(broker)) == ["a/a"]
    await record(broker, PoolReport("a", node(16), 3, ()))
    assert await pools_of_a(broker) == {"a/a": node(16)}


async def test_a_report_is_whole(broker: Harness) -> None:
    await record(broker, PoolReport("n", node(2), 1, ()), quarantined=(("x", "unknown product"),))
    (view, _) = await broker.store.read(centers.list_centers)
    assert (view.health, view.queue_length, view.quarantined) == (
        Health.FRESH,
        3,
        (("x", "unknown product"),),
    )
    assert [(p.id, p.prices) for p in view.pools] == [("a/n", (Price(5),))]
    await record(broker)
    assert await pools_of_a(broker) == {}


async def test_images_are_those_of_the_last_catalogue(broker: Harness) -> None:
    epoch = broker.lease.epoch
    for images in ([Image("i", "n1"), Image("j", "n2")], [Image("i", "n3", installed_lib=("numpy",))]):
        await broker.store.write(centers.record_images, A, images, epoch=epoch)
    assert await broker.store.read(centers.image_centers, "i") == {"a": "n3"}
    assert await broker.store.read(centers.image_centers, "j") == {}


# ---------------------------------------------------------------- accounts


async def test_accounts_and_logins(broker: Harness) -> None:
    write, read = broker.store.write, broker.store.read
    bob = await broker.caller("bob", role=Role.USER, tenant="lab")
    with pytest.raises(NameInUse):
        await write(accounts.add_account, name="bob", tenant="x", role=Role.USER, password_hash="")
    assert not bob.may_use_vip
    await write(accounts.set_vip, "bob", True, actor="alice")
    await write(accounts.add_token, bob.id, "hash", broker.clock() + 1000)
    found = await read(accounts.find_token, "hash")
    assert found is not None
    assert (found.caller.vip, found.frozen, found.expires_ms) == (True, False, broker.clock() + 1000)
    for _ in range(3):
        await write(accounts.record_failed_login, bob.id, 3)
    login = await read(accounts.find_login, "bob")
    assert login is not None
    assert (login.frozen, login.failed_logins) == (True, 3)
    await write(accounts.set_frozen, "bob", False, actor="alice")
    await write(accounts.set_password, "bob", "new", actor="alice")
    assert await read(accounts.find_token, "hash") is None
    await write(accounts.add_token, bob.id, "again", broker.clock())
    assert await write(accounts.sweep_tokens, broker.clock()) == 0
    assert await write(accounts.sweep_tokens, broker.clock() + 1) == 1
    assert await broker.rows(Token) == []
    for op in (accounts.set_vip, accounts.set_frozen):
        with pytest.raises(NoSuchAccount, match="'carol'"):
            await write(op, "carol", True, actor="alice")
    assert await write(accounts.setting, "key", "first") == "first"
    assert await write(accounts.setting, "key", "second") == "first"
    await write(accounts.replace_setting, "key", "third")
    assert await write(accounts.setting, "key", "") == "third"


# ---------------------------------------------------------------- data sets


async def test_who_may_read_which_data(broker: Harness) -> None:
    ann = await broker.caller("ann", role=Role.USER, tenant="lab")
    boss = await broker.caller("boss", role=Role.TENANT_ADMIN, tenant="lab")
    eve = await broker.caller("eve", role=Role.USER, tenant="elsewhere")
    operator = await broker.caller()
    for id, public in (("hers", False), ("open", True)):
        new = NewDataset(id, ann.id, ann.tenant, id, 5, public=public)
        await broker.store.write(datasets.add_dataset, new)
    wanted = ["open", "none", "hers"]
    for caller, not_usable in (
        (ann, ["none"]),
        (boss, ["none"]),
        (operator, ["none"]),
        (eve, ["none", "hers"]),
    ):
        assert await broker.store.read(datasets.unusable, caller, wanted) == not_usable


async def due(broker: Harness) -> list[CopyRef]:
    return [work.ref for work in await broker.store.read(copies.due, broker.clock())]


async def test_a_copy_is_wanted_moves_fails_and_is_wanted_again(broker: Harness) -> None:
    write, epoch = broker.store.write, broker.lease.epoch
    ann = await broker.caller("ann")
    await write(datasets.add_dataset, NewDataset("d", ann.id, ann.tenant, "d", 7))
    assert await write(copies.missing_copies, A, ["d"])
    (copy,) = await due(broker)
    assert copy == CopyRef("d", A, "d", 7)
    await write(copies.record_copy, copy, CopySighting(CopyState.FAILED, message="full"), epoch=epoch)
    assert await due(broker) == []
    assert await write(copies.missing_copies, A, ["d"])
    assert await due(broker) == []  # not at once
    broker.clock.now_ms += RETRY_S * 1000 + 1
    assert await write(copies.missing_copies, A, ["d"])
    (copy,) = await due(broker)
    seen = CopySighting(CopyState.READY, "/data/d", 3)
    await write(copies.record_copy, copy, seen, epoch=epoch)
    assert not await write(copies.missing_copies, A, ["d"])
    assert await broker.store.read(copies.remotes, A, ["d", "e"]) == (("d", "/data/d"),)
    assert await broker.store.read(copies.remotes, B, ["d"]) == ()
    (row,) = await broker.rows(Copy)
    assert row.bytes_done == 7


# ---------------------------------------------------------------- retention


async def test_keys_are_kept_as_long_as_their_jobs_live(broker: Harness) -> None:
    lives, ended = [(await broker.create(await new_job(broker, i, f"j{i}"), key=f"k{i}")).id for i in (1, 2)]
    await broker.stop(ended)
    assert await broker.store.write(retention.forget_keys, broker.clock()) == 0
    assert await broker.store.write(retention.forget_keys, broker.clock() + 1) == 1
    assert [key.job_id for key in await broker.rows(Idempotency)] == [lives]


async def test_numbers_go_on_after_events_are_forgotten(broker: Harness) -> None:
    await broker.submit()
    newest = (await broker.rows(Event))[-1].seq
    assert await broker.store.write(retention.forget_events, broker.clock() + 1) == newest - 1
    await broker.submit()
    assert [e.seq for e in await broker.rows(Event)] == [newest, newest + 1]


async def test_what_is_kept_has_no_gaps_though_the_clock_jumped(broker: Harness) -> None:
    """The middle one is older by its time than the one before it."""
    before_ms = broker.clock()
    for jump_ms in (3_600_000, 0, 3_600_000):
        broker.clock.now_ms = before_ms + jump_ms
        await broker.submit()
    kept = [e.seq for e in await broker.rows(Event) if e.at_ms > before_ms]
    await broker.store.write(retention.forget_events, before_ms + 1)
    left = [e.seq for e in await broker.rows(Event)]
    assert left == list(range(kept[0], left[-1] + 1))


# ---------------------------------------------------------------- schema


async def test_the_schema_is_the_tables(tmp_path: Path) -> None:
    store = Store(database(tmp_path, empty=True))
    await store.open()
    with store._read_engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
    await store.close()


@pytest.mark.sqlite_only("it looks at the files")
async def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        store = Store(database(tmp_path, empty=True))
        await store.open()
        await store.close()
    assert os.listdir(tmp_path) == ["broker.db"]  # no copy: nothing was upgraded


@pytest.mark.sqlite_only("it changes the file")
async def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = Store(database(tmp_path, empty=True))
    await store.open()
    await store.close()
    file = sqlite3.connect(tmp_path / "broker.db")
    file.execute("UPDATE alembic_version SET version_num = '9999'")
    file.commit()
    file.close()
    before = (tmp_path / "broker.db").read_bytes()
    with pytest.raises(SchemaTooNew, match="at schema 9999"):
        await Store(database(tmp_path, empty=True)).open()
    assert (tmp_path / "broker.db").read_bytes() == before


@pytest.mark.sqlite_only("it breaks the file")
async def test_a_database_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "broker.db").write_text("no database " * 100)
    with pytest.raises(StoreUnavailable, match="file is not a database"):
        await Store(database(tmp_path, empty=True)).open()


@pytest.mark.sqlite_only("the copy is of the file")
async def test_a_database_of_the_version_before_is_upgraded_with_a_copy_beside_it(tmp_path: Path) -> None:
    """The newest step alone, on rows of the version before it."""
    script = ScriptDirectory.from_config(configuration())
    head = script.get_current_head()
    assert head is not None
    before = script.get_revision(head).down_revision
    assert isinstance(before, str)
    config = configuration()
    engine = create_engine(database(tmp_path, empty=True))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
        connection.exec_driver_sql(
            "INSERT INTO run (id, job_id, attempt, state, native_pool, spec, slot, nodes, rate_micro_per_hour"
            ", placement, not_after_ms, lookup_lag_s, created_ms, message, address, owed_tries)"
            " VALUES ('bk-1', 'j-1', 1, 'RUNNING', '', '{}', 1, 1, 0, '{}', 0, 0, 0, '', '', 0)"
        )
    engine.dispose()
    store = Store(database(tmp_path, empty=True))
    await store.open()
    (row,) = await store.read(lambda session: session.exec(select(Run)).all())
    assert (row.id, row.state, row.checkpoint_ms, row.stop_for) == ("bk-1", "RUNNING", None, None)
    await store.close()
    assert sorted(os.listdir(tmp_path)) == ["broker.db", f"broker.db.before-{head}"]
