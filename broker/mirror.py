"""The leader's picture of the queue and of what live runs hold, kept in step by event number.

What belongs here: applying what changed, and making snapshots.  Waiting jobs are kept per class as
ids and times; the rest of a job stays in the store until it is placed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from broker.core.claims import Claims
from broker.core.estimates import FORGOTTEN, HALF_LIFE_S, History, RunTimes
from broker.core.identity import avoiding_key
from broker.core.model import (
    Accelerator,
    CenterId,
    Claim,
    JobClass,
    JobId,
    JobRequest,
    Kills,
    QueuedJob,
    RunId,
    RunTime,
    Snapshot,
    TenantId,
)
from broker.core.queue import JobQueue
from broker.store import Store, feed, learned

USAGE_PERIOD_S = 60
"""Usage is a matter of hours."""

RUN_TIMES_PERIOD_S = 60
"""Learned run times are read that often: classes whose run time changes are weighed anew."""


@dataclass(slots=True)
class _Class:
    """Jobs of one class that avoid no center.  `ordered` lacks what has `gone` and `come` since."""

    request: JobRequest
    tenant: TenantId
    jobs: dict[JobId, int] = field(default_factory=dict)
    ordered: JobQueue = field(default_factory=JobQueue)
    gone: dict[JobId, int] = field(default_factory=dict)
    come: dict[JobId, int] = field(default_factory=dict)

    def put(self, job: JobId, queued_ms: int) -> None:
        if job in self.jobs:
            self.take(job)
        self.jobs[job] = self.come[job] = queued_ms

    def take(self, job: JobId) -> None:
        queued_ms = self.jobs.pop(job)
        if self.come.pop(job, None) is None:
            self.gone[job] = queued_ms

    def in_order(self) -> JobQueue:
        if self.gone or self.come:
            gone, come = ([QueuedJob(*pair) for pair in pairs.items()] for pairs in (self.gone, self.come))
            self.ordered = self.ordered.changed(gone, come)
            self.gone.clear()
            self.come.clear()
        return self.ordered


@dataclass(frozen=True, slots=True)
class _Avoiding:
    """A waiting job that keeps away from centers for a while: rare, so kept one by one."""

    key: str
    tenant: TenantId
    queued_ms: int
    avoid: tuple[tuple[CenterId, int], ...]


SPARE_REQUESTS = 1000
"""Requests kept of classes that nobody waits in: many come back."""


class Mirror:
    """`await refresh(store)`, then `snapshot(...)`.

    `arrived` are jobs that came to wait with the last refresh; none with the first.
    """

    def __init__(self) -> None:
        self.version: int | None = None
        self.arrived: set[JobId] = set()
        self._classes: dict[str, _Class] = {}
        self._class_of: dict[JobId, str] = {}
        self._avoiding: dict[JobId, _Avoiding] = {}
        self._requests: dict[str, JobRequest] = {}
        self._claims: dict[JobId, dict[RunId, Claim]] = {}
        self._ordered = Claims.of(())  # lacks what has gone and come since
        self._gone: set[RunId] = set()
        self._come: dict[RunId, Claim] = {}
        self._kills: dict[JobId, Kills] = {}
        self._usage: tuple[int, Mapping[TenantId, int]] | None = None
        self._run_times: RunTimes | None = None
        self._read_ms = 0  # when learned run times were read
        self._known: dict[str, RunTime | None] = {}  # of classes, since then

    @property
    def queued(self) -> int:
        return len(self._class_of) + len(self._avoiding)

    async def refresh(self, store: Store, *, learn: bool = True) -> None:
        """Apply what the store has that this picture has not; `learn`: learned run times, too."""
        changes = await store.read(feed.changes, self.version, frozenset(self._requests))
        self._apply(changes)
        now_ms = store.clock()
        if learn and (self._run_times is None or now_ms - self._read_ms >= RUN_TIMES_PERIOD_S * 1000):
            since_ms = 0 if self._run_times is None else self._read_ms
            news = await store.read(learned.histories, since_ms)
            self._run_times = await asyncio.to_thread(self._learned, news, now_ms)
            self._read_ms = now_ms
            self._plan_anew()
        elif not learn and self._run_times is not None:
            self._run_times = None
            self._plan_anew()

    def _learned(self, news: Sequence[tuple[str, History]], now_ms: int) -> RunTimes:
        known = RunTimes() if self._run_times is None else self._run_times
        for key, history in news:
            known.put(key, history)
        known.forget(now_ms - FORGOTTEN * HALF_LIFE_S * 1000)
        known.running((c for held in self._claims.values() for c in held.values() if not c.stopping), now_ms)
        return known

    def _plan_anew(self) -> None:
        self._known.clear()
        for held in self._claims.values():
            for run, claim in held.items():
                planned = self._planned(claim)
                if planned is not claim:
                    held[run] = self._come[run] = planned

    def _planned(self, claim: Claim) -> Claim:
        if claim.request is None:
            return claim
        expected = self.run_time(claim.class_key, claim.request, claim.tenant)
        return claim if expected == claim.learned else replace(claim, learned=expected)

    def claims_of(self, job: JobId) -> tuple[Claim, ...]:
        """What the live runs of a job hold."""
        return tuple(self._claims.get(job, {}).values())

    async def used(self, store: Store, now_ms: int, half_life_s: int | None) -> Mapping[TenantId, int]:
        """Usage per tenant where a policy asks for it, read once in a while."""
        if half_life_s is None:
            return {}
        if self._usage is None or now_ms - self._usage[0] >= USAGE_PERIOD_S * 1000:
            self._usage = (now_ms, await store.read(feed.usage, now_ms, half_life_s))
        return self._usage[1]

    def run_time(self, key: str, request: JobRequest, tenant: TenantId) -> RunTime | None:
        """What jobs of a class are expected to take, as it was learned; `key` "": of no class."""
        if self._run_times is None:
            return None
        if not key:
            return self._run_times.of(request, tenant)
        if key not in self._known:
            self._known[key] = self._run_times.of(request, tenant)
        return self._known[key]

    def _apply(self, changes: feed.Changes) -> None:
        self._requests |= changes.requests
        waited = {row.id for row in changes.queued if row.id in self._class_of or row.id in self._avoiding}
        if changes.jobs is None:
            self._classes.clear()
            self._class_of.clear()
            self._avoiding.clear()
            self._claims.clear()
            self._ordered, self._gone, self._come = Claims.of(()), set(), {}
            self._kills.clear()
        else:
            for job in changes.jobs:
                self._forget(job)
        for row in changes.queued:
            self._queue(row)
        first = changes.jobs is None
        self.arrived = set() if first else {row.id for row in changes.queued} - waited
        for job, claim in changes.claims:
            planned = self._come[claim.run] = self._planned(claim)
            self._claims.setdefault(job, {})[claim.run] = planned
        self.version = changes.version
        if len(self._requests) > 2 * len(self._classes) + SPARE_REQUESTS:
            waiting = self._classes.keys() | {avoiding.key for avoiding in self._avoiding.values()}
            self._requests = {key: self._requests[key] for key in waiting}

    def _forget(self, job: JobId) -> None:
        for run in self._claims.pop(job, ()):
            self._gone.add(run)
            self._come.pop(run, None)
        self._avoiding.pop(job, None)
        self._kills.pop(job, None)
        key = self._class_of.pop(job, None)
        if key is not None:
            entry = self._classes[key]
            entry.take(job)
            if not entry.jobs:
                del self._classes[key]

    def _queue(self, row: feed.QueuedRow) -> None:
        if row.kills is not None:
            self._kills[row.id] = row.kills
        if row.avoid:
            self._avoiding[row.id] = _Avoiding(row.class_key, row.tenant, row.queued_ms, row.avoid)
            return
        entry = self._classes.get(row.class_key)
        if entry is None:
            entry = self._classes[row.class_key] = _Class(self._requests[row.class_key], row.tenant)
        entry.put(row.id, row.queued_ms)
        self._class_of[row.id] = row.class_key

    def snapshot(
        self,
        world: feed.World,
        *,
        now_ms: int,
        minute_of_week: int,
        accelerators: dict[str, Accelerator],
        usage: Mapping[TenantId, int] = MappingProxyType({}),
    ) -> Snapshot:
        """Everything a round may look at."""
        classes = self._job_classes(now_ms)
        if self._gone or self._come:
            self._ordered = self._ordered.changed(self._gone, self._come.values())
            self._gone, self._come = set(), {}
        return Snapshot(
            version=self.version or 0,
            now_ms=now_ms,
            minute_of_week=minute_of_week,
            centers=world.centers,
            pools=world.pools,
            claims=self._ordered,
            reservations=world.reservations,
            classes=tuple(sorted(classes, key=lambda c: (c.key, sorted(c.avoid)))),
            accelerators=accelerators,
            ready_data=world.ready_data,
            usage=usage,
            kills=world.kills,
            funds=world.funds,
            kill_records=dict(self._kills),
            ended=world.ended,
        )

    def _job_classes(self, now_ms: int) -> list[JobClass]:
        """Waiting jobs by class, and within it by the centers that they avoid at this moment."""
        groups: dict[tuple[str, frozenset[CenterId]], list[tuple[int, JobId]]] = {}
        for job, waiting in self._avoiding.items():
            avoid = frozenset(center for center, until in waiting.avoid if until > now_ms)
            groups.setdefault((waiting.key, avoid), []).append((waiting.queued_ms, job))
        classes = []
        for key, entry in self._classes.items():
            jobs: Sequence[QueuedJob] = entry.in_order()
            if (back := groups.pop((key, frozenset()), None)) is not None:  # avoid nothing any more
                jobs = tuple(sorted((*jobs, *_jobs(back)), key=lambda job: (job.queued_ms, job.id)))
            expected = self.run_time(key, entry.request, entry.tenant)
            classes.append(
                JobClass(key=key, request=entry.request, tenant=entry.tenant, jobs=jobs, learned=expected)
            )
        for (key, avoid), pairs in groups.items():
            tenant = self._avoiding[pairs[0][1]].tenant
            classes.append(
                JobClass(
                    key=avoiding_key(key, avoid),
                    request=self._requests[key],
                    tenant=tenant,
                    jobs=_jobs(pairs),
                    avoid=avoid,
                    learned=self.run_time(key, self._requests[key], tenant),
                )
            )
        return classes


def _jobs(pairs: list[tuple[int, JobId]]) -> tuple[QueuedJob, ...]:
    return tuple(QueuedJob(job, queued_ms) for queued_ms, job in sorted(pairs))
