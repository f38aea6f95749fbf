"""What explain says of the future, by the real application over a real store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from broker.adapter import Inventory
from broker.api import foresight
from broker.core.events import SeenRunning, SeenSucceeded
from broker.core.forecast import Eta
from broker.core.model import Accuracy, CenterId, FreeNodes, JobId, Price
from broker.core.plan import Plan
from broker.core.resources import slices
from broker.core.scheduler import schedule
from broker.store import forecasts
from tests.api_fixtures import GPU_NODE, GPU_SPEC, World, gpu_pool, together, world

__all__ = ["world"]

WHOLE = slices(GPU_NODE)[-1]
"""Eight cards: all that a job of `world.place` takes is one, so nodes are filled by their report."""


async def full(world: World, *free: FreeNodes, price: int = 10_000_000) -> None:
    """Only sz-1's accelerators are left, with this much free."""
    inventory = Inventory(world.clock(), Accuracy.EXACT, (gpu_pool(*free),))
    await world.poll("sz-1", inventory, (Price(price),))
    nothing = Inventory(world.clock(), Accuracy.EXACT, (gpu_pool(),))
    await world.poll("gz-2", nothing, (Price(price),))


async def explain(world: World, job: str) -> dict[str, Any]:
    answer: dict[str, Any] = await world.ok("GET", f"/broker/v1/jobs/{job}/explain")
    return answer


async def run_for(world: World, run_s: int, *, jobs: int = 6) -> None:
    for number in range(jobs):
        job = await world.create(f"past-{run_s}-{number}")
        end_ms = world.clock() + run_s * 1000
        run = await world.run_job(job, SeenRunning(world.clock()))
        world.clock.now_ms = end_ms
        await world.advance(run, SeenSucceeded(end_ms))


async def test_learned_run_times_tell_when_a_job_starts_and_another_ends(world: World) -> None:
    await run_for(world, 600)
    await full(world, FreeNodes(16, 128, 1, 1))
    first = await world.create("first")
    await world.run_job(first, SeenRunning(world.clock()))
    world.clock.now_ms += 100_000
    second = await world.create("second")
    world.clock.now_ms += 1  # of jobs of one millisecond the id decides
    third = await world.create("third")
    ends = (await explain(world, first))["expectedEnd"]
    assert 400 <= ends["p50"] <= ends["p90"] <= 700
    eta = (await explain(world, second))["eta"]
    assert ends["p50"] <= eta["p50"] <= eta["p90"] <= ends["p90"]
    assert (eta["centerId"], eta["error"]) == ("sz-1", None)
    later = (await explain(world, third))["eta"]
    assert eta["p50"] + 400 <= later["p50"] <= later["p90"]


async def test_where_nothing_can_be_said_there_is_no_forecast(world: World) -> None:
    await full(world)
    job = await world.create()
    answer = await explain(world, job)
    assert answer["eta"] == {"p50": None, "p90": None, "centerId": "", "error": None}
    assert answer["whatIf"] == []
    assert answer["position"] == 1


async def test_the_measured_error_is_that_of_the_finest_group(world: World) -> None:
    await full(world, FreeNodes(16, 128, 1, 1))
    job = await world.create()
    made = {JobId(job): Eta(100, 200, CenterId("sz-1"))}
    await world.store.write(forecasts.keep, made, world.clock(), epoch=world.epoch)
    world.clock.now_ms += 130_000
    await world.run_job(job, SeenRunning(world.clock()))
    waiting = await world.create("waiting")
    assert (await explain(world, waiting))["eta"]["error"] == {
        "centerId": "sz-1",
        "specId": GPU_SPEC.id,
        "jobs": 1,
        "medianS": 30.0,
        "p90Coverage": 1.0,
    }
    other = await world.create("other", specId=WHOLE.id)
    error = (await explain(world, other))["eta"]["error"]
    assert (error["centerId"], error["specId"], error["medianS"]) == ("", "", 30.0)


async def test_what_would_start_a_job_now(world: World) -> None:
    await full(world, FreeNodes(128, 1024, 8, 2))
    job = await world.create("gang", specId=WHOLE.id, nodeCount=3, centerId=["sz-1"])
    answer = await explain(world, job)
    assert answer["reasons"] == []  # no round of a leader has told them
    assert answer["whatIfNote"] == "feasible in a round of this moment; nothing is held, and it is no promise"
    nodes, other = answer["whatIf"]
    assert nodes == {
        "change": {"nodeCount": 2},
        "starts": True,
        "centerId": "sz-1",
        "specId": WHOLE.id,
        "pricePerHour": "160.00",
        "priceCny": "160.00",
        "message": "with nodeCount 2 it would start at sz-1",
    }
    assert other["change"] == {"specId": slices(GPU_NODE)[-2].id}
    without = await world.ok("GET", f"/broker/v1/jobs/{job}/explain?whatIf=false")
    assert (without["whatIf"], without["eta"]) == ([], answer["eta"])
    assert (await world.refused("GET", f"/broker/v1/jobs/{job}/explain?whatIf=perhaps"))[1] == "0201"
    assert (await world.refused("GET", f"/broker/v1/jobs/{job}/explain?x=1"))[1] == "0202"


async def test_a_change_that_is_told_starts_the_job(world: World) -> None:
    await full(world, FreeNodes(128, 1024, 8, 1))
    tight: dict[str, Any] = {"estimatedRunTime": 1800, "maxPrice": 3, "specId": WHOLE.id}
    told = (await explain(world, await world.create("a", **tight)))["whatIf"]
    (way,) = [way for way in told if "maxPrice" in way["change"]]
    assert way["change"] == {"maxPrice": 40}  # 8 cards, half an hour, 10 CNY
    enough = await world.create("b", **{**tight, **way["change"]})
    assert (await explain(world, enough))["eta"]["p50"] == 0
    less = await world.create("c", **{**tight, "maxPrice": 39.99})
    assert (await explain(world, less))["eta"]["p50"] is None


async def test_a_picture_serves_all_who_ask_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0

    def counted(*args: Any) -> Plan:
        nonlocal rounds
        rounds += 1
        return schedule(*args)

    monkeypatch.setattr(foresight, "schedule", counted)
    await full(world, FreeNodes(16, 128, 1, 1))
    jobs = [await world.create(f"j-{n}") for n in range(4)]
    answers = await together(*(explain(world, job) for job in jobs))
    assert rounds == 1
    assert sorted(answer["position"] for answer in answers) == [1, 2, 3, 4]
    world.clock.now_ms += 2_000
    await explain(world, jobs[0])
    assert rounds == 2
    new = await world.create("new")  # it is not in the picture
    await explain(world, new)
    assert rounds == 3


async def test_others_are_answered_while_somebody_looks_ahead(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look is in a thread: while it lasts the server answers."""
    entered, leave = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def held(*args: Any) -> Plan:
        loop.call_soon_threadsafe(entered.set)
        asyncio.run_coroutine_threadsafe(leave.wait(), loop).result(30)
        return schedule(*args)

    monkeypatch.setattr(foresight, "schedule", held)
    await full(world, FreeNodes(16, 128, 1, 1))
    job = await world.create()
    asking = asyncio.ensure_future(explain(world, job))
    await entered.wait()
    assert (await world.ok("GET", f"/broker/v1/jobs/{job}"))["status"] == "PENDING"
    leave.set()
    assert (await asking)["eta"]["p50"] == 0
