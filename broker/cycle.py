"""The round: mirror, snapshot, schedule() in a thread, commit.

What belongs here: when a round runs, its wall limits and the solver's cache.  What does not: any
decision (broker.core.scheduler).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from zoneinfo import ZoneInfo

from broker.core.explain import Reason
from broker.core.localtime import minute_of_week
from broker.core.model import PoolId, Snapshot
from broker.core.plan import Plan, grouped
from broker.core.policy import PolicySet
from broker.core.resources import Catalogue
from broker.core.scheduler import schedule
from broker.core.solver import LP
from broker.interpreter import no_collection
from broker.leader import Lease
from broker.mirror import Mirror
from broker.store import Store, feed, forecasts, rounds
from broker.store.rounds import RoundFacts
from broker.telemetry import BOUND, GAP, OBJECTIVE, PLACED, QUEUED, ROUND, ROUNDS, log

FORECAST_STARTS = 500
"""A job that comes behind more than so many others is not forecast: rounds must not wait for it."""


class Cycle:
    """`once()` makes one round.  `policies` and `learn` (whether learned run times count) may be
    replaced between rounds."""

    def __init__(
        self,
        *,
        store: Store,
        lease: Lease,
        mirror: Mirror,
        policies: PolicySet,
        catalogue: Catalogue,
        zone: ZoneInfo,
        solve_limit_s: float,
        learn: bool = True,
    ) -> None:
        self.policies = policies
        self.learn = learn
        self._store = store
        self._lease = lease
        self._mirror = mirror
        self._accelerators = dict(catalogue.products)
        self._zone = zone
        self._lp = LP(time_limit_s=solve_limit_s)
        self._deferred: Mapping[str, tuple[Reason, ...]] | None = None
        self._held = False  # the store may have reservations

    async def once(self) -> None:
        """Refresh, plan, commit."""
        await self._mirror.refresh(self._store, learn=self.learn)
        QUEUED.set(self._mirror.queued)
        if not self._mirror.queued and not self._deferred:
            return
        now_ms = self._store.clock()
        world = await self._store.read(feed.world, now_ms)
        snapshot = self._mirror.snapshot(
            world,
            now_ms=now_ms,
            minute_of_week=minute_of_week(now_ms, self._zone),
            accelerators=self._accelerators,
            usage=await self._mirror.used(self._store, now_ms, self.policies.usage_half_life_s),
        )
        self._held |= bool(snapshot.reservations)
        queued, started = self._mirror.queued, time.perf_counter()
        plan = await asyncio.to_thread(self._plan, snapshot)
        solved = time.perf_counter()
        natives = {pool.id: pool.native for pool in world.pools}
        placed = await self._commit(plan, natives)
        preempted = await self._commit_holds(plan, natives)
        await self._forecast(plan, now_ms)
        if queued:
            made = RoundFacts(
                started_ms=now_ms,
                queued=queued,
                placed=placed,
                preempted=preempted,
                objective_micro=plan.objective,
                bound_micro=plan.bound,
                solve_ms=round((solved - started) * 1000, 3),
                total_ms=round((time.perf_counter() - started) * 1000, 3),
            )
            OBJECTIVE.set(made.objective_micro)
            BOUND.set(made.bound_micro)
            GAP.set(made.gap)
            await self._store.write(rounds.record_round, made, epoch=self._lease.epoch)
        await asyncio.to_thread(self._lp.settle)
        ROUND.labels("solve").observe(solved - started)
        ROUND.labels("commit").observe(time.perf_counter() - solved)
        ROUNDS.labels(plan.source).inc()
        if placed:
            log.info(
                "round",
                queued=self._mirror.queued,
                placed=placed,
                source=plan.source,
                solver=plan.solver_status,
                objective=plan.objective,
                solve_ms=round((solved - started) * 1000, 1),
            )

    def _plan(self, snapshot: Snapshot) -> Plan:
        with no_collection():
            return schedule(snapshot, self.policies, self._lp)

    async def _commit(self, plan: Plan, natives: Mapping[PoolId, str]) -> int:
        # Reasons are worked out when asked: not on the event loop.
        deferrals = await asyncio.to_thread(dict, plan.deferrals)
        await self._commit_deferrals(deferrals)  # first: a placement may have to wait for its data
        kinds = {one.kind.class_key for one in grouped(plan.placements)}
        considered = await asyncio.to_thread(
            lambda: {key: plan.considered[key] for key in kinds if key in plan.considered}
        )
        placed = 0
        for first in range(0, len(plan.placements), rounds.CHUNK):
            chunk = plan.placements[first : first + rounds.CHUNK]
            placed += await self._store.write(
                rounds.commit_placements,
                chunk,
                natives=natives,
                epoch=self._lease.epoch,
                considered=considered,
            )
        for one in grouped(plan.placements):
            PLACED.labels(one.kind.center).inc(len(one.jobs))
        return placed

    async def _commit_holds(self, plan: Plan, natives: Mapping[PoolId, str]) -> int:
        """After the placements: what they have taken is not held any more.  How many runs were stopped."""
        if not (plan.reservations or plan.preemptions or self._held):
            return 0
        stopped = await self._store.write(
            rounds.commit_holds,
            plan.reservations,
            plan.preemptions,
            epoch=self._lease.epoch,
            natives=natives,
        )
        self._held = bool(plan.reservations)
        if stopped:
            jobs = [preemption.job for preemption in plan.preemptions]
            log.info("preempted", runs=stopped, jobs=jobs)
        return stopped

    async def _forecast(self, plan: Plan, now_ms: int) -> None:
        """Keep when the jobs that this round saw first and left waiting are expected to start."""
        arrived = self._mirror.arrived
        if plan.outlook is None or not (arrived - plan.starts):
            return
        made = await asyncio.to_thread(plan.outlook.of, arrived, starts=FORECAST_STARTS)
        if made:
            await self._store.write(forecasts.keep, made, now_ms, epoch=self._lease.epoch)

    async def _commit_deferrals(self, deferrals: Mapping[str, tuple[Reason, ...]]) -> None:
        if self._deferred is None:  # what an earlier leader wrote is forgotten unless it still holds
            self._deferred = dict.fromkeys(await self._store.read(rounds.deferred_classes), ())
        changed = {key: why for key, why in deferrals.items() if self._deferred.get(key) != why}
        gone = [key for key in self._deferred if key not in deferrals]
        if changed or gone:
            await self._store.write(rounds.commit_deferrals, changed, gone, epoch=self._lease.epoch)
        self._deferred = dict(deferrals)
