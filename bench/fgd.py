"""Baselines of bench/openb.py, re-implemented after their papers: Random, BestFit and FGD.

FGD is Weng et al., "Beware of Fragmentation", USENIX ATC'23: a pod goes where the fragment size that
the mix of all pods expects of a node grows least.  As in the authors' simulator scores are whole
numbers of 0 to 100 and the first node wins among equals.  Also here: what nobody can exceed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from ortools.linear_solver import pywraplp

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

MAX_CARDS = 8
MAX_CORES = 128_000


class Pod(NamedTuple):
    """A pod, or a node: thousandths of cards, cores and GiB."""

    cards: int
    cores: int
    memory: int


class Cluster:
    """What is free on every node."""

    def __init__(self, nodes: Sequence[Pod]) -> None:
        self.cards = np.zeros((len(nodes), MAX_CARDS), dtype=np.int64)
        for i, node in enumerate(nodes):
            self.cards[i, : node.cards // 1000] = 1000
        self.cores = np.array([node.cores for node in nodes], dtype=np.int64)
        self.memory = np.array([node.memory for node in nodes], dtype=np.int64)


Cost = Callable[[Cluster, Pod, IntArray, IntArray, IntArray], FloatArray]
"""(cluster, pod, nodes, place in `nodes` of each option, cards after each option) → cost."""


def replay(
    nodes: Sequence[Pod], pods: Sequence[Pod], marks: Sequence[float], cost: Cost
) -> dict[float, float]:
    """Places pods one after the other, each where `cost` is least; costs of nodes that stay stay."""
    world, total = Cluster(nodes), sum(node.cards for node in nodes)
    costs: dict[Pod, FloatArray] = {}
    after: dict[Pod, IntArray] = {}
    seen: dict[Pod, int] = {}
    changed = np.zeros(len(nodes), dtype=np.int64)
    clock = asked = allocated = 0
    shares, left = {}, list(marks)
    for pod in pods:
        while left and asked + pod.cards > left[0] * total:
            shares[left.pop(0)] = 100 * allocated / total
        asked += pod.cards
        if pod not in costs:
            costs[pod] = np.full(len(nodes), np.inf)
            after[pod] = np.zeros((len(nodes), MAX_CARDS), dtype=np.int64)
            seen[pod] = -1
        dirty = np.flatnonzero(changed > seen[pod])
        seen[pod] = clock
        costs[pod][dirty] = np.inf
        some = dirty[(world.cores[dirty] >= pod.cores) & (world.memory[dirty] >= pod.memory)]
        at, cards = options(world.cards[some], pod.cards)
        if len(at):
            found = cost(world, pod, some, at, cards)
            order = np.lexsort((found, at))
            order = order[np.r_[True, at[order][1:] != at[order][:-1]]]
            costs[pod][some[at[order]]] = found[order]
            after[pod][some[at[order]]] = cards[order]
        best = int(costs[pod].argmin())
        if np.isfinite(costs[pod][best]):
            world.cards[best] = after[pod][best]
            world.cores[best] -= pod.cores
            world.memory[best] -= pod.memory
            allocated += pod.cards
            clock += 1
            changed[best] = clock
    return {**shares, **dict.fromkeys(left, 100 * allocated / total)}


def options(cards: IntArray, wanted: int) -> tuple[IntArray, IntArray]:
    """Every card, or set of whole cards, that a pod can be given: node, and its cards then."""
    if wanted == 0:
        return np.arange(len(cards)), cards.copy()
    if wanted >= 1000:
        whole = cards == 1000
        enough = np.flatnonzero(whole.sum(axis=1) >= wanted // 1000)
        taken = whole & (np.cumsum(whole, axis=1) <= wanted // 1000)
        return enough, (cards - 1000 * taken)[enough]
    at, card = np.nonzero(cards >= wanted)
    then = cards[at].copy()
    then[np.arange(len(at)), card] -= wanted
    return at, then


# ---------------------------------------------------------------- the policies


def _random(
    nodes: Sequence[Pod], pods: Sequence[Pod], marks: Sequence[float], seed: int
) -> dict[float, float]:
    chance = np.random.default_rng(seed)

    def cost(_: Cluster, pod: Pod, some: IntArray, at: IntArray, cards: IntArray) -> FloatArray:
        drawn: FloatArray = chance.random(len(at))
        return drawn

    return replay(nodes, pods, marks, cost)


def _best_fit(
    nodes: Sequence[Pod], pods: Sequence[Pod], marks: Sequence[float], _: int
) -> dict[float, float]:
    def fit(world: Cluster, pod: Pod, some: IntArray, at: IntArray, cards: IntArray) -> FloatArray:
        left = 0.5 * (world.cores[some[at]] - pod.cores) / MAX_CORES
        left += 0.5 * cards.sum(axis=1) / (1000 * MAX_CARDS)
        score = np.floor(100 * (1 - left))
        # Of the cards of a node the fullest that holds the pod.
        tight = (cards * cards).sum(axis=1) / 1e9
        cost: FloatArray = -score - tight
        return cost

    return replay(nodes, pods, marks, fit)


class Fragments:
    """The fragment size that a mix of pods expects of nodes."""

    def __init__(self, pods: Sequence[Pod]) -> None:
        count = Counter(pods)
        self.sizes = np.array(sorted({pod.cards for pod in count}), dtype=np.int64)
        self.cores = np.unique([pod.cores for pod in count])
        # [cores, size] share of pods that need no more than so many cores.
        share = np.zeros((len(self.cores) + 1, len(self.sizes)))
        for pod, times in count.items():
            row = int(np.searchsorted(self.cores, pod.cores)) + 1
            share[row, int(np.searchsorted(self.sizes, pod.cards))] += times / len(pods)
        self.share = share.cumsum(axis=0)

    def of(self, cards: IntArray, cores: IntArray) -> FloatArray:
        """Thousandths of cards, per node."""
        served = self.share[np.searchsorted(self.cores, cores, side="right")]
        need = np.minimum(self.sizes, 1000)
        large = (cards[:, :, None] >= need) & (cards[:, :, None] > 0)
        enough = (large.sum(axis=1) >= np.maximum(1, self.sizes // 1000)) & (self.sizes > 0)
        free = cards.sum(axis=1)[:, None]
        small = free - (cards[:, :, None] * large).sum(axis=1)
        # A pod that cannot run there, or uses no card, finds all of it a fragment.
        runs = np.where(enough, served, 0)
        found: FloatArray = (runs * small + (self.share[-1] - runs) * free).sum(axis=1)
        return found


def _fgd(nodes: Sequence[Pod], pods: Sequence[Pod], marks: Sequence[float], _: int) -> dict[float, float]:
    fragments = Fragments(pods)

    def cost(world: Cluster, pod: Pod, some: IntArray, at: IntArray, cards: IntArray) -> FloatArray:
        before = fragments.of(world.cards[some], world.cores[some])[at]
        then = fragments.of(cards, world.cores[some[at]] - pod.cores)
        return -np.floor(100 / (1 + np.exp((then - before) / 1000)))

    return replay(nodes, pods, marks, cost)


Baseline = Callable[[Sequence[Pod], Sequence[Pod], Sequence[float], int], dict[float, float]]
BASELINES: Mapping[str, Baseline] = {"Random": _random, "BestFit": _best_fit, "FGD": _fgd}


# ---------------------------------------------------------------- the bound


def cards_bound(pods: Sequence[Pod], cards: int) -> float:
    """Per cent of all cards that any choice among `pods` can fill: the relaxation of packing cards.

    Parts fill cards by maximal patterns, whole cards are taken as they are; cores, GiB and nodes are
    left aside, so nobody exceeds it.
    """
    parts = Counter(pod.cards for pod in pods if 0 < pod.cards < 1000)
    whole = sum(pod.cards for pod in pods if pod.cards >= 1000) // 1000
    sizes = sorted(parts, reverse=True)
    solver = pywraplp.Solver.CreateSolver("GLOP")
    rows = {size: solver.Constraint(-solver.infinity(), 0) for size in sizes}
    room = solver.Constraint(-solver.infinity(), cards)
    goal = solver.Objective()
    goal.SetMaximization()
    for size in sizes:
        placed = solver.NumVar(0, parts[size], "")
        rows[size].SetCoefficient(placed, 1)
        goal.SetCoefficient(placed, size)
    taken = solver.NumVar(0, whole, "")
    room.SetCoefficient(taken, 1)
    goal.SetCoefficient(taken, 1000)
    for pattern in _patterns(sizes, 1000):
        used = solver.NumVar(0, solver.infinity(), "")
        room.SetCoefficient(used, 1)
        for size, count in zip(sizes, pattern, strict=True):
            rows[size].SetCoefficient(used, -count)
    if solver.Solve() != pywraplp.Solver.OPTIMAL:
        raise RuntimeError("the bound was not found")
    return 100 * float(goal.Value()) / (1000 * cards)


def _patterns(sizes: Sequence[int], room: int) -> list[tuple[int, ...]]:
    """Counts of each size that fill a card so that not even the smallest fits any more."""
    if not sizes:
        return [()]
    if len(sizes) == 1:
        return [(room // sizes[0],)]
    return [
        (count, *rest)
        for count in range(room // sizes[0], -1, -1)
        for rest in _patterns(sizes[1:], room - count * sizes[0])
    ]
