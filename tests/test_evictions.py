"""The least dear victims: curves, the assignment of jobs to pools, and whole decisions beside brute force."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.assignment import assigned
from broker.core.check import violations
from broker.core.curves import NEVER, Curves, Runs
from broker.core.model import Accuracy, Claim, JobClass, PoolId, Reservation, Snapshot, TenantId, Tier, Why
from broker.core.plan import Plan
from broker.core.problem import build
from broker.core.scheduler import schedule
from broker.core.snapshot import WhatIf, effective_free, supply, without
from policies.preemption import Preemption
from policies.vip import Vip
from tests import builders
from tests.builders import NOW_MS, claim, free, job_class, node, pool, reservation, snapshot
from tests.test_preemption import RULES, full, rules, running, vip

# ---------------------------------------------------------------- curves


def curves(runs: Sequence[tuple[int, int, int]], spare: Sequence[int], needs: Sequence[int]) -> Curves:
    """Of (pool, gain, price) each."""
    columns = [np.array([run[i] for run in runs], dtype=np.int64) for i in range(3)]
    pool_, gain, price = columns
    return Curves(Runs(len(spare), np.arange(len(runs)), pool_, gain, price), spare, needs)


_runs = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 4), st.integers(0, 30)), max_size=7)


@given(_runs, st.integers(0, 2), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_a_curve_is_the_least_price_of_any_set(
    runs: list[tuple[int, int, int]], spare: int, needs: list[int]
) -> None:
    made = curves(runs, [spare, 0], needs)
    for g, slots in itertools.product((0, 1), range(sum(needs) + 1)):
        mine = [i for i, run in enumerate(runs) if run[0] == g]
        sets = (chosen for n in range(len(mine) + 1) for chosen in itertools.combinations(mine, n))
        free_ = spare if g == 0 else 0
        able = [s for s in sets if free_ + sum(runs[i][1] for i in s) >= slots]
        least = min((sum(runs[i][2] for i in s) for s in able), default=NEVER)
        if slots < made.cost.shape[1]:
            assert made.cost[g, slots] == least
            if least < NEVER:
                victims = made.chosen([slots if at == g else 0 for at in (0, 1)])[g]
                assert sum(runs[i][2] for i in victims) == least
                assert free_ + sum(runs[i][1] for i in victims) >= slots


def test_an_offer_counts_where_it_is_cheaper() -> None:
    made = curves([(0, 1, 10), (0, 1, 20)], [0], [3])
    made.offer(0, 2, (7, 8), 15)
    assert made.cost[0, :4].tolist() == [0, 10, 15, NEVER]
    assert (made.chosen([1]), made.chosen([2])) == ([[0]], [[7, 8]])


# ---------------------------------------------------------------- jobs to pools


def spread(
    prices: Sequence[Sequence[int]], needs: Sequence[int], *, row: Sequence[int] = (), left: int = 99
) -> list[int]:
    """Every job may go everywhere; a pool in `row` takes one of `left`."""
    most = max(needs)
    cost = np.array([[*p, *([NEVER] * most)] for p in prices], dtype=np.int64)
    everywhere = [np.arange(len(prices))] * len(needs)
    return assigned(cost, needs, everywhere, lambda i, at: ((0, 1),) if at in row else (), [left])


def test_jobs_share_what_a_large_victim_frees() -> None:
    assert spread([[0, 10, 10, 10], [0, 6, 12, 18]], [1, 2]) == [0, 0]
    assert spread([[0, 10, 10, 10], [0, 6, 12, 18]], [1]) == [1]


def test_an_exchange_saves_what_no_move_can() -> None:
    """By their order the jobs go to the pool that is good for the other."""
    prices = [[0, 1, 9, NEVER, NEVER], [0, 2, 3, NEVER, NEVER]]
    assert spread(prices, [1, 2]) == [0, 1]
    assert spread(prices, [2, 1]) == [1, 0]


def test_the_first_are_served_where_there_is_too_little() -> None:
    assert spread([[0, 5, NEVER, NEVER]], [1, 1]) == [0, -1]
    assert spread([[0, 5, 6, NEVER, NEVER]], [1, 2]) == [0, -1]
    assert spread([[0, 1, 2], [0, 9, 18]], [1, 1], row=[0], left=1) in ([0, 1], [1, 0])
    assert spread([[0, 1, 2]], [1, 1], row=[0], left=1) == [0, -1]


# ---------------------------------------------------------------- the belief


@st.composite
def crowds(draw: st.DrawFn) -> Snapshot:
    """One pool with runs of all sizes, some not in its report, that may hold more than it has."""
    shape = draw(st.sampled_from([node(8), node(16), node(6, cores=100, memory_gib=500)]))
    sizes = st.integers(1, shape.accelerators)
    groups = draw(st.lists(st.builds(free, sizes, st.integers(1, 3)), max_size=3))
    there = pool(
        shape=shape,
        nodes=sum(g.nodes for g in groups) + draw(st.integers(1, 4)),
        free=groups,
        accuracy=draw(st.sampled_from([Accuracy.EXACT, Accuracy.EXACT, Accuracy.ESTIMATED])),
    )
    claims = [
        claim(
            f"r{i}", draw(sizes), nodes=draw(st.integers(1, 2)), started_ms=draw(st.sampled_from([None, 1]))
        )
        for i in range(draw(st.integers(0, 6)))
    ]
    return snapshot(builders.center(), there, *claims)


@given(crowds(), st.data())
def test_what_if_says_what_the_snapshot_says(world: Snapshot, data: st.DataObject) -> None:
    (there,) = world.pools
    slot = data.draw(st.integers(1, there.shape.accelerators))
    before = [
        reservation(data.draw(st.integers(1, there.shape.accelerators)), nodes=2, job=f"j{i}")
        for i in range(data.draw(st.integers(0, 2)))
    ]
    what_if = WhatIf(there, world.claims, 0)
    gone = [c for c in world.claims if data.draw(st.booleans())]
    left = effective_free(without(world, [c.run for c in gone], slot=slot), reservations=before)
    assert what_if.slots(gone, slot, before) == supply(there.shape, left[there.id], slot)
    assert what_if.free(before) == effective_free(world, reservations=before)[there.id]


@given(crowds(), st.randoms(use_true_random=False), st.integers(1, 8))
def test_the_names_of_runs_do_not_matter(world: Snapshot, random: Any, slot: int) -> None:
    names = [c.run for c in world.claims]
    random.shuffle(names)
    other = replace(world, claims=tuple(replace(c, run=n) for c, n in zip(world.claims, names, strict=True)))
    reported = [i for i, c in enumerate(world.claims) if c.started_ms is not None]
    gone = reported[: len(reported) // 2]
    one, two = (without(w, [w.claims[i].run for i in gone], slot=slot).pools for w in (world, other))
    assert one == two


@given(st.integers(1, 6), st.lists(st.integers(1, 4), max_size=12), st.integers(0, 3))
def test_small_runs_surely_free_nothing_below_what_nodes_absorb(
    nodes: int, sizes: list[int], partly: int
) -> None:
    there = pool(nodes=nodes + 1, free=[free(partly)] if partly else [])
    claims = [claim(f"r{i}", cards, started_ms=1) for i, cards in enumerate(sizes)]
    what_if = WhatIf(there, claims, 0)
    if sum(sizes) <= what_if.absorbs(8, max(sizes, default=1)):
        assert what_if.slots(claims, 8) == what_if.slots((), 8)


# ---------------------------------------------------------------- whole decisions


def whole_nodes(
    *ages_s: int, at: str = "sz-1/a", nodes: int = 1, name: str = "r", **facts: Any
) -> list[Claim]:
    return [
        replace(running(f"{name}{at[-1]}{i}", age_s=age_s, nodes=nodes, **facts), pool=PoolId(at))
        for i, age_s in enumerate(ages_s)
    ]


def decided(world: Snapshot, preemption: Preemption = RULES) -> Plan:
    plan = schedule(world, rules(preemption))
    assert violations(plan, world) == []
    return plan


def test_what_a_large_victim_frees_in_excess_serves_the_next_job() -> None:
    """A gang of four costs less than two runs alone: both jobs get their nodes there."""
    gang = whole_nodes(601, nodes=4, name="gang")
    alone = whole_nodes(14_000, 14_000, 14_000)
    world = snapshot(builders.center(), full(8), *gang, *alone, vip(jobs=2))
    assert decided(replace(world, classes=(vip(),))).stops == ("ra0",)
    plan = decided(world)
    assert plan.stops == ("ganga0",)
    assert {(r.job, r.pool, r.why) for r in plan.reservations} == {
        ("vip-0", "sz-1/a", Why.PREEMPTING),
        ("vip-1", "sz-1/a", Why.VIP),
    }


@pytest.mark.parametrize(("depth", "served"), [(100, 100), (64, 64)])
def test_all_jobs_of_a_round_are_served_as_far_as_they_may_hold(depth: int, served: int) -> None:
    runs = whole_nodes(*range(600, 700))
    world = snapshot(builders.center(max_in_flight=200), full(100), *runs, vip(jobs=100))
    plan = schedule(world, builders.policy_set(Vip(depth=depth), replace(RULES, kills_per_tenant_h=100)))
    assert violations(plan, world) == []
    assert len(plan.stops) == served


def test_limits_of_a_tenant_hold_over_all_pools() -> None:
    a, b = full(6, id="sz-1/a"), full(6, id="sz-1/b")
    cheap = [*whole_nodes(*range(600, 606)), *whole_nodes(*range(600, 603), at="sz-1/b")]
    dear = whole_nodes(9000, 9001, 9002, at="sz-1/b", tenant="u", name="d")
    world = snapshot(builders.center(), a, b, *cheap, *dear, vip(jobs=5))
    plan = decided(world, replace(RULES, kills_per_tenant_h=3))
    tenants = Counter(str(c.tenant) for c in world.claims if c.run in plan.stops)
    assert tenants == {"t": 3, "u": 2}


def test_small_runs_of_others_take_the_place_of_runs_beyond_a_limit() -> None:
    small = [replace(running(f"s{i}", 1, age_s=5000, tenant="u"), pool=PoolId("sz-1/b")) for i in range(8)]
    world = snapshot(
        builders.center(),
        full(2, id="sz-1/a"),
        full(1, id="sz-1/b"),
        *whole_nodes(600, 601),
        *small,
        vip(jobs=2),
    )
    assert decided(world).stops == ("ra0", "ra1")
    plan = decided(replace(world, kills={TenantId("t"): 19}))
    assert set(plan.stops) == {"ra0", *(c.run for c in small)}


@st.composite
def of_whole_nodes(draw: st.DrawFn) -> tuple[Snapshot, int]:
    """Pools of runs that hold whole nodes, and one VIP job; how many nodes it needs."""
    parts: list[Any] = [builders.center()]
    for at in ("sz-1/a", "sz-1/b"):
        runs = [
            replace(
                running(
                    f"{at[-1]}{i}",
                    nodes=draw(st.integers(1, 3)),
                    age_s=draw(st.integers(30, 9000)),
                    tier=draw(st.sampled_from([Tier.LOW, Tier.NORMAL])),
                    preempted=draw(st.sampled_from([0, 0, 0, 5])),
                ),
                pool=PoolId(at),
            )
            for i in range(draw(st.integers(0, 5)))
        ]
        parts += [full(max(1, sum(c.nodes for c in runs)), id=at), *runs]
    need = draw(st.integers(1, 4))
    return snapshot(*parts, vip(nodes=need)), need


@settings(deadline=None, max_examples=100)
@given(of_whole_nodes())
def test_one_job_gets_the_least_dear_set_there_is(story: tuple[Snapshot, int]) -> None:
    world, need = story
    plan = decided(world)
    able = [
        c
        for c in world.claims
        if c.preempted < 5 and NOW_MS - (c.started_ms or NOW_MS) >= RULES.min_run_time_s * 1000
    ]
    sets = [
        chosen
        for at in world.pools
        for n in range(1, 6)
        for chosen in itertools.combinations([c for c in able if c.pool == at.id], n)
        if sum(c.nodes for c in chosen) >= need and need <= at.nodes
    ]
    if not sets:
        assert plan.stops == ()
        return
    (made,) = plan.preemptions
    assert made.price_micro == min(sum(price(world, c) for c in chosen) for chosen in sets)


def price(world: Snapshot, run: Claim) -> int:
    """Lost work at the run's price or the reference price, and what its job is worth in the queue."""
    assert run.request is not None
    assert run.started_ms is not None
    again = JobClass("again", run.request, run.tenant, jobs=())
    problem = build(replace(world, classes=(again,)), rules())
    age_s = (NOW_MS - run.queued_ms) // 1000
    bucket = max(b for b, edge in enumerate(problem.age_s.tolist()) if edge <= age_s)
    cards = run.shape.accelerators * run.nodes
    rate = max(run.rate_micro_per_hour, RULES.reference_price * cards)
    lost_s = (NOW_MS - run.started_ms) // 1000 + RULES.restart_overhead_s
    return rate * lost_s // 3600 + int(problem.worth[0, bucket])


