"""What is told of a simulation: its figures, the table and the JSON document.

What belongs here: definitions of the figures and their texts.  What does not: the page
(broker.simulate.html) and the simulation itself.

Definitions.  A job's wait is all its time in the queue, also after a preemption; its completion is
the time from submission to its end.  Both are of finished jobs.  The span goes from the first
submission to the last end; utilisation is card-seconds held in it over all card-seconds of it, and
allocation the same of the time in which a job waits that starts later.  A tenant's service is its
jobs' true run time over their completion; Jain's index is of these.  A round's gap is how far the
plan may be above the optimum, as a share of the plan's objective, which counts as at least one CNY:
where runs are free, it is all but nothing once nobody waits.  The estimate's error is the factor
between planned and true run time, whichever is larger over the other; the forecast's is the time
between the expected and the true start of jobs that their first round left waiting.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from broker.core.charges import cny
from broker.core.model import MICRO
from broker.simulate import JobRecord, Order, Outcome


@dataclass(frozen=True, slots=True)
class Group:
    """Figures of some jobs; waits and completion are seconds, None without a finished job."""

    name: str
    jobs: int
    finished: int
    wait_mean_s: float | None
    wait_p99_s: int | None
    wait_max_s: int | None
    completion_mean_s: float | None
    accelerator_hours: float
    utilisation: float | None  # of a center
    service: float | None  # of a tenant with a finished job

    def document(self) -> dict[str, Any]:
        shown = {
            "jobs": self.jobs,
            "finished": self.finished,
            "waitMeanS": self.wait_mean_s,
            "waitP99S": self.wait_p99_s,
            "waitMaxS": self.wait_max_s,
            "completionMeanS": self.completion_mean_s,
            "acceleratorHours": self.accelerator_hours,
        }
        shares = {"utilisation": self.utilisation, "service": self.service}
        return shown | {name: share for name, share in shares.items() if share is not None}


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of an outcome."""

    label: str
    notes: tuple[str, ...]
    overall: Group
    wait_p50_s: int | None
    utilisation: float
    allocation: float | None  # None where nobody waits
    span_s: tuple[int, int]
    preemptions: int
    lost_hours: float
    cost_micro: int
    rounds: int
    gap_median: float | None
    gap_worst: float | None
    round_p99_ms: float | None
    wall_s: float
    jain: float | None
    measured: bool
    estimate_factor_p50: float | None
    forecasts: int
    forecast_error_p50_s: float | None
    forecast_p90_coverage: float | None
    centers: tuple[Group, ...]
    tenants: tuple[Group, ...]

    def document(self) -> dict[str, Any]:
        """What `--json` prints; how good estimates and forecasts were only where that was asked for."""
        measured = {
            "estimateFactorP50": self.estimate_factor_p50,
            "forecasts": self.forecasts,
            "forecastErrorP50S": self.forecast_error_p50_s,
            "forecastP90Coverage": self.forecast_p90_coverage,
        }
        return {
            "jobs": self.overall.jobs,
            "finished": self.overall.finished,
            "waitMeanS": self.overall.wait_mean_s,
            "waitP50S": self.wait_p50_s,
            "waitP99S": self.overall.wait_p99_s,
            "completionMeanS": self.overall.completion_mean_s,
            "utilisation": self.utilisation,
            "allocation": self.allocation,
            "preemptions": self.preemptions,
            "lostAcceleratorHours": self.lost_hours,
            "costCny": str(cny(self.cost_micro)),
            "fairness": self.jain,
            "rounds": self.rounds,
            "gapMedian": self.gap_median,
            "gapWorst": self.gap_worst,
            "roundP99Ms": self.round_p99_ms,
            "wallS": self.wall_s,
            **(measured if self.measured else {}),
            "perCenter": {group.name: group.document() for group in self.centers},
            "perTenant": {group.name: group.document() for group in self.tenants},
        }


def percentile(values: Sequence[float], per_cent: int) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * per_cent / 100) - 1)] if ordered else None


