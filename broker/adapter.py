"""The adapter protocol: everything the broker asks of a platform, and the errors it may answer with.

What belongs here: the protocol, its value types and its errors.  What does not: any platform.

Rules for an adapter.  No waiting, no polling, no retrying inside: the caller sets the deadline and
cancels the coroutine when it passes.  The platform's own words stay in `raw` and in messages;
states, codes and product names are translated.  A cancelled or failed call with an effect counts
as "effect unknown" unless the error says otherwise.  An adapter never subtracts the broker's own
runs from what it reports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, cast

from broker.core.model import (
    Accuracy,
    CenterId,
    FreeNodes,
    JobId,
    Kind,
    NodeShape,
    Price,
    RemoteId,
    RunId,
    Spec,
)
from broker.vendor import Argument as Argument
from broker.vendor import ArgumentKind as ArgumentKind
from broker.vendor import Callback as Callback
from broker.vendor import Desk as Desk
from broker.vendor import PlatformRequest as PlatformRequest
from broker.vendor import RawAnswer as RawAnswer
from broker.vendor import Standing as Standing
from broker.vendor import VendorCommand as VendorCommand


class AdapterError(Exception):
    """Root of what an adapter may raise; anything else is a defect and is treated as Unavailable."""


class Unavailable(AdapterError):
    """The center did not answer, or not intelligibly.  Whether the call had its effect is unknown."""


class Throttled(AdapterError):
    """The center asks for patience; the call had no effect."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Denied(AdapterError):
    """Credentials or contract; the call had no effect and repeating it will not help."""


class NoCapacity(AdapterError):
    """The center is full right now; the call had no effect."""


class Refused(AdapterError):
    """This request never fits here; the call had no effect.  The text is shown to the user."""


class Unsupported(AdapterError):
    """The platform has no such function; the call had no effect."""


MAY_CALL: ContextVar[Callable[[], bool]] = ContextVar("may_call", default=lambda: True)
"""Whether this daemon still leads: asked before each call, and again before each request of it leaves,
because a process may be stopped anywhere in between and wake when another leads."""


class Lookup(StrEnum):
    """How a run whose submission had no answer can be looked for."""

    FIND_BY_NAME = "find_by_name"
    LIST_ALL = "list_all"
    EVIDENCE = "evidence"  # a run that is there may be found; finding nothing proves nothing
    NEITHER = "neither"


@dataclass(frozen=True, slots=True)
class Traits:
    """Facts about a platform as this center runs it; never wishes.

    Where `priority` or `vip_wait` holds, a run for which nothing is idle waits in the platform's own
    queue before lower ones and is not refused: a VIP job is sent there before its victims are stopped.
    """

    gang: bool = False  # several nodes start together or not at all
    priority: bool = False  # RunSpec.priority orders its queue
    vip_wait: bool = False  # RunSpec.vip goes first in its queue
    vip_flag: bool = False  # RunSpec.vip is passed on, and nobody can say what it does there
    vip_kill: bool = False  # it can stop others for RunSpec.vip with preempt_policy 2
    node_hold: bool = False  # it can hold RunSpec.vip_nodes
    resume: bool = False  # a run can go on from RunSpec.resume_from, or from BROKER_CHECKPOINT_DIR
    logs: bool = False
    results: bool = False
    services: bool = False
    address: bool = False
    metering: bool = False  # it keeps its own record of what a run used: Meters
    any_image_url: bool = True
    idle: Accuracy = Accuracy.UNKNOWN
    lookup: Lookup = Lookup.NEITHER
    two_phase_create: bool = False
    max_batch: int = 100  # runs per observe call
    look_pause_s: float = 3.0  # between looks while a run is about to change; at most the poll interval
    report_lag_s: int = 0  # a run that started longer ago than this is in the reported idle figure
    lookup_lag_s: int = 0  # a run created longer ago than this is found if it exists
    submit_timeout_s: int = 30
    max_run_time_s: int | None = None


@dataclass(frozen=True, slots=True)
class PoolReport:
    """One native unit of a center, nodes of one shape: see model.Pool.

    `node_names` are the platform's names of its nodes where it tells them.  `accuracy` where it is not
    that of the whole report.  A shape whose cards have 0 GiB: the platform does not tell; the product's
    size is taken where it is sold in one size only.
    """

    native: str
    shape: NodeShape
    nodes: int
    free: tuple[FreeNodes, ...]
    specs: tuple[Spec, ...] = ()
    prices: tuple[Price, ...] = ()
    node_names: tuple[str, ...] = ()
    accuracy: Accuracy | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """A whole report of a center's capacity; `as_of_ms` is when it was true there.

    `quarantined` lists products or units that could not be read, each with the reason: they are
    shown and never scheduled.
    """

    as_of_ms: int
    accuracy: Accuracy
    pools: tuple[PoolReport, ...]
    queue_length: int | None = None
    quarantined: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """One image as a center offers it; `id` is the logical one, `native` the center's own."""

    id: str
    native: str
    name: str = ""
    desc: str = ""
    arch: str = ""
    processor: str = ""
    os: str = ""
    framework: str = ""
    installed_lib: tuple[str, ...] = ()


