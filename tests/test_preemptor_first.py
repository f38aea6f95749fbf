"""A VIP job that is sent before its victims end, where the platform's own queue knows priorities.

No stop leaves before the preemptor was taken, whatever fails and whenever the daemon dies.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings

from adapters.fake import TRAITS, Fake, Fault
from broker.adapter import Lookup
from broker.core.check import violations
from broker.core.events import WentSilent
from broker.core.model import CenterId, JobId, PoolId, RunId, Snapshot
from broker.core.scheduler import schedule
from broker.store import rounds, runs
from broker.tables import Job, Run
from tests import builders
from tests.builders import snapshot
from tests.harness import Harness, center, harness
from tests.test_preemption import RULES, crowded, rules, running, vip
from tests.test_preemption_stories import LONG, events, fill, held, stale_plan, use, vip_job

A = CenterId("a")
QUEUES = replace(TRAITS, priority=True)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Harness]:
    """Center `a`: two nodes of eight cards, and a queue that serves higher priorities first."""
    async with harness(tmp_path, center("a", traits=QUEUES)) as broker:
        broker.fakes[A].script(LONG)
        use(broker)
        yield broker


async def crowd(broker: Harness) -> tuple[JobId, JobId]:
    """Two jobs that fill the center and may be stopped; the younger one is cheaper to stop."""
    old, young = await fill(broker)
    await broker.pass_time(60)
    return old, young


def acts(fake: Fake) -> list[tuple[str, RunId | None]]:
    """Calls with an effect, in order."""
    return [(call.name, call.run) for call in fake.calls if call.name in ("submit", "stop")]


async def last_run(broker: Harness, job: JobId) -> RunId:
    return (await broker.show(job)).runs[-1].id


async def record(broker: Harness, job: JobId) -> Job:
    (row,) = await broker.rows(Job, id=job)
    return row


async def marked(broker: Harness) -> list[tuple[str, str | None]]:
    """Runs that are to end, each with its preemptor."""
    return [(row.job_id, row.stop_for) for row in await broker.rows(Run) if row.stop_for]


async def nobody_ended(broker: Harness, *jobs: JobId) -> None:
    for job in jobs:
        await broker.expect(job, "RUNNING", attempts=1)
        assert (await broker.show(job)).stop is None
        assert (await record(broker, job)).preempted == 0
    assert await marked(broker) == []
    assert [name for name, _ in acts(broker.fakes[A]) if name == "stop"] == []
    assert await events(broker, "run.preempted") == []


async def test_the_stops_leave_once_the_preemptor_was_taken(broker: Harness) -> None:
    old, young = await crowd(broker)
    victim = await last_run(broker, young)
    first = await vip_job(broker)
    await broker.plan()
    preemptor = await last_run(broker, first)
    assert await marked(broker) == [(young, preemptor)]
    assert (await broker.show(young)).stop is None
    assert (await record(broker, first)).kill_sets == 1
    assert await held(broker) == []  # its own run holds what comes free
    await broker.plan()
    assert await marked(broker) == [(young, preemptor)]
    await broker.send()
    assert (await broker.show(young)).stop == "preempt"
    assert await marked(broker) == []
    await broker.send()
    assert acts(broker.fakes[A])[-2:] == [("submit", preemptor), ("stop", victim)]
    await broker.pass_time(10)
    await broker.expect(first, "RUNNING", at="a", attempts=1)
    await broker.expect(old, "RUNNING", attempts=1)
    await broker.expect(young, "PENDING", attempts=2)
    row = await record(broker, young)
    assert (row.preempted, row.retries_used) == (1, 0)
    assert len(await events(broker, "run.preempted")) == 1
    await broker.pass_time(7300, step_s=100)
    await broker.expect(first, "SUCCEEDED", attempts=1)
    await broker.expect(young, "RUNNING", attempts=2)
    broker.never_twice_at_once()


async def test_without_priorities_the_victims_end_first(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].script(LONG)
        use(broker)
        _, young = await crowd(broker)
        victim = await last_run(broker, young)
        first = await vip_job(broker)
        await broker.pass_time(20)
        await broker.expect(first, "RUNNING")
        assert acts(broker.fakes[A])[-2:] == [("stop", victim), ("submit", await last_run(broker, first))]


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.NO_CAPACITY, Fault.DENIED])
async def test_nobody_ends_for_a_preemptor_that_is_refused(broker: Harness, fault: Fault) -> None:
    old, young = await crowd(broker)
    first = await vip_job(broker)
    broker.fakes[A].fail("submit", fault)
    await broker.plan()
    await broker.send()
    await nobody_ended(broker, old, young)
    row = await record(broker, first)
    assert (row.kill_sets, row.last_kill_ms) == (0, broker.clock())  # not spent, but not at once again
    assert [e.job_id for e in await events(broker, "run.spared")] == [young]
    await broker.pass_time(300, step_s=30)
    await nobody_ended(broker, old, young)
    assert len(await events(broker, "run.to_preempt")) == 1


async def test_a_preemptor_that_was_refused_tries_again_after_the_pause(broker: Harness) -> None:
    await crowd(broker)
    first = await vip_job(broker)
    broker.fakes[A].fail("submit", Fault.NO_CAPACITY)
    await broker.plan()
    await broker.pass_time(1300, step_s=60)
    await broker.expect(first, "RUNNING", attempts=2)
    assert len(await events(broker, "run.preempted")) == 1
    broker.never_twice_at_once()


async def test_while_the_outcome_is_unknown_nobody_ends(broker: Harness) -> None:
    old, young = await crowd(broker)
    first = await vip_job(broker)
    broker.fakes[A].fail("submit", Fault.LOST_REPLY)
    await broker.plan()
    await broker.send()
    assert (await broker.show(first)).runs[-1].state == "DOUBT"
    preemptor = await last_run(broker, first)
    await broker.send()
    await broker.expect(old, "RUNNING")
    assert await marked(broker) == [(young, preemptor)]
    assert [name for name, _ in acts(broker.fakes[A]) if name == "stop"] == []
    await broker.pass_time(60)
    await broker.expect(first, "RUNNING", attempts=1)
    assert len(await events(broker, "run.preempted")) == 1


async def test_a_platform_that_cannot_be_asked_leaves_it_to_the_operator(tmp_path: Path) -> None:
    blind = replace(QUEUES, lookup=Lookup.NEITHER)
    async with harness(tmp_path, center("a", traits=blind)) as broker:
        broker.fakes[A].script(LONG)
        use(broker)
        old, young = await crowd(broker)
        first = await vip_job(broker)
        broker.fakes[A].fail("submit", Fault.DROPPED)
        await broker.pass_time(600, step_s=20)
        assert [job for job, _ in await marked(broker)] == [young]
        assert [name for name, _ in acts(broker.fakes[A]) if name == "stop"] == []
        await broker.resolve(first, never_ran=True)
        await nobody_ended(broker, old, young)


@pytest.mark.parametrize("before", ["call", "record"])
async def test_the_daemon_dies_around_the_call(broker: Harness, before: Literal["call", "record"]) -> None:
    old, young = await crowd(broker)
    first = await vip_job(broker)
    await broker.plan()
    await broker.crash(before)
    use(broker)
    assert [job for job, _ in await marked(broker)] == [young]
    assert [name for name, _ in acts(broker.fakes[A]) if name == "stop"] == []
    await broker.pass_time(60)
    if before == "call":  # proven not to have arrived: nobody ended for it
        await nobody_ended(broker, old, young)
    else:
        await broker.expect(first, "RUNNING", attempts=1)
    await broker.pass_time(900, step_s=30)
    await broker.expect(first, "RUNNING")
    assert len(await events(broker, "run.preempted")) == 1
    broker.never_twice_at_once()


async def test_the_daemon_dies_between_plan_and_call_and_between_taking_and_stop(broker: Harness) -> None:
    _, young = await crowd(broker)
    first = await vip_job(broker)
    await broker.plan()
    await broker.restart()
    use(broker)
    assert [job for job, _ in await marked(broker)] == [young]
    await broker.poll()
    await broker.send()
    await broker.restart()
    use(broker)
    assert (await broker.show(young)).stop == "preempt"
    await broker.poll()
    await broker.pass_time(20)
    await broker.expect(first, "RUNNING", attempts=1)
    assert len(await events(broker, "run.preempted")) == 1
    broker.never_twice_at_once()


async def test_a_user_takes_the_preemptor_back_before_it_left(broker: Harness) -> None:
    old, young = await crowd(broker)
    first = await vip_job(broker)
    await broker.plan()
    await broker.stop(first)
    await broker.expect(first, "STOPPED")
    await nobody_ended(broker, old, young)


async def test_a_user_takes_the_preemptor_back_while_its_outcome_is_unknown(broker: Harness) -> None:
    old, young = await crowd(broker)
    first = await vip_job(broker)
    broker.fakes[A].fail("submit", Fault.LOST_REPLY)
    await broker.plan()
    await broker.send()
    await broker.stop(first)
    assert await marked(broker) == []
    await broker.pass_time(60)
    await broker.expect(first, "STOPPED")
    for job in (old, young):
        await broker.expect(job, "RUNNING", attempts=1)
    assert await events(broker, "run.preempted") == []


async def test_a_center_that_drains_before_the_call_keeps_its_runs(broker: Harness) -> None:
    old, young = await crowd(broker)
    first = await vip_job(broker)
    await broker.plan()
    await broker.drain_center("a")
    await broker.send()
    await broker.expect(first, "PENDING")
    await nobody_ended(broker, old, young)


async def test_a_victim_that_ends_by_itself_meanwhile_is_not_stopped(broker: Harness) -> None:
    old, young = await crowd(broker)
    first = await vip_job(broker)
    await broker.plan()
    await broker.stop(young)
    await broker.send()
    await broker.pass_time(10)
    await broker.expect(first, "RUNNING", attempts=1)
    await broker.expect(young, "STOPPED", attempts=1)
    await broker.expect(old, "RUNNING", attempts=1)
    assert await events(broker, "run.preempted") == []
    assert await marked(broker) == []


async def test_a_victim_that_is_lost_meanwhile_is_asked_all_the_same(broker: Harness) -> None:
    _, young = await crowd(broker)
    victim = await last_run(broker, young)
    first = await vip_job(broker)
    await broker.plan()
    silent = WentSilent(broker.clock())
    await broker.store.write(runs.advance, victim, silent, epoch=broker.lease.epoch)
    await broker.send()
    assert (await broker.show(young)).stop == "preempt"
    await broker.pass_time(20)
    await broker.expect(first, "RUNNING", attempts=1)
    assert ("stop", victim) in acts(broker.fakes[A])
    broker.never_twice_at_once()


async def test_a_stale_plan_sends_nobody(broker: Harness) -> None:
    """Plan and commit are one step for the loop; here a victim is lost between them."""
    await crowd(broker)
    first = await vip_job(broker, nodes=2)
    plan = await stale_plan(broker)
    (preemption,) = plan.preemptions
    assert preemption.placement is not None
    assert len(preemption.victims) == 2
    broker.fakes[A].silence(broker.clock(), broker.clock() + 900_000)
    broker.clock.now_ms += 600_000
    await broker.look()
    await broker.lease.renew()
    stopped = await broker.store.write(
        rounds.commit_holds, plan.reservations, plan.preemptions, epoch=broker.lease.epoch, natives={}
    )
    assert stopped == 0
    assert await marked(broker) == []
    assert (await broker.show(first)).runs[-1].state == "NEW"


async def test_runs_that_are_to_end_count_as_kills_of_their_tenant(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", traits=QUEUES)) as broker:
        broker.fakes[A].script(LONG)
        use(broker, rules(replace(RULES, kills_per_tenant_h=1)))
        await crowd(broker)
        for _ in range(2):
            await vip_job(broker)
        broker.fakes[A].fail("submit", *[Fault.THROTTLED] * 3)
        for _ in range(3):
            await broker.plan()
            await broker.send()
        assert len(await marked(broker)) == 1


@pytest.mark.parametrize("lost", [False, True])
async def test_in_two_phases_the_stops_leave_once_the_start_was_taken(tmp_path: Path, lost: bool) -> None:
    async with harness(tmp_path, center("a", traits=replace(QUEUES, two_phase_create=True))) as broker:
        broker.fakes[A].script(LONG)
        use(broker)
        old, young = await crowd(broker)
        first = await vip_job(broker)
        if lost:
            broker.fakes[A].fail("submit", Fault.LOST_REPLY)
        broker.fakes[A].fail("start", Fault.NO_CAPACITY)
        await broker.plan()
        for _ in range(6):  # created, perhaps looked for until its deadline, found, refused
            await broker.send()
            await broker.look()
            broker.clock.now_ms += 20_000
            await broker.lease.renew()
        assert [e.job_id for e in await events(broker, "run.spared")] == [young]
        assert await events(broker, "run.preempted") == []
        for job in (old, young):
            await broker.expect(job, "RUNNING", attempts=1)
        await broker.pass_time(1500, step_s=60)
        await broker.expect(first, "RUNNING", attempts=2)
        assert len(await events(broker, "run.preempted")) == 1
        started = [call for call in broker.fakes[A].calls if call.name == "start" and call.fault is None]
        (stop,) = [c for c in broker.fakes[A].calls if c.name == "stop" and c.run == await victim_of(broker)]
        assert started[-1].at_ms <= stop.at_ms
        broker.never_twice_at_once()


async def victim_of(broker: Harness) -> RunId:
    (told,) = await events(broker, "run.preempted")
    return RunId(str(told.run_id))


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_fails_no_stop_leaves_before_the_preemptor_was_taken(
    broker: Harness, seed: int
) -> None:
    """Faults of every call and deaths of the daemon, drawn; then quiet, in which all comes to its end."""
    draw = random.Random(seed)
    await crowd(broker)
    first = await vip_job(broker)
    fake = broker.fakes[A]
    for _ in range(8):
        for call in ("submit", "stop", "observe", "find", "probe"):
            if draw.random() < 0.3:
                fake.fail(call, draw.choice(FAULTS))
        match draw.randrange(8):
            case 0:
                await broker.plan()
                await broker.crash("call")
                use(broker)
            case 1:
                await broker.plan()
                await broker.crash("record")
                use(broker)
            case 2:
                await broker.restart()
                use(broker)
            case _:
                await broker.pass_time(draw.choice([5, 15, 30]))
    for call in ("submit", "stop", "observe", "find", "probe"):
        fake._faults.pop(call, None)
    await broker.poll()
    await broker.pass_time(2000, step_s=50)
    await broker.expect(first, "RUNNING")
    broker.never_twice_at_once()
    kills = await events(broker, "run.preempted")
    assert len(kills) <= 1
    runs_of_first = {row.id for row in await broker.rows(Run, job_id=first)}
    arrived = False
    for made in fake.calls:
        arrived |= made.name == "submit" and made.run in runs_of_first and made.fault in ARRIVES
        assert arrived or made.name != "stop" or made.run not in {kill.run_id for kill in kills}
    assert await marked(broker) == []


FAULTS = (Fault.DROPPED, Fault.LOST_REPLY, Fault.THROTTLED, Fault.NO_CAPACITY)
ARRIVES = (None, Fault.LOST_REPLY)


@settings(deadline=None, max_examples=60)
@given(crowded())
def test_who_is_sent_first_changes_neither_victims_nor_what_is_checked(world: Snapshot) -> None:
    queueing = replace(world, centers=tuple(replace(c, vip_first=True) for c in world.centers))
    plan, other = schedule(queueing, rules()), schedule(world, rules())
    assert violations(plan, queueing) == []
    assert plan.stops == other.stops
    assert all(p.placement is None for p in other.preemptions)
    for preemption in plan.preemptions:
        assert preemption.placement is not None
        assert (preemption.placement.job, preemption.placement.pool) == (preemption.job, preemption.pool)
        assert not preemption.placement.platform_kills


def test_a_preemptor_that_is_sent_elsewhere_than_its_victims_is_a_fault() -> None:
    centers = (replace(builders.center("a"), vip_first=True), builders.center("b"))
    full = builders.pool("a/a", nodes=1, free=())
    world = snapshot(*centers, full, replace(running("r"), pool=full.id), vip())
    plan = schedule(world, rules())
    (preemption,) = plan.preemptions
    assert preemption.placement is not None
    elsewhere = replace(preemption.placement, pool=PoolId("b/a"))
    wrong = replace(plan, preemptions=(replace(preemption, placement=elsewhere),))
    assert any("is sent first to b/a" in fault for fault in violations(wrong, world))
