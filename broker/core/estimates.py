"""How long runs hold their capacity, learned from those before them.

What belongs here: what an ended run tells, histograms of it under keys from fine to coarse, and the
run time that jobs of a class are expected to have.  What does not: keeping histograms (broker.store)
and what is planned with them (core/snapshot.py, core/forecast.py, policies).

What is learned is how long a run holds what it holds, so a run counts as ended when it succeeded, when
its own command failed and when its owner stopped it: habits of stopping early belong to it.  A run that
the broker or its center cut short (preemption, recall, run time limit, eviction, a dead machine) would
have gone on: it only tells "at least so long", as does a run that still runs.  Both are taken into
account as Kaplan and Meier do (product-limit estimator).

Of a job that states an estimate its tenant's ratio of real to stated run time is learned, of one that
states none the run time.  Of online services nothing is learned: what ends them is no habit of theirs.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from broker.core.model import (
    Claim,
    FailureKind,
    JobRequest,
    RunFacts,
    RunState,
    RunTime,
    StopReason,
    TenantId,
)

STEPS = 4
"""Bins per doubling, which is also the grid that learned run times are rounded to: 19 per cent apart."""

HALF_LIFE_S = 14 * 86_400
"""Seconds after which a run counts half: habits change."""

LEAST = 4.5
"""Ended runs, with their age counted, without which a key says nothing and the next coarser one speaks:
five of the last days."""

FORGOTTEN = 8
"""Half-lives after which a key that nothing was added to is forgotten: it can say nothing any more."""

FURTHEST = 30 * STEPS
"""Bins from 1 in either direction that are told apart: 2^30 seconds, or a ratio of that."""


_SLACK = 1e-9  # of sums of floats


# ---------------------------------------------------------------- a histogram


def bin_of(value: float) -> int:
    """The bin of a positive value; what is out of reach is in the last one."""
    at = math.floor(STEPS * math.log2(value)) if value > 0 else -FURTHEST
    return max(-FURTHEST, min(FURTHEST, at))


def _rounded(value: float) -> float:
    """`value` on the grid of the bins, so that what rests on it does not change with every run."""
    return float(2.0 ** (round(STEPS * math.log2(value)) / STEPS))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Weights of values by bin, as they were at `at_ms`; they are halved every HALF_LIFE_S.

    `ended` are values that were seen to their end, `beyond` those that are at least so large.
    """

    ended: Mapping[int, float] = field(default_factory=dict)
    beyond: Mapping[int, float] = field(default_factory=dict)
    at_ms: int = 0

    @property
    def weight(self) -> float:
        """How many values were seen to their end, their age counted."""
        return sum(self.ended.values())

    def seen(self, value: float, at_ms: int, *, ended: bool) -> Histogram:
        """With one more value."""
        one = {bin_of(value): 1.0}
        return self.merged(Histogram(one if ended else {}, {} if ended else one, at_ms))

    def merged(self, other: Histogram) -> Histogram:
        """Both together, as of the later moment; the order does not matter."""
        at_ms = max(self.at_ms, other.at_ms)
        one, two = self.aged(at_ms), other.aged(at_ms)
        return Histogram(_sum(one.ended, two.ended), _sum(one.beyond, two.beyond), at_ms)

    def aged(self, at_ms: int) -> Histogram:
        """As it is at a later moment."""
        if at_ms <= self.at_ms or not (self.ended or self.beyond):
            return self
        left = 0.5 ** ((at_ms - self.at_ms) / 1000 / HALF_LIFE_S)
        ended, beyond = ({b: w * left for b, w in kept.items()} for kept in (self.ended, self.beyond))
        return Histogram(ended, beyond, at_ms)

    def quantile(self, q: float) -> float | None:
        """The value that a share `q` of all do not exceed; None without a value.

        Where too many are only known to be larger, the largest that was seen, ended or not.
        """
        bins = sorted({*self.ended, *self.beyond})
        at_risk = self.weight + sum(self.beyond.values())
        if not bins or at_risk <= 0:
            return None
        surviving = 1.0
        for at in bins:
            ends = self.ended.get(at, 0.0)
            after = surviving * max(0.0, 1 - ends / at_risk) if at_risk > 0 else 0.0
            if after < surviving and 1 - after >= q - _SLACK:
                part = (q - (1 - surviving)) / (surviving - after)
                return float(2.0 ** ((at + min(1.0, max(0.0, part))) / STEPS))
            surviving = after
            at_risk -= ends + self.beyond.get(at, 0.0)
        return float(2.0 ** ((bins[-1] + 1) / STEPS))


