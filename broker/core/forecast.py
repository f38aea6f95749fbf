"""When jobs that wait are expected to start: a look ahead from the plan of a round.

What belongs here: the queue played forward over the planned ends of runs, and what it comes to.  What
does not: deciding (the plan is given), and how good such forecasts are (broker.store.forecasts).

The look is played in SCENARIOS.  In each, every run takes a time of its own: one of as many quantiles
of what its like take, so that over all scenarios it takes each of them once.  Whenever something comes
free, what waits starts in the order of the plan's worth per card, holders first, each job in its
cheapest pool with room.  The median of a job's starts is its p50, the last its p90.

Left out: jobs that come later, ages that change the order, prices that change with the hour, quotas
that runs of before the look give back, and jobs that a policy holds back in a window.  A job that never
starts in the look has no forecast.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from broker.core.explain import Code
from broker.core.model import CenterId, Claim, JobClass, JobId, JobRequest, RunTime
from broker.core.queue import as_queue
from broker.core.resources import slot_size
from broker.core.snapshot import in_flight_room, units

if TYPE_CHECKING:
    from broker.core.plan import Plan
    from broker.core.problem import IntArray, Problem

SCENARIOS = 9
"""Odd, so that one is the median; the last is at the ninth tenth."""

STARTS = 5000
"""Starts of other jobs that a look goes through; a job behind them has no forecast."""

UNLEARNED_SPREAD = 4
"""p90 over p50 of run times of which only a plan is known."""

_NORMAL = NormalDist()
_Z90 = _NORMAL.inv_cdf(0.9)
_STRIDES = (1, 2, 4, 5, 7, 8)  # coprime to SCENARIOS


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds until a job starts, from the snapshot's now; `p90_s` is None where it may never.

    `center` is where it starts in the median scenario.
    """

    p50_s: int
    p90_s: int | None
    center: CenterId


def level_of(name: str, scenario: int) -> float:
    """The quantile that a run of this name is at in a scenario: of all, a tenth to nine tenths, shuffled."""
    drawn = crc32(name.encode())
    stride, first = _STRIDES[drawn % len(_STRIDES)], drawn // len(_STRIDES)
    return (1 + (first + stride * scenario) % SCENARIOS) / (SCENARIOS + 1)


def time_left_s(expected: RunTime, ran_s: float, level: float, limit_s: int | None = None) -> int:
    """Seconds that a run which has run for `ran_s` still runs, at a quantile of those it may.

    Times are log-normal between p50 and p90.  What has outlived all of that runs as long again, give
    or take: its age is all that is known.
    """
    middle = math.log(expected.p50_s)
    spread = math.log(max(1.0, expected.p90_s / expected.p50_s)) / _Z90
    past = _NORMAL.cdf((math.log(ran_s) - middle) / spread) if ran_s > 0 and spread > 0 else 0.0
    at = past + level * (1 - past)
    if spread == 0 and ran_s < expected.p50_s:
        whole_s = float(expected.p50_s)
    elif spread == 0 or at > 1 - 1e-9:
        whole_s = ran_s * (1 + 2 * level)
    else:
        whole_s = math.exp(middle + spread * _NORMAL.inv_cdf(at))
    if limit_s is not None:
        whole_s = min(whole_s, limit_s)
    return max(0, math.ceil(whole_s - ran_s - 1e-6))


def end_of(claim: Claim, now_ms: int) -> RunTime | None:
    """Seconds from now within which a run ends, half of its like and nine in ten.

    None of a run of which nothing was stated or learned, and of a service that nothing limits.
    """
    limit_s = None if claim.request is None else claim.request.max_run_time_s
    stated_s = None if claim.request is None else claim.request.estimated_run_time_s
    if claim.learned is None and stated_s is None and limit_s is None and not claim.stopping:
        return None
    if claim.request is not None and claim.request.endless and limit_s is None and not claim.stopping:
        return None
    p50_s, p90_s = (_left_s(claim, now_ms, level, limit_s) for level in (0.5, 0.9))
    return RunTime(p50_s, p90_s)


