"""What ended runs cost: a metering row for each that was placed, and a bill line for what is to be paid.

What belongs here: writing both in the transaction that ends the run, and comparing with the center's own
record when that comes.  What does not: the rules (core.charges) and showing bills (bills.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlmodel import Session, col, select

from broker.core import localtime
from broker.core.charges import (
    Segment,
    center_spans,
    interrupted_by,
    metered_micro,
    own_span,
    segments,
    to_fen,
)
from broker.core.model import CenterId, JobId, Price, RemoteId, RunFacts, RunId
from broker.store import codec, purses
from broker.store.purses import Billing
from broker.store.writer import Tx
from broker.tables import Bill, Center, Job, Meter, Run

RUN, CORRECTION = "run", "correction"


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A metered run whose record at its center is still awaited."""

    run: RunId
    job: JobId
    center: CenterId
    remote: RemoteId
    nodes: int
    tries: int


@dataclass(frozen=True, slots=True)
class Metering:
    """What an ended run cost: as estimated when it was placed, by the broker's clock, and by the center's
    record where one has come.  `billed_micro` is the sum of its bill lines, None: it is not billed."""

    estimated_micro: int
    measured_micro: int
    center_micro: int | None
    billed_micro: int | None
    interrupted: str
    awaited: bool
    rates: tuple[Segment, ...]


def of_job(session: Session, job: str) -> dict[str, Metering]:
    """By run."""
    billed: dict[str, int] = {}
    for run, amount in session.exec(select(Bill.run_id, Bill.amount_micro).where(Bill.job_id == job)).all():
        billed[run] = billed.get(run, 0) + amount
    rows = session.exec(select(Meter).where(Meter.job_id == job)).all()
    return {
        row.run_id: Metering(
            estimated_micro=row.estimated_micro,
            measured_micro=row.measured_micro,
            center_micro=row.center_micro,
            billed_micro=billed.get(row.run_id),
            interrupted=row.interrupted,
            awaited=row.owed_next_ms is not None,
            rates=tuple(Segment(*rate) for rate in row.rates),
        )
        for row in rows
    }


def tariff_of(run: Any) -> tuple[Price, ...]:
    """The prices of the whole run, as they were when it was placed."""
    stated = tuple(codec.price_from_json(price) for price in run.tariff)
    return stated or (Price(run.rate_micro_per_hour),)


def spent(
    session: Session, runs: Sequence[Any], metered: Mapping[str, Metering], now_ms: int
) -> dict[str, int]:
    """What runs have cost, by id: as metered at their end, else up to now (or the end of an old one)."""
    minute = partial(localtime.minute_of_week, zone=purses.billing(session).zone)
    return {
        run.id: metered[run.id].measured_micro
        if run.id in metered
        else metered_micro(segments(tariff_of(run), run.started_ms, run.ended_ms or now_ms, minute))
        for run in runs
    }


def end(tx: Tx, job: Job, run: Run, facts: RunFacts) -> None:
    """Meter a run that ends in this transaction, and bill it."""
    if run.center_id is None:
        return
    billing = purses.billing(tx.session)
    span = own_span(facts, tx.now_ms)
    first, last = span or (None, None)
    minute = partial(localtime.minute_of_week, zone=billing.zone)
    stretches = segments(tariff_of(run), first, last, minute)
    interrupted = interrupted_by(facts)
    spec = codec.spec_from_json(run.spec)
    meter = Meter(
        run_id=run.id,
        job_id=job.id,
        account_id=job.account_id,
        tenant_id=job.tenant_id,
        center_id=run.center_id,
        spec_id=spec.id if spec is not None else "",
        nodes=run.nodes,
        started_ms=first,
        ended_ms=last,
        rates=[[s.start_ms, s.end_ms, s.micro_per_hour] for s in stretches],
        estimated_micro=int(run.placement.get("estimatedCostMicro", 0)),
        measured_micro=metered_micro(stretches),
        interrupted=interrupted,
        billed=span is not None and (billing.interrupted or not interrupted),
    )
    center = tx.session.get(Center, run.center_id)
    if span is not None and center is not None and center.traits.get("metering") and run.remote_id:
        meter.owed_next_ms = tx.now_ms
        tx.wake("reconcile")
    tx.session.add(meter)
    if meter.billed:
        _bill(tx, meter, RUN, to_fen(meter.measured_micro), billing)
    tx.session.flush()


