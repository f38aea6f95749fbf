"""What an ended run leads to: another attempt or the end of the job.

Only the job's own failures spend `maxRetries`.  What a center or the broker caused is free, but the
job keeps away from that center for a while, longer each time, so that a center that eats jobs does
not get the same one at once.

An online service has no end of its own: whatever its exit code, 0 among them, it is started again
within its retries, after a pause that doubles with every end that is still remembered (`avoiding`).
"""

from __future__ import annotations

from dataclasses import dataclass

from broker.core.model import EVERY_CENTER, CenterId, FailureKind, JobFacts


@dataclass(frozen=True, slots=True)
class Again:
    """Another attempt.  `avoid_s`: how long the job keeps away from the center, 0 for not at all;
    `everywhere`: from every center."""

    spends_retry: bool
    avoid_s: int
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job ends as FAILED."""


Decision = Again | GiveUp

AVOID_S: dict[FailureKind, tuple[int, int]] = {
    # kind: (first, longest) seconds away from the center; doubled for each refusal still remembered
    FailureKind.NO_CAPACITY: (30, 600),
    FailureKind.HOST: (60, 3600),
    FailureKind.EVICTED: (0, 0),
    FailureKind.NEVER_ARRIVED: (60, 3600),
    FailureKind.DENIED: (600, 3600),
    FailureKind.REFUSED: (86_400, 86_400),
}


RESTART_S = (2, 300)
"""(first, longest) pause of an online service before it is started again, doubled each time."""


def restart(job: JobFacts) -> Decision:
    """What becomes of an online service whose process has ended by itself."""
    if job.retries_used >= job.request.max_retries:
        return GiveUp()
    first, longest = RESTART_S
    ends = sum(center == EVERY_CENTER for center, _ in job.avoid)
    return Again(spends_retry=True, avoid_s=min(longest, first << min(ends, 16)), everywhere=True)


def decide(job: JobFacts, kind: FailureKind) -> Decision:
    """Another attempt or not, for a run of `job` that failed by `kind` (see FailureKind)."""
    if job.request.endless and kind in (FailureKind.JOB, FailureKind.COMMAND):
        return restart(job)
    if kind is FailureKind.JOB:
        spent = job.retries_used >= job.request.max_retries
        return GiveUp() if spent else Again(spends_retry=True, avoid_s=0)
    if kind in (FailureKind.COMMAND, FailureKind.LOST, FailureKind.DEADLINE):
        return GiveUp()
    first, longest = AVOID_S[kind]
    return Again(spends_retry=False, avoid_s=min(longest, first << min(len(job.avoid), 16)))


def avoiding(
    job: JobFacts, center: CenterId | None, *, avoid_s: int, now_ms: int
) -> tuple[tuple[CenterId, int], ...]:
    """`job.avoid` with `center` added until `avoid_s` from now.

    A refusal is remembered for an hour after it has expired, so that the next one is longer.
    """
    kept = tuple((c, until) for c, until in job.avoid if until + 3_600_000 > now_ms)
    if center is None or avoid_s == 0:
        return kept
    return (*kept, (center, now_ms + avoid_s * 1000))


LONGEST_DEBT_PAUSE_S = 300


def debt_pause_s(tries: int) -> int:
    """Seconds until a stop, collection or deletion is tried again: 1, 2, 4 … 300."""
    return min(LONGEST_DEBT_PAUSE_S, 1 << min(tries, 16))