def _left_s(claim: Claim, now_ms: int, level: float, limit_s: int | None) -> int:
    if claim.stopping:
        return math.ceil(_grace_s(claim) * level)
    return time_left_s(_expected(claim), _ran_s(claim, now_ms), level, limit_s)


def _grace_s(claim: Claim) -> int:
    """Seconds that the run may take to end once it was asked to."""
    return (claim.request or JobRequest()).stop_grace_s


def _ran_s(claim: Claim, now_ms: int) -> float:
    return 0.0 if claim.started_ms is None else max(0, now_ms - claim.started_ms) / 1000


def _expected(one: Claim | JobClass) -> RunTime:
    """What was learned of its like, else its plan and how unsure plans are."""
    return one.learned or RunTime(one.estimate_s, one.estimate_s * UNLEARNED_SPREAD)


# ---------------------------------------------------------------- what is played


@dataclass(frozen=True, slots=True)
class _Option:
    """A pool that jobs of a class may use; `rows` are those besides slots and in-flight room."""

    pool: int
    center: int
    slot: int
    wait_s: int
    rows: tuple[tuple[int, int], ...]
    fills_in: bool  # may use what is held for others there


@dataclass(frozen=True, slots=True)
class _Group:
    """Waiting jobs of one class and age, oldest first."""

    jobs: tuple[JobId, ...]
    nodes: int
    options: tuple[_Option, ...]
    expected: RunTime
    limit_s: int | None


@dataclass(frozen=True, slots=True)
class _Running:
    """A run, the slots it holds on nodes of a pool (node, units), and what else it gives back."""

    name: str
    pool: int
    slots: tuple[tuple[int, int], ...]
    expected: RunTime
    ran_s: float
    limit_s: int | None
    wait_s: int = 0
    stops_s: int | None = None
    rows: tuple[tuple[int, int], ...] = ()

    def left_s(self, scenario: int) -> int:
        level = level_of(self.name, scenario)
        if self.stops_s is not None:
            return math.ceil(self.stops_s * level)
        return self.wait_s + time_left_s(self.expected, self.ran_s, level, self.limit_s)


