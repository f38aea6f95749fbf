"""Reservations: what they hold, who may fill in, and that large jobs never starve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.fake import Script
from broker.core.check import violations
from broker.core.explain import Code
from broker.core.identity import base_key, holder_key
from broker.core.model import (
    CenterId,
    Claim,
    Health,
    JobId,
    PoolId,
    Reservation,
    RunState,
    RunTime,
    Snapshot,
    Tier,
    Why,
)
from broker.core.plan import Plan
from broker.core.policy import PolicySet
from broker.core.problem import build
from broker.core.scheduler import schedule
from broker.core.snapshot import (
    WhatIf,
    holdings,
    in_force,
    longest_estimate_s,
    planned_end_ms,
    with_holders,
)
from policies.backfill import Backfill
from policies.vip import Vip
from tests.builders import (
    NOW_MS,
    center,
    claim,
    free,
    job_class,
    policy_set,
    pool,
    request,
    reservation,
    snapshot,
    worlds,
)
from tests.harness import center as fake_center
from tests.harness import harness

POLICIES = policy_set(Vip(), Backfill(wait_limit_s=3600))


def running(run: str, cards: int = 8, *, left_s: int, nodes: int = 1) -> Claim:
    """A run that is in the report and ends by plan in `left_s`."""
    made = claim(run, cards, nodes=nodes, started_ms=NOW_MS - 1_000_000)
    return replace(made, estimate_s=1000 + left_s)


def planned(world: Snapshot, policies: PolicySet = POLICIES) -> Plan:
    plan = schedule(world, policies)
    assert violations(plan, world) == []
    return plan


def placed(world: Snapshot, policies: PolicySet = POLICIES) -> set[str]:
    return {p.job for p in planned(world, policies).placements}


def held_for(job: str, nodes: int = 1, *, slot: int = 8, why: Why = Why.GANG, **changes: Any) -> Reservation:
    return reservation(slot, nodes=nodes, job=JobId(job), why=why, **changes)


# ---------------------------------------------------------------- what is held


def test_others_see_what_is_left_and_the_holder_sees_all() -> None:
    hold = held_for("big-0")
    big, small = job_class("big", 8), job_class("small", 4, jobs=4, age_s=90_000, tier=Tier.HIGH)
    assert placed(snapshot(center(), pool(nodes=2), hold, big, small)) == {"big-0", "small-0", "small-1"}
    elsewhere = replace(hold, job=JobId("other"))
    assert len(placed(snapshot(center(), pool(nodes=2), elsewhere, big, small)) - {"big-0"}) == 2


def test_a_hold_binds_only_within_its_time_and_not_its_end() -> None:
    small = job_class("small", 8)
    for hold, free_again in (
        (held_for("x", not_before_ms=NOW_MS + 1), True),
        (held_for("x", expires_ms=NOW_MS), True),
        (held_for("x", expires_ms=NOW_MS + 1), False),
    ):
        assert bool(placed(snapshot(center(), pool(nodes=1), hold, small))) is free_again


def test_reservations_outlast_a_silence_of_all_centers() -> None:
    late = held_for("x", expires_ms=NOW_MS - 1)
    silent = snapshot(center(health=Health.DOWN), center("b", health=Health.SUSPECT), pool(), late)
    assert in_force(silent) == [late]
    assert in_force(snapshot(center(), center("b", health=Health.DOWN), pool(), late)) == []
    waits = replace(silent, classes=(job_class("x", 8),))
    assert schedule(waits, POLICIES).reservations == (late,)


def test_a_reservation_ends_with_its_placement_and_with_its_job() -> None:
    hold = held_for("big-0")
    assert planned(snapshot(center(), pool(), hold, job_class("big", 8))).reservations == ()
    assert planned(snapshot(center(), pool(), hold, job_class("small", 1))).reservations == ()
    waits = snapshot(center(), pool(nodes=2, free=[]), hold, job_class("big", 8))
    assert planned(waits).reservations == (hold,)


def test_the_job_with_the_reservation_is_the_one_that_uses_it() -> None:
    """It may be the younger one of its class."""
    world = snapshot(center(), pool(nodes=1), held_for("k-1"), job_class("k", 8, jobs=3))
    plan = planned(world)
    assert [p.job for p in plan.placements] == ["k-1"]
    assert plan.placements[0].class_key == holder_key("k", JobId("k-1"))
    assert base_key(plan.placements[0].class_key) == "k"
    split = with_holders(world)
    assert {c.key: [j.id for j in c.jobs] for c in split.classes} == {"k": ["k-0", "k-2"], "k!k-1": ["k-1"]}
    assert with_holders(split) == split


def test_served_in_order_nobody_takes_what_is_held_for_one_before() -> None:
    first, second = (
        held_for("vip-0", 2, why=Why.PREEMPTING, id=1),
        held_for("gang-0", 2, why=Why.GANG, id=2),
    )
    vip, gang = job_class("vip", 8, nodes=2, tier=Tier.VIP), job_class("gang", 8, nodes=2)
    world = snapshot(center(), pool(nodes=4, free=[free(8, 3)]), first, second, vip, gang)
    assert placed(world) == {"vip-0"}
    three = replace(vip, request=replace(vip.request, nodes=4))
    blocked = replace(world, classes=(three, gang), reservations=(replace(first, nodes=4), second))
    assert placed(blocked) == set()


def test_a_job_that_may_start_finds_in_flight_room() -> None:
    world = snapshot(
        center(max_in_flight=1),
        pool(nodes=2),
        held_for("low-0"),
        job_class("low", 8, tier=Tier.LOW),
        job_class("high", 8, tier=Tier.HIGH, age_s=90_000),
    )
    assert placed(world) == {"low-0"}


# ---------------------------------------------------------------- filling in


def test_planned_ends() -> None:
    assert planned_end_ms(running("r", left_s=50), NOW_MS) == NOW_MS + 50_000
    assert planned_end_ms(replace(running("r", left_s=50), stopping=True), NOW_MS) == NOW_MS
    assert planned_end_ms(replace(claim("new"), estimate_s=60), NOW_MS) == NOW_MS + 60_000


@pytest.mark.parametrize(
    ("ran_s", "ends_s"),
    [
        (0, 100),  # half of its like take so long
        (100, 100),
        (101, 300),  # nine in ten take so long
        (300, 300),
        (301, 600),  # twice, again and again: an overdue run is not one that ends
        (1201, 2400),
    ],
)
def test_a_run_that_outlives_its_plan_is_planned_longer(ran_s: int, ends_s: int) -> None:
    run = replace(claim("r", started_ms=NOW_MS - ran_s * 1000), learned=RunTime(100, 300))
    assert planned_end_ms(run, NOW_MS) == NOW_MS + (ends_s - ran_s) * 1000
    limited = replace(run, request=request(1, max_run_time_s=500))
    assert planned_end_ms(limited, NOW_MS) == NOW_MS + max(0, min(ends_s, 500) - ran_s) * 1000


def test_without_anything_learned_a_plan_doubles() -> None:
    late = replace(claim("r", started_ms=NOW_MS - 101_000), estimate_s=100)
    assert planned_end_ms(late, NOW_MS) == NOW_MS + 99_000


def test_who_fills_in_ends_by_what_nine_in_ten_take() -> None:
    learned = RunTime(100, 300)
    assert longest_estimate_s(request(1), learned) == 300
    assert longest_estimate_s(request(1, estimated_run_time_s=100), learned) == 300
    assert longest_estimate_s(request(1, max_run_time_s=200), learned) == 200


def test_a_start_is_expected_when_enough_of_our_runs_have_ended() -> None:
    there = pool(nodes=3, free=[])
    world = snapshot(
        center(), there, running("a", left_s=100), running("b", left_s=200), running("c", left_s=300)
    )
    what_if = WhatIf(there, world.claims, 0)

    def start(nodes: int, *before: Reservation) -> int | None:
        at = what_if.expected_start_ms(8, nodes, before, NOW_MS)
        return None if at is None else (at - NOW_MS) // 1000

    assert [start(n) for n in (1, 2, 3, 4)] == [100, 200, 300, None]
    assert start(1, held_for("x", 2)) == 300
    assert WhatIf(pool(), (), 0).expected_start_ms(8, 2, (), NOW_MS) == NOW_MS


def test_the_longest_job_of_a_class_counts() -> None:
    assert longest_estimate_s(request(1, estimated_run_time_s=600)) == 1023
    assert longest_estimate_s(request(1, estimated_run_time_s=600, max_run_time_s=700)) == 700


def test_only_what_ends_before_the_expected_start_fills_in() -> None:
    gang = job_class("gang", 8, nodes=2, age_s=4000)
    hold = held_for("gang-0", 2)
    quick, slow = (
        job_class("quick", 8, estimated_run_time_s=600),
        job_class("slow", 8, estimated_run_time_s=1100),
    )
    world = snapshot(
        center(), pool(nodes=2, free=[free(8)]), running("r", left_s=1023), hold, gang, slow, quick
    )
    plan = planned(world)
    assert {p.job for p in plan.placements} == {"quick-0"}
    (told,) = plan.deferrals["slow"]
    assert (told.code, told.need, told.have) == (Code.CAPACITY_OUTRANKED, 1, 0)
    plan = planned(replace(world, claims=(running("r", left_s=1022),)))
    assert plan.placements == ()
    (told,) = plan.deferrals["slow"]
    assert (told.code, told.need, told.have) == (Code.RESERVED, 1, 0)
    assert told.message.startswith("needs 1 slots; what is free is held for job gang-0")
    (told,) = plan.deferrals[holder_key("gang", JobId("gang-0"))]
    assert (told.code, told.need, told.have) == (Code.GANG_WAITING, 2, 1)


def test_an_unforeseeable_start_is_believed_to_be_the_end_of_the_reservation() -> None:
    """Others' work is in the way: nobody knows for how long, so what is held is not left idle for ever."""
    hold = held_for("gang-0", 2, expires_ms=NOW_MS + 600_000)
    gang = job_class("gang", 8, nodes=2, age_s=4000)
    quick, slow = (
        job_class("quick", 8, estimated_run_time_s=300),
        job_class("slow", 8, estimated_run_time_s=600),
    )
    world = snapshot(center(), pool(nodes=2, free=[free(8)]), hold, gang, quick, slow)
    assert placed(world) == {"quick-0"}