class AssetKind(StrEnum):
    DATASET = "dataset"
    MODEL = "model"
    APP = "app"


@dataclass(frozen=True, slots=True)
class Asset:
    """A data set, model or application that a center has of its own.

    `native` is the center's own id of it; `id` the logical one, "": the broker makes one of its own.
    `labels` are words between commas.  `remote` is what RunSpec.datasets tells of a data set; "": jobs
    cannot be given it.
    """

    native: str
    title: str
    id: str = ""
    desc: str = ""
    labels: str = ""
    owner: str = ""
    bytes: int = 0
    remote: str = ""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What else a platform lists; a part it does not have is empty."""

    images: tuple[Image, ...] = ()
    datasets: tuple[Asset, ...] = ()
    models: tuple[Asset, ...] = ()
    apps: tuple[Asset, ...] = ()


@dataclass(frozen=True, slots=True)
class RunSpec:
    """Everything a platform needs to start one run.

    `id` is the remote name: our prefix and ten base32 characters, lower case, at most 20 characters.
    BROKER_CHECKPOINT_DIR is the same for all runs of `job` at one center.  BROKER_DATASETS_DIR has an
    entry for each of `datasets`, named by its id.  `env` holds the job's own variables.  `vip`,
    `preempt_policy`, `vip_nodes`, `priority` and `resume_from` differ from their defaults only where
    the traits and the center's operator let the platform act on them.
    """

    id: RunId
    job: JobId
    attempt: int
    native_pool: str
    spec: Spec
    nodes: int
    command: str
    image: str  # the center's own id, or the URL
    env: tuple[tuple[str, str], ...]
    max_run_time_s: int | None
    stop_grace_s: int
    kind: Kind = Kind.TRAIN
    port: int | None = None
    vip: bool = False
    preempt_policy: int = 1
    vip_nodes: tuple[str, ...] = ()
    priority: int = 1
    datasets: tuple[tuple[str, str], ...] = ()  # (data set id, CopySighting.remote of its copy here)
    labels: tuple[tuple[str, str], ...] = ()
    resume_from: RunId | None = None


@dataclass(frozen=True, slots=True)
class RunRef:
    """A run as later calls name it."""

    id: RunId
    job: JobId
    remote: RemoteId
    nodes: int


class RemoteState(StrEnum):
    """What a platform says of a run.  GONE: the platform itself says that it does not exist."""

    CREATED = "CREATED"  # two phases: it exists, and no start of it is known there
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    GONE = "GONE"
    UNKNOWN = "UNKNOWN"  # a word that is not in the platform's documents; occupies capacity


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at one run.  Times are the center's own, in UTC milliseconds.

    `checkpoint_ms` is when its newest checkpoint was written, by what can be seen of it; None where
    nobody looks or there is none.
    """

    state: RemoteState
    started_ms: int | None = None
    ended_ms: int | None = None
    exit_code: int | None = None
    evicted_by: str = ""
    host_lost: bool = False
    cannot_start: bool = False  # the command or image could not be started at all
    address: str = ""
    message: str = ""
    raw: str = ""
    checkpoint_ms: int | None = None


@dataclass(frozen=True, slots=True)
class CopyRef:
    """A data set on its way to a center: `source` is the path of its folder on this machine."""

    dataset: str
    center: CenterId
    source: str
    bytes: int
    remote: str = ""


class CopyState(StrEnum):
    WANTED = "WANTED"
    MOVING = "MOVING"
    READY = "READY"
    FAILED = "FAILED"
    EVICTING = "EVICTING"  # the broker's own: its removal is owed; no adapter answers it


@dataclass(frozen=True, slots=True)
class CopySighting:
    state: CopyState
    remote: str = ""
    bytes_done: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class ResultFile:
    """One result of a run: `path` is relative, with forward slashes; `chunks` yields its bytes."""

    path: str
    size: int
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `broker doctor`."""

    name: str
    ok: bool
    detail: str = ""


Spans = tuple[tuple[int, int], ...]
"""Start and end of each node of a run by the center's own record, in UTC milliseconds."""


