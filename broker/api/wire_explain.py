"""Why a job waits or is where it is, when it starts, and what would start it now, on the wire.

What belongs here: names and shapes.  What does not: finding any of it out (foresight.py, the store).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zoneinfo import ZoneInfo

from broker.api.foresight import Foreseen
from broker.api.wire import checkpoint, json_number, money, price
from broker.core.model import (
    RunState,
)
from broker.core.whatif import Change, Field
from broker.store.jobs import JobView

WHAT_IF_NOTE = "feasible in a round of this moment; nothing is held, and it is no promise"


def explained(
    job: JobView,
    position: int | None,
    reasons: Sequence[dict[str, Any]],
    foreseen: Foreseen,
    zone: ZoneInfo,
) -> dict[str, Any]:
    """Why a job waits, when it is expected to start and what would start it now, or why it is where
    it is and when it is expected to end."""
    live = next((run for run in job.runs if run.state.live and run.state is not RunState.NEW), None)
    placement: dict[str, Any] = {}
    end = foreseen.end
    if live is not None:
        placement = {
            **{key: value for key, value in live.placement.items() if key != "alternatives"},
            "centerId": live.center,
            "centerName": live.center_name,
            "taskId": live.id,
            "pricePerHour": price(live.rate_micro_per_hour),
            **checkpoint(live, zone),
            "alternatives": [_alternative(other) for other in live.placement.get("alternatives", ())],
        }
    return {
        "id": job.id,
        "status": job.status.value,
        "position": position,
        "reasons": list(reasons),
        "placement": placement,
        "eta": _eta(foreseen),
        "expectedEnd": None if end is None else {"p50": end.p50_s, "p90": end.p90_s},
        "whatIf": [_what_if(change) for change in foreseen.changes],
        "whatIfNote": WHAT_IF_NOTE if foreseen.changes else "",
    }


def _eta(foreseen: Foreseen) -> dict[str, Any]:
    """Seconds from now, where, and how far such forecasts were off."""
    eta, error = foreseen.eta, foreseen.error
    return {
        "p50": None if eta is None else eta.p50_s,
        "p90": None if eta is None else eta.p90_s,
        "centerId": "" if eta is None else eta.center,
        "error": None
        if error is None
        else {
            "centerId": error.center,
            "specId": error.spec,
            "jobs": error.jobs,
            "medianS": error.median_s,
            "p90Coverage": error.p90_coverage,
        },
    }


def _what_if(change: Change) -> dict[str, Any]:
    """One change of the request, and where a round of this moment starts the job with it."""
    request, at = change.request, change.placement
    changed: dict[str, Any]
    match change.field:
        case Field.CENTERS:
            changed, with_ = {"centerId": []}, "at any center"
        case Field.PRICE:
            micro = request.max_price_micro or 0
            changed, with_ = {"maxPrice": json_number(micro)}, f"with maxPrice {price(micro)}"
        case Field.NODES:
            changed, with_ = {"nodeCount": request.nodes}, f"with nodeCount {request.nodes}"
        case Field.SPEC:
            changed, with_ = {"specId": at.spec.id}, f"with spec {at.spec.name}"
    return {
        "change": changed,
        "starts": True,
        "centerId": at.center,
        "specId": at.spec.id,
        "pricePerHour": price(at.rate_micro_per_hour),
        "priceCny": money(at.cost_micro),
        "message": f"{with_} it would start at {at.center}",
    }


def _alternative(other: dict[str, Any]) -> dict[str, Any]:
    """Another center as the round saw it: its price, and why the job could not start there; `code` is
    "" where it could and the plan as a whole was better without."""
    rate, why = other["rateMicroPerHour"], other["reason"] or {}
    return {
        "centerId": other["centerId"],
        "pricePerHour": None if rate is None else price(rate),
        "weighedCostMicro": other["weighedCostMicro"],
        "code": why.get("code", ""),
        "message": why.get("message", "possible; the plan as a whole costs less this way"),
        "need": why.get("need"),
        "have": why.get("have"),
        "unit": why.get("unit", ""),
    }
