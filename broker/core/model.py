"""Domain types, in the field's words.

What belongs here: frozen facts that several parts of the broker speak about.  What does not: rules
(machine, policies), arithmetic over resources (resources), rows of the database (broker.tables) and
the wire format of the queue API (broker.api).

Units.  Times are int64 milliseconds since the Unix epoch, UTC, and end in `_ms`; durations are
seconds and end in `_s`.  Memory is GiB.  Money is micro-CNY (1 CNY = 1,000,000), a price is
micro-CNY per hour; money is never a float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NewType

from broker.core.states import LIVE_RUN_STATES as LIVE_RUN_STATES
from broker.core.states import Accuracy as Accuracy
from broker.core.states import CenterState as CenterState
from broker.core.states import FailureKind as FailureKind
from broker.core.states import Health as Health
from broker.core.states import JobState as JobState
from broker.core.states import Kind as Kind
from broker.core.states import OnLost as OnLost
from broker.core.states import PublicStatus as PublicStatus
from broker.core.states import Role as Role
from broker.core.states import RunState as RunState
from broker.core.states import StopReason as StopReason
from broker.core.states import Tier as Tier
from broker.core.states import Why as Why
from broker.core.states import public_run_status as public_run_status
from broker.core.states import public_status as public_status

JobId = NewType("JobId", str)
RunId = NewType("RunId", str)
CenterId = NewType("CenterId", str)
PoolId = NewType("PoolId", str)
SpecId = NewType("SpecId", str)
TenantId = NewType("TenantId", str)
RemoteId = NewType("RemoteId", str)
"""Opaque text of an adapter that starts with its kind where a platform has several: ``slm:44``."""

MICRO = 1_000_000
"""Micro-CNY per CNY."""

DEFAULT_ESTIMATE_S = 3600
"""Planned run time of a job that states neither an estimate nor a limit."""

SERVICE_ESTIMATE_S = 7 * 86_400
"""Planned run time of an online service without an estimate: it has no end of its own."""

SERVICE_RETRIES = 10
"""How often an online service that has ended is started again where it does not say."""

EVERY_CENTER = CenterId("*")
"""Stands for all centers where a job avoids some: it is not placed at all.  No center has this id."""


STOP_STRENGTH: Mapping[StopReason, int] = {
    StopReason.PREEMPT: 0,
    StopReason.RECALL: 1,
    StopReason.DEADLINE: 2,
    StopReason.CANCEL: 3,
}
"""A stronger reason replaces a weaker one; a user's cancel overrides all."""


@dataclass(frozen=True, slots=True)
class Stop:
    reason: StopReason
    since_ms: int


@dataclass(frozen=True, slots=True, order=True)
class NodeShape:
    """A node, or a slice of one.  `accelerator` is a canonical product name or "" for CPU only.

    Memory is GiB per node; `accelerator_memory_gib` is per device, and a device is a whole card or the
    `card_permille` thousandths of one: an instance that the platform has cut (MIG), or the part of one
    card that a request takes (vGPU; then `accelerators` is 1).  `split_permille` is said of nodes
    alone: the platform gives away parts of their cards in steps of so many thousandths; 0: it does not.
    """

    arch: str
    cores: int
    memory_gib: int
    accelerator: str = ""
    accelerators: int = 0
    accelerator_memory_gib: int = 0
    card_permille: int = 1000
    split_permille: int = 0


@dataclass(frozen=True, slots=True)
class Spec:
    """What one node of a job gets (the standard's resourceSpec).  The id is a function of the shape."""

    id: SpecId
    name: str
    shape: NodeShape

    def __hash__(self) -> int:
        return hash(self.id)  # a round looks up by specs; hashing the shape costs ten times as much


@dataclass(frozen=True, slots=True, order=True)
class FreeNodes:
    """`nodes` nodes of a pool of which so much is free each.

    `accelerators` are devices that are wholly free; `parts` is what is free of each card that is partly
    used, in thousandths, ascending (only where cards are split).
    """

    cores: int
    memory_gib: int
    accelerators: int
    nodes: int
    parts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Price:
    """Micro-CNY per accelerator-hour, or per core-hour of a CPU pool, in an optional daily window.

    `days` are weekdays with Monday 0; the window is [start_min, end_min) minutes of the local day
    and may wrap midnight.
    """

    micro_per_hour: int
    days: frozenset[int] = frozenset(range(7))
    start_min: int = 0
    end_min: int = 24 * 60


