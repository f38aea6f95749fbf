"""Prices, bills and their sums over HTTP, and how runs become bill lines."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import select

from broker.adapter import Inventory
from broker.core import events
from broker.core.events import Accepted, SeenFailed, SeenRunning, SeenStopped, SeenSucceeded, StopRequested
from broker.core.model import Accuracy, FailureKind, PoolId, Price, RemoteId, RunId, StopReason
from broker.store import centers, meters, purses, runs
from broker.store.purses import Billing
from broker.store.writer import Tx
from broker.tables import Bill, Job, Meter, Purse, Run
from tests.api_fixtures import (
    GPU_SPEC,
    START_MS,
    SZ_FREE,
    World,
    gpu_pool,
    world,
)

__all__ = ["world"]

HOUR = 3_600_000
DAY_PRICE = Price(20_000_000, frozenset(range(5)), 8 * 60, 22 * 60)


async def ran(
    world: World, name: str, *, hours: float = 1, as_: str = "alice", **config: Any
) -> tuple[str, str]:
    """A job that ran at sz-1 for 12.50 CNY an hour and succeeded, and its run."""
    job = await world.create(name, as_=as_, **config)
    run = await world.run_job(job, SeenRunning(world.clock()))
    world.clock.now_ms += int(hours * HOUR)
    await world.advance(run, SeenSucceeded(world.clock()))
    return job, run


async def rows(world: World, table: type[Any]) -> list[Any]:
    return await world.store.read(lambda session: list(session.exec(select(table)).all()))


# ---------------------------------------------------------------- a run becomes a line


async def test_an_ended_run_has_one_line_and_a_deleted_job_keeps_it(world: World) -> None:
    job, run = await ran(world, "one", hours=1.5)
    (line,) = (await world.ok("GET", "/bills"))["items"]
    assert line == {
        "billId": run,
        "kind": "run",
        "jobId": job,
        "jobName": "one",
        "taskId": run,
        "userId": world.accounts["alice"].id,
        "userName": "alice",
        "tenant": "lab",
        "centerId": "sz-1",
        "resourceSpecId": GPU_SPEC.id,
        "nodeCount": 1,
        "startTime": "2025-03-01 10:00:00",
        "finishTime": "2025-03-01 11:30:00",
        "seconds": 5400,
        "amount": "18.75",
        "currency": "CNY",
        "createTime": "2025-03-01 11:30:00",
        "createTimeMs": START_MS + 5_400_000,
    }
    await world.call("DELETE", f"/trainjob/{job}")
    assert (await world.refused("GET", f"/trainjob/{job}"))[1] == "0240"
    assert (await world.ok("GET", "/bills", params={"jobId": job}))["items"] == [line]


@pytest.mark.parametrize(
    "end",
    [
        SeenFailed(START_MS + HOUR, FailureKind.EVICTED, "evicted by x"),
        SeenFailed(START_MS + HOUR, FailureKind.HOST, "a machine died"),
        SeenStopped(START_MS + HOUR, "somebody stopped it there"),
    ],
)
@pytest.mark.parametrize("also", [False, True])
async def test_what_others_ended_is_metered_and_billed_only_if_so_configured(
    world: World, end: events.Event, also: bool
) -> None:
    await world.store.write(purses.set_billing, Billing(ZoneInfo("Asia/Shanghai"), also, True))
    job = await world.create("victim")
    run = await world.run_job(job, SeenRunning(world.clock()))
    world.clock.now_ms += HOUR
    await world.advance(run, end)
    (meter,) = await rows(world, Meter)
    assert (meter.measured_micro, meter.billed) == (12_500_000, also)
    assert meter.interrupted
    lines = (await world.ok("GET", "/bills"))["items"]
    assert [line["amount"] for line in lines] == (["12.50"] if also else [])
    first = (await world.ok("GET", f"/broker/v1/jobs/{job}"))["runs"][0]["costs"]
    assert (first["measured"], first["billed"]) == ("12.50", "12.50" if also else None)
    assert bool(first["notBilled"]) is not also


async def test_a_preempted_run_is_not_billed_and_a_cancelled_one_is(world: World) -> None:
    for name, reason in (("preempted", StopReason.PREEMPT), ("cancelled", StopReason.CANCEL)):
        job = await world.create(name)
        run = await world.run_job(job, SeenRunning(world.clock()))
        world.clock.now_ms += HOUR
        await world.advance(
            run, StopRequested(world.clock(), reason, claimed=True), SeenStopped(world.clock())
        )
    lines = (await world.ok("GET", "/bills"))["items"]
    assert [line["jobName"] for line in lines] == ["cancelled"]
    assert {m.interrupted: m.measured_micro for m in await rows(world, Meter)} == {
        "preempt": 12_500_000,
        "": 12_500_000,
    }


async def test_a_run_that_never_started_costs_nothing(world: World) -> None:
    job = await world.create("queued")
    run = await world.run_job(job)
    world.clock.now_ms += HOUR
    await world.ok("POST", f"/trainjob/{job}/stop")
    await world.advance(run, SeenStopped(world.clock()))
    assert [(m.measured_micro, m.billed) for m in await rows(world, Meter)] == [(0, False)]
    other = await world.create("unplaced")
    await world.ok("POST", f"/trainjob/{other}/stop")
    assert len(await rows(world, Meter)) == 1
    assert (await world.ok("GET", "/bills"))["totalSize"] == 0


async def test_the_end_is_told_again_and_again_and_billed_once(world: World) -> None:
    _, run = await ran(world, "again")
    for _ in range(3):
        await world.advance(
            run,
            SeenSucceeded(world.clock()),
            SeenFailed(world.clock(), FailureKind.JOB, "late"),
            SeenRunning(world.clock()),
        )
    assert len(await rows(world, Meter)) == 1
    assert [b.amount_micro for b in await rows(world, Bill)] == [12_500_000]
    (purse,) = await rows(world, Purse)
    assert purse.spent_micro == 12_500_000


async def test_a_second_line_of_a_run_cannot_be_written(world: World) -> None:
    _, run = await ran(world, "twice")

    def once_more(tx: Tx) -> None:
        row = tx.session.get_one(Run, run)
        meters.end(tx, tx.session.get_one(Job, row.job_id), row, runs.run_facts(row))

    with pytest.raises(IntegrityError):
        await world.sql(once_more)
    (purse,) = await rows(world, Purse)
    assert (purse.spent_micro, len(await rows(world, Bill))) == (12_500_000, 1)


async def test_a_crash_while_the_end_is_written_loses_nothing(world: World) -> None:
    """The end, its metering and its line are one transaction: all of it, or nothing and then again."""
    job = await world.create("crash")
    run = await world.run_job(job, SeenRunning(world.clock()))
    world.clock.now_ms += HOUR

    def dies(tx: Tx) -> None:
        runs.advance(tx, RunId(run), SeenSucceeded(tx.now_ms), epoch=world.epoch)
        tx.session.flush()
        raise KeyError("the process dies here")

    with pytest.raises(KeyError):
        await world.sql(dies)
    assert (await world.ok("GET", f"/trainjob/{job}"))["status"] == "RUNNING"
    assert [await rows(world, table) for table in (Meter, Bill, Purse)] == [[], [], []]
    await world.advance(run, SeenSucceeded(world.clock()))
    assert [len(await rows(world, table)) for table in (Meter, Bill, Purse)] == [1, 1, 1]


async def test_prices_are_those_of_the_placement_in_their_windows(world: World) -> None:
    """2025-03-01 is a Saturday; the week's prices begin on Monday at 8."""
    prices = (Price(10_000_000), DAY_PRICE)
    await world.poll("sz-1", Inventory(START_MS, Accuracy.EXACT, (gpu_pool(*SZ_FREE),)), prices)
    world.clock.now_ms = 1_740_956_400_000  # Monday 07:00
    job = await world.create("windows")
    run = await world.place(job)

    def tariff(tx: Tx) -> None:
        row = tx.session.get_one(Run, run)
        row.tariff = centers.tariff(tx.session, PoolId("sz-1/gpu"), GPU_SPEC.shape, 1)
        tx.session.add(row)

    await world.sql(tariff)
    await world.poll("sz-1", Inventory(START_MS, Accuracy.EXACT, (gpu_pool(*SZ_FREE),)), (Price(99_000_000),))
    await world.advance(run, Accepted(world.clock(), RemoteId("r")), SeenRunning(world.clock()))
    world.clock.now_ms += 3 * HOUR
    await world.advance(run, SeenSucceeded(world.clock()))
    detail = await world.ok("GET", f"/broker/v1/jobs/{job}")
    assert detail["cost"] == "50.00"
    assert [r["pricePerHour"] for r in detail["runs"][0]["costs"]["rates"]] == ["10.00", "20.00"]


