"""VIP jobs: what is held for them, whom they displace, and the laws of every kill."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.check import violations
from broker.core.explain import Code
from broker.core.model import (
    MICRO,
    CenterId,
    CenterState,
    Claim,
    JobId,
    Kills,
    Reservation,
    RunId,
    RunState,
    Snapshot,
    TenantId,
    Tier,
    Why,
)
from broker.core.plan import Plan, after
from broker.core.policy import PolicySet
from broker.core.scheduler import schedule
from broker.core.snapshot import effective_free, of_pool, supply, without
from policies.backfill import Backfill
from policies.preemption import Preemption
from policies.quota import Quota, Share
from policies.vip import Vip
from tests import builders
from tests.builders import NOW_MS, free, job_class, policy_set, pool, request, snapshot

A = CenterId("a")
RULES = Preemption(min_run_time_s=60, restart_overhead_s=0, kills_per_job=5)
HOUR_MS = 3_600_000


def rules(preemption: Preemption = RULES, *further: object) -> PolicySet:
    return policy_set(Vip(), Backfill(), preemption, *further)


def running(
    run: str, cards: int = 8, *, nodes: int = 1, age_s: int = 3600, tenant: str = "t", **changes: Any
) -> Claim:
    """A run of a preemptible job that is in the center's report."""
    wanted = {
        k: changes.pop(k) for k in list(changes) if k in ("preemptible", "resumable", "checkpoint_interval_s")
    }
    facts: dict[str, Any] = {
        "job": JobId(f"j-{run}"),
        "tenant": TenantId(tenant),
        "class_key": f"c-{cards}-{nodes}-{tenant}-{sorted(wanted.items())}",
        "request": request(cards, nodes=nodes, **wanted),
        "queued_ms": NOW_MS - age_s * 1000,
        "estimate_s": 2 * 86_400,
        **changes,
    }
    made = builders.claim(run, cards, nodes=nodes, started_ms=NOW_MS - age_s * 1000)
    return replace(made, **facts)


def vip(key: str = "vip", cards: int = 8, *, policy: int = 2, **changes: Any) -> Any:
    return job_class(key, cards, tier=Tier.VIP, preempt_policy=policy, preemptible=False, **changes)


def full(nodes: int = 2, **changes: Any) -> Any:
    return pool(nodes=nodes, free=[], **changes)


def chosen(world: Snapshot, policies: PolicySet | None = None) -> Plan:
    plan = schedule(world, policies or rules())
    assert violations(plan, world) == []
    return plan


# ---------------------------------------------------------------- whom a VIP job displaces


def test_the_run_that_loses_least_is_stopped() -> None:
    world = snapshot(
        builders.center(), full(), running("old", age_s=7200), running("young", age_s=600), vip()
    )
    plan = chosen(world)
    assert plan.stops == ("young",)
    assert plan.placements == ()
    (hold,) = plan.reservations
    assert (hold.job, hold.why, hold.nodes, hold.slot) == ("vip-0", Why.PREEMPTING, 1, 8)
    assert plan.preemptions[0].lost_card_s == 600 * 8
    assert plan.preemptions[0].price_micro >= 600 * 8 * RULES.reference_price // 3600


def test_a_checkpoint_makes_a_run_cheap() -> None:
    old = running("old", age_s=7200, resumable=True, checkpoint_interval_s=60)
    seen = running("seen", age_s=9000, checkpoint_ms=NOW_MS - 1000)
    young = running("young", age_s=4000)
    world = snapshot(builders.center(), full(3), old, young, vip())
    assert chosen(world).stops == ("old",)
    assert chosen(replace(world, claims=(*world.claims, seen))).stops == ("seen",)


def test_how_much_the_worth_of_who_then_waits_counts() -> None:
    def ranked(run: str, tier: Tier, age_s: int) -> Claim:
        one = running(run, age_s=age_s)
        assert one.request is not None
        return replace(one, tier=tier, request=replace(one.request, tier=tier), class_key=run)

    low, normal = ranked("low", Tier.LOW, 1800), ranked("normal", Tier.NORMAL, 1200)
    world = snapshot(builders.center(), full(), low, normal, vip())
    assert chosen(world).stops == ("low",)
    lost_work = replace(RULES, requeue_weight=Decimal(0))
    plan = chosen(world, rules(lost_work))
    assert plan.stops == ("normal",)
    assert plan.preemptions[0].price_micro == 1200 * 8 * RULES.reference_price // 3600


def test_gangs_are_stopped_whole_and_only_where_they_are_cheaper() -> None:
    gang = running("gang", nodes=2, age_s=601)
    alone = running("alone", age_s=600)
    world = snapshot(builders.center(), full(3), gang, alone, vip())
    assert chosen(world).stops == ("alone",)
    both = replace(world, classes=(vip(nodes=2),))
    assert chosen(both).stops == ("gang",)


