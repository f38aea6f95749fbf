"""Money: what a run costs by the clock, who pays for it, and how amounts are written.

What belongs here: rules and arithmetic of prices over time, bill lines and what a tenant has left.
What does not: prices of pools (core/resources.py) and rows (broker.store).

Amounts are int64 micro-CNY and are rounded half-even to fen (0.01 CNY) once, when shown or billed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from broker.core.model import MICRO, FailureKind, Price, RunFacts, RunState, StopReason
from broker.core.resources import price_at

MICRO_PER_FEN = MICRO // 100
MS_PER_HOUR = 3_600_000
MS_PER_MIN = 60_000

CLOCK_SLACK_MS = 600_000
"""A center's records of a run may say that it started so much earlier and ended so much later than the
center has shown."""


def divide_half_even(value: int, by: int) -> int:
    """`value` / `by` rounded to the nearest integer, ties to even."""
    quotient, rest = divmod(value, by)
    twice = 2 * rest
    return quotient + (twice > by or (twice == by and quotient % 2 == 1))


def estimate_micro(rate_micro_per_hour: int, run_time_s: int) -> int:
    """What a run of `run_time_s` would cost."""
    return divide_half_even(rate_micro_per_hour * run_time_s, 3600)


def cny(micro: int) -> Decimal:
    """An amount in CNY with two places, rounded half-even to fen."""
    return Decimal(divide_half_even(micro, MICRO_PER_FEN)).scaleb(-2)


def to_fen(micro: int) -> int:
    """The amount rounded half-even to whole fen, in micro-CNY: what one bill line says."""
    return divide_half_even(micro, MICRO_PER_FEN) * MICRO_PER_FEN


def micro(amount: Decimal) -> int:
    """Micro-CNY of an amount in CNY.  Raises ValueError when it has more than six places."""
    scaled = amount * MICRO
    if scaled != int(scaled):
        raise ValueError(f"{amount:f} CNY has more than six decimal places")
    return int(scaled)


# ---------------------------------------------------------------- by the clock


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time at one price: [start_ms, end_ms), and micro-CNY per hour."""

    start_ms: int
    end_ms: int
    micro_per_hour: int


def segments(
    tariff: Sequence[Price], start_ms: int | None, end_ms: int | None, minute_of_week: Callable[[int], int]
) -> tuple[Segment, ...]:
    """The prices that were in force between two moments, one stretch after the other.

    `minute_of_week` gives the local minute of a moment (Monday 00:00 is 0).  Where the moments are
    missing or in the wrong order there is nothing; without a tariff the price is 0.
    """
    if start_ms is None or end_ms is None or end_ms <= start_ms:
        return ()
    # Prices change at the edges of windows; every hour is looked at, because local clocks may be set.
    edges = sorted({edge for p in tariff for edge in (p.start_min, p.end_min)} | {h * 60 for h in range(25)})
    windowed = len(tariff) != 1 or tariff[0] != Price(tariff[0].micro_per_hour)
    found: list[Segment] = []
    at = start_ms
    while at < end_ms:
        minute = minute_of_week(at)
        until = end_ms
        if windowed and tariff:
            ahead = next(edge for edge in edges if edge > minute % 1440) - minute % 1440
            until = min(end_ms, at - at % MS_PER_MIN + ahead * MS_PER_MIN)
        rate = price_at(tariff, minute) or 0
        if found and found[-1].micro_per_hour == rate:
            found[-1] = Segment(found[-1].start_ms, until, rate)
        else:
            found.append(Segment(at, until, rate))
        at = until
    return tuple(found)


def metered_micro(stretches: Sequence[Segment]) -> int:
    """What stretches of time cost together."""
    exact = sum(s.micro_per_hour * (s.end_ms - s.start_ms) for s in stretches)
    return divide_half_even(exact, MS_PER_HOUR)


def own_span(run: RunFacts, seen_ms: int) -> tuple[int, int] | None:
    """When a run was running, by the clock of the broker, which saw its end at `seen_ms`; None: never.

    Of a center's word on start and end the length counts, up to the time from submission to `seen_ms`:
    a span that is not inside that time is moved into it, because the center's clock is wrong.
    """
    if run.started_ms is None or run.ended_ms is None:
        return None
    earliest = run.started_ms if run.submitted_ms is None else run.submitted_ms
    length = min(run.ended_ms - run.started_ms, seen_ms - earliest)
    if length <= 0:
        return None
    start = max(earliest, min(run.started_ms, seen_ms - length))
    return start, start + length


def center_spans(
    spans: Sequence[tuple[int, int]], started_ms: int, ended_ms: int, nodes: int
) -> tuple[tuple[int, int], ...] | None:
    """A center's own record of a run, a span of time for each node it had; None while one is missing.

    What is not of this life of the run's name at the center, from `started_ms` to `ended_ms` by the
    center's clock, is cut off.
    """
    first, last = started_ms - CLOCK_SLACK_MS, ended_ms + CLOCK_SLACK_MS
    cut = [(max(start, first), min(end, last)) for start, end in spans]
    found = tuple((start, end) for start, end in cut if start < end)
    return found if len(found) >= nodes else None


# ---------------------------------------------------------------- who pays

_NOT_THE_JOBS = frozenset(
    {
        FailureKind.NEVER_ARRIVED,
        FailureKind.NO_CAPACITY,
        FailureKind.REFUSED,
        FailureKind.DENIED,
        FailureKind.EVICTED,
        FailureKind.HOST,
        FailureKind.LOST,
    }
)
_BY_BROKER = frozenset({StopReason.PREEMPT, StopReason.RECALL})


def interrupted_by(run: RunFacts) -> str:
    """Who ended a run that did not end by itself or by its owner's word: why it is not billed unless the
    configuration says so.  "": it is billed."""
    if run.state is RunState.SUCCEEDED:
        return ""
    if run.failure in _NOT_THE_JOBS:
        return run.failure.value
    if run.state is RunState.ABANDONED:
        return FailureKind.LOST.value
    if run.stop is not None:
        return run.stop.reason.value if run.stop.reason in _BY_BROKER else ""
    return "stopped at the center" if run.state is RunState.STOPPED else ""


# ---------------------------------------------------------------- what is left


@dataclass(frozen=True, slots=True)
class Purse:
    """What a tenant may spend and has spent, micro-CNY.

    `spent_micro` is all that was ever billed, `month_micro` what was billed in `month` ("2026-11").
    Without `budget_micro` there is no budget; one per month counts `month_micro`, another what was
    billed since it was set (`base_micro` was spent before).  Without `balance_micro` nothing is prepaid.
    """

    spent_micro: int = 0
    month: str = ""
    month_micro: int = 0
    budget_micro: int | None = None
    per_month: bool = False
    base_micro: int = 0
    balance_micro: int | None = None

    def budget_spent(self, month: str) -> int:
        """What counts against the budget in this month."""
        if self.per_month:
            return self.month_micro if self.month == month else 0
        return self.spent_micro - self.base_micro

    def left(self, month: str) -> int | None:
        """What may still be spent: the less of budget and balance, below 0 when more was; None: any sum."""
        found = [] if self.balance_micro is None else [self.balance_micro]
        if self.budget_micro is not None:
            found.append(self.budget_micro - self.budget_spent(month))
        return min(found, default=None)