# ---------------------------------------------------------------- who sees what, filters, pages


async def test_bills_are_seen_as_jobs_are(world: World) -> None:
    for name in ("alice", "bob", "eve"):
        await ran(world, f"of-{name}", as_=name)

    async def seen(as_: str, **params: str) -> set[str]:
        return {b["userName"] for b in (await world.ok("GET", "/bills", as_=as_, params=params))["items"]}

    assert await seen("alice") == {"alice"}
    assert await seen("carol") == {"alice", "bob"}
    assert await seen("root") == {"alice", "bob", "eve"}
    assert await seen("root", owner="me") == set()
    (of_eve,) = [b["jobId"] for b in (await world.ok("GET", "/bills", as_="eve"))["items"]]
    assert await seen("alice", jobId=of_eve) == await seen("alice", jobId="j-none") == set()
    whole = await world.ok("GET", "/bills/summary", as_="alice", params={"groupBy": "tenant"})
    assert [(s["key"], s["amount"]) for s in whole["items"]] == [("lab", "12.50")]


async def test_filters_and_pages(world: World) -> None:
    made = [await ran(world, f"n{i}", hours=i + 1) for i in range(3)]

    async def names(**params: Any) -> list[str]:
        return [b["jobName"] for b in (await world.ok("GET", "/bills", params=params))["items"]]

    assert await names() == ["n2", "n1", "n0"]
    assert await names(order="asc", pageSize=2) == ["n0", "n1"]
    assert await names(order="asc", pageSize=2, page=2) == ["n2"]
    assert await names(sort="amount", order="asc") == ["n0", "n1", "n2"]
    assert await names(sort="id") == [
        n for _, n in sorted(((r, f"n{i}") for i, (_, r) in enumerate(made)), reverse=True)
    ]
    assert await names(createAfter="2025-03-01 12:00:00") == ["n2", "n1"]
    assert await names(createBefore="2025-03-01 11:00:00") == ["n0"]
    assert await names(createAfter="2025-03-01", createBefore="2025-03-01") == ["n2", "n1", "n0"]
    assert await names(centerId="sz-1", specId=GPU_SPEC.id, jobId=made[1][0]) == ["n1"]
    assert await names(centerId="gz-2") == await names(specId="none") == []