def test_nobody_fills_in_where_a_run_has_just_ended() -> None:
    """What it held is free with the next report, and then the job that waits for it starts."""
    hold, gang = held_for("gang-0", 2), job_class("gang", 8, nodes=2, age_s=4000)
    quick = job_class("quick", 8, estimated_run_time_s=300)
    world = snapshot(center(), pool(nodes=2, free=[free(8)]), hold, gang, quick)
    ended = replace(running("r", left_s=9000), state=RunState.SUCCEEDED, stopping=True)
    assert placed(world) == {"quick-0"}
    assert placed(replace(world, ended=(ended,))) == set()
    # A run that the report never counted gives nothing back.
    assert placed(replace(world, ended=(replace(ended, started_ms=NOW_MS),))) == {"quick-0"}
    assert placed(replace(world, ended=(replace(ended, pool=PoolId("sz-1/other")),))) == {"quick-0"}


# ---------------------------------------------------------------- who gets a reservation


def test_large_jobs_that_have_waited_get_one_where_they_start_first() -> None:
    early, late = pool("sz-1/a", nodes=2, free=[free(8)], price=50), pool("sz-1/b", nodes=2, free=[free(8)])
    runs = [running("a1", left_s=100), replace(running("b1", left_s=900), pool=PoolId("sz-1/b"))]
    gang = job_class("gang", 8, nodes=2, age_s=3600)
    (made,) = planned(snapshot(center(), early, late, *runs, gang)).reservations
    assert (made.job, made.pool, made.why, made.nodes, made.slot) == ("gang-0", "sz-1/a", Why.GANG, 2, 8)
    assert (made.not_before_ms, made.expires_ms) == (NOW_MS, NOW_MS + 86_400_000)
    same = replace(runs[1], estimate_s=1100)
    (made,) = planned(snapshot(center(), early, late, runs[0], same, gang)).reservations
    assert made.pool == "sz-1/b"  # equally soon and cheaper


