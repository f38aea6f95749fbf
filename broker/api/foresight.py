"""Looking ahead for those who ask: when a job is expected to start or end, and what would start it now.

What belongs here: a picture of the queue for a process that serves the API, and who may ask it when.
What does not: the looking (core/forecast.py, core/whatif.py) and the leader's rounds (broker.cycle).

The picture comes from the store alone, by the code the leader uses for its own (broker.mirror), so a
replica that does not lead answers as well.  It is made when somebody asks for the first time, kept in
step, and shared by all who ask within FRESH_S.  One question is worked out at a time, in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from zoneinfo import ZoneInfo

from broker.core.forecast import Eta, end_of
from broker.core.localtime import minute_of_week
from broker.core.model import Accelerator, JobId, JobRequest, RunTime, Snapshot
from broker.core.plan import Plan
from broker.core.policy import PolicySet
from broker.core.queue import as_queue
from broker.core.scheduler import schedule
from broker.core.solver import LP
from broker.core.whatif import Change, Trials, placed, what_if
from broker.interpreter import no_collection
from broker.mirror import Mirror
from broker.store import Store, feed, forecasts
from broker.store.forecasts import ForecastError

FRESH_S = 2.0
"""Seconds for which a picture serves all who ask."""

ERRORS_PERIOD_S = 60
"""Seconds for which the measured error of forecasts serves all who ask."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What can be said of a job: `eta` while it waits, `end` while it runs, each None where nothing can.

    `error` is how far earlier forecasts for its like were off, the finest that is known.
    """

    eta: Eta | None = None
    end: RunTime | None = None
    error: ForecastError | None = None
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class _Picture:
    made_ms: int
    snapshot: Snapshot
    plan: Plan


class Foresight:
    """`policies` and `learn` give what is in force now."""

    def __init__(
        self,
        store: Store,
        *,
        policies: Callable[[], PolicySet],
        learn: Callable[[], bool],
        accelerators: Mapping[str, Accelerator],
        zone: ZoneInfo,
    ) -> None:
        self._store = store
        self._policies = policies
        self._learn = learn
        self._accelerators = dict(accelerators)
        self._zone = zone
        self._mirror = Mirror()
        self._lp = LP()
        self._asking = asyncio.Lock()
        self._picture: _Picture | None = None
        self._errors: tuple[int, list[ForecastError]] | None = None

    async def of_waiting(self, job: JobId, request: JobRequest, *, changes: bool) -> Foreseen:
        """Of a job that waits; `changes`: also what would start it now."""
        async with self._asking:
            picture = await self._look(job)
            if picture is None:
                return Foreseen()
            starts = placed(picture.plan, job)
            if starts is not None:
                pools = {pool.id: pool for pool in picture.snapshot.pools}
                wait_s = pools[starts.pool].expected_wait_s
                eta: Eta | None = Eta(wait_s, wait_s, starts.center)
            else:
                assert picture.plan.outlook is not None, "somebody waits"
                eta = (await asyncio.to_thread(picture.plan.outlook.of, {job})).get(job)
            found: tuple[Change, ...] = ()
            if changes and starts is None:
                found = await asyncio.to_thread(self._changes, picture.snapshot, job, request)
            center = "" if eta is None else eta.center
            error = await self._error(center, "" if request.spec is None else request.spec.id)
            return Foreseen(eta=eta, error=error, changes=found)

    async def of_running(self, job: JobId) -> Foreseen:
        """Of a job that has started."""
        async with self._asking:
            await self._mirror.refresh(self._store, learn=self._learn())
            claims = [c for c in self._mirror.claims_of(job) if c.started_ms is not None]
            return Foreseen(end=end_of(claims[0], self._store.clock()) if claims else None)

    async def _look(self, job: JobId) -> _Picture | None:
        """A picture in which the job waits, None when there is none: it has just changed."""
        now_ms = self._store.clock()
        known = self._picture
        fresh = known is not None and now_ms - known.made_ms < FRESH_S * 1000
        if known is None or not fresh or not _waits(known.snapshot, job):
            await self._mirror.refresh(self._store, learn=self._learn())
            if known is not None and fresh and known.snapshot.version == self._mirror.version:
                return None  # it waits for its data: nothing is planned for it yet
            policies = self._policies()
            snapshot = self._mirror.snapshot(
                await self._store.read(feed.world, now_ms),
                now_ms=now_ms,
                minute_of_week=minute_of_week(now_ms, self._zone),
                accelerators=self._accelerators,
                usage=await self._mirror.used(self._store, now_ms, policies.usage_half_life_s),
            )
            plan = await asyncio.to_thread(self._plan, snapshot, policies)
            known = self._picture = _Picture(now_ms, snapshot, plan)
        return known if _waits(known.snapshot, job) else None

    def _plan(self, snapshot: Snapshot, policies: PolicySet) -> Plan:
        with no_collection():
            return schedule(snapshot, policies, self._lp)

    def _changes(self, snapshot: Snapshot, job: JobId, request: JobRequest) -> tuple[Change, ...]:
        trials = Trials(
            snapshot, self._policies(), job, lp=self._lp, learned=partial(self._mirror.run_time, "")
        )
        return what_if(trials, request)

    async def _error(self, center: str, spec: str) -> ForecastError | None:
        now_ms = self._store.clock()
        if self._errors is None or now_ms - self._errors[0] >= ERRORS_PERIOD_S * 1000:
            self._errors = (now_ms, await self._store.read(forecasts.errors))
        known = {(error.center, error.spec): error for error in self._errors[1]}
        groups = ((center, spec), ("", spec), ("", ""))
        return next((known[group] for group in groups if group in known), None)


def _waits(snapshot: Snapshot, job: JobId) -> bool:
    return any(job in as_queue(job_class.jobs).ids for job_class in snapshot.classes)
