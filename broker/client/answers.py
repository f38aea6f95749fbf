"""The shapes of the API's answers, as the client types them.

What belongs here: the documents of the standard and of /broker/v1, field by field; nothing runs.
What does not: asking for them (broker.client).  Fields that a broker may leave out are optional.
"""

from __future__ import annotations

from typing import Any, TypedDict


class Token(TypedDict):
    token: str
    expiresAt: str


class Metadata(TypedDict):
    id: str
    name: str
    desc: str
    createTime: str
    createTimeMs: int
    userId: str


class JobItem(TypedDict, total=False):
    """The last three only in a listing."""

    metadata: Metadata
    status: str
    centerId: str
    priority: str
    finishTime: str


class JobPage(TypedDict):
    items: list[JobItem]
    totalSize: int


class StopAnswer(TypedDict):
    """`stoppedTime` is "" while the center has not confirmed; `status` is then the real one."""

    id: str
    status: str
    stoppedTime: str


class RunDetail(TypedDict, total=False):
    """One attempt.  Money is decimal text in CNY, times are text in the broker's zone."""

    taskId: str
    attempt: int
    state: str
    status: str
    centerId: str
    centerName: str
    pool: str
    specId: str
    specName: str
    nodeCount: int
    remoteId: str
    submitTime: str
    startTime: str
    finishTime: str
    startTimeMs: int | None
    finishTimeMs: int | None
    checkpointTime: str
    exitCode: int | None
    failure: str
    message: str
    address: str
    pricePerHour: str
    cost: str
    placement: dict[str, Any]


class JobDetail(TypedDict, total=False):
    id: str
    kind: str
    name: str
    desc: str
    owner: str
    tenant: str
    state: str
    status: str
    message: str
    createTime: str
    createTimeMs: int
    finishTime: str
    retriesUsed: int
    stopReason: str | None
    config: dict[str, Any]
    runs: list[RunDetail]
    cost: str
    currency: str


class Reason(TypedDict):
    centerId: str
    code: str
    message: str
    need: int | float
    have: int | float
    unit: str


class ForecastError(TypedDict):
    """How far forecasts for `jobs` jobs were off, in seconds, and the share that had started by the p90."""

    centerId: str
    specId: str
    jobs: int
    medianS: float
    p90Coverage: float | None


class Expected(TypedDict, total=False):
    """Seconds from now."""

    p50: float | None
    p90: float | None


class Eta(Expected, total=False):
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


class Explanation(TypedDict, total=False):
    id: str
    status: str
    position: int | None
    reasons: list[Reason]
    placement: dict[str, Any] | None
    eta: Eta | None
    expectedEnd: Expected | None
    whatIf: list[WhatIf]
    whatIfNote: str


class Cpu(TypedDict):
    arch: str
    cores: int


class Processor(TypedDict):
    """`memory` is GiB per card."""

    type: str
    count: int
    name: str
    memory: int


class Memory(TypedDict):
    size: int
    unit: str


class Resources(TypedDict):
    cpu: Cpu
    memory: Memory
    processor: Processor


class SpecItem(Resources):
    resourceSpecId: str
    resourceSpecName: str


class SpecPage(TypedDict):
    resourceSpecs: list[SpecItem]
    totalSize: int


class CenterItem(TypedDict, total=False):
    centerId: str
    centerName: str
    province: str
    city: str
    desc: str
    connected: bool
    processorType: str
    totalStorage: int
    maxComputingPower: int
    createTime: str
    state: str
    health: str
    error: str
    adapter: str
    queueLength: int | None
    inFlight: int
    running: int
    observedAt: str


class CenterPage(TypedDict):
    centers: list[CenterItem]
    totalSize: int


class NodeResource(TypedDict):
    resourceSpec: Resources
    nodeCount: str


class CenterResource(TypedDict, total=False):
    centerId: str
    totalResource: Resources
    idleResource: Resources
    nodeResources: list[NodeResource]
    accuracy: str
    observedAt: str
    resources: list[Resources]


class Idle(TypedDict):
    centerResources: list[CenterResource]


class SubmitDefaults(TypedDict, total=False):
    image: str


class Info(TypedDict, total=False):
    version: str
    name: str
    timezone: str
    submit: SubmitDefaults
    limits: dict[str, int]


class Me(TypedDict):
    id: str
    name: str
    tenant: str
    role: str
    vip: bool


class Upload(TypedDict):
    id: str
    bytes: int
    files: int


class CenterCommand(TypedDict):
    centerId: str
    state: str
