"""The shapes of the API's answers, as the client types them.

What belongs here: the documents of the standard and of /broker/v1, field by field; nothing runs.
What does not: asking for them (broker.client).  Fields that a broker may leave out are optional.
"""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict  # typing's own is not introspected before Python 3.12


class Token(TypedDict):
    token: str
    expiresAt: str


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
    config: dict[str, Any]
    runs: list[RunDetail]
    cost: str
    costs: JobCosts
    currency: str


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


class ImageItem(TypedDict):
    imageId: str
    imageName: str
    imageDesc: str
    arch: str
    processor: str
    operationSystem: str
    framework: str
    createTime: str
    installedLib: list[str]
    centerIds: list[str]


class ImagePage(TypedDict):
    images: list[ImageItem]
    totalSize: int


class DatasetItem(TypedDict):
    """`size` in bytes; `centerIds` have it ready."""

    id: str
    title: str
    owner: str
    size: int
    desc: str
    labels: str
    public: bool
    createTime: str
    centerIds: list[str]


class DatasetDetail(DatasetItem):
    md5: str
    copies: list[CopyItem]


class DatasetPage(TypedDict):
    totalSize: int
    datasets: list[DatasetItem]


class DatasetUpload(TypedDict):
    id: str


class AssetItem(TypedDict):
    """A model or an application."""

    id: str
    title: str
    owner: str
    desc: str
    labels: str
    createTime: str
    centerIds: list[str]


class ModelPage(TypedDict):
    models: list[AssetItem]
    totalSize: int


class AppPage(TypedDict):
    apps: list[AssetItem]
    totalSize: int


class Cpu(TypedDict):
    arch: str
    cores: int


class Processor(TypedDict):
    """`memory` is GiB per card; `cardPermille` says what part of a card each is, where it is one."""

    type: str
    count: int
    name: str
    memory: int
    cardPermille: NotRequired[int]


class Memory(TypedDict):
    size: int
    unit: str


class Resources(TypedDict):
    cpu: Cpu
    memory: Memory
    processor: Processor


class SpecPrice(TypedDict):
    """The cheapest stated price of a spec now, and where."""

    unitPrice: str
    currency: str
    unit: str
    centerId: str


class SpecItem(Resources):
    """`price` where some center states one."""

    resourceSpecId: str
    resourceSpecName: str
    price: NotRequired[SpecPrice]


class SpecPage(TypedDict):
    resourceSpecs: list[SpecItem]
    totalSize: int


class CenterItem(TypedDict):
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
    """`freeParts`: of cards that are partly used, what is free of each, in thousandths."""

    resourceSpec: Resources
    nodeCount: str
    freeParts: NotRequired[list[int]]


class CenterResource(TypedDict):
    centerId: str
    totalResource: Resources
    idleResource: Resources
    nodeResources: list[NodeResource]
    accuracy: str
    observedAt: str
    resources: list[Resources]


class Idle(TypedDict):
    centerResources: list[CenterResource]


class SubmitDefaults(TypedDict):
    image: str


class Info(TypedDict):
    version: str
    name: str
    timezone: str
    submit: SubmitDefaults
    limits: dict[str, int]


PriceWindow = TypedDict("PriceWindow", {"days": list[str], "from": str, "to": str, "unitPrice": str})
"""Days mon to sun, and a stretch of the local day that may go over midnight; `from` is a keyword."""


class PriceItem(TypedDict):
    """A spec at a center: per node and hour.  `stated`: whether the center states a price now."""

    centerId: str
    resourceSpecId: str
    resourceSpecName: str
    unitPrice: str
    currency: str
    unit: str
    stated: bool
    windows: list[PriceWindow]
    pools: list[str]


class PricePage(TypedDict):
    prices: list[PriceItem]
    totalSize: int


class BillItem(TypedDict):
    """A bill line.  `kind` is run, or correction: then the amount may be below 0 and `seconds` is 0."""

    billId: str
    kind: str
    jobId: str
    jobName: str
    taskId: str
    userId: str
    userName: str
    tenant: str
    centerId: str
    resourceSpecId: str
    nodeCount: int
    startTime: str
    finishTime: str
    seconds: int
    amount: str
    currency: str
    createTime: str
    createTimeMs: int


class BillPage(TypedDict):
    items: list[BillItem]
    totalSize: int


class BillSum(TypedDict):
    key: str
    name: str
    lines: int
    runs: int
    seconds: int
    amount: str


class BillSummary(TypedDict):
    """`amount` is of all groups, those of other pages too."""

    groupBy: str
    items: list[BillSum]
    totalSize: int
    amount: str
    currency: str


