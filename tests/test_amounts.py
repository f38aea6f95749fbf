"""Sums that end at the largest one instead of going round."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from broker.core.amounts import LARGEST_CARDS, LARGEST_HOURS, LARGEST_MICRO, added, bounded, times, weighed
from broker.core.policy_file import MOST_WEIGHT

INT64 = st.integers(-(2**63) + 1, 2**63 - 1)
SUMS = st.integers(-LARGEST_MICRO, LARGEST_MICRO)


def one(value: int) -> np.ndarray:
    return np.array([value], dtype=np.int64)


@given(INT64, st.integers(-(10**15), 10**15))
def test_a_product_is_exact_or_nearly_the_largest(amount: int, factor: int) -> None:
    exact = amount * factor
    for made in (times(one(amount), factor), times(one(amount), one(factor))):
        if abs(exact) <= LARGEST_MICRO - abs(factor):
            assert int(made[0]) == exact
        else:
            assert LARGEST_MICRO - abs(factor) <= abs(int(made[0])) <= max(LARGEST_MICRO, abs(factor))
            assert (int(made[0]) > 0) is (exact > 0)


@given(SUMS, st.integers(1, MOST_WEIGHT * 1000))
def test_a_weighed_sum_is_exact_or_nearly_the_largest(money: int, permille: int) -> None:
    made = int(weighed(one(money), permille)[0])
    exact = money * permille // 1000
    assert made == exact if abs(exact) < LARGEST_MICRO - permille else abs(made) <= LARGEST_MICRO + permille


@given(SUMS, SUMS)
def test_sums_end_at_the_largest(a: int, b: int) -> None:
    assert int(added(one(a), one(b))[0]) == bounded(a + b)


def test_the_largest_job_at_a_rate_of_ten_thousand_still_fits() -> None:
    """What the documents derive the limits of prices and weights from."""
    assert LARGEST_CARDS * LARGEST_HOURS * 10_000 * 1_000_000 < LARGEST_MICRO < 2**63 // 4
