"""The simulator: reading its files, exact waits of small traces, the baselines, figures, page and command."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.model import MICRO, JobId, NodeShape, Tier
from broker.core.resources import Catalogue
from broker.simulate import (
    IDLE_ROUNDS,
    PERIOD_S,
    ZERO_MS,
    Order,
    Outcome,
    Settings,
    Simulation,
    simulate,
)
from broker.simulate.html import page
from broker.simulate.production import ProductionRounds
from broker.simulate.report import report, table
from broker.simulate.trace import JOB_COLUMNS, CenterRow, TraceError, TraceJob, read_centers, read_jobs
from broker.simulate.world import Nodes, Round, build_world
from policies.backfill import Backfill
from tests.builders import policy_set

ROOT = Path(__file__).parent.parent
HEADER = ",".join(JOB_COLUMNS)
KEYS = [
    *("jobs", "finished", "waitMeanS", "waitP50S", "waitP99S", "completionMeanS", "utilisation"),
    *("allocation", "preemptions", "lostAcceleratorHours", "costCny", "fairness", "rounds", "gapMedian"),
    *("gapWorst", "roundP99Ms", "wallS", "perCenter", "perTenant"),
]


def job(id: str, submit_s: int, duration_s: int, cards: int = 8, **changes: Any) -> TraceJob:
    """A job of one node of center `a`, with six cores and 46 GiB per card."""
    facts: dict[str, Any] = {
        "nodes": 1,
        "fraction": None,
        "models": (),
        "cores": 6 * cards,
        "memory_gib": 46 * cards,
        "tier": Tier.NORMAL,
        "tenant": "t",
        "center": "a",
    }
    return TraceJob(id=id, submit_s=submit_s, duration_s=duration_s, cards=cards, **{**facts, **changes})


def nodes(count: int = 1, center: str = "a", **changes: Any) -> CenterRow:
    """So many nodes of eight cards."""
    facts: dict[str, Any] = {"model": "", "cards": 8, "cores": 48, "memory_gib": 368, "price_micro": None}
    return CenterRow(center=center, nodes=count, **{**facts, **changes})


def play(jobs: Sequence[TraceJob], centers: Sequence[CenterRow] = (nodes(),), **changes: Any) -> Outcome:
    """The outcome under the default policies; estimates are the truth unless `oracle` is False."""
    settings = Settings(**{"oracle": True, **changes})
    return simulate(jobs, centers, policies=policy_set(), catalogue=Catalogue(), settings=settings)


def waits(outcome: Outcome) -> dict[str, int]:
    return {record.job.id: record.waited_s for record in outcome.jobs if record.end_s is not None}


ORDERS = tuple(Order)

# ---------------------------------------------------------------- reading


def written(folder: Path, *rows: str, header: str = HEADER, name: str = "t.csv") -> Path:
    file = folder / name
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def test_jobs_are_read_in_order_of_submission_plain_and_packed(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "late,20,5,2,8,,48,368,2,t,a",
        "first,3,5,1,0.46,A10|T4,5.5,12,0,t,b",
        "cpu,3,1,1,0,,4,8,1,t,a",
    )
    jobs = read_jobs(file)
    assert [j.id for j in jobs] == ["first", "cpu", "late"]
    assert (jobs[0].cards, jobs[0].fraction, jobs[0].models) == (1, Decimal("0.46"), ("A10", "T4"))
    assert (jobs[0].cores, jobs[0].tier, jobs[2].tier) == (6, Tier.LOW, Tier.HIGH)
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert read_jobs(packed) == jobs


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,x,5,1,8,,48,368,1,t,a", "submit_s must be a whole number of at least 0, not 'x'"),
        ("a,0,0,1,8,,48,368,1,t,a", "duration_s must be a whole number of at least 1, not '0'"),
        ("a,0,1.5,1,8,,48,368,1,t,a", "duration_s must be a whole number of at least 1, not '1.5'"),
        ("a,0,5,0,8,,48,368,1,t,a", "nodes must be a whole number of at least 1, not '0'"),
        ("a,0,5,1,2.5,,48,368,1,t,a", "gpus_per_node must be whole, or a share of one card, not '2.5'"),
        ("a,0,5,1,nan,,48,368,1,t,a", "gpus_per_node must be a number of at least 0, not 'nan'"),
        ("a,0,5,1,0,,0,368,1,t,a", "cpus_per_node must be at least 1 where gpus_per_node is 0, not '0'"),
        ("a,0,5,1,8,,48,368,7,t,a", "priority must be 0, 1 or 2, not '7'"),
        ("a,0,5,1,8,,48,368,1,,a", "tenant must be given, not ''"),
        ("a,0,5,1,8,,48,368,1,t", "10 values for 11 columns"),
        ("ok,0,5,1,8,,48,368,1,t,a", "job_id 'ok' is that of line 2 already"),
    ],
)
def test_a_broken_row_is_told_with_its_file_and_line(tmp_path: Path, row: str, reason: str) -> None:
    file = written(tmp_path, "ok,0,5,1,8,,48,368,1,t,a", row)
    with pytest.raises(TraceError) as error:
        read_jobs(file)
    assert str(error.value) == f"{file}:3: {reason}"


def test_headers_and_empty_files_are_told(tmp_path: Path) -> None:
    for header, reason in (
        (HEADER + ",colour", "unknown column 'colour'"),
        (HEADER.replace(",tenant", ""), "column 'tenant' is missing"),
        (HEADER + ",center", "column 'center' occurs twice"),
        (HEADER, "the trace has no jobs"),
    ):
        with pytest.raises(TraceError, match=re.escape(f"t.csv:1: {reason}")):
            read_jobs(written(tmp_path, header=header))
    broken = tmp_path / "b.csv.gz"
    broken.write_bytes(gzip.compress(HEADER.encode() * 50)[:-20])
    with pytest.raises(TraceError, match=re.escape("b.csv.gz:1: cannot be read")):
        read_jobs(broken)


def test_centers_are_counted_by_the_column_that_is_named(tmp_path: Path) -> None:
    header = "center,gpu_model,gpus_per_node,cpus_per_node,mem_gib_per_node,node_count,node_count_busy,basis"
    file = written(tmp_path, "a,A10,8,48,,3,1,real", "b,,0,32,64,2,0,real", header=header)
    assert [(row.center, row.nodes, row.memory_gib) for row in read_centers(file)] == [
        ("a", 3, None),
        ("b", 2, 64),
    ]
    assert [(row.center, row.nodes) for row in read_centers(file, "node_count_busy")] == [("a", 1)]
    with pytest.raises(TraceError, match="column 'node_count_peak' is missing"):
        read_centers(file, "node_count_peak")
    priced = written(
        tmp_path,
        "a,,8,48,368,1,12.50",
        "a,,8,48,368,1,free",
        header="center,gpu_model,gpus_per_node,cpus_per_node,mem_gib_per_node,node_count,price_cny_per_hour",
    )
    with pytest.raises(TraceError, match=r"t\.csv:3: price_cny_per_hour must be an amount in CNY"):
        read_centers(priced)


# ---------------------------------------------------------------- nodes and wishes

CARD = NodeShape("X86", 6, 46, "Trace/GPU/any", 1)
NODE = NodeShape("X86", 48, 368, "Trace/GPU/any", 8)


def cards(count: int) -> NodeShape:
    return replace(CARD, cores=6 * count, memory_gib=46 * count, accelerators=count)


def test_a_center_fills_the_fullest_node_and_spreads_a_gang() -> None:
    pool = Nodes(NODE, 3)
    assert pool.take(cards(4), 1) == (0,)
    assert pool.take(cards(2), 1) == (0,)
    assert pool.take(cards(8), 2) == (1, 2)
    assert not pool.fits(cards(4), 1)
    assert pool.take(cards(4), 1) is None
    pool.give_back((1,), cards(8))
    assert pool.take(cards(1), 2) == (0, 1)
    assert sum(group.accelerators * group.nodes for group in pool.free()) == 1 + 7


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 3), st.booleans()), max_size=30))
def test_nodes_give_back_what_they_gave(steps: list[tuple[int, int, bool]]) -> None:
    pool = Nodes(NODE, 4)
    held: list[tuple[tuple[int, ...], NodeShape]] = []
    for size, count, ends in steps:
        if ends and held:
            pool.give_back(*held.pop(0))
        elif (taken := pool.take(cards(size), count)) is not None:
            held.append((taken, cards(size)))
        free = sum(group.accelerators * group.nodes for group in pool.free())
        assert free == 32 - sum(shape.accelerators * len(taken) for taken, shape in held)
    for taken, shape in held:
        pool.give_back(taken, shape)
    assert [(group.accelerators, group.nodes) for group in pool.free()] == [(8, 4)]


def test_a_center_of_several_products_is_one_center_per_product() -> None:
    rows = [nodes(model="A10"), nodes(model="T4"), nodes(center="b", model="T4")]
    rows.append(nodes(center="b", cards=0))
    wishes = [job("any", 0, 1), job("some", 0, 1, models=("T4", "V100")), job("cpu", 0, 1, cards=0, cores=4)]
    world = build_world(rows, wishes, catalogue=Catalogue(), now_ms=ZERO_MS)
    assert [c.id for c in world.centers] == ["a:A10", "a:T4", "b:T4", "b:cpu"]
    any_product, some, cpu = (world.request(j, estimate_s=60, stays_home=False) for j in wishes)
    # Several products can serve it: asked for by power, a thousand GFLOPS per card.
    assert (any_product.spec, any_product.min_gflops) == (None, 8000)
    assert any_product.centers == ("a:A10", "a:T4", "b:T4")
    assert some.centers == ("a:T4", "b:T4")
    assert some.spec is not None
    assert some.spec.shape.accelerator == "Trace/GPU/T4"
    assert cpu.centers == ("b:cpu",)
    assert cpu.spec is not None
    assert (cpu.spec.shape.accelerators, cpu.spec.shape.cores) == (0, 4)
    assert world.request(wishes[0], estimate_s=60, stays_home=True).centers == ("a:A10", "a:T4")


def test_jobs_of_several_products_run_and_a_job_of_none_never_starts() -> None:
    rows = [nodes(model="A10"), nodes(model="T4", price_micro=MICRO)]
    wishes = [job("one", 0, 3600), job("two", 0, 3600), job("never", 0, 1, models=("H100",))]
    outcome = play(wishes, rows)
    assert waits(outcome) == {"one": 0, "two": 0}
    told = report(outcome)
    assert any("1 jobs never started (the first is never)" in note for note in told.notes)
    assert told.cost_micro == 8 * MICRO
    assert outcome.reasons == {"no_product": 1}


# ---------------------------------------------------------------- exact waits


@pytest.mark.parametrize("order", ORDERS)
def test_two_jobs_on_one_node(order: Order) -> None:
    outcome = play([job("one", 10, 100), job("two", 40, 50)], order=order)
    assert waits(outcome) == {"one": 0, "two": 70}
    told = report(outcome)
    assert told.overall.wait_mean_s == 35
    assert told.overall.completion_mean_s == 35 + 75
    assert told.span_s == (10, 160)
    assert told.utilisation == 1.0
    assert [(s.job, s.start_s, s.end_s) for s in outcome.segments] == [("one", 10, 110), ("two", 110, 160)]


@pytest.mark.parametrize("order", ORDERS)
def test_an_end_and_a_submission_of_one_second_meet(order: Order) -> None:
    assert waits(play([job("one", 0, 100), job("two", 100, 50)], order=order)) == {"one": 0, "two": 0}


BLOCKED = (
    job("long", 0, 1000, 4),
    job("whole", 10, 100, 8),  # needs the whole node: blocks the head of the queue
    job("small", 20, 50, 4),  # there is room for it
)


def test_head_of_line_blocks_and_the_scheduler_fills_in() -> None:
    assert waits(play(BLOCKED, order=Order.FIFO)) == {"long": 0, "whole": 990, "small": 1080}
    # Strict shortest first: the small one is first from the moment it comes.
    assert waits(play(BLOCKED, order=Order.SJF)) == {"long": 0, "whole": 990, "small": 0}
    assert waits(play(BLOCKED)) == {"long": 0, "whole": 990, "small": 0}


SHUFFLED = (job("busy", 0, 100), job("long", 1, 900), job("short", 2, 10), job("middle", 3, 100))


@pytest.mark.parametrize("order", [Order.SJF, Order.POLICY])
def test_short_jobs_first(order: Order) -> None:
    assert waits(play(SHUFFLED, order=order)) == {"busy": 0, "short": 98, "middle": 107, "long": 209}


def test_first_come_first_served() -> None:
    assert waits(play(SHUFFLED, order=Order.FIFO)) == {"busy": 0, "long": 99, "short": 998, "middle": 1007}


def test_an_old_long_job_passes_later_short_ones() -> None:
    """Short jobs arrive for ever and fill the node; the long one starts within two days all the same."""
    stream = [job(f"s{i}", 60 * i, 70) for i in range(3600)]
    outcome = play(sorted([job("long", 1, 5000), *stream], key=lambda j: j.submit_s))
    assert 0 < waits(outcome)["long"] < 2 * 86_400


@pytest.mark.parametrize("order", ORDERS)
def test_at_home_or_pooled(order: Order) -> None:
    jobs = [job("one", 0, 100), job("two", 0, 100)]
    both = [nodes(), nodes(center="b")]
    assert waits(play(jobs, both, order=order)) == {"one": 0, "two": 0}
    home = play(jobs, both, order=order, stays_home=True)
    assert sorted(waits(home).values()) == [0, 100]
    assert {segment.center for segment in home.segments} == {"a"}


@pytest.mark.parametrize("order", ORDERS)
def test_a_gang_starts_whole_and_in_one_pool(order: Order) -> None:
    gang = job("gang", 5, 10, nodes=2)
    centers = [nodes(2), nodes(1, center="b")]
    outcome = play([job("one", 0, 100), gang], centers, order=order)
    # It waits for its second node unless the first job went to the other center.
    expected = 0 if outcome.jobs[0].center == "b" else 95
    assert waits(outcome)["gang"] == expected
    assert waits(play([job("one", 0, 100), gang], [nodes(2)], order=order))["gang"] == 95


@pytest.mark.parametrize("order", [Order.FIFO, Order.SJF])
def test_a_job_that_never_fits_does_not_stop_a_baseline(order: Order) -> None:
    outcome = play([job("wide", 0, 5, nodes=9), job("one", 1, 5)], order=order)
    assert waits(outcome) == {"one": 0}
    assert outcome.reasons == {"never_fits": 1}


def test_rounds_are_made_by_events_and_every_quarter_of_an_hour() -> None:
    outcome = play([job("long", 0, 3 * PERIOD_S), job("next", 1, 5), job("also", 1, 5)])
    # Second 0; second 1 for both; two periods without an event; the end; the end of the first of two.
    assert len(outcome.rounds.seconds) == 6


def test_waiting_jobs_are_given_up_when_nothing_can_change() -> None:
    outcome = play([job("wide", 0, 5, nodes=9)])
    assert len(outcome.rounds.seconds) == IDLE_ROUNDS
    assert outcome.reasons == {"gang_nodes": 1}


# ---------------------------------------------------------------- estimates


def test_estimates_are_noisy_by_seed_and_said_to_be() -> None:
    one = job("one", 0, 10_000)
    assert Settings(oracle=True).estimate_s(one) == 10_000
    drawn = [Settings(seed=seed).estimate_s(one) or 0 for seed in range(400)]
    assert len(set(drawn)) > 390
    assert drawn == [Settings(seed=seed).estimate_s(one) for seed in range(400)]
    drawn.sort()
    assert 8000 < drawn[200] < 12_500  # the median error is one
    assert 3000 < drawn[64] < 4500 < 22_000 < drawn[336] < 33_000  # one spread: a factor of e
    assert "noisy estimates (log-normal, spread 1, seed 3)" in report(play([one], oracle=False, seed=3)).label
    told = report(play([one]))
    assert "oracle" in told.label
    assert told.label in table(told)
    assert told.label in page(play([one]), told)


def many(count: int = 60) -> list[TraceJob]:
    return [
        job(f"j{i}", 37 * i, 1 + i * i * 7919 % 3000, (1, 2, 4, 8)[i % 4], tenant=f"t{i % 3}")
        for i in range(count)
    ]


def test_equal_seeds_give_equal_outcomes() -> None:
    def decided(seed: int) -> list[tuple[str, int]]:
        outcome = play(many(), [nodes(), nodes(center="b")], oracle=False, seed=seed)
        return [(segment.job, segment.start_s) for segment in outcome.segments]

    assert decided(1) == decided(1)
    assert decided(1) != decided(2)


@pytest.mark.parametrize("order", ORDERS)
def test_every_job_runs_once_for_its_time_within_the_cards_there_are(order: Order) -> None:
    jobs = many()
    outcome = play(jobs, [nodes(), nodes(center="b")], order=order, oracle=False)
    assert sorted(s.job for s in outcome.segments) == sorted(j.id for j in jobs)
    length = {j.id: j.duration_s for j in jobs}
    assert all(s.end_s - s.start_s == length[s.job] for s in outcome.segments)
    assert outcome.refused == 0
    for center in ("a", "b"):
        changes = [(s.start_s, 1, s.cards) for s in outcome.segments if s.center == center]
        changes += [(s.end_s, 0, -s.cards) for s in outcome.segments if s.center == center]
        held = 0
        for _, _, by in sorted(changes):
            held += by
            assert 0 <= held <= 8


# ---------------------------------------------------------------- what is held


def test_capacity_is_held_for_a_gang_that_small_jobs_would_keep_out() -> None:
    """An endless stream of small jobs keeps a gang of two nodes out, unless capacity is held for it."""
    small = [job(f"s{i}", 100 * i, 1100, 1, tier=Tier.HIGH) for i in range(400)]
    jobs = sorted([job("gang", 50, 100, nodes=2), *small], key=lambda j: j.submit_s)
    open_to_all = waits(play(jobs, [nodes(2)]))["gang"]

    def held(limit_s: int) -> int:
        policies = policy_set(Backfill(wait_limit_s=limit_s))
        settings = Settings(oracle=True)
        outcome = simulate(jobs, [nodes(2)], policies=policies, catalogue=Catalogue(), settings=settings)
        assert len(waits(outcome)) == len(jobs)
        return waits(outcome)["gang"]

    assert open_to_all > 30_000
    assert held(600) <= 600 + PERIOD_S + 1100


# ---------------------------------------------------------------- preemption


class StopAt(ProductionRounds):
    """The production rounds, but every run of the trace's first job is stopped at one second."""

    def decide(self, sim: Simulation) -> Round:
        decided = super().decide(sim)
        victims = tuple(run for run, claim in sim.claims.items() if sim.now_s == 500 and claim.job == "one")
        return replace(decided, stops=victims)