def report(outcome: Outcome) -> Report:
    """The figures of an outcome."""
    done = [record for record in outcome.jobs if record.end_s is not None]
    first_s = min(record.job.submit_s for record in outcome.jobs)
    last_s = max((record.end_s or 0 for record in done), default=first_s)
    waits = [record.waited_s for record in done]
    tenants = _tenants(outcome)
    factor = percentile(estimate_factors(outcome.jobs), 50)
    off, covered = forecast_errors(outcome.jobs)
    services = [group.service for group in tenants if group.service is not None]
    seconds = outcome.rounds.seconds
    p50, p99 = percentile(waits, 50), percentile(seconds, 99)
    lost = sum(r.lost_s * r.job.cards * r.job.nodes for r in outcome.jobs) / 3600
    return Report(
        label=label(outcome),
        notes=_notes(outcome),
        overall=_group("all", outcome.jobs, hours=_hours(outcome, None)),
        wait_p50_s=None if p50 is None else int(p50),
        utilisation=_share(_hours(outcome, None) * 3600, sum(outcome.cards.values()) * (last_s - first_s)),
        allocation=_allocation(outcome),
        span_s=(first_s, last_s),
        preemptions=sum(record.preemptions for record in outcome.jobs),
        lost_hours=round(lost, 3),
        cost_micro=sum(segment.cost_micro for segment in outcome.segments),
        rounds=len(seconds),
        gap_median=statistics.median(outcome.rounds.gaps) if outcome.rounds.gaps else None,
        gap_worst=max(outcome.rounds.gaps, default=None),
        round_p99_ms=None if p99 is None else round(p99 * 1000, 3),
        wall_s=round(outcome.wall_s, 3),
        jain=_jain(services),
        measured=outcome.settings.learn or outcome.settings.forecast,
        estimate_factor_p50=None if factor is None else round(factor, 3),
        forecasts=len(off),
        forecast_error_p50_s=percentile(off, 50),
        forecast_p90_coverage=round(statistics.fmean(covered), 4) if covered else None,
        centers=_centers(outcome, last_s - first_s),
        tenants=tenants,
    )


def estimate_factors(records: Sequence[JobRecord]) -> list[float]:
    """How far off the run time was that each job was planned with at its first start, in their order."""
    known = [(r.planned_s, r.job.duration_s) for r in records if r.planned_s and r.job.duration_s]
    return [max(planned / true, true / planned) for planned, true in known]


def forecast_errors(records: Sequence[JobRecord]) -> tuple[list[int], list[bool]]:
    """Seconds between forecast and start, and whether a job had started by the p90 where there was one."""
    off, covered = [], []
    for record in records:
        if record.forecast is not None and record.queue:
            waited_s = record.queue[0][1] - record.forecast_s
            off.append(abs(waited_s - record.forecast.p50_s))
            if record.forecast.p90_s is not None:
                covered.append(waited_s <= record.forecast.p90_s)
    return off, covered


def label(outcome: Outcome) -> str:
    """The rule and what it knew, in words: no figure is told without it."""
    chosen = outcome.settings
    where = "jobs stay home" if chosen.stays_home else "pooled"
    if chosen.order is Order.FIFO:
        return f"fifo, {where}"
    known = f"noisy estimates (log-normal, spread {chosen.noise:g}, seed {chosen.seed})"
    known = "learned run times" if chosen.learn else "oracle: true run times" if chosen.oracle else known
    return f"{chosen.order}, {where}, {known}"


def _notes(outcome: Outcome) -> tuple[str, ...]:
    """What a reader must know before believing the figures."""
    notes = []
    if shares := sum(record.job.fraction is not None for record in outcome.jobs):
        notes.append(f"{shares} jobs ask for a share of a card and are given the whole card")
    waiting = [record for record in outcome.jobs if record.end_s is None]
    if waiting:
        why = ", ".join(f"{word} {count}" for word, count in sorted(outcome.reasons.items()))
        notes.append(f"{len(waiting)} jobs never started (the first is {waiting[0].job.id}): {why}")
    if outcome.refused:
        notes.append(f"{outcome.refused} placements found the center's free cards on too many nodes")
    return tuple(notes)


# ---------------------------------------------------------------- groups


def _group(
    name: str,
    records: Sequence[JobRecord],
    *,
    hours: float,
    utilisation: float | None = None,
    service: float | None = None,
) -> Group:
    done = [(r.waited_s, r.end_s - r.job.submit_s) for r in records if r.end_s is not None]
    waits = [wait for wait, _ in done]
    p99 = percentile(waits, 99)
    return Group(
        name=name,
        jobs=len(records),
        finished=len(done),
        wait_mean_s=round(statistics.fmean(waits), 3) if done else None,
        wait_p99_s=None if p99 is None else int(p99),
        wait_max_s=max(waits, default=None),
        completion_mean_s=round(statistics.fmean(c for _, c in done), 3) if done else None,
        accelerator_hours=round(hours, 3),
        utilisation=utilisation,
        service=service,
    )


def _centers(outcome: Outcome, span_s: int) -> tuple[Group, ...]:
    """Per center: the jobs that ran there last."""
    groups = []
    for center, cards in sorted(outcome.cards.items()):
        hours = _hours(outcome, center)
        records = [record for record in outcome.jobs if record.center == center]
        groups.append(_group(center, records, hours=hours, utilisation=_share(hours * 3600, cards * span_s)))
    return tuple(groups)


def _tenants(outcome: Outcome) -> tuple[Group, ...]:
    by_tenant: dict[str, list[JobRecord]] = {}
    for record in outcome.jobs:
        by_tenant.setdefault(record.job.tenant, []).append(record)
    held: dict[str, float] = {}
    tenant_of = {record.job.id: record.job.tenant for record in outcome.jobs}
    for segment in outcome.segments:
        tenant = tenant_of[segment.job]
        held[tenant] = held.get(tenant, 0) + segment.cards * (segment.end_s - segment.start_s) / 3600
    groups = []
    for tenant, records in sorted(by_tenant.items()):
        done = [(r.job.duration_s, r.end_s - r.job.submit_s) for r in records if r.end_s is not None]
        service = sum(run for run, _ in done) / sum(took for _, took in done) if done else None
        groups.append(_group(tenant, records, hours=held.get(tenant, 0.0), service=service))
    return tuple(groups)


