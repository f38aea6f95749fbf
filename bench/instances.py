"""Synthetic worlds for the bench of rounds: made by seed, three sizes, and one of all different jobs.

What belongs here: centers, pools, classes and their queues, the quotas of tenants, and the change of
one round.  What does not: measuring (rounds.py).

The world is synthetic.  Fourteen products; ten pools per center, of which some nodes are partly used
(a node of eight with six cards left is usual); gangs of 1 to 16 nodes; 30 % of the classes name their
centers and 40 % have a price ceiling; 50 tenants with a quota of cards each; class sizes by Zipf;
arrivals over a day and a half; free cards are 0.7 of those asked for.

What waiting is weighed at comes from one of two sets of policies.  "reference": the cost of the job
times the weight of its tier (1, 4, 12) times a growth with age, the usual weighted objective of the
placement literature.  "packaged": Priority and Age with their defaults, where worth has a large part
that is the same for all plans, so that two plans differ by a smaller share of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from broker.core.explain import Code
from broker.core.model import (
    MICRO,
    Accelerator,
    Accuracy,
    CenterFacts,
    CenterId,
    CenterState,
    FreeNodes,
    Health,
    JobClass,
    JobId,
    JobRequest,
    NodeShape,
    Pool,
    PoolId,
    Price,
    QueuedJob,
    Snapshot,
    Spec,
    TenantId,
    Tier,
)
from broker.core.policy import Limit, PolicySet, Weighted
from broker.core.problem import IntArray, Problem
from broker.core.queue import JobQueue
from broker.core.resources import slices
from policies.age import Age
from policies.cost import Cost
from policies.fit import Fit
from policies.priority import Priority
from policies.wait import Wait

NOW_MS = 1_800_000_000_000
ROUND_MS = 2000
TENANTS = 50
SUPPLY = 0.7  # free cards over cards asked for

# name, GiB per card, GFLOPS, cards per node, CNY per card-hour
PRODUCTS: tuple[tuple[str, int, int, int, float], ...] = (
    ("Nvidia/GPU/H800", 80, 989_000, 8, 24.0),
    ("Nvidia/GPU/H20", 96, 148_000, 8, 11.0),
    ("Nvidia/GPU/A800", 80, 312_000, 8, 12.5),
    ("Nvidia/GPU/A100", 40, 312_000, 8, 11.5),
    ("Nvidia/GPU/L40S", 48, 362_000, 8, 7.5),
    ("Nvidia/GPU/A10", 24, 125_000, 4, 3.5),
    ("Nvidia/GPU/V100", 32, 125_000, 8, 4.5),
    ("Nvidia/GPU/T4", 16, 65_000, 4, 1.8),
    ("Huawei/NPU/Ascend910B", 64, 320_000, 8, 9.0),
    ("Huawei/NPU/Ascend910A", 32, 256_000, 8, 6.0),
    ("Cambricon/MLU/MLU590", 80, 314_000, 8, 8.0),
    ("Cambricon/MLU/MLU370", 48, 96_000, 4, 3.0),
    ("Hygon/DCU/K100", 64, 196_000, 8, 5.0),
    ("Enflame/GCU/S60", 48, 160_000, 16, 4.0),
)
ACCELERATORS = {
    name: Accelerator(name=name, memory_gib=(memory,), fp16_gflops=gflops, factor_permille=1000)
    for name, memory, gflops, _, _ in PRODUCTS
}
# Which products people ask for, in the order above.
DEMAND = np.array([16, 8, 18, 8, 7, 4, 5, 3, 12, 5, 5, 2, 4, 3], dtype=np.float64) / 100


@dataclass(frozen=True)
class Size:
    """How large a world is; `unique`: every job is a class of its own."""

    name: str
    jobs: int
    classes: int
    centers: int = 100


SIZES = {
    size.name: size
    for size in (
        Size("10k", 10_000, 500),
        Size("100k", 100_000, 1000),
        Size("1m", 1_000_000, 2000),
        Size("unique", 10_000, 10_000),
    )
}


@dataclass(frozen=True)
class TenantCards:
    """A quota of cards of new work for every tenant."""

    cards: Mapping[str, int]

    def limits(self, p: Problem) -> tuple[Limit, ...]:
        names = sorted(self.cards)
        at = {name: i for i, name in enumerate(names)}
        tenant = np.array([at[c.tenant] for c in p.classes], dtype=np.int64)[p.option_class]
        nodes = np.array([c.request.nodes for c in p.classes], dtype=np.int64)[p.option_class]
        cards = p.tau * nodes
        order = np.argsort(tenant, kind="stable")
        cuts = np.searchsorted(tenant[order], np.arange(len(names) + 1)).tolist()
        return tuple(
            Limit(f"cards:{name}", Code.QUOTA, mine, cards[mine], self.cards[name])
            for i, name in enumerate(names)
            if len(mine := order[cuts[i] : cuts[i + 1]])
        )


@dataclass(frozen=True)
class ReferenceWorth:
    """Weight of the tier x cost at the middle one of a class's options x (1 + growth x age)."""

    weights: tuple[int, ...] = (1, 4, 12, 48)  # low, normal, high, VIP
    growth_permille_h: int = 50
    longest_s: int = 86_400

    def worth(self, p: Problem, k: int) -> IntArray:
        options = p.options(k)
        if options.start == options.stop:
            return np.zeros(len(p.age_s), dtype=np.int64)
        cost = np.sort(p.cost[options])[(options.stop - options.start) // 2]
        grown = 1000 + self.growth_permille_h * np.minimum(p.age_s, self.longest_s) // 3600
        return self.weights[int(p.classes[k].request.tier)] * (cost * grown // 1000)


@dataclass(frozen=True)
class Events:
    """The change of one round: jobs gone and come by class, and new reports by pool."""

    now_ms: int
    queues: Mapping[int, tuple[Sequence[QueuedJob], Sequence[QueuedJob]]]
    pools: Mapping[int, Pool]


class World:
    """A world that changes: `draw()` makes up one round's events, `apply()` carries them out."""

    def __init__(self, size: Size, seed: int = 1, *, worth: str = "reference") -> None:
        """`worth`: reference or packaged, see above."""
        self.size = size
        self._draw = np.random.default_rng(seed)
        self.now_ms = NOW_MS
        self.version = 1
        self._next_job = 0
        shapes = self._shapes()
        self.requests = self._requests(shapes)
        self._popular = 1 / np.arange(1, size.classes + 1) ** 1.05
        self._popular /= self._popular.sum()
        self.queues = self._queues()
        asked = sum(
            _cards(r) * r.nodes * len(q) for (r, _), q in zip(self.requests, self.queues, strict=True)
        )
        self.pools = self._pools(shapes, round(asked * SUPPLY))
        self.centers = self._centers()
        self.policies = self._policy_set(worth)

    # ------------------------------------------------------------ making

    def _shapes(self) -> list[tuple[str, int, NodeShape]]:
        """(center, product, node) of every pool: ten different products or node sizes per center."""
        made = []
        for c in range(self.size.centers):
            products = self._draw.choice(
                len(PRODUCTS), size=10, replace=False, p=(DEMAND + 0.02) / (DEMAND + 0.02).sum()
            )
            for product in sorted(products.tolist()):
                name, memory, _, cards, _ = PRODUCTS[product]
                cores, gib = (8, 64) if self._draw.random() < 0.2 else (16, 128)
                shape = NodeShape("X86", cards * cores, cards * gib, name, cards, memory)
                made.append((f"c{c:03}", product, shape))
        return made

    def _requests(self, shapes: list[tuple[str, int, NodeShape]]) -> list[tuple[JobRequest, str]]:
        """(request, tenant) per class, most popular first."""
        draw, n = self._draw, self.size.classes
        products = draw.choice(len(PRODUCTS), size=n, p=DEMAND)
        centers = [CenterId(f"c{c:03}") for c in range(self.size.centers)]
        made = []
        for k in range(n):
            name, memory, gflops, per_node, price = PRODUCTS[int(products[k])]
            sizes = [s for s in (1, 2, 4, 8, 16) if s <= per_node]
            odds = np.array([0.34, 0.16, 0.16, 0.30, 0.04][: len(sizes)])
            cards = int(draw.choice(sizes, p=odds / odds.sum()))
            nodes = (
                int(draw.choice([1, 2, 4, 8, 16], p=[0.7, 0.14, 0.09, 0.05, 0.02]))
                if cards == per_node
                else 1
            )
            if cards < per_node and draw.random() < 0.08:
                nodes = int(draw.choice([2, 4]))
            share = 8 if draw.random() < 0.7 else 16  # cores per card asked for
            spec = _slice(
                NodeShape("X86", per_node * share, per_node * share * 8, name, per_node, memory), cards
            )
            by_power = draw.random() < 0.04
            hours = float(np.exp(draw.uniform(np.log(0.2), np.log(72))))
            estimate_s = max(600, round(hours * 3600))
            ceiling = None
            if draw.random() < 0.4:
                fair = price * cards * nodes * estimate_s / 3600
                ceiling = round(fair * float(draw.uniform(0.85, 1.3)) * MICRO)
            named: tuple[CenterId, ...] = ()
            if draw.random() < 0.3:
                count = int(draw.integers(3, max(4, self.size.centers // 3)))
                named = tuple(
                    centers[i] for i in sorted(draw.choice(len(centers), count, replace=False).tolist())
                )
            request = JobRequest(
                centers=named,
                spec=None if by_power else spec,
                min_gflops=cards * gflops if by_power else 0,
                nodes=nodes,
                tier=Tier(int(draw.choice([0, 1, 2], p=[0.25, 0.6, 0.15]))),
                estimated_run_time_s=estimate_s,
                max_price_micro=ceiling,
            )
            tenant = f"t{int(draw.zipf(1.6)) % TENANTS:02}"
            made.append((request, tenant))
        return made

    def _queues(self) -> list[JobQueue]:
        """Arrivals over a day and a half, denser towards now."""
        n = self.size
        counts = np.ones(n.classes, dtype=np.int64)
        if n.jobs > n.classes:
            more = self._draw.choice(n.classes, size=n.jobs - n.classes, p=self._popular)
            counts += np.bincount(more, minlength=n.classes)
        return [
            JobQueue().changed((), self._arrivals(self.now_ms, int(count), spread=True)) for count in counts
        ]

    def _arrivals(self, now_ms: int, count: int, *, spread: bool) -> list[QueuedJob]:
        ids = [JobId(f"j{self._next_job + i:07}") for i in range(count)]
        self._next_job += count
        age = (
            np.exp(self._draw.uniform(0, np.log(130_000), count))
            if spread
            else self._draw.uniform(0, 2, count)
        )
        return list(map(QueuedJob, ids, np.sort(now_ms - (age * 1000).astype(np.int64)).tolist()))

    def _pools(self, shapes: list[tuple[str, int, NodeShape]], cards: int) -> list[Pool]:
        """Pools whose free cards are `cards` in all, shared out by what is asked for of a product."""
        asked = np.zeros(len(PRODUCTS))
        for (request, _), queue in zip(self.requests, self.queues, strict=True):
            of = {request.spec.shape.accelerator} if request.spec else set(ACCELERATORS)
            able = [i for i, p in enumerate(PRODUCTS) if p[0] in of]
            asked[able] += _cards(request) * request.nodes * len(queue) / len(able)
        weight = self._draw.lognormal(0, 0.6, len(shapes)) * asked[[product for _, product, _ in shapes]]
        pools = []
        for i, ((center, product, shape), w) in enumerate(zip(shapes, weight, strict=True)):
            _, _, _, per_node, price = PRODUCTS[product]
            free = round(cards * w / weight.sum())
            idle = max(1, round(free * 0.85 / per_node))
            groups = [_free(shape, per_node, idle)]
            groups += [
                _free(shape, left, int(self._draw.integers(0, max(2, idle // 6))))
                for left in (6, 4, 3, 1)
                if left < per_node
            ]
            there = tuple(g for g in groups if g.nodes)
            pools.append(
                Pool(
                    id=PoolId(f"{center}/{i % 10}"),
                    center=CenterId(center),
                    native=str(i % 10),
                    shape=shape,
                    nodes=sum(g.nodes for g in there) * 2 + 16,
                    free=there,
                    as_of_ms=self.now_ms,
                    accuracy=Accuracy.EXACT,
                    prices=(Price(round(price * float(self._draw.uniform(0.8, 1.3)) * MICRO)),),
                    expected_wait_s=int(self._draw.choice([0, 30, 300])),
                )
            )
        return pools

    def _centers(self) -> list[CenterFacts]:
        """In-flight room for a fifth more runs than a center would get by its cards, half at some."""
        cards: dict[str, int] = {}
        for pool in self.pools:
            cards[pool.center] = cards.get(pool.center, 0) + sum(f.accelerators * f.nodes for f in pool.free)
        jobs = sum(len(q) for q in self.queues) * SUPPLY
        made = []
        for name, there in sorted(cards.items()):
            room = 1.4 * jobs * there / sum(cards.values()) * (0.5 if self._draw.random() < 0.1 else 1)
            made.append(
                CenterFacts(
                    id=CenterId(name),
                    name=name,
                    state=CenterState.ACTIVE,
                    health=Health.FRESH,
                    max_in_flight=round(room) + 8,
                )
            )
        return made

    def _policy_set(self, worth: str) -> PolicySet:
        asked = dict.fromkeys((f"t{i:02}" for i in range(TENANTS)), 0)
        for (request, tenant), queue in zip(self.requests, self.queues, strict=True):
            asked[tenant] += _cards(request) * request.nodes * len(queue)
        quota = {
            name: round(cards * float(self._draw.uniform(0.5, 1.2))) + 64 for name, cards in asked.items()
        }
        weighed = {"reference": [ReferenceWorth()], "packaged": [Priority(), Age()]}[worth]
        chosen: list[Any] = [Fit(), Cost(), Wait(), *weighed, TenantCards(quota)]
        return PolicySet(tuple(Weighted(type(p).__name__.lower(), p) for p in chosen))

    # ------------------------------------------------------------ changing

    def draw(self, share: float = 0.01) -> Events:
        """What happens in the next two seconds: `share` of the jobs go or come, half and half, and
        `share` of the pools report other free nodes."""
        now_ms = self.now_ms + ROUND_MS
        jobs = round(self.size.jobs * share / 2) or 1
        sizes = np.array([len(q) for q in self.queues])
        going = self._draw.multivariate_hypergeometric(sizes, min(jobs, int(sizes.sum())), method="marginals")
        coming = np.bincount(self._draw.choice(len(sizes), size=jobs, p=self._popular), minlength=len(sizes))
        queues = {}
        for k in np.flatnonzero(going + coming).tolist():
            queue = self.queues[k]
            left = sorted(self._draw.choice(len(queue), int(going[k]), replace=False).tolist())
            queues[k] = ([queue[i] for i in left], self._arrivals(now_ms, int(coming[k]), spread=False))
        pools = {}
        few = max(1, round(len(self.pools) * share))
        for i in self._draw.choice(len(self.pools), few, replace=False).tolist():
            pool = self.pools[i]
            groups = [replace(g, nodes=max(0, g.nodes + int(self._draw.integers(-2, 3)))) for g in pool.free]
            there = tuple(g for g in groups if g.nodes)
            if there and sum(g.nodes for g in there) <= pool.nodes:
                pools[i] = replace(pool, free=there, as_of_ms=now_ms)
        return Events(now_ms, queues, pools)

    def apply(self, events: Events) -> Snapshot:
        """The world after these events."""
        self.version += 1
        self.now_ms = events.now_ms
        for k, (gone, come) in events.queues.items():
            self.queues[k] = self.queues[k].changed(gone, come)
        for i, pool in events.pools.items():
            self.pools[i] = pool
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        return Snapshot(
            version=self.version,
            now_ms=self.now_ms,
            minute_of_week=600,
            centers=tuple(self.centers),
            pools=tuple(self.pools),
            claims=(),
            reservations=(),
            classes=tuple(
                JobClass(key=f"k{k:05}", request=request, tenant=TenantId(tenant), jobs=queue)
                for k, ((request, tenant), queue) in enumerate(zip(self.requests, self.queues, strict=True))
                if len(queue)
            ),
            accelerators=ACCELERATORS,
        )


def _cards(request: JobRequest) -> int:
    """Cards of one node, as near as can be told of a job that asks for power."""
    if request.spec is not None:
        return request.spec.shape.accelerators
    return max(1, request.min_gflops // 300_000)


def _slice(shape: NodeShape, cards: int) -> Spec:
    return next(s for s in slices(shape) if s.shape.accelerators == cards)


def _free(shape: NodeShape, cards: int, nodes: int) -> FreeNodes:
    return FreeNodes(
        cores=shape.cores * cards // shape.accelerators,
        memory_gib=shape.memory_gib * cards // shape.accelerators,
        accelerators=cards,
        nodes=nodes,
    )