@pytest.mark.parametrize(
    ("wish", "held"),
    [
        ({"wish": 8, "nodes": 2, "age_s": 3599}, False),
        ({"wish": 8, "nodes": 2, "age_s": 3600}, True),
        ({"wish": 8, "age_s": 3600}, True),
        ({"wish": 4, "age_s": 90_000}, False),
        ({"wish": 1, "nodes": 2, "age_s": 3600}, True),
    ],
)
def test_gangs_and_large_jobs_past_the_limit(wish: dict[str, Any], held: bool) -> None:
    world = snapshot(center(), pool(nodes=2, free=[]), job_class("k", **wish))
    assert bool(planned(world).reservations) is held
    assert planned(world, policy_set()).reservations == ()


def test_one_in_a_pool_and_so_many_in_all() -> None:
    there = [pool(f"sz-1/{i}", nodes=2, free=[]) for i in range(3)]
    gangs = job_class("gang", 8, nodes=2, jobs=9, age_s=4000)
    plan = planned(snapshot(center(), *there, gangs))
    assert sorted(r.pool for r in plan.reservations) == ["sz-1/0", "sz-1/1", "sz-1/2"]
    assert [r.job for r in plan.reservations] == ["gang-0", "gang-1", "gang-2"]
    two = planned(snapshot(center(), *there, gangs), policy_set(Backfill(wait_limit_s=3600, depth=2)))
    assert len(two.reservations) == 2


