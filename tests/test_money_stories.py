"""Stories of money through the whole leader: budgets, preemptions, crashes, late records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.fake import TRAITS, Fault, Script
from broker.api.wire_money import story
from broker.core.model import CenterId, JobId, TenantId
from broker.reconcile import TRIES
from broker.store import purses
from broker.tables import Bill, Meter, Purse
from tests.harness import Harness, center, harness

LAB = TenantId("lab")
HOUR = 3600


async def budget(broker: Harness, cny: int, **changes: Any) -> None:
    await broker.caller()
    facts = {"per_month": False, "actor": "root", **changes}
    await broker.store.write(purses.set_budget, LAB, cny * 10**6, **facts)


async def amounts(broker: Harness, job: JobId | None = None) -> list[int]:
    lines = await broker.rows(Bill, **({} if job is None else {"job_id": job}))
    return [line.amount_micro for line in lines]


async def test_a_budget_stops_placement_and_never_a_run(tmp_path: Path) -> None:
    """Two hours of one card for 10 CNY each: the third job waits until there is money again."""
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[CenterId("a")].script(Script(run_s=3 * HOUR))
        await budget(broker, 40)
        first = await broker.submit(estimated_run_time_s=2 * HOUR)
        await broker.round()
        second = await broker.submit(estimated_run_time_s=2 * HOUR)
        third = await broker.submit(estimated_run_time_s=2 * HOUR)
        await broker.round()
        await broker.expect(first, "RUNNING")
        await broker.expect(second, "RUNNING")
        await broker.expect(third, "PENDING")
        why = (await broker.reasons(third))["a"]
        assert (why["code"], why["need"], why["have"]) == ("budget", 20_000_000, 0)
        await budget(broker, 0)
        await broker.pass_time(2.5 * HOUR, step_s=600)  # longer than planned: what runs goes on
        await broker.expect(first, "RUNNING")
        await broker.pass_time(HOUR, step_s=600)
        await broker.expect(first, "SUCCEEDED")
        assert await amounts(broker) == [30_000_000, 30_000_000]
        await broker.expect(third, "PENDING")
        assert (await broker.reasons(third))["a"]["code"] == "budget"
        await budget(broker, 80)
        await broker.round()
        await broker.expect(third, "RUNNING")


async def test_a_new_month_brings_the_budget_back(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[CenterId("a")].script(Script(run_s=HOUR))
        await budget(broker, 10, per_month=True)
        first = await broker.submit(estimated_run_time_s=HOUR)
        await broker.pass_time(2 * HOUR, step_s=600)
        await broker.expect(first, "SUCCEEDED")
        second = await broker.submit(estimated_run_time_s=HOUR)
        await broker.round()
        await broker.expect(second, "PENDING")
        broker.clock.now_ms += 31 * 24 * HOUR * 1000
        await broker.round()
        await broker.expect(second, "RUNNING")


async def test_a_prepaid_balance_is_spent_and_topped_up(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[CenterId("a")].script(Script(run_s=HOUR))
        await broker.caller()
        await broker.store.write(purses.enter, LAB, 10_000_000, note="", actor="root")
        first = await broker.submit(estimated_run_time_s=HOUR)
        second = await broker.submit(estimated_run_time_s=HOUR)
        await broker.pass_time(2 * HOUR, step_s=600)
        await broker.expect(first, "SUCCEEDED")
        await broker.expect(second, "PENDING")
        (purse,) = await broker.rows(Purse)
        assert purse.balance_micro == 0
        await broker.store.write(purses.enter, LAB, 10_000_000, note="", actor="root")
        await broker.round()
        await broker.expect(second, "RUNNING")


async def test_what_the_platform_ended_is_not_paid_and_its_rerun_is(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        fake = broker.fakes[CenterId("a")]
        fake.script_next(Script(run_s=HOUR, evict_s=HOUR // 2))
        fake.script(Script(run_s=HOUR))
        job = await broker.submit()
        await broker.pass_time(3 * HOUR, step_s=60)
        await broker.expect(job, "SUCCEEDED", attempts=2)
        meters = await broker.rows(Meter)
        assert sorted((m.interrupted, m.measured_micro, m.billed) for m in meters) == [
            ("", 10_000_000, True),
            ("evicted", 5_000_000, False),
        ]
        assert await amounts(broker, job) == [10_000_000]


async def test_the_daemon_dies_again_and_again_and_bills_once(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[CenterId("a")].script(Script(run_s=600))
        made = [await broker.submit() for _ in range(3)]
        await broker.poll()
        await broker.plan()
        await broker.crash(before="record")  # the calls were made, their answers are lost
        for _ in range(40):
            broker.clock.now_ms += 60_000
            await broker.round()
            await broker.restart()
        for job in made:
            await broker.expect(job, "SUCCEEDED", attempts=1)
            assert len(await amounts(broker, job)) == 1
        (purse,) = await broker.rows(Purse)
        assert purse.spent_micro == sum(await amounts(broker))


async def test_why_the_cheaper_center_was_not_taken(tmp_path: Path) -> None:
    async with harness(tmp_path, center("cheap", price="5", nodes=1), center("dear", price="20")) as broker:
        for fake in broker.fakes.values():
            fake.script(Script(run_s=HOUR))
        await broker.submit(cards=8)
        await broker.round()
        job = await broker.submit(cards=2, estimated_run_time_s=HOUR)
        await broker.pass_time(2 * HOUR, step_s=300)
        await broker.expect(job, "SUCCEEDED", at="dear")
        assert story(await broker.show(job)) == (
            "paid 40.00 CNY at dear (40.00 CNY/h); the cheaper cheap (10.00 CNY/h) did not take it:"
            " needs 1 slots of its size in one pool, 0 are free"
        )


# ---------------------------------------------------------------- the center's own record

METERING = replace(TRAITS, metering=True)


async def test_a_record_that_comes_late_corrects_the_bill(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", traits=METERING)) as broker:
        fake = broker.fakes[CenterId("a")]
        fake.script(Script(run_s=HOUR))
        fake.record_lag_s, fake.record_skew_s = 900, 360
        fake.fail("metered", Fault.DROPPED, Fault.LOST_REPLY)
        job = await broker.submit(nodes=2)
        await broker.pass_time(HOUR + 30, step_s=30)
        await broker.expect(job, "SUCCEEDED")
        assert await amounts(broker) == [20_000_000]
        await broker.restart()
        await broker.pass_time(3 * HOUR, step_s=60)
        assert await amounts(broker) == [20_000_000, -2_000_000]
        (meter,) = await broker.rows(Meter)
        assert (meter.center_micro, meter.owed_next_ms, len(meter.center_spans)) == (18_000_000, None, 2)
        asked = len([call for call in fake.calls if call.name == "metered"])
        await broker.pass_time(HOUR, step_s=600)
        assert len([call for call in fake.calls if call.name == "metered"]) == asked


async def test_a_record_that_says_the_same_writes_nothing(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", traits=METERING)) as broker:
        broker.fakes[CenterId("a")].script(Script(run_s=HOUR))
        await broker.submit()
        await broker.pass_time(2 * HOUR, step_s=60)
        assert await amounts(broker) == [10_000_000]
        assert [m.center_micro for m in await broker.rows(Meter)] == [10_000_000]


async def test_a_record_that_never_comes_is_given_up(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", traits=METERING)) as broker:
        fake = broker.fakes[CenterId("a")]
        fake.record_lag_s = 10**9
        await broker.submit()
        await broker.pass_time(120)
        for _ in range(TRIES):
            broker.clock.now_ms += 6 * HOUR * 1000
            await broker.reconcile.once()
        (meter,) = await broker.rows(Meter)
        assert (meter.owed_next_ms, meter.center_micro) == (None, None)
        assert await amounts(broker) == [170_000]