async def test_sums(world: World) -> None:
    await ran(world, "a", hours=1)
    world.clock.now_ms += 20 * HOUR
    second, _ = await ran(world, "b", hours=2)

    async def sums(group: str, **params: Any) -> list[tuple[str, str, str, int]]:
        found = await world.ok("GET", "/bills/summary", params={"groupBy": group, **params})
        assert found["groupBy"] == group
        return [(s["key"], s["name"], s["amount"], s["seconds"]) for s in found["items"]]

    assert await sums("center") == [("sz-1", "深圳一号", "37.50", 10_800)]
    assert await sums("spec") == [(GPU_SPEC.id, "", "37.50", 10_800)]
    assert await sums("tenant") == [("lab", "", "37.50", 10_800)]
    assert await sums("day", order="asc") == [
        ("2025-03-01", "", "12.50", 3600),
        ("2025-03-02", "", "25.00", 7200),
    ]
    assert (await sums("job", sort="amount"))[0] == (second, "b", "25.00", 7200)
    assert await sums("day", pageSize=1) == [("2025-03-02", "", "25.00", 7200)]
    whole = await world.ok("GET", "/bills/summary", params={"groupBy": "day", "pageSize": 1})
    assert (whole["totalSize"], whole["amount"], whole["currency"]) == (2, "37.50", "CNY")
    empty = await world.ok("GET", "/bills/summary", params={"groupBy": "day", "jobId": "none"})
    assert (empty["items"], empty["totalSize"], empty["amount"]) == ([], 0, "0.00")


LONG = "x" * 3000
BAD = [
    ({"pageSize": "0"}, "0204"),
    ({"pageSize": "1001"}, "0204"),
    ({"pageSize": "1.5"}, "0201"),
    ({"pageSize": ""}, "0201"),
    ({"page": "-1"}, "0204"),
    ({"page": "x"}, "0201"),
    ({"sort": "colour"}, "0202"),
    ({"order": "up"}, "0202"),
    ({"createAfter": "yesterday"}, "0202"),
    ({"createBefore": LONG}, "0202"),
    ({"createAfter": "2025-03-02", "createBefore": "2025-03-01"}, "0230"),
    ({"centerId": "nowhere"}, "0210"),
    ({"centerId": LONG}, "0210"),
    ({"jobId": "a\0b"}, "0202"),
    ({"specId": "a\0b"}, "0202"),
    ({"owner": "you"}, "0202"),
    ({"colour": "red"}, "0202"),
    ({"groupBy": "colour"}, "0202"),
]


