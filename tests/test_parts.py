"""Parts of cards: instances that a platform has cut, and cards that it splits on demand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.nodes import Held, histogram, misfit, rooms
from adapters.nodes import pack as pack_exactly
from broker.api import wire
from broker.config import ConfigError, load
from broker.core.check import violations
from broker.core.explain import Code
from broker.core.model import FreeNodes, JobClass, NodeShape, Pool, RunId, Snapshot, Spec, TenantId
from broker.core.packing import pack_on_cards
from broker.core.plan import Plan, after
from broker.core.problem import build
from broker.core.resources import (
    effective_gflops,
    millicards,
    rate_micro_per_hour,
    slices,
    slot_size,
    spec_id,
    spec_name,
    totals,
)
from broker.core.scheduler import schedule
from broker.core.snapshot import effective_free, supply, units, without
from broker.store import codec
from policies.quota import Quota, Share
from tests.builders import (
    ACCELERATORS,
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
    snapshot,
    spec,
)

SPLIT = node(4, split=1)
INSTANCES = node(7, cores=56, memory_gib=448, card_memory_gib=10, permille=142)
ONE = node(1, cores=8, memory_gib=64, card_memory_gib=10, permille=142)


def left(world: Snapshot) -> list[tuple[int, tuple[int, ...], int]]:
    """Whole cards, parts and nodes, fullest first, of the only pool."""
    return [(g.accelerators, g.parts, g.nodes) for g in effective_free(world)[world.pools[0].id]]


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("wanted", "slot"),
    [
        (part(500).shape, 512),
        (part(250).shape, 256),
        (part(460).shape, 512),
        (part(501).shape, 1024),
        (part(100, card_memory_gib=40).shape, 512),  # half of the card's memory
        (part(100, cores=32).shape, 2048),  # half of the node's cores
        (part(100, cores=33).shape, 4096),
        (node(1), 1024),
        (node(2), 2048),
        (node(3), 4096),
        (replace(part(500).shape, accelerators=2), 0),  # a part is of one card
    ],
)
def test_slots_of_a_pool_that_splits_cards(wanted: NodeShape, slot: int) -> None:
    assert slot_size(SPLIT, wanted) == slot


def test_parts_come_in_the_steps_of_the_platform() -> None:
    quarters = node(4, split=250)
    assert [slot_size(quarters, part(p).shape) for p in (250, 300, 500, 750)] == [256, 0, 512, 1024]
    assert slot_size(node(4), part(500).shape) == 0
    assert slot_size(INSTANCES, ONE) == 1
    assert slot_size(INSTANCES, node(1, cores=8, memory_gib=64, card_memory_gib=10)) == 0
    assert [s.shape.card_permille for s in slices(quarters)] == [250, 500, 1000, 1000, 1000]
    assert all(slot_size(quarters, s.shape) for s in slices(quarters))
    assert {s.shape.card_permille for s in slices(INSTANCES)} == {142}


def test_a_part_counts_as_that_part_everywhere() -> None:
    half = part(500)
    assert millicards(half.shape) == 500
    assert millicards(INSTANCES) == 994
    assert effective_gflops(half.shape, ACCELERATORS) == 156_000
    dear = pool(shape=SPLIT, price=1_000_001, nodes=3)
    assert rate_micro_per_hour(dear, half.shape, 3, 0) == 1_500_000
    problem = build(snapshot(center(), dear, job_class(wish=half, nodes=3)), policy_set())
    assert problem.rate.tolist() == [1_500_000]
    assert spec_name(half.shape) == "1×50% A800 40GB · 2C · 8GiB"
    assert spec_id(half.shape) == "nvidia-gpu-a800-40g-x1p500-2c-8g-x86"
    sums = totals([(INSTANCES, 2), (node(8), 1)])
    assert (sums.accelerators, sums.millicards) == (22, 9988)
    assert [e.card_permille for e in sums.entries] == [142, 1000]


def test_the_wire_keeps_whole_counts_and_tells_the_part_beside_them() -> None:
    assert wire.shape(part(250).shape)["processor"]["count"] == 1
    assert wire.shape(part(250).shape)["processor"]["cardPermille"] == 250
    assert "cardPermille" not in wire.shape(node(8))["processor"]


def test_the_store_gives_back_what_it_was_given() -> None:
    groups = (FreeNodes(3, 5, 1, 2, (120, 400)), free(8))
    assert codec.free_from_json(codec.free_to_json(groups)) == groups
    assert codec.spec_from_json(codec.spec_to_json(part(250))) == part(250)
    before = codec.spec_to_json(spec(2))
    del before["shape"]["card_permille"], before["shape"]["split_permille"]  # written by an older version
    assert codec.spec_from_json(before) == spec(2)


POOL = """
[[centers]]
id = "a"
adapter = "local"
[centers.connection]
work_dir = "/w"
[[centers.pools]]
arch = "X86"
cores = 8
memory_gib = 8
nodes = 1
"""


def test_the_configuration_says_which_pools_give_parts(tmp_path: Path) -> None:
    def read(text: str) -> NodeShape:
        (tmp_path / "broker.toml").write_text(POOL + text)
        (stated,) = load(tmp_path / "broker.toml", environ={}).centers[0].pools
        return stated.shape

    cards = 'accelerator = "Nvidia/GPU/A800"\naccelerators = 4\naccelerator_memory_gib = 80\n'
    assert read(cards + "split_permille = 10\n").split_permille == 10
    assert read(cards + "card_permille = 142\n").card_permille == 142
    for wrong, told in (
        (cards + "card_permille = 142\nsplit_permille = 10\n", "split_permille: is 10; only whole cards"),
        ("split_permille = 10\n", "split_permille: is 10; only whole cards"),
        ("card_permille = 142\n", "card_permille: is a part of a card"),
        (cards + "card_permille = 0\n", "card_permille"),
    ):
        with pytest.raises(ConfigError) as caught:
            read(wrong)
        assert told in str(caught.value)


# ---------------------------------------------------------------- what fits where


@pytest.mark.parametrize(
    ("there", "wish", "code"),
    [
        (node(4), part(500, card_memory_gib=80), Code.CARD_PART),
        (node(4, split=250), part(300), Code.CARD_PART),
        (node(4, split=250), spec(replace(part(500).shape, accelerators=2)), Code.CARD_PART),
        (SPLIT, part(500, card_memory_gib=81), Code.CARD_MEMORY_MISMATCH),
        (SPLIT, spec(node(1, card_memory_gib=40)), Code.CARD_MEMORY_MISMATCH),
        (INSTANCES, spec(node(1, cores=8, memory_gib=64, card_memory_gib=10)), Code.CARD_PART),
        (INSTANCES, part(142, card_memory_gib=5), Code.CARD_MEMORY_MISMATCH),
    ],
)
def test_a_part_that_never_fits_says_why(there: NodeShape, wish: Spec, code: Code) -> None:
    world = snapshot(center(), pool(shape=there), job_class(wish=wish))
    (reason,) = schedule(world, policy_set()).deferrals["k"]
    assert reason.code is code


def test_free_parts_of_several_cards_hold_no_larger_part() -> None:
    two_thirds = FreeNodes(64, 512, 0, 1, (300, 300))
    assert units(SPLIT, two_thirds) == 614
    assert [supply(SPLIT, [two_thirds], t) for t in (1, 128, 256, 512, 1024)] == [614, 4, 2, 0, 0]
    whole = FreeNodes(64, 512, 2, 1, (300,))
    assert [supply(SPLIT, [whole], t) for t in (256, 512, 1024, 2048, 4096)] == [9, 4, 2, 1, 0]
    few_cores = FreeNodes(16, 512, 2, 1, (300,))
    assert [supply(SPLIT, [few_cores], t) for t in (512, 1024, 2048)] == [2, 1, 0]


# ---------------------------------------------------------------- claims


def test_claims_go_to_the_fullest_card_that_holds_them() -> None:
    groups = (FreeNodes(64, 512, 2, 1, (100, 300, 600)),)
    there = pool(shape=node(5, cores=64, memory_gib=512, split=1), nodes=1, free=groups)
    assert left(snapshot(center(), there, claim("a", part(250).shape))) == [(2, (50, 100, 600), 1)]
    assert left(snapshot(center(), there, claim("a", part(600).shape))) == [(2, (100, 300), 1)]
    assert left(snapshot(center(), there, claim("a", part(700).shape))) == [(1, (100, 300, 300, 600), 1)]
    assert left(snapshot(center(), there, claim("a", node(1)))) == [(1, (100, 300, 600), 1)]


def test_a_broken_card_is_used_before_a_whole_one_on_a_fuller_node() -> None:
    groups = (FreeNodes(16, 128, 1, 1), FreeNodes(64, 512, 3, 1, (500,)))
    there = pool(shape=SPLIT, nodes=2, free=groups)
    assert left(snapshot(center(), there, claim("a", part(400).shape))) == [(1, (), 1), (3, (100,), 1)]


def test_what_fits_on_no_card_is_charged_on_the_safe_side() -> None:
    there = pool(shape=SPLIT, nodes=1, free=(FreeNodes(64, 512, 0, 1, (300, 400)),))
    assert left(snapshot(center(), there, claim("a", part(500).shape))) == [(0, (300,), 1)]


def test_a_part_given_back_is_believed_to_make_the_fewest_whole_cards() -> None:
    old = claim("a", part(500).shape, started_ms=NOW_MS - 999_000)
    world = snapshot(center(), pool(shape=SPLIT, nodes=1, free=(FreeNodes(8, 64, 2, 1, (500,)),)), old)
    assert left(without(world, [RunId("a")])) == [(2, (500, 500), 1)]
    rest = snapshot(center(), pool(shape=SPLIT, nodes=1, free=(FreeNodes(8, 64, 3, 1, (500,)),)), old)
    assert left(without(rest, [RunId("a")])) == [(4, (), 1)]


_permilles = st.integers(1, 1000)


@given(st.data(), st.lists(st.tuples(_permilles, st.booleans()), max_size=8))
def test_claims_of_parts_take_at_most_what_is_owed(
    data: st.DataObject, wanted: list[tuple[int, bool]]
) -> None:
    there = pool(shape=SPLIT, nodes=20, free=data.draw(free_groups(SPLIT)))
    claims = [
        claim(f"bk-{i}", part(p).shape if p < 1000 else node(1), started_ms=NOW_MS - 999_000 if old else None)
        for i, (p, old) in enumerate(wanted)
    ]

    def thousandths(world: Snapshot) -> int:
        return sum((1000 * cards + sum(parts)) * nodes for cards, parts, nodes in left(world))

    world = snapshot(center(), there, *claims)
    after_it = left(world)
    assert left(snapshot(center(), there, *reversed(claims))) == after_it
    assert all(parts == tuple(sorted(parts)) and all(0 < p < 1000 for p in parts) for _, parts, _ in after_it)
    assert all(cards + len(parts) <= 4 for cards, parts, _ in after_it)
    owed = sum(millicards(c.shape) for c in claims if c.started_ms is None)
    before = thousandths(snapshot(center(), there))
    assert max(0, before - owed) - 1000 * len(claims) <= thousandths(world) <= before
    gone = left(without(world, [c.run for c in claims]))
    assert all(cards + len(parts) <= 4 for cards, parts, _ in gone)
    assert thousandths(without(world, [c.run for c in claims])) >= before


# ---------------------------------------------------------------- plans


class Cards:
    """Nodes card by card, in real thousandths, cores and GiB: shares nothing with the core."""

    def __init__(self, there: Pool) -> None:
        self.there = there
        self.nodes = [
            [g.cores, g.memory_gib, [*g.parts, *[1000] * g.accelerators]]
            for g in there.free
            for _ in range(g.nodes)
        ]

    def put(self, shape: NodeShape) -> bool:
        """Puts one node of a job on the first node with room, a part on the fullest card that holds it."""
        part = 0
        if shape.accelerators and shape.card_permille < 1000:
            of_memory = -(-shape.accelerator_memory_gib * 1000 // self.there.shape.accelerator_memory_gib)
            part = max(shape.card_permille, of_memory)
        for at in self.nodes:
            cores, memory, cards = at
            assert isinstance(cores, int)
            assert isinstance(memory, int)
            assert isinstance(cards, list)
            holding = sorted(c for c in cards if c >= (part or 1000))
            count = 1 if part else shape.accelerators
            if cores < shape.cores or memory < shape.memory_gib or len(holding) < count:
                continue
            for card in holding[:count]:
                cards.remove(card)
                cards.append(card - (part or 1000))
            at[0], at[1] = cores - shape.cores, memory - shape.memory_gib
            return True
        return False


@st.composite
def _wishes(draw: st.DrawFn) -> list[JobClass]:
    shapes = st.one_of(
        st.builds(
            part,
            st.integers(1, 999),
            cores=st.integers(1, 40),
            memory_gib=st.integers(1, 300),
            card_memory_gib=st.integers(1, 80),
        ),
        st.builds(spec, st.integers(1, 4)),
    )
    wishes = draw(st.lists(shapes, min_size=1, max_size=5, unique_by=lambda s: s.id))
    return [
        job_class(f"k{i}", wish, jobs=draw(st.integers(1, 9)), nodes=draw(st.sampled_from([1, 1, 2])))
        for i, wish in enumerate(wishes)
    ]


@settings(deadline=None)
@given(st.data(), _wishes())
def test_plans_of_parts_pack_card_by_card(data: st.DataObject, wishes: list[JobClass]) -> None:
    groups = data.draw(free_groups(SPLIT))
    there = pool(shape=SPLIT, nodes=sum(g.nodes for g in groups), free=groups)
    world = snapshot(center(max_in_flight=99), there, *wishes)
    plan = schedule(world, policy_set())
    cards = Cards(there)
    for placement in sorted(plan.placements, key=lambda p: -p.slot):
        for _ in range(placement.nodes):
            assert cards.put(placement.spec.shape)


def test_the_round_after_charges_what_was_asked_for_and_not_the_slot() -> None:
    there = pool(shape=SPLIT, nodes=1)
    world = snapshot(center(), there, job_class(wish=part(300)))
    plan = schedule(world, policy_set())
    assert plan.placements[0].slot == 512
    assert left(after(world, plan.placements)) == [(3, (700,), 1)]


def test_the_check_finds_parts_that_share_a_card_without_room() -> None:
    there = pool(shape=SPLIT, nodes=1, free=(FreeNodes(64, 512, 0, 1, (500, 500)),))
    world = snapshot(center(), there, job_class(wish=part(500), jobs=3))
    plan = schedule(world, policy_set())
    assert len(plan.placements) == 2
    assert not violations(plan, world)
    third = replace(plan.placements[0], job=world.classes[0].jobs[2].id)
    wrong = Plan(based_on=world.version, placements=(*plan.placements, third))
    assert violations(wrong, world) == [
        f"pool sz-1/a: 1 slots of 512 for {part(500).id} do not pack",
    ]
    assert pack_on_cards(SPLIT, there.free, Counter({(1024, part(501)): 1})) == {(1024, part(501)): 1}


def test_a_quota_counts_parts() -> None:
    world = snapshot(center(), pool(shape=SPLIT, nodes=2), job_class(wish=part(400), jobs=9))
    plan = schedule(world, policy_set(Quota(shares=(Share("t", ceiling=1),))))
    assert len(plan.placements) == 2
    (told,) = plan.deferrals["k"]
    assert (told.code, told.need, told.have) == (Code.QUOTA, 400, 200)
    held = replace(claim("a", part(800).shape), tenant=TenantId("t"))
    again = snapshot(center(), pool(shape=SPLIT, nodes=2), job_class(wish=part(400), jobs=9), held)
    assert not schedule(again, policy_set(Quota(shares=(Share("t", ceiling=1),)))).placements


# ---------------------------------------------------------------- an adapter's own nodes


def test_an_adapter_reports_parts_that_are_left() -> None:
    on_first = Held(part(600).shape, (0,))
    taken = rooms(SPLIT, 2, [on_first, on_first])
    assert histogram(taken) == (FreeNodes(60, 496, 2, 1, (400, 400)), FreeNodes(64, 512, 4, 1))
    assert pack_exactly(SPLIT, taken, part(400).shape, 3) == (0, 0, 0)
    assert pack_exactly(node(1, split=1), rooms(node(1, split=1), 1, []), part(501).shape, 2) is None
    assert "accelerators are 1 of 500 thousandths" in misfit(part(500).shape, node(4))
    assert not misfit(part(500).shape, SPLIT)
