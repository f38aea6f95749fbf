"""Prices, bills, budgets and what a job has cost, as the objects of the wire.

What belongs here: names and shapes; amounts are decimal text in CNY.  What does not: reading the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from broker.api import wire
from broker.api.times import written
from broker.api.wire import money, price
from broker.core.model import Price
from broker.store.bills import BillSum, BillView
from broker.store.jobs import JobView, RunView
from broker.store.meters import Metering
from broker.store.purses import Entry, PurseView

if TYPE_CHECKING:
    from broker.api.prices import Offer

CURRENCY = "CNY"
UNIT = "nodeHour"
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


# ---------------------------------------------------------------- prices


def offer(one: Offer) -> dict[str, Any]:
    """A spec's price at a center: now, and by windows of the day."""
    return {
        "centerId": one.center,
        "resourceSpecId": one.spec.id,
        "resourceSpecName": one.spec.name,
        "unitPrice": price(one.micro_per_hour or 0),
        "currency": CURRENCY,
        "unit": UNIT,
        "stated": one.micro_per_hour is not None,
        "windows": [_window(each) for each in one.tariff],
        "pools": list(one.pools),
    }


def _window(one: Price) -> dict[str, Any]:
    return {
        "days": [DAYS[day] for day in sorted(one.days)],
        "from": _clock(one.start_min),
        "to": _clock(one.end_min),
        "unitPrice": price(one.micro_per_hour),
    }


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def spec_price(one: Offer) -> dict[str, Any]:
    """The cheapest price of a spec, as its `price`."""
    return {
        "unitPrice": price(one.micro_per_hour or 0),
        "currency": CURRENCY,
        "unit": UNIT,
        "centerId": one.center,
    }


# ---------------------------------------------------------------- bills


def bill(one: BillView, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "billId": one.id,
        "kind": one.kind,
        "jobId": one.job,
        "jobName": one.job_name,
        "taskId": one.run,
        "userId": one.account,
        "userName": one.account_name,
        "tenant": one.tenant,
        "centerId": one.center,
        "resourceSpecId": one.spec,
        "nodeCount": one.nodes,
        "startTime": written(one.started_ms, zone),
        "finishTime": written(one.ended_ms, zone),
        "seconds": one.seconds,
        "amount": money(one.amount_micro),
        "currency": CURRENCY,
        "createTime": written(one.created_ms, zone),
        "createTimeMs": one.created_ms,
    }


def bill_sum(one: BillSum) -> dict[str, Any]:
    return {
        "key": one.key,
        "name": one.name,
        "lines": one.lines,
        "runs": one.runs,
        "seconds": one.seconds,
        "amount": money(one.amount_micro),
    }


# ---------------------------------------------------------------- budgets and balances


def balance(view: PurseView) -> dict[str, Any]:
    """What a tenant may spend; `left` and the parts that are not set are null: no limit."""
    purse, month = view.purse, view.month
    left = purse.left(month)
    budget = None
    if purse.budget_micro is not None:
        spent = purse.budget_spent(month)
        budget = {
            "amount": money(purse.budget_micro),
            "period": "month" if purse.per_month else "total",
            "spent": money(spent),
            "left": money(purse.budget_micro - spent),
        }
    return {
        "tenant": view.tenant,
        "balance": None if purse.balance_micro is None else money(purse.balance_micro),
        "budget": budget,
        "left": None if left is None else money(left),
        "committed": money(view.committed_micro),
        "exhausted": left is not None and left <= 0,
        "spent": money(purse.spent_micro),
        "spentThisMonth": money(purse.month_micro if purse.month == month else 0),
        "month": month,
        "currency": CURRENCY,
    }


def entry(one: Entry, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "id": one.id,
        "amount": money(one.amount_micro),
        "balance": money(one.balance_micro),
        "note": one.note,
        "actor": one.actor,
        "createTime": written(one.at_ms, zone),
        "createTimeMs": one.at_ms,
    }


