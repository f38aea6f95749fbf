"""The daemon's way of deciding, in simulated time: classes, snapshots, rounds, and what is learned.

What belongs here: the production scheduler as a dispatcher of the simulation.  What does not: time and
the centers (broker.simulate, broker.simulate.world), and any decision (broker.core).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from broker.core.estimates import Observation, RunTimes
from broker.core.explain import Reason
from broker.core.model import (
    MICRO,
    Claim,
    JobClass,
    JobId,
    JobRequest,
    Kills,
    Pool,
    QueuedJob,
    RunTime,
    Snapshot,
    TenantId,
)
from broker.core.plan import Placement, Plan
from broker.core.policy import PolicySet
from broker.core.problem import class_key
from broker.core.scheduler import schedule
from broker.core.solver import LP, SolverStatus
from broker.simulate.trace import TraceJob
from broker.simulate.world import Round, Start, World

if TYPE_CHECKING:
    from broker.simulate import Settings, Simulation

RUN_TIMES_PERIOD_S = 60
"""Seconds between two readings of what was learned, as in the daemon."""

FORECAST_STARTS = 500
"""A job that comes behind more than so many others is not forecast, as in the daemon."""


@dataclass(slots=True)
class _Class:
    """Waiting jobs that no rule can tell apart; `ordered` is made anew after a change."""

    request: JobRequest
    tenant: TenantId
    jobs: dict[JobId, QueuedJob] = field(default_factory=dict)
    ordered: tuple[QueuedJob, ...] | None = None

    def in_order(self) -> tuple[QueuedJob, ...]:
        if self.ordered is None:
            self.ordered = tuple(sorted(self.jobs.values(), key=lambda job: (job.queued_ms, job.id)))
        return self.ordered


class ProductionRounds:
    """The daemon's way of deciding: classes by their key, a snapshot, one `schedule`."""

    def __init__(self, world: World, policies: PolicySet, settings: Settings) -> None:
        self.last = Plan(based_on=0)
        self._world = world
        self._policies = policies
        self._settings = settings
        self._lp = LP()
        self._version = 0
        self._classes: dict[str, _Class] = {}
        self._class_of: dict[JobId, str] = {}
        # As in the daemon, the first job of a class speaks for it for ever.
        self._requests: dict[str, JobRequest] = {}
        self._arrived: set[JobId] = set()
        self._run_times = RunTimes()
        self._learned: dict[str, RunTime | None] = {}
        self._learned_ms = 0

    def enqueue(self, job: TraceJob, *, estimate_s: int | None, queued_ms: int) -> None:
        asked = self._world.request(job, estimate_s=estimate_s, stays_home=self._settings.stays_home)
        key, id = class_key(asked, TenantId(job.tenant)), JobId(job.id)
        entry = self._classes.get(key)
        if entry is None:
            request = self._requests.setdefault(key, asked)
            entry = self._classes[key] = _Class(request, TenantId(job.tenant))
        entry.jobs[id] = QueuedJob(id, queued_ms)
        entry.ordered = None
        self._class_of[id] = key
        self._arrived.add(id)

    def started(self, job: JobId) -> None:
        key = self._class_of.pop(job)
        entry = self._classes[key]
        del entry.jobs[job]
        entry.ordered = None
        if not entry.jobs:
            del self._classes[key]

    def ended(self, claim: Claim, now_ms: int, *, whole: bool) -> None:
        if self._settings.learn and claim.request is not None and claim.started_ms is not None:
            seen = Observation((now_ms - claim.started_ms) / 1000, now_ms, ended=whole)
            self._run_times.see(claim.request, claim.tenant, seen)

    def _learn(self, sim: Simulation) -> None:
        """What was learned reaches the plans once in a while, as in the daemon."""
        if not self._settings.learn or sim.now_ms - self._learned_ms < RUN_TIMES_PERIOD_S * 1000:
            return
        self._learned_ms = sim.now_ms
        self._learned.clear()
        self._run_times.running(sim.claims.values(), sim.now_ms)
        for run, claim in sim.claims.items():
            if claim.request is not None:
                expected = self._expected(claim.class_key, claim.request, claim.tenant)
                if expected != claim.learned:
                    sim.claims[run] = replace(claim, learned=expected)

    def _expected(self, key: str, request: JobRequest, tenant: TenantId) -> RunTime | None:
        if key not in self._learned:
            self._learned[key] = self._run_times.of(request, tenant) if self._settings.learn else None
        return self._learned[key]

    def decide(self, sim: Simulation) -> Round:
        self._learn(sim)
        snapshot = self._snapshot(sim)
        began = time.perf_counter()
        plan = schedule(snapshot, self._policies, self._lp)
        sim.rounds.seconds.append(time.perf_counter() - began)
        if plan.solver_status == SolverStatus.OPTIMAL:
            sim.rounds.gaps.append((plan.objective - plan.bound) / max(MICRO, plan.objective))
        self.last = plan
        for preemption in plan.preemptions:
            before = sim.kills.get(preemption.job, Kills())
            sim.kills[preemption.job] = replace(before, sets=before.sets + 1, last_ms=sim.now_ms)
        self._forecast(sim, plan)
        # The center takes large slots first, so that small ones do not break up its nodes.
        starts = sorted(plan.placements, key=lambda p: -p.slot)
        return Round(
            starts=tuple(self._start(p) for p in starts), stops=plan.stops, reservations=plan.reservations
        )

    def _start(self, placed: Placement) -> Start:
        key = self._class_of[placed.job]  # a job that holds capacity has a class of its own
        one = self._job_class(key)
        return Start(
            placed.job,
            placed.pool,
            placed.spec.shape,
            placed.nodes,
            rate_micro=placed.rate_micro_per_hour,
            class_key=key,
            request=one.request,
            estimate_s=one.estimate_s,
            learned=one.learned,
        )

    def _job_class(self, key: str) -> JobClass:
        entry = self._classes[key]
        return JobClass(
            key=key,
            request=entry.request,
            tenant=entry.tenant,
            jobs=entry.in_order(),
            learned=self._expected(key, entry.request, entry.tenant),
        )

    def _forecast(self, sim: Simulation, plan: Plan) -> None:
        """When jobs that this round saw first and left waiting are expected to start."""
        arrived, self._arrived = self._arrived, set()
        if not self._settings.forecast or plan.outlook is None:
            return
        for job, eta in plan.outlook.of(arrived - plan.starts, starts=FORECAST_STARTS).items():
            record = sim.records[job]
            if record.forecast is None and not record.preemptions:
                record.forecast, record.forecast_s = eta, sim.now_s

    def _snapshot(self, sim: Simulation) -> Snapshot:
        self._version += 1
        pools: Iterable[Pool] = (
            replace(pool, free=sim.nodes[pool.id].free(), as_of_ms=sim.now_ms) for pool in self._world.pools
        )
        return Snapshot(
            version=self._version,
            now_ms=sim.now_ms,
            minute_of_week=sim.now_s // 60 % (7 * 24 * 60),
            centers=self._world.centers,
            pools=tuple(pools),
            claims=tuple(sim.claims[run] for run in sorted(sim.claims)),
            reservations=sim.reservations,
            classes=tuple(self._job_class(key) for key in sorted(self._classes)),
            accelerators=self._world.accelerators,
            kills=Counter(tenant for at_s, tenant in sim.killed if at_s > sim.now_s - 3600),
            kill_records=sim.kills,
        )

    def reasons(self) -> dict[str, int]:
        """Jobs that still wait, by the "no" that came closest to a yes in the last round."""
        counts: dict[str, int] = {}
        for key, entry in self._classes.items():
            told: Sequence[Reason] = self.last.deferrals.get(key, ())
            word = max((r.code for r in told), default=None)
            name = "unknown" if word is None else word.word
            counts[name] = counts.get(name, 0) + len(entry.jobs)
        return counts
