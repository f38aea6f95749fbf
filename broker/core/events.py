"""What happens to a run and what follows: events in the past tense, commands in the imperative.

What belongs here: their facts.  What does not: what an event changes (core/machine.py) and carrying a
command out (broker.store.runs).
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.model import CenterId, FailureKind, RemoteId, RunState, StopReason

# ---------------------------------------------------------------- events, in the past tense


@dataclass(frozen=True, slots=True)
class Event:
    at_ms: int


@dataclass(frozen=True, slots=True)
class Placed(Event):
    """A plan gave the run a center."""

    center: CenterId


@dataclass(frozen=True, slots=True)
class Accepted(Event):
    """The center took the submission or the start.  `to_start`: the run was only created and needs a
    start call."""

    remote: RemoteId
    to_start: bool = False


@dataclass(frozen=True, slots=True)
class SubmitRefused(Event):
    """The center said no to a submission or start, with no effect."""

    failure: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class OutcomeUnknown(Event):
    """The submission or start left, or may have left, and no answer came."""

    message: str


@dataclass(frozen=True, slots=True)
class Found(Event):
    """A look-up by name found the run."""

    remote: RemoteId


@dataclass(frozen=True, slots=True)
class NotFound(Event):
    """A look-up by name that the center answered, after `not_after_ms`, without the run."""


@dataclass(frozen=True, slots=True)
class SeenCreated(Event):
    """The center has the run and knows of no start (two phases).

    `start_waiting`: the start is in the outbox, so it may be under way.
    """

    start_waiting: bool = True


@dataclass(frozen=True, slots=True)
class SeenPending(Event):
    message: str = ""


@dataclass(frozen=True, slots=True)
class SeenRunning(Event):
    started_ms: int | None = None


@dataclass(frozen=True, slots=True)
class SeenSucceeded(Event):
    started_ms: int | None = None
    ended_ms: int | None = None


@dataclass(frozen=True, slots=True)
class SeenFailed(Event):
    """The center says that the run ended without success, and why as far as it can tell."""

    failure: FailureKind
    message: str
    started_ms: int | None = None
    ended_ms: int | None = None
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class SeenStopped(Event):
    """The center says that the run was stopped."""

    message: str = ""
    started_ms: int | None = None
    ended_ms: int | None = None


@dataclass(frozen=True, slots=True)
class SeenGone(Event):
    """The center says that the run does not exist."""


@dataclass(frozen=True, slots=True)
class WentSilent(Event):
    """The center has not answered for longer than the operator allows."""


@dataclass(frozen=True, slots=True)
class StopRequested(Event):
    """`claimed`: dispatch may already be talking to the center about this run."""

    reason: StopReason
    claimed: bool = True


@dataclass(frozen=True, slots=True)
class Resolved(Event):
    """An operator's word on a run in doubt or lost.

    Exactly one of `never_ran`, `remote` and `ended` (SUCCEEDED, FAILED or STOPPED).
    """

    never_ran: bool = False
    remote: RemoteId | None = None
    ended: RunState | None = None


# ---------------------------------------------------------------- commands, imperative


@dataclass(frozen=True, slots=True)
class Submit:
    """Put the submission into the outbox."""


@dataclass(frozen=True, slots=True)
class Start:
    """Put the start call of a two-phase platform into the outbox."""


@dataclass(frozen=True, slots=True)
class DropSubmission:
    """Take the unclaimed submission or start out of the outbox."""


@dataclass(frozen=True, slots=True)
class OweStop:
    """A stop is owed to the center until it confirms."""


@dataclass(frozen=True, slots=True)
class OweCollect:
    """Logs and results are to be copied before they can vanish."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """Create the job's next run."""

    attempt: int


Command = Submit | Start | DropSubmission | OweStop | OweCollect | NewRun
