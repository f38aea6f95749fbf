"""Data sets on their way to centers and away from them, through the whole leader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from adapters.fake import Fake, Fault, Script
from broker.adapter import Asset, AssetKind, CopyRef, CopySighting, CopyState, Unavailable, Unsupported
from broker.chores import Chores
from broker.config import StoreSettings
from broker.core.model import CenterId, Tier
from broker.stage import GIB, TRIES
from broker.store import assets, copies, datasets, views
from broker.store.datasets import NewDataset
from broker.tables import Copy, Dataset, Event, Reservation, Run
from tests.harness import Harness, center, harness
from tests.test_preemption import rules

A, B = CenterId("a"), CenterId("b")


async def add(broker: Harness, id: str, *, gib: int = 1) -> str:
    caller = await broker.caller()
    new = NewDataset(id=id, account=caller.id, tenant=caller.tenant, title=id, bytes=gib * GIB)
    await broker.store.write(datasets.add_dataset, new)
    return id


async def where(broker: Harness) -> dict[tuple[str, str], str]:
    return {(row.dataset_id, row.center_id): row.state for row in await broker.rows(Copy)}


async def run_through(broker: Harness, *ids: str) -> None:
    """A job that reads data sets, from its submission to its end."""
    for fake in broker.fakes.values():
        fake.script(Script(run_s=1))
    job = await broker.submit(datasets=ids)
    for _ in range(6):
        await broker.pass_time(5)
    await broker.expect(job, "SUCCEEDED")


# ---------------------------------------------------------------- bringing


class Steps(Fake):
    """Moves in steps, and remembers what it was asked."""

    def attach(self, *answers: CopySighting | Exception) -> list[CopyRef]:
        asked: list[CopyRef] = []
        left = list(answers)

        async def stage(copy: CopyRef) -> CopySighting:
            asked.append(copy)
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.stage = stage  # type: ignore[method-assign]
        return asked


def steps(broker: Harness, *answers: CopySighting | Exception, at: CenterId = A) -> list[CopyRef]:
    fake: Any = broker.fakes[at]
    return Steps.attach(fake, *answers)


async def test_a_copy_goes_on_where_it_was_when_the_daemon_starts_again(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        await add(broker, "d")
        asked = steps(
            broker,
            CopySighting(CopyState.MOVING, "part:1", 100),
            CopySighting(CopyState.MOVING, "part:2", 200),
            CopySighting(CopyState.READY, "/data/d", GIB),
        )
        job = await broker.submit(datasets=("d",))
        await broker.plan()
        assert await broker.stage.once() == 0.5
        assert [(row.remote, row.bytes_done) for row in await broker.rows(Copy)] == [("part:1", 100)]
        await broker.restart()
        await broker.round()
        await broker.round()
        assert [copy.remote for copy in asked] == ["", "part:1", "part:2"]
        assert {copy.source for copy in asked} == {str(broker.files.dataset("d"))}
        await broker.round()
        await broker.expect(job, "RUNNING", attempts=1)


async def test_a_copy_that_never_comes_fails_and_explain_says_why(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        await add(broker, "d")
        asked = steps(broker, *[Unavailable("the storage is not mounted")] * TRIES)
        job = await broker.submit(datasets=("d",))
        await broker.pass_time(450, step_s=10)
        assert len(asked) == TRIES
        (row,) = await broker.rows(Copy)
        assert (row.state, row.message) == ("FAILED", "the storage is not mounted")
        assert (await broker.reasons(job))["a"]["code"] == "staging"
        told = await broker.store.read(views.explanation, await broker.caller(), job, broker.clock())
        assert [(d.dataset, d.center, d.state, d.message) for d in told.data] == [
            ("d", "a", CopyState.FAILED, "the storage is not mounted")
        ]
        assert [event.data["state"] for event in await broker.rows(Event, kind="copy.changed")] == ["FAILED"]


async def test_a_defect_of_an_adapter_does_not_end_the_loop(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        await add(broker, "d")
        steps(broker, ValueError("a bug"), CopySighting(CopyState.READY, "/data/d", GIB))
        await broker.submit(datasets=("d",))
        await broker.plan()
        await broker.stage.once()
        assert [(row.state, row.message) for row in await broker.rows(Copy)] == [("WANTED", "a bug")]
        await broker.pass_time(10)
        assert await where(broker) == {("d", "a"): "READY"}


async def test_where_a_copy_cannot_be_made_the_job_goes_elsewhere(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a"), center("b", price="20")) as broker:
        await add(broker, "d")
        steps(broker, Unsupported("takes no data sets"))
        job = await broker.submit(datasets=("d",))
        await broker.round()
        assert await where(broker) == {("d", "a"): "FAILED"}
        await broker.round()
        assert await where(broker) == {("d", "a"): "FAILED", ("d", "b"): "READY"}
        await broker.round()
        await broker.expect(job, "RUNNING")
        assert (await broker.show(job)).runs[-1].center == "b"


async def test_a_job_starts_where_its_data_is_while_it_moves_elsewhere_for_others(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a"), center("b", price="20")) as broker:
        await add(broker, "d")
        steps(broker, *[CopySighting(CopyState.MOVING, "", 1)] * 9)
        await broker.submit(datasets=("d",), centers=(B,))
        await broker.round()
        assert await where(broker) == {("d", "b"): "READY"}
        waits = await broker.submit(datasets=("d",), centers=(A,))
        await broker.round()
        free = await broker.submit(datasets=("d",))
        await broker.round()
        await broker.expect(free, "RUNNING")
        assert (await broker.show(free)).runs[-1].center == "b"
        await broker.expect(waits, "PENDING")
        assert await where(broker) == {("d", "a"): "MOVING", ("d", "b"): "READY"}


async def test_a_centers_own_data_is_read_there_and_nowhere_else(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a"), center("b", price="20")) as broker:
        own = {AssetKind.DATASET: [Asset("/mnt/x", "x", id="x", remote="/mnt/x")]}
        await broker.poll()
        await broker.store.write(assets.record_assets, B, own, epoch=broker.lease.epoch)
        job = await broker.submit(datasets=("x",))
        stuck = await broker.submit(datasets=("x",), centers=(A,))
        await broker.plan()
        await broker.send()
        assert await where(broker) == {}
        (run,) = [row for row in await broker.rows(Run) if row.job_id == job]
        assert run.center_id == "b"
        remotes = await broker.store.read(copies.remotes, B, ["x"])
        assert remotes == (("x", "/mnt/x"),)
        assert (await broker.reasons(stuck))["a"]["code"] == "data_unavailable"


async def test_nobody_is_stopped_and_nothing_held_for_a_job_whose_data_is_not_there(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", nodes=1)) as broker:
        broker.cycle.policies = rules()
        broker.fakes[A].script(Script(run_s=7200))
        victim = await broker.submit(cards=8, estimated_run_time_s=7200)
        await broker.pass_time(120)
        await add(broker, "d")
        steps(
            broker,
            CopySighting(CopyState.MOVING, "", 1),
            CopySighting(CopyState.MOVING, "", 2),
            CopySighting(CopyState.READY, "/d", GIB),
        )
        vip = await broker.submit(
            cards=8, tier=Tier.VIP, preempt_policy=2, preemptible=False, datasets=("d",)
        )
        for state in ("MOVING", "MOVING"):
            await broker.round()
            assert await where(broker) == {("d", "a"): state}
            assert await broker.rows(Reservation) == []
            await broker.expect(victim, "RUNNING")
            assert (await broker.reasons(vip))["a"]["code"] == "staging"
        await broker.pass_time(120)
        await broker.expect(vip, "RUNNING")


# ---------------------------------------------------------------- the cache


def cached(**changes: Any) -> Any:
    return center("a", dataset_cache_gib=3, **changes)


async def test_the_longest_unused_goes_when_the_cache_is_full(tmp_path: Path) -> None:
    async with harness(tmp_path, cached()) as broker:
        for id in ("d1", "d2", "d3"):
            await run_through(broker, await add(broker, id))
        await run_through(broker, "d1")  # used again
        assert len(await where(broker)) == 3
        await run_through(broker, await add(broker, "d4"))
        await broker.round()
        assert await where(broker) == dict.fromkeys([("d1", "a"), ("d3", "a"), ("d4", "a")], "READY")
        assert [event.data["dataset"] for event in await broker.rows(Event, kind="copy.evicted")] == ["d2"]
        await run_through(broker, "d2")  # it is brought again
        assert ("d2", "a") in await where(broker)


async def test_what_jobs_read_is_kept_beyond_the_limit(tmp_path: Path) -> None:
    async with harness(tmp_path, cached()) as broker:
        broker.fakes[A].script(Script(run_s=7200))
        ids = [await add(broker, f"d{number}", gib=2) for number in range(3)]
        jobs = [await broker.submit(datasets=(id,)) for id in ids]
        waiting = await broker.submit(datasets=("d0",), centers=(A,), nodes=3, cards=8)
        await broker.pass_time(30)
        assert await where(broker) == dict.fromkeys([(id, "a") for id in ids], "READY")
        for job in jobs:
            await broker.stop(job)
        await broker.pass_time(60)
        assert await where(broker) == {("d0", "a"): "READY"}  # six GiB were over three; one waits for d0
        await broker.expect(waiting, "PENDING")


async def test_a_removal_is_owed_until_the_center_has_done_it(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        await run_through(broker, await add(broker, "d"))
        fake = broker.fakes[A]
        fake.fail("unstage", *[Fault.DROPPED] * (TRIES + 2))
        await broker.store.write(datasets.delete_dataset, await broker.caller(), "d")
        await broker.pass_time(1200, step_s=60)
        assert await where(broker) == {("d", "a"): "EVICTING"}
        assert len(await broker.rows(Dataset)) == 1
        await broker.restart()
        await broker.pass_time(3000, step_s=100)
        assert await where(broker) == {}
        assert await broker.rows(Dataset) == []
        assert [call.name for call in fake.calls].count("unstage") == TRIES + 3


async def test_what_a_center_cannot_remove_is_left_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness(tmp_path, cached()) as broker:
        for number in range(5):
            await run_through(broker, await add(broker, f"d{number}"))
            if number == 0:
                monkeypatch.setattr(Fake, "unstage", None)
        assert len(await where(broker)) == 5, "nothing is evicted where nothing can be"
        await broker.store.write(datasets.delete_dataset, await broker.caller(), "d0")
        await broker.round()
        (event,) = await broker.rows(Event, kind="copy.removed")
        assert event.data["message"] == "this kind of center cannot remove data sets; the copy stays there"
        assert ("d0", "a") not in await where(broker)


async def test_a_removal_is_not_undone_by_a_step_that_was_under_way(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        await add(broker, "d")
        job = await broker.submit(datasets=("d",))
        await broker.plan()
        (work,) = await broker.store.read(copies.due, broker.clock())
        await broker.stop(job)
        await broker.store.write(datasets.delete_dataset, await broker.caller(), "d")
        seen = CopySighting(CopyState.READY, "/data/d", GIB)
        await broker.store.write(copies.record_copy, work.ref, seen, epoch=broker.lease.epoch)
        assert await where(broker) == {("d", "a"): "EVICTING"}
        await broker.stage.once()
        assert await where(broker) == {}


# ---------------------------------------------------------------- what a crash leaves


async def test_files_that_nobody_recorded_are_swept(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        await add(broker, "d")
        for name in ("d", "orphan"):
            broker.files.dataset(name).mkdir()
            (broker.files.dataset(name) / "file").write_text("data")
        chores = Chores(store=broker.store, lease=broker.lease, files=broker.files, settings=StoreSettings())
        made_ms = int(os.stat(broker.files.dataset("orphan")).st_ctime * 1000)
        broker.clock.now_ms = made_ms
        await chores.sweep_datasets()
        assert broker.files.dataset("orphan").exists(), "it may be about to be recorded"
        broker.clock.now_ms = made_ms + 86_401_000
        await chores.sweep_datasets()
        assert sorted(os.listdir(broker.files.root / "datasets")) == ["d"]
        assert os.listdir(broker.files.root / "incoming") == []
