"""When jobs were expected to start, and when they did.

What belongs here: keeping a job's first forecast, and how far such forecasts were off.  What does not:
making them (broker.core.forecast).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import delete
from sqlmodel import Session, col, select

from broker.core.forecast import Eta
from broker.core.model import JobId, JobState
from broker.store.rows import among, insert_rows
from broker.store.writer import Tx
from broker.tables import Forecast, Job, Run

COMPARED = 5000
"""Jobs that started last whose forecasts tell how good forecasts are."""


@dataclass(frozen=True, slots=True)
class ForecastError:
    """How far forecasts were off for `jobs` jobs that started at a center with a spec; "": at any.

    `median_s` is the median distance of the start from the p50, `p90_coverage` the share of jobs that
    had started by the p90: 0.9 is right; None where none of them had one.
    """

    center: str
    spec: str
    jobs: int
    median_s: float
    p90_coverage: float | None


def keep(tx: Tx, made: Mapping[JobId, Eta], at_ms: int, *, epoch: int) -> int:
    """Keep the forecasts of jobs that have none yet and still wait; returns how many.  Raises LostLease."""
    tx.fence(epoch)
    known = select(Forecast.job_id).where(col(Forecast.job_id) == col(Job.id)).exists()
    waiting = select(Job.id).where(Job.state == JobState.QUEUED.value).where(~known)
    connection = tx.session.connection()
    rows = [
        {"job_id": job, "at_ms": at_ms, "p50_s": made[JobId(job)].p50_s, "p90_s": made[JobId(job)].p90_s}
        for job in tx.session.exec(waiting.where(among(connection, col(Job.id), sorted(made)))).all()
    ]
    insert_rows(connection, (Forecast, rows))
    return len(rows)


def settle(tx: Tx, run: Run) -> None:
    """The job of a run has started: the first start is the one that was forecast."""
    row = tx.session.get(Forecast, run.job_id)
    if row is None or row.started_ms is not None:
        return
    row.started_ms = run.started_ms
    row.center_id, row.spec_id = run.center_id or "", run.spec.get("id", "")
    tx.session.add(row)


def errors(session: Session) -> list[ForecastError]:
    """Per center and spec, per spec, and over all, finest first."""
    query = (
        select(Forecast)
        .where(col(Forecast.started_ms).is_not(None))
        .order_by(col(Forecast.started_ms).desc())
        .limit(COMPARED)
    )
    groups: dict[tuple[str, str], list[Forecast]] = {}
    for row in session.exec(query).all():
        for group in ((row.center_id, row.spec_id), ("", row.spec_id), ("", "")):
            groups.setdefault(group, []).append(row)
    return [_error(center, spec, rows) for (center, spec), rows in sorted(groups.items(), reverse=True)]


def _error(center: str, spec: str, rows: list[Forecast]) -> ForecastError:
    waited = [max(0, (row.started_ms or 0) - row.at_ms) / 1000 for row in rows]
    off = [abs(after_s - row.p50_s) for after_s, row in zip(waited, rows, strict=True)]
    by_p90 = [
        after_s <= row.p90_s for after_s, row in zip(waited, rows, strict=True) if row.p90_s is not None
    ]
    return ForecastError(
        center=center,
        spec=spec,
        jobs=len(rows),
        median_s=round(statistics.median(off), 3),
        p90_coverage=round(sum(by_p90) / len(by_p90), 4) if by_p90 else None,
    )


def forget(tx: Tx, before_ms: int) -> int:
    """Forecasts made before a moment; returns how many."""
    old = delete(Forecast).where(col(Forecast.at_ms) < before_ms)
    return int(tx.session.execute(old).rowcount)  # type: ignore[attr-defined]
