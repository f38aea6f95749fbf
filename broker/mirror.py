"""The leader's picture of the queue and of what live runs hold, kept in step by event number.

What belongs here: applying what changed, and making snapshots.  Waiting jobs are kept per class as
ids and times; the rest of a job stays in the store until it is placed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.core.identity import avoiding_key
from broker.core.model import (
    Accelerator,
    CenterId,
    Claim,
    JobClass,
    JobId,
    JobRequest,
    QueuedJob,
    RunId,
    Snapshot,
    TenantId,
)
from broker.store import Store, feed


@dataclass(slots=True)
class _Class:
    """Jobs of one class that avoid no center.  `ordered` is rebuilt after a change."""

    request: JobRequest
    tenant: TenantId
    jobs: dict[JobId, int] = field(default_factory=dict)
    ordered: tuple[QueuedJob, ...] | None = None

    def in_order(self) -> tuple[QueuedJob, ...]:
        if self.ordered is None:
            self.ordered = _jobs([(queued_ms, job) for job, queued_ms in self.jobs.items()])
        return self.ordered


@dataclass(frozen=True, slots=True)
class _Avoiding:
    """A waiting job that keeps away from centers for a while: rare, so kept one by one."""

    key: str
    tenant: TenantId
    queued_ms: int
    avoid: tuple[tuple[CenterId, int], ...]


class Mirror:
    """`await refresh(store)`, then `snapshot(...)`."""

    def __init__(self) -> None:
        self.version: int | None = None
        self._classes: dict[str, _Class] = {}
        self._class_of: dict[JobId, str] = {}
        self._avoiding: dict[JobId, _Avoiding] = {}
        self._requests: dict[str, JobRequest] = {}
        self._claims: dict[JobId, dict[RunId, Claim]] = {}

    @property
    def queued(self) -> int:
        return len(self._class_of) + len(self._avoiding)

    async def refresh(self, store: Store) -> None:
        """Apply what the store has that this picture has not."""
        changes = await store.read(feed.changes, self.version, frozenset(self._requests))
        self._apply(changes)

    def _apply(self, changes: feed.Changes) -> None:
        self._requests |= changes.requests
        if changes.jobs is None:
            self._classes.clear()
            self._class_of.clear()
            self._avoiding.clear()
            self._claims.clear()
        else:
            for job in changes.jobs:
                self._forget(job)
        for row in changes.queued:
            self._queue(row)
        for job, claim in changes.claims:
            self._claims.setdefault(job, {})[claim.run] = claim
        self.version = changes.version

    def _forget(self, job: JobId) -> None:
        self._claims.pop(job, None)
        self._avoiding.pop(job, None)
        key = self._class_of.pop(job, None)
        if key is not None:
            entry = self._classes[key]
            del entry.jobs[job]
            entry.ordered = None
            if not entry.jobs:
                del self._classes[key]

    def _queue(self, row: feed.QueuedRow) -> None:
        if row.avoid:
            self._avoiding[row.id] = _Avoiding(row.class_key, row.tenant, row.queued_ms, row.avoid)
            return
        entry = self._classes.get(row.class_key)
        if entry is None:
            entry = self._classes[row.class_key] = _Class(self._requests[row.class_key], row.tenant)
        entry.jobs[row.id] = row.queued_ms
        entry.ordered = None
        self._class_of[row.id] = row.class_key

    def snapshot(
        self,
        world: feed.World,
        *,
        now_ms: int,
        minute_of_week: int,
        accelerators: dict[str, Accelerator],
    ) -> Snapshot:
        """Everything a round may look at.  Classes whose data is on its way are left out: no capacity
        is held for them meanwhile."""
        classes = self._job_classes(now_ms)
        ready = [c for c in classes if world.moving.isdisjoint(c.request.datasets)]
        claims = [claim for held in self._claims.values() for claim in held.values()]
        return Snapshot(
            version=self.version or 0,
            now_ms=now_ms,
            minute_of_week=minute_of_week,
            centers=world.centers,
            pools=world.pools,
            claims=tuple(sorted(claims, key=lambda c: c.run)),
            reservations=world.reservations,
            classes=tuple(sorted(ready, key=lambda c: (c.key, sorted(c.avoid)))),
            accelerators=accelerators,
        )

    def _job_classes(self, now_ms: int) -> list[JobClass]:
        """Waiting jobs by class, and within it by the centers that they avoid at this moment."""
        groups: dict[tuple[str, frozenset[CenterId]], list[tuple[int, JobId]]] = {}
        for job, waiting in self._avoiding.items():
            avoid = frozenset(center for center, until in waiting.avoid if until > now_ms)
            groups.setdefault((waiting.key, avoid), []).append((waiting.queued_ms, job))
        classes = []
        for key, entry in self._classes.items():
            jobs = entry.in_order()
            if (back := groups.pop((key, frozenset()), None)) is not None:  # avoid nothing any more
                jobs = tuple(sorted((*jobs, *_jobs(back)), key=lambda job: (job.queued_ms, job.id)))
            classes.append(JobClass(key=key, request=entry.request, tenant=entry.tenant, jobs=jobs))
        for (key, avoid), pairs in groups.items():
            tenant = self._avoiding[pairs[0][1]].tenant
            classes.append(
                JobClass(
                    key=avoiding_key(key, avoid),
                    request=self._requests[key],
                    tenant=tenant,
                    jobs=_jobs(pairs),
                    avoid=avoid,
                )
            )
        return classes


def _jobs(pairs: list[tuple[int, JobId]]) -> tuple[QueuedJob, ...]:
    return tuple(QueuedJob(job, queued_ms) for queued_ms, job in sorted(pairs))
