"""The mirror: kept in step by event numbers, it equals one that is read afresh after any change."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.core.events import (
    Accepted,
    Event,
    Found,
    NotFound,
    OutcomeUnknown,
    SeenFailed,
    SeenGone,
    SeenRunning,
    SeenStopped,
    SeenSucceeded,
    SubmitRefused,
    WentSilent,
)
from broker.core.machine import InvalidTransition
from broker.core.model import (
    CenterId,
    FailureKind,
    JobId,
    OnLost,
    RemoteId,
    RunId,
    RunState,
    StopReason,
    Tier,
)
from broker.core.plan import Placement
from broker.core.resources import slot_size
from broker.mirror import Mirror
from broker.store import debts, feed, retention, rounds, runs
from broker.store.jobs import WrongState
from broker.tables import Run
from tests.builders import ACCELERATORS, node, spec
from tests.harness import Harness, center, harness, picture

pytestmark = pytest.mark.both_databases

A = CenterId("a")
R = RemoteId("r")
Act = Callable[[Harness], Awaitable[None]]

EVENTS: list[Callable[[int], Event]] = [
    lambda t: Accepted(t, R),
    lambda t: SubmitRefused(t, FailureKind.NO_CAPACITY, "full"),
    lambda t: SubmitRefused(t, FailureKind.REFUSED, "never"),
    lambda t: OutcomeUnknown(t, "silence"),
    lambda t: Found(t, R),
    NotFound,
    SeenRunning,
    SeenSucceeded,
    lambda t: SeenFailed(t, FailureKind.JOB, "exit code 1"),
    lambda t: SeenFailed(t, FailureKind.EVICTED, "evicted"),
    SeenStopped,
    SeenGone,
    WentSilent,
]


def submit(cards: int, tier: Tier, on_lost: OnLost) -> Act:
    async def act(broker: Harness) -> None:
        await broker.submit(cards=cards, tier=tier, on_lost=on_lost, max_retries=1)

    return act


async def pick(broker: Harness, index: int) -> Run | None:
    rows = await broker.rows(Run)
    return rows[index % len(rows)] if rows else None


def place(index: int) -> Act:
    async def act(broker: Harness) -> None:
        run = await pick(broker, index)
        if run is None:
            return
        view = await broker.show(JobId(run.job_id))
        wanted = view.request.spec
        assert wanted is not None
        (pool,) = (await broker.store.read(feed.world)).pools
        slot = slot_size(pool.shape, wanted.shape)
        placement = Placement(view.id, view.class_key, A, pool.id, wanted, slot, 1, 1000, 3600)
        natives = {pool.id: pool.native}
        epoch = broker.lease.epoch
        await broker.store.write(rounds.commit_placements, [placement], natives=natives, epoch=epoch)

    return act


def tell(index: int, make: Callable[[int], Event]) -> Act:
    async def act(broker: Harness) -> None:
        run = await pick(broker, index)
        if run is None:
            return
        with suppress(InvalidTransition):  # the laws of the machine are not the question here
            await broker.store.write(
                runs.advance, RunId(run.id), make(broker.clock()), epoch=broker.lease.epoch
            )

    return act


def stop(index: int, reason: StopReason | None) -> Act:
    async def act(broker: Harness) -> None:
        run = await pick(broker, index)
        if run is None:
            return
        if reason is None:
            with suppress(WrongState):
                await broker.stop(JobId(run.job_id))
        else:
            await broker.store.write(runs.request_stop, RunId(run.id), reason, epoch=broker.lease.epoch)

    return act


def settle(index: int) -> Act:
    async def act(broker: Harness) -> None:
        run = await pick(broker, index)
        if run is not None and not RunState(run.state).live and run.stop_owed_ms is not None:
            await broker.store.write(debts.settle, RunId(run.id), epoch=broker.lease.epoch, stop=True)

    return act


def passes(seconds: int) -> Act:
    async def act(broker: Harness) -> None:
        broker.clock.now_ms += seconds * 1000

    return act


async def forget(broker: Harness) -> None:
    """Events that every mirror has seen may go."""
    await broker.mirror.refresh(broker.store)
    await broker.store.write(retention.forget_events, broker.clock())


INDEX = st.integers(0, 30)
ACTS = st.one_of(
    st.builds(submit, st.sampled_from([1, 2]), st.sampled_from(Tier), st.sampled_from(OnLost)),
    st.builds(place, INDEX),
    st.builds(place, INDEX),
    st.builds(tell, INDEX, st.sampled_from(EVENTS)),
    st.builds(tell, INDEX, st.sampled_from(EVENTS)),
    st.builds(stop, INDEX, st.sampled_from([None, *StopReason])),
    st.builds(settle, INDEX),
    st.builds(passes, st.sampled_from([1, 40, 4000])),
    st.just(forget),
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(ACTS, min_size=10, max_size=40))
def test_an_incremental_picture_is_the_whole_one(acts: list[Act]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_stays_in_step(Path(folder), acts))


async def _stays_in_step(folder: Path, acts: list[Act]) -> None:
    async with harness(folder, center("a")) as broker:
        for act in acts:
            await act(broker)
            fresh = Mirror()
            await fresh.refresh(broker.store)
            await broker.mirror.refresh(broker.store)
            world = await broker.store.read(feed.world)
            now = broker.clock()
            assert picture(broker.mirror, world, now) == picture(fresh, world, now)
            assert broker.mirror.queued == fresh.queued


async def test_a_picture_has_what_waits_and_what_is_held(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        early, late = await broker.submit(), await broker.submit()
        held = await broker.submit(cards=4)
        rows = await broker.rows(Run)
        await place([row.job_id for row in rows].index(held))(broker)
        taken = await snapshot(broker)
        (waiting,) = taken.classes
        assert [job.id for job in waiting.jobs] == [early, late]
        (claim,) = taken.claims
        assert (claim.shape, claim.pool, claim.nodes) == (spec(4).shape, "a/a", 1)
        assert taken.pools[0].shape == node(8)


async def test_jobs_that_avoid_a_center_stand_apart_until_they_need_not(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        plain, refused = await broker.submit(), await broker.submit()
        rows = await broker.rows(Run)
        index = [row.job_id for row in rows].index(refused)
        await place(index)(broker)
        await tell(index, EVENTS[1])(broker)
        apart = await snapshot(broker)
        assert {c.avoid: [job.id for job in c.jobs] for c in apart.classes} == {
            frozenset(): [plain],
            frozenset({A}): [refused],
        }
        broker.clock.now_ms += 30_000
        (together,) = (await snapshot(broker)).classes
        assert [job.id for job in together.jobs] == [plain, refused]


async def snapshot(broker: Harness) -> Any:
    await broker.mirror.refresh(broker.store)
    world = await broker.store.read(feed.world)
    return broker.mirror.snapshot(world, now_ms=broker.clock(), minute_of_week=0, accelerators=ACCELERATORS)


async def test_what_many_jobs_say_is_in_memory_once(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        for number in range(4):
            await broker.submit(command=f"train {number}", labels=(("part", str(number)),))
        for index in (0, 1):
            await place(index)(broker)
        changes = await broker.store.read(feed.changes, None, frozenset())
        (_, first), (_, second) = changes.claims
        assert first.request is second.request
        assert first.shape is second.shape
        assert first.class_key is second.class_key
        waits, waits_too = changes.queued
        assert waits.class_key is waits_too.class_key
        assert waits.tenant is waits_too.tenant
