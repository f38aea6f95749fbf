"""Money: exact integers, rounded half-even once."""

from __future__ import annotations

import itertools
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import localtime
from broker.core.charges import (
    CLOCK_SLACK_MS,
    MS_PER_HOUR,
    Purse,
    center_spans,
    cny,
    divide_half_even,
    estimate_micro,
    interrupted_by,
    metered_micro,
    micro,
    own_span,
    segments,
    to_fen,
)
from broker.core.model import FailureKind, JobId, Price, RunFacts, RunId, RunState, Stop, StopReason
from broker.core.resources import price_at

AMOUNTS = st.integers(-(10**18), 10**18)


@given(AMOUNTS, st.integers(1, 10**9))
def test_division_rounds_half_to_even(value: int, by: int) -> None:
    assert divide_half_even(value, by) == round(Fraction(value, by))


@pytest.mark.parametrize(
    ("value", "by", "rounded"), [(5, 2, 2), (7, 2, 4), (-5, 2, -2), (-7, 2, -4), (1, 3, 0)]
)
def test_ties_go_to_the_even_neighbour(value: int, by: int, rounded: int) -> None:
    assert divide_half_even(value, by) == rounded


def flat(rate: int) -> tuple[Price, ...]:
    return (Price(rate),)


def monday(ms: int) -> int:
    """The local minute of a week that began at 0."""
    return ms // 60_000 % (7 * 1440)


@pytest.mark.parametrize(("started", "ended"), [(None, 5), (5, None), (None, None), (5, 5), (6, 5)])
def test_a_run_that_never_ran_costs_nothing(started: int | None, ended: int | None) -> None:
    assert metered_micro(segments(flat(10**9), started, ended, monday)) == 0


@given(st.integers(0, 10**12), st.integers(0, 10**13), st.integers(1, 10**10))
def test_metering_is_by_the_clock(rate: int, started: int, took_ms: int) -> None:
    exact = Fraction(rate * took_ms, MS_PER_HOUR)
    found = metered_micro(segments(flat(rate), started, started + took_ms, monday))
    assert abs(found - exact) <= Fraction(1, 2)
    assert metered_micro(segments(flat(rate), started, started + MS_PER_HOUR, monday)) == rate


@given(st.integers(0, 10**12), st.integers(0, 10**7))
def test_an_estimate_is_what_the_meter_would_say(rate: int, run_time_s: int) -> None:
    metered = metered_micro(segments(flat(rate), 0, run_time_s * 1000, monday))
    assert estimate_micro(rate, run_time_s) == metered


DAY = Price(20_000_000, start_min=8 * 60, end_min=22 * 60)
NIGHT = Price(4_000_000, frozenset(range(5)), start_min=22 * 60, end_min=8 * 60)
HOUR = 3_600_000


def test_a_run_pays_each_window_its_price() -> None:
    found = segments((Price(10_000_000), DAY), 7 * HOUR + 1_800_000, 23 * HOUR, monday)
    assert [(s.end_ms - s.start_ms, s.micro_per_hour) for s in found] == [
        (1_800_000, 10_000_000),
        (14 * HOUR, 20_000_000),
        (HOUR, 10_000_000),
    ]
    assert metered_micro(found) == 5_000_000 + 14 * 20_000_000 + 10_000_000


def test_hours_without_a_price_are_free() -> None:
    found = segments((DAY,), 6 * HOUR, 9 * HOUR, monday)
    assert [s.micro_per_hour for s in found] == [0, 20_000_000]
    assert metered_micro(found) == 20_000_000


@given(
    st.lists(
        st.builds(
            Price,
            st.integers(0, 10**9),
            st.frozensets(st.integers(0, 6), min_size=1),
            st.integers(0, 1439),
            st.integers(1, 1440),
        ),
        max_size=4,
    ),
    st.integers(0, 8 * 24 * HOUR),
    st.integers(1, 30 * HOUR),
)
def test_segments_are_the_price_of_every_minute(prices: list[Price], start: int, took_ms: int) -> None:
    found = segments(prices, start, start + took_ms, monday)
    assert (found[0].start_ms, found[-1].end_ms) == (start, start + took_ms)
    assert all(a.end_ms == b.start_ms for a, b in itertools.pairwise(found))
    assert all(a.micro_per_hour != b.micro_per_hour for a, b in itertools.pairwise(found))
    for at in range(start, start + took_ms, 60_000):
        here = next(s for s in found if s.start_ms <= at < s.end_ms)
        assert here.micro_per_hour == (price_at(prices, monday(at)) or 0)