# ---------------------------------------------------------------- what a job has cost


def job_detail(job: JobView, zone: ZoneInfo, public_url: str) -> dict[str, Any]:
    """Everything the broker knows of a job, with what it and its runs cost."""
    detail = wire.job_detail(job, zone, public_url)
    runs = [{**shown, "costs": run_cost(run)} for shown, run in zip(detail["runs"], job.runs, strict=True)]
    return {**detail, "runs": runs, "costs": job_cost(job)}


def run_cost(run: RunView) -> dict[str, Any]:
    """Of one run: expected when it was placed, measured, by the center's record, and billed."""
    metering = run.metering
    estimated = run.placement.get("estimatedCostMicro")
    return {
        "estimated": None if estimated is None else money(estimated),
        "measured": None if metering is None else money(metering.measured_micro),
        "center": None if metering is None or metering.center_micro is None else money(metering.center_micro),
        "billed": None if metering is None or metering.billed_micro is None else money(metering.billed_micro),
        "notBilled": _not_billed(metering),
        "rates": [] if metering is None else _rates(metering),
    }


def _not_billed(metering: Metering | None) -> str:
    """Why an ended run has no bill."""
    if metering is None or metering.billed_micro is not None:
        return ""
    return metering.interrupted or "it never started"


def _rates(metering: Metering) -> list[dict[str, Any]]:
    return [
        {"startTimeMs": s.start_ms, "finishTimeMs": s.end_ms, "pricePerHour": price(s.micro_per_hour)}
        for s in metering.rates
    ]


def job_cost(job: JobView) -> dict[str, Any]:
    """Of the whole job: expected at its submission where it was cheapest, measured and billed since."""
    metered = [run.metering for run in job.runs if run.metering is not None]
    billed = [m.billed_micro for m in metered if m.billed_micro is not None]
    return {
        "estimated": None if job.estimated_micro is None else money(job.estimated_micro),
        "measured": money(sum(run.cost_micro for run in job.runs)),
        "billed": money(sum(billed)),
        "story": story(job),
    }


def story(job: JobView) -> str:
    """What was paid where, and why not less elsewhere; "" before anything has run."""
    run = next((run for run in reversed(job.runs) if run.center and run.started_ms is not None), None)
    if run is None:
        return ""
    own_price = f"{price(run.rate_micro_per_hour)} {CURRENCY}/h"
    if run.metering is None:
        paid = f"costs {money(run.cost_micro)} {CURRENCY} so far at {run.center} ({own_price})"
    elif run.metering.billed_micro is None:
        cost = money(run.metering.measured_micro)
        paid = f"paid nothing for {cost} {CURRENCY} at {run.center}: {_not_billed(run.metering)}"
    else:
        paid = f"paid {money(run.metering.billed_micro)} {CURRENCY} at {run.center} ({own_price})"
    cheaper = _cheaper(run)
    if not cheaper:
        return f"{paid}; no center was cheaper"
    return f"{paid}; {'; '.join(_refusal(other) for other in cheaper)}"


def _cheaper(run: RunView) -> Sequence[dict[str, Any]]:
    """The other centers that the round knew with a lower price, the cheapest first."""
    known = [
        other
        for other in run.placement.get("alternatives", ())
        if other["rateMicroPerHour"] is not None and other["rateMicroPerHour"] < run.rate_micro_per_hour
    ]
    return sorted(known, key=lambda other: (other["rateMicroPerHour"], other["centerId"]))


def _refusal(other: dict[str, Any]) -> str:
    cost = f"{price(other['rateMicroPerHour'])} {CURRENCY}/h"
    why = other["reason"]
    if why is None:
        return f"{other['centerId']} ({cost}) could have taken it: the plan as a whole cost less this way"
    return f"the cheaper {other['centerId']} ({cost}) did not take it: {why['message']}"
