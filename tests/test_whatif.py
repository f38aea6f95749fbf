"""What would start a waiting job now: each change is one that a round places the job with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from broker.core.model import CenterId, JobClass, JobId, RunTime, Snapshot
from broker.core.policy import PolicySet
from broker.core.scheduler import schedule
from broker.core.solver import LP
from broker.core.whatif import PRICES, ROUNDS, SPECS, Change, Field, Trials, other_specs, placed, what_if
from tests.builders import (
    ASCEND,
    center,
    free,
    job_class,
    node,
    policy_set,
    pool,
    snapshot,
    spec,
    worlds,
)

CNY = 1_000_000


def ways(
    world: Snapshot, job: str = "k-0", *, policies: PolicySet | None = None, **trial: Any
) -> dict[Field, Change]:
    mine = next(c for c in world.classes if any(each.id == job for each in c.jobs))
    trials = Trials(world, policies or policy_set(), JobId(job), lp=LP(), **trial)
    return {change.field: change for change in what_if(trials, mine.request)}


def test_the_most_nodes_that_start() -> None:
    world = snapshot(center(), pool(nodes=5, free=[free(8, 3)]), job_class("k", 8, nodes=5))
    found = ways(world)
    assert set(found) == {Field.NODES, Field.SPEC}
    assert found[Field.NODES].request.nodes == 3
    assert found[Field.NODES].placement.nodes == 3


def test_the_least_higher_price_that_starts() -> None:
    """10 CNY an hour is too little: it is 3 at a full center, 20 and 12 at two with room."""
    world = snapshot(
        *(center(c) for c in ("full", "dear", "near")),
        pool("full/a", nodes=1, free=[], price=3 * CNY),
        pool("dear/a", price=20 * CNY),
        pool("near/a", price=12 * CNY + 1),
        job_class("k", 1, max_price_micro=10 * CNY, estimated_run_time_s=3600),
    )
    found = ways(world)
    assert set(found) == {Field.PRICE}
    assert found[Field.PRICE].request.max_price_micro == 12_010_000  # in whole fen
    assert found[Field.PRICE].placement.center == "near"


def test_other_centers_than_those_it_names() -> None:
    world = snapshot(
        center("a"),
        center("b"),
        pool("a/x", nodes=1, free=[]),
        pool("b/x"),
        job_class("k", 8, centers=(CenterId("a"),)),
    )
    found = ways(world)
    assert set(found) == {Field.CENTERS}
    assert found[Field.CENTERS].placement.center == "b"
    assert found[Field.CENTERS].request.centers == ()


def test_the_cheapest_other_spec_that_starts() -> None:
    world = snapshot(
        *(center(c) for c in ("a", "b", "c")),
        pool("a/x", nodes=1, free=[free(2)], price=CNY),
        pool("b/x", node(8, accelerator=ASCEND, card_memory_gib=64), price=9 * CNY),
        pool("c/x", node(8, card_memory_gib=40), price=5 * CNY),
        job_class("k", 4),
    )
    chosen = ways(world)[Field.SPEC]
    assert chosen.placement.center == "c"
    assert chosen.request.spec == spec(node(4, card_memory_gib=40))
    # where no such product has room a smaller slice will do, the largest first
    smaller = replace(world, centers=(center("a"),))
    assert ways(smaller)[Field.SPEC].request.spec == spec(2)


def test_specs_come_in_the_order_in_which_they_help() -> None:
    world = snapshot(center(), pool(price=CNY))
    cards = [each.shape.accelerators for each in other_specs(world, job_class("k", 2).request)]
    assert cards == [4, 8, 1]
    power = job_class("k", None, min_gflops=3 * 312_000).request
    assert [each.shape.accelerators for each in other_specs(world, power)] == [2, 1]


def test_what_is_left_to_others_is_not_told() -> None:
    """One node is free, and an older job of the same class has it; the other one could have a quarter."""
    world = snapshot(center(), pool(nodes=2, free=[free(8)]), job_class("k", 8, jobs=2, nodes=1))
    assert placed(schedule(world, policy_set()), JobId("k-0")) is not None
    assert ways(world, "k-1") == {}


def test_rounds_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from broker.core import whatif

    made: list[Snapshot] = []

    def counted(*args: Any) -> Any:
        made.append(args[0])
        return schedule(*args)

    monkeypatch.setattr(whatif, "schedule", counted)
    full = [pool(f"c/{i}", nodes=1, free=[], price=i * CNY) for i in range(20)]
    wish = job_class(
        "k", 8, nodes=100_000, centers=(CenterId("x"),), max_price_micro=1, estimated_run_time_s=60
    )
    assert ways(snapshot(center("c"), *full, wish)) == {}
    assert len(made) == ROUNDS
    made.clear()
    assert ways(snapshot(center("c"), *full, wish), rounds=3) == {}
    assert len(made) == 3
    assert PRICES + SPECS + 3 <= ROUNDS


def test_a_changed_request_has_a_run_time_of_its_own() -> None:
    world = snapshot(center(), pool(nodes=5, free=[free(8, 3)], price=CNY), job_class("k", 8, nodes=5))
    found = ways(world, learned=lambda request, _tenant: RunTime(60 * request.nodes, 60 * request.nodes))
    assert found[Field.NODES].placement.cost_micro == 8 * 3 * CNY * 3 // 60


def test_only_a_job_that_waits_is_asked_about() -> None:
    with pytest.raises(ValueError, match="job nobody does not wait"):
        Trials(snapshot(center(), pool()), policy_set(), JobId("nobody"), lp=LP())


def _alone(world: Snapshot, job: JobClass, change: Change) -> Snapshot:
    """The world in which one job of a class had asked for the change."""
    rest = [replace(c, jobs=tuple(j for j in c.jobs if j != job.jobs[-1])) for c in world.classes]
    own = replace(job, key="own", jobs=job.jobs[-1:], request=change.request)
    return replace(world, classes=(*rest, own))


@settings(max_examples=40, deadline=None)
@given(worlds())
def test_every_change_told_is_one_that_a_round_takes(world: Snapshot) -> None:
    plan = schedule(world, policy_set())
    for job_class_ in world.classes:
        job = job_class_.jobs[-1].id
        if placed(plan, job) is not None:
            continue
        for change in ways(world, job).values():
            told = placed(schedule(_alone(world, job_class_, change), policy_set()), job)
            assert told is not None
            assert (told.center, told.pool) == (change.placement.center, change.placement.pool)
