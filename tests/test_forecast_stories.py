"""The whole leader learns how long runs take, says when a waiting job starts, and is held to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.fake import Script
from broker.core.forecast import Eta
from broker.core.model import CenterId, StopReason
from broker.core.snapshot import planned_end_ms
from broker.store import forecasts, learned, runs
from broker.tables import Forecast, RunHistory
from tests.builders import spec
from tests.harness import Harness, center, harness

A = CenterId("a")


async def let_run(broker: Harness, run_s: int, *, jobs: int = 6) -> None:
    """So many jobs of the whole center, one after the other."""
    for _ in range(jobs):
        broker.fakes[A].script_next(Script(run_s=run_s))
        await broker.submit(cards=8)
        await broker.round()
        await broker.pass_time(run_s + 10)


async def test_it_learns_and_then_tells_when_a_job_starts(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", cards=8, nodes=1)) as broker:
        await let_run(broker, 300)
        await broker.pass_time(60)  # what was learned is read once a minute
        broker.fakes[A].script(Script(run_s=300))
        first, second = await broker.submit(cards=8), await broker.submit(cards=8)
        await broker.round()
        await broker.expect(first, "RUNNING")
        (made,) = await broker.rows(Forecast)
        assert made.job_id == second
        assert made.p90_s is not None
        assert 240 <= made.p50_s <= made.p90_s <= 380  # an hour, without what it has learned
        assert await broker.store.read(forecasts.errors) == []
        await broker.restart()  # what is learned and foretold outlives the daemon
        await broker.pass_time(320)
        await broker.expect(second, "RUNNING")
        here, at_spec, overall = await broker.store.read(forecasts.errors)
        assert (here.center, here.spec, here.jobs) == ("a", spec(8).id, 1)
        assert (at_spec.center, at_spec.spec) == ("", spec(8).id)
        assert (overall.center, overall.spec, overall.median_s) == ("", "", here.median_s)
        assert here.median_s <= 70
        (settled,) = await broker.rows(Forecast)
        assert settled.started_ms is not None
        assert here.median_s == abs((settled.started_ms - settled.at_ms) / 1000 - settled.p50_s)


async def test_nothing_learned_counts_where_the_operator_says_so(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", cards=8, nodes=1)) as broker:
        broker.cycle.learn = False
        await let_run(broker, 300)
        await broker.pass_time(60)
        await broker.submit(cards=8)
        await broker.submit(cards=8)
        await broker.round()
        (made,) = await broker.rows(Forecast)
        assert made.p50_s == 3600
        assert await broker.rows(RunHistory) != []  # what runs tell is kept all the same
        broker.cycle.learn = True
        third = await broker.submit(cards=8)
        await broker.pass_time(5)
        assert (await broker.rows(Forecast, job_id=third))[0].p50_s < 1800


async def test_a_run_that_is_preempted_only_tells_that_it_took_longer(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].script_next(Script(run_s=5000, stop_s=2))
        job = await broker.submit()
        await broker.pass_time(100)
        await broker.preempt(job)
        await broker.pass_time(10)
        known = dict(await broker.store.read(learned.histories))
        assert len(known) == 5
        for history in known.values():
            assert history.durations.weight == 0
            assert sum(history.durations.beyond.values()) == pytest.approx(1)


async def test_claims_and_classes_carry_what_was_learned(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", cards=8, nodes=1)) as broker:
        await let_run(broker, 300)
        broker.fakes[A].script(Script(run_s=3000))
        await broker.submit(cards=8)
        await broker.pass_time(60)
        (claim,) = [c for held in broker.mirror._claims.values() for c in held.values()]
        assert claim.learned is not None
        assert 250 <= claim.learned.p50_s <= claim.learned.p90_s <= 400
        await broker.pass_time(500, step_s=20)
        (claim,) = [c for held in broker.mirror._claims.values() for c in held.values()]
        now_ms = broker.clock()
        assert planned_end_ms(claim, now_ms) > now_ms  # it has outlived all others, and may go on


async def test_the_first_start_settles_a_forecast(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", cards=8, nodes=1)) as broker:
        broker.fakes[A].script(Script(run_s=50, stop_s=2))
        await broker.round()  # what waited before the daemon started gets no forecast
        await broker.submit(cards=8)
        job = await broker.submit(cards=8)
        await broker.round()
        await broker.pass_time(70)
        await broker.expect(job, "RUNNING")
        (settled,) = await broker.rows(Forecast)
        run = (await broker.show(job)).runs[-1].id
        await broker.store.write(runs.request_stop, run, StopReason.PREEMPT, epoch=broker.lease.epoch)
        await broker.pass_time(120)
        await broker.expect(job, "SUCCEEDED", attempts=2)
        assert await broker.rows(Forecast) == [settled]


async def test_only_a_first_forecast_of_a_waiting_job_is_kept(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", cards=8, nodes=1)) as broker:
        job, gone = await broker.submit(cards=8), await broker.submit(cards=8)
        await broker.stop(gone)

        async def keep(p50_s: int) -> int:
            eta = Eta(p50_s, None, A)
            made = {job: eta, gone: eta}
            return await broker.store.write(forecasts.keep, made, 1000, epoch=broker.lease.epoch)

        assert [await keep(5), await keep(6)] == [1, 0]
        (row,) = await broker.rows(Forecast)
        assert (row.job_id, row.at_ms, row.p50_s, row.p90_s) == (job, 1000, 5, None)
        assert await broker.store.write(forecasts.forget, 1001) == 1
        assert await broker.rows(Forecast) == []


async def test_old_histories_are_forgotten(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        await broker.submit()
        await broker.pass_time(80)
        assert await broker.store.write(learned.forget) == 0
        broker.clock.now_ms += 200 * 86_400_000
        assert await broker.store.write(learned.forget) == 5
        known = await broker.store.read(learned.histories)
        assert known == []