@settings(deadline=None, max_examples=60)
@given(of_whole_nodes(), st.integers(0, 3), st.integers(1, 3))
def test_the_limits_hold_in_every_round(story: tuple[Snapshot, int], room: int, jobs: int) -> None:
    world = replace(story[0], classes=(vip(nodes=story[1], jobs=jobs),))
    world = replace(world, kills={c.tenant: 20 - room for c in world.claims})
    plan = decided(world)
    assert len(plan.stops) <= room
    claims = {c.run: c for c in world.claims}
    assert all(claims[run].preempted < 5 for run in plan.stops)
    assert schedule(world, rules()) == plan


def test_jobs_of_different_slot_sizes_in_one_pool_all_fit() -> None:
    halves = [running(f"half-{i}", 4, age_s=600 + i) for i in range(4)]
    wholes = whole_nodes(*range(700, 704))
    world = snapshot(
        builders.center(), full(6), *halves, *wholes, vip("v8", 8, jobs=2), vip("v4", 4, jobs=3), vip("v1", 1)
    )
    plan = decided(world)
    assert len([r for r in plan.reservations if r.why in (Why.PREEMPTING, Why.VIP)]) == 6


@pytest.mark.parametrize("held", [Why.VIP, Why.GANG])
def test_a_reservation_that_stays_is_respected(held: Why) -> None:
    """A VIP job that holds already takes nothing from another, whoever finds victims."""
    hold = Reservation(1, PoolId("sz-1/a"), 8, 1, "first-0", NOW_MS, NOW_MS + 1_800_000, held)  # type: ignore[arg-type]
    first = vip("first", policy=1) if held is Why.VIP else job_class("first", 8, age_s=90_000)
    world = snapshot(builders.center(), full(2), *whole_nodes(600), hold, first, vip("second"))
    plan = decided(world)
    assert set(plan.stops) == ({"ra0"} if held is Why.GANG else set())
