"""From a snapshot to arrays: every reason code, slot sizes, rows that are exact, policies, class keys."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.companions import available_policies
from broker.core.check import pack
from broker.core.explain import MEANINGS, Code, explain, vocabulary
from broker.core.model import (
    EVERY_CENTER,
    MICRO,
    Accuracy,
    CenterFacts,
    CenterId,
    CenterState,
    Health,
    JobClass,
    Kind,
    NodeShape,
    Pool,
    Snapshot,
    Spec,
    TenantId,
    Tier,
)
from broker.core.policy import Limit, PolicySet, Verdict
from broker.core.policy_file import PolicyError, load_policies
from broker.core.problem import IntArray, Problem, build, class_key
from broker.core.resources import slices, slot_size
from broker.core.scheduler import schedule
from broker.core.snapshot import effective_free
from policies.age import Age
from policies.cost import Cost
from policies.fit import Fit
from policies.priority import Priority
from policies.wait import Wait
from tests import builders
from tests.builders import (
    A800,
    ASCEND,
    center,
    claim,
    cpu_node,
    free,
    job_class,
    node,
    policy_set,
    pool,
    request,
    snapshot,
    spec,
    worlds,
)

# ---------------------------------------------------------------- one case per code


@dataclass(frozen=True)
class TenantQuota:
    """At most so many cards of new work for every tenant together."""

    cards: int

    def limits(self, p: Problem) -> tuple[Limit, ...]:
        options = np.arange(len(p.option_class), dtype=np.int64)
        nodes = [p.classes[k].request.nodes for k in p.option_class.tolist()]
        return (Limit("cards", Code.QUOTA, options, p.tau * np.array(nodes, dtype=np.int64), self.cards),)


@dataclass(frozen=True)
class Dear:
    """Makes everything cost more than it is worth."""

    def cost(self, p: Problem, k: int, pools: IntArray) -> IntArray:
        return np.full(len(pools), 10**9, dtype=np.int64)

    def worth(self, p: Problem, k: int) -> IntArray:
        return np.full(len(p.age_s), -9 * 10**9, dtype=np.int64)


Case = tuple[Code, CenterFacts, Pool | None, JobClass, int, int]
CASES: list[Case] = [
    (Code.NO_POOLS, center(), None, job_class(), 1, 0),
    (Code.CENTER_NOT_LISTED, center(), pool(), job_class(centers=(CenterId("sz-2"),)), 1, 0),
    (Code.CENTER_INACTIVE, center(state=CenterState.INACTIVE), pool(), job_class(), 1, 0),
    (Code.CENTER_DRAINING, center(state=CenterState.DRAIN, health=Health.DOWN), pool(), job_class(), 1, 0),
    (Code.CENTER_UNPOLLED, center(health=Health.UNKNOWN), pool(), job_class(), 1, 0),
    (Code.CENTER_UNPOLLED, center(health=Health.UNKNOWN), None, job_class(), 1, 0),
    (Code.CENTER_NOT_LISTED, center(), None, job_class(centers=(CenterId("sz-2"),)), 1, 0),
    (Code.CENTER_DOWN, center(health=Health.DOWN), pool(), job_class(), 1, 0),
    (Code.CENTER_SUSPECT, center(health=Health.SUSPECT), pool(), job_class(), 1, 0),
    (Code.SERVICE_UNSUPPORTED, center(), pool(), job_class(kind=Kind.ONLINE), 1, 0),
    (Code.IMAGE_UNAVAILABLE, center(images=frozenset({"a"})), pool(), job_class(image_id="b"), 1, 0),
    (Code.IMAGE_UNAVAILABLE, center(any_image_url=False), pool(), job_class(image_url="r/x:1"), 1, 0),
    (Code.MAX_RUN_TIME, center(max_run_time_s=3600), pool(), job_class(max_run_time_s=3601), 3601, 3600),
    (Code.GANG_UNSUPPORTED, center(gang=False), pool(), job_class(nodes=2), 2, 1),
    (Code.NO_PRODUCT, center(), pool(), job_class(wish=node(4, accelerator=f"{A800}X")), 4, 0),
    (Code.NO_PRODUCT, center(), pool(), job_class(wish=cpu_node(4, 8)), 1, 0),
    (Code.ARCH_MISMATCH, center(), pool(), job_class(wish=node(1, arch="ARM")), 1, 0),
    (Code.CARD_MEMORY_MISMATCH, center(), pool(), job_class(wish=node(1, card_memory_gib=40)), 40, 80),
    (Code.CARD_PART, center(), pool(), job_class(wish=builders.part(500, card_memory_gib=80)), 500, 1000),
    (Code.CARDS_PER_NODE, center(), pool(), job_class(wish=node(16, cores=1)), 16, 8),
    (Code.CORES_PER_NODE, center(), pool(), job_class(wish=node(1, cores=129)), 129, 128),
    (Code.MEMORY_PER_NODE, center(), pool(), job_class(wish=node(1, memory_gib=1025)), 1025, 1024),
    (Code.SPEC_NOT_OFFERED, center(), pool(specs=(spec(1), spec(8))), job_class(wish=2), 1, 2),
    (Code.POWER, center(), pool(), job_class(wish=None, min_gflops=2_496_001), 2_496_001, 2_496_000),
    (Code.GANG_NODES, center(), pool(), job_class(nodes=3), 3, 2),
    (
        Code.PRICE_CEILING,
        center(),
        pool(price=5 * MICRO),
        job_class(wish=4, nodes=2, estimated_run_time_s=7200, max_price_micro=80 * MICRO - 1),
        39_999_999,
        40_000_000,
    ),
    (Code.AVOIDED, center(), pool(), job_class(avoid=["sz-1"]), 1, 0),
    (Code.RESTART_PAUSE, center(), pool(), job_class(avoid=[EVERY_CENTER]), 1, 0),
    (Code.CAPACITY, center(), pool(nodes=3, free=[free(7, 1)]), job_class(wish=4, nodes=2), 2, 1),
    (Code.CAPACITY_OUTRANKED, center(), pool(free=[free(6)]), job_class(wish=4, jobs=2), 1, 0),
    (Code.UNKNOWN_IDLE, center(max_in_flight=0), pool(accuracy=Accuracy.UNKNOWN), job_class(), 1, 0),
    (Code.IN_FLIGHT, center(max_in_flight=5, in_flight=5), pool(), job_class(), 1, 0),
]


@pytest.mark.parametrize(("code", "at", "there", "wants", "need", "have"), CASES)
def test_every_code_has_its_numbers(
    code: Code, at: CenterFacts, there: Pool | None, wants: JobClass, need: int, have: int
) -> None:
    parts = (at, wants) if there is None else (at, there, wants)
    (reason,) = schedule(snapshot(*parts), policy_set()).deferrals[wants.key]
    assert (reason.center, reason.code, reason.need, reason.have) == (at.id, code, need, have)
    assert "{" not in reason.message


def test_limits_and_costs_have_codes_too() -> None:
    world = snapshot(center(), pool(), job_class(wish=4, nodes=2, jobs=2))
    (reason,) = schedule(world, policy_set(TenantQuota(cards=9))).deferrals["k"]
    assert (reason.code, reason.need, reason.have) == (Code.QUOTA, 8, 1)
    (reason,) = schedule(world, policy_set(Dear())).deferrals["k"]
    assert reason.code is Code.COST_ABOVE_WORTH
    assert reason.need >= 10**9 > reason.have


def test_the_vocabulary_is_closed_and_tested() -> None:
    told = {case[0] for case in CASES} | {Code.QUOTA, Code.COST_ABOVE_WORTH}
    told |= {Code.STAGING, Code.DATA_UNAVAILABLE}  # in test_policies
    # Tested in test_holds and test_preemption.
    told |= {Code.RESERVED, Code.NODES_NOT_HELD, Code.GANG_WAITING, Code.VIP_WAITING, Code.PREEMPTING}
    told |= {Code.HELD_BACK, Code.BUDGET}  # in test_sequence and test_budget
    assert told == set(Code) - {Code.ALLOWED} == set(MEANINGS)
    assert len({row[0] for row in vocabulary()}) == len(MEANINGS)


def test_the_pool_that_came_closest_speaks() -> None:
    far = pool("sz-1/a", node(8, accelerator=ASCEND, card_memory_gib=64, arch="ARM"))
    near = pool("sz-1/b", node(2))
    nearer = pool("sz-1/c", node(3))
    other = pool("sz-2/a", node(4), free=[])
    world = snapshot(center(), center("sz-2"), far, near, nearer, other, job_class(wish=4))
    reasons = schedule(world, policy_set()).deferrals["k"]
    assert [(r.center, r.code, r.need, r.have) for r in reasons] == [
        ("sz-1", Code.CARDS_PER_NODE, 4, 3),
        ("sz-2", Code.CAPACITY, 1, 0),
    ]


def test_a_plan_can_be_explained_later() -> None:
    world = snapshot(center(), pool(nodes=1), job_class("a", 8, jobs=2), job_class("b", 4, nodes=2))
    plan, problem = schedule(world, policy_set()), build(world, policy_set())
    assert {problem.classes[k].key: explain(problem, plan, k) for k in (0, 1)} == dict(plan.deferrals)


# ---------------------------------------------------------------- options and rows


def bounds(problem: Problem) -> dict[str, int]:
    return dict(zip(problem.row_name, problem.row_bound.tolist(), strict=True))


def test_six_cards_leave_a_slot_of_four_and_of_two() -> None:
    six = pool(shape=node(6), nodes=2, free=[free(6, 1), free(5, 1)])
    wishes = [job_class(str(cards), cards, jobs=9) for cards in (1, 2, 3, 6)]
    problem = build(snapshot(center(), six, *wishes), policy_set())
    assert problem.tau.tolist() == [1, 2, 4, 6]
    assert bounds(problem) == {
        "slots:sz-1/a:1": 11,
        "slots:sz-1/a:2": 5,
        "slots:sz-1/a:4": 2,
        "slots:sz-1/a:6": 1,
        "in-flight:sz-1": 32,
    }
    # A whole node of six holds one slot of four, three of two.
    assert problem.takes(3)[1].tolist() == [6, 3, 1, 1, 1]
    assert problem.ub.tolist() == [9, 5, 2, 1]


def test_a_gang_may_use_half_used_nodes_beside_whole_ones() -> None:
    parts = pool(nodes=4, free=[free(4, 2), free(8, 2)])
    plan = schedule(snapshot(center(), parts, job_class(wish=4, nodes=4)), policy_set())
    assert [(p.nodes, p.slot) for p in plan.placements] == [(4, 4)]


def test_cores_of_a_cpu_pool_are_its_units() -> None:
    cpus = pool(shape=cpu_node(24, 100), nodes=1)
    wishes = [
        job_class("a", cpu_node(3, 5)),
        job_class("b", cpu_node(1, 50)),
        job_class("c", cpu_node(20, 1)),
    ]
    problem = build(snapshot(center(), cpus, *wishes), policy_set())
    assert problem.tau.tolist() == [4, 16, 24]


def test_power_takes_the_smallest_slice_that_has_it() -> None:
    slow = pool("sz-1/b", node(8, accelerator=ASCEND, card_memory_gib=64))
    listed = pool("sz-1/c", specs=(spec(8), spec(1)))
    cpus = pool("sz-1/d", cpu_node())
    wish = job_class(wish=None, min_gflops=700_000)
    problem = build(snapshot(center(), pool(), slow, listed, cpus, wish), policy_set())
    chosen = {
        problem.pools[p].id: problem.specs[int(problem.fittings[0].spec[p])].shape.accelerators
        for p in problem.option_pool.tolist()
    }
    assert chosen == {"sz-1/a": 4, "sz-1/b": 4, "sz-1/c": 8}
    strong = build(snapshot(center(), pool(), slow, job_class(wish=None, min_gflops=624_000)), policy_set())
    assert strong.tau.tolist() == [2, 4]


def test_a_listed_spec_of_another_product_is_never_chosen() -> None:
    odd = pool(specs=(spec(node(1, accelerator=ASCEND)), spec(node(1, arch="ARM")), spec(4)))
    problem = build(snapshot(center(), odd, job_class(wish=None, min_gflops=1)), policy_set())
    assert problem.tau.tolist() == [4]


def test_unknown_idle_is_bound_by_in_flight_room_alone() -> None:
    blind = pool(accuracy=Accuracy.UNKNOWN, nodes=0, free=[])
    world = snapshot(center(max_in_flight=3), blind, job_class(jobs=5, wish=8, nodes=2))
    plan = schedule(world, policy_set())
    assert len(plan.placements) == 3
    (reason,) = plan.deferrals["k"]
    assert (reason.code, reason.need, reason.have) == (Code.UNKNOWN_IDLE, 1, 0)


def test_jobs_fall_into_age_buckets() -> None:
    ages = [100_000, 86_400, 86_399, 60, 59, 0, -5]
    wish = job_class(jobs=len(ages))
    aged = tuple(
        replace(job, queued_ms=builders.NOW_MS - a * 1000) for job, a in zip(wish.jobs, ages, strict=True)
    )
    problem = build(snapshot(center(), pool(), replace(wish, jobs=aged)), policy_set())
    assert problem.waiting.tolist() == [[3, 1, 0, 0, 0, 1, 2]]
    assert problem.unserved(np.array([3])).tolist() == [[3, 1, 0, 0, 0, 0, 0]]


def test_two_classes_of_one_key_are_refused() -> None:
    with pytest.raises(ValueError, match="class k occurs twice in snapshot 7"):
        build(snapshot(center(), job_class(), job_class()), policy_set())


@settings(deadline=None)
@given(worlds())
def test_slot_sizes_are_those_of_single_shapes(world: Snapshot) -> None:
    problem = build(world, policy_set())
    for fitting in problem.fittings:
        for at, some_pool in enumerate(problem.pools):
            if fitting.spec[at] >= 0:
                chosen = problem.specs[int(fitting.spec[at])]
                assert fitting.tau[at] == slot_size(some_pool.shape, chosen.shape)


@settings(deadline=None)
@given(st.data())
def test_slot_rows_hold_exactly_when_all_slots_pack(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from(builders.NODES))
    groups = data.draw(builders.free_groups(shape))
    there = pool(shape=shape, nodes=99, free=groups)
    wishes = data.draw(st.lists(st.sampled_from(_odd_specs(shape)), min_size=1, max_size=4, unique=True))
    jobs = [job_class(f"k{i}", s, jobs=30, nodes=data.draw(st.integers(1, 3))) for i, s in enumerate(wishes)]
    problem = build(snapshot(center(max_in_flight=10**6), there, *jobs), policy_set())
    counts = data.draw(st.lists(st.integers(0, 8), min_size=len(jobs), max_size=len(jobs)))
    y = np.array(counts, dtype=np.int64)
    wanted: dict[tuple[int, Spec], int] = {}
    for j, started in enumerate(counts):
        at = problem.classes[j].request
        assert at.spec is not None
        wanted[int(problem.tau[j]), at.spec] = started * at.nodes
    unpacked = pack(there, effective_free(problem.snapshot)[there.id], wanted)
    assert problem.feasible(y) == (not unpacked)


def _odd_specs(shape: NodeShape) -> list[Spec]:
    """Slices and specs that are not powers of two, or want more cores or memory than their cards' share."""
    total = shape.accelerators or shape.cores
    odd = [
        replace(
            shape,
            accelerators=min(cards, shape.accelerators),
            cores=max(1, shape.cores * cores // total),
            memory_gib=max(1, shape.memory_gib * memory // total),
            split_permille=0,
        )
        for cards, cores, memory in ((3, 3, 3), (1, 2, 1), (1, 1, total - 1), (2, 3, 2))
    ]
    if shape.split_permille:
        parts = [(250, 10, 20), (375, 1, 1), (875, 14, 120)]
        card = odd[0]
        odd += [
            replace(card, accelerators=1, cores=c, memory_gib=m, card_permille=p, accelerator_memory_gib=g)
            for p, c, m in parts
            for g in (1, 60)
        ]
    return list(dict.fromkeys([*slices(shape), *(spec(s) for s in odd)]))


# ---------------------------------------------------------------- policies


def test_cost_is_the_price_at_the_estimate() -> None:
    wish = job_class(wish=4, nodes=2, estimated_run_time_s=1800)
    problem = build(snapshot(center(), pool(price=3 * MICRO), wish), policy_set())
    assert Cost().cost(problem, 0, np.array([0])).tolist() == [12 * MICRO]
    assert problem.rate.tolist() == [24 * MICRO]


def test_money_far_from_small_stays_exact() -> None:
    wish = job_class(nodes=1000, wish=8, estimated_run_time_s=10_000_000)
    problem = build(snapshot(center(), pool(price=10**9 + 7, nodes=1000), wish), policy_set())
    assert problem.cost.tolist() == [(10**9 + 7) * 8 * 1000 * 10_000_000 // 3600]
    gain = 4 * (20_000_000 * 8000 * Priority().shortness(10_000_000) // 64)
    assert problem.worth[0, 0] == problem.cost[0] + gain


def test_wait_sends_jobs_where_they_start_sooner() -> None:
    busy = pool("sz-1/a", expected_wait_s=600)
    idle = pool("sz-1/b", price=MICRO)
    world = snapshot(center(), busy, idle, job_class(wish=2))
    problem = build(world, policy_set())
    assert Wait(price=1000).cost(problem, 0, np.array([0, 1])).tolist() == [1_200_000, 0]
    assert [p.pool for p in schedule(world, policy_set()).placements] == ["sz-1/a"]
    dearer = replace(world, pools=(replace(busy, expected_wait_s=1200), idle))
    assert [p.pool for p in schedule(dearer, policy_set()).placements] == ["sz-1/b"]


def test_claims_and_reservations_shrink_the_rows() -> None:
    world = snapshot(center(), pool(), claim(wish=4), builders.reservation(8), job_class(wish=1, jobs=9))
    rows = bounds(build(world, policy_set()))
    assert rows["slots:sz-1/a:1"] == 12
    assert rows["limit:held:sz-1/a:1:1"] == 4


AVAILABLE: dict[str, type] = {"fit": Fit, "cost": Cost, "wait": Wait, "age": Age, "priority": Priority}


def test_the_shipped_policy_file_states_the_defaults(request: pytest.FixtureRequest) -> None:
    text = (request.config.rootpath / "config" / "policy.toml").read_text(encoding="utf-8")
    available = available_policies()
    in_force = {w.name: (w.policy, w.permille) for w in load_policies(text, available).policies}
    off = {"fairshare", "fragmentation", "packing", "balance"}
    assert in_force == {name: (known(), 1000) for name, known in available.items() if name not in off}
    switched_on = load_policies(text.replace("enabled = false", "enabled = true"), available)
    assert {w.name: w.policy for w in switched_on.policies} == {n: known() for n, known in available.items()}


def test_policies_are_read_with_weights_and_keys() -> None:
    text = "[policies.fit]\n[policies.wait]\nweight = 0.25\nprice = 4000\n[policies.age]\nenabled = false\n"
    loaded = load_policies(text, AVAILABLE)
    assert [(w.policy, w.permille) for w in loaded.policies] == [(Fit(), 1000), (Wait(price=4000), 250)]
    world = snapshot(center(), pool(expected_wait_s=60), job_class(wish=2))
    assert build(world, loaded).cost.tolist() == [4000 * 60 * 2 // 4]


def test_all_errors_of_a_policy_file_are_told_at_once() -> None:
    text = """
    [policies.fit]
    strict = 1
    [policies.wait]
    price = "high"
    weight = 0
    [policies.age]
    growth = true
    enabled = 1
    [policies.priority]
    low = 9
    [policies.costs]
    [policy.cost]
    """
    with pytest.raises(PolicyError) as caught:
        load_policies(text, AVAILABLE)
    assert [path for path, _ in caught.value.errors] == [
        "policy",
        "policies.fit.strict",
        "policies.wait.weight",
        "policies.wait.price",
        "policies.age.enabled",
        "policies.age.growth",
        "policies.priority",
        "policies.costs",
    ]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[policies.cost]", "policies"),
        ("", "policies"),
        ("policies = 3", "policies"),
        ("policies.fit = 3", "policies.fit"),
        ("[policies.fit]\nweight = 0.0005", "policies.fit.weight"),
        ("[policies.fit]\nweight = -1", "policies.fit.weight"),
        ("[policies.fit]\nweight = inf", "policies.fit.weight"),
        ("[policies", ""),
    ],
)
def test_single_errors_of_a_policy_file(text: str, path: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_policies(text, AVAILABLE)
    assert [p for p, _ in caught.value.errors] == [path]


def test_the_first_no_stands() -> None:
    @dataclass(frozen=True)
    class Never:
        def allow(self, p: Problem, k: int, pools: IntArray) -> Verdict:
            some = np.full(len(pools), 4, dtype=np.int64)
            return Verdict(codes=np.full(len(pools), Code.QUOTA, dtype=np.int64), need=some, have=some)

    world = snapshot(center(), pool("sz-1/a", cpu_node()), pool("sz-1/b"), job_class())
    codes = build(world, policy_set(Never())).codes.tolist()
    assert codes == [[Code.NO_PRODUCT, Code.QUOTA]]


@pytest.mark.parametrize(
    ("options", "coefficients", "bound"),
    [([0], [1, 2], 1), ([0], [0], 1), ([0, 0], [1, 1], 1), ([0], [1], -1)],
)
def test_a_wrong_limit_is_refused(options: list[int], coefficients: list[int], bound: int) -> None:
    with pytest.raises(ValueError, match="limit some"):
        Limit("some", Code.QUOTA, np.array(options), np.array(coefficients), bound)


def test_worth_never_falls_with_age() -> None:
    class Backwards:
        def worth(self, p: Problem, k: int) -> IntArray:
            return np.arange(len(p.age_s), 0, -1, dtype=np.int64)

    worth = PolicySet((*policy_set().policies[:1], *policy_set(Backwards()).policies[5:]))
    problem = build(snapshot(center(), pool(), job_class()), worth)
    assert problem.worth.tolist() == [[7] * 7]


# ---------------------------------------------------------------- keys of classes


def test_a_class_key_holds_all_that_matters_and_nothing_else() -> None:
    base = request(2, image_id="i", max_price_micro=10 * MICRO, estimated_run_time_s=5000)
    key = class_key(base, TenantId("t"))
    same = replace(base, command="x", env=(("A", "b"),), labels=(("l", "m"),), max_retries=3)
    assert class_key(same, TenantId("t")) == key
    changes: list[dict[str, object]] = [
        {"kind": Kind.ONLINE},
        {"centers": (CenterId("a"),)},
        {"spec": spec(4)},
        {"spec": None, "min_gflops": 5},
        {"nodes": 2},
        {"image_id": "j"},
        {"image_id": "", "image_url": "u"},
        {"tier": Tier.HIGH},
        {"preemptible": False},
        {"preempt_policy": 2},
        {"vip_nodes": ("n1",)},
        {"estimated_run_time_s": 9000},
        {"max_price_micro": 10 * MICRO + 2},
        {"max_run_time_s": 6000},
        {"datasets": ("d",)},
    ]
    keys = {class_key(replace(base, **change), TenantId("t")) for change in changes}  # type: ignore[arg-type]
    keys |= {class_key(base, TenantId("u")), class_key(base, TenantId("t"), [CenterId("a")]), key}
    assert len(keys) == len(changes) + 3


def test_a_class_key_is_stable() -> None:
    assert class_key(request(1), TenantId("t")) == class_key(request(1), TenantId("t"))
    there = (CenterId("a"), CenterId("b"))
    assert class_key(request(1, centers=there), TenantId("t")) == class_key(
        request(1, centers=there[::-1]), TenantId("t")
    )
    unpriced = class_key(request(1, estimated_run_time_s=4100), TenantId("t"))
    assert unpriced == class_key(request(1, estimated_run_time_s=8191), TenantId("t"))
