"""Money: exact integers, rounded half-even once."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.charges import MS_PER_HOUR, cny, divide_half_even, estimate_micro, metered_micro, micro

AMOUNTS = st.integers(-(10**18), 10**18)


@given(AMOUNTS, st.integers(1, 10**9))
def test_division_rounds_half_to_even(value: int, by: int) -> None:
    assert divide_half_even(value, by) == round(Fraction(value, by))


@pytest.mark.parametrize(
    ("value", "by", "rounded"), [(5, 2, 2), (7, 2, 4), (-5, 2, -2), (-7, 2, -4), (1, 3, 0)]
)
def test_ties_go_to_the_even_neighbour(value: int, by: int, rounded: int) -> None:
    assert divide_half_even(value, by) == rounded


@pytest.mark.parametrize(("started", "ended"), [(None, 5), (5, None), (None, None), (5, 5), (6, 5)])
def test_a_run_that_never_ran_costs_nothing(started: int | None, ended: int | None) -> None:
    assert metered_micro(10**9, started, ended) == 0


@given(st.integers(0, 10**12), st.integers(0, 10**13), st.integers(1, 10**10))
def test_metering_is_by_the_clock(rate: int, started: int, took_ms: int) -> None:
    exact = Fraction(rate * took_ms, MS_PER_HOUR)
    assert abs(metered_micro(rate, started, started + took_ms) - exact) <= Fraction(1, 2)
    assert metered_micro(rate, started, started + MS_PER_HOUR) == rate


@given(st.integers(0, 10**12), st.integers(0, 10**7))
def test_an_estimate_is_what_the_meter_would_say(rate: int, run_time_s: int) -> None:
    assert estimate_micro(rate, run_time_s) == metered_micro(rate, 0, run_time_s * 1000)


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
