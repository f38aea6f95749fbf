"""Money: what a run costs by the clock, and how amounts are written.

Amounts are int64 micro-CNY and are rounded half-even to fen (0.01 CNY) once, when shown or billed.
"""

from __future__ import annotations

from decimal import Decimal

from broker.core.model import MICRO

MICRO_PER_FEN = MICRO // 100
MS_PER_HOUR = 3_600_000


def divide_half_even(value: int, by: int) -> int:
    """`value` / `by` rounded to the nearest integer, ties to even."""
    quotient, rest = divmod(value, by)
    twice = 2 * rest
    return quotient + (twice > by or (twice == by and quotient % 2 == 1))


def metered_micro(rate_micro_per_hour: int, started_ms: int | None, ended_ms: int | None) -> int:
    """What a run cost between two moments; 0 when it never started."""
    if started_ms is None or ended_ms is None or ended_ms <= started_ms:
        return 0
    return divide_half_even(rate_micro_per_hour * (ended_ms - started_ms), MS_PER_HOUR)


def estimate_micro(rate_micro_per_hour: int, run_time_s: int) -> int:
    """What a run of `run_time_s` would cost."""
    return divide_half_even(rate_micro_per_hour * run_time_s, 3600)


def cny(micro: int) -> Decimal:
    """An amount in CNY with two places, rounded half-even to fen."""
    return Decimal(divide_half_even(micro, MICRO_PER_FEN)).scaleb(-2)


def micro(amount: Decimal) -> int:
    """Micro-CNY of an amount in CNY.  Raises ValueError when it has more than six places."""
    scaled = amount * MICRO
    if scaled != int(scaled):
        raise ValueError(f"{amount:f} CNY has more than six decimal places")
    return int(scaled)
