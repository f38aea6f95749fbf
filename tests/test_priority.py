"""The priority policy: tiers before run times, short before long, and never less than an option costs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.model import MICRO, Tier
from broker.core.problem import build
from policies.priority import Priority
from tests.builders import center, job_class, policy_set, pool, snapshot

YEAR_S = 365 * 86_400


def gain(estimate_s: int, tier: Tier = Tier.NORMAL, *, cards: int = 8, price: int = 0) -> int:
    """What the worth of a fresh job is above its dearest option."""
    wish = job_class(wish=cards, estimated_run_time_s=estimate_s, tier=tier)
    problem = build(snapshot(center(), pool(price=price), wish), policy_set())
    return int(Priority().worth(problem, 0)[0]) - int(problem.cost.max())


def test_shortness_falls_from_the_whole_to_a_quarter() -> None:
    policy = Priority()
    assert [policy.shortness(s) for s in (1, 60, 63, 64, 128, 3600)] == [64, 64, 64, 61, 58, 46]
    assert policy.shortness(YEAR_S) == 16
    assert Priority(short_s=3600).shortness(3600) == 64


@given(st.integers(1, YEAR_S), st.integers(1, YEAR_S))
def test_of_a_tier_shorter_jobs_gain_no_less(one_s: int, other_s: int) -> None:
    shorter, longer = sorted((one_s, other_s))
    assert Priority().shortness(shorter) >= Priority().shortness(longer)


@pytest.mark.parametrize("price", [0, 10 * MICRO])
def test_run_times_do_not_turn_tiers_round(price: int) -> None:
    for lower, higher in itertools.pairwise(Tier):
        assert gain(YEAR_S, higher, price=price) >= gain(1, lower, price=price) > 0


def test_the_gain_is_per_card_and_does_not_depend_on_prices() -> None:
    assert gain(600, cards=8) == 8 * gain(600, cards=1)
    assert gain(600, price=30 * MICRO) == gain(600)


@pytest.mark.parametrize("key", ["reference_price", "short_s"])
def test_wrong_keys_are_told(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key} must be at least 1"):
        Priority(**{key: 0})