def test_windows_go_by_the_local_clock_when_it_is_set() -> None:
    zone = ZoneInfo("Europe/Berlin")  # 2026-03-29: 02:00 becomes 03:00
    start = 1_774_738_800_000  # 2026-03-29 00:00 local
    night = Price(1_000_000, start_min=0, end_min=4 * 60)
    found = segments((night,), start, start + 6 * HOUR, partial(localtime.minute_of_week, zone=zone))
    assert [(s.end_ms - s.start_ms) // HOUR for s in found] == [3, 3]
    assert metered_micro(found) == 3_000_000


# ---------------------------------------------------------------- spans


def run(**facts: Any) -> RunFacts:
    values: dict[str, Any] = {"state": RunState.SUCCEEDED, "submitted_ms": 1000, **facts}
    return RunFacts(id=RunId("r"), job=JobId("j"), attempt=1, **values)


@pytest.mark.parametrize(
    ("started", "ended", "seen", "span"),
    [
        (2000, 5000, 6000, (2000, 5000)),
        (None, 5000, 6000, None),
        (5000, 2000, 6000, None),  # the clocks are in the wrong order
        (-9000, -6000, 6000, (1000, 4000)),  # the center's clock is slow: the length counts
        (90_000, 93_000, 6000, (3000, 6000)),  # fast
        (-(10**12), 5000, 6000, (1000, 6000)),  # never more than since the submission
        (2000, 10**15, 6000, (1000, 6000)),
        (2000, 5000, 500, None),  # our own clock went back
    ],
)
def test_a_wrong_clock_moves_a_run_and_never_makes_it_longer_than_it_can_be(
    started: int | None, ended: int, seen: int, span: tuple[int, int] | None
) -> None:
    assert own_span(run(started_ms=started, ended_ms=ended), seen) == span


TIMES = st.none() | st.integers(-(10**13), 10**13)


@given(TIMES, TIMES, TIMES, st.integers(0, 10**13), st.integers(0, 10**10))
def test_no_order_of_clocks_gives_a_negative_amount(
    submitted: int | None, started: int | None, ended: int | None, seen: int, rate: int
) -> None:
    span = own_span(run(submitted_ms=submitted, started_ms=started, ended_ms=ended), seen)
    first, last = span or (None, None)
    assert metered_micro(segments(flat(rate), first, last, monday)) >= 0
    if span is not None and submitted is not None:
        assert submitted <= span[0] < span[1] <= seen


def test_a_record_has_a_span_for_each_node_in_this_life_of_the_run() -> None:
    mine = (100_000, 200_000)
    assert center_spans([mine], *mine, 2) is None
    assert center_spans([mine, mine], *mine, 2) == (mine, mine)
    later = (mine[1] + 2 * CLOCK_SLACK_MS, mine[1] + 3 * CLOCK_SLACK_MS)  # resumed under the same name
    assert center_spans([mine, later], *mine, 1) == (mine,)
    assert center_spans([later], *mine, 1) is None
    assert center_spans([(200_000, 100_000)], *mine, 1) is None


# ---------------------------------------------------------------- who pays


def stop(reason: StopReason) -> Stop:
    return Stop(reason, 0)


@pytest.mark.parametrize(
    ("facts", "by"),
    [
        ({"state": RunState.SUCCEEDED}, ""),
        ({"state": RunState.SUCCEEDED, "stop": stop(StopReason.PREEMPT)}, ""),
        ({"state": RunState.FAILED, "failure": FailureKind.JOB}, ""),
        ({"state": RunState.FAILED, "failure": FailureKind.COMMAND}, ""),
        ({"state": RunState.FAILED, "failure": FailureKind.DEADLINE, "stop": stop(StopReason.DEADLINE)}, ""),
        ({"state": RunState.STOPPED, "stop": stop(StopReason.CANCEL)}, ""),
        ({"state": RunState.STOPPED, "stop": stop(StopReason.PREEMPT)}, "preempt"),
        ({"state": RunState.STOPPED, "stop": stop(StopReason.RECALL)}, "recall"),
        ({"state": RunState.STOPPED}, "stopped at the center"),
        ({"state": RunState.FAILED, "failure": FailureKind.EVICTED}, "evicted"),
        ({"state": RunState.FAILED, "failure": FailureKind.HOST}, "host"),
        ({"state": RunState.FAILED, "failure": FailureKind.LOST}, "lost"),
        ({"state": RunState.FAILED, "failure": FailureKind.NEVER_ARRIVED}, "never_arrived"),
        ({"state": RunState.ABANDONED}, "lost"),
    ],
)
def test_who_ended_a_run_decides_who_pays(facts: dict[str, Any], by: str) -> None:
    assert interrupted_by(run(**facts)) == by


# ---------------------------------------------------------------- what is left


@pytest.mark.parametrize(
    ("purse", "left"),
    [
        (Purse(), None),
        (Purse(spent_micro=70), None),
        (Purse(budget_micro=100, spent_micro=70, base_micro=50), 80),
        (Purse(budget_micro=100, per_month=True, spent_micro=700, month="2026-11", month_micro=30), 70),
        (Purse(budget_micro=100, per_month=True, spent_micro=700, month="2026-10", month_micro=30), 100),
        (Purse(balance_micro=5), 5),
        (Purse(balance_micro=5, budget_micro=3), 3),
        (Purse(balance_micro=-5, budget_micro=3), -5),
    ],
)
def test_what_is_left_is_the_less_of_budget_and_balance(purse: Purse, left: int | None) -> None:
    assert purse.left("2026-11") == left


# ---------------------------------------------------------------- amounts in words


@given(AMOUNTS)
def test_a_bill_line_is_whole_fen(amount: int) -> None:
    assert to_fen(amount) == cny(amount) * 10**6


@given(AMOUNTS)
def test_amounts_are_shown_in_fen(amount: int) -> None:
    exact = Decimal(amount).scaleb(-6)
    assert cny(amount) == exact.quantize(Decimal("0.01"), rounding=ROUND_HALF_EVEN)


@given(st.decimals(-(10**9), 10**9, places=6))
def test_an_amount_of_six_places_is_kept_exactly(amount: Decimal) -> None:
    assert Decimal(micro(amount)).scaleb(-6) == amount


def test_an_amount_of_seven_places_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.0000001 CNY has more than six"):
        micro(Decimal("0.0000001"))
