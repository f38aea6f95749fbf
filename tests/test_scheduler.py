"""Whole rounds: every plan can be carried out, none is worse than greedy, and small ones are near optimal."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.check import Checked, violations
from broker.core.greedy import fill, greedy
from broker.core.model import MICRO, CenterState, Health, JobId, Snapshot, Tier
from broker.core.plan import Plan, Source
from broker.core.policy import PolicySet, Verdict, Weighted
from broker.core.problem import IntArray, Problem, build
from broker.core.rounding import whole_plan
from broker.core.scheduler import InfeasiblePlan, placements, schedule
from broker.core.solver import LP, Relaxation, SolverStatus, solve
from policies.age import Age
from tests.builders import center, cpu_node, free, job_class, node, policy_set, pool, snapshot, worlds

# ---------------------------------------------------------------- laws of every round


@settings(deadline=None)
@given(worlds())
def test_every_plan_can_be_carried_out(world: Snapshot) -> None:
    plan = schedule(world, policy_set())
    assert violations(plan, world) == []
    problem = build(world, policy_set())
    y = problem.counts(plan.placements)
    assert problem.feasible(y)
    assert plan.objective == problem.objective(y)
    assert plan.bound <= plan.objective
    assert plan.objective <= problem.objective(greedy(problem))


@settings(deadline=None)
@given(worlds())
def test_no_center_gets_more_than_its_in_flight_room(world: Snapshot) -> None:
    sent = Counter(p.center for p in schedule(world, policy_set()).placements)
    assert all(sent[c.id] <= max(0, c.max_in_flight - c.in_flight) for c in world.centers)


@settings(deadline=None)
@given(worlds())
def test_every_class_that_waits_says_why_at_every_center(world: Snapshot) -> None:
    plan = schedule(world, policy_set())
    started = Counter(p.class_key for p in plan.placements)
    waiting = {c.key for c in world.classes if started[c.key] < len(c.jobs)}
    assert set(plan.deferrals) == waiting
    for reasons in plan.deferrals.values():
        assert [r.center for r in reasons] == sorted(c.id for c in world.centers)


@settings(deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_the_snapshot_does_not_matter(world: Snapshot, random: Random) -> None:
    shuffled = replace(
        world,
        pools=tuple(random.sample(world.pools, len(world.pools))),
        classes=tuple(random.sample(world.classes, len(world.classes))),
        centers=tuple(random.sample(world.centers, len(world.centers))),
        claims=tuple(random.sample(world.claims, len(world.claims))),
    )
    assert schedule(shuffled, policy_set()) == schedule(world, policy_set())


@settings(deadline=None)
@given(worlds())
def test_one_more_free_node_never_raises_the_bound(world: Snapshot) -> None:
    more = replace(
        world,
        pools=tuple(
            replace(
                p,
                nodes=p.nodes + 1,
                free=(
                    *p.free,
                    free(p.shape.accelerators, cores=p.shape.cores, memory_gib=p.shape.memory_gib),
                ),
            )
            for p in world.pools
        ),
    )
    # Same options in both, or the worth of jobs is not the same.
    before, after = build(world, policy_set()), build(more, policy_set())
    if np.array_equal(before.codes, after.codes):
        assert solve(after).objective <= solve(before).objective + 10


# ---------------------------------------------------------------- against the optimum of tiny instances


def optimum(problem: Problem) -> int:
    """The least objective of all feasible whole plans, by trying them all."""
    spans = [range(int(u) + 1) for u in problem.ub.tolist()]
    tried = (np.array(y, dtype=np.int64) for y in itertools.product(*spans))
    return min(problem.objective(y) for y in tried if problem.feasible(y))


def tiny(seed: int) -> Snapshot:
    """One or two centers, two or three pools of few nodes, three classes of one to three jobs."""
    draw = np.random.default_rng(seed)
    centers = [center("a", max_in_flight=int(draw.integers(2, 6))), center("b", max_in_flight=3)]
    some_pools = [
        pool(
            f"{'ab'[i % 2]}/{i}",
            nodes=3,
            free=[free(int(draw.integers(1, 9)), int(draw.integers(1, 3)))],
            price=int(draw.integers(1, 20)) * 1_000_000,
        )
        for i in range(2)
    ]
    some_classes = [
        job_class(
            f"k{i}",
            int(draw.choice([1, 2, 4, 8])),
            jobs=int(draw.integers(1, 4)),
            nodes=int(draw.integers(1, 3)),
            tier=Tier(int(draw.integers(0, 3))),
            age_s=int(draw.choice([0, 500, 90_000])),
        )
        for i in range(3)
    ]
    return snapshot(*centers, *some_pools, *some_classes)


def test_small_plans_are_near_the_optimum_and_bounds_below_it() -> None:
    """Rounding costs at most 1 % of what could be gained on the whole, and half of it in one instance."""
    gained = possible = 0
    for seed in range(60):
        problem = build(tiny(seed), policy_set())
        plan = schedule(problem.snapshot, policy_set())
        best = optimum(problem)
        nothing = problem.objective(np.zeros(len(problem.option_class), dtype=np.int64))
        assert plan.bound is not None
        assert plan.bound <= best <= plan.objective
        assert 2 * (nothing - plan.objective) >= nothing - best
        gained += nothing - plan.objective
        possible += nothing - best
    assert 100 * gained >= 99 * possible


def test_the_relaxation_beats_greedy_where_greedy_blocks_itself() -> None:
    # Greedy gives the picky class's only pool to the class that could go elsewhere for a little more.
    shared, spare = pool("a/1", nodes=1, price=1_000_000), pool("a/2", cpu_node(), nodes=1)
    dear = pool("b/1", nodes=1, price=1_100_000)
    free_choice = job_class("any", 8, estimated_run_time_s=600)
    picky = job_class("picky", 8, centers=("a",))
    world = snapshot(center("a"), center("b"), shared, spare, dear, free_choice, picky)
    plan = schedule(world, policy_set())
    assert plan.source is Source.LP
    assert {p.class_key: p.pool for p in plan.placements} == {"any": "b/1", "picky": "a/1"}
    problem = build(world, policy_set())
    assert problem.objective(greedy(problem)) > plan.objective


# ---------------------------------------------------------------- the steps


def test_an_empty_queue_does_not_touch_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: LP, problem: Problem) -> Relaxation:
        raise AssertionError("solved")

    monkeypatch.setattr(LP, "relax", never)
    for world in (snapshot(center(), pool()), snapshot(center(), pool(), job_class(jobs=0))):
        plan = schedule(world, policy_set())
        assert (plan.placements, plan.deferrals, plan.bound) == ((), {}, 0)
        assert plan.solver_status == SolverStatus.UNUSED
    full = schedule(snapshot(center(), pool(free=[]), job_class()), policy_set())
    assert full.bound is not None
    assert full.bound <= full.objective
    assert full.solver_status == SolverStatus.UNUSED


def test_a_solve_cut_short_still_gives_a_plan() -> None:
    wishes = [job_class(f"k{i:02}", 1 << i % 4, jobs=9, nodes=1 + i % 2) for i in range(20)]
    there = [pool(f"sz-1/{i}", nodes=3, price=i * 1_000_000) for i in range(20)]
    world = snapshot(center(max_in_flight=500), *there, *wishes)
    plan = schedule(world, policy_set(), LP(iterations=1))
    assert plan.solver_status != SolverStatus.OPTIMAL
    assert plan.bound <= plan.objective
    assert violations(plan, world) == []
    assert len(plan.placements) > 20


def test_a_wrong_relaxation_is_cut_down_to_what_is_feasible() -> None:
    world = snapshot(center(), pool(), job_class("a", 4, jobs=3), job_class("b", 8, jobs=3))
    problem = build(world, policy_set())
    nonsense = Relaxation(y=np.array([7.0, 5.0]), objective=0.0, duals=np.zeros(4), status=SolverStatus.LIMIT)
    y = whole_plan(problem, nonsense)
    assert problem.feasible(y)
    assert y.sum() > 0


def test_two_plans_that_cannot_be_carried_out_are_a_defect() -> None:
    class Anywhere:
        def allow(self, p: Problem, k: int, pools: IntArray) -> Verdict:
            nothing = np.zeros(len(pools), dtype=np.int64)
            return Verdict(codes=nothing, need=nothing, have=nothing)

    wrong = PolicySet((Weighted("anywhere", Anywhere()), *policy_set().policies[1:]))
    world = snapshot(center(), pool(shape=node(8, arch="ARM")), job_class(jobs=2))
    with pytest.raises(InfeasiblePlan, match=r"snapshot 7: greedy: job k-0 in sz-1/a: X86 on ARM .* lp: "):
        schedule(world, wrong)


def test_duals_price_what_is_short() -> None:
    high, low = job_class("high", 8, tier=Tier.HIGH), job_class("low", 8, tier=Tier.LOW)
    problem = build(snapshot(center(), pool(nodes=1), high, low), policy_set())
    relaxation = solve(problem)
    priced = dict(zip(problem.row_name, relaxation.duals.tolist(), strict=True))
    # The slot goes to the high job; one more would be worth what the low one loses by waiting.
    assert problem.worth[1, 0] - 10 <= -priced["slots:sz-1/a:8"] <= problem.worth[0, 0] + 10
    assert priced["in-flight:sz-1"] == 0


def test_filling_leaves_its_argument_alone_and_is_final() -> None:
    world = snapshot(center(), pool(), job_class("a", 4, jobs=3), job_class("b", 2, jobs=1))
    problem = build(world, policy_set())
    start = np.zeros(len(problem.option_class), dtype=np.int64)
    filled = fill(problem, start)
    assert start.sum() == 0
    assert filled.tolist() == [3, 1]
    assert fill(problem, filled).tolist() == filled.tolist()


def test_older_jobs_of_other_classes_go_before_younger_ones() -> None:
    young, old = job_class("a", 8, age_s=0), job_class("b", 8, age_s=2000)
    plan = schedule(snapshot(center(), pool(nodes=1), young, old), policy_set())
    assert [p.class_key for p in plan.placements] == ["b"]


def test_equal_pools_are_taken_in_order() -> None:
    world = snapshot(center(), pool("sz-1/b"), pool("sz-1/a"), job_class())
    assert [p.pool for p in schedule(world, policy_set()).placements] == ["sz-1/a"]


def test_placements_tell_price_and_slot() -> None:
    wish = job_class(wish=node(3), nodes=2, estimated_run_time_s=1800)
    (placed,) = schedule(snapshot(center(), pool(price=2_000_000), wish), policy_set()).placements
    assert (placed.slot, placed.nodes) == (4, 2)
    assert (placed.rate_micro_per_hour, placed.cost_micro) == (12_000_000, 6_000_000)


# ---------------------------------------------------------------- what the policies lead to


def test_higher_tiers_go_first() -> None:
    tiers = [job_class(tier.name, 8, tier=tier) for tier in Tier]
    for room in range(1, 4):
        plan = schedule(snapshot(center(), pool(nodes=room), *tiers), policy_set())
        assert {p.class_key for p in plan.placements} == {t.name for t in sorted(Tier)[-room:]}


def test_any_allowed_option_beats_waiting() -> None:
    dear = pool(price=10**9)
    plan = schedule(snapshot(center(), dear, job_class(tier=Tier.LOW)), policy_set())
    assert len(plan.placements) == 1


def test_short_jobs_go_first_until_age_lets_an_old_long_one_pass() -> None:
    short = job_class("short", 8, estimated_run_time_s=600)

    def first(age_s: int) -> str:
        long = job_class("long", 8, estimated_run_time_s=7200, age_s=age_s)
        return schedule(snapshot(center(), pool(nodes=1), long, short), policy_set()).placements[0].class_key

    assert first(0) == "short"
    assert first(86_400) == "long"
    long = job_class("long", 8, estimated_run_time_s=7200)
    problem = build(snapshot(center(), pool(), long), policy_set())
    assert Age(growth=10 * MICRO).worth(problem, 0).tolist() == [
        8 * 10 * MICRO * s // 3600 for s in (0, 60, 300, 900, 3600, 14_400, 86_400)
    ]
    assert Age(longest_h=1).worth(problem, 0)[-1] == Age(longest_h=1).worth(problem, 0)[4]


def test_oldest_of_a_class_start_first() -> None:
    wish = job_class(wish=8, jobs=3, age_s=50)
    plan = schedule(snapshot(center(), pool(nodes=2), wish), policy_set())
    assert [p.job for p in plan.placements] == ["k-0", "k-1"]


def test_the_ceiling_is_compared_with_the_exact_rate() -> None:
    at_ceiling = job_class(estimated_run_time_s=7200, max_price_micro=2 * 5 * MICRO)
    world = snapshot(center(), pool(price=5 * MICRO), at_ceiling)
    assert len(schedule(world, policy_set()).placements) == 1
    dearer = schedule(replace(world, pools=(pool(price=5 * MICRO + 1),)), policy_set())
    assert not dearer.placements
    assert dearer.deferrals["k"][0].message == "the ceiling is 5 CNY/h, the price 5.000001"


# ---------------------------------------------------------------- the check finds what is wrong


def good() -> tuple[Plan, Snapshot]:
    world = snapshot(center(), center("sz-2"), pool(nodes=1, price=5), job_class(wish=4, jobs=3))
    return schedule(world, policy_set()), world


def test_a_good_plan_has_no_fault() -> None:
    plan, world = good()
    assert len(plan.placements) == 2
    assert violations(plan, world) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"job": JobId("k-1")}, "job k-1 is placed more than once"),
        ({"job": JobId("x")}, "job x is not queued"),
        ({"class_key": "other"}, "is of class k"),
        ({"center": "sz-2"}, "no pool sz-1/a at sz-2"),
        ({"pool": "sz-1/b"}, "no pool sz-1/b"),
        ({"nodes": 2}, "2 nodes instead of 1"),
        ({"slot": 2}, "slot of 2 instead of 4"),
        ({"rate_micro_per_hour": 1}, "rate 1 instead of 20"),
    ],
)
def test_a_changed_placement_is_found(change: dict[str, object], fault: str) -> None:
    plan, world = good()
    first, second = plan.placements
    changed = replace(plan, placements=(replace(first, **change), second))  # type: ignore[arg-type]
    assert any(fault in told for told in violations(changed, world))
    # nor does it matter what was found right before
    assert violations(plan, world, checked=(checked := Checked())) == []
    assert violations(changed, world, checked=checked) == violations(changed, world)


@pytest.mark.parametrize(
    ("world", "fault"),
    [
        (lambda w: replace(w, version=8), "the plan is for version 7, the snapshot has 8"),
        (lambda w: replace(w, centers=(center(max_in_flight=1),)), "2 runs sent, in-flight room for 1"),
        (lambda w: replace(w, centers=(center(health=Health.SUSPECT),)), "center is suspect"),
        (lambda w: replace(w, centers=(center(state=CenterState.DRAIN),)), "center is drain"),
        (lambda w: replace(w, pools=(pool(nodes=1, free=[free(7)], price=5),)), "1 slots of 4"),
        (lambda w: replace(w, pools=(pool(nodes=1, shape=node(8, arch="ARM"), price=5),)), "X86 on ARM"),
        (
            lambda w: replace(w, classes=(job_class(wish=4, jobs=3, max_price_micro=19),)),
            "above the ceiling 19",
        ),
        (lambda w: replace(w, classes=(job_class(wish=4, jobs=3, avoid=["sz-1"]),)), "avoids the center"),
        (lambda w: replace(w, classes=(job_class(wish=2, jobs=3),)), "is not the one asked for"),
    ],
)
def test_a_changed_world_is_found(world: object, fault: str) -> None:
    plan, before = good()
    assert callable(world)
    assert any(fault in told for told in violations(plan, world(before)))
    assert violations(plan, before, checked=(checked := Checked())) == []
    for _ in range(2):  # a fault is found again
        assert violations(plan, world(before), checked=checked) == violations(plan, world(before))


def test_many_jobs_are_named_oldest_first() -> None:
    world = snapshot(center(max_in_flight=10**6), pool(nodes=5000), job_class(jobs=40_000))
    problem = build(world, policy_set())
    made = placements(problem, greedy(problem))
    assert len(made) == 40_000
    assert [made[0].job, made[-1].job] == ["k-0", "k-39999"]
