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
from broker.core.explain import Code
from broker.core.model import FreeNodes, JobClass, JobId, Pool, QueuedJob, Snapshot
from broker.core.plan import Plan, Source, violations
from broker.core.policy import Mix, Nodes, PolicySet
from broker.core.policy_file import load_policies
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


def test_waste_is_what_copies_and_fillings_leave() -> None:
    one = np.array([1000], dtype=np.int64)
    mix = Mix(cards=one, cores=one // 250, memory_gib=one // 1000, count=one)
    nodes = Nodes(
        cards=np.array([[1000, 1000], [1000, 500], [1000, 1000]], dtype=np.int64),
        cores=np.array([8, 8, 4], dtype=np.int64),
        memory_gib=np.array([9, 9, 9], dtype=np.int64),
    )
    # Nothing; half a card; and a card without cores, of which a filling knows nothing.
    assert Packing().waste(mix, nodes).tolist() == [0, 500_000, 500_000]
    halves = Packing(expected=(Expected(500, 1, 1, 10**9),))
    assert halves.waste(mix, nodes).tolist() == pytest.approx([0, 0, 0], abs=1)


def test_expected_requests_are_read_and_checked() -> None:
    text = "[policies.fit]\n[policies.packing]\n[[policies.packing.expected]]\n"
    row = "millicards = 500\ncores = 1\nmemory_gib = 1\ncount = 3\n"
    loaded = load_policies(text + row, available_policies())
    assert loaded.policies[1].policy == Packing(expected=(Expected(500, 1, 1, 3),))
    with pytest.raises(ValueError, match="millicards must be at most 1000 or whole cards, not 1500"):
        load_policies(text + row.replace("500", "1500"), available_policies())
    with pytest.raises(ValueError, match="count at least 1"):
        load_policies(text + row.replace("count = 3", "count = 0"), available_policies())


def scarce(jobs: int) -> PolicySet:
    return policy_set(Packing(window_jobs=jobs, scarce=Decimal(1)))


def test_in_a_window_those_that_waste_least_start_and_others_wait() -> None:
    there = pool(shape=node(2, split=1), nodes=1, free=(FreeNodes(32, 256, 1, 1, (500,)),))
    first, fits = numbered([job_class("a", part(810)), job_class("b", part(500))])
    world = snapshot(center(), there, first, fits)
    plan = schedule(world, scarce(1))
    assert where(plan) == {"b-0": "sz-1/a"}
    assert [(r.code, r.have) for r in plan.deferrals["a"]] == [(Code.HELD_BACK, 1)]
    assert len(schedule(world, scarce(2)).placements) == 0
    # Nothing is held back while there is enough.
    enough = policy_set(Packing(window_jobs=9, scarce=Decimal("0.5")))
    assert len(schedule(world, enough).placements) == 2


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
