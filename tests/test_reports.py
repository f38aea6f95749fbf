"""What a center reports and cannot be true: kept out with its reason, and the others go on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.adapter import Inventory, PoolReport, Unavailable
from broker.config.tables import POOL_KEYS
from broker.config.values import MAX_PRICE_CNY, Place, Wrong
from broker.core.model import MICRO, Accuracy, CenterId, FreeNodes, NodeShape, Price, Spec, SpecId
from broker.reports import MOST, MOST_PRICE_MICRO, checked, distinct, pool_fault
from broker.tables import Center
from broker.tables import Pool as PoolRow
from tests.builders import A800, NOW_MS, free, node, spec
from tests.harness import Harness, center, harness

A = CenterId("a")
GOOD = PoolReport("a", node(8), 2, (free(8, 2),), (spec(8),), (Price(5),), ("n1", "n2"))


def shaped(**changes: Any) -> PoolReport:
    return replace(GOOD, shape=replace(GOOD.shape, **changes), free=(), specs=())


def wrong(**changes: Any) -> PoolReport:
    return replace(GOOD, **changes)


def group(**changes: Any) -> PoolReport:
    return replace(GOOD, free=(replace(free(8, 1), **changes),))


def parted(parts: Any, accelerators: int = 4) -> PoolReport:
    """A node whose cards are split, with so much free of each card that is partly used."""
    few = replace(free(4, 1), accelerators=accelerators, parts=parts)
    return replace(GOOD, shape=replace(GOOD.shape, split_permille=250), free=(few,), specs=())


BAD: list[tuple[str, Any]] = [
    ("free[0].cores is -1, expected a whole number from 0 to 128", group(cores=-1)),
    ("free[0].cores is nan", group(cores=math.nan)),
    ("free[0].memory_gib is inf", group(memory_gib=math.inf)),
    ("free[0].accelerators is 9, expected a whole number from 0 to 8", group(accelerators=9)),
    ("free[0].accelerators is 8.0", group(accelerators=8.0)),
    ("free[0].nodes is 3, expected a whole number from 0 to 2", group(nodes=3)),
    ("free[0].parts has 0, expected whole numbers from 1 to 999", parted((0,))),
    ("free[0].parts has nan", parted((math.nan,))),
    ("free[0].parts is (500, 250), expected it ascending", parted((500, 250))),
    ("free[0].parts has 1 cards, with those free more than 8", parted((500,), accelerators=8)),
    ("free[0].parts is (500,), expected none where cards are not split", group(parts=(500,))),
    ("free[0].parts is 7, expected a sequence", group(parts=7)),
    ("shape.card_permille is 0, expected 1 to 1000", shaped(card_permille=0)),
    ("shape.split_permille is 501", shaped(split_permille=501)),
    ("free has 4 nodes, expected at most 2", wrong(free=(free(8, 2), free(4, 2)))),
    ("free is None, expected a sequence", wrong(free=None)),
    ("free[0] is (1, 2), expected FreeNodes", wrong(free=((1, 2),))),
    ("nodes is 1000000000, expected a whole number from 0 to 1000000", wrong(nodes=10**9)),
    ("nodes is True", wrong(nodes=True)),
    ("nodes is '2'", wrong(nodes="2")),
    ("shape.cores is 1000000000, expected a whole number from 0 to 65536", shaped(cores=10**9)),
    ("shape.accelerators is 5000", shaped(accelerators=5000)),
    ("shape.memory_gib is a number that is too long to show", shaped(memory_gib=10**5000)),
    ("shape.accelerator is '', expected the product of 8", shaped(accelerator="")),
    ("shape.cores is 0, expected at least 1", PoolReport("a", replace(node(0), cores=0), 1, ())),
    ("shape is None, expected a node", wrong(shape=None)),
    ("specs[0].shape.cores is -1", wrong(specs=(Spec(SpecId("s"), "s", node(0, cores=-1)),))),
    ("specs[0].id is '', expected 1 to 255", wrong(specs=(Spec(SpecId(""), "s", node(1)),))),
    ("prices[0].micro_per_hour is -5, expected", wrong(prices=(Price(-5),))),
    ("prices[0].micro_per_hour is 9223372036854775807", wrong(prices=(Price(2**63 - 1),))),
    ("prices[0].end_min is 2000", wrong(prices=(Price(5, end_min=2000),))),
    ("prices[0].days is frozenset({9})", wrong(prices=(Price(5, frozenset({9})),))),
    ("native is ['a']", wrong(native=["a"])),
    ("native is 'a\\x00b'", wrong(native="a\0b")),
    ("native is 'a\\ud800'", wrong(native="a\ud800")),
    ("accuracy is 'sure', expected one of exact, estimated, unknown", wrong(accuracy="sure")),
    ("node_names[1] is 7", wrong(node_names=("n1", 7))),
    ("a pool is {'native': 'a'}", {"native": "a"}),
]


@pytest.mark.parametrize(("told", "pool"), BAD, ids=[told for told, _ in BAD])
def test_a_pool_that_cannot_be_true_is_named_by_field_and_value(told: str, pool: Any) -> None:
    assert pool_fault(pool).startswith(told)


def test_a_good_pool_has_no_fault() -> None:
    assert pool_fault(GOOD) == ""
    assert pool_fault(parted((250, 250, 500))) == ""
    assert pool_fault(PoolReport("", node(0, cores=64), 0, ())) == ""
    assert pool_fault(replace(GOOD, native="资源组\u3000一")) == ""  # with the wide space of East Asian text


def test_limits_are_those_of_stated_pools() -> None:
    place = Place(Path("/"), {})
    for name, most in MOST.items():  # each as the configuration has it
        read = POOL_KEYS[name].read
        assert read(most, place) == most
        with pytest.raises(Wrong):
            read(most + 1, place)
    assert MOST_PRICE_MICRO == MAX_PRICE_CNY * MICRO


def test_of_two_reports_of_one_pool_nobody_knows_which_is_true() -> None:
    other = replace(GOOD, native="b")
    kept, told = distinct([GOOD, other, replace(GOOD, nodes=3), replace(GOOD, shape=node(4), free=())])
    assert kept == (other, replace(GOOD, shape=node(4), free=()))
    assert told == (("a", "native is 'a' 2 times with nodes of one shape, expected once"),)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"as_of_ms": math.nan}, "as_of_ms is nan"),
        ({"as_of_ms": NOW_MS + 100 * 86_400_000}, "as_of_ms is"),
        ({"pools": None}, "pools is None"),
        ({"accuracy": "sure"}, "accuracy is 'sure', expected one of exact, estimated, unknown"),
        ({"quarantined": ("x",)}, r"quarantined\[0\] is 'x', expected a name and a reason"),
    ],
)
def test_a_report_that_is_nonsense_as_a_whole_is_no_answer(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(Unavailable, match=told):
        checked(replace(Inventory(NOW_MS, Accuracy.EXACT, (GOOD,)), **changes), NOW_MS)


def test_a_queue_length_that_cannot_be_true_is_left_out_and_told() -> None:
    report = checked(Inventory(NOW_MS, Accuracy.EXACT, (GOOD,), queue_length=-1), NOW_MS)
    assert (report.pools, report.queue_length) == ((GOOD,), None)
    assert report.quarantined[0][0] == "queue_length"


# ---------------------------------------------------------------- through the loops


async def reports(broker: Harness, *pools: Any, **changes: Any) -> None:
    """Center `a` answers one probe with this."""

    async def probe() -> Inventory:
        return replace(Inventory(broker.clock(), Accuracy.EXACT, pools), **changes)

    with patch.object(broker.fakes[A], "probe", probe):
        await broker.poll()


async def test_a_pool_that_cannot_be_true_is_not_used_until_it_can(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        sound = replace(GOOD, native="b", specs=())
        await reports(broker, group(cores=-1), sound)
        (row,) = await broker.rows(Center)
        text = "free[0].cores is -1, expected a whole number from 0 to 128"
        assert (row.health, row.quarantined) == ("fresh", [["a", text]])
        assert [pool.native for pool in await broker.rows(PoolRow)] == ["b"]
        job = await broker.submit(cards=8)
        await broker.plan()
        assert (await broker.show(job)).runs[0].native_pool == "b"
        await broker.poll()  # the fake's own report is good
        (row,) = await broker.rows(Center)
        assert row.quarantined == []
        assert [pool.native for pool in await broker.rows(PoolRow)] == ["a"]


async def test_pools_that_are_one_by_their_canonical_names_are_told_apart_by_nobody(tmp_path: Path) -> None:
    async with harness(tmp_path, center("a")) as broker:
        alias = replace(GOOD, shape=node(8, accelerator=A800.upper()), specs=())
        await reports(broker, replace(GOOD, specs=()), alias)
        (row,) = await broker.rows(Center)
        assert row.quarantined == [["a", "native is 'a' 2 times with nodes of one shape, expected once"]]
        assert await broker.rows(PoolRow) == []


NUMBERS = st.one_of(
    st.integers(-2, 9),
    st.sampled_from([10**9, 2**63, -(2**63), 10**30, math.nan, math.inf, -math.inf, 8.0, 1.5, True]),
    st.none(),
    st.text(max_size=3),
)
WORDS = st.one_of(st.text(max_size=4), st.sampled_from(["a", "b", "X86", A800]), NUMBERS)
SHAPES: st.SearchStrategy[Any] = st.one_of(
    st.just(node(8)), st.builds(NodeShape, WORDS, NUMBERS, NUMBERS, WORDS, *[NUMBERS] * 4), NUMBERS
)
GROUPS: st.SearchStrategy[Any] = st.one_of(
    st.just(free(8, 1)),
    st.builds(FreeNodes, *[NUMBERS] * 4, st.one_of(st.lists(NUMBERS, max_size=2), NUMBERS)),
    NUMBERS,
)
PRICES: st.SearchStrategy[Any] = st.one_of(st.builds(Price, NUMBERS), NUMBERS)
SPECS: st.SearchStrategy[Any] = st.one_of(st.just(spec(8)), st.builds(Spec, WORDS, WORDS, SHAPES), NUMBERS)
POOLS: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        PoolReport,
        WORDS,
        SHAPES,
        NUMBERS,
        st.one_of(st.lists(GROUPS, max_size=2), NUMBERS),
        st.lists(SPECS, max_size=1),
        st.lists(PRICES, max_size=1),
        st.lists(WORDS, max_size=1),
        st.one_of(st.none(), st.sampled_from(Accuracy), WORDS),
    ),
    NUMBERS,
)
GARBAGE: st.SearchStrategy[Any] = st.builds(
    Inventory,
    st.one_of(st.just(NOW_MS), NUMBERS),
    st.one_of(st.sampled_from(Accuracy), WORDS),
    st.one_of(st.lists(POOLS, max_size=3), NUMBERS),
    NUMBERS,
    st.one_of(st.lists(st.tuples(WORDS, WORDS), max_size=1), NUMBERS),
)


async def test_no_report_whatever_breaks_the_store_or_the_next_round(tmp_path: Path) -> None:
    """Whatever one center says, the jobs of the other start in the same round."""
    async with harness(tmp_path, center("a"), center("b", nodes=1000, price="20")) as broker:
        found: list[Inventory] = []

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(GARBAGE)
        def draw(garbage: Inventory) -> None:
            found.append(garbage)

        draw()
        for garbage in found:
            await broker.lease.renew()
            answer = {name: getattr(garbage, name) for name in Inventory.__slots__}
            await reports(broker, **answer)
            job = await broker.submit(cards=8, centers=(CenterId("b"),))
            anywhere = await broker.submit(cards=8)
            await broker.round()
            await broker.expect(job, "RUNNING", at="b")
            await broker.expect(anywhere, "RUNNING")
        shown = {row.health for row in await broker.rows(Center)}
        assert shown == {"fresh"}