def _hours(outcome: Outcome, center: str | None) -> float:
    """Accelerator-hours held at a center, or at all."""
    held = [s for s in outcome.segments if center is None or s.center == center]
    return sum(s.cards * (s.end_s - s.start_s) for s in held) / 3600


def _jain(shares: Sequence[float]) -> float | None:
    """1 where all have the same, one over their number where one has everything."""
    squares = len(shares) * sum(share * share for share in shares)
    return round(sum(shares) ** 2 / squares, 6) if squares else None


def _allocation(outcome: Outcome) -> float | None:
    """Share of cards that are held while a job waits that starts later."""
    merged: list[list[int]] = []  # times in which somebody waits, apart from each other
    for since, to in sorted(times for record in outcome.jobs for times in record.queue):
        if merged and since <= merged[-1][1]:
            merged[-1][1] = max(to, merged[-1][1])
        else:
            merged.append([since, to])
    starts = [since for since, _ in merged]
    before = [0, *accumulate(to - since for since, to in merged)]

    def waited_until(at_s: int) -> int:
        last = bisect_right(starts, at_s) - 1
        return 0 if last < 0 else before[last] + min(at_s, merged[last][1]) - merged[last][0]

    held = sum(s.cards * (waited_until(s.end_s) - waited_until(s.start_s)) for s in outcome.segments)
    whole = sum(outcome.cards.values()) * before[-1]
    return _share(held, whole) if whole else None


def _share(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0


# ---------------------------------------------------------------- the table


def figures(told: Report) -> list[tuple[str, str]]:
    """The overall figures as (name, text)."""
    everyone = told.overall
    rows = [
        ("jobs finished", f"{everyone.finished} of {everyone.jobs}"),
        ("mean wait", _seconds(everyone.wait_mean_s)),
        ("median wait", _seconds(told.wait_p50_s)),
        ("P99 wait", _seconds(everyone.wait_p99_s)),
        ("longest wait", _seconds(everyone.wait_max_s)),
        ("mean completion", _seconds(everyone.completion_mean_s)),
        ("utilisation", f"{told.utilisation:.2%}"),
        ("allocation while jobs wait", "-" if told.allocation is None else f"{told.allocation:.2%}"),
        ("fairness (Jain, tenants)", "-" if told.jain is None else f"{told.jain:.4f}"),
        ("preemptions", str(told.preemptions)),
        ("lost accelerator-hours", f"{told.lost_hours:,.1f}"),
        ("cost", f"{cny(told.cost_micro):,} CNY" if told.cost_micro >= MICRO // 200 else "0 CNY"),
    ]
    if told.rounds:
        rows += [
            ("rounds", f"{told.rounds:,}"),
            ("gap, median / worst", f"{_per_cent(told.gap_median)} / {_per_cent(told.gap_worst)}"),
            ("round P99", f"{told.round_p99_ms:,.1f} ms"),
        ]
    if told.measured and told.estimate_factor_p50 is not None:
        rows.append(("estimate off by, median", f"factor {told.estimate_factor_p50:,.2f}"))
    if told.forecasts:
        rows += [
            ("jobs forecast", f"{told.forecasts:,}"),
            ("forecast off by, median", _seconds(told.forecast_error_p50_s)),
            ("started by the p90", _per_cent(told.forecast_p90_coverage)),
        ]
    return [*rows, ("wall time", f"{told.wall_s:,.1f} s")]


GROUP_HEADER = ("jobs", "mean wait", "P99 wait", "longest wait", "accelerator-hours")
CENTER_HEADER = ("center", *GROUP_HEADER, "utilisation")
TENANT_HEADER = ("tenant", *GROUP_HEADER, "service")


def group_cells(group: Group) -> tuple[str, ...]:
    """The figures of a center or a tenant, under its header; the first is the name."""
    share = group.service if group.utilisation is None else group.utilisation
    return (
        group.name,
        f"{group.jobs:,}",
        _seconds(group.wait_mean_s),
        _seconds(group.wait_p99_s),
        _seconds(group.wait_max_s),
        f"{group.accelerator_hours:,.1f}",
        f"{share:.2%}" if share is not None else "-",
    )


def table(told: Report) -> str:
    """The report for a terminal."""
    lines = [told.label, *(f"note: {note}" for note in told.notes), ""]
    lines += [f"{name:<26}{text:>20}" for name, text in figures(told)]
    for header, groups in ((CENTER_HEADER, told.centers), (TENANT_HEADER, told.tenants)):
        cells = [header, *map(group_cells, groups)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines.append("")
        for first, *others in cells:
            padded = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
            lines.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} s"


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{value:.4%}"
