"""Jobs placed one after the other, each where it costs least at what is then free.

What belongs here: the order in which waiting jobs are taken, which of them are held back, and where
each goes.  What does not: what a start would waste where (core/places.py), what is free before the
round (core/snapshot.py) and the usual rounds, which decide the whole queue at once and whose costs are
linear (core/problem.py, core/solver.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from broker.core.fitting import IntArray
from broker.core.model import CenterId, JobId, NodeShape, Tier
from broker.core.places import Places
from broker.core.policy import Window
from broker.core.problem import Problem
from broker.core.queue import as_queue
from broker.core.snapshot import in_flight_room


class Started(NamedTuple):
    """One job that starts: of class `k`, in pool `at`."""

    job: JobId
    k: int
    at: int


def in_sequence(p: Problem, places: Places) -> tuple[list[Started], set[tuple[str, CenterId]]]:
    """The jobs that start, in the order in which they do: tier by tier, in order of arrival.

    And the classes, by key, of which jobs are held back, each with a center where one could start.
    """
    places.follow(p)
    queue = _queue(p)
    window, held = p.policies.window, dict[JobId, int]()
    if window is not None and places.free_permille() < window.scarce_permille:
        held = _held(p, places, queue, window)
        queue = [waiting for waiting in queue if waiting.job not in held]
    round_ = _Round(p, places)
    # A class of which one job has no room has none for others.
    full: set[int] = set()
    for waiting in queue:
        if waiting.k not in full and not round_.placed(waiting):
            full.add(waiting.k)
    return round_.started, {
        (p.classes[k].key, p.centers[center].id) for k in set(held.values()) for center in round_.open_to(k)
    }


class _Waiting(NamedTuple):
    """One job of the queue; sorts as jobs are taken."""

    before: int  # minus its tier
    queued_ms: int
    job: JobId
    k: int
    worth: int  # micro-CNY of leaving it waiting


def _queue(p: Problem) -> list[_Waiting]:
    jobs: list[_Waiting] = []
    for k, job_class in enumerate(p.classes):
        queue, before = as_queue(job_class.jobs), -int(job_class.request.tier)
        ages_s = (p.snapshot.now_ms - queue.queued_ms) // 1000
        buckets = np.clip(np.searchsorted(p.age_s, ages_s, side="right") - 1, 0, None)
        jobs += [
            _Waiting(before, at, job, k, worth)
            for job, at, worth in zip(
                queue.ids, queue.queued_ms.tolist(), p.worth[k][buckets].tolist(), strict=True
            )
        ]
    return sorted(jobs)


def _held(p: Problem, places: Places, queue: list[_Waiting], window: Window) -> dict[JobId, int]:
    """Jobs, each with its class, that wait because others make more of the cards that they need.

    Of the lowest tier first, then those that make least of them, then the youngest; never VIP jobs, and
    nobody for too long.
    """
    since_ms = p.snapshot.now_ms - window.longest_s * 1000
    efficiency = [_efficiency(p, places, k) for k in range(len(p.classes))]
    able = [
        (-waiting.before, efficiency[waiting.k], -number)
        for number, waiting in enumerate(queue)
        if efficiency[waiting.k] < 1 and waiting.queued_ms >= since_ms and -waiting.before < Tier.VIP
    ]
    return {queue[-number].job: queue[-number].k for _, _, number in sorted(able)[: window.jobs]}


def _efficiency(p: Problem, places: Places, k: int) -> float:
    """That of the request of a class; of one that names none, the most of what it may be given."""
    return max((places.efficiency(shape) for shape in _shapes(p, k)), default=1.0)


def _shapes(p: Problem, k: int) -> list[NodeShape]:
    """What one node of class `k` may be given."""
    request = p.classes[k].request.spec
    if request is not None:
        return [request.shape]
    given = p.fittings[k].spec[p.option_pool[p.options(k)]]
    return [p.specs[one].shape for one in np.unique(given).tolist()]


class _Round:
    """What is left while jobs of one problem start."""

    def __init__(self, p: Problem, places: Places) -> None:
        self._p, self._places = p, places
        self._room = [in_flight_room(center) for center in p.centers]
        self._left = p.row_bound.copy()
        self._limit = next((i for i, name in enumerate(p.row_name) if name.startswith("limit:")), None)
        self.started: list[Started] = []
        # Distinct requests, and which of them each class has in each pool; in pools without options any.
        shapes: dict[NodeShape, int] = {}
        self._which = np.zeros((len(p.pools), len(p.classes)), dtype=np.int64)
        self._costs = np.full(self._which.shape, np.inf)  # [P, K], since a start asks for those of a pool
        for k in range(len(p.classes)):
            own = p.options(k)
            pools = p.option_pool[own]
            self._costs[pools, k] = p.cost[own]
            own_shapes = _shapes(p, k)
            if len(own_shapes) == 1:
                self._which[:, k] = shapes.setdefault(own_shapes[0], len(shapes))
                continue
            given = p.fittings[k].spec[pools]
            for one in np.unique(given).tolist():
                number = shapes.setdefault(p.specs[one].shape, len(shapes))
                self._which[pools[given == one], k] = number
        shut = np.array(self._room, dtype=np.int64)[p.pool.center] <= 0
        self._costs[shut] = np.inf
        self._wanted = places.wanted(list(shapes))
        self._nodes = np.array([c.request.nodes for c in p.classes], dtype=np.int64)
        # [K, P] micro-CNY of a start now; infinite where there is none.
        growth = places.growth(self._wanted) if shapes else np.zeros((1, len(p.pools)))
        self._total = np.ascontiguousarray(growth[self._which.T, np.arange(len(p.pools))])
        self._total *= self._nodes[:, None]
        self._total += self._costs.T

    def placed(self, waiting: _Waiting) -> bool:
        """Starts a job in the pool in which it costs least, if there is one that it is worth that."""
        at = self._best(waiting.k, waiting.worth)
        if at is None:
            return False
        self._start(waiting.job, waiting.k, at)
        return True

    def open_to(self, k: int) -> list[int]:
        """The centers where a job of a class could start now."""
        centers: list[int] = np.unique(self._p.pool.center[np.isfinite(self._total[k])]).tolist()
        return centers

    def _best(self, k: int, worth: int) -> int | None:
        nodes, total = self._p.classes[k].request.nodes, self._total[k]
        while True:
            at = int(total.argmin())
            if not total[at] < worth:
                return None
            if self._allowed(k, at) and (nodes == 1 or self._places.room(at, self._shape(k, at), nodes)):
                return at
            total = total.copy()
            total[at] = np.inf

    def _shape(self, k: int, at: int) -> NodeShape:
        return self._p.specs[int(self._p.fittings[k].spec[at])].shape

    def _entries(self, k: int, at: int) -> tuple[IntArray, IntArray]:
        """Rows of limits, and what one job takes of each."""
        p, own = self._p, self._p.options(k)
        option = own.start + int(np.searchsorted(p.option_pool[own], at))
        rows, coefficients = p.takes(option)
        limits = rows >= (self._limit or 0)
        return rows[limits], coefficients[limits]

    def _allowed(self, k: int, at: int) -> bool:
        if self._limit is None:
            return True
        rows, coefficients = self._entries(k, at)
        return bool((self._left[rows] >= coefficients).all())

    def _start(self, job: JobId, k: int, at: int) -> None:
        self.started.append(Started(job, k, at))
        center = int(self._p.pool.center[at])
        self._room[center] -= 1
        if self._room[center] <= 0:
            self._costs[self._p.pool.center == center] = np.inf
            self._total[:, self._p.pool.center == center] = np.inf
        nodes = self._p.classes[k].request.nodes
        growth = self._places.start(at, self._shape(k, at), nodes, self._wanted)
        if growth is not None:
            self._total[:, at] = self._costs[at] + growth.take(self._which[at]) * self._nodes
        if self._limit is not None:
            rows, coefficients = self._entries(k, at)
            self._left[rows] -= coefficients


def plain_bound(p: Problem) -> int:
    """Micro-CNY that no plan of `p` is below: every job alone, in its cheapest pool or waiting."""
    total = 0
    for k, waiting in enumerate(p.waiting.tolist()):
        own = p.cost[p.options(k)]
        cheapest = int(own.min()) if len(own) else None
        for jobs, worth in zip(waiting, p.worth[k].tolist(), strict=True):
            total += jobs * (worth if cheapest is None else min(worth, cheapest))
    return total