def _sum(one: Mapping[int, float], two: Mapping[int, float]) -> dict[int, float]:
    return {b: one.get(b, 0.0) + two.get(b, 0.0) for b in sorted({*one, *two})}


@dataclass(frozen=True, slots=True)
class History:
    """What is known under one key: run times in seconds, and ratios of real to stated ones."""

    durations: Histogram = Histogram()
    ratios: Histogram = Histogram()

    def merged(self, other: History) -> History:
        return History(self.durations.merged(other.durations), self.ratios.merged(other.ratios))

    @property
    def at_ms(self) -> int:
        """When something was added last."""
        return max(self.durations.at_ms, self.ratios.at_ms)


# ---------------------------------------------------------------- what runs tell


@dataclass(frozen=True, slots=True)
class Observation:
    """A run's time; `ended` is False when it was cut short or still runs."""

    ran_s: float
    at_ms: int
    ended: bool

    def history(self, request: JobRequest) -> History:
        """This one run as a history, under each of its keys."""
        ran_s, stated_s = max(1.0, self.ran_s), request.estimated_run_time_s
        none = Histogram()
        return History(
            durations=none.seen(ran_s, self.at_ms, ended=self.ended),
            ratios=none if not stated_s else none.seen(ran_s / stated_s, self.at_ms, ended=self.ended),
        )


_CUT_SHORT = frozenset(
    {FailureKind.EVICTED, FailureKind.HOST, FailureKind.LOST, FailureKind.DEADLINE, FailureKind.NO_CAPACITY}
)
_STOPPED_BY_US = frozenset({StopReason.PREEMPT, StopReason.RECALL, StopReason.DEADLINE})


def observation(run: RunFacts) -> Observation | None:
    """What an ended run tells; None when it never ran or nobody knows how long."""
    if run.state.live or run.started_ms is None or run.ended_ms is None:
        return None
    cut_short = (
        run.state is RunState.ABANDONED
        or run.failure in _CUT_SHORT
        or (run.state is RunState.STOPPED and run.stop is not None and run.stop.reason in _STOPPED_BY_US)
    )
    ran_s = max(0, run.ended_ms - run.started_ms) / 1000
    return Observation(ran_s=ran_s, at_ms=run.ended_ms, ended=not cut_short)


OF_TENANT = 3
"""The first so many keys are a tenant's own; only they tell how far its estimates are off."""


def keys(request: JobRequest, tenant: TenantId) -> tuple[str, ...]:
    """The keys of jobs, finest first.

    All of a class of jobs (core/problem.py: class_key) have the same, so a class has one run time.
    """
    kind = request.kind.value
    what = request.spec.id if request.spec is not None else f">={request.min_gflops}"
    image = request.image_id or ("url" if request.image_url else "")
    stated = request.estimated_run_time_s
    band = 0 if stated is None else stated.bit_length()
    finest_first: tuple[tuple[object, ...], ...] = (
        ("class", kind, tenant, what, request.nodes, image, band, request.max_run_time_s or 0),
        ("shape", kind, tenant, what, request.nodes),
        ("tenant", kind, tenant),
        ("spec", kind, what),
        ("all", kind),
    )
    return tuple(json.dumps(key, ensure_ascii=False, separators=(",", ":")) for key in finest_first)