class Budget(TypedDict):
    """`period` is month or total."""

    amount: str
    period: str
    spent: str
    left: str


class Balance(TypedDict):
    """What a tenant may spend; null: no limit.  `committed`: what its live runs are expected to cost."""

    tenant: str
    balance: str | None
    budget: Budget | None
    left: str | None
    committed: str
    exhausted: bool
    spent: str
    spentThisMonth: str
    month: str
    currency: str


class LedgerItem(TypedDict):
    """`balance` is after it."""

    id: int
    amount: str
    balance: str
    note: str
    actor: str
    createTime: str
    createTimeMs: int


class LedgerPage(TypedDict):
    items: list[LedgerItem]
    totalSize: int


class LinkItem(TypedDict):
    centerId: str
    user: str
    createTime: str


class LinkPage(TypedDict):
    items: list[LinkItem]
    totalSize: int


class Me(TypedDict):
    id: str
    name: str
    tenant: str
    role: str
    vip: bool
    balance: Balance


class Upload(TypedDict):
    id: str
    bytes: int
    files: int


class CenterCommand(TypedDict):
    centerId: str
    state: str


class CenterPool(TypedDict):
    pool: str
    native: str
    nodeCount: int
    node: Resources
    accuracy: str
    observedAt: str


class Quarantined(TypedDict):
    """A pool of a report that is not used, and why."""

    name: str
    reason: str


class CenterReport(TypedDict):
    centerId: str
    state: str
    health: str
    error: str
    lastReportAt: str
    inFlight: int
    maxInFlight: int
    running: int
    pools: list[CenterPool]
    quarantined: list[Quarantined]


class CenterReports(TypedDict):
    items: list[CenterReport]


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


class Account(TypedDict):
    name: str
    tenant: str
    role: str
    vip: bool
    frozen: bool


class AccountPage(TypedDict):
    items: list[Account]
    totalSize: int


class CenterAnswer(TypedDict):
    """What a center's platform answered; `status` is that of HTTP."""

    centerId: str
    status: int
    contentType: str
    body: str
    truncated: bool


class Check(TypedDict):
    """One line of the doctor."""

    name: str
    ok: bool
    detail: str


class CommandArgument(TypedDict):
    name: str
    help: str
    kind: str
    required: bool
    many: bool
    secret: bool
    choices: list[str]


class Command(TypedDict):
    name: str
    help: str
    timeoutS: int
    arguments: list[CommandArgument]


class Commands(TypedDict):
    centerId: str
    adapter: str
    commands: list[Command]


class CommandResult(TypedDict):
    centerId: str
    result: Any
    truncated: bool


class Health(TypedDict):
    status: str


class CenterReadiness(TypedDict):
    """`quarantined` is how many of its pools are not used."""

    centerId: str
    health: str
    error: str
    quarantined: NotRequired[int]


class Readiness(TypedDict):
    ready: bool
    store: str
    centers: list[CenterReadiness]


class Registered(TypedDict):
    userId: str
    name: str
    tenant: str
    role: str


class LoginItem(TypedDict):
    """`current`: the one that asks."""

    createTime: str
    expiresAt: str
    current: bool


class LoginPage(TypedDict):
    items: list[LoginItem]
    totalSize: int


class ApiKey(TypedDict):
    """`application` and the last two are "" where there is none.  The last use is noted once an hour."""

    id: str
    name: str
    application: str
    scopes: list[str]
    createTime: str
    expiresAt: str
    lastUsedTime: str


class NewApiKey(ApiKey):
    """`key` is the secret, which is never shown again."""

    key: str


class ApiKeyPage(TypedDict):
    items: list[ApiKey]
    totalSize: int


class Application(TypedDict):
    """What `keys` keys of an application may, together."""

    application: str
    scopes: list[str]
    keys: int
    createTime: str
    lastUsedTime: str


class ApplicationPage(TypedDict):
    items: list[Application]
    totalSize: int


class Tenant(TypedDict):
    id: str
    createTime: str
    accounts: int


class TenantPage(TypedDict):
    items: list[Tenant]
    totalSize: int


class HappenedEvent(TypedDict):
    """`actor` is the account that did it, with `apiKey` where a key was used; "" where nobody did."""

    id: int
    time: str
    timeMs: int
    kind: str
    actor: str
    apiKey: str
    jobId: str
    taskId: str
    centerId: str
    data: dict[str, Any]


class AuditEntry(HappenedEvent):
    tenant: str


class AuditPage(TypedDict):
    items: list[AuditEntry]
    totalSize: int


class Refusal(TypedDict):
    """The body of every error."""

    errorCode: str
    errorMsg: str
    detail: str
    requestId: str
