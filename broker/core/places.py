"""What a start of every request would waste in every pool, while jobs start there one after the other.

What belongs here: the states of nodes while a round starts jobs on them, and the growth of waste.  What
does not: what a state is worth (policies say), what is free before the round (core/snapshot.py) and
which job starts (core/sequence.py).

Room is tested exactly, in cards, thousandths of cards, cores and GiB, and charged as claims are: on the
fullest node of the pool that holds the job, a part of a card on the fullest card.  So what a round
expects to be free is what the next one finds.

A [distinct request x pool] matrix is kept from round to round.  A start changes one pool: its column is
worked out again at once, for all requests of the round together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from broker.core.fitting import BoolArray, IntArray, ints
from broker.core.histogram import Histogram, NodeState
from broker.core.model import Accuracy, FreeNodes, NodeShape, Pool, Snapshot
from broker.core.policy import FloatArray, Mix, Nodes, PolicySet
from broker.core.problem import Problem
from broker.core.resources import part_permille, same_card_memory, same_devices

_NONE = np.zeros(0, dtype=np.int64)
_KEPT_STATES = 50_000
"""States that are remembered before those no node is in are forgotten."""
_ROWS = 64
"""Rows that matrices begin with."""


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
        (_millicards(kind, shape), shape.cores, shape.memory_gib, count)
        for shape, count in asked.items()
        if _serves(kind, shape)
    ]
    rows += [(n.accelerators * 1000, n.cores, n.memory_gib, 1) for n in sorted(set(nodes))]
    rows.sort(key=lambda r: (-r[3], r))
    columns = np.array(rows, dtype=np.int64).reshape(len(rows), 4)
    return Mix(cards=columns[:, 0], cores=columns[:, 1], memory_gib=columns[:, 2], count=columns[:, 3])


def _serves(kind: NodeShape, shape: NodeShape) -> bool:
    """Whether nodes of a kind can serve a request, room aside."""
    return (
        (shape.arch, shape.accelerator) == (kind.arch, kind.accelerator)
        and same_devices(kind, shape)
        and same_card_memory(kind, shape)
    )


def _millicards(kind: NodeShape, shape: NodeShape) -> int:
    """Thousandths of cards that one node of a request takes of nodes of a kind."""
    return part_permille(kind, shape) or shape.accelerators * 1000


# ---------------------------------------------------------------- the matrix


@dataclass(frozen=True, slots=True, eq=False)
class _OfCards:
    """What requests take of the cards of nodes of one kind, of which many take the same.

    First come the W distinct numbers of whole cards, then the T - W distinct parts of a card.
    """

    whole: IntArray  # [W]
    keep: IntArray  # [W, cards of a node] 0 for those that are taken of a node with all cards free, else 1
    part: IntArray  # [T-W] thousandths
    first: IntArray  # [T-W] where the row of each part begins, of T + 1 rows of cards
    take: IntArray  # [R+1] which each request takes; behind them T: nothing

    @property
    def nothing(self) -> int:
        """T."""
        return len(self.whole) + len(self.part)


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """Some distinct requests of one node, as rows of the matrix; behind them one for nothing."""

    rows: IntArray  # [R]
    host: FloatArray  # [2, R+1] cores and GiB
    cards: tuple[_OfCards, ...]  # by kind


class Places:
    """The nodes and the matrix as one caller keeps them from round to round; of use to one thread."""

    def __init__(self) -> None:
        self._pools: tuple[Pool, ...] = ()
        self._policies: PolicySet | None = None
        self._free: list[tuple[FreeNodes, ...] | None] = []
        self._nodes: list[Histogram] = []
        self._kind = _NONE
        self._kinds: list[NodeShape] = []
        self._mixes: list[Mix] = []
        self._learned_at = -1
        self._clock = 0
        self._changed = _NONE  # [P] the change that touched it last
        # States of nodes: their rows, and what is free, cards ascending in the last columns.
        self._ids: dict[tuple[int, NodeState], int] = {}
        self._single = _NONE  # [P] the state of a pool's only node, else -1
        self._devices = np.zeros((_ROWS, 1), dtype=np.int64)
        self._host = np.zeros((_ROWS, 2))  # cores and GiB
        # Requests: their rows, what each takes, and the matrix.
        self._rows: dict[NodeShape, int] = {}
        self._shapes: list[NodeShape] = []
        self._takes = np.zeros((0, _ROWS), dtype=np.int64)  # [kind, request] minus whole cards, or a part
        self._seen = np.zeros(_ROWS, dtype=np.int64)  # the change up to which a row is right
        self._growth = np.zeros((_ROWS, 0))  # [request, P] micro-CNY; infinite where there is no room
        self._efficiency: dict[NodeShape, float] = {}

    # ------------------------------------------------------------ following the world

    def follow(self, p: Problem) -> None:
        """Takes over what is free in a problem, and what is asked for when that has changed much.

        The mix is learned anew when there are twice or half as many runs as when it was.
        """
        if not self._same(p):
            self._start(p)
        self._pools, self._policies = p.pools, p.policies
        runs = sum([claim.nodes for claim in p.snapshot.claims]).bit_length()
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
                    self._nodes[at] = Histogram(pool, free)
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
        self._nodes = [Histogram(pool, ()) for pool in p.pools]
        self._changed = np.zeros(len(p.pools), dtype=np.int64)
        self._single = _NONE
        self._learned_at = -1
        width = max((pool.shape.accelerators for pool in p.pools), default=0)
        self._devices = np.zeros((_ROWS, max(1, width)), dtype=np.int64)
        self._pools = p.pools

    def _forget(self) -> None:
        """All that rests on the mix; and states, where there are too many."""
        self._rows.clear()
        self._shapes.clear()
        self._takes = np.zeros((len(self._kinds), _ROWS), dtype=np.int64)
        self._seen = np.zeros(_ROWS, dtype=np.int64)
        self._growth = np.zeros((_ROWS, len(self._pools)))
        self._efficiency.clear()
        self._clock += 1
        self._changed[:] = self._clock
        if not len(self._single) or len(self._ids) > _KEPT_STATES:
            self._ids.clear()
            self._devices = np.zeros((_ROWS, self._devices.shape[1]), dtype=np.int64)
            self._host = np.zeros((_ROWS, 2))
            self._single = np.full(len(self._nodes), -1, dtype=np.int64)
            for at in range(len(self._nodes)):
                self._touch(at)

    def _touch(self, at: int) -> None:
        """A pool has other nodes than before."""
        self._clock += 1
        self._changed[at] = self._clock
        count = self._nodes[at].count
        single = len(count) == 1 and self._pools[at].accuracy is not Accuracy.UNKNOWN
        self._single[at] = self._id(at, next(iter(count))) if single else -1

    def _id(self, at: int, state: NodeState) -> int:
        """The row of a state."""
        kind = int(self._kind[at])
        known = self._ids.get((kind, state))
        if known is not None:
            return known
        row = self._ids[kind, state] = len(self._ids)
        if row == len(self._host):
            self._devices, self._host = _longer(self._devices), _longer(self._host)
        _, cards, cores, memory, parts = state
        free = (*parts, *(1000 for _ in range(cards)))
        if free:
            self._devices[row, -len(free) :] = free
        self._host[row] = cores, memory
        return row

    # ------------------------------------------------------------ what is wanted

    def wanted(self, shapes: Sequence[NodeShape]) -> Wanted:
        """The rows of distinct requests, in this order, right for what is free now.

        While they are few, those of earlier rounds follow: to keep them right costs less than to work
        them out again when they come back.
        """
        rows = [self._row(shape) for shape in shapes]
        if len(self._shapes) <= 2 * len(rows):
            rows += sorted(set(range(len(self._shapes))) - set(rows))
        made = self._of(rows)
        seen = self._seen[made.rows]
        for since in np.unique(seen[seen < self._clock]).tolist():
            some = np.flatnonzero(seen == since)
            part = made if len(some) == len(seen) else self._of(made.rows[some].tolist())
            self._renew(part, np.flatnonzero(self._changed > since))
        return made

    def _row(self, shape: NodeShape) -> int:
        known = self._rows.get(shape)
        if known is not None:
            return known
        row = self._rows[shape] = len(self._shapes)
        self._shapes.append(shape)
        if row == len(self._seen):
            self._takes = _longer(self._takes.T).T
            self._seen, self._growth = _longer(self._seen), _longer(self._growth)
        for kind, node in enumerate(self._kinds):
            self._takes[kind, row] = part_permille(node, shape) or -shape.accelerators
        return row

    def _of(self, rows: list[int]) -> Wanted:
        shapes, at = [self._shapes[row] for row in rows], np.array(rows, dtype=np.int64)
        return Wanted(
            rows=at,
            host=np.array([(s.cores, s.memory_gib) for s in shapes] + [(0, 0)], dtype=np.float64).T,
            cards=tuple(_of_cards(takes[at], self._devices.shape[1]) for takes in self._takes),
        )

    def growth(self, wanted: Wanted) -> FloatArray:
        """[R, P] micro-CNY that starting one node of each request would waste; infinite: no room.

        Pools of which nobody knows what is free have room, and waste nothing.
        """
        found: FloatArray = self._growth[wanted.rows]
        return found

    def efficiency(self, shape: NodeShape) -> float:
        """The most that policies say of a request, over the kinds of nodes that serve it."""
        known = self._efficiency.get(shape)
        if known is None:
            assert self._policies is not None
            known = self._efficiency[shape] = max(
                (
                    self._policies.efficiency(mix, _millicards(kind, shape))
                    for kind, mix in zip(self._kinds, self._mixes, strict=True)
                    if _serves(kind, shape)
                ),
                default=1.0,
            )
        return known

    # ------------------------------------------------------------ what a start would waste

    def _renew(self, wanted: Wanted, pools: IntArray) -> None:
        """The matrix for some requests, in pools that changed."""
        kinds, every = self._kind[pools], np.arange(len(wanted.rows))[:, None]
        for kind in np.unique(kinds).tolist():
            own = pools[kinds == kind]
            states = self._single[own]
            alone, others = own[states >= 0], own[states < 0]
            if len(alone):
                rows, which = np.unique(states[states >= 0], return_inverse=True)
                taken = _take(self._devices[rows], wanted.cards[kind])
                found = self._grown(kind, rows, wanted, taken, np.arange(len(rows)) + 0 * every)
                self._growth[wanted.rows[:, None], alone] = found[:, which]
            for at in others.tolist():
                self._growth[wanted.rows, at] = self._among(at, wanted)
        self._seen[wanted.rows] = self._clock

    def _alone(self, kind: int, state: int, wanted: Wanted) -> FloatArray:
        """[R] growth of waste of a node in one state: what _grown says, faster."""
        devices, given = self._devices[state], wanted.cards[kind]
        width, w = len(devices), len(given.whole)
        left = np.empty((given.nothing + 1, width), dtype=np.int64)
        had = np.empty(given.nothing + 1, dtype=np.bool_)
        np.multiply(devices, given.keep, out=left[:w])
        left[w:] = devices
        at = devices.searchsorted(given.part)
        np.less(at, width, out=had[w:-1])
        np.less_equal(given.whole, width - int(devices.searchsorted(1000)), out=had[:w])
        had[-1] = True
        # Where there is no room, anything.
        left.reshape(-1)[given.first + np.minimum(at, width - 1)] -= given.part
        host = self._host[state][:, None] - wanted.host
        waste = self._weigh(kind, left, given.take, host)
        room = had.take(given.take)
        room &= host[0] >= 0  # one by one: the least of two rows takes three times as long
        room &= host[1] >= 0
        return np.where(room[:-1], waste[:-1] - waste[-1], np.inf)

    def _grown(self, kind: int, states: IntArray, wanted: Wanted, taken: _Taken, at: IntArray) -> FloatArray:
        """[R, N] growth of waste; `at` [R, N] are which of the states that each request is tried on."""
        count, given = len(states), wanted.cards[kind]
        of = given.take[:-1, None]
        host = self._host[states].T
        host_left = host[:, at] - wanted.host[:, :-1, None]
        no_room = (host_left.min(axis=0) < 0) | ~taken.had[of, at]
        # Behind what is left, the nodes as they are; where there is no room, anything.
        waste = self._weigh(
            kind,
            np.concatenate([taken.left.reshape(-1, taken.left.shape[2]), self._devices[states]]),
            np.concatenate([(of * count + at).ravel(), given.nothing * count + np.arange(count)]),
            np.concatenate([host_left.reshape(2, -1), host], axis=1),
        )
        grown = waste[:-count].reshape(at.shape) - waste[-count:][at]
        grown[no_room] = np.inf
        return grown

    def _among(self, at: int, wanted: Wanted) -> FloatArray:
        """[R] growth of waste in one pool, on the node that each request would be charged to."""
        ordered = sorted(self._nodes[at].count)
        if self._pools[at].accuracy is Accuracy.UNKNOWN or not ordered:
            return np.full(len(wanted.rows), 0.0 if self._pools[at].accuracy is Accuracy.UNKNOWN else np.inf)
        kind, states = int(self._kind[at]), ints(self._id(at, state) for state in ordered)
        taken, of = _take(self._devices[states], wanted.cards[kind]), wanted.cards[kind].take[:-1]
        host = self._host[states].T[:, None] - wanted.host[:, :-1, None]
        room = taken.had[of] & (host.min(axis=0) >= 0)
        # As Histogram.pick has it: where no whole card is broken first, then the fullest node.
        rank = taken.breaks[of] * len(states) + np.arange(len(states))
        picked = np.where(room, rank, 2 * len(states)).argmin(axis=1)
        return self._grown(kind, states, wanted, taken, picked[:, None])[:, 0]

    def _weigh(self, kind: int, devices: IntArray, of: IntArray, host: FloatArray) -> FloatArray:
        assert self._policies is not None
        return self._policies.waste(self._mixes[kind], Nodes(devices, of, host))

    def room(self, at: int, shape: NodeShape, nodes: int) -> bool:
        """Whether `nodes` nodes of a job, some of which may share one, have room in a pool."""
        if self._pools[at].accuracy is Accuracy.UNKNOWN:
            return True
        return self._nodes[at].copy().place(shape, nodes) == 0

    def start(self, at: int, shape: NodeShape, nodes: int, wanted: Wanted) -> FloatArray | None:
        """Charges a start to the nodes of a pool; there must be room.

        Returns what `growth` now says of the pool; None where it says what it said.
        """
        if self._pools[at].accuracy is Accuracy.UNKNOWN:
            return None
        self._nodes[at].place(shape, nodes)
        self._free[at] = None  # a plan may come to nothing: what is free is looked at again
        self._touch(at)
        state = int(self._single[at])
        column = self._among(at, wanted) if state < 0 else self._alone(int(self._kind[at]), state, wanted)
        self._growth[wanted.rows, at] = column
        self._seen[wanted.rows] = self._clock
        return column

    def free_permille(self) -> int:
        """Thousandths of all cards of which something is free, each counted by what is."""
        free = sum(
            (state[1] * 1000 + sum(state[4])) * count
            for nodes in self._nodes
            for state, count in nodes.count.items()
        )
        return free // max(1, sum(pool.shape.accelerators * pool.nodes for pool in self._pools))


def _of_cards(takes: IntArray, width: int) -> _OfCards:
    distinct, take = np.unique(takes, return_inverse=True)
    whole, part = -distinct[distinct <= 0], distinct[distinct > 0]
    return _OfCards(
        whole=whole,
        keep=(np.arange(width) < (width - whole)[:, None]).astype(np.int64),
        part=part,
        first=np.arange(len(whole), len(distinct)) * width,
        take=np.append(take, len(distinct)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """Requests (T, see _OfCards) taken off the cards of nodes (S)."""

    left: IntArray  # [T, S, cards of a node]
    had: BoolArray  # [T, S] there was room
    breaks: BoolArray  # [T, S] a part breaks a whole card


def _take(devices: IntArray, given: _OfCards) -> _Taken:
    """A part is put on the fullest card that holds it; cards of a node are ascending."""
    width, w, part = devices.shape[1], len(given.whole), given.part[:, None]
    at = (devices < part[:, :, None]).sum(axis=2)
    there = np.minimum(at, width - 1)
    held = devices[np.arange(len(devices)), there]
    left = np.concatenate([devices * given.keep[:, None], np.repeat(devices[None], len(part), axis=0)])
    left[np.arange(w, len(left))[:, None], np.arange(len(devices)), there] -= part
    whole = (given.whole <= (devices == 1000).sum(axis=1)[:, None]).T
    return _Taken(
        left=left,
        had=np.concatenate([whole, at < width]),
        breaks=np.concatenate([np.zeros_like(whole), held == 1000]),
    )


def _longer(rows: IntArray | FloatArray) -> Any:
    """Twice as many rows."""
    return np.concatenate([rows, np.zeros_like(rows)])