def test_a_cheap_large_victim_is_better_than_many_small_ones() -> None:
    small = [running(f"small-{i}", 1, age_s=600) for i in range(8)]
    big = running("big", 8, age_s=900)
    world = snapshot(builders.center(), full(2), *small, big, vip())
    assert chosen(world).stops == ("big",)


def test_only_victims_whose_nodes_surely_come_free_count() -> None:
    """Four half nodes on two full nodes: two of them may be on different nodes, three may not."""
    halves = [running(f"half-{i}", 4, age_s=600 + i) for i in range(4)]
    plan = chosen(snapshot(builders.center(), full(2), *halves, vip()))
    assert len(plan.stops) == 3
    one_node = snapshot(builders.center(), full(1), *halves[:2], vip())
    assert len(chosen(one_node).stops) == 2


PROTECTED = [
    {"preemptible": False},
    {"age_s": 59},
    {"preempted": 5},
    {"tier": Tier.VIP},
    {"state": RunState.LOST},
    {"state": RunState.PENDING},
    {"request": None},
]


@pytest.mark.parametrize("change", PROTECTED)
def test_protected_runs_are_never_stopped(change: dict[str, Any]) -> None:
    world = snapshot(builders.center(), full(1), running("r", **change), vip())
    plan = chosen(world)
    assert plan.stops == ()
    (hold,) = plan.reservations
    assert hold.why == Why.VIP


@pytest.mark.parametrize(
    "record",
    [Kills(sets=1), Kills(last_ms=NOW_MS - 599_000), Kills(suffered=1)],
)
def test_a_spent_budget_and_a_preempted_job_stop_nobody(record: Kills) -> None:
    world = snapshot(builders.center(), full(1), running("r"), vip())
    assert chosen(world).stops == ("r",)
    assert chosen(replace(world, kill_records={JobId("vip-0"): record})).stops == ()


def test_after_the_cool_down_another_set_may_be_allowed() -> None:
    world = snapshot(builders.center(), full(1), running("r"), vip())
    record = {JobId("vip-0"): Kills(sets=1, last_ms=NOW_MS - 600_000)}
    assert chosen(replace(world, kill_records=record), rules(replace(RULES, sets_per_placement=2))).stops == (
        "r",
    )


@pytest.mark.parametrize("tier", [Tier.LOW, Tier.NORMAL, Tier.HIGH])
def test_no_other_tier_preempts(tier: Tier) -> None:
    wish = job_class("k", 8, tier=tier, preempt_policy=2, age_s=999_999)
    assert chosen(snapshot(builders.center(), full(1), running("r", tier=Tier.LOW), wish)).stops == ()


def test_policy_1_and_a_broker_without_the_rules_stop_nobody() -> None:
    world = snapshot(builders.center(), full(1), running("r"), vip(policy=1))
    assert chosen(world).stops == ()
    world = replace(world, classes=(vip(),))
    assert chosen(world, policy_set(Vip())).stops == ()
    assert chosen(world, policy_set(RULES)).stops == ()


def test_idle_capacity_comes_before_kills() -> None:
    plan = chosen(snapshot(builders.center(), pool(nodes=2, free=[free(8)]), running("r"), vip()))
    assert plan.stops == ()
    assert len(plan.placements) == 1


def test_what_ends_anyway_is_enough() -> None:
    plan = chosen(snapshot(builders.center(), full(2), running("ends", stopping=True), running("r"), vip()))
    assert plan.stops == ()
    assert [r.why for r in plan.reservations] == [Why.VIP]


def test_quota_and_in_flight_room_are_no_reason_to_kill() -> None:
    world = snapshot(builders.center(max_in_flight=1, in_flight=1), full(1), running("r"), vip())
    plan = chosen(world)
    assert (plan.stops, plan.reservations) == ((), ())
    none_left = Quota(shares=(Share(tenant="t", ceiling=8),))
    world = snapshot(builders.center(), full(2), running("r"), running("s", tenant="u"), vip())
    assert chosen(world, rules(RULES, none_left)).stops == ()
    assert len(chosen(world, rules(RULES, Quota(shares=(Share(tenant="t", ceiling=16),)))).stops) == 1


def test_two_vips_do_not_share_victims_and_in_flight_room_counts() -> None:
    runs = [running(f"r{i}", age_s=600 + i) for i in range(4)]
    two = vip(jobs=2)
    plan = chosen(snapshot(builders.center(), full(4), *runs, two))
    assert plan.stops == ("r0", "r1")
    assert {r.job for r in plan.reservations} == {"vip-0", "vip-1"}
    one_seat = snapshot(builders.center(max_in_flight=1), full(4), *runs, two)
    assert chosen(one_seat).stops == ("r0",)