@pytest.mark.parametrize(("params", "code"), BAD)
async def test_bad_queries_of_bills(world: World, params: dict[str, str], code: str) -> None:
    if "groupBy" not in params:
        assert (await world.refused("GET", "/bills", params=params))[:2] == (400, code)
    summed = {"groupBy": "day", **params}
    assert (await world.refused("GET", "/bills/summary", params=summed))[:2] == (400, code)


async def test_a_sum_needs_its_group_and_all_need_a_token(world: World) -> None:
    status, code, detail = await world.refused("GET", "/bills/summary")
    assert (status, code) == (400, "0203")
    assert "groupBy" in detail
    twice = [("groupBy", "day"), ("groupBy", "job")]
    assert (await world.refused("GET", "/bills/summary", params=twice))[:2] == (400, "0202")
    for path in ("/bills", "/bills/summary", "/resource/prices"):
        assert (await world.refused("GET", path, as_=None))[:2] == (401, "0101")


# ---------------------------------------------------------------- prices


async def test_prices_now_and_by_windows(world: World) -> None:
    world.clock.now_ms = 1_740_963_600_000  # Monday 09:00
    prices = (Price(10_000_000), DAY_PRICE)
    await world.poll("sz-1", Inventory(START_MS, Accuracy.EXACT, (gpu_pool(*SZ_FREE),)), prices)
    params = {"resourceSpecId": GPU_SPEC.id, "order": "asc"}
    found = await world.ok("GET", "/resource/prices", params=params)
    assert found["totalSize"] == 2
    free, priced = found["prices"]
    assert priced == {
        "centerId": "sz-1",
        "resourceSpecId": GPU_SPEC.id,
        "resourceSpecName": GPU_SPEC.name,
        "unitPrice": "20.00",
        "currency": "CNY",
        "unit": "nodeHour",
        "stated": True,
        "windows": [
            {
                "days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"],
                "from": "00:00",
                "to": "24:00",
                "unitPrice": "10.00",
            },
            {
                "days": ["mon", "tue", "wed", "thu", "fri"],
                "from": "08:00",
                "to": "22:00",
                "unitPrice": "20.00",
            },
        ],
        "pools": ["gpu"],
    }
    assert (free["centerId"], free["stated"], free["unitPrice"], free["windows"]) == (
        "gz-2",
        False,
        "0.00",
        [],
    )
    by_center = await world.ok("GET", "/resource/prices", params={"centerId": "sz-1"})
    assert {p["centerId"] for p in by_center["prices"]} == {"sz-1"}
    dearest = await world.ok("GET", "/resource/prices", params={"sort": "unitPrice", "pageSize": 1})
    assert dearest["prices"][0]["unitPrice"] == "160.00"  # eight cards
    specs = (await world.ok("GET", "/resource/specs"))["resourceSpecs"]
    shown = {s["resourceSpecId"]: s.get("price") for s in specs}
    assert shown[GPU_SPEC.id] == {
        "unitPrice": "20.00",
        "currency": "CNY",
        "unit": "nodeHour",
        "centerId": "sz-1",
    }
    assert None in shown.values()  # nobody states a price of the NPUs
    job = await world.create("estimate", estimatedRunTime=1800, nodeCount=2, centerId=["sz-1"])
    assert (await world.ok("GET", f"/broker/v1/jobs/{job}"))["costs"]["estimated"] == "20.00"
    anywhere = await world.create("cheapest", estimatedRunTime=1800)
    assert (await world.ok("GET", f"/broker/v1/jobs/{anywhere}"))["costs"]["estimated"] == "0.00"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        *((p, c) for p, c in BAD if {"pageSize", "page", "order", "sort", "centerId"} & p.keys()),
        ({"resourceSpecId": "none"}, "0211"),
        ({"resourceSpecId": LONG}, "0211"),
        ({"resourceSpecId": GPU_SPEC.id, "centerId": "new"}, "0211"),
        ({"colour": "red"}, "0202"),
    ],
)
async def test_bad_queries_of_prices(world: World, params: dict[str, str], code: str) -> None:
    assert (await world.refused("GET", "/resource/prices", params=params))[:2] == (400, code)


