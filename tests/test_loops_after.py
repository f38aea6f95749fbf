"""The loops after the submission, one by one: tracking, collecting, staging, chores."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from unittest.mock import patch

import pytest

from adapters.fake import Fault, Script
from broker import track
from broker.adapter import (
    RemoteState,
    RunRef,
    Sighting,
    Traits,
)
from broker.chores import DAY_MS, Chores
from broker.collect import TRIES
from broker.config import StoreSettings
from broker.core.model import CenterId, JobId, OnLost, RunId, RunState
from broker.store import accounts, datasets, runs
from broker.store.datasets import NewDataset
from broker.tables import Copy, Event, Idempotency, Run, Token
from broker.track import event_of
from tests.harness import Harness, center, harness

pytestmark = pytest.mark.both_databases

A, B = CenterId("a"), CenterId("b")


async def states(broker: Harness, job: JobId) -> list[str]:
    return [run.state.value for run in (await broker.show(job)).runs]


async def the_run(broker: Harness, job: JobId) -> Run:
    (row,) = await broker.rows(Run, id=(await broker.show(job)).runs[-1].id)
    return row


# ---------------------------------------------------------------- track


async def test_a_run_that_never_arrived_and_turns_up_is_stopped(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a"), center("b", price="50")) as broker:
        fake = broker.fakes[A]
        fake.script(Script(run_s=5000))
        fake.fail("submit", Fault.LOST_REPLY)
        job = await broker.submit()
        await broker.plan()
        await broker.send()
        with patch.object(fake, "find", return_value=None):  # the platform's index is wrong
            await broker.pass_time(40)
        assert (await states(broker, job))[0] == "FAILED"
        assert (await broker.show(job)).runs[0].failure == "never_arrived"
        await broker.pass_time(120)
        await broker.expect(job, "SUCCEEDED", at="b", attempts=2)
        assert [execution.end_ms is not None for execution in fake.executions] == [True]
        settled = len(await broker.rows(Event, kind="run.settled"))
        await broker.pass_time(60)
        assert len(await broker.rows(Event, kind="run.settled")) == settled


async def test_a_run_that_is_about_to_change_is_looked_at_sooner(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", traits=Traits(look_pause_s=4.0))) as broker:
        broker.fakes[A].script(Script(queue_s=60, run_s=5000))
        looks = broker.tracks[A]
        assert await looks.once() is None, "there is nothing to look at"
        await broker.submit()
        await broker.round()
        assert await looks.once() == 4.0, "it waits there"
        await broker.pass_time(70)
        assert await looks.once() is None, "it runs"


@pytest.mark.parametrize(
    ("pause_s", "took_s", "next_s"),
    [(0.5, 0.1, 0.5), (3.0, 0.1, 3.0), (3.0, 7.0, 7.0), (3.0, 20.0, 15.0), (60.0, 0.1, 15.0)],
)
async def test_looks_leave_calls_for_what_has_an_effect(
    tmp_path: Path, pause_s: float, took_s: float, next_s: float
) -> None:
    """No more than half of the time is spent looking; the poll interval of 15 s is often enough."""
    async with harness(tmp_path, center("a")) as broker:
        assert broker.tracks[A].pause_s(Traits(look_pause_s=pause_s), took_s) == next_s


async def test_a_run_over_its_time_is_stopped_and_failed(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].script(Script(run_s=5000))
        job = await broker.submit(max_run_time_s=30, max_retries=3)
        await broker.round()
        await broker.pass_time(25)
        await broker.expect(job, "RUNNING")
        await broker.pass_time(20)
        await broker.expect(job, "FAILED", attempts=1)
        view = await broker.show(job)
        assert (view.runs[0].failure, view.message) == ("deadline", "ran longer than maxRunTime (30 s)")


async def test_an_evicted_job_queues_again_and_spends_nothing(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].script_next(Script(evict_s=10), Script(host_lost_s=10))
        job = await broker.submit(max_retries=1)
        await broker.round()
        await broker.pass_time(200)
        await broker.expect(job, "SUCCEEDED", attempts=3)
        view = await broker.show(job)
        assert [run.failure for run in view.runs] == ["evicted", "host", ""]
        assert view.retries_used == 0


async def test_a_job_pays_for_its_own_failures(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].script(Script(run_s=5, exit_code=3))
        job = await broker.submit(max_retries=2)
        await broker.round()
        await broker.pass_time(60)
        await broker.expect(job, "FAILED", attempts=3)
        view = await broker.show(job)
        assert (view.retries_used, [run.exit_code for run in view.runs]) == (2, [3, 3, 3])


async def test_a_command_that_cannot_start_is_not_tried_again(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].script(Script(cannot_start=True))
        job = await broker.submit(max_retries=2)
        await broker.round()
        await broker.pass_time(10)
        await broker.expect(job, "FAILED", attempts=1)


@pytest.mark.parametrize(("on_lost", "status"), [(OnLost.RERUN, "SUCCEEDED"), (OnLost.FAIL, "FAILED")])
async def test_a_job_says_what_becomes_of_it_when_its_center_is_silent(
    tmp_path: Path, on_lost: OnLost, status: str
) -> None:
    async with harness(tmp_path, center("a"), center("b", price="50")) as broker:
        fake = broker.fakes[A]
        fake.script(Script(run_s=5000))
        job = await broker.submit(on_lost=on_lost)
        await broker.round()
        await broker.expect(job, "RUNNING", at="a")
        fake.silence(broker.clock(), broker.clock() + 600_000)
        await broker.pass_time(420, step_s=20)
        await broker.expect(job, status, attempts=2 if on_lost is OnLost.RERUN else 1)
        assert (await states(broker, job))[0] == ("ABANDONED" if on_lost is OnLost.RERUN else "FAILED")
        await broker.pass_time(700, step_s=20)  # the center is back and is told to stop it
        assert [execution.end_ms is not None for execution in fake.executions] == [True]
        (first, *_) = [row for row in await broker.rows(Run) if row.center_id == "a"]
        assert (first.stop_owed_ms, first.owed_next_ms) == (None, None)


async def test_while_no_center_answers_nothing_is_given_up(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a"), center("b", price="50")) as broker:
        for fake in broker.fakes.values():
            fake.script(Script(run_s=5000))
            fake.silence(broker.clock() + 1000, broker.clock() + 900_000)
        job = await broker.submit(on_lost=OnLost.RERUN)
        await broker.round()
        await broker.pass_time(600, step_s=30)
        await broker.expect(job, "RUNNING", attempts=1)


async def test_a_run_that_vanishes_is_lost_and_makes_no_noise(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].script(Script(vanish_s=10))
        job = await broker.submit()
        await broker.round()
        await broker.pass_time(30)
        await broker.expect(job, "UNKNOWN")
        events = len(await broker.rows(Event))
        await broker.pass_time(60)
        assert len(await broker.rows(Event)) == events
        await broker.resolve(job, ended=RunState.STOPPED)
        await broker.expect(job, "STOPPED")


async def test_two_misses_hours_apart_do_not_lose_a_run(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].script(Script(run_s=9000))
        job = await broker.submit()
        await broker.round()

        async def gone(refs: Collection[RunRef]) -> Mapping[RunId, Sighting]:
            return {ref.id: Sighting(RemoteState.GONE) for ref in refs}

        for _ in range(2):
            with patch.object(broker.fakes[A], "observe", gone):
                await broker.look()
            assert (await the_run(broker, job)).missing_ms is not None
            await broker.pass_time(30)
            assert (await the_run(broker, job)).missing_ms is None
        await broker.expect(job, "RUNNING")


async def test_an_address_that_comes_late_is_kept(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].script(Script(run_s=9000))
        job = await broker.submit()
        await broker.round()
        started = (await the_run(broker, job)).started_ms

        async def addressed(refs: Collection[RunRef]) -> Mapping[RunId, Sighting]:
            seen = Sighting(RemoteState.RUNNING, started_ms=started, address="http://n1:8000")
            return {ref.id: seen for ref in refs}

        with patch.object(broker.fakes[A], "observe", addressed):
            await broker.look()
        assert (await the_run(broker, job)).address == "http://n1:8000"


def test_a_word_that_nobody_knows_changes_nothing() -> None:
    assert event_of(Sighting(RemoteState.UNKNOWN, raw="Frobnicating"), 1) is None


async def test_a_log_that_is_read_is_copied_while_the_run_goes_on(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        fake = broker.fakes[A]
        fake.script(Script(log=b"epoch 1\nepoch 2\n", run_s=500))
        job = await broker.submit()
        await broker.round()
        run = RunId((await the_run(broker, job)).id)
        assert not broker.files.log(run, 0).exists()
        await broker.store.write(runs.want_logs, run, broker.clock() + 30_000)
        fake.fail("logs", Fault.DROPPED)
        await broker.look()  # the copy fails, the look does not
        await broker.look()
        assert broker.files.log(run, 0).read_bytes() == b"epoch 1\nepoch 2\n"
        await broker.look()
        assert broker.files.log(run, 0).read_bytes() == b"epoch 1\nepoch 2\n"
        with patch.object(track, "LOG_TIMEOUT_S", 0.01), patch.object(track, "append_log", _hang):
            await broker.look()
        await broker.pass_time(600)
        assert broker.files.log(run, 0).read_bytes() == b"epoch 1\nepoch 2\n"


async def _hang(*_args: object, **_more: object) -> int:
    await asyncio.Event().wait()
    return 0


# ---------------------------------------------------------------- collect


async def test_a_copy_that_fails_is_made_again(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        fake = broker.fakes[A]
        fake.script(Script(log=b"hello\n", results={"model.bin": b"w"}))
        fake.fail("results", Fault.DROPPED, Fault.THROTTLED)
        job = await broker.submit()
        await broker.round()
        await broker.pass_time(60)
        run = (await the_run(broker, job)).id
        assert (await the_run(broker, job)).collect_owed_ms is not None
        await broker.pass_time(10, step_s=1)
        assert (await the_run(broker, job)).collect_owed_ms is None
        assert broker.files.log(run, 0).read_bytes() == b"hello\n"
        assert (broker.files.results(run) / "model.bin").read_bytes() == b"w"


async def test_a_copy_that_never_works_is_given_up_loudly(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        fake = broker.fakes[A]
        fake.script(Script(results={"../../etc/passwd": b"x"}))
        job = await broker.submit()
        await broker.round()
        broker.clock.now_ms += 60_000
        with patch("broker.collect.log.error") as loud:
            for _ in range(TRIES + 1):
                await broker.lease.renew()
                await broker.look()
                await broker.gather()
                broker.clock.now_ms += 300_000
        assert [call.args[0] for call in loud.call_args_list] == ["collect_given_up"]
        row = await the_run(broker, job)
        assert (row.collect_owed_ms, row.owed_next_ms) == (None, None)
        await broker.expect(job, "SUCCEEDED")
        assert not (tmp_path / "etc").exists()


# ---------------------------------------------------------------- stage


async def add_dataset(broker: Harness, id: str) -> None:
    caller = await broker.caller()
    new = NewDataset(id=id, account=caller.id, tenant=caller.tenant, title=id, bytes=5)
    await broker.store.write(datasets.add_dataset, new)


async def test_a_job_waits_for_its_data_and_holds_nothing(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        await add_dataset(broker, "ds-1")
        job = await broker.submit(datasets=("ds-1",))
        await broker.plan()
        assert await states(broker, job) == ["NEW"]
        assert (await broker.reasons(job))["a"]["code"] == "staging"
        await broker.plan()
        assert (await broker.reasons(job))["a"]["code"] == "staging"
        await broker.stage.once()
        (copy,) = await broker.rows(Copy)
        assert (copy.state, copy.remote, copy.bytes_done) == ("READY", "/data/ds-1", 5)
        await broker.round()
        await broker.expect(job, "RUNNING", attempts=1)


async def test_a_reason_of_yesterday_does_not_hide_that_data_is_on_its_way(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", nodes=1)) as broker:
        await add_dataset(broker, "ds-1")
        await broker.submit(cards=8)
        await broker.round()
        job = await broker.submit(cards=8, datasets=("ds-1",))
        await broker.plan()
        assert (await broker.reasons(job))["a"]["code"] == "capacity"
        await broker.lease.renew()
        broker.clock.now_ms += 61_000
        await broker.lease.renew()
        await broker.look()
        await broker.poll()
        await broker.plan()
        assert (await broker.reasons(job))["a"]["code"] == "staging"


async def test_a_step_without_an_answer_is_made_again(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].fail("stage", Fault.DROPPED)
        await add_dataset(broker, "ds-1")
        job = await broker.submit(datasets=("ds-1",))
        await broker.round()
        assert [(copy.state, copy.tries) for copy in await broker.rows(Copy)] == [("WANTED", 1)]
        assert await broker.stage.once() is None  # not at once
        await broker.pass_time(3)
        assert [(copy.state, copy.tries) for copy in await broker.rows(Copy)] == [("READY", 0)]
        await broker.round()
        await broker.expect(job, "RUNNING", attempts=1)


async def test_a_copy_that_failed_is_made_again_later(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].fail("stage", Fault.DENIED)
        await add_dataset(broker, "ds-1")
        job = await broker.submit(datasets=("ds-1",))
        await broker.round()
        assert [copy.state for copy in await broker.rows(Copy)] == ["FAILED"]
        await broker.pass_time(200, step_s=50)
        assert await states(broker, job) == ["NEW"]
        await broker.pass_time(200, step_s=50)
        assert [copy.state for copy in await broker.rows(Copy)] == ["READY"]
        assert "SUCCEEDED" in await states(broker, job) or "RUNNING" in await states(broker, job)


# ---------------------------------------------------------------- chores


async def test_chores_forget_what_is_past_its_retention(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        settings = StoreSettings(log_retention_days=3, event_retention_days=2)
        chores = Chores(store=broker.store, lease=broker.lease, files=broker.files, settings=settings)
        broker.fakes[A].script(Script(log=b"hello\n"))
        job = await broker.submit()
        await broker.round()
        await broker.pass_time(61)
        run = (await the_run(broker, job)).id
        caller = await broker.caller()
        await broker.store.write(accounts.add_token, caller.id, "h", broker.clock())
        await chores.release_runs()
        await chores.sweep_tokens()
        await chores.forget()
        assert broker.files.log(run, 0).exists()
        broker.clock.now_ms += 31 * DAY_MS
        await chores.gauges()
        await chores.release_runs()
        await chores.sweep_tokens()
        await chores.forget()
        assert not broker.files.logs(run).exists()
        assert await broker.rows(Token) == []
        assert len(await broker.rows(Event)) == 1  # numbers go on from the newest
        assert await broker.rows(Idempotency) == []
        assert (await the_run(broker, job)).delete_owed_ms is not None
        await broker.round()
        assert (await the_run(broker, job)).delete_owed_ms is None


async def test_chores_start_and_stop(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        chores = Chores(store=broker.store, lease=broker.lease, files=broker.files, settings=StoreSettings())
        chores.start()
        await chores.stop()