class _Nodes:
    """Free units of a pool's nodes; None of a pool that does not tell: nothing binds there."""

    __slots__ = ("at", "free", "total")

    def __init__(self, free: list[int]) -> None:
        self.free = free
        self.total = sum(free)
        self.at: dict[int, dict[int, None]] = {}
        for node, left in enumerate(free):
            self.at.setdefault(left, {})[node] = None

    def take(self, slot: int, count: int) -> list[tuple[int, int]] | None:
        """So many slots on the fullest nodes that have them, or None and no change."""
        taken: list[tuple[int, int]] = []
        for left in sorted(level for level in self.at if level >= slot):
            while len(taken) < count and self.at.get(left):
                node = next(iter(self.at[left]))
                here = min(count - len(taken), left // slot)
                self.change(node, -here * slot)
                taken += [(node, slot)] * here
            if len(taken) == count:
                return taken
        for node, held in taken:
            self.change(node, held)
        return None

    def take_most(self, slot: int, count: int) -> list[tuple[int, int]]:
        """As much of so many slots as there is, from the emptiest nodes."""
        taken = []
        for _ in range(count):
            left = max(self.at, default=0)
            if left <= 0:
                break
            node = next(iter(self.at[left]))
            taken.append((node, min(slot, left)))
            self.change(node, -min(slot, left))
        return taken

    def change(self, node: int, by: int) -> None:
        left = self.free[node]
        del self.at[left][node]
        if not self.at[left]:
            del self.at[left]
        self.free[node] = left + by
        self.total += by
        self.at.setdefault(left + by, {})[node] = None


class Outlook:
    """The queue after the plan of a round; `of` plays it forward.  Made when a forecast is asked for."""

    def __init__(self, problem: Callable[[], Problem], plan: Plan, y: IntArray) -> None:
        """`problem` gives the round's problem with all its rows."""
        self._problem, self._plan, self._y = problem, plan, y

    def of(self, jobs: Collection[JobId], *, starts: int = STARTS) -> dict[JobId, Eta]:
        """Forecasts of those of `jobs` that wait after the plan and have not too many before them."""
        world = _Start(self._problem(), self._plan, self._y)
        wanted = world.within(jobs, starts)
        if not wanted:
            return {}
        played = [_Look(world, scenario).play(wanted, starts) for scenario in range(SCENARIOS)]
        found: dict[JobId, Eta] = {}
        for job in sorted(wanted):
            ordered = sorted(look.get(job, (_NEVER, CenterId(""))) for look in played)
            (p50_s, center), (p90_s, _) = ordered[SCENARIOS // 2], ordered[-1]
            if p50_s < _NEVER:
                found[job] = Eta(p50_s, p90_s if p90_s < _NEVER else None, center)
        return found


_NEVER = 1 << 62


class _Start:
    """Where every scenario starts: nodes, runs, room and the queue, once the plan is carried out."""

    def __init__(self, problem: Problem, plan: Plan, y: IntArray) -> None:
        self.p = problem
        self.holders = {r.job: r for r in plan.reservations}
        self.left = problem.left(y).tolist()
        self._stops = {run for each in plan.preemptions for run in each.victims}
        self.nodes = [
            None if problem.pool.unknown[at] else _Nodes(self._free(at)) for at in range(len(problem.pools))
        ]
        self.running = [*self._claims(), *self._placed(y)]
        here = problem.pool.center[problem.option_pool]
        sent = np.bincount(here, weights=y, minlength=len(problem.centers)).astype(int).tolist()
        self.room = [in_flight_room(c) - n for c, n in zip(problem.centers, sent, strict=True)]
        self.groups = self._queue(y)
        self.held = self._held()
        # Who may use a pool, in the order of the queue, and of a group its cheapest pools first.
        self.users: dict[int, list[tuple[int, int, _Option]]] = {}
        self.at_center: dict[int, set[int]] = {}
        for i, group in enumerate(self.groups):
            for rank, option in enumerate(group.options):
                self.users.setdefault(option.pool, []).append((i, rank, option))
                self.at_center.setdefault(option.center, set()).add(option.pool)

    def within(self, jobs: Collection[JobId], starts: int) -> set[JobId]:
        """Those of `jobs` among the first so many of the queue."""
        wanted, before, found = set(jobs), 0, set()
        for group in self.groups:
            found |= wanted.intersection(group.jobs[: starts - before])
            before += len(group.jobs)
            if before >= starts:
                break
        return found

    def _free(self, at: int) -> list[int]:
        pool = self.p.pools[at]
        left = [units(pool.shape, g) for g in self.p.free.get(pool.id, ()) for _ in range(g.nodes)]
        return left + [0] * (pool.nodes - len(left))

    def _claims(self) -> Iterator[_Running]:
        """Runs of before, on the nodes where they can be: nobody tells which those are."""
        at_pool = {pool.id: i for i, pool in enumerate(self.p.pools)}
        used = [
            _Nodes([] if nodes is None else [int(self.p.pool.units[at]) - left for left in nodes.free])
            for at, nodes in enumerate(self.nodes)
        ]
        now_ms = self.p.snapshot.now_ms
        mine = [(at_pool[c.pool], c) for c in self.p.snapshot.claims if c.pool in at_pool]
        sized = [(slot_size(self.p.pools[at].shape, c.shape), at, c) for at, c in mine]
        for size, at, claim in sorted(sized, key=lambda s: (-s[0], s[2].run)):
            yield _Running(
                name=claim.run,
                pool=at,
                slots=tuple(used[at].take(size, claim.nodes) or used[at].take_most(size, claim.nodes)),
                expected=_expected(claim),
                ran_s=_ran_s(claim, now_ms),
                limit_s=None if claim.request is None else claim.request.max_run_time_s,
                wait_s=self.p.pools[at].expected_wait_s if claim.started_ms is None else 0,
                stops_s=self._stops_s(claim),
            )

    def _stops_s(self, claim: Claim) -> int | None:
        if not claim.stopping and claim.run not in self._stops:
            return None
        return _grace_s(claim)

    def _placed(self, y: IntArray) -> Iterator[_Running]:
        for j in np.flatnonzero(y).tolist():
            k, at = int(self.p.option_class[j]), int(self.p.option_pool[j])
            option, job_class = self._option(k, j), self.p.classes[k]
            for n in range(int(y[j])):
                nodes = self.nodes[at]
                slots = None if nodes is None else nodes.take(option.slot, job_class.request.nodes)
                yield _Running(
                    name=f"{job_class.key}+{j}.{n}",
                    pool=at,
                    slots=tuple(slots or ()),
                    expected=_expected(job_class),
                    ran_s=0.0,
                    limit_s=job_class.request.max_run_time_s,
                    wait_s=option.wait_s,
                    rows=option.rows,
                )

    def _option(self, k: int, j: int) -> _Option:
        p = self.p
        at = int(p.option_pool[j])
        rows, coefs = p.takes(j)
        of_look = (Code.CAPACITY, Code.RESERVED, Code.IN_FLIGHT)
        holding = p.holdings.get(p.pools[at].id)
        return _Option(
            pool=at,
            center=int(p.pool.center[at]),
            slot=int(p.tau[j]),
            wait_s=p.pools[at].expected_wait_s,
            rows=tuple(
                (row, coef)
                for row, coef in zip(rows.tolist(), coefs.tolist(), strict=True)
                if p.row_code[row] not in of_look
            ),
            fills_in=holding is not None and holding.depth(p.classes[k], p.snapshot.now_ms) == 0,
        )

    def _queue(self, y: IntArray) -> list[_Group]:
        """What waits after the plan: holders, then worth per card, then age."""
        p = self.p
        still, started = p.unserved(y), p.started(y)
        found: list[tuple[tuple[object, ...], _Group]] = []
        for k in np.flatnonzero(still.sum(axis=1)).tolist():
            mine = sorted(range(p.options(k).start, p.options(k).stop), key=lambda j: (int(p.cost[j]), j))
            options = [(int(p.cost[j]), self._option(k, j)) for j in mine]
            cards = max(1, int(p.job_millicards(k, p.option_pool[p.options(k)]).min(initial=1 << 62)))
            job_class, queue = p.classes[k], as_queue(p.classes[k].jobs)
            first = int(started[k])
            for b in np.flatnonzero(still[k])[::-1].tolist():  # oldest first
                worth, jobs = int(p.worth[k, b]), tuple(queue.ids[first : first + int(still[k, b])])
                open_ = tuple(option for cost, option in options if cost < worth)
                if open_:
                    gain = (worth - options[0][0]) // cards
                    order = (jobs[0] not in self.holders, -gain, int(queue.queued_ms[first]), job_class.key)
                    found.append((order, _group(job_class, jobs, open_)))
                first += len(jobs)
        return [group for _, group in sorted(found, key=lambda pair: pair[0])]

    def _held(self) -> dict[int, dict[JobId, int]]:
        """Units per pool that are held for jobs which wait."""
        waiting = {job for group in self.groups for job in group.jobs if job in self.holders}
        at_pool = {pool.id: i for i, pool in enumerate(self.p.pools)}
        held: dict[int, dict[JobId, int]] = {}
        for job in waiting:
            r = self.holders[job]
            if r.pool in at_pool:
                held.setdefault(at_pool[r.pool], {})[job] = r.slot * r.nodes
        return held


def _group(job_class: JobClass, jobs: tuple[JobId, ...], options: tuple[_Option, ...]) -> _Group:
    request = job_class.request
    return _Group(jobs, request.nodes, options, _expected(job_class), request.max_run_time_s)


class _Look:
    """One scenario."""

    def __init__(self, start: _Start, scenario: int) -> None:
        self._s, self._scenario = start, scenario
        self._nodes = [None if n is None else _Nodes(list(n.free)) for n in start.nodes]
        self._left, self._room = list(start.left), list(start.room)
        self._held = {pool: dict(jobs) for pool, jobs in start.held.items()}
        self._next = [0] * len(start.groups)
        self._ends: list[tuple[int, int, _Running]] = []
        self._arrivals: list[tuple[int, int]] = []  # (second, center) where a run starts: room comes free
        self._starts: dict[JobId, tuple[int, CenterId]] = {}
        for run in start.running:
            heapq.heappush(self._ends, (run.left_s(scenario), len(self._ends), run))
            if run.ran_s == 0.0 and run.stops_s is None:
                center = int(start.p.pool.center[run.pool])
                heapq.heappush(self._arrivals, (max(1, run.wait_s), center))
        self._made = len(self._ends)

    def play(self, wanted: Collection[JobId], starts: int) -> dict[JobId, tuple[int, CenterId]]:
        """The second at which each job starts, and where; the look ends when the wanted have."""
        missing = len(wanted)
        changed, now_s = set(range(len(self._nodes))), 0
        while missing and len(self._starts) < starts:
            for job in self._start_what_fits(changed, now_s):
                missing -= job in wanted
            upcoming = [queue[0][0] for queue in (self._ends, self._arrivals) if queue]
            if not upcoming:
                break
            now_s, changed = min(upcoming), set()
            while self._ends and self._ends[0][0] <= now_s:
                changed |= self._end(heapq.heappop(self._ends)[2])
            while self._arrivals and self._arrivals[0][0] <= now_s:
                _, center = heapq.heappop(self._arrivals)
                self._room[center] += 1
                changed |= self._s.at_center.get(center, set())
        return self._starts

    def _end(self, run: _Running) -> set[int]:
        """The pools in which jobs may start that could not before."""
        if (nodes := self._nodes[run.pool]) is not None:
            for node, held in run.slots:
                nodes.change(node, held)
        for row, coef in run.rows:
            self._left[row] += coef
        return {run.pool} if not run.rows else set(self._s.users)

    def _start_what_fits(self, changed: set[int], now_s: int) -> Iterator[JobId]:
        """Starts what fits in pools where something came free, in the order of the queue."""
        users = self._s.users
        rooms = {at: room for at in changed if at in users and (room := self._largest(at)) > 0}
        if not rooms:
            return
        for i, _, option in heapq.merge(*(users[at] for at in rooms)):  # never compares options
            if option.slot > rooms[option.pool]:
                continue
            group = self._s.groups[i]
            while self._next[i] < len(group.jobs):
                job = group.jobs[self._next[i]]
                if not self._starts_in(option, group, job, now_s):
                    break
                self._next[i] += 1
                yield job
                rooms[option.pool] = self._largest(option.pool)
                if not any(rooms.values()):
                    return

    def _largest(self, at: int) -> int:
        """Units of the largest slot that is free in a pool."""
        nodes = self._nodes[at]
        return _NEVER if nodes is None else max(nodes.at, default=0)

    def _starts_in(self, option: _Option, group: _Group, job: JobId, now_s: int) -> bool:
        """Start a job by an option, if there is room."""
        if self._room[option.center] <= 0 or any(self._left[row] < coef for row, coef in option.rows):
            return False
        nodes, slots = self._nodes[option.pool], None
        held = self._held.get(option.pool, {})
        if nodes is not None:
            others = 0 if option.fills_in else sum(size for holder, size in held.items() if holder != job)
            if nodes.total - others < option.slot * group.nodes:
                return False
            if (slots := nodes.take(option.slot, group.nodes)) is None:
                return False
        if job in self._s.holders:
            for jobs in self._held.values():
                jobs.pop(job, None)
        run = _Running(
            name=job,
            pool=option.pool,
            slots=tuple(slots or ()),
            expected=group.expected,
            ran_s=0.0,
            limit_s=group.limit_s,
            wait_s=option.wait_s,
            rows=option.rows,
        )
        for row, coef in option.rows:
            self._left[row] -= coef
        self._room[option.center] -= 1
        heapq.heappush(self._arrivals, (now_s + max(1, option.wait_s), option.center))
        self._made += 1
        heapq.heappush(self._ends, (now_s + run.left_s(self._scenario), self._made, run))
        center = self._s.p.centers[option.center].id
        self._starts[job] = (now_s + option.wait_s, center)
        return True
