"""Stories of VIP jobs, victims and reservations through the whole leader."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session, col, select

from adapters.fake import Script
from broker.core.model import (
    CenterId,
    JobId,
    Tier,
)
from broker.core.plan import Plan
from broker.core.policy import PolicySet
from broker.core.scheduler import schedule
from broker.store import feed, rounds
from broker.tables import Event
from broker.tables import Reservation as ReservationRow
from tests import builders
from tests.harness import Harness, center, harness
from tests.test_preemption import A, rules

LONG = Script(run_s=7200)


def use(broker: Harness, policies: PolicySet | None = None) -> None:
    """Whole hours of grace make stories long, so runs are safe for a minute only."""
    broker.cycle.policies = policies or rules()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Harness]:
    """Center `a`: two nodes of eight cards."""
    async with harness(tmp_path, center("a")) as broker:
        broker.fakes[A].script(LONG)
        use(broker)
        yield broker


def of(broker: Harness, center_id: str = "a") -> Any:
    return broker.fakes[CenterId(center_id)]


async def fill(broker: Harness, jobs: int = 2, cards: int = 8, **request: Any) -> list[JobId]:
    """Running jobs that started one after the other."""
    made = []
    for _ in range(jobs):
        made.append(await broker.submit(cards=cards, estimated_run_time_s=7200, **request))
        await broker.pass_time(30)
        await broker.expect(made[-1], "RUNNING")
    return made


async def vip_job(broker: Harness, cards: int = 8, *, policy: int = 2, **request: Any) -> JobId:
    return await broker.submit(
        cards=cards, tier=Tier.VIP, preempt_policy=policy, preemptible=False, **request
    )


async def held(broker: Harness) -> list[tuple[str, str]]:
    def query(session: Session) -> list[tuple[str, str]]:
        return [(r.job_id, r.why) for r in session.exec(select(ReservationRow)).all()]

    return await broker.store.read(query)


async def events(broker: Harness, kind: str) -> list[Event]:
    def query(session: Session) -> list[Event]:
        return list(session.exec(select(Event).where(Event.kind == kind).order_by(col(Event.seq))).all())

    return await broker.store.read(query)


async def test_the_cheapest_victim_goes_on_elsewhere_or_later(broker: Harness) -> None:
    old, young = await fill(broker)
    await broker.pass_time(60)
    first = await vip_job(broker)
    await broker.plan()
    assert (await broker.show(young)).stop == "preempt"
    assert (await broker.show(old)).stop is None
    assert await held(broker) == [(first, "preempting")]
    (told,) = await events(broker, "run.preempted")
    assert (told.job_id, told.data) == (young, {"preemptedFor": first})
    assert (await broker.reasons(first))["a"]["code"] == "preempting"
    await broker.pass_time(20)
    await broker.expect(first, "RUNNING", at="a")
    assert await held(broker) == []
    view = await broker.show(young)
    assert (view.status, view.retries_used, len(view.runs)) == ("PENDING", 0, 2)
    assert (await broker.show(old)).stop is None
    await broker.pass_time(7300)
    await broker.expect(first, "SUCCEEDED", attempts=1)
    await broker.expect(young, "RUNNING", attempts=2)
    assert len(await events(broker, "run.preempted")) == 1
    broker.never_twice_at_once()


async def test_while_a_victim_winds_down_nobody_takes_its_place_and_no_other_is_stopped(
    broker: Harness,
) -> None:
    of(broker).script(Script(run_s=7200, stop_s=25))
    await fill(broker)
    await broker.pass_time(60)
    first = await vip_job(broker)
    small = await broker.submit(cards=1, estimated_run_time_s=5)
    await broker.pass_time(20)
    await broker.expect(first, "PENDING")
    await broker.expect(small, "PENDING")
    assert (await broker.reasons(small))["a"]["code"] == "capacity"
    await broker.pass_time(20)
    await broker.expect(first, "RUNNING")
    assert len(await events(broker, "run.preempted")) == 1


async def test_a_lost_race_spends_the_budget(broker: Harness) -> None:
    await fill(broker)
    await broker.pass_time(60)
    now = broker.clock()
    first = await vip_job(broker)
    await broker.plan()
    of(broker).foreign("a", 2, now, now + 10_000_000)  # others take both nodes before the VIP job does
    await broker.pass_time(2500, step_s=25)
    await broker.expect(first, "PENDING")
    assert len(await events(broker, "run.preempted")) == 1
    assert [why for _, why in await held(broker)] == ["vip"]


async def test_policy_1_holds_what_comes_free_and_fills_in_what_ends_in_time(broker: Harness) -> None:
    one = await broker.submit(cards=8, estimated_run_time_s=900)
    other = await broker.submit(cards=8, estimated_run_time_s=2000)
    of(broker).script(Script(run_s=900), of=one)
    of(broker).script(Script(run_s=2000), of=other)
    await broker.round()
    first = await vip_job(broker, nodes=2, policy=1)
    await broker.round()
    assert await held(broker) == [(first, "vip")]
    await broker.pass_time(905)
    await broker.expect(one, "SUCCEEDED")
    slow = await broker.submit(cards=8, estimated_run_time_s=3600)
    await broker.pass_time(15)
    await broker.expect(slow, "PENDING")
    assert (await broker.reasons(slow))["a"]["code"] == "reserved"
    assert first in (await broker.reasons(slow))["a"]["message"]
    assert (await broker.reasons(first))["a"]["code"] == "vip_waiting"
    quick = await broker.submit(cards=8, estimated_run_time_s=500)
    of(broker).script(Script(run_s=500), of=quick)
    await broker.pass_time(15)
    await broker.expect(quick, "RUNNING")
    await broker.pass_time(1100)
    await broker.expect(other, "SUCCEEDED")
    await broker.expect(first, "RUNNING")
    await broker.expect(slow, "PENDING")
    assert await events(broker, "run.preempted") == []
    assert await held(broker) == []


async def test_a_gang_is_stopped_on_all_its_nodes(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", nodes=3)) as broker:
        of(broker).script(LONG)
        use(broker)
        gang = await broker.submit(cards=8, nodes=2, estimated_run_time_s=7200)
        spared = await broker.submit(cards=8, preemptible=False, estimated_run_time_s=7200)
        await broker.round()
        await broker.pass_time(90)
        first = await vip_job(broker)
        await broker.pass_time(30)
        await broker.expect(first, "RUNNING")
        await broker.expect(spared, "RUNNING")
        await broker.expect(gang, "PENDING", attempts=2)
        assert [e for e in of(broker).executions if e.job == gang and e.end_ms is None] == []
        broker.never_twice_at_once()


async def test_no_kill_when_the_in_flight_room_is_what_blocks(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a", max_in_flight=1)) as broker:
        of(broker).script(LONG)
        use(broker)
        await fill(broker, jobs=1)
        await broker.pass_time(90)
        of(broker).script(Script(queue_s=3000))
        stuck = await broker.submit(cards=4)
        await broker.round()
        first = await vip_job(broker)
        await broker.pass_time(60)
        assert await events(broker, "run.preempted") == []
        assert (await broker.reasons(first))["a"]["code"] in ("in_flight", "capacity")
        await broker.expect(stuck, "PENDING")


async def test_a_user_stop_of_the_vip_job_releases_what_is_held(broker: Harness) -> None:
    await fill(broker)
    first = await vip_job(broker, policy=1)
    await broker.round()
    assert await held(broker) == [(first, "vip")]
    await broker.stop(first)
    assert await held(broker) == []
    await broker.expect(first, "STOPPED")


async def test_a_restart_between_stop_and_placement_keeps_the_plan(broker: Harness) -> None:
    await fill(broker)
    await broker.pass_time(60)
    first = await vip_job(broker)
    await broker.plan()
    before = await held(broker)
    await broker.restart()
    use(broker)
    assert await held(broker) == before == [(first, "preempting")]
    await broker.poll()
    await broker.pass_time(20)
    await broker.expect(first, "RUNNING")
    assert len(await events(broker, "run.preempted")) == 1
    broker.never_twice_at_once()


async def test_a_victim_that_changed_meanwhile_stops_the_whole_plan(broker: Harness) -> None:
    """The plan is committed against the runs as they are: a lost victim may not free anything."""
    await fill(broker)
    await broker.pass_time(60)
    first = await vip_job(broker, nodes=2)
    fake = of(broker)
    world = await stale_plan(broker)
    assert len(world.stops) == 2
    fake.silence(broker.clock(), broker.clock() + 900_000)
    broker.clock.now_ms += 600_000
    for track in broker.tracks.values():
        await track.once()
    stopped = await broker.store.write(
        rounds.commit_holds, world.reservations, world.preemptions, epoch=broker.lease.epoch
    )
    assert stopped == 0
    assert await held(broker) == []
    assert await events(broker, "run.preempted") == []
    await broker.expect(first, "PENDING")


async def stale_plan(broker: Harness) -> Plan:
    await broker.mirror.refresh(broker.store)
    now_ms = broker.clock()
    world = broker.mirror.snapshot(
        await broker.store.read(feed.world, now_ms),
        now_ms=now_ms,
        minute_of_week=0,
        accelerators=dict(builders.ACCELERATORS),
    )
    return schedule(world, rules())


async def test_reservations_do_not_expire_while_no_center_answers(broker: Harness) -> None:
    await fill(broker)
    first = await vip_job(broker, policy=1)
    await broker.round()

    def expiry(session: Session) -> int:
        return session.exec(select(ReservationRow.expires_ms)).one()

    before = await broker.store.read(expiry)
    of(broker).silence(broker.clock(), broker.clock() + 3_600_000)
    await broker.pass_time(3600, step_s=60)
    assert await held(broker) == [(first, "vip")]
    await broker.pass_time(60, step_s=15)
    after_ms = await broker.store.read(expiry)
    assert 3_500_000 <= after_ms - before <= 3_700_000
