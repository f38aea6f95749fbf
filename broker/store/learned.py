"""What ended runs have told, kept from run to run.

What belongs here: histories as rows, written in the transaction that ends a run.  What does not: what
they mean (broker.core.estimates).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete
from sqlmodel import Session, col, select

from broker.core.estimates import FORGOTTEN, HALF_LIFE_S, Histogram, History, keys, observation
from broker.core.model import JobRequest, RunFacts, TenantId
from broker.store.writer import Tx
from broker.tables import RunHistory

OVERLAP_MS = 60_000
"""A transaction takes its time when it begins, so what it writes may come to light that much later."""


def learn(tx: Tx, request: JobRequest, tenant: TenantId, run: RunFacts) -> None:
    """What a run that has just ended tells, under all its keys; one without an end of its own nothing."""
    seen = observation(run)
    if seen is None or request.endless:
        return
    new = seen.history(request)
    for key in keys(request, tenant):
        row = tx.session.get(RunHistory, key, with_for_update=True)
        known = new if row is None else _history(row).merged(new)
        if row is None:
            row = RunHistory(key=key)
        row.durations, row.ratios = _document(known.durations), _document(known.ratios)
        row.written_ms = tx.now_ms
        tx.session.add(row)


def histories(session: Session, since_ms: int = 0) -> list[tuple[str, History]]:
    """Histories that have changed since, a little of what came before included; 0: all."""
    query = select(RunHistory).where(col(RunHistory.written_ms) >= since_ms - OVERLAP_MS)
    return [(row.key, _history(row)) for row in session.exec(query).all()]


def forget(tx: Tx) -> int:
    """Histories too old to say anything; returns how many."""
    before_ms = tx.now_ms - FORGOTTEN * HALF_LIFE_S * 1000
    old = delete(RunHistory).where(col(RunHistory.written_ms) < before_ms)
    return int(tx.session.execute(old).rowcount)  # type: ignore[attr-defined]


def _history(row: RunHistory) -> History:
    return History(_histogram(row.durations), _histogram(row.ratios))


def _document(kept: Histogram) -> dict[str, Any]:
    """Weights to the fourth place; what is less has no say."""
    ended, beyond = (
        [[b, round(w, 4)] for b, w in sorted(weights.items()) if w >= 0.0001]
        for weights in (kept.ended, kept.beyond)
    )
    return {"ended": ended, "beyond": beyond, "at_ms": kept.at_ms}


def _histogram(document: dict[str, Any]) -> Histogram:
    if not document:
        return Histogram()
    ended, beyond = (dict(document[name]) for name in ("ended", "beyond"))
    return Histogram(ended, beyond, document["at_ms"])