@pytest.mark.parametrize(("checkpoint_s", "lost_s"), [(None, 400), (150, 100), (1000, 400)])
def test_a_preempted_job_queues_again_with_its_age_and_loses_work(
    checkpoint_s: int | None, lost_s: int
) -> None:
    jobs = [job("one", 100, 1000), job("two", 500, 10)]
    settings = Settings(oracle=True, checkpoint_s=checkpoint_s)
    world = build_world([nodes()], jobs, catalogue=Catalogue(), now_ms=ZERO_MS)
    rounds = StopAt(world, policy_set(), settings)
    sim = Simulation(jobs, world, settings=settings, dispatcher=rounds)
    sim.run()
    one, two = sim.records[JobId("one")], sim.records[JobId("two")]
    # Stopped at 500, second 501 gives the node to the short job, then the first one goes on.
    assert [(s.job, s.start_s, s.end_s, s.preempted) for s in sim.segments] == [
        ("one", 100, 500, True),
        ("two", 501, 511, False),
        ("one", 511, 511 + 600 + lost_s, False),
    ]
    assert (one.preemptions, one.lost_s, one.waited_s, two.waited_s) == (1, lost_s, 11, 1)
    assert one.end_s is not None
    # Its time is its wait, its true run time, and what was lost.
    assert one.end_s - one.job.submit_s == one.waited_s + one.job.duration_s + lost_s
    assert sim.kills[JobId("one")].suffered == 1
    outcome = replace(play(jobs), jobs=tuple(sim.records.values()), segments=tuple(sim.segments))
    told = report(outcome)
    assert (told.preemptions, told.lost_hours) == (1, round(lost_s * 8 / 3600, 3))
