"""Jobs to pools where what they need together costs least.

What belongs here: the search for an assignment, given what slots cost in every pool.  What does not:
what they cost (core/curves.py) and who is stopped.

Where there is too little for all, jobs are served in their order.  Greedy from two orders, each
improved by moving one job or exchanging two while that lowers the price: a count of sweeps ends it,
never a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from broker.core.curves import NEVER
from broker.core.fitting import IntArray

SWEEPS = 8
"""Sweeps of moves and exchanges over all jobs, at most."""

Takes = tuple[tuple[int, int], ...]
"""Rows of the problem and what a job takes of each."""


def assigned(
    cost: IntArray,
    needs: Sequence[int],
    pools: Sequence[IntArray],
    takes: Callable[[int, int], Takes],
    left: Sequence[int],
    start: Sequence[int] | None = None,
) -> list[int]:
    """For every job the index of its choice, -1: none; from `start` on where that is given.

    Job i needs `needs[i]` slots in one of `pools[i]`, its choices; `cost[g, n]` is the price of n slots
    in pool g.  `takes(i, choice)` is what it takes of the rows of which so much is `left`.
    """
    jobs, may = range(len(needs)), _May(needs, pools, len(cost))
    if start is not None:
        made = _Assignment(cost, needs, pools, takes, left, may)
        made.resume(start)
        return made.choice
    best: _Assignment | None = None
    for order in (jobs, sorted(jobs, key=lambda i: -needs[i])):
        made = _Assignment(cost, needs, pools, takes, left, may)
        made.improve(order)
        # Another order counts only where it serves nobody less.
        if best is None or (made.unserved <= best.unserved and made.standing < best.standing):
            best = made
    assert best is not None
    return best.choice


class _May:
    """Which jobs may be in which pools: `table[i, g]`; `job`, `pool` and `need` have one row each that is so.

    `pairs` are jobs of which the first needs more and which share a pool.
    """

    def __init__(self, needs: Sequence[int], pools: Sequence[IntArray], among: int) -> None:
        spans = np.array([len(at) for at in pools], dtype=np.int64)
        need = np.array(needs, dtype=np.int64)
        self.job = np.repeat(np.arange(len(needs)), spans)
        self.pool = np.concatenate([*pools, np.zeros(0, dtype=np.int64)])
        self.need = need[self.job]
        self.table = np.zeros((len(needs), among), dtype=np.bool_)
        self.table[self.job, self.pool] = True
        # Most jobs ask for the same pools as others do.
        alike: dict[bytes, int] = {}
        kind = np.array([alike.setdefault(at.tobytes(), len(alike)) for at in pools], dtype=np.int64)
        of = self.table[[int(np.argmax(kind == k)) for k in range(len(alike))]]
        share = np.array([(of & one).any(axis=1) for one in of])
        self.pairs = np.nonzero((need[:, None] > need[None, :]) & share[kind[:, None], kind[None, :]])
        self._some = np.flatnonzero(spans)  # jobs that have a pool
        self._first = (np.cumsum(spans) - spans)[self._some]

    def least(self, values: IntArray) -> IntArray:
        """By job the least of the values of its rows; NEVER without any."""
        least = np.full(len(self.table), NEVER, dtype=np.int64)
        if len(self._some):
            least[self._some] = np.minimum.reduceat(values, self._first)
        return least


class _Assignment:
    """Who is where, and what that leaves."""

    def __init__(
        self,
        cost: IntArray,
        needs: Sequence[int],
        pools: Sequence[IntArray],
        takes: Callable[[int, int], Takes],
        left: Sequence[int],
        may: _May,
    ) -> None:
        self.choice = [-1] * len(needs)
        self._cost, self._width = cost.ravel(), cost.shape[1]
        self._needs, self._pools, self._takes = needs, pools, takes
        self._left = list(left)
        self._used = np.zeros(len(cost), dtype=np.int64)
        self._base = [at * self._width for at in pools]
        self._need = np.array(needs, dtype=np.int64)
        self._at = np.full(len(needs), -1, dtype=np.int64)
        self._may = may

    @property
    def unserved(self) -> set[int]:
        return {i for i, at in enumerate(self.choice) if at < 0}

    @property
    def standing(self) -> tuple[int, int]:
        """(jobs unserved, price)."""
        return len(self.unserved), int(self._price(np.arange(len(self._used)), self._used).sum())

    def _price(self, pools: IntArray, slots: IntArray) -> IntArray:
        price: IntArray = self._cost[pools * self._width + slots]
        return price

    def improve(self, order: Sequence[int]) -> None:
        """Everybody in turn, then moves and exchanges until neither helps."""
        for i in order:
            self._move(i)
        self._sweep()

    def resume(self, start: Sequence[int]) -> None:
        """Everybody where the job was, as far as that can be had; the others in turn; then the same."""
        for i, choice in enumerate(start):
            at = int(self._pools[i][choice]) if choice >= 0 else -1
            if at >= 0 and self._cost[at * self._width + self._used[at] + self._needs[i]] < NEVER:
                self._put(i, choice)
        for i, choice in enumerate(self.choice):
            if choice < 0:
                self._move(i)
        self._sweep()

    def _sweep(self) -> None:
        for _ in range(SWEEPS):
            moved = [self._move(i) for i in self._worth_moving()]
            exchanged = [self._exchange(i, j) for i, j in self._worth_exchanging()]
            if not any(moved) and not any(exchanged):
                break

    def _worth_moving(self) -> list[int]:
        """Jobs that cost less elsewhere as things stand, those that save most first."""
        may = self._may
        pool, used = may.pool, self._used[may.pool]
        placed = self._at >= 0
        more = self._price(pool, used + may.need) - self._price(pool, used)
        more[pool == self._at[may.job]] = NEVER
        here, taken = self._at[placed], self._used[self._at[placed]]
        gain = self._price(here, taken) - self._price(here, taken - self._need[placed])
        gain -= may.least(more)[placed]
        jobs = np.flatnonzero(placed)
        order = np.lexsort((jobs, -gain))
        return [i for i, gained in zip(jobs[order].tolist(), gain[order].tolist(), strict=True) if gained > 0]

    def _worth_exchanging(self) -> list[tuple[int, int]]:
        """Pairs of jobs that cost less in each other's pools, those that save most first."""
        i, j = self._may.pairs
        here, there = self._at[i], self._at[j]
        able = (here >= 0) & (there >= 0) & (here != there)
        able &= self._may.table[i, there] & self._may.table[j, here]
        i, j, here, there = i[able], j[able], here[able], there[able]
        less = self._need[i] - self._need[j]
        used, other = self._used[here], self._used[there]
        saved = self._price(here, used) - self._price(here, used - less)
        saved += self._price(there, other) - self._price(there, other + less)
        i, j, saved = i[saved > 0], j[saved > 0], saved[saved > 0]
        order = np.lexsort((j, i, -saved))
        return list(zip(i[order].tolist(), j[order].tolist(), strict=True))

    def _move(self, i: int) -> bool:
        """To where the job costs least; whether that is elsewhere."""
        at, need, now = self._pools[i], self._needs[i], self.choice[i]
        if not len(at):
            return False
        used = self._used[at]
        if now >= 0:
            used[now] -= need
        index = self._base[i] + used
        more = self._cost[index + need] - self._cost[index]
        limit = NEVER // 2 if now < 0 else int(more[now])
        while True:
            to = int(more.argmin())
            if more[to] >= limit:
                return False
            if self._put(i, to):
                return True
            more[to] = NEVER

    def _put(self, i: int, to: int) -> bool:
        """Gives the job another choice, if its rows have room."""
        now = self.choice[i]
        back = self._takes(i, now) if now >= 0 else ()
        for row, n in back:
            self._left[row] += n
        wanted = self._takes(i, to)
        for row, n in wanted:
            if self._left[row] < n:
                for known, much in back:
                    self._left[known] -= much
                return False
        for row, n in wanted:
            self._left[row] -= n
        if now >= 0:
            self._used[self._at[i]] -= self._needs[i]
        self.choice[i], self._at[i] = to, self._pools[i][to]
        self._used[self._at[i]] += self._needs[i]
        return True

    def _exchange(self, i: int, j: int) -> bool:
        """Exchanges the pools of two jobs where that saves and the rows have room for it."""
        here, there = int(self._at[i]), int(self._at[j])
        if here == there or not (self._may.table[i, there] and self._may.table[j, here]):
            return False
        pools = np.array([here, there])
        used, change = self._used[pools], self._needs[j] - self._needs[i]
        if self._price(pools, used).sum() <= self._price(pools, used + np.array([change, -change])).sum():
            return False
        was = self.choice[i]
        to = int(np.flatnonzero(self._pools[i] == there)[0]), int(np.flatnonzero(self._pools[j] == here)[0])
        if not self._put(i, to[0]):
            return False
        if self._put(j, to[1]):
            return True
        back = self._put(i, was)
        assert back, "a job fits where it was"
        return False
