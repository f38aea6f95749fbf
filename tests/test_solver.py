"""The kept model and the kept memory: whatever changes from round to round, they change no answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core import memory as kept_between_rounds
from broker.core import scheduler, solver
from broker.core.check import violations
from broker.core.greedy import greedy
from broker.core.memory import Memory
from broker.core.model import CenterId, DataFacts, JobClass, JobId, Price, QueuedJob, Snapshot
from broker.core.policy import PolicySet, Verdict, Weighted
from broker.core.problem import IntArray, Problem, build
from broker.core.queue import JobQueue
from broker.core.scheduler import schedule
from broker.core.solver import LP, SolverStatus, solve
from policies.balance import Balance
from policies.fragmentation import Fragmentation
from policies.locality import Locality
from tests.builders import NOW_MS, center, free, job_class, policy_set, pool, snapshot, worlds


@st.composite
def next_world(draw: st.DrawFn, world: Snapshot, number: int) -> Snapshot:
    """The world some seconds later: jobs, free nodes, prices, room, classes and pools may differ."""
    classes = []
    for c in world.classes:
        what = draw(st.sampled_from(["same", "same", "fewer", "more", "gone"]))
        jobs = list(c.jobs)
        if what == "fewer":
            jobs = jobs[1:] or jobs
        if what == "more":
            jobs.append(QueuedJob(JobId(f"{c.key}-new{number}"), world.now_ms))
        if what != "gone":
            classes.append(replace(c, jobs=JobQueue(jobs)))
    if draw(st.booleans()):
        like = draw(st.sampled_from(world.classes)) if world.classes else job_class("first")
        jobs = [QueuedJob(JobId(f"n{number}-{i}"), world.now_ms) for i in range(draw(st.integers(1, 3)))]
        classes.append(replace(like, key=f"n{number}", jobs=tuple(jobs)))
    pools = []
    for p in world.pools:
        what = draw(st.sampled_from(["same", "same", "same", "free", "price", "wait", "gone"]))
        if what == "free":
            p = replace(p, free=tuple(replace(g, nodes=draw(st.integers(1, 3))) for g in p.free))
        if what == "price":
            p = replace(p, prices=(Price(draw(st.integers(0, 30_000_000))),))
        if what == "wait":
            p = replace(p, expected_wait_s=draw(st.sampled_from([0, 60, 7200])))
        if what != "gone" or draw(st.booleans()):
            pools.append(p)
    room = draw(st.sampled_from([0, 2, 32]))
    return replace(
        world,
        version=world.version + 1,
        now_ms=world.now_ms + draw(st.sampled_from([0, 2000, 4_000_000])),
        centers=tuple(replace(c, max_in_flight=room) if draw(st.booleans()) else c for c in world.centers),
        pools=tuple(pools),
        classes=tuple(classes),
    )


def same_money(one: float, other: float, problem: Problem, share: float) -> bool:
    size = float((problem.worth * problem.waiting.astype(float)).sum())
    return abs(one - other) <= 10 + share * max(abs(one), abs(other), size)


@settings(deadline=None, max_examples=60)
@given(worlds(), st.data())
def test_kept_and_fresh_agree_over_any_sequence_of_changes(world: Snapshot, data: st.DataObject) -> None:
    kept, policies = LP(), policy_set()
    for number in range(4):
        plan = schedule(world, policies, kept)
        assert violations(plan, world) == []
        problem = build(world, policies)
        relaxed = solve(problem)
        again = kept.relax(build(world, policies, memory=kept.memory)) if (problem.ub > 0).any() else relaxed
        if relaxed.status is SolverStatus.OPTIMAL:
            assert same_money(again.objective, relaxed.objective, problem, 1e-6)
        assert plan.bound <= plan.objective <= problem.objective(greedy(problem))
        assert plan.objective == problem.objective(problem.counts(plan.placements))
        world = data.draw(next_world(world, number))


@settings(deadline=None, max_examples=40)
@given(worlds(), st.data())
def test_a_model_with_few_columns_finds_the_others(world: Snapshot, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "WHOLE", 2)
        patch.setattr(solver, "NEAR", 1)
        patch.setattr(solver, "CLOSE", 0.0)
        patch.setattr(solver, "STEPS", 30)
        kept = LP()
        for number in range(4):
            problem = build(world, policy_set(), memory=kept.memory)
            few, whole = solve(problem, lp=kept), _with_all_columns(build(world, policy_set()))
            if few.status is SolverStatus.OPTIMAL:
                assert same_money(few.objective, whole, problem, solver.TOLERANCE + 1e-6)
            world = data.draw(next_world(world, number))


def _with_all_columns(problem: Problem) -> float:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "WHOLE", 10**9)
        return solve(problem).objective


@settings(deadline=None, max_examples=60)
@given(worlds(), st.data())
def test_memory_changes_no_problem(world: Snapshot, data: st.DataObject) -> None:
    memory, policies = Memory(), policy_set()
    for number in range(4):
        kept, fresh = build(world, policies, memory=memory), build(world, policies)
        for name in (
            "codes",
            "first",
            "option_class",
            "option_pool",
            "tau",
            "cost",
            "rate",
            "ub",
            "worth",
            "waiting",
        ):
            assert np.array_equal(getattr(kept, name), getattr(fresh, name)), name
        there = dict(zip(kept.row_name, kept.row_bound.tolist(), strict=True))
        assert {n: there[n] for n in fresh.row_name} == dict(
            zip(fresh.row_name, fresh.row_bound.tolist(), strict=True)
        )
        assert dict(kept.free) == dict(fresh.free)
        world = data.draw(next_world(world, number))


class Counting:
    """Allows everything and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.version = 0

    def allow(self, p: Problem, k: int, pools: IntArray) -> Verdict:
        self.asked.append((p.classes[k].key, [p.pools[i].id for i in pools.tolist()]))
        nothing = np.zeros(len(pools), dtype=np.int64)
        return Verdict(codes=nothing, need=nothing, have=nothing)

    def depends(self, snapshot: Snapshot) -> int:
        return self.version


