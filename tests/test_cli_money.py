"""The commands about money against the real API: prices, bills, balance, budgets, links."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from broker.adapter import Inventory
from broker.core.events import SeenRunning, SeenSucceeded
from broker.core.model import Accuracy, Price
from tests.api_fixtures import GPU_SPEC, START_MS, SZ_FREE, World, gpu_pool, token_of, world

__all__ = ["world"]


async def run(world: World, *words: str, as_: str = "root") -> subprocess.CompletedProcess[str]:
    environ = {
        **os.environ,
        "BROKER_URL": str(world.client.make_url("")),
        "BROKER_TOKEN": token_of(as_),
    }
    command = [sys.executable, "-m", "broker", *words]
    return await asyncio.to_thread(
        subprocess.run, command, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


async def told(world: World, *words: str, as_: str = "root") -> str:
    done = await run(world, *words, as_=as_)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split()) + " | " + " ".join(done.stderr.split())


async def document(world: World, *words: str, as_: str = "root") -> Any:
    done = await run(world, *words, "--json", as_=as_)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def ran(world: World, hours: int) -> str:
    job = await world.create("paid")
    task = await world.run_job(job, SeenRunning(world.clock()))
    world.clock.now_ms += hours * 3_600_000
    await world.advance(task, SeenSucceeded(world.clock()))
    return job


async def test_prices(world: World) -> None:
    prices = (Price(10_000_000), Price(20_000_000, frozenset(range(5)), 8 * 60, 22 * 60))
    await world.poll("sz-1", Inventory(START_MS, Accuracy.EXACT, (gpu_pool(*SZ_FREE),)), prices)
    shown = await told(world, "prices", "sz-1", "--spec", GPU_SPEC.id)
    row = f"sz-1 {GPU_SPEC.id} 10.00 10.00 00:00-24:00; 20.00 08:00-22:00 mon,tue,wed,thu,fri"
    assert row in shown
    assert (await document(world, "prices", "--limit", "1"))["totalSize"] > 1
    assert "none stated" in await told(world, "prices", "gz-2")
    assert (await run(world, "prices", "nowhere")).returncode == 1


async def test_bills_and_their_sums(world: World) -> None:
    job = await ran(world, 2)
    lines = await told(world, "bills", "--job", job, as_="alice")
    assert f"{job} paid alice sz-1 {GPU_SPEC.id} 1 2 h 00 min 25.00" in lines
    assert (await document(world, "bills", "--mine"))["items"] == []
    sums = await told(world, "bills", "--by", "center", "--from", "2025-03-01", "--to", "2025-03-02")
    assert "sz-1 深圳一号 1 2 h 00 min 25.00" in sums
    assert "25.00 CNY in all" in sums
    assert (await document(world, "bills", "--by", "day"))["groupBy"] == "day"
    assert (await run(world, "bills", "--by", "colour")).returncode == 2
    assert (await run(world, "bills", "--from", "yesterday")).returncode == 1
    shown = await told(world, "show", job, as_="alice")
    assert "why there: paid 25.00 CNY at sz-1 (12.50 CNY/h); no center was cheaper" in shown


async def test_budgets_and_balances(world: World) -> None:
    assert "may spend: no limit" in await told(world, "balance", as_="alice")
    made = await told(world, "tenant", "budget", "lab", "--cny", "20.5", "--per", "month")
    assert "budget: 20.50 per month, spent 0.00" in made
    await ran(world, 2)
    shown = await told(world, "balance", as_="alice")
    assert "may spend: -4.50 CNY" in shown
    assert "exhausted: yes" in shown
    assert "no budget any more" in await told(world, "tenant", "budget", "lab", "--none")
    assert "balance of lab is 99.00 CNY" in await told(
        world, "tenant", "credit", "lab", "--cny", "99", "--note", "top-up"
    )
    entries = await document(world, "balance", "lab", "--entries")
    assert [(e["amount"], e["note"], e["actor"]) for e in entries["entries"]] == [("99.00", "top-up", "root")]
    assert "99.00 99.00 root top-up" in await told(world, "balance", "lab", "--entries")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("tenant", "budget", "lab"), 2),
        (("tenant", "budget", "lab", "--cny", "1", "--none"), 2),
        (("tenant", "budget", "lab", "--cny", "one"), 2),
        (("tenant", "budget", "lab", "--cny", "1e999999999"), 2),
        (("tenant", "budget", "lab", "--cny", "nan"), 2),
        (("tenant", "budget", "lab", "--cny", "1.005"), 2),
        (("tenant", "budget", "lab", "--cny", "-1"), 2),
        (("tenant", "budget", "lab", "--cny", "1", "--per", "week"), 2),
        (("tenant", "budget", "nobody", "--cny", "1"), 1),
        (("tenant", "credit", "lab", "--cny", "0"), 1),
        (("tenant", "credit", "lab"), 2),
        (("balance", "nobody"), 1),
        (("user", "link", "alice", "--center", "sz-1"), 2),
        (("user", "unlink", "alice", "--center", "sz-1", "--user", "7"), 1),
    ],
)
async def test_bad_words(world: World, words: tuple[str, ...], code: int) -> None:
    done = await run(world, *words)
    assert (done.returncode, bool(done.stderr), done.stdout) == (code, True, "")


async def test_links(world: World) -> None:
    assert "sz-1 7 2025-03-01" in await told(
        world, "user", "link", "alice", "--center", "sz-1", "--user", "7"
    )
    assert (await document(world, "user", "link", "alice"))["totalSize"] == 1
    assert "not alice any more" in await told(
        world, "user", "unlink", "alice", "--center", "sz-1", "--user", "7"
    )
    assert (await document(world, "user", "link", "alice"))["items"] == []
