"""Jobs placed one after the other: order, exact room, what is kept between rounds, and the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import openb
from bench.fgd import Pod, cards_bound
from broker.companions import available_policies
from broker.core.check import violations
from broker.core.explain import Code
from broker.core.histogram import Histogram
from broker.core.model import FreeNodes, JobClass, JobId, Pool, QueuedJob, RunTime, Snapshot, Tier
from broker.core.places import Places
from broker.core.plan import Plan, Source
from broker.core.policy import Mix, Nodes, PolicySet
from broker.core.policy_file import load_policies
from broker.core.problem import build
from broker.core.scheduler import schedule
from broker.core.solver import LP
from policies.packing import Expected, Packing
from policies.quota import Quota, Share
from tests.builders import (
    NOW_MS,
    center,
    claim,
    free,
    free_groups,
    job_class,
    node,
    part,
    policy_set,
    pool,
    reservation,
    snapshot,
    spec,
    worlds,
)
from tests.test_parts import Cards

SPLIT = node(4, split=1)


def where(plan: Plan) -> dict[str, str]:
    return {p.job: p.pool for p in plan.placements}


# ---------------------------------------------------------------- any world


@settings(deadline=None)
@given(worlds())
def test_any_plan_can_be_carried_out_and_is_bounded_and_explained(world: Snapshot) -> None:
    plan = schedule(world, policy_set(Packing()))  # it checks the plan, or raises
    assert plan.source is Source.SEQUENCE or not any(c.jobs for c in world.classes)
    assert plan.bound <= plan.objective
    placed = [p.job for p in plan.placements]
    assert len(placed) == len(set(placed))
    waiting = {c.key for c in world.classes if not {j.id for j in c.jobs} <= set(placed)}
    assert set(plan.deferrals) == waiting
    assert all(plan.deferrals[key] for key in waiting)


def numbered(classes: Sequence[JobClass]) -> list[JobClass]:
    """The classes with jobs that arrived one after the other, class by class in turn."""
    at = iter(range(10**6))
    queues: dict[str, list[QueuedJob]] = {c.key: [] for c in classes}
    for i in range(max(len(c.jobs) for c in classes)):
        for c in classes:
            if i < len(c.jobs):
                queues[c.key].append(QueuedJob(c.jobs[i].id, NOW_MS - 50_000 + next(at)))
    return [replace(c, jobs=tuple(queues[c.key])) for c in classes]


@st.composite
def _worlds_of_parts(draw: st.DrawFn) -> Snapshot:
    shapes = [node(2, split=1), SPLIT, node(3, cores=40, memory_gib=900, split=125)]
    pools: list[Pool] = []
    for i in range(draw(st.integers(1, 4))):
        shape = draw(st.sampled_from(shapes))
        groups = draw(free_groups(shape))
        pools.append(pool(f"sz-1/{i}", shape, nodes=sum(g.nodes for g in groups), free=groups))
    some = [part(125), part(250, cores=9), part(500), part(875), spec(1), spec(2)]
    wishes = draw(
        st.lists(
            st.sampled_from(some),
            min_size=1,
            max_size=4,
            unique=True,
        )
    )
    jobs = [
        job_class(f"k{i}", wish, jobs=draw(st.integers(1, 6)), nodes=draw(st.sampled_from([1, 1, 1, 2])))
        for i, wish in enumerate(wishes)
    ]
    claims = [claim(f"bk-{i}", part(250).shape, pool=pools[0].id) for i in range(draw(st.integers(0, 3)))]
    return snapshot(center(max_in_flight=draw(st.sampled_from([99, 3]))), *pools, *numbered(jobs), *claims)


@settings(deadline=None)
@given(_worlds_of_parts(), st.integers(0, 20))
def test_a_decision_does_not_change_when_later_jobs_are_cut_off(world: Snapshot, kept: int) -> None:
    arrived = sorted((job.queued_ms, job.id) for c in world.classes for job in c.jobs)[:kept]
    early = {id for _, id in arrived}
    cut = replace(
        world,
        classes=tuple(
            replace(c, jobs=tuple(job for job in c.jobs if job.id in early)) for c in world.classes
        ),
    )
    policies = policy_set(Packing())
    whole, part_of_it = schedule(world, policies), schedule(cut, policies)
    assert where(part_of_it) == {job: at for job, at in where(whole).items() if job in early}


@settings(deadline=None)
@given(_worlds_of_parts(), _worlds_of_parts())
def test_what_is_kept_between_rounds_changes_no_plan(one: Snapshot, other: Snapshot) -> None:
    policies, lp = policy_set(Packing()), LP()
    for world in (one, other, replace(one, pools=one.pools[:1]), one):
        # The mix is that of the last doubling; with equal claims it is the same.
        world = replace(world, claims=())
        assert where(schedule(world, policies, lp)) == where(schedule(world, policies))


@settings(deadline=None)
@given(_worlds_of_parts())
def test_what_a_start_leaves_is_weighed_as_if_it_were_reported(world: Snapshot) -> None:
    problem = build(replace(world, claims=()), policy_set(Packing(expected=USUAL)))
    shapes = [c.request.spec.shape for c in problem.classes if c.request.spec is not None]
    places, free = Places(), dict(problem.free)
    places.follow(problem)
    wanted = places.wanted(shapes)
    for number in range(8):
        growth = places.growth(wanted)
        options = np.argwhere(np.isfinite(growth)).tolist()
        if not options:
            break
        which, at = options[number * 7 % len(options)]
        there = problem.pools[at]
        column = places.start(at, shapes[which], 1, wanted)
        nodes = Histogram(replace(there, free=free[there.id]))
        assert nodes.place(shapes[which], 1) == 0
        free[there.id] = nodes.groups()
        fresh = Places()
        fresh.follow(replace(problem, free=free))
        reported = fresh.growth(fresh.wanted(shapes))
        assert np.allclose(places.growth(wanted), reported, atol=1e-3)
        assert column is not None
        assert np.allclose(column, reported[:, at], atol=1e-3)


@settings(deadline=None)
@given(_worlds_of_parts())
def test_jobs_fit_on_real_cards_in_the_order_of_the_plan(world: Snapshot) -> None:
    world = replace(world, claims=())
    (alone,) = [p for p in world.pools if p.id == "sz-1/0"]
    if alone.nodes != 1:
        return
    cards = Cards(alone)
    for placement in schedule(world, policy_set(Packing())).placements:
        if placement.pool == alone.id:
            assert all(cards.put(placement.spec.shape) for _ in range(placement.nodes))


# ---------------------------------------------------------------- room


def test_a_part_that_fits_starts_although_its_slot_does_not() -> None:
    there = pool(shape=SPLIT, nodes=1, free=(FreeNodes(64, 512, 0, 1, (300,)),))
    world = snapshot(center(), there, job_class(wish=part(300)))
    assert not schedule(world, policy_set()).placements
    assert len(schedule(world, policy_set(Packing())).placements) == 1


def test_ceilings_and_in_flight_room_hold() -> None:
    there = pool(shape=SPLIT, nodes=2)
    world = snapshot(center(), there, job_class(wish=part(400), jobs=9))
    plan = schedule(world, policy_set(Packing(), Quota(shares=(Share("t", ceiling=1),))))
    assert len(plan.placements) == 2
    assert plan.deferrals["k"][0].code is Code.QUOTA
    few = snapshot(center(max_in_flight=3), there, job_class(wish=part(400), jobs=9))
    plan = schedule(few, policy_set(Packing()))
    assert len(plan.placements) == 3
    assert plan.deferrals["k"][0].code is Code.IN_FLIGHT


def test_a_gang_shares_nodes_only_where_it_must() -> None:
    small, large = pool("sz-1/a", nodes=1), pool("sz-1/b", nodes=2)
    world = snapshot(center(), small, large, job_class(wish=8, nodes=2))
    assert where(schedule(world, policy_set(Packing()))) == {"k-0": "sz-1/b"}
    shared = snapshot(center(), pool(nodes=2, free=[free(8)]), job_class(wish=4, nodes=2))
    assert len(schedule(shared, policy_set(Packing())).placements) == 1


def test_jobs_that_wait_are_forecast() -> None:
    """One node, on which a run has 400 s left; each job takes ten minutes."""
    sure = RunTime(600, 600)
    runs = replace(claim("r", 8, started_ms=NOW_MS - 200_001), learned=sure)
    queue = replace(job_class(wish=8, jobs=2), learned=sure)
    plan = schedule(snapshot(center(), pool(nodes=1, free=[]), runs, queue), policy_set(Packing()))
    assert plan.source is Source.SEQUENCE
    assert plan.outlook is not None
    found = plan.outlook.of([JobId("k-0"), JobId("k-1")])
    assert {job: eta.p50_s for job, eta in found.items()} == {"k-0": 400, "k-1": 1000}


def test_while_something_is_held_rounds_are_as_usual() -> None:
    world = snapshot(center(), pool(), job_class(wish=1), reservation(8))
    assert schedule(world, policy_set(Packing())).source is not Source.SEQUENCE


def test_the_check_finds_jobs_without_room_in_order() -> None:
    there = pool(shape=SPLIT, nodes=1, free=(FreeNodes(64, 512, 0, 1, (500,)),))
    world = snapshot(center(), there, job_class(wish=part(300), jobs=2))
    plan = schedule(world, policy_set(Packing()))
    (placed,) = plan.placements
    second = replace(placed, job=JobId("k-1"))
    wrong = replace(plan, placements=(placed, second))
    assert violations(wrong, world) == [f"pool sz-1/a: {part(300).id} has no room in the order of the plan"]


# ---------------------------------------------------------------- the policy


def test_a_job_goes_where_it_leaves_most_for_others() -> None:
    whole = pool("sz-1/a", SPLIT, nodes=1)
    broken = pool("sz-1/b", SPLIT, nodes=1, free=(FreeNodes(40, 400, 3, 1, (500,)),))
    world = snapshot(center(), whole, broken, job_class(wish=part(500)))
    assert where(schedule(world, policy_set(Packing()))) == {"k-0": "sz-1/b"}
    assert where(schedule(world, policy_set())) == {"k-0": "sz-1/a"}


def test_what_runs_teaches_what_is_usual() -> None:
    # Both places break a whole node; where runs need many cores per card, those are spared.
    lean = pool("sz-1/b", node(4, cores=16, split=1), nodes=1)
    rich = pool("sz-1/a", node(4, cores=64, split=1), nodes=1)
    asks = job_class(wish=node(1, cores=4))
    hungry = [
        replace(claim(f"bk-{i}", node(1, cores=16), pool="sz-1/a"), started_ms=NOW_MS - 10**6)
        for i in range(9)
    ]
    world = snapshot(center(), rich, lean, asks, *hungry)
    assert where(schedule(world, policy_set(Packing()))) == {"k-0": "sz-1/b"}


def mix_of(*rows: tuple[int, int, int, int]) -> Mix:
    """Of (thousandths of cards, cores, GiB, count)."""
    cards, cores, memory, count = np.array(rows, dtype=np.int64).T
    return Mix(cards=cards, cores=cores, memory_gib=memory, count=count)


def test_waste_is_what_the_best_filling_leaves() -> None:
    mix = mix_of((1000, 4, 1, 1000))
    nodes = Nodes(
        cards=np.array([[1000, 1000], [500, 1000]], dtype=np.int64),
        of=np.array([0, 1, 0, 0], dtype=np.int64),
        host=np.array([[8, 8, 4, 8], [9, 9, 9, 0]], dtype=np.float64),
    )
    # Nothing; half a card; a card without cores; and both, without memory.
    assert Packing().waste(mix, nodes).tolist() == pytest.approx([0, 500_000, 1_000_000, 2_000_000])
    halves = Packing(expected=(Expected(500, 1, 1, 10**9),))
    assert halves.waste(mix, nodes).tolist() == pytest.approx([0, 0, 0, 2_000_000])


def test_no_place_is_kept_for_rare_sizes() -> None:
    mix = mix_of((500, 1, 1, 990), (200, 1, 1, 10))
    rest = Nodes(np.array([[200]]), np.array([0]), np.array([[9.0], [9.0]]))
    assert Packing(rare=Decimal("0.02")).waste(mix, rest).tolist() == pytest.approx([200_000])
    assert Packing(rare=Decimal("0.005")).waste(mix, rest)[0] < 200_000


def test_efficiency_is_the_share_of_a_price_that_a_size_uses() -> None:
    mix = mix_of((810, 1, 1, 100), (700, 1, 1, 100), (500, 1, 1, 100), (1000, 1, 1, 100))
    of = {size: Packing().efficiency(mix, size) for size in (0, 500, 700, 810, 1000, 8000)}
    # Two halves fill a card; beside the others nothing fits, and they are about as dear as each other.
    assert [of[size] for size in (0, 500, 1000, 8000)] == [1, 1, 1, 1]
    assert 0.7 < of[700] < of[810] < 0.95


def test_expected_requests_are_read_and_checked() -> None:
    text = "[policies.fit]\n[policies.packing]\n[[policies.packing.expected]]\n"
    row = "millicards = 500\ncores = 1\nmemory_gib = 1\ncount = 3\n"
    loaded = load_policies(text + row, available_policies())
    assert loaded.policies[1].policy == Packing(expected=(Expected(500, 1, 1, 3),))
    with pytest.raises(ValueError, match="millicards must be at most 1000 or whole cards, not 1500"):
        load_policies(text + row.replace("500", "1500"), available_policies())
    with pytest.raises(ValueError, match="count at least 1"):
        load_policies(text + row.replace("count = 3", "count = 0"), available_policies())


USUAL = (Expected(810, 4, 8, 1000), Expected(700, 4, 8, 1000), Expected(500, 4, 8, 1000))


def window(jobs: int, *, longest_s: int = 3600, scarce: str = "1") -> PolicySet:
    return policy_set(Packing(window_jobs=jobs, longest_s=longest_s, scarce=Decimal(scarce), expected=USUAL))


def test_in_a_window_those_that_use_their_cards_least_wait() -> None:
    there = pool(shape=node(4, split=1), nodes=1, free=(FreeNodes(32, 256, 3, 1, (500,)),))
    most, more, none = numbered(
        [job_class("a", part(700)), job_class("b", part(810)), job_class("c", part(500))]
    )
    world = snapshot(center(), there, most, more, none)
    assert set(where(schedule(world, window(0)))) == {"a-0", "b-0", "c-0"}
    plan = schedule(world, window(1))
    assert set(where(plan)) == {"b-0", "c-0"}
    assert [(r.code, r.have) for r in plan.deferrals["a"]] == [(Code.HELD_BACK, 1)]
    assert set(where(schedule(world, window(9)))) == {"c-0"}
    # Nothing is held back while there is enough.
    assert len(schedule(world, window(9, scarce="0.5")).placements) == 3


def test_of_those_that_are_alike_the_youngest_waits_and_nobody_too_long() -> None:
    there = pool(shape=node(4, split=1), nodes=1)
    (alike,) = numbered([job_class("a", part(700), jobs=3)])  # queued 50 s ago
    world = snapshot(center(), there, alike)
    assert set(where(schedule(world, window(1, scarce="1.0")))) == {"a-0", "a-1", "a-2"}
    scarce = replace(world, pools=(replace(there, free=(FreeNodes(32, 256, 3, 1),)),))
    assert set(where(schedule(scarce, window(1)))) == {"a-0", "a-1"}
    assert set(where(schedule(scarce, window(9)))) == set()
    assert set(where(schedule(scarce, window(9, longest_s=49)))) == {"a-0", "a-1", "a-2"}


def test_the_lowest_tier_waits_first_and_vip_jobs_never() -> None:
    there = pool(shape=node(4, split=1), nodes=1, free=(FreeNodes(32, 256, 3, 1),))
    low, normal, vip = numbered(
        [
            job_class(f"{tier.name}", part(size), tier=tier)
            for tier, size in ((Tier.LOW, 810), (Tier.NORMAL, 700), (Tier.VIP, 700))
        ]
    )
    world = snapshot(center(), there, low, normal, vip)
    # The low one makes more of its card, and waits nevertheless.
    assert set(where(schedule(world, window(1)))) == {"NORMAL-0", "VIP-0"}
    assert set(where(schedule(world, window(9)))) == {"VIP-0"}


# ---------------------------------------------------------------- the bench


def test_the_bench_says_what_it_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert openb.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("SKIPPED: no openb_default.csv.gz")


def test_the_bench_decides_all_pods_of_a_small_workload() -> None:
    pods = tuple(Pod(*p) for p in ((500, 1000, 1000), (1000, 2000, 1000), (0, 500, 100)))
    workload = openb.Workload((Pod(2000, 8000, 8000),) * 4, pods)
    arrived = workload.sample(1, 1.0)
    result = openb.broker(workload, arrived, openb.ONLINE, batch=3)
    asked = sum(pod.cards for pod in arrived)
    assert result.shares[1.0] == pytest.approx(100 * asked / 8000)
    assert cards_bound(arrived, 8) == pytest.approx(result.shares[1.0])