@dataclass(frozen=True, slots=True)
class Pool:
    """Nodes of one shape in one native unit of a center, with a histogram of what is free.

    `specs` are those the platform offers there; empty means the slices of the shape.
    `free` is what the center reported at `as_of_ms`; see core/snapshot.py for what the broker may
    still use of it.
    """

    id: PoolId
    center: CenterId
    native: str
    shape: NodeShape
    nodes: int
    free: tuple[FreeNodes, ...]
    as_of_ms: int
    accuracy: Accuracy
    specs: tuple[Spec, ...] = ()
    prices: tuple[Price, ...] = ()
    expected_wait_s: int = 0


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A product of the catalogue (config/accelerators.toml)."""

    name: str
    memory_gib: tuple[int, ...]
    fp16_gflops: int
    factor_permille: int
    aliases: tuple[str, ...] = ()
    source: str = ""

    @property
    def kind(self) -> str:
        """GPU, NPU, MLU, DCU or GCU: the standard's processor type."""
        return self.name.split("/")[1]

    @property
    def effective_gflops(self) -> int:
        """Datasheet dense FP16 GFLOPS times the measured factor, per card."""
        return self.fp16_gflops * self.factor_permille // 1000


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a job asks for, after validation.  Names follow the `config` object of the queue API."""

    kind: Kind = Kind.TRAIN
    centers: tuple[CenterId, ...] = ()
    spec: Spec | None = None  # None: chosen by `min_gflops` when the job is placed
    min_gflops: int = 0  # effective FP16 GFLOPS per node
    nodes: int = 1
    image_id: str = ""
    image_url: str = ""
    command: str = ""
    tier: Tier = Tier.NORMAL
    preempt_policy: int = 1
    vip_nodes: tuple[str, ...] = ()
    preemptible: bool = True
    estimated_run_time_s: int | None = None
    max_run_time_s: int | None = None
    max_price_micro: int | None = None
    max_retries: int = 0
    on_lost: OnLost = OnLost.WAIT
    resumable: bool = False
    checkpoint_interval_s: int | None = None
    stop_grace_s: int = 30
    env: tuple[tuple[str, str], ...] = ()
    datasets: tuple[str, ...] = ()
    port: int | None = None
    public: bool = False
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def endless(self) -> bool:
        """It has no end of its own: it runs until somebody or its limit stops it."""
        return self.kind is Kind.ONLINE

    @property
    def estimate_s(self) -> int:
        """Planned run time: the stated estimate, else the limit, else one hour; of an online service
        without an estimate seven days, and no more than its limit."""
        if self.estimated_run_time_s is not None:
            return self.estimated_run_time_s
        if self.endless:
            return min(SERVICE_ESTIMATE_S, self.max_run_time_s or SERVICE_ESTIMATE_S)
        return self.max_run_time_s or DEFAULT_ESTIMATE_S

    @property
    def max_rate_micro(self) -> int | None:
        """`max_price_micro` as a ceiling on micro-CNY per hour at the job's own estimate."""
        if self.max_price_micro is None:
            return None
        return self.max_price_micro * 3600 // self.estimate_s


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What machine.step needs of a job."""

    id: JobId
    state: JobState
    request: JobRequest
    queued_ms: int
    attempts: int = 1
    retries_used: int = 0
    avoid: tuple[tuple[CenterId, int], ...] = ()  # (center or EVERY_CENTER, until_ms) after a failure
    stop: Stop | None = None
    ended_ms: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What machine.step needs of a run."""

    id: RunId
    job: JobId
    attempt: int
    state: RunState
    center: CenterId | None = None
    remote: RemoteId | None = None
    stop: Stop | None = None
    not_after_ms: int = 0  # no call for this run leaves after this
    lookup_lag_s: int = 0
    missing_ms: int | None = None  # the first "not found" or "not started" that counts (law 2)
    start_sent_ms: int | None = None  # two phases: when its last start was claimed
    submitted_ms: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    lost_ms: int | None = None
    exit_code: int | None = None
    failure: FailureKind | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class RunTime:
    """How long a run is expected to hold its capacity, learned from its like (core/estimates.py).

    Half of them end within `p50_s` seconds, nine in ten within `p90_s`.
    """

    p50_s: int
    p90_s: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What a live run holds in a pool: `nodes` times `shape`, on named nodes where known.

    `started_ms` is None while the center has not said that the run started.  `stopping`: it was asked
    to end.  `estimate_s` is its planned run time, `learned` what runs like it have taken, None where
    nothing is known.  `checkpoint_ms`: the newest checkpoint that was seen of a resumable job, None
    where nobody looks or none was written.  `preempted`: how often the broker has stopped runs of its
    job for others.  `request` and `queued_ms` tell what the job is worth once it waits again; without a
    request a claim is nobody's victim.
    """

    run: RunId
    center: CenterId
    pool: PoolId
    shape: NodeShape
    nodes: int
    started_ms: int | None = None
    tier: Tier = Tier.NORMAL
    tenant: TenantId = TenantId("")
    job: JobId = JobId("")
    class_key: str = ""
    state: RunState = RunState.RUNNING
    stopping: bool = False
    estimate_s: int = DEFAULT_ESTIMATE_S
    rate_micro_per_hour: int = 0
    request: JobRequest | None = None
    queued_ms: int = 0
    checkpoint_ms: int | None = None
    preempted: int = 0
    learned: RunTime | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """The only way to hold capacity: `nodes` slots of `slot` units in a pool for a job.

    A job has at most one.  `why` is one of Why; `node_names` are the nodes a VIP job names.
    """

    id: int
    pool: PoolId
    slot: int
    nodes: int
    job: JobId
    not_before_ms: int
    expires_ms: int
    why: str
    node_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CenterFacts:
    """What a round knows of a center."""

    id: CenterId
    name: str
    state: CenterState
    health: Health
    max_in_flight: int
    in_flight: int = 0  # submitted and not yet running there
    report_lag_s: int = 0
    gang: bool = True
    services: bool = False
    max_run_time_s: int | None = None
    images: frozenset[str] = frozenset()  # logical image ids this center can use
    any_image_url: bool = True
    node_hold: bool = False  # the platform can hold named nodes
    vip_kill: bool = False  # it kills for VIP jobs by itself, and the operator allows it
    vip_first: bool = False  # its own queue serves VIP jobs first: they are sent before their victims end


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A job of a class, as the queue keeps it."""

    id: JobId
    queued_ms: int


