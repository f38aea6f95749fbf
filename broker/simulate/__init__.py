"""A trace through the production scheduler in simulated time: memory only, no store, no waiting.

What belongs here: events, the queue, and when a round is made.  What does not: files
(broker.simulate.trace), the centers' nodes (broker.simulate.world), who decides
(broker.simulate.production and, as published, broker.simulate.baseline), what is told of it
(broker.simulate.report).

Rules.  Jobs arrive and runs end at whole seconds.  All that happens in one second wakes one round at
the end of it, as every event wakes the daemon's; while jobs wait, a quarter of an hour without an
event wakes one, too.  A placed run starts at once, a stopped one ends at once.  A run takes its true
time; the scheduler plans with an estimate.  A preempted job keeps its age and loses its work since the
last checkpoint.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

from broker.core.forecast import Eta
from broker.core.model import Claim, JobId, Kills, Reservation, RunId, TenantId
from broker.core.policy import PolicySet
from broker.core.resources import Catalogue
from broker.simulate.baseline import HeadOfLine
from broker.simulate.production import ProductionRounds
from broker.simulate.trace import CenterRow, TraceJob
from broker.simulate.world import Nodes, Round, Start, World, build_world

ZERO_MS = 1_577_664_000_000
"""Where a trace's zero is put: Monday 2019-12-30 00:00 UTC."""

PERIOD_S = 900
"""Seconds after which there is a round without an event, while jobs wait."""

IDLE_ROUNDS = 10
"""Rounds without a start after which waiting jobs are given up, once nothing runs or arrives any more."""

NO_RUN = RunId("")

NOISE = 1.0
"""Standard deviation of ln(estimate / truth): two estimates in three are within a factor of 2.7."""


class Order(StrEnum):
    POLICY = "policy"  # the production scheduler
    FIFO = "fifo"  # strict head of line, by submission
    SJF = "sjf"  # strict head of line, by estimated run time


@dataclass(frozen=True, slots=True)
class Settings:
    """How a trace is replayed.

    `oracle`: estimates are the truth; otherwise each is the truth times a log-normal error of median
    one and spread `noise`, drawn from `seed` and the job's id, at least one second.  `learn`: jobs
    state no estimate at all, and run times are learned as the daemon learns them.  `forecast`: jobs
    that their first round leaves waiting are forecast.  `checkpoint_s` None: a preempted run has saved
    nothing.
    """

    order: Order = Order.POLICY
    stays_home: bool = False
    oracle: bool = False
    seed: int = 0
    noise: float = NOISE
    learn: bool = False
    forecast: bool = False
    checkpoint_s: int | None = None

    def __post_init__(self) -> None:
        if self.learn and (self.oracle or self.order is not Order.POLICY):
            raise ValueError("learn: only where nothing is known, and by the production scheduler")

    def estimate_s(self, job: TraceJob) -> int | None:
        """The run time that the scheduler is told, None when it is told none."""
        if self.learn:
            return None
        if self.oracle:
            return job.duration_s
        error = random.Random(f"{self.seed}:{job.id}").gauss(0.0, self.noise)
        return max(1, round(job.duration_s * math.exp(error)))


