"""Reads that share work: totals kept until the next event, short reads taken together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlmodel import Session

from broker.core.model import CenterId, JobId, Kind, PublicStatus
from broker.store import centers, jobs, runs
from broker.store.job_pages import list_jobs
from broker.store.jobs import JobFilter, NoSuchJob
from broker.store.paging import Paging
from broker.store.writer import StoreUnavailable
from tests.api_fixtures import World, world

__all__ = ["world"]

pytestmark = pytest.mark.both_databases


async def total(world: World, by: str = "alice", **wanted: Any) -> int:
    caller = world.accounts[by]
    return (await world.store.read(list_jobs, caller, JobFilter(**wanted), Paging()))[1]


def counted(world: World) -> list[str]:
    """The counting statements that the readers run from now on."""
    seen: list[str] = []

    @event.listens_for(world.store._read_engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("SELECT count(*)"):
            seen.append(statement)

    return seen


# ---------------------------------------------------------------- totals


async def test_a_total_is_counted_once_until_something_happens(world: World) -> None:
    await world.create("a")
    seen = counted(world)
    assert [await total(world) for _ in range(5)] == [1] * 5
    assert len(seen) == 1
    await world.create("b")
    assert [await total(world) for _ in range(5)] == [2] * 5
    assert len(seen) == 2


async def test_a_total_is_right_after_every_kind_of_change(world: World) -> None:
    job = await world.create("a", labels={"k": "v"})
    assert await total(world, labels=(("k", "v"),)) == 1
    assert await total(world, status=PublicStatus.PENDING) == 1
    await world.ok("POST", f"/trainjob/{job}/stop")
    assert await total(world, status=PublicStatus.PENDING) == 0
    assert await total(world, status=PublicStatus.STOPPED) == 1
    assert (await world.call("DELETE", f"/trainjob/{job}")).status == 204
    assert await total(world) == 0
    assert await total(world, labels=(("k", "v"),)) == 0


async def test_totals_are_of_their_question_and_of_who_asks(world: World) -> None:
    await world.create("a")
    await world.create("b", as_="eve")
    for _ in range(2):  # the second time from what is kept
        assert [await total(world, by) for by in ("alice", "bob", "carol", "eve", "root")] == [1, 0, 1, 1, 2]
        assert await total(world, "root", mine=True) == 0
        assert await total(world, kind=Kind.ONLINE) == 0
        assert await total(world, labels=(("a", "b"),)) == 0
        assert await total(world, query="a") == 1
        assert await total(world, query="%") == 0


@pytest.mark.sqlite_only("the plans are SQLite's")
async def test_a_page_and_its_total_come_from_indexes_alone(world: World) -> None:
    """A list of an account or a tenant must not look through the jobs of all."""
    plans: list[str] = []

    def explained(session: Session) -> None:
        connection = session.connection().connection.driver_connection
        assert connection is not None
        for sql in counting:
            plans.extend(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", ("x", "train")))

    counting = counted(world)
    for by in ("alice", "carol"):
        await total(world, by, kind=Kind.TRAIN)
    await world.store.read(explained)
    assert [plan.split(" (")[0] for plan in plans] == [
        "SEARCH job USING COVERING INDEX ix_job_account",
        "SEARCH job USING COVERING INDEX ix_job_tenant",
    ]


async def plan_of(world: World, query: Callable[..., Any], *given: Any) -> list[str]:
    """How SQLite goes about every statement of a read."""
    statements: list[tuple[str, Any]] = []

    @event.listens_for(world.store._read_engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        if statement.startswith("SELECT"):
            statements.append((statement, values))

    def explained(session: Session) -> list[str]:
        connection = session.connection().connection.driver_connection
        assert connection is not None
        return [
            row[3]
            for statement, values in statements
            for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
        ]

    await world.store.read(query, *given)
    return await world.store.read(explained)


@pytest.mark.sqlite_only("the plans are SQLite's")
async def test_tracking_looks_through_no_runs_but_those_that_live_or_owe(world: World) -> None:
    """It is asked for every center at every poll, whatever has ended there in the years before."""
    plan = await plan_of(world, runs.watched, CenterId("hz"), world.clock())
    assert not [step for step in plan if step.startswith("SCAN")]
    for index in ("ix_run_live_center", "ix_run_stop_owed", "ix_run_watched"):
        assert [step for step in plan if index in step], plan


@pytest.mark.sqlite_only("the plans are SQLite's")
@pytest.mark.parametrize("query", [centers.list_centers, centers.center_facts])
async def test_counting_what_lives_at_centers_looks_through_no_ended_runs(
    world: World, query: Callable[..., Any]
) -> None:
    """A round asks for it, and whoever looks at the centers."""
    steps = [step for step in await plan_of(world, query) if " run " in f"{step} "]
    assert steps
    assert not [step for step in steps if "ix_run_live_center" not in step]


# ---------------------------------------------------------------- short reads


async def test_short_reads_that_come_together_share_a_transaction(world: World) -> None:
    made = [JobId(await world.create(f"job-{at}")) for at in range(10)]
    begun: list[int] = []
    event.listen(world.store._read_engine, "begin", lambda _connection: begun.append(1))
    caller, now_ms = world.accounts["alice"], world.clock()
    found = await asyncio.gather(
        *(world.store.look(jobs.show_job, caller, job, Kind.TRAIN, now_ms) for job in made)
    )
    assert [view.id for view in found] == made
    assert len(begun) < len(made)


async def test_readiness_is_one_read(world: World) -> None:
    """It is asked all day long, and of one picture: its centers are of the time of its leader."""
    begun: list[int] = []
    event.listen(world.store._read_engine, "begin", lambda _connection: begun.append(1))
    assert (await (await world.call("GET", "/readyz", as_=None)).json())["leader"] == "test"
    assert begun == [1]


async def test_what_one_read_is_refused_stays_with_it(world: World) -> None:
    job = JobId(await world.create("a"))
    caller, now_ms = world.accounts["alice"], world.clock()
    asked = [job, JobId("j-none"), job]
    found = await asyncio.gather(
        *(world.store.look(jobs.show_job, caller, each, None, now_ms) for each in asked),
        return_exceptions=True,
    )
    assert [type(each) for each in found] == [jobs.JobView, NoSuchJob, jobs.JobView]


async def test_a_read_sees_what_was_written_before_it_was_asked_for(world: World) -> None:
    """Also when it is asked for while another batch is on its way."""
    caller = world.accounts["alice"]

    async def create_and_look(at: int) -> str:
        job = JobId(await world.create(f"job-{at}"))
        return (await world.store.look(jobs.show_job, caller, job, None, world.clock())).name

    assert await asyncio.gather(*map(create_and_look, range(30))) == [f"job-{at}" for at in range(30)]


async def test_a_reader_that_leaves_keeps_nobody_waiting(world: World) -> None:
    job = JobId(await world.create("a"))
    caller = world.accounts["alice"]
    looks = [
        asyncio.ensure_future(world.store.look(jobs.show_job, caller, job, None, world.clock()))
        for _ in range(3)
    ]
    await asyncio.sleep(0)
    looks[0].cancel()
    found = await asyncio.gather(*looks, return_exceptions=True)
    assert [type(each) for each in found] == [asyncio.CancelledError, jobs.JobView, jobs.JobView]


async def test_a_database_that_refuses_is_unavailable_for_all_who_ask(world: World) -> None:
    def broken(session: Session) -> None:
        session.connection().execute(text("SELECT * FROM nowhere"))

    found = await asyncio.gather(world.store.look(broken), world.store.look(broken), return_exceptions=True)
    assert [type(each) for each in found] == [StoreUnavailable, StoreUnavailable]
    job = JobId(await world.create("a"))
    view = await world.store.look(jobs.show_job, world.accounts["alice"], job, None, world.clock())
    assert view.id == job