def test_nothing_is_held_where_no_capacity_would_help() -> None:
    full = center(max_in_flight=2, in_flight=2)
    gang = job_class("gang", 8, nodes=2, age_s=4000)
    assert planned(snapshot(full, pool(nodes=2, free=[]), gang)).reservations == ()
    assert planned(snapshot(center(), pool(nodes=1, free=[]), gang)).reservations == ()


@settings(deadline=None, max_examples=60)
@given(worlds(), st.data())
def test_every_plan_beside_reservations_can_be_carried_out(world: Snapshot, data: st.DataObject) -> None:
    jobs = [job for c in world.classes for job in c.jobs]
    held: list[Reservation] = []
    for i, r_pool in enumerate(data.draw(st.lists(st.sampled_from(world.pools), max_size=4))):
        job = data.draw(st.sampled_from([j.id for j in jobs]))
        wish = next(c.request for c in world.classes if job in {j.id for j in c.jobs})
        size = max(1, r_pool.shape.accelerators or r_pool.shape.cores)
        why = data.draw(st.sampled_from(Why if wish.tier is Tier.VIP else [Why.GANG]))
        slot = data.draw(st.integers(1, size))
        if job not in {r.job for r in held}:
            held.append(held_for(job, wish.nodes, slot=slot, why=why, pool=r_pool.id, id=i + 1))
    world = replace(world, reservations=tuple(held))
    plan = planned(world)
    problem = build(world, POLICIES)
    assert problem.feasible(problem.counts(plan.placements))
    assert {r.job for r in plan.reservations}.isdisjoint(p.job for p in plan.placements)
    for pool_id, holding in holdings(world).items():
        assert len(holding.free) == len(holding.reservations) + 1, pool_id


# ---------------------------------------------------------------- stories through the whole leader


async def gang_story(folder: Path, policies: PolicySet) -> list[str]:
    """A gang of two nodes waits while one-node jobs of half an hour come every quarter; its states."""
    seen = []
    async with harness(folder, fake_center("a", nodes=2)) as broker:
        broker.cycle.policies = policies
        broker.fakes[CenterId("a")].script(Script(run_s=1800))
        await broker.submit(cards=8, estimated_run_time_s=1800)
        await broker.round()
        gang = await broker.submit(cards=8, nodes=2, estimated_run_time_s=1800, tier=Tier.LOW)
        for _ in range(16):
            await broker.submit(cards=8, estimated_run_time_s=1800)
            await broker.pass_time(900, step_s=300)
            seen.append((await broker.show(gang)).status.value)
        broker.never_twice_at_once()
    return seen


async def test_a_gang_starves_without_and_starts_with_a_reservation(tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "with").mkdir()
    without = await gang_story(tmp_path / "without", policy_set())
    assert set(without) == {"PENDING"}
    held = await gang_story(tmp_path / "with", POLICIES)
    assert held[3:8].count("PENDING") <= 4
    assert "RUNNING" in held


async def test_between_an_end_and_the_next_report_nobody_takes_the_place_of_a_gang(tmp_path: Path) -> None:
    async with harness(tmp_path, fake_center("a", nodes=2)) as broker:
        broker.cycle.policies = POLICIES
        fake = broker.fakes[CenterId("a")]
        fake.script(Script(run_s=6000))
        first = await broker.submit(cards=8, estimated_run_time_s=6000)
        await broker.round()
        fake.script(Script(run_s=600))
        gang = await broker.submit(cards=8, nodes=2, estimated_run_time_s=600)
        await broker.pass_time(3900, step_s=300)
        early = [await broker.submit(cards=4, estimated_run_time_s=600) for _ in range(2)]
        await broker.pass_time(1800, step_s=300)
        for job in early:
            await broker.expect(job, "SUCCEEDED")  # they fill in: they end in time
        late = [await broker.submit(cards=4, estimated_run_time_s=600) for _ in range(4)]
        broker.clock.now_ms += 400_000
        await broker.look()
        await broker.expect(first, "SUCCEEDED")
        await broker.plan()
        await broker.send()
        for job in (gang, *late):
            await broker.expect(job, "PENDING")
        await broker.round()
        await broker.expect(gang, "RUNNING")
