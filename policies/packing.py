"""Places jobs one after the other, each where it leaves most for what is usually asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from weakref import WeakKeyDictionary

import numpy as np

from broker.core.model import MICRO
from broker.core.policy import FloatArray, IntArray, Mix, Nodes, Window


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
    """Weighs what is left on a node by the best filling with what is usually asked for.

    Every size of requests (whole cards, or so much of one) has a price, about that at which all of them
    are packed on the fewest cards, and asks for the mean cores and GiB of its requests.  A node is worth
    what the dearest filling of its cards comes to, as far as its cores and GiB serve it; the rest of its
    free cards is wasted.
    """

    price: int = 1 * MICRO
    """Micro-CNY per card that is wasted."""
    rare: Decimal = Decimal("0.005")
    """Share of all requests; no place is kept for sizes that fewer of them have."""
    expected: tuple[Expected, ...] = ()
    """One [[policies.packing.expected]] table each: what is usually asked for, as far as it is known
    before there are runs to learn it from."""
    window_jobs: int = 0
    """Jobs that may wait, while cards are scarce, because others make more of the cards that they need;
    0: none, and jobs are placed in order of arrival."""
    longest_s: int = 3600
    """Seconds; a job that is older is not held back."""
    scarce: Decimal = Decimal("0.3")
    """Share of all cards; cards are scarce while less of them is free."""

    def __post_init__(self) -> None:
        if self.price < 0:
            raise ValueError(f"price must be at least 0 micro-CNY, not {self.price}")
        if not 0 <= self.rare <= 1:
            raise ValueError(f"rare must be a share from 0 to 1, not {self.rare}")
        if self.window_jobs < 0:
            raise ValueError(f"window_jobs must be at least 0, not {self.window_jobs}")
        if self.longest_s < 0:
            raise ValueError(f"longest_s must be at least 0 seconds, not {self.longest_s}")
        if not 0 <= self.scarce <= 1:
            raise ValueError(f"scarce must be a share from 0 to 1, not {self.scarce}")

    @property
    def window(self) -> Window | None:
        """Which jobs wait; see PolicySet.window."""
        if not self.window_jobs:
            return None
        return Window(self.window_jobs, int(self.scarce * 1000), self.longest_s)

    def waste(self, mix: Mix, nodes: Nodes) -> FloatArray:
        """Micro-CNY per node."""
        usual = self._ready(mix)
        if usual is None:
            return np.zeros(len(nodes.of))
        # Cards first: a sum over the first axis is the fastest.
        beyond = np.add.reduce(usual.beyond.take(nodes.cards.T, axis=0)).T.take(nodes.of, axis=1)
        beyond += usual.prices @ nodes.host
        wasted: FloatArray = np.minimum.reduce(beyond) * (-self.price / 1000)
        return wasted

    def efficiency(self, mix: Mix, millicards: int) -> float:
        """What a request is of what the best filling makes of the cards that it needs; at most 1."""
        usual = self._ready(mix)
        if usual is None or not 0 < millicards < 1000:
            return 1.0
        return min(1.0, millicards / max(1.0, float(usual.filled[millicards])))

    def _ready(self, mix: Mix) -> _Usual | None:
        """The mix made ready, once for as long as it is used."""
        known = _READY.get(mix)
        if known is None or known[0] is not self.expected or known[1] != self.rare:
            known = _READY[mix] = (self.expected, self.rare, _usual(mix, self.expected, self.rare))
        return known[2]


SHARES = (0, 1, 1 / 4, 1 / 16)
"""Prices of cores and GiB that are tried: shares of what a card's worth comes to per core or GiB of a
mean request."""
STEPS = 100
"""Steps of a card in which fillings are looked for; sizes are rounded up to them."""
ROUNDS = 80
"""Rounds in which prices of parts are found, of which the first quarter does not count."""


@dataclass(frozen=True, slots=True, eq=False)
class _Usual:
    """A mix, made ready.  Rows are pairs of a price of cores and one of GiB.

    By weak duality no filling of a node is worth more than its cores and GiB at any such prices, and of
    each card the best filling with what requests are worth beyond their own cores and GiB.  The least
    of these is taken for the worth of the node.
    """

    beyond: FloatArray  # [thousandths free of a card, pair] what the card is worth beyond its thousandths
    prices: FloatArray  # [pair, 2] thousandths of a card per core and per GiB
    filled: FloatArray  # [thousandths free of a card] worth where cores and GiB are plenty


_READY: WeakKeyDictionary[Mix, tuple[tuple[Expected, ...], Decimal, _Usual | None]] = WeakKeyDictionary()


def _usual(mix: Mix, expected: tuple[Expected, ...], rare: Decimal) -> _Usual | None:
    rows = np.array([mix.cards, mix.cores, mix.memory_gib, mix.count])
    rows = np.concatenate([rows, _columns(expected)], axis=1)
    known: FloatArray = rows[:, rows[0] > 0].astype(np.float64)
    cards, cores, memory, count = known
    if not len(cards):
        return None
    sizes, which = np.unique(cards, return_inverse=True)
    often: FloatArray = np.bincount(which, weights=count).astype(np.float64)
    mean_cores = np.bincount(which, weights=cores * count) / often
    mean_gib = np.bincount(which, weights=memory * count) / often
    own = np.flatnonzero(sizes < 1000)
    filled = _of_steps(_filled(sizes[own], often[own]))
    worth = np.where(sizes < 1000, filled[np.minimum(sizes, 1000).astype(np.int64)], sizes)
    per_core, per_gib = _prices(cards @ count, cores @ count), _prices(cards @ count, memory @ count)
    pairs = [(per_core[0], per_gib[0])]
    pairs += [(core, 0.0) for core in per_core[1:]] + [(0.0, gib) for gib in per_gib[1:]]
    prices = np.array(pairs)
    usual = often >= float(rare) * often.sum()
    usual |= ~usual.any()
    # Of one card, since larger requests take whole ones.
    net = (worth - prices @ np.array([mean_cores, mean_gib])) / np.maximum(sizes // 1000, 1)
    steps = _steps(sizes[usual])
    best = np.array([_of_steps(_fillings(steps, row)) for row in net[:, usual].tolist()])
    return _Usual(
        beyond=np.ascontiguousarray((best - np.arange(1001)).T),
        prices=prices,
        filled=filled,
    )


def _prices(cards: float, asked: float) -> list[float]:
    """Thousandths of a card per core or GiB, of which so much is asked for with so many thousandths."""
    return [share * cards / asked if asked else 0.0 for share in SHARES]


def _columns(expected: tuple[Expected, ...]) -> IntArray:
    rows = [(row.millicards, row.cores, row.memory_gib, row.count) for row in expected]
    return np.array(rows, dtype=np.int64).reshape(len(rows), 4).T


def _of_steps(best: Sequence[float]) -> FloatArray:
    """By step as by thousandths."""
    return np.array(best)[np.arange(1001) * STEPS // 1000]


def _filled(sizes: FloatArray, wanted: FloatArray) -> list[float]:
    """[step] thousandths that the best filling of a free part of a card with parts is worth.

    The prices of parts are about those at which all of them are packed on the fewest cards, by
    multiplicative weights: fill a card with what is dearest, and lower the prices of what is in it.
    """
    if not len(sizes):
        return [0.0] * STEPS + [1000.0]
    steps = _steps(sizes)
    demand, prices = wanted * sizes, np.zeros(len(sizes))
    for number in range(ROUNDS):
        weight = demand / wanted
        best = _fillings(steps, weight.tolist())
        if number >= ROUNDS // 4:
            prices += weight / best[-1]
        pattern = np.array(_dearest(steps, weight.tolist(), best))
        used = np.flatnonzero(pattern)
        cards = (wanted[used] / pattern[used]).min()
        demand[used] *= np.clip(1 - 0.2 * cards * pattern[used] / wanted[used], 0.05, 1)
    best = _fillings(steps, prices.tolist())
    return [1000 * value / best[-1] for value in best]


def _steps(sizes: FloatArray) -> list[int]:
    """Sizes of at most a card, rounded up."""
    steps: list[int] = np.ceil(np.minimum(sizes, 1000) * STEPS / 1000).astype(np.int64).tolist()
    return steps


def _fillings(steps: Sequence[int], price: Sequence[float]) -> list[float]:
    """[step] the price of the dearest filling of every free part of a card."""
    best = [0.0] * (STEPS + 1)
    for size, own in zip(steps, price, strict=True):
        for room in range(size, STEPS + 1):
            with_it = best[room - size] + own
            if with_it > best[room]:
                best[room] = with_it
    return best


def _dearest(steps: Sequence[int], price: Sequence[float], best: Sequence[float]) -> list[int]:
    """[size] how often each is in the dearest filling of a whole card."""
    pattern, room = [0] * len(steps), STEPS
    while room >= min(steps):
        _, one = max(
            (own + best[room - size], -i)
            for i, (size, own) in enumerate(zip(steps, price, strict=True))
            if size <= room
        )
        pattern[-one] += 1
        room -= steps[-one]
    return pattern