def test_a_tenant_loses_at_most_so_many_runs_an_hour() -> None:
    runs = [running("r0", age_s=600), running("r1", age_s=700), running("u0", age_s=900, tenant="u")]
    world = replace(snapshot(builders.center(), full(3), *runs, vip(nodes=2)), kills={TenantId("t"): 19})
    assert chosen(world).stops == ("r0", "u0")
    assert chosen(replace(world, kills={TenantId("t"): 20})).stops == ()


def test_a_platform_that_kills_by_itself_is_used_only_where_it_is_allowed() -> None:
    spared = running("r", preemptible=False)
    world = snapshot(builders.center(), full(1), spared, vip())
    assert chosen(world).placements == ()
    world = snapshot(builders.center(vip_kill=True), full(1), spared, vip())
    (placed,) = chosen(world).placements
    assert placed.platform_kills
    assert chosen(replace(world, classes=(vip(policy=1),))).placements == ()
    # Victims of ours are counted and priced, so they come first.
    assert chosen(snapshot(builders.center(vip_kill=True), full(1), running("r"), vip())).placements == ()


def test_while_victims_end_nothing_more_is_stopped_and_the_reason_says_so() -> None:
    first = chosen(snapshot(builders.center(), full(2), running("r"), running("s"), vip()))
    (hold,) = (replace(r, id=1) for r in first.reservations)
    ending = [replace(running(r), stopping=r in first.stops) for r in ("r", "s")]
    world = snapshot(builders.center(), full(2), *ending, vip(), hold)
    second = chosen(world)
    assert (second.stops, second.reservations) == ((), (hold,))
    (told,) = second.deferrals["vip!vip-0"]
    assert (told.code, told.need, told.have) == (Code.PREEMPTING, 1, 0)


def test_victims_queue_behind_the_preemptor() -> None:
    hold = builders.reservation(8, job=JobId("vip-0"), why=Why.PREEMPTING)
    again = job_class("again", 8, age_s=80_000, estimated_run_time_s=60)
    world = snapshot(builders.center(), pool(nodes=1), hold, vip(policy=2), again)
    assert [p.job for p in chosen(world).placements] == ["vip-0"]
    blocked = snapshot(builders.center(), pool(nodes=2, free=[free(8)]), hold, vip(nodes=2), again)
    held = replace(blocked, reservations=(replace(hold, nodes=2),))
    plan = chosen(replace(held, claims=(running("ends", stopping=True),)))
    assert plan.placements == ()
    (told,) = plan.deferrals["again"]
    assert told.code is Code.RESERVED
    assert "vip-0" in told.message


def test_a_drained_center_holds_nothing() -> None:
    hold = builders.reservation(8, job=JobId("vip-0"), why=Why.PREEMPTING)
    plan = chosen(snapshot(builders.center(state=CenterState.DRAIN), pool(), hold, vip()))
    assert plan.reservations == ()


def test_named_nodes_are_carried_and_the_job_says_where_they_cannot_be_held() -> None:
    wish = vip(policy=1, vip_nodes=("n1", "n2"))
    plan = chosen(snapshot(builders.center(), full(1), running("r"), wish))
    assert plan.reservations[0].node_names == ("n1", "n2")
    assert [r.code for r in plan.deferrals["vip!vip-0"]] == [Code.VIP_WAITING, Code.NODES_NOT_HELD]
    plan = chosen(snapshot(builders.center(node_hold=True), full(1), running("r"), wish))
    assert [r.code for r in plan.deferrals["vip!vip-0"]] == [Code.VIP_WAITING]


# ---------------------------------------------------------------- laws of every kill


