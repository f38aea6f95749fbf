"""Places jobs one after the other, each where it leaves most for what is usually asked for."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from broker.core.model import MICRO
from broker.core.policy import FloatArray, IntArray, Mix, Nodes, Window

Floats = NDArray[np.float32]  # sums of a few counts: twice as fast, and exact enough


@dataclass(frozen=True, slots=True)
class Expected:
    """A request of one node that is expected to come as often as `count` runs."""

    millicards: int
    """Thousandths of cards: less than 1000 of one card, else whole ones."""
    cores: int
    memory_gib: int
    count: int

    def __post_init__(self) -> None:
        if min(self.millicards, self.cores, self.memory_gib) < 0 or self.count < 1:
            raise ValueError(
                "millicards, cores and memory_gib must be at least 0 and count at least 1, not"
                f" {self.millicards}, {self.cores}, {self.memory_gib} and {self.count}"
            )
        if self.millicards > 1000 and self.millicards % 1000:
            raise ValueError(f"millicards must be at most 1000 or whole cards, not {self.millicards}")


@dataclass(frozen=True, slots=True)
class Packing:
    """Weighs what is left on a node by what the usual requests could still make of it.

    For every request that runs have had, the node is filled with copies of it, as many as its cards,
    cores and GiB hold; what they leave of the free cards is wasted for that request.  The waste of a
    node is the mean over requests, weighed by how often they come and, weakly, by their cards.  Half
    of it counts so, half by the best filling of each card with different parts.
    """

    price: int = 1 * MICRO
    """Micro-CNY per card that is wasted."""
    requests: int = 200
    """So many distinct requests are looked at, the commonest."""
    expected: tuple[Expected, ...] = ()
    """One [[policies.packing.expected]] table each: what is usually asked for, as far as it is known
    before there are runs to learn it from."""
    window_jobs: int = 0
    """Jobs that may wait for a place that wastes less, while cards are scarce; 0: none, and jobs are
    placed in order of arrival."""
    scarce: Decimal = Decimal("0.2")
    """Share of all cards; cards are scarce while less of them is free."""

    def __post_init__(self) -> None:
        if self.price < 0:
            raise ValueError(f"price must be at least 0 micro-CNY, not {self.price}")
        if self.requests < 1:
            raise ValueError(f"requests must be at least 1, not {self.requests}")
        if self.window_jobs < 0:
            raise ValueError(f"window_jobs must be at least 0, not {self.window_jobs}")
        if not 0 <= self.scarce <= 1:
            raise ValueError(f"scarce must be a share from 0 to 1, not {self.scarce}")

    @property
    def window(self) -> Window | None:
        """How jobs are taken; see PolicySet.window."""
        return Window(self.window_jobs, int(self.scarce * 1000)) if self.window_jobs else None

    def waste(self, mix: Mix, nodes: Nodes) -> FloatArray:
        """Micro-CNY per node."""
        free = nodes.cards.sum(axis=1)
        usual = self._ready(mix)
        if usual is None:
            return np.zeros(len(free))
        copies = np.floor(usual.table.take(nodes.cards, axis=0).sum(axis=1) * usual.per_cards)
        copies = copies.take(usual.which, axis=1)
        np.minimum(copies, nodes.cores.astype(np.float32)[:, None] * usual.per_core, out=copies)
        np.minimum(copies, nodes.memory_gib.astype(np.float32)[:, None] * usual.per_gib, out=copies)
        served = np.floor(copies, out=copies) @ usual.weight
        filled = usual.filled.take(nodes.cards).sum(axis=1)
        wasted: FloatArray = (free - (served + filled) / 2) * (self.price / 1000)
        return wasted

    def _ready(self, mix: Mix) -> _Usual | None:
        """The mix made ready, once for as long as it is used."""
        key = (self.expected, self.requests)
        known = _READY.get(mix)
        if known is None or known[0][0] is not key[0] or known[0][1] != key[1]:
            known = _READY[mix] = (key, _usual(mix, *key))
        return known[1]


@dataclass(frozen=True, slots=True, eq=False)
class _Usual:
    """A mix, made ready: a row or column per request, or per size of requests."""

    table: Floats  # [thousandths of a card, size] copies on one card, as if one card were enough
    per_cards: Floats  # copies per card
    which: IntArray  # size of each request
    per_core: Floats  # copies
    per_gib: Floats
    weight: Floats  # thousandths of cards of one copy, times the request's share
    filled: FloatArray  # [thousandths of a card] what different requests together make of it


_READY: WeakKeyDictionary[Mix, tuple[tuple[tuple[Expected, ...], int], _Usual | None]] = WeakKeyDictionary()


def _usual(mix: Mix, expected: tuple[Expected, ...], requests: int) -> _Usual | None:
    rows = np.array([mix.cards, mix.cores, mix.memory_gib, mix.count])
    rows = np.concatenate([rows, _columns(expected)], axis=1)
    rows = rows[:, rows[0] > 0]
    rows = rows[:, np.argsort(-rows[3], kind="stable")[:requests]]
    if not rows.size:
        return None
    cards, cores, memory, count = rows
    # Between one vote per job and one per card: either alone leaves the other kind too little.
    share = count * (cards / 1000) ** 0.25
    sizes, which = np.unique(cards, return_inverse=True)
    # A little more than one by the other, so that what fits exactly is not rounded away.
    above = np.float32(1 + 1e-6)
    return _Usual(
        table=(np.arange(1001)[:, None] // np.minimum(sizes, 1000)).astype(np.float32),
        per_cards=(above / np.maximum(sizes // 1000, 1)).astype(np.float32),
        which=which,
        per_core=(above / np.maximum(cores, 1)).astype(np.float32),
        per_gib=(above / np.maximum(memory, 1)).astype(np.float32),
        weight=(cards * share / share.sum()).astype(np.float32),
        filled=_filled(sizes, np.bincount(which, weights=count).astype(np.float64)),
    )


def _columns(expected: tuple[Expected, ...]) -> IntArray:
    rows = [(row.millicards, row.cores, row.memory_gib, row.count) for row in expected]
    return np.array(rows, dtype=np.int64).reshape(len(rows), 4).T


STEPS = 100
"""Steps of a card in which fillings are looked for; sizes are rounded up to them."""
ROUNDS = 80
"""Rounds in which prices of parts are found, of which the first quarter does not count."""


def _filled(sizes: IntArray, count: FloatArray) -> FloatArray:
    """[thousandths free of a card] thousandths that the best filling with different parts is worth.

    The prices of parts are about those at which all of them are packed on the fewest cards, by
    multiplicative weights: fill a card with what is dearest, and lower the prices of what is in it.
    """
    value = np.zeros(STEPS + 1)
    value[-1] = 1
    if len(own := np.flatnonzero(sizes < 1000)):
        size, wanted = -(-sizes[own] * STEPS // 1000), count[own]
        demand, prices = wanted * sizes[own], np.zeros(len(own))
        for number in range(ROUNDS):
            weight = demand / wanted
            best, pattern = _fillings(size, weight)
            if number >= ROUNDS // 4:
                prices += weight / best[-1]
            used = np.flatnonzero(pattern)
            cards = (wanted[used] / pattern[used]).min()
            demand[used] *= np.clip(1 - 0.2 * cards * pattern[used] / wanted[used], 0.05, 1)
        value = _fillings(size, prices)[0]
        value /= value[-1]
    filled: FloatArray = 1000 * value[np.arange(1001) * STEPS // 1000]
    return filled


def _fillings(size: IntArray, price: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The dearest filling of every free part of a card: its price, and of a whole card its counts.

    Sizes are ascending.
    """
    smaller = np.searchsorted(size, np.arange(STEPS + 1), side="right").tolist()
    best, last = np.zeros(STEPS + 1), np.full(STEPS + 1, -1)
    for room in range(1, STEPS + 1):
        best[room] = best[room - 1]
        if fits := smaller[room]:
            with_it = price[:fits] + best[room - size[:fits]]
            one = int(with_it.argmax())
            if with_it[one] > best[room]:
                best[room], last[room] = with_it[one], one
    pattern, room = np.zeros(len(size)), STEPS
    while room > 0:
        if (one := int(last[room])) < 0:
            room -= 1
        else:
            pattern[one] += 1
            room -= int(size[one])
    return best, pattern
