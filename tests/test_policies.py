"""The policies beside the default five: what each changes in a plan, its keys, and their errors."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.companions import available_policies, read_policies
from broker.config import ConfigError
from broker.core.amounts import LARGEST_MICRO
from broker.core.explain import Code
from broker.core.memory import Memory
from broker.core.model import MICRO, Accuracy, CenterId, Claim, DataFacts, PoolId, Snapshot, TenantId, Tier
from broker.core.policy_file import PolicyError, load_policies
from broker.core.problem import build
from broker.core.scheduler import schedule
from broker.store import feed
from policies.balance import Balance
from policies.fairshare import Fairshare
from policies.fragmentation import Fragmentation
from policies.locality import Locality
from policies.quota import Quota, Share
from policies.vip import Vip
from tests import builders
from tests.builders import NOW_MS, center, claim, free, job_class, node, policy_set, pool, snapshot
from tests.harness import center as fake_center
from tests.harness import harness

HOUR_S = 3600


def placed(world: Snapshot, *further: object) -> list[str]:
    return [p.class_key for p in schedule(world, policy_set(*further)).placements]


def of_tenant(tenant: str, cards: int, run: str = "r") -> Claim:
    made = claim(run, cards, started_ms=NOW_MS - 600_000)
    return replace(made, tenant=TenantId(tenant))


# ---------------------------------------------------------------- VIP


def test_the_longest_vip_job_goes_before_an_old_short_one_of_any_other_tier() -> None:
    vip = job_class("vip", 8, tier=Tier.VIP, estimated_run_time_s=45 * 86_400)
    high = job_class("high", 8, tier=Tier.HIGH, estimated_run_time_s=30, age_s=90_000)
    world = snapshot(center(), pool(nodes=1, price=20 * MICRO), vip, high)
    assert placed(world) == ["high"]
    assert placed(world, Vip()) == ["vip"]


# ---------------------------------------------------------------- quota


def test_a_ceiling_counts_what_is_held_and_tells_its_numbers() -> None:
    wish = job_class("k", 4, jobs=5)
    world = snapshot(center(), pool(nodes=4), wish, of_tenant("t", 8), of_tenant("u", 8, "s"))
    quota = Quota(shares=(Share("t", ceiling=19),))
    plan = schedule(world, policy_set(quota))
    assert len(plan.placements) == 2
    (told,) = plan.deferrals["k"]
    assert (told.code, told.need, told.have) == (Code.QUOTA, 4, 3)
    over = schedule(world, policy_set(Quota(shares=(Share("t", ceiling=0),))))
    assert over.placements == ()
    assert over.deferrals["k"][0].have == 0


def test_shares_are_per_product_kind_and_tenant() -> None:
    gpu = job_class("gpu", 8)
    npu = job_class("npu", node(8, accelerator=builders.ASCEND, card_memory_gib=64))
    cpu = job_class("cpu", builders.cpu_node(8, 32))
    pools = (
        pool("sz-1/a"),
        pool("sz-1/b", node(8, accelerator=builders.ASCEND, card_memory_gib=64)),
        pool("sz-1/c", builders.cpu_node()),
    )
    world = snapshot(center(), *pools, gpu, npu, cpu)

    def left(*shares: Share) -> set[str]:
        return set(placed(world, Quota(shares=shares)))

    assert left(Share("t", "GPU", ceiling=7)) == {"npu", "cpu"}
    assert left(Share("t", builders.ASCEND, ceiling=7)) == {"gpu", "cpu"}
    assert left(Share("t", ceiling=8)) in ({"gpu", "cpu"}, {"npu", "cpu"})
    assert left(Share("u", ceiling=0)) == {"gpu", "npu", "cpu"}
    assert left(Share("*", ceiling=0)) == {"cpu"}
    assert left(Share("*", ceiling=0), Share("t", ceiling=16)) == {"gpu", "npu", "cpu"}


def test_below_the_guarantee_first_and_above_the_deserved_share_last() -> None:
    mine, theirs = job_class("mine", 8, tenant="t"), job_class("theirs", 8, tenant="u", age_s=120)
    held = (of_tenant("t", 8), of_tenant("u", 8, "s"))
    world = snapshot(center(), pool(nodes=3, free=[free(8)]), mine, theirs, *held)
    assert placed(world) == ["theirs"]
    assert placed(world, Quota(shares=(Share("t", guarantee=16),))) == ["mine"]
    assert placed(world, Quota(shares=(Share("t", guarantee=8),))) == ["theirs"]
    assert placed(world, Quota(shares=(Share("u", deserved=8),))) == ["mine"]
    assert placed(world, Quota(shares=(Share("u", deserved=9),))) == ["theirs"]


def test_what_nobody_else_wants_may_be_borrowed() -> None:
    """However small the share, an idle card at the dearest price beats waiting."""
    low = job_class("k", 8, tier=Tier.LOW)
    dear = pool(nodes=1, price=1000 * MICRO)
    quota = Quota(shares=(Share("t", deserved=0),), above_deserved=Decimal("0.001"))
    assert placed(snapshot(center(), dear, low), quota) == ["k"]


@pytest.mark.parametrize(
    "policy",
    [
        Quota(shares=(Share("t", guarantee=8, deserved=16), Share("u", deserved=8))),
        Quota(shares=(Share("*", guarantee=8, deserved=16),)),
        Fairshare(),
    ],
)
def test_what_tenants_hold_by_now_is_what_counts(policy: object) -> None:
    """Jobs of a class that has waited before are weighed anew when its tenant holds more, or less."""
    mine, theirs = job_class("mine", 8, tenant="t"), job_class("theirs", 8, tenant="u")
    world, memory, policies = snapshot(center(), pool(nodes=4), mine, theirs), Memory(), policy_set(policy)
    t, u = of_tenant("t", 8), of_tenant("u", 8, "s")
    seen = set()
    for held in ((), (u,), (t, u), (t, of_tenant("t", 8, "r2"), u), (t,), ()):
        now = replace(world, claims=held)
        kept, fresh = build(now, policies, memory=memory), build(now, policies)
        assert kept.worth.tolist() == fresh.worth.tolist(), held
        seen.add(str(fresh.worth.tolist()))
    assert len(seen) > 2


# ---------------------------------------------------------------- fair share


def used(**seconds: int) -> dict[TenantId, int]:
    return {TenantId(tenant): s for tenant, s in seconds.items()}


def test_who_has_used_less_goes_first() -> None:
    mine, theirs = job_class("mine", 8, tenant="t"), job_class("theirs", 8, tenant="u", age_s=120)
    world = snapshot(center(), pool(nodes=1), mine, theirs)
    assert placed(world, Fairshare()) == ["theirs"]
    assert placed(replace(world, usage=used(t=10, u=1000)), Fairshare()) == ["mine"]
    live = replace(of_tenant("u", 8), pool=PoolId("sz-1/b"))
    assert placed(replace(world, claims=(live,)), Fairshare()) == ["mine"]


@pytest.mark.parametrize(
    ("usage", "permille"),
    [
        (used(), 1000),
        (used(t=50, u=50), 1000),
        (used(t=0, u=100), 2000),
        (used(t=100, u=0), 250),
        (used(t=25, u=75), 1500),
        (used(t=75, u=25), 600),
    ],
)
def test_the_factor_lies_between_most_and_least(usage: dict[TenantId, int], permille: int) -> None:
    world = snapshot(center(), pool(), job_class("mine", 1, tenant="t"), job_class("theirs", 1, tenant="u"))
    problem = build(replace(world, usage=usage), policy_set(Fairshare()))
    factors = Fairshare().factors(problem)
    assert (1000 if factors is None else factors[0]) == permille


async def test_usage_is_read_from_ended_runs_and_decays(tmp_path: Path) -> None:
    async with harness(tmp_path, fake_center("a")) as broker:
        await broker.submit(cards=4)
        other = await broker.submit(cards=8, by="bob")
        await broker.caller("carol", tenant="else")
        third = await broker.submit(cards=2, by="carol")
        await broker.round()
        await broker.pass_time(60)
        await broker.expect(other, "SUCCEEDED")
        await broker.expect(third, "SUCCEEDED")

        async def usage(half_life_s: int) -> dict[TenantId, int]:
            return await broker.store.read(feed.usage, broker.clock(), half_life_s)

        assert await usage(10**6) == {"lab": 720, "else": 120}
        ended_ms = broker.clock()
        broker.clock.now_ms = ended_ms + HOUR_S * 1000
        assert await usage(HOUR_S) == {"lab": 360, "else": 60}
        broker.clock.now_ms = ended_ms + 9 * HOUR_S * 1000
        assert await usage(HOUR_S) == {}


# ---------------------------------------------------------------- preferences


def test_data_that_is_ready_is_cheaper() -> None:
    wish = job_class("k", 1, datasets=("d", "unknown"))
    world = snapshot(center("a"), center("b"), pool("a/1"), pool("b/1"), wish)
    ready = {"d": DataFacts(3 << 30, frozenset({CenterId("b")}))}
    assert [p.pool for p in schedule(world, policy_set(Locality())).placements] == ["a/1"]
    there = replace(world, ready_data=ready)
    assert [p.pool for p in schedule(there, policy_set(Locality())).placements] == ["b/1"]
    problem = build(there, policy_set(Locality(price_per_gib=7)))
    assert Locality(price_per_gib=7).cost(problem, 0, np.array([0, 1])).tolist() == [21, 0]


def test_what_has_arrived_needs_not_be_moved_again() -> None:
    wish = job_class("k", 1, datasets=("d",))
    world = snapshot(center("a"), center("b"), pool("a/1"), pool("b/1"), wish)
    half = {"d": DataFacts(4 << 30, frozenset(), arrived=((CenterId("b"), 3 << 30),))}
    problem = build(replace(world, ready_data=half), policy_set(Locality(price_per_gib=7)))
    assert Locality(price_per_gib=7).cost(problem, 0, np.array([0, 1])).tolist() == [28, 7]


DATA_A, DATA_B = frozenset({CenterId("a")}), frozenset({CenterId("b")})
NOWHERE: frozenset[CenterId] = frozenset()


@pytest.mark.parametrize(
    ("facts", "changes", "codes"),
    [
        # missing everywhere: it may be brought anywhere
        (DataFacts(5, NOWHERE), {}, [Code.ALLOWED, Code.ALLOWED]),
        # ready at one, and could be brought to the other
        (DataFacts(5, DATA_A), {}, [Code.ALLOWED, Code.ALLOWED]),
        # on its way to one: nothing is held there, and it is not brought to a second place
        (DataFacts(5, NOWHERE, moving=DATA_B), {}, [Code.STAGING, Code.STAGING]),
        # on its way to one and ready at the other: it may start there
        (DataFacts(5, DATA_A, moving=DATA_B), {}, [Code.ALLOWED, Code.STAGING]),
        # on its way, for others, to where this job may not go
        (DataFacts(5, NOWHERE, moving=DATA_B), {"centers": ["a"]}, [Code.ALLOWED, Code.CENTER_NOT_LISTED]),
        # failed at one, not due again: the other
        (DataFacts(5, NOWHERE, failed=DATA_A), {}, [Code.STAGING, Code.ALLOWED]),
        # a center's own
        (DataFacts(0, DATA_B, fixed=True), {}, [Code.DATA_UNAVAILABLE, Code.ALLOWED]),
    ],
)
def test_where_a_job_may_go_for_its_data(
    facts: DataFacts, changes: dict[str, Any], codes: list[Code]
) -> None:
    wish = job_class("k", 1, datasets=("d", "unknown"), **changes)
    world = snapshot(center("a"), center("b"), pool("a/1"), pool("b/1"), wish)
    problem = build(replace(world, ready_data={"d": facts}), policy_set())
    whole = replace(world, classes=(replace(wish, request=replace(wish.request, datasets=("d",))),))
    there = build(replace(whole, ready_data={"d": facts}), policy_set())
    assert [Code(code) for code in there.codes.reshape(-1).tolist()] == codes
    # A second one that is nowhere: a center that has but the first has not all of it.
    if facts.moving and not changes:
        assert [Code(code) for code in problem.codes.reshape(-1).tolist()] == [Code.STAGING] * 2


def test_reasons_of_data_have_their_numbers() -> None:
    wish = job_class("k", 1, datasets=("d", "e"))
    world = snapshot(center("a"), center("b"), pool("a/1"), pool("b/1"), wish)
    own = DataFacts(0, DATA_B, fixed=True)
    moving = DataFacts(5, NOWHERE, moving=DATA_B)
    reasons = schedule(replace(world, ready_data={"d": own, "e": moving}), policy_set()).deferrals["k"]
    told = [(r.center, r.code, r.need, r.have) for r in reasons]
    assert told == [("a", Code.DATA_UNAVAILABLE, 2, 1), ("b", Code.STAGING, 2, 1)]


def test_small_jobs_keep_whole_nodes_whole() -> None:
    broken = pool("sz-1/z", nodes=2, free=[free(8), free(3)])
    whole = pool("sz-1/a", nodes=2)
    world = snapshot(center(), whole, broken, job_class("k", 2))
    assert schedule(world, policy_set()).placements[0].pool == "sz-1/a"
    assert schedule(world, policy_set(Fragmentation())).placements[0].pool == "sz-1/z"
    problem = build(replace(world, classes=(job_class("k", 4), job_class("w", 8))), policy_set())
    pools = np.arange(2)
    assert Fragmentation(price=5).cost(problem, 0, pools).tolist() == [20, 20]
    assert Fragmentation(price=5).cost(problem, 1, pools).tolist() == [0, 0]


def test_work_spreads_by_what_is_free() -> None:
    busy = pool("sz-1/a", nodes=4, free=[free(8)])
    idle, unknown = pool("sz-1/b", nodes=4), pool("sz-1/c", accuracy=Accuracy.UNKNOWN)
    world = snapshot(center(), busy, idle, unknown, job_class("k", 2))
    assert schedule(world, policy_set()).placements[0].pool == "sz-1/a"
    assert schedule(world, policy_set(Balance())).placements[0].pool == "sz-1/b"
    problem = build(world, policy_set())
    assert Balance(price=100).cost(problem, 0, np.arange(3)).tolist() == [150, 0, 100]


# ---------------------------------------------------------------- keys


def test_every_policy_is_found_by_its_module() -> None:
    names = {file.stem for file in Path(Quota.__module__.replace(".", "/")).parent.glob("*.py")}
    assert {"vip", "quota"} <= set(available_policies()) >= names - {"__init__"}


def test_shares_are_tables_and_all_their_errors_are_told() -> None:
    good = """
    [policies.fit]
    [policies.quota]
    above_deserved = 0.5
    [[policies.quota.shares]]
    tenant = "lab"
    accelerator = "GPU"
    ceiling = 8
    """
    loaded = load_policies(good, available_policies())
    assert loaded.policies[1].policy == Quota(
        (Share("lab", "GPU", ceiling=8),), above_deserved=Decimal("0.5")
    )
    bad = """
    [policies.fit]
    [policies.quota]
    [[policies.quota.shares]]
    ceiling = "8"
    [[policies.quota.shares]]
    tenant = "lab"
    guarantee = 9
    ceiling = 8
    cap = 1
    [[policies.quota.shares]]
    tenant = "lab"
    guarantee = 9
    ceiling = 8
    """
    with pytest.raises(PolicyError) as caught:
        load_policies(bad, available_policies())
    assert [path for path, _ in caught.value.errors] == [
        "policies.quota.shares[0].ceiling",
        "policies.quota.shares[0]",
        "policies.quota.shares[1].cap",
        "policies.quota.shares[2]",
    ]


def test_errors_of_the_file_have_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(
        "[policies.fit]\n\n[policies.quota]\n[[policies.quota.shares]]\ntenant = 'a'\ndeserved = -1\n"
        "[[policies.quota.shares]]\ntenant = 'b'\nceilng = 3\n[policies.vip]\nbonus = 'much'\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_policies(file)
    assert [(p.key, p.line) for p in caught.value.errors] == [
        ("policies.quota.shares[0]", 4),
        ("policies.quota.shares[1].ceilng", 9),
        ("policies.vip.bonus", 11),
    ]


def errors_of(text: str) -> list[tuple[str, str]]:
    with pytest.raises(PolicyError) as caught:
        load_policies(f"[policies.fit]\n{text}", available_policies())
    return caught.value.errors


TOO_MUCH: list[tuple[str, str, str]] = [
    ("vip", "bonus = 100000000000000", "bonus"),
    ("vip", "weight = 100", "weight"),
    ("cost", "weight = 1000.5", "weight"),
    ("wait", "price = 100000000", "price"),
    ("priority", "reference_price = 1000000000000", "reference_price"),
    ("priority", "vip = 1000000000", "vip"),
    ("age", "growth = 1000000000000", "growth"),
    ("locality", "price_per_gib = 999999999999999", "price_per_gib"),
    ("fragmentation", "price = 999999999999999", "price"),
    ("balance", "price = 999999999999999", "price"),
    ("preemption", "reference_price = 100000000000", "reference_price"),
]


@pytest.mark.parametrize(("name", "line", "key"), TOO_MUCH)
def test_what_would_not_fit_is_refused_with_the_largest_value_that_does(
    name: str, line: str, key: str
) -> None:
    table = f"[policies.{name}]\n"
    ((path, message),) = errors_of(table + line)
    assert path == f"policies.{name}.{key}"
    most = Decimal(re.findall(r"must be at most ([0-9.]+), or", message)[0])
    policy, permille = sole(f"{table}{key} = {most}")
    assert policy.largest() * permille // 1000 <= LARGEST_MICRO
    step = Decimal("0.001") if key == "weight" else 1
    assert errors_of(f"{table}{key} = {most + step}")[0][0] == path


def sole(text: str) -> tuple[Any, int]:
    weighted = load_policies(f"[policies.fit]\n{text}", available_policies()).policies[1]
    return weighted.policy, weighted.permille


def test_keys_that_are_too_much_only_together_are_told_as_a_table() -> None:
    text = "[policies.priority]\nvip = 1000000000\nreference_price = 1000000000000"
    ((path, message),) = errors_of(text)
    assert path == "policies.priority"
    assert message.startswith("its keys and weight together are too much")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("bonus = 12.5", "must be a whole number, not 12.5"),
        ('expiry_s = "30m"', "must be a whole number, not '30m'"),
        ("bonus = true", "must be a whole number, not True"),
        ("depth = 1000000000000000000", "must be at most 1000000000000000, not 1000000000000000000"),
        ("weight = 1e300", "must be from 0.001 to 1000000 in steps of 0.001, not 1.000000e+300"),
        ("weight = nan", "must be from 0.001 to 1000000 in steps of 0.001, not NaN"),
    ],
)
def test_a_wrong_unit_is_told_in_words(line: str, told: str) -> None:
    assert [message for _, message in errors_of(f"[policies.vip]\n{line}")] == [told]


def test_a_factor_that_is_no_number_is_refused() -> None:
    ((path, message),) = errors_of("[policies.quota]\nbelow_guarantee = nan")
    assert (path, message) == ("policies.quota.below_guarantee", "must be a number, not NaN")


def test_text_that_is_not_toml_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text("[policies.fit]\n\n[policies.vip\n")
    with pytest.raises(ConfigError) as caught:
        read_policies(file)
    assert [p.line for p in caught.value.errors] == [3]


def test_no_job_whatever_goes_round_int64() -> None:
    """The largest request that the API takes, at the dearest price a center may have."""
    text = "".join(f"[policies.{name}]\n" for name in available_policies())
    policies = load_policies(text, available_policies())
    job = job_class(wish=16, nodes=100_000, tier=Tier.VIP, estimated_run_time_s=10 * 365 * 86_400)
    world = snapshot(
        center(),
        pool("sz-1/a", node(16), nodes=1_000_000, price=10**12, expected_wait_s=10**9),
        pool("sz-1/b", node(16), nodes=1_000_000, price=10**12 - 1),
        job,
    )
    problem = build(world, policies)
    assert len(problem.option_pool) == 2
    assert (problem.cost > 0).all()
    assert (problem.cost <= LARGEST_MICRO + 2).all()
    assert (problem.worth >= LARGEST_MICRO).all()
    assert (np.diff(problem.worth[0]) >= 0).all()
    plan = schedule(world, policies)
    assert plan.objective >= plan.bound


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("vip", {"expiry_s": 0}),
    ("backfill", {"depth": -1}),
    ("preemption", {"kills_per_job": -1}),
    ("fairshare", {"half_life_h": 0}),
    ("fairshare", {"least": Decimal(2)}),
    ("locality", {"price_per_gib": -1}),
    ("fragmentation", {"price": -1}),
    ("balance", {"price": -1}),
    ("packing", {"price": -1}),
    ("packing", {"rare": Decimal(2)}),
    ("packing", {"longest_s": -1}),
    ("packing", {"window_jobs": -1}),
    ("packing", {"scarce": Decimal(2)}),
    ("quota", {"above_deserved": Decimal(0)}),
    ("quota", {"shares": (Share("t"), Share("t"))}),
]


@pytest.mark.parametrize(("name", "keys"), WRONG)
def test_values_out_of_range_are_refused(name: str, keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|twice"):
        available_policies()[name](**keys)