@st.composite
def crowded(draw: st.DrawFn) -> Snapshot:
    """Two pools, nearly full, with runs of all kinds, and VIP and other jobs that wait."""
    parts: list[Any] = [builders.center(max_in_flight=draw(st.integers(0, 4)))]
    for name in ("sz-1/a", "sz-1/b"):
        nodes = draw(st.integers(1, 4))
        room = draw(st.integers(0, 7))
        parts.append(
            pool(
                name,
                nodes=nodes,
                free=[free(room)] if room else [],
                price=draw(st.sampled_from([None, 5 * MICRO])),
            )
        )
        left = [8] * (nodes - 1) + [8 - room]
        for i in range(draw(st.integers(0, 6))):
            cards = draw(st.sampled_from([1, 2, 4, 8]))
            at = next((n for n, c in enumerate(left) if c >= cards), None)
            if at is None:
                continue
            left[at] -= cards
            made = running(
                f"{name[-1]}{i}",
                cards,
                age_s=draw(st.sampled_from([30, 600, 5000])),
                tenant=draw(st.sampled_from("tu")),
                preemptible=draw(st.sampled_from([True, True, True, False])),
                tier=draw(st.sampled_from(Tier)),
                stopping=draw(st.sampled_from([False, False, False, True])),
                preempted=draw(st.sampled_from([0, 0, 0, RULES.kills_per_job])),
            )
            parts.append(replace(made, pool=parts[-1].pool if isinstance(parts[-1], Claim) else parts[-1].id))
    parts += [
        vip(
            f"v{i}",
            draw(st.sampled_from([1, 4, 8])),
            policy=draw(st.sampled_from([1, 2, 2])),
            nodes=draw(st.integers(1, 2)),
            jobs=draw(st.integers(1, 2)),
        )
        for i in range(draw(st.integers(1, 3)))
    ]
    parts.append(job_class("k", draw(st.sampled_from([1, 8])), jobs=3, preempt_policy=2))
    kills = {TenantId(t): draw(st.sampled_from([0, 18, 19, 20])) for t in "tu"}
    return replace(snapshot(*parts), kills=kills)


@settings(deadline=None, max_examples=150)
@given(crowded())
def test_every_kill_is_needed_allowed_and_enough(world: Snapshot) -> None:
    plan = schedule(world, rules())
    assert violations(plan, world) == []
    claims = {c.run: c for c in world.claims}
    placed = {p.job for p in plan.placements}
    tiers = {job.id: c.request for c in world.classes for job in c.jobs}
    assert len(set(plan.stops)) == len(plan.stops)
    assert all(r.job not in placed for r in plan.reservations)
    lost = Counter(claims[run].tenant for run in plan.stops)
    assert all(n + world.kills[t] <= RULES.kills_per_tenant_h for t, n in lost.items())
    assert len({r.job for r in plan.reservations}) == len(plan.reservations)
    for preemption in plan.preemptions:
        wish = tiers[preemption.job]
        assert wish.tier is Tier.VIP
        assert wish.preempt_policy == 2
        for run in preemption.victims:
            victim = claims[run]
            assert victim.request is not None
            assert victim.request.preemptible
            assert victim.tier < Tier.VIP
            assert not victim.stopping
            assert victim.preempted < RULES.kills_per_job
            assert NOW_MS - (victim.started_ms or NOW_MS) >= RULES.min_run_time_s * 1000
        assert enough(world, plan, preemption.job, spared=None)
        # Minimal: without any one of its victims the job would not fit.
        for run in preemption.victims:
            assert not enough(world, plan, preemption.job, spared=run)


def enough(world: Snapshot, plan: Plan, job: JobId, *, spared: RunId | None) -> bool:
    """Whether what is held for `job` fits beside what is held before it, without the victims."""
    order = [p.job for p in plan.preemptions]
    hold = next(r for r in plan.reservations if r.job == job)
    before = [
        r
        for r in plan.reservations
        if r.pool == hold.pool
        and r.job != job
        and (r.why == Why.VIP or order.index(r.job) < order.index(job))
        and (r.why != Why.VIP or (earlier(world, r, hold) and not together(world, r)))
    ]
    stops = {run for p in plan.preemptions if order.index(p.job) <= order.index(job) for run in p.victims} - {
        spared
    }
    ending = stops | {c.run for c in world.claims if c.stopping}
    there = next(p for p in world.pools if p.id == hold.pool)
    part = without(of_pool(after(world, plan.placements), there), ending, slot=hold.slot)
    left = effective_free(part, reservations=before)[there.id]
    return supply(there.shape, left, hold.slot) >= hold.nodes


def together(world: Snapshot, hold: Reservation) -> bool:
    """Whether a hold is of this round and of a job for which runs could have been stopped as well: such
    jobs are decided together, and those that get no victims hold behind those that do."""
    wish = next(c.request for c in world.classes if any(job.id == hold.job for job in c.jobs))
    record = world.kill_records.get(hold.job, Kills())
    able = not record.suffered and record.sets < RULES.sets_per_placement
    return hold not in world.reservations and wish.preempt_policy == 2 and able


def earlier(world: Snapshot, one: Reservation, other: Reservation) -> bool:
    age = {job.id: (job.queued_ms, job.id) for c in world.classes for job in c.jobs}
    return age[one.job] < age[other.job]


@settings(deadline=None, max_examples=60)
@given(crowded())
def test_a_preempted_job_preempts_no_one(world: Snapshot) -> None:
    """Resubmitted victims, whatever their tier, stop nobody: not even as VIP jobs."""
    records = {job.id: Kills(suffered=1) for c in world.classes for job in c.jobs}
    assert schedule(replace(world, kill_records=records), rules()).stops == ()