# ---------------------------------------------------------------- the story


async def test_what_was_paid_and_why_not_less(world: World) -> None:
    job = await world.create("told")
    run = await world.place(job)
    reason = {
        "centerId": "gz-2",
        "code": "capacity",
        "message": "needs 1 slots of its size in one pool, 0 are free",
        "need": 1,
        "have": 0,
        "unit": "slots",
    }

    def considered(tx: Tx) -> None:
        row = tx.session.get_one(Run, run)
        cheaper = {"centerId": "gz-2", "rateMicroPerHour": 8_000_000, "weighedCostMicro": 1, "reason": reason}
        dearer = {"centerId": "x", "rateMicroPerHour": 13_000_000, "weighedCostMicro": 1, "reason": None}
        row.placement = {**row.placement, "estimatedCostMicro": 12_500_000, "alternatives": [dearer, cheaper]}
        tx.session.add(row)

    await world.sql(considered)
    await world.advance(run, Accepted(world.clock(), RemoteId("r")), SeenRunning(world.clock()))
    world.clock.now_ms += HOUR // 2
    costs = (await world.ok("GET", f"/broker/v1/jobs/{job}"))["costs"]
    assert costs["story"].startswith("costs 6.25 CNY so far at sz-1 (12.50 CNY/h); ")
    world.clock.now_ms += HOUR // 2
    await world.advance(run, SeenSucceeded(world.clock()))
    detail = await world.ok("GET", f"/broker/v1/jobs/{job}")
    assert detail["costs"]["story"] == (
        "paid 12.50 CNY at sz-1 (12.50 CNY/h); the cheaper gz-2 (8.00 CNY/h) did not take it:"
        " needs 1 slots of its size in one pool, 0 are free"
    )
    assert detail["runs"][0]["costs"]["estimated"] == "12.50"


# ---------------------------------------------------------------- the center's own record


async def match(world: World, run: str, *spans: tuple[int, int]) -> bool:
    return await world.store.write(meters.match, RunId(run), spans, epoch=world.epoch)


async def test_a_late_record_corrects_the_bill_once(world: World) -> None:
    job, run = await ran(world, "late", hours=2)
    begun = START_MS + HOUR // 2
    assert not await match(world, run)
    assert await match(world, run, (begun, START_MS + 2 * HOUR))
    assert await match(world, run, (START_MS, START_MS + 2 * HOUR))  # nothing new
    lines = (await world.ok("GET", "/bills", params={"sort": "id", "order": "asc"}))["items"]
    assert [(b["billId"], b["kind"], b["amount"], b["seconds"]) for b in lines] == [
        (run, "run", "25.00", 7200),
        (f"{run}-c", "correction", "-6.25", 0),
    ]
    costs = (await world.ok("GET", f"/broker/v1/jobs/{job}"))["runs"][0]["costs"]
    assert (costs["measured"], costs["center"], costs["billed"]) == ("25.00", "18.75", "18.75")
    (purse,) = await rows(world, Purse)
    assert purse.spent_micro == 18_750_000
    (summed,) = (await world.ok("GET", "/bills/summary", params={"groupBy": "job"}))["items"]
    assert (summed["lines"], summed["runs"], summed["amount"], summed["seconds"]) == (2, 1, "18.75", 7200)


async def test_a_record_is_only_shown_where_bills_go_by_the_brokers_clock(world: World) -> None:
    await world.store.write(purses.set_billing, Billing(ZoneInfo("Asia/Shanghai"), False, False))
    job, run = await ran(world, "kept", hours=2)
    assert await match(world, run, (START_MS, START_MS + HOUR))
    costs = (await world.ok("GET", f"/broker/v1/jobs/{job}"))["runs"][0]["costs"]
    assert (costs["measured"], costs["center"], costs["billed"]) == ("25.00", "12.50", "25.00")


async def test_bills_come_to_what_the_purse_says(world: World) -> None:
    for i in range(4):
        _, run = await ran(world, f"s{i}", hours=0.777 * (i + 1))
        if i % 2:
            await match(world, run, (world.clock() - HOUR // 3, world.clock()))
    lines = await rows(world, Bill)
    (purse,) = await rows(world, Purse)
    assert purse.spent_micro == sum(b.amount_micro for b in lines) > 0
    assert all(b.amount_micro % 10_000 == 0 for b in lines)