@dataclass(frozen=True, slots=True)
class JobClass:
    """Jobs that no rule can tell apart: same request, tenant and avoided centers.

    `jobs` are in queue order, oldest first.  `learned` is how long runs like theirs have taken, None
    where nothing is known.
    """

    key: str
    request: JobRequest
    tenant: TenantId
    jobs: Sequence[QueuedJob]
    avoid: frozenset[CenterId] = frozenset()
    learned: RunTime | None = None

    @property
    def estimate_s(self) -> int:
        """Planned run time: the stated estimate, else what was learned, else the limit or one hour."""
        if self.request.estimated_run_time_s is None and self.learned is not None:
            return self.learned.p50_s
        return self.request.estimate_s


@dataclass(frozen=True, slots=True)
class Kills:
    """What preemption has done for a job and to it; few jobs have a record.

    `sets` are victim sets stopped for it since it last ran, `last_ms` is when the last one was;
    `suffered` are its own runs that the broker stopped for others.
    """

    sets: int = 0
    last_ms: int | None = None
    suffered: int = 0


@dataclass(frozen=True, slots=True)
class DataFacts:
    """A data set that waiting jobs read: its size, and how it stands with its copies at centers.

    `moving`: on its way there, or being removed.  `failed`: the last try failed and the next is not due.
    `fixed`: it is a center's own, and cannot be brought to where it is not ready.  `arrived` is bytes of
    copies that are not whole.
    """

    bytes: int
    ready: frozenset[CenterId]
    moving: frozenset[CenterId] = frozenset()
    failed: frozenset[CenterId] = frozenset()
    fixed: bool = False
    arrived: tuple[tuple[CenterId, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The world at one moment, frozen: everything a round may look at.

    `version` is the number of the last event in it.  `minute_of_week` is local time of the
    configured zone (Monday 00:00 is 0): price windows need it and the core has no clock.
    `usage` is accelerator-seconds of ended runs per tenant, decayed; `kills` counts runs of a tenant
    that were stopped for others within the last hour; `kill_records` are those of waiting jobs.
    `funds` is what tenants with a budget or balance may still spend, micro-CNY, before what their live
    runs will cost; below 0 when more was spent, and others may spend what they like.  `ended` are runs
    that have ended since the report of their pool, which may still count them, where something is held.
    """

    version: int
    now_ms: int
    minute_of_week: int
    centers: tuple[CenterFacts, ...]
    pools: tuple[Pool, ...]
    claims: tuple[Claim, ...]
    reservations: tuple[Reservation, ...]
    classes: tuple[JobClass, ...]
    accelerators: Mapping[str, Accelerator] = field(default_factory=dict)
    ready_data: Mapping[str, DataFacts] = field(default_factory=dict)
    usage: Mapping[TenantId, int] = field(default_factory=dict)
    kills: Mapping[TenantId, int] = field(default_factory=dict)
    kill_records: Mapping[JobId, Kills] = field(default_factory=dict)
    funds: Mapping[TenantId, int] = field(default_factory=dict)
    ended: tuple[Claim, ...] = ()