def _bill(tx: Tx, meter: Meter, kind: str, amount_micro: int, billing: Billing) -> None:
    run = kind == RUN
    tx.session.add(
        Bill(
            id=meter.run_id if run else f"{meter.run_id}-c",
            kind=kind,
            run_id=meter.run_id,
            job_id=meter.job_id,
            account_id=meter.account_id,
            tenant_id=meter.tenant_id,
            center_id=meter.center_id,
            spec_id=meter.spec_id,
            nodes=meter.nodes,
            started_ms=meter.started_ms,
            ended_ms=meter.ended_ms,
            seconds=((meter.ended_ms or 0) - (meter.started_ms or 0)) // 1000 if run else 0,
            amount_micro=amount_micro,
            day=localtime.day(tx.now_ms, billing.zone),
            created_ms=tx.now_ms,
        )
    )
    purses.charge(tx, meter.tenant_id, amount_micro, billing.zone)
    tx.wake("desk")


# ---------------------------------------------------------------- the center's own record


def unmatched(session: Session, now_ms: int, limit: int) -> list[Unmatched]:
    """Metered runs whose center is to be asked for its record now."""
    query = (
        select(Meter, Run.remote_id)
        .join(Run, col(Run.id) == col(Meter.run_id))
        .where(col(Meter.owed_next_ms) <= now_ms)
        .order_by(col(Meter.owed_next_ms))
        .limit(limit)
    )
    return [
        Unmatched(
            run=RunId(meter.run_id),
            job=JobId(meter.job_id),
            center=CenterId(meter.center_id),
            remote=RemoteId(remote or ""),
            nodes=meter.nodes,
            tries=meter.owed_tries,
        )
        for meter, remote in session.exec(query).all()
    ]


def ask_again(tx: Tx, run: RunId, next_ms: int | None, *, epoch: int) -> None:
    """The record is not there yet; None: it is awaited no more.  Raises LostLease."""
    tx.fence(epoch)
    meter = tx.session.get_one(Meter, run, with_for_update=True)
    meter.owed_next_ms, meter.owed_tries = next_ms, meter.owed_tries + 1
    tx.session.add(meter)


def match(tx: Tx, run: RunId, spans: Sequence[tuple[int, int]], *, epoch: int) -> bool:
    """Compare a metered run with its center's record, a span for each node; False while one is missing.

    The bill is corrected by the difference, once, where the configuration says so.  Raises LostLease.
    """
    tx.fence(epoch)
    meter = tx.session.get_one(Meter, run, with_for_update=True)
    if meter.center_micro is not None:
        return True
    row = tx.session.get_one(Run, run)
    if row.started_ms is None or row.ended_ms is None:
        return False
    found = center_spans(spans, row.started_ms, row.ended_ms, meter.nodes)
    if found is None:
        return False
    billing = purses.billing(tx.session)
    minute = partial(localtime.minute_of_week, zone=billing.zone)
    of_node = [_share(price, meter.nodes) for price in tariff_of(row)]
    stretches = [each for span in found for each in segments(of_node, *span, minute)]
    meter.center_spans = [list(span) for span in found]
    meter.center_micro, meter.center_at_ms = metered_micro(stretches), tx.now_ms
    meter.owed_next_ms = None
    tx.session.add(meter)
    change = to_fen(meter.center_micro) - to_fen(meter.measured_micro)
    if meter.billed and billing.by_center and change:
        _bill(tx, meter, CORRECTION, change, billing)
        data = {"measuredMicro": meter.measured_micro, "centerMicro": meter.center_micro}
        tx.event("bill.corrected", job=meter.job_id, run=run, center=meter.center_id, data=data)
    return True


def _share(price: Price, nodes: int) -> Price:
    """A whole run's price as one of its nodes': it is a multiple of that."""
    return Price(price.micro_per_hour // nodes, price.days, price.start_min, price.end_min)
