"""Jobs, services and their runs."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict

from broker.client.answers.resources import Resources


class Metadata(TypedDict):
    """`url` only of an online service that is retried."""

    id: str
    name: str
    desc: str
    createTime: str
    createTimeMs: int
    userId: str
    url: NotRequired[str]


class ServiceMetadata(TypedDict):
    """`url` is where the service is reached, from its creation on."""

    id: str
    name: str
    desc: str
    createTime: str
    createTimeMs: int
    url: str


class ServiceItem(TypedDict):
    """The last three only in a listing."""

    metadata: ServiceMetadata
    status: str
    centerId: NotRequired[str]
    priority: NotRequired[str]
    finishTime: NotRequired[str]


class ServicePage(TypedDict):
    items: list[ServiceItem]
    totalSize: int


class ServiceDetail(TypedDict):
    """`restarts`: how often it was started again after it had ended by itself."""

    metadata: ServiceMetadata
    status: str
    public: bool
    port: int | None
    restarts: int
    tasks: list[Task]


class ServiceLink(TypedDict):
    """What lets a browser in until `expiresAt`."""

    url: str
    expiresAt: str


class JobItem(TypedDict):
    """The last three only in a listing."""

    metadata: Metadata
    status: str
    centerId: NotRequired[str]
    priority: NotRequired[str]
    finishTime: NotRequired[str]


class JobPage(TypedDict):
    items: list[JobItem]
    totalSize: int


class StopAnswer(TypedDict):
    """`stoppedTime` is "" while the center has not confirmed; `status` is then the real one."""

    id: str
    status: str
    stoppedTime: str


class Rate(TypedDict):
    startTimeMs: int
    finishTimeMs: int
    pricePerHour: str


class RunCosts(TypedDict):
    """Expected when the run was placed; the rest once it has ended: measured by the broker, by the
    center's own record, and billed.  `notBilled`: why there is no bill."""

    estimated: str | None
    measured: str | None
    center: str | None
    billed: str | None
    notBilled: str
    rates: list[Rate]


class JobCosts(TypedDict):
    """Expected at the submission where it was cheapest; measured and billed since."""

    estimated: str | None
    measured: str
    billed: str
    story: str


class RunDetail(TypedDict):
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
    checkpointTime: NotRequired[str]
    exitCode: int | None
    failure: str
    message: str
    address: str
    pricePerHour: str
    cost: str
    costs: RunCosts
    placement: dict[str, Any]


class Task(TypedDict):
    """One attempt, as the standard shows it, with `status` and what follows it beyond the standard."""

    centerId: str
    centerName: str
    imageId: NotRequired[str]
    imageUrl: NotRequired[str]
    taskId: str
    command: str
    specId: str
    specName: str
    specInfo: Resources
    status: str
    startTime: str
    finishTime: str
    message: str
    nodeCount: int


class Job(TypedDict):
    metadata: Metadata
    status: str
    tasks: list[Task]


class LogLink(TypedDict):
    logUrl: str
    expiresAt: str


class JobDetail(TypedDict):
    """`url` only of an online service."""

    id: str
    kind: str
    url: NotRequired[str]
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
    stopReason: str
    originId: str
    hops: list[str]
    config: dict[str, Any]
    runs: list[RunDetail]
    cost: str
    costs: JobCosts
    currency: str
