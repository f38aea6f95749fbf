"""A seeded sample of what `make chaos` does: the daemon killed at numbered points; see tests/chaos."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.points import Counted, Points, where
from tests.chaos.process import Launcher
from tests.chaos.story import Plot, kills_of, make_template, tell

KILLS = 7


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher() as running:
        yield running


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("template"))


@pytest.mark.parametrize(("site", "seed"), [("local", 1), ("aihub-faulty", 2)])
def test_kills_change_nothing(
    site: str, seed: int, tmp_path: Path, launcher: Launcher, template: Path
) -> None:
    """One of the kills is between the claim of a submission and its record."""
    kills = (
        *kills_of(seed, KILLS - 2),
        "after COMMIT of outbox.claim#1",
        "before COMMIT of outbox.record_outcome#1",
    )
    told = tell(Plot(site, seed, kills), tmp_path, launcher, template)
    assert told.killed == len(told.died)
    assert told.killed in (KILLS - 1, KILLS), "the last start may end before its kill"
    assert len(told.passed) > 50


async def test_every_suspension_is_a_point_with_its_place(tmp_path: Path) -> None:
    """Of many passes of one place those that are powers of two have a number."""
    from broker.supervise import loop

    record = tmp_path / "points"
    stopping, passes = asyncio.Event(), 0

    async def once() -> float:
        nonlocal passes
        passes += 1
        if passes == 5:
            stopping.set()
        return 0.0

    turning = loop("test", once, period_s=0.001, wake=asyncio.Event(), stopping=stopping)
    await asyncio.get_running_loop().create_task(Counted(turning, Points("", record)))
    lines = record.read_text().splitlines()
    assert [line.split(" ")[0] for line in lines] == ["1", "2", "3"]
    assert {line.split(" ")[1].rpartition("#")[0].rpartition(":")[0] for line in lines} == {
        "broker/supervise.py:loop"
    }
    assert [line.rpartition("#")[2] for line in lines] == ["1", "2", "4"]


async def test_a_wait_inside_a_library_has_no_place() -> None:
    waiting = asyncio.sleep(1)
    waiting.send(None)
    assert where(waiting) == ""
    waiting.close()
