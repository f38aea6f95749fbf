"""The words for what jobs, runs, centers and people are and do: closed vocabularies.

What belongs here: enumerations, and how states are told northbound.  What does not: facts that have
them (model.py, from which they can be had too), and how states change (machine.py).
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class JobState(StrEnum):
    """A job is what somebody asked for; it outlives its runs.  Ended states are written once."""

    QUEUED = "QUEUED"  # the scheduler moves it out
    ACTIVE = "ACTIVE"  # its one live run moves it out
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def ended(self) -> bool:
        return self not in (JobState.QUEUED, JobState.ACTIVE)


class RunState(StrEnum):
    """A run is one attempt at one center; northbound it is a *task*."""

    NEW = "NEW"  # no center yet; a plan moves it out
    SUBMITTING = "SUBMITTING"  # the outbox holds it; dispatch moves it out
    DOUBT = "DOUBT"  # the call's outcome is unknown; looking, then an operator, moves it out
    PENDING = "PENDING"  # accepted by the center; observation moves it out
    RUNNING = "RUNNING"  # observation moves it out
    LOST = "LOST"  # the center does not know it or is silent; observation or `onLost` moves it out
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    ABANDONED = "ABANDONED"  # given up while lost; a stop stays owed to the center

    @property
    def live(self) -> bool:
        return self in LIVE_RUN_STATES

    @property
    def at_center(self) -> bool:
        """True when the run may hold capacity of a center."""
        return self.live and self is not RunState.NEW


LIVE_RUN_STATES = frozenset(
    {
        RunState.NEW,
        RunState.SUBMITTING,
        RunState.DOUBT,
        RunState.PENDING,
        RunState.RUNNING,
        RunState.LOST,
    }
)


class PublicStatus(StrEnum):
    """The six job states of T/AI 123.8, table 4."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    UNKNOWN = "UNKNOWN"


def public_status(state: JobState, run: RunState | None) -> PublicStatus:
    """The standard's state of a job from its own state and that of its live run, if it has one."""
    if state.ended:
        return PublicStatus(state.value)
    if run is RunState.RUNNING:
        return PublicStatus.RUNNING
    if run is RunState.LOST:
        return PublicStatus.UNKNOWN
    return PublicStatus.PENDING


def public_run_status(run: RunState) -> PublicStatus:
    """The standard's state of one task."""
    if run is RunState.ABANDONED:
        return PublicStatus.UNKNOWN
    if run.live:
        return public_status(JobState.ACTIVE, run)
    return PublicStatus(run.value)


class FailureKind(StrEnum):
    """Why a run ended without success; decides what a retry costs (core/retry.py)."""

    JOB = "job"  # its own exit code
    COMMAND = "command"  # the command could not be started
    NEVER_ARRIVED = "never_arrived"  # proven not to exist at the center
    NO_CAPACITY = "no_capacity"  # refused: the center is full
    REFUSED = "refused"  # refused: it never fits there
    DENIED = "denied"  # refused: credentials or contract
    EVICTED = "evicted"  # killed by the platform for another job
    HOST = "host"  # a machine died under it
    LOST = "lost"  # the center forgot it and the job says `onLost = fail`
    DEADLINE = "deadline"  # ran longer than maxRunTime


class StopReason(StrEnum):
    """Why a live run is asked to end; valid in every live state."""

    PREEMPT = "preempt"
    RECALL = "recall"  # the operator drains the center and asks for its jobs back
    DEADLINE = "deadline"
    CANCEL = "cancel"


class Kind(StrEnum):
    TRAIN = "train"
    ONLINE = "online"


class Tier(IntEnum):
    """Order classes of the queue, lowest first.  Names are those of `config.priority` and VIP."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    VIP = 3


class Why(StrEnum):
    """What a reservation holds capacity for; the order is the order in which they are served."""

    PREEMPTING = "preempting"  # runs were asked to end for the job
    VIP = "vip"  # a VIP job waits for lower work to end
    GANG = "gang"  # a gang or a large job has waited too long


class OnLost(StrEnum):
    WAIT = "wait"
    RERUN = "rerun"
    FAIL = "fail"


class Role(StrEnum):
    USER = "user"
    TENANT_ADMIN = "tenant-admin"
    OPERATOR = "operator"


class CenterState(StrEnum):
    """Slurm's life cycle of a federated cluster; the more restrictive of file and command wins."""

    ACTIVE = "active"
    DRAIN = "drain"  # runs go on, none is sent
    INACTIVE = "inactive"  # neither polled nor sent to


class Health(StrEnum):
    """What the last polls of a center say."""

    UNKNOWN = "unknown"  # never polled
    FRESH = "fresh"
    SUSPECT = "suspect"  # the last poll failed; capacity ages
    DOWN = "down"  # silent for several polls; nothing is sent there


class Accuracy(StrEnum):
    """How a center knows its idle capacity."""

    EXACT = "exact"
    ESTIMATED = "estimated"
    UNKNOWN = "unknown"