def test_classes_that_are_away_are_forgotten_and_those_that_wait_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_between_rounds, "SPARE", 3)
    memory, policies = Memory(), policy_set()
    for number in range(20):
        there = [job_class(f"k{number + n}") for n in range(3)]
        kept = build(snapshot(center(), pool(), *there), policies, memory=memory)
        assert len(kept.option_class) == 3
        assert (kept.worth > 0).all()
        assert len(memory.blocks) <= 9


def test_policies_are_asked_for_what_changed_alone() -> None:
    counting = Counting()
    policies = PolicySet((*policy_set().policies, Weighted("counting", counting)))
    memory = Memory()

    def asked(world: Snapshot) -> list[tuple[str, list[str]]]:
        counting.asked.clear()
        build(world, policies, memory=memory)
        return list(counting.asked)

    there = (center("a"), center("b"), pool("a/1"), pool("b/1", price=5))
    world = snapshot(*there, job_class("k"))
    everywhere = ["a/1", "b/1"]
    assert asked(world) == [("k", everywhere)]
    assert asked(replace(world, version=8, now_ms=NOW_MS + 99_000)) == []
    assert asked(replace(world, pools=(pool("a/1", free=[free(3)]), world.pools[1]))) == []
    assert asked(replace(world, centers=(center("a", in_flight=9), center("b")))) == []
    assert asked(snapshot(*there, job_class("k", jobs=5), job_class("new"))) == [("new", everywhere)]
    dearer = (world.pools[0], pool("b/1", price=6))
    assert asked(replace(world, pools=dearer)) == [("k", ["b/1"])]
    assert asked(replace(world, pools=dearer, centers=(center("a", gang=False), center("b")))) == [
        ("k", ["a/1"])
    ]
    counting.version = 1
    assert asked(replace(world, pools=dearer)) == [("k", everywhere)]