class RunTimes:
    """Histories by key, and what they say of a class; answers are kept until a key has news.

    `running` is to be called now and then, since what is known ages.
    """

    def __init__(self, histories: Iterable[tuple[str, History]] = ()) -> None:
        self._histories = dict(histories)
        self._running: dict[str, History] = {}
        self._said: dict[tuple[str, bool], tuple[float, float] | None] = {}
        self._now_ms = 0

    def put(self, key: str, history: History) -> None:
        """What is kept elsewhere has changed."""
        self._histories[key] = history
        self._forget_said(key)

    def see(self, request: JobRequest, tenant: TenantId, seen: Observation) -> None:
        """One run, under all its keys."""
        new = seen.history(request)
        for key in keys(request, tenant):
            self.put(key, self._histories.get(key, History()).merged(new))

    def running(self, claims: Iterable[Claim], now_ms: int) -> None:
        """What it is now, and the runs that run: each takes at least as long as it has."""
        durations: dict[str, Counter[int]] = {}
        ratios: dict[str, Counter[int]] = {}
        keys_of: dict[tuple[str, TenantId], tuple[str, ...]] = {}
        for claim in claims:
            if claim.request is None or claim.request.endless:
                continue
            if claim.started_ms is None or claim.started_ms >= now_ms:
                continue
            ran_s, stated_s = (now_ms - claim.started_ms) / 1000, claim.request.estimated_run_time_s
            mine = (claim.class_key or claim.run, claim.tenant)
            if mine not in keys_of:
                keys_of[mine] = keys(claim.request, claim.tenant)
            for key in keys_of[mine]:
                durations.setdefault(key, Counter())[bin_of(max(1.0, ran_s))] += 1
                if stated_s:
                    ratios.setdefault(key, Counter())[bin_of(max(1.0, ran_s) / stated_s)] += 1
        self._running = {
            key: History(_at_least(beyond, now_ms), _at_least(ratios.get(key, {}), now_ms))
            for key, beyond in durations.items()
        }
        self._now_ms = now_ms
        self._said.clear()

    def forget(self, before_ms: int) -> None:
        """Keys that nothing was added to since."""
        for key in [key for key, known in self._histories.items() if known.at_ms < before_ms]:
            del self._histories[key]
            self._forget_said(key)

    def of(self, request: JobRequest, tenant: TenantId) -> RunTime | None:
        """What runs of such jobs take, by the finest key that knows enough; None where none does.

        A stated estimate is corrected by the tenant's own ratio and stands where that is not known.
        """
        if request.endless:
            return None
        stated_s = request.estimated_run_time_s
        mine = keys(request, tenant)
        for key in mine[:OF_TENANT] if stated_s else mine:
            if (said := self._says(key, ratio=bool(stated_s))) is not None:
                p50, p90 = (min(quantile * (stated_s or 1), 2.0**30) for quantile in said)
                return _limited(max(1, round(p50)), max(1, round(p90)), request.max_run_time_s)
        return None

    def _says(self, key: str, *, ratio: bool) -> tuple[float, float] | None:
        """(p50, p90) of a key, rounded; None when it has seen too little."""
        if (key, ratio) not in self._said:
            self._said[key, ratio] = self._asked(key, ratio=ratio)
        return self._said[key, ratio]

    def _asked(self, key: str, *, ratio: bool) -> tuple[float, float] | None:
        ended, running = self._histories.get(key), self._running.get(key)
        if ended is None:
            return None
        known = ended if running is None else ended.merged(running)
        histogram = (known.ratios if ratio else known.durations).aged(self._now_ms)
        p50, p90 = histogram.quantile(0.5), histogram.quantile(0.9)
        if histogram.weight < LEAST or p50 is None or p90 is None:
            return None
        return _rounded(p50), _rounded(p90)

    def _forget_said(self, key: str) -> None:
        self._said.pop((key, False), None)
        self._said.pop((key, True), None)


def _at_least(beyond: Mapping[int, int], now_ms: int) -> Histogram:
    return Histogram({}, {b: float(count) for b, count in beyond.items()}, now_ms)


def _limited(p50_s: int, p90_s: int, limit_s: int | None) -> RunTime:
    """Nothing runs beyond its limit."""
    return RunTime(p50_s, p90_s) if limit_s is None else RunTime(min(p50_s, limit_s), min(p90_s, limit_s))
