"""Jobs placed one after the other, each where it costs least at what is then free.

What belongs here: the states of nodes while a round starts jobs on them, what every request would cost
in every pool, and the order in which waiting jobs are taken.  What does not: what a state is worth
(policies say), what is free before the round (core/snapshot.py) and the usual rounds, which decide the
whole queue at once and whose costs are linear (core/problem.py, core/solver.py).

Room is tested exactly, in cards, thousandths of cards, cores and GiB, and charged as claims are: on the
fullest node of the pool that holds the job, a part of a card on the fullest card.  So what a round
expects to be free is what the next one finds.

[distinct request x pool] matrices of what a start would waste are kept from round to round; only
columns of pools that changed are worked out again, when a job asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from broker.core.fitting import BoolArray, IntArray, ints
from broker.core.histogram import Histogram, NodeState
from broker.core.model import Accuracy, FreeNodes, JobId, NodeShape, Pool, Snapshot
from broker.core.policy import FloatArray, Mix, Nodes, PolicySet, Window
from broker.core.problem import Problem
from broker.core.queue import as_queue
from broker.core.resources import part_permille, same_card_memory, same_devices
from broker.core.snapshot import in_flight_room

_NONE = np.zeros(0, dtype=np.int64)
_KEPT_STATES = 50_000
"""States that are remembered before those no node is in are forgotten."""


@dataclass(frozen=True, slots=True)
class Started:
    """One job that starts: of class `k`, in pool `at`."""

    job: JobId
    k: int
    at: int


# ---------------------------------------------------------------- what is asked for


def kind_of(shape: NodeShape) -> NodeShape:
    """Nodes of one kind take the same requests, room aside, and are weighed by the same mix."""
    return NodeShape(
        arch=shape.arch,
        cores=0,
        memory_gib=0,
        accelerator=shape.accelerator,
        accelerators=min(1, shape.accelerators),
        accelerator_memory_gib=shape.accelerator_memory_gib,
        card_permille=shape.card_permille,
        split_permille=shape.split_permille,
    )


def learned(snapshot: Snapshot) -> dict[NodeShape, int]:
    """What one node of the runs there are was given, and how often.

    Waiting jobs are left out, so that what is decided for a job does not depend on those behind it.
    """
    counts: dict[int, list[int]] = {}
    shapes: dict[int, NodeShape] = {}
    for claim in snapshot.claims:
        # Runs of a class share one shape object, which is cheaper to tell apart than its value.
        key = id(claim.shape)
        shapes[key] = claim.shape
        counts.setdefault(key, [0])[0] += claim.nodes
    found: dict[NodeShape, int] = {}
    for key, (count,) in counts.items():
        found[shapes[key]] = found.get(shapes[key], 0) + count
    return found


def mix_for(kind: NodeShape, nodes: Iterable[NodeShape], asked: dict[NodeShape, int]) -> Mix:
    """The requests of `asked` that nodes of a kind can serve.

    One for a whole node of each shape there is (`nodes`) is reckoned with in any case: who is the first
    to ask for it would find every one broken.
    """
    rows = [
        (part_permille(kind, shape) or shape.accelerators * 1000, shape.cores, shape.memory_gib, count)
        for shape, count in asked.items()
        if (shape.arch, shape.accelerator) == (kind.arch, kind.accelerator)
        and same_devices(kind, shape)
        and same_card_memory(kind, shape)
    ]
    rows += [(n.accelerators * 1000, n.cores, n.memory_gib, 1) for n in sorted(set(nodes))]
    rows.sort(key=lambda r: (-r[3], r))
    columns = np.array(rows, dtype=np.int64).reshape(len(rows), 4)
    return Mix(cards=columns[:, 0], cores=columns[:, 1], memory_gib=columns[:, 2], count=columns[:, 3])


# ---------------------------------------------------------------- the matrices


@dataclass(slots=True, eq=False)
class _Asked:
    """One distinct request: what starting one node of it would waste in every pool."""

    shape: NodeShape
    cards: tuple[int, ...]  # whole devices that it takes, by kind
    part: tuple[int, ...]  # thousandths of one device, by kind
    growth: FloatArray  # [P] micro-CNY; infinite where there is no room
    seen: int = -1  # the change up to which growth is right


class Sequencer:
    """The nodes and matrices as one caller keeps them from round to round; of use to one thread."""

    def __init__(self) -> None:
        self._pools: tuple[Pool, ...] = ()
        self._policies: PolicySet | None = None
        self._free: list[tuple[FreeNodes, ...] | None] = []
        self._nodes: list[Histogram] = []
        self._kind = _NONE
        self._kinds: list[NodeShape] = []
        self._mixes: list[Mix] = []
        self._learned_at = -1
        self._asked: dict[NodeShape, _Asked] = {}
        self._clock = 0
        self._changed = _NONE  # [P] the change that touched it last
        self._ids: dict[tuple[int, NodeState], int] = {}
        self._single = _NONE  # [P] the state of a pool's only node, else -1
        self._devices = np.zeros((0, 0), dtype=np.int64)  # [state, device] thousandths free
        self._cores, self._memory = _NONE, _NONE
        self._waste = np.zeros(0)

    # ------------------------------------------------------------ following the world

    def follow(self, p: Problem) -> None:
        """Takes over what is free in a problem, and what is asked for when that has changed much.

        The mix is learned anew when there are twice or half as many runs as when it was.
        """
        if not self._same(p):
            self._start(p)
        self._pools, self._policies = p.pools, p.policies
        runs = sum(claim.nodes for claim in p.snapshot.claims).bit_length()
        if runs != self._learned_at or len(self._ids) > _KEPT_STATES:
            self._learned_at = runs
            asked = learned(p.snapshot)
            nodes: list[list[NodeShape]] = [[] for _ in self._kinds]
            for pool, kind in zip(p.pools, self._kind.tolist(), strict=True):
                nodes[kind].append(pool.shape)
            self._mixes = [mix_for(k, own, asked) for k, own in zip(self._kinds, nodes, strict=True)]
            self._forget()
        for at, pool in enumerate(p.pools):
            free = p.free[pool.id]
            if self._free[at] is not free:
                self._free[at] = free
                # What was expected to be left mostly is what the report says.
                if free != self._nodes[at].groups():
                    self._nodes[at] = Histogram(replace(pool, free=free))
                    self._touch(at)

    def _same(self, p: Problem) -> bool:
        """Whether the pools have the shapes they had, and the policies are those of last time."""
        return (
            (p.policies is self._policies or p.policies == self._policies)
            and len(p.pools) == len(self._pools)
            and all(
                a is b or (a.id, a.shape, a.nodes, a.accuracy) == (b.id, b.shape, b.nodes, b.accuracy)
                for a, b in zip(p.pools, self._pools, strict=True)
            )
        )

    def _start(self, p: Problem) -> None:
        kinds: dict[NodeShape, int] = {}
        self._kind = ints(kinds.setdefault(kind_of(pool.shape), len(kinds)) for pool in p.pools)
        self._kinds = list(kinds)
        self._free = [None] * len(p.pools)
        self._nodes = [Histogram(replace(pool, free=())) for pool in p.pools]
        self._changed = np.zeros(len(p.pools), dtype=np.int64)
        self._learned_at = -1
        width = max((pool.shape.accelerators for pool in p.pools), default=0)
        self._devices = np.zeros((64, width), dtype=np.int64)
        self._pools = p.pools

    def _forget(self) -> None:
        """All that rests on the mix: states and matrices."""
        self._asked.clear()
        self._ids.clear()
        self._devices = np.zeros((64, self._devices.shape[1]), dtype=np.int64)
        self._cores, self._memory = np.zeros(64, dtype=np.int64), np.zeros(64, dtype=np.int64)
        self._waste = np.zeros(64)
        self._single = np.full(len(self._nodes), -1, dtype=np.int64)
        for at in range(len(self._nodes)):
            self._touch(at)

    def _touch(self, at: int) -> None:
        """A pool has other nodes than before."""
        self._clock += 1
        self._changed[at] = self._clock
        count = self._nodes[at].count
        self._single[at] = self._id(at, next(iter(count))) if len(count) == 1 else -1

    def _id(self, at: int, state: NodeState) -> int:
        """The row of a state."""
        kind = int(self._kind[at])
        known = self._ids.get((kind, state))
        if known is not None:
            return known
        row = self._ids[kind, state] = len(self._ids)
        if row == len(self._cores):
            self._devices = np.concatenate([self._devices, np.zeros_like(self._devices)])
            self._cores = np.concatenate([self._cores, np.zeros_like(self._cores)])
            self._memory = np.concatenate([self._memory, np.zeros_like(self._memory)])
            self._waste = np.concatenate([self._waste, np.zeros_like(self._waste)])
        _, cards, cores, memory, parts = state
        self._devices[row, : len(parts)] = parts
        self._devices[row, len(parts) : len(parts) + cards] = 1000
        self._cores[row], self._memory[row] = cores, memory
        self._waste[row] = np.nan  # weighed with others, when asked for
        return row

    def _weigh(self, kind: int, devices: IntArray, cores: IntArray, memory: IntArray) -> FloatArray:
        assert self._policies is not None
        return self._policies.waste(self._mixes[kind], Nodes(devices, cores, memory))

    # ------------------------------------------------------------ what a start would waste

    def growth(self, shape: NodeShape) -> FloatArray:
        """[P] micro-CNY that starting one node of `shape` would waste; infinite where there is no room.

        Pools of which nobody knows what is free have room, and waste nothing.
        """
        asked = self._asked.get(shape)
        if asked is None:
            asked = self._asked[shape] = self._ask(shape)
        if asked.seen < self._clock:
            dirty = np.flatnonzero(self._changed > asked.seen)
            asked.seen = self._clock
            asked.growth[dirty] = np.inf
            kinds = self._kind[dirty]
            for kind in np.unique(kinds).tolist() if len(self._kinds) > 1 else (0,):
                self._renew(asked, kind, dirty[kinds == kind])
        return asked.growth

    def _ask(self, shape: NodeShape) -> _Asked:
        part = tuple(part_permille(kind, shape) for kind in self._kinds)
        cards = tuple(0 if of_one else shape.accelerators for of_one in part)
        return _Asked(shape, cards, part, np.full(len(self._pools), np.inf))

    def _renew(self, asked: _Asked, kind: int, pools: IntArray) -> None:
        """Growth of one request in changed pools of one kind."""
        # 1 the node of each pool that it would be charged to
        rows, shape = self._single[pools], asked.shape
        for i in np.flatnonzero(rows < 0).tolist():
            at = int(pools[i])
            if self._pools[at].accuracy is Accuracy.UNKNOWN:
                asked.growth[at] = 0
            elif (state := self._nodes[at].pick(shape)) is not None:
                rows[i] = self._id(at, state)
        host = (self._cores[rows] >= shape.cores) & (self._memory[rows] >= shape.memory_gib)
        some = np.flatnonzero((rows >= 0) & host)
        pools, rows = pools[some], rows[some]
        # 2 what is left of its cards
        devices = self._devices[rows]
        fits = _take(devices, asked.cards[kind], asked.part[kind])
        pools, rows, devices = pools[fits], rows[fits], devices[fits]
        # 3 how much waste grows
        if len(pools):
            cores, memory = self._cores[rows], self._memory[rows]
            new = np.unique(rows[np.isnan(self._waste[rows])])
            weighed = self._weigh(
                kind,
                np.concatenate([devices, self._devices[new]]),
                np.concatenate([cores - shape.cores, self._cores[new]]),
                np.concatenate([memory - shape.memory_gib, self._memory[new]]),
            )
            self._waste[new] = weighed[len(rows) :]
            asked.growth[pools] = weighed[: len(rows)] - self._waste[rows]

    def room(self, at: int, shape: NodeShape, nodes: int) -> bool:
        """Whether `nodes` nodes of a job, some of which may share one, have room in a pool."""
        if self._pools[at].accuracy is Accuracy.UNKNOWN:
            return True
        return self._nodes[at].copy().place(shape, nodes) == 0

    def start(self, at: int, shape: NodeShape, nodes: int) -> None:
        """Charges a start to the nodes of a pool; there must be room."""
        if self._pools[at].accuracy is not Accuracy.UNKNOWN:
            self._nodes[at].place(shape, nodes)
            self._free[at] = None  # a plan may come to nothing: what is free is looked at again
            self._touch(at)

    def free_permille(self) -> int:
        """Thousandths of all cards of which something is free, each counted by what is."""
        free = sum(
            (state[1] * 1000 + sum(state[4])) * count
            for nodes in self._nodes
            for state, count in nodes.count.items()
        )
        return free // max(1, sum(pool.shape.accelerators * pool.nodes for pool in self._pools))


def _take(devices: IntArray, cards: int, part: int) -> BoolArray:
    """Takes a request off the cards of nodes, a row each; whether each had room."""
    if part:
        held = np.where(devices >= part, devices, 1001)
        at, each = held.argmin(axis=1), np.arange(len(devices))
        devices[each, at] -= part
        had: BoolArray = held[each, at] <= 1000
        return had
    whole = devices == 1000
    if cards:
        devices[whole & (np.cumsum(whole, axis=1) <= cards)] = 0
    fits: BoolArray = whole.sum(axis=1) >= cards
    return fits


# ---------------------------------------------------------------- starting jobs


def in_sequence(p: Problem, sequencer: Sequencer) -> list[Started]:
    """The jobs that start, in the order in which they do."""
    sequencer.follow(p)
    round_ = _Round(p, sequencer)
    window = p.policies.window
    return round_.in_order() if window is None else round_.together(window)


class _Round:
    """What is left while jobs of one problem start."""

    def __init__(self, p: Problem, sequencer: Sequencer) -> None:
        self._p, self._s = p, sequencer
        self._room = [in_flight_room(center) for center in p.centers]
        self._shut = np.array(self._room, dtype=np.int64)[p.pool.center] <= 0
        self._left = p.row_bound.copy()
        self._costs: dict[int, FloatArray] = {}
        self._limit = next((i for i, name in enumerate(p.row_name) if name.startswith("limit:")), None)
        self.started: list[Started] = []

    def in_order(self) -> list[Started]:
        """Tier by tier, in order of arrival.  A class of which one job has no room has none for others."""
        full: set[int] = set()
        for _, _, job, k, worth in self._queue():
            if k not in full and (at := self._best(k, worth)[0]) is not None:
                self._start(job, k, at)
            else:
                full.add(k)
        return self.started

    def together(self, window: Window) -> list[Started]:
        """Of all waiting jobs the one that wastes least for the cards it takes, again and again.

        While cards are not scarce it makes no difference worth the trouble: then in order of arrival.
        """
        if self._s.free_permille() >= window.scarce_permille:
            return self.in_order()
        waiting: dict[int, list[tuple[JobId, int]]] = {}
        for _, _, job, k, worth in reversed(self._queue()):
            waiting.setdefault(k, []).append((job, worth))
        count = sum(map(len, waiting.values()))
        while waiting and count > window.jobs:
            found = []
            for k, jobs in list(waiting.items()):
                at, growth = self._best(k, jobs[-1][1])
                if at is None:
                    del waiting[k]
                else:
                    cards = int(self._p.job_millicards(k, np.array([at]))[0])
                    found.append((-int(self._p.classes[k].request.tier), growth / max(cards, 1), k, at))
            if not found:
                break
            _, _, k, at = min(found)
            job, _ = waiting[k].pop()
            count -= 1
            self._start(job, k, at)
            if not waiting[k]:
                del waiting[k]
        return self.started

    def _queue(self) -> list[tuple[int, int, JobId, int, int]]:
        """(order of tier, arrival, job, class, worth) of every waiting job, in the order of the queue."""
        p, jobs = self._p, []
        for k, job_class in enumerate(p.classes):
            queue, tier = as_queue(job_class.jobs), -int(job_class.request.tier)
            ages_s = (p.snapshot.now_ms - queue.queued_ms) // 1000
            buckets = np.clip(np.searchsorted(p.age_s, ages_s, side="right") - 1, 0, None)
            worth = p.worth[k][buckets].tolist()
            jobs += [
                (tier, at, job, k, w)
                for job, at, w in zip(queue.ids, queue.queued_ms.tolist(), worth, strict=True)
            ]
        return sorted(jobs)

    def _best(self, k: int, worth: int) -> tuple[int | None, float]:
        """The pool in which a job of class `k` costs least, if it is worth that, and its waste there."""
        p, nodes = self._p, self._p.classes[k].request.nodes
        costs = self._costs.get(k)
        if costs is None:
            costs = self._costs[k] = np.full(len(p.pools), np.inf)
            own = p.options(k)
            costs[p.option_pool[own]] = p.cost[own]
        growth = self._growth(k)
        total = costs + growth * nodes
        total[self._shut] = np.inf
        while True:
            at = int(total.argmin())
            if not total[at] < worth:
                return None, 0.0
            if self._allowed(k, at) and (nodes == 1 or self._s.room(at, self._shape(k, at), nodes)):
                return at, float(growth[at]) * nodes
            total[at] = np.inf

    def _growth(self, k: int) -> FloatArray:
        spec = self._p.fittings[k].spec
        request = self._p.classes[k].request.spec
        if request is not None:
            return self._s.growth(request.shape)
        growth = np.full(len(spec), np.inf)
        for one in np.unique(spec[spec >= 0]).tolist():
            growth = np.where(spec == one, self._s.growth(self._p.specs[one].shape), growth)
        return growth

    def _shape(self, k: int, at: int) -> NodeShape:
        return self._p.specs[int(self._p.fittings[k].spec[at])].shape

    def _entries(self, k: int, at: int) -> tuple[IntArray, IntArray]:
        """Rows of limits, and what one job takes of each."""
        p, own = self._p, self._p.options(k)
        option = own.start + int(np.searchsorted(p.option_pool[own], at))
        entries = slice(int(p.entry_first[option]), int(p.entry_first[option + 1]))
        rows, coefficients = p.entry_row[entries], p.entry_coef[entries]
        limits = rows >= (self._limit or 0)
        return rows[limits], coefficients[limits]

    def _allowed(self, k: int, at: int) -> bool:
        if self._limit is None:
            return True
        rows, coefficients = self._entries(k, at)
        return bool((self._left[rows] >= coefficients).all())

    def _start(self, job: JobId, k: int, at: int) -> None:
        self.started.append(Started(job, k, at))
        self._s.start(at, self._shape(k, at), self._p.classes[k].request.nodes)
        center = int(self._p.pool.center[at])
        self._room[center] -= 1
        if self._room[center] <= 0:
            self._shut |= self._p.pool.center == center
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