class Dispatcher(Protocol):
    """Who decides: the production scheduler or a baseline."""

    def enqueue(self, job: TraceJob, *, estimate_s: int | None, queued_ms: int) -> None: ...
    def decide(self, sim: Simulation) -> Round: ...
    def started(self, job: JobId) -> None: ...
    def ended(self, claim: Claim, now_ms: int, *, whole: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Segment:
    """One run: who held how many cards of which center (as the file names it) from when to when."""

    job: JobId
    center: str
    cards: int
    start_s: int
    end_s: int
    cost_micro: int
    preempted: bool


@dataclass(slots=True)
class JobRecord:
    """What became of a job.  `waited_s` is all the time in the queue, after preemptions too.

    `planned_s` is the run time that its first start was planned with; `forecast` was made at the second
    `forecast_s`.
    """

    job: TraceJob
    queued_s: int
    left_s: int  # true run time still to do
    queue: list[tuple[int, int]] = field(default_factory=list)  # (from, to) of its times in the queue
    center: str = ""
    end_s: int | None = None
    preemptions: int = 0
    lost_s: int = 0
    planned_s: int | None = None
    forecast: Eta | None = None
    forecast_s: int = 0

    @property
    def waited_s(self) -> int:
        return sum(to - since for since, to in self.queue)


@dataclass(slots=True)
class RoundStatistics:
    """One entry per round; `gaps` only of rounds in which the solver proved a bound."""

    seconds: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that a simulation leaves behind.  Times are seconds from the trace's zero."""

    settings: Settings
    jobs: tuple[JobRecord, ...]
    segments: tuple[Segment, ...]
    cards: dict[str, int]  # center → its accelerators
    rounds: RoundStatistics
    refused: int  # placements that the center's nodes could not take
    reasons: dict[str, int]  # code of the nearest "no" → jobs that never started
    wall_s: float


Progress = Callable[[int, int, int, int], None]
"""(jobs done, jobs, simulated second, rounds), called after every instant."""


@dataclass(slots=True)
class _Run:
    record: JobRecord
    start: Start
    taken: tuple[int, ...]
    start_s: int


class Simulation:
    """The state of the simulated centers; `run()` plays the trace to its end."""

    def __init__(
        self,
        jobs: Sequence[TraceJob],
        world: World,
        *,
        settings: Settings,
        dispatcher: Dispatcher,
        progress: Progress | None = None,
    ) -> None:
        self.world = world
        self.now_s = 0
        self.nodes = {pool.id: Nodes(pool.shape, pool.nodes) for pool in world.pools}
        self.claims: dict[RunId, Claim] = {}
        self.reservations: tuple[Reservation, ...] = ()  # all that hold, as the last round said
        self.kills: dict[JobId, Kills] = {}
        self.killed: list[tuple[int, TenantId]] = []  # (second, tenant) of stopped runs
        self.rounds = RoundStatistics()
        self.refused = 0
        self.segments: list[Segment] = []
        self.records = {
            JobId(job.id): JobRecord(job=job, queued_s=job.submit_s, left_s=job.duration_s) for job in jobs
        }
        self._pools = {pool.id: pool for pool in world.pools}
        self._settings = settings
        self._dispatcher = dispatcher
        self._progress = progress
        self._arrivals = list(jobs)[::-1]
        self._runs: dict[RunId, _Run] = {}
        self._alarms: list[tuple[int, RunId]] = []  # (second, the run that ends, or none)
        self._waiting = 0
        self._done = 0
        self._idle_rounds = 0
        self._holds_made = 0

    # ------------------------------------------------------------ time

    def run(self) -> None:
        while self._arrivals or self._runs or self._still_hoping():
            self.now_s = min(
                self._arrivals[-1].submit_s if self._arrivals else self._alarms[0][0],
                self._alarms[0][0] if self._alarms else self._arrivals[-1].submit_s,
            )
            while self._alarms and self._alarms[0][0] <= self.now_s:
                _, run = heapq.heappop(self._alarms)
                if run in self._runs:  # it may have been stopped before its end
                    self._end(run)
            while self._arrivals and self._arrivals[-1].submit_s <= self.now_s:
                self._enqueue(self._arrivals.pop(), self.now_s)
            if self._waiting:
                self._carry_out(self._dispatcher.decide(self))
            if self._progress is not None:
                self._progress(self._done, len(self.records), self.now_s, len(self.rounds.seconds))

    @property
    def now_ms(self) -> int:
        return ZERO_MS + self.now_s * 1000

    def _still_hoping(self) -> bool:
        return bool(self._waiting and self._alarms and self._idle_rounds < IDLE_ROUNDS)

    # ------------------------------------------------------------ what happens

    def _enqueue(self, job: TraceJob, since_s: int) -> None:
        record = self.records[JobId(job.id)]
        record.queued_s = since_s
        self._waiting += 1
        # A preempted job keeps its age: it is queued since it was submitted.
        self._dispatcher.enqueue(
            job,
            estimate_s=self._settings.estimate_s(job),
            queued_ms=ZERO_MS + job.submit_s * 1000,
        )

    def _carry_out(self, decided: Round) -> None:
        for run in decided.stops:
            self._preempt(run)
        for start in decided.starts:
            self._start(start)
        self._hold(decided.reservations)
        self._idle_rounds = 0 if decided.starts or self._runs or self._arrivals else self._idle_rounds + 1
        if self._waiting:
            # What stopped runs leave behind is an event; otherwise the next alarm may be far away.
            wake_s = self.now_s + (1 if decided.stops else PERIOD_S)
            if not self._alarms or wake_s < self._alarms[0][0]:
                heapq.heappush(self._alarms, (wake_s, NO_RUN))

    def _hold(self, reservations: Sequence[Reservation]) -> None:
        known = {hold.id for hold in self.reservations}
        kept = []
        for hold in reservations:
            if hold.id not in known:
                self._holds_made += 1
                hold = replace(hold, id=self._holds_made)
                heapq.heappush(self._alarms, (-(-(hold.expires_ms - ZERO_MS) // 1000), NO_RUN))
            kept.append(hold)
        self.reservations = tuple(kept)

    def _start(self, start: Start) -> None:
        taken = self.nodes[start.pool].take(start.shape, start.nodes)
        if taken is None:
            self.refused += 1
            return
        self._dispatcher.started(start.job)
        self._waiting -= 1
        record, pool = self.records[start.job], self._pools[start.pool]
        record.queue.append((record.queued_s, self.now_s))
        record.center = self.world.home[pool.center]
        if record.planned_s is None:
            record.planned_s = start.estimate_s
        run = RunId(f"{start.job}~{record.preemptions + 1}")
        self._runs[run] = _Run(record, start, taken, self.now_s)
        self.claims[run] = Claim(
            run=run,
            center=pool.center,
            pool=pool.id,
            shape=start.shape,
            nodes=start.nodes,
            started_ms=self.now_ms,
            tier=record.job.tier,
            tenant=TenantId(record.job.tenant),
            job=start.job,
            class_key=start.class_key,
            estimate_s=start.estimate_s or record.job.duration_s,
            rate_micro_per_hour=start.rate_micro,
            request=start.request,
            learned=start.learned,
            queued_ms=ZERO_MS + record.job.submit_s * 1000,
            preempted=record.preemptions,
        )
        if start.job in self.kills:  # the sets stopped for it count until it runs
            self.kills[start.job] = replace(self.kills[start.job], sets=0, last_ms=None)
        heapq.heappush(self._alarms, (self.now_s + record.left_s, run))

    def _end(self, run: RunId) -> None:
        self._runs[run].record.end_s = self.now_s
        self._release(run, preempted=False)
        self._done += 1

    def _preempt(self, run: RunId) -> None:
        held = self._runs[run]
        record, ran_s = held.record, self.now_s - held.start_s
        every_s = self._settings.checkpoint_s
        saved_s = ran_s // every_s * every_s if every_s else 0
        record.preemptions += 1
        before = self.kills.get(held.start.job, Kills())
        self.kills[held.start.job] = replace(before, suffered=before.suffered + 1)
        self.killed.append((self.now_s, TenantId(record.job.tenant)))
        record.lost_s += ran_s - saved_s
        record.left_s -= saved_s
        self._release(run, preempted=True)
        self._enqueue(record.job, self.now_s)

    def _release(self, run: RunId, *, preempted: bool) -> None:
        held = self._runs.pop(run)
        self._dispatcher.ended(self.claims.pop(run), self.now_ms, whole=not preempted)
        self.nodes[held.start.pool].give_back(held.taken, held.start.shape)
        self.segments.append(
            Segment(
                job=held.start.job,
                center=held.record.center,
                cards=held.start.shape.accelerators * held.start.nodes,
                start_s=held.start_s,
                end_s=self.now_s,
                cost_micro=held.start.rate_micro * (self.now_s - held.start_s) // 3600,
                preempted=preempted,
            )
        )


# ---------------------------------------------------------------- the whole


def simulate(
    jobs: Sequence[TraceJob],
    centers: Sequence[CenterRow],
    *,
    policies: PolicySet,
    catalogue: Catalogue,
    settings: Settings,
    progress: Progress | None = None,
) -> Outcome:
    """Replay `jobs`, in order of submission, on `centers`; equal arguments give equal decisions."""
    began = time.perf_counter()
    world = build_world(centers, jobs, catalogue=catalogue, now_ms=ZERO_MS)
    dispatcher: ProductionRounds | HeadOfLine
    if settings.order is Order.POLICY:
        dispatcher = ProductionRounds(world, policies, settings)
    else:
        dispatcher = HeadOfLine(
            world, shortest_first=settings.order is Order.SJF, stays_home=settings.stays_home
        )
    sim = Simulation(jobs, world, settings=settings, dispatcher=dispatcher, progress=progress)
    sim.run()
    cards: dict[str, int] = {}
    for row in centers:
        cards[row.center] = cards.get(row.center, 0) + row.cards * row.nodes
    return Outcome(
        settings=settings,
        jobs=tuple(sim.records.values()),
        segments=tuple(sim.segments),
        cards=cards,
        rounds=sim.rounds,
        refused=sim.refused,
        reasons=dispatcher.reasons(),
        wall_s=time.perf_counter() - began,
    )