class Meters(Protocol):
    """What an adapter with `traits.metering` has besides."""

    async def metered(self, runs: Collection[RunRef]) -> Mapping[RunId, Spans]:
        """What the center's record says of ended runs so far, in pieces or twice over if it does; a run
        that is absent: nothing yet."""
        ...


class Adapter(Protocol):
    """One center's platform.

    Two optional tables are looked up by name: `commands`, of VendorCommand, and `callbacks`, of
    Callback.  One with `traits.metering` is a Meters, too.  Optional too is
    `async def unstage(copy: CopyRef) -> None`, which removes a copy that
    `stage` made, whole or half; one that is not there is done, not an error.  And
    `async def runs() -> Collection[RunId]`, the names of all runs that live there.
    """

    center: CenterId
    traits: Traits

    async def probe(self) -> Inventory:
        """All capacity, whole, or raise."""
        ...

    async def catalogue(self) -> Catalogue:
        """Images and the like, where the platform has them."""
        ...

    async def submit(self, run: RunSpec) -> RemoteId:
        """Create the run (and start it, unless `two_phase_create`).  Must be named `run.id` there."""
        ...

    async def start(self, run: RunRef) -> None:
        """Start a created run; `two_phase_create` only.  Until the platform knows of it, the run is
        seen as CREATED."""
        ...

    async def find(self, run: RunId) -> RemoteId | None:
        """Look a run up by its name; None means the platform answered and does not know it.

        With Lookup.EVIDENCE, None means that nothing shows that it is there.
        """
        ...

    async def observe(self, runs: Collection[RunRef]) -> Mapping[RunId, Sighting]:
        """One look at many runs, at most `traits.max_batch`.  A run that is absent: no news."""
        ...

    async def stop(self, run: RunRef, *, grace_s: int) -> None:
        """Ask a run to end; a run that is unknown or finished is done, not an error."""
        ...

    async def stage(self, copy: CopyRef) -> CopySighting:
        """One idempotent step of moving data; called until READY or FAILED."""
        ...

    def logs(self, run: RunRef, node: int, offset: int) -> AsyncIterator[bytes]:
        """The output of one node from a byte offset up to what is there now."""
        ...

    def results(self, run: RunRef) -> AsyncIterator[ResultFile]:
        """What the run left in BROKER_OUTPUT_DIR."""
        ...

    async def delete(self, run: RunRef) -> None:
        """Remove what the platform still keeps of an ended run; unknown is done."""
        ...

    def checks(self) -> AsyncIterator[Check]:
        """What `broker doctor` shows, cheapest first."""
        ...

    async def call(self, method: str, path: str, body: bytes | None) -> RawAnswer:
        """An operator's raw call; credentials are added here and never leave."""
        ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StatedPool:
    """Capacity an operator states where the platform cannot tell it ([[centers.pools]])."""

    native: str
    shape: NodeShape
    nodes: int


@dataclass(frozen=True, slots=True)
class Connection:
    """What an adapter is built from: its part of the configuration, secrets already resolved.

    `broker` is what this broker is called among brokers: a hop of core/hops.py.
    """

    center: CenterId
    prefix: str  # of every remote name
    options: Mapping[str, Any] = field(default_factory=dict)
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    pools: tuple[StatedPool, ...] = ()
    desk: Desk | None = field(default=None, repr=False, compare=False)  # None: nobody answers callbacks
    broker: str = ""


AdapterFactory = Callable[[Connection], Awaitable[Adapter]]


def commands_of(adapter: Adapter) -> tuple[VendorCommand, ...]:
    """The vendor commands of an adapter, if it has any."""
    return tuple(getattr(adapter, "commands", ()))


def unstage_of(adapter: Adapter) -> Callable[[CopyRef], Awaitable[None]] | None:
    """What removes copies of data sets from an adapter's center; None where nothing can."""
    return getattr(adapter, "unstage", None)


def runs_of(adapter: Adapter) -> Callable[[], Awaitable[Collection[RunId]]] | None:
    """What lists the runs that live at an adapter's center; None where nothing does."""
    return getattr(adapter, "runs", None)


def meters_of(adapter: Adapter) -> Meters | None:
    """The adapter's way to its center's own record, if it has one."""
    return cast(Meters, adapter) if adapter.traits.metering else None


def callbacks_of(adapter: Adapter) -> tuple[Callback, ...]:
    """The paths that its platform calls, if there are any."""
    return tuple(getattr(adapter, "callbacks", ()))
