"""Effective free capacity: reports, our claims, reservations, and what-if."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.core.model import Accuracy, Claim, FreeNodes, JobId, PoolId, RunId, Snapshot
from broker.core.snapshot import effective_free, in_flight_room, supply, units, without
from tests.builders import NOW_MS, center, claim, cpu_node, free, node, pool, reservation, snapshot


def cards_left(world: Snapshot, of: str = "sz-1/a") -> dict[int, int]:
    """Nodes by free cards."""
    return {group.accelerators: group.nodes for group in effective_free(world)[PoolId(of)]}


def test_units_are_the_scarcest_share() -> None:
    assert units(node(8), free(5)) == 5
    assert units(node(8), free(8, cores=47)) == 2
    assert units(node(8), free(8, memory_gib=1023)) == 7
    assert units(node(8, cores=0, memory_gib=0), free(3, cores=0, memory_gib=0)) == 3
    assert units(cpu_node(64, 256), FreeNodes(10, 256, 0, 1)) == 10
    assert units(cpu_node(64, 256), FreeNodes(64, 30, 0, 1)) == 7


def test_supply_counts_whole_slots_per_node() -> None:
    groups = (free(8, nodes=2), free(6), free(3, nodes=4))
    assert [supply(node(8), groups, t) for t in (1, 2, 4, 8)] == [34, 8 + 3 + 4, 5, 2]


def test_an_exact_report_contains_what_started_long_enough_before_it() -> None:
    lag = center(report_lag_s=60)
    before, at_edge = NOW_MS - 60_001, NOW_MS - 60_000
    world = snapshot(lag, pool(free=[free(8, nodes=2)]), claim("old", 4, started_ms=before))
    assert cards_left(world) == {8: 2}
    assert cards_left(snapshot(lag, pool(), claim("new", 4, started_ms=at_edge))) == {8: 1, 4: 1}
    assert cards_left(snapshot(lag, pool(), claim("unstarted", 4))) == {8: 1, 4: 1}


def test_an_estimate_contains_none_of_our_runs_and_unknown_has_no_rows() -> None:
    estimated = pool(accuracy=Accuracy.ESTIMATED)
    assert cards_left(snapshot(center(), estimated, claim("old", 4, started_ms=0))) == {8: 1, 4: 1}
    assert cards_left(snapshot(center(), pool(accuracy=Accuracy.UNKNOWN))) == {}


def test_claims_go_to_the_fullest_node_that_fits() -> None:
    groups = [free(8), free(4), free(2)]
    assert cards_left(snapshot(center(), pool(nodes=3, free=groups), claim("a", 3))) == {8: 1, 2: 1, 1: 1}
    two = snapshot(center(), pool(nodes=3, free=groups), claim("a", 2, nodes=2))
    assert cards_left(two) == {8: 1, 2: 1}
    shared = snapshot(center(), pool(nodes=2, free=[free(8)]), claim("a", 4, nodes=2))
    assert cards_left(shared) == {}


def test_what_fits_nowhere_is_charged_to_the_emptiest_and_never_below_zero() -> None:
    world = snapshot(center(), pool(nodes=2, free=[free(4), free(2)]), claim("a", 8))
    assert cards_left(world) == {2: 1}
    assert cards_left(snapshot(center(), pool(free=[free(2)]), claim("a", 8, nodes=5))) == {}


def test_reservations_in_force_are_held() -> None:
    assert cards_left(snapshot(center(), pool(), reservation(4, nodes=2))) == {4: 2}
    assert cards_left(snapshot(center(), pool(), reservation(8, expires_ms=NOW_MS))) == {8: 2}
    assert cards_left(snapshot(center(), pool(), reservation(8, not_before_ms=NOW_MS + 1))) == {8: 2}
    held = snapshot(center(), pool(nodes=1), reservation(4))
    assert effective_free(held)[PoolId("sz-1/a")] == (free(4),)
    assert effective_free(held, holder=JobId("held"))[PoolId("sz-1/a")] == (free(8),)


def test_without_gives_back_what_the_report_already_counted() -> None:
    running = claim("bk-1", 4, nodes=2, started_ms=NOW_MS - 600_000)
    world = snapshot(center(), pool(nodes=3, free=[free(8), free(4), free(0)]), running, claim("bk-2", 8))
    assert cards_left(world) == {4: 1}
    what_if = without(world, [RunId("bk-1")])
    assert [c.run for c in what_if.claims] == ["bk-2"]
    # bk-2 takes the empty node; the fullest two get the four cards each back.
    assert cards_left(what_if) == {8: 1, 4: 1}
    assert cards_left(without(world, [RunId("bk-2")])) == {8: 1, 4: 1}
    assert without(world, []) == world


def test_in_flight_room() -> None:
    assert in_flight_room(center(max_in_flight=3, in_flight=1)) == 2
    assert in_flight_room(center(max_in_flight=3, in_flight=5)) == 0


_claims = st.lists(
    st.builds(
        lambda i, cards, nodes, old: claim(
            f"bk-{i}", cards, nodes=nodes, started_ms=NOW_MS - 999_000 if old else None
        ),
        st.integers(0, 10**6),
        st.integers(1, 8),
        st.integers(1, 3),
        st.booleans(),
    ),
    max_size=6,
    unique_by=lambda c: c.run,
)
_groups = st.lists(st.builds(free, st.integers(0, 8), st.integers(1, 3)), max_size=4)


@given(_groups, _claims)
def test_charging_takes_at_most_what_is_owed_and_ignores_order(
    groups: list[FreeNodes], claims: list[Claim]
) -> None:
    some_pool = pool(nodes=20, free=groups)
    left = effective_free(snapshot(center(), some_pool, *claims))[some_pool.id]
    assert effective_free(snapshot(center(), some_pool, *reversed(claims)))[some_pool.id] == left
    owed = sum(c.shape.accelerators * c.nodes for c in claims if c.started_ms is None)
    before = sum(g.accelerators * g.nodes for g in groups)
    after = sum(g.accelerators * g.nodes for g in left)
    assert max(0, before - owed) <= after <= before
    assert all(min(g.accelerators, g.cores, g.memory_gib) >= 0 for g in left)
    everything_gone = without(snapshot(center(), some_pool, *claims), [c.run for c in claims])
    released = effective_free(everything_gone)[some_pool.id]
    assert sum(g.accelerators * g.nodes for g in released) >= before