def test_a_limit_of_time_ships_a_plan_with_a_bound_and_goes_on_later() -> None:
    world = _crowd(40)
    lp = LP(iterations=3)
    cut = schedule(world, policy_set(), lp)
    assert cut.solver_status != SolverStatus.OPTIMAL
    assert violations(cut, world) == []
    assert 0 < cut.bound <= cut.objective
    lp.iterations = None
    full = schedule(replace(world, version=8), policy_set(), lp)
    assert full.solver_status == SolverStatus.OPTIMAL
    assert cut.bound <= full.bound <= full.objective <= cut.objective
    lp.iterations = 1
    later = schedule(_crowd(39), policy_set(), lp)
    # The last round's prices still certify within a few per cent; 0 would be no certificate.
    assert later.objective - later.bound <= later.objective // 20


def _crowd(jobs: int) -> Snapshot:
    wishes = [job_class(f"k{i:02}", 1 << i % 4, jobs=jobs, nodes=1 + i % 2, age_s=i * 70) for i in range(12)]
    there = [pool(f"sz-1/{i}", nodes=20 + i, price=i * 1_000_000) for i in range(8)]
    return snapshot(center(max_in_flight=5000), *there, *wishes)


def test_a_large_round_skips_greedy_where_the_plan_is_proven_close(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _crowd(40)
    asked: list[Problem] = []

    def counted(problem: Problem) -> IntArray:
        asked.append(problem)
        return greedy(problem)

    monkeypatch.setattr(scheduler, "greedy", counted)
    schedule(world, policy_set())
    assert asked
    asked.clear()
    monkeypatch.setattr(scheduler, "WHOLE", 10)
    plan = schedule(world, policy_set())
    assert not asked
    assert plan.objective - plan.bound <= scheduler.CLOSE * plan.objective


def test_a_queue_changes_by_making_another() -> None:
    jobs = [QueuedJob(JobId(i), at) for i, at in (("b", 5), ("c", 5), ("a", 9))]
    queue = JobQueue(jobs)
    assert queue == tuple(jobs)
    assert queue[1:] == tuple(jobs[1:])
    later = queue.changed([jobs[1]], [QueuedJob(JobId("d"), 7), QueuedJob(JobId("e"), 12)])
    assert [job.id for job in later] == ["b", "d", "a", "e"]
    assert later.queued_ms.tolist() == [5, 7, 9, 12]
    assert len(queue) == 3
    assert queue.changed([], []) == queue


def test_queues_and_tuples_of_jobs_are_one_to_a_round() -> None:
    def world(make: type) -> Snapshot:
        classes: list[JobClass] = [job_class("k", 2, jobs=4, age_s=90), job_class("l", 8, jobs=2)]
        return snapshot(center(), pool(), *(replace(c, jobs=make(c.jobs)) for c in classes))

    assert schedule(world(JobQueue), policy_set()) == schedule(world(tuple), policy_set())


def test_a_lost_center_takes_its_columns_along() -> None:
    world = snapshot(center("a"), center("b"), pool("a/1"), pool("b/1"), job_class(wish=8, jobs=9))
    lp = LP()
    assert len(schedule(world, policy_set(), lp).placements) == 4
    only = replace(world, centers=(center("a"),))
    assert {p.center for p in schedule(only, policy_set(), lp).placements} == {CenterId("a")}


@settings(deadline=None, max_examples=40)
@given(worlds(), st.data())
def test_memory_follows_what_policies_read_besides(world: Snapshot, data: st.DataObject) -> None:
    policies = policy_set(Balance(), Fragmentation(), Locality())
    memory = Memory()
    classes = tuple(replace(c, request=replace(c.request, datasets=("d",))) for c in world.classes)
    world = replace(world, classes=classes)
    for number in range(4):
        kept, fresh = build(world, policies, memory=memory), build(world, policies)
        assert np.array_equal(kept.cost, fresh.cost)
        assert np.array_equal(kept.worth, fresh.worth)
        ready = frozenset(c.id for c in world.centers if data.draw(st.booleans()))
        world = data.draw(next_world(world, number))
        world = replace(world, ready_data={"d": DataFacts(bytes=10**12, ready=ready)})
