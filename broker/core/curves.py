"""What further slots cost in each pool: the least price of runs that give so many, by how many.

What belongs here: the curves of many pools at once, as arrays, reading victims from them, and keeping
to what tenants may lose.  What does not: who wants the slots (core/assignment.py), and which runs there
are (core/victims.py).

A run of at least a slot's size gives so many slots wherever it is, so a set of them is a knapsack: of
every pool, by runs of one gain after the other, the least price for at least 0, 1, 2 … slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from broker.core.fitting import IntArray

NEVER = 1 << 60
"""The price of what cannot be had, micro-CNY."""

FURTHER_SLOTS = 24
"""Slots beyond those of the largest job that a curve goes, or twice a pool's share of all that is asked
for; jobs for which that is too little come in a further pass."""


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Runs that surely give slots, one row each: the number, the pool's row, slots and micro-CNY."""

    pools: int
    who: IntArray
    pool: IntArray
    gain: IntArray
    price: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One run per pool that may be taken, all of the same gain."""

    gain: int
    who: IntArray  # [G]
    taken: npt.NDArray[np.bool_]  # [G, Q+1]


class Curves:
    """Least prices for pools and slots; row g is a pool, `spare[g]` what is free there anyway.

    `cost[g, n]` is the price of having n slots, NEVER where the runs do not give them.
    """

    def __init__(self, runs: Runs, spare: Sequence[int], needs: Sequence[int]) -> None:
        most = np.bincount(runs.pool, weights=runs.gain, minlength=runs.pools).astype(np.int64)
        total, largest = sum(needs), max(needs)
        further = max(FURTHER_SLOTS, 2 * total // max(1, runs.pools))
        self._slots = slots = min(total, int(most.max(initial=0)), largest + further)
        self._spare = np.minimum(np.array(spare, dtype=np.int64), total)
        self._steps: list[_Step] = []
        self._offers: dict[tuple[int, int], tuple[int, ...]] = {}
        # [G, Q+1] for at least so many slots more than are spare
        self._least = np.full((runs.pools, max(slots, largest) + 1), NEVER, dtype=np.int64)
        self._least[:, 0] = 0
        for step in self._columns(runs):
            self._add(*step)
        self.cost = self._costs(total, largest)

    def _columns(self, runs: Runs) -> list[tuple[int, IntArray, IntArray]]:
        """(gain, price, who) of one run per pool each: of a gain the cheapest first, no more than help."""
        slots = self._slots
        gain = np.minimum(runs.gain, slots)
        order = np.lexsort((runs.who, runs.price, runs.pool, gain))
        who, pool, gain, price = runs.who[order], runs.pool[order], gain[order], runs.price[order]
        key = gain * runs.pools + pool
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        rank = np.arange(len(key)) - np.repeat(starts, np.diff(starts, append=len(key)))
        columns = []
        for g in np.unique(gain).tolist():
            of = (gain == g) & (rank < -(-slots // g))
            shape = (int(rank[of].max()) + 1, runs.pools)
            prices, names = np.full(shape, NEVER, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
            prices[rank[of], pool[of]], names[rank[of], pool[of]] = price[of], who[of]
            columns += [(g, prices[r], names[r]) for r in range(shape[0])]
        return columns

    def _add(self, gain: int, price: IntArray, who: IntArray) -> None:
        """With one more run in every pool."""
        with_it = np.empty_like(self._least)
        with_it[:, :gain] = price[:, None]
        np.add(self._least[:, :-gain], price[:, None], out=with_it[:, gain:])
        taken = with_it < self._least
        np.minimum(self._least, with_it, out=self._least)
        self._steps.append(_Step(gain, who, taken))

    def _costs(self, total: int, largest: int) -> IntArray:
        """`cost` up to what any pool can be asked for, and NEVER for a job more."""
        width = min(total, self._least.shape[1] - 1 + int(self._spare.max(initial=0))) + 1
        beyond = np.maximum(0, np.arange(width + largest)[None, :] - self._spare[:, None])
        cost = np.take_along_axis(self._least, np.minimum(beyond, self._least.shape[1] - 1), axis=1)
        cost[beyond >= self._least.shape[1]] = NEVER
        return np.minimum(cost, NEVER)

    def offer(self, g: int, nodes: int, who: Sequence[int], price: int) -> None:
        """A set found elsewhere that gives `nodes` slots; kept where it is cheaper."""
        spare = int(self._spare[g])
        for n in range(spare + 1, nodes + 1):
            if price < self.cost[g, n]:
                self.cost[g, n] = price
                self._offers[g, n] = tuple(who)

    def chosen(self, used: Sequence[int]) -> list[list[int]]:
        """The runs that give each pool so many slots."""
        found: list[list[int]] = [[] for _ in used]
        left = np.array(used, dtype=np.int64) - self._spare
        for (g, nodes), who in self._offers.items():
            if used[g] == nodes:
                found[g], left[g] = list(who), 0
        pools = np.flatnonzero(left > 0)
        for step in reversed(self._steps):
            some = pools[step.taken[pools, left[pools]]]
            if len(some):
                left[some] -= step.gain
                for g, one in zip(some.tolist(), step.who[some].tolist(), strict=True):
                    found[g].append(one)
                pools = pools[left[pools] > 0]
        return found


# ---------------------------------------------------------------- runs of tenants that lose too many


def regret(
    runs: Runs, tenant_of: IntArray, tenant: int, beyond: int, victims: Sequence[Sequence[int]]
) -> int:
    """By how much a tenant's runs must be dearer so that in their pools so many others are cheaper.

    `beyond` of its runs among the `victims` of all pools are too many; micro-CNY.
    """
    chosen = np.isin(runs.who, [i for mine in victims for i in mine])
    own = tenant_of[runs.who] == tenant
    mine, others = np.flatnonzero(chosen & own), np.flatnonzero(~chosen & ~own)
    if not len(mine):
        return 1
    key = _alike(runs)
    cheapest = _least(key[others], runs.price[others], key[mine])
    price = runs.price[mine]
    regrets = np.sort(np.where(cheapest < NEVER, cheapest - price, price))
    return max(1, int(regrets[min(beyond, len(regrets)) - 1]) + 1)


def exchanged(
    runs: Runs, tenant_of: IntArray, room: Sequence[int], victims: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The victims with cheaper runs of the same gain in the place of others, within the tenants' room:
    runs of some tenants may have been made dearer than was needed."""
    chosen = {i for mine in victims for i in mine}
    left = list(room)
    for i in chosen:
        left[int(tenant_of[i])] -= 1
    key, taken = _alike(runs), np.isin(runs.who, list(chosen))
    dearest = -_least(key[taken], -runs.price[taken], key)
    cheaper: dict[int, list[int]] = {}
    for j in np.flatnonzero(~taken & (runs.price < dearest)).tolist():
        cheaper.setdefault(int(key[j]), []).append(j)
    swaps = [
        (int(runs.price[j] - runs.price[i]), int(runs.who[i]), int(runs.who[j]))
        for i in np.flatnonzero(taken).tolist()
        for j in cheaper.get(int(key[i]), ())
        if runs.price[j] < runs.price[i]
    ]
    instead: dict[int, int] = {}
    for _, i, j in sorted(swaps):
        gone, new = int(tenant_of[i]), int(tenant_of[j])
        if i in chosen and j not in chosen and (gone == new or left[new] > 0):
            chosen ^= {i, j}
            instead[i] = j
            left[gone] += 1
            left[new] -= 1
    return [[instead.get(i, i) for i in mine] for mine in victims]


def _alike(runs: Runs) -> IntArray:
    """Equal for runs of one pool that give equally many slots."""
    return runs.pool * (1 << 32) + runs.gain


def _least(key: IntArray, price: IntArray, asked: IntArray) -> IntArray:
    """For each key that is asked for the least price with it, NEVER without any."""
    if not len(key):
        return np.full(len(asked), NEVER, dtype=np.int64)
    order = np.lexsort((price, key))
    keys, first = np.unique(key[order], return_index=True)
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, price[order[first]][at], NEVER)
