"""Why a job waits, and when it is expected to start."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict


class Reason(TypedDict):
    centerId: str
    code: str
    message: str
    need: int | float | None
    have: int | float | None
    unit: str


class ForecastError(TypedDict):
    """How far forecasts for `jobs` jobs were off, in seconds, and the share that had started by the p90."""

    centerId: str
    specId: str
    jobs: int
    medianS: float
    p90Coverage: float | None


class Expected(TypedDict):
    """Seconds from now."""

    p50: float | None
    p90: float | None


class Eta(Expected):
    centerId: str
    error: ForecastError | None


class WhatIf(TypedDict):
    """A changed field of the request with which a round of this moment starts the job."""

    change: dict[str, Any]
    starts: bool
    centerId: str
    specId: str
    pricePerHour: str
    priceCny: str
    message: str


class CopyItem(TypedDict):
    """A data set at a center or on its way there; `datasetId` only in an explanation."""

    datasetId: NotRequired[str]
    centerId: str
    state: str
    size: int
    sizeDone: int
    message: str
    usedTime: str


class Explanation(TypedDict):
    id: str
    status: str
    position: int | None
    reasons: list[Reason]
    placement: dict[str, Any]
    eta: Eta
    expectedEnd: Expected | None
    whatIf: list[WhatIf]
    whatIfNote: str
    data: list[CopyItem]


class Round(TypedDict):
    """`objective` and `bound` are micro-CNY, `gap` is a share of the objective."""

    startedAt: str
    queued: int
    placed: int
    preempted: int
    objective: int
    bound: int | None
    gap: float | None
    solveMs: float
    totalMs: float


class Rounds(TypedDict):
    items: list[Round]
