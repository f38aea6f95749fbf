"""Full centers for the bench of preemption: made by seed, node by node, then told as a Snapshot.

What belongs here: centers, nodes and the runs on them, the jobs that wait, and the policies.  What
does not: measuring (preemption.py).

100 centers of one pool each, of nodes of eight cards and of five products.  10 000 running jobs hold 1,
2, 4 or 8 cards of a node, or whole nodes of a gang; they lie on nodes as a center's own scheduler would
put them, so small runs share nodes.  A tenth of the nodes is others' work.  No node is wholly free.
The jobs are of 500 classes, by Zipf, of which 15 % may not be stopped, and of 50 tenants; besides, runs
are safe for their first ten minutes.  A run is at any point of its estimated time; four in five have
written a checkpoint within the hour.  VIP gangs take whole nodes of one product, 1 to 8 of them, 1 to
12 from 300 gangs on.  Besides, jobs of the same classes wait in the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.instances import ACCELERATORS, PRODUCTS
from broker.core.claims import Claims
from broker.core.model import (
    MICRO,
    Accuracy,
    CenterFacts,
    CenterId,
    CenterState,
    Claim,
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
    RunId,
    Snapshot,
    TenantId,
    Tier,
)
from broker.core.policy import PolicySet, Weighted
from broker.core.problem import class_key
from broker.core.resources import make_spec
from policies.age import Age
from policies.backfill import Backfill
from policies.cost import Cost
from policies.fit import Fit
from policies.preemption import Preemption
from policies.priority import Priority
from policies.vip import Vip
from policies.wait import Wait

NOW_MS = 1_800_000_000_000
CENTERS, RUNS, CLASSES, TENANTS = 100, 10_000, 500, 50
CARDS = 8
KINDS = [p for p in PRODUCTS if p[3] == CARDS][:5]
NOT_EVICTABLE = 0.15
# Nodes of VIP gangs, and how often each.
FEW_GANGS = (1, 2, 4, 8), (0.5, 0.28, 0.16, 0.06)
MANY_GANGS = (1, 2, 4, 8, 12), (0.4, 0.28, 0.18, 0.1, 0.04)


def policies() -> PolicySet:
    """The shipped policies that preemption rests on, with their defaults, but for how many VIP jobs
    may hold: all of them."""
    chosen: tuple[Any, ...] = (
        Fit(),
        Cost(),
        Wait(),
        Priority(),
        Age(),
        Vip(depth=1000),
        Preemption(),
        Backfill(),
    )
    return PolicySet(tuple(Weighted(type(p).__name__.lower(), p) for p in chosen))


def crowded(vips: int, seed: int, *, waiting: int = 2000) -> Snapshot:
    """The world with so many VIP gangs, and so many other jobs that wait."""
    draw = np.random.default_rng(seed)
    shapes = [NodeShape("X86", 128, 1024, name, CARDS, memory) for name, memory, _, _, _ in KINDS]
    of_center = draw.integers(0, len(KINDS), CENTERS).tolist()
    requests = list(_requests(draw, shapes))
    pools, claims = _filled(draw, shapes, of_center, requests)
    centers = tuple(
        CenterFacts(CenterId(f"c{c:03}"), f"c{c:03}", CenterState.ACTIVE, Health.FRESH, max_in_flight=64)
        for c in range(CENTERS)
    )
    return Snapshot(
        version=1,
        now_ms=NOW_MS,
        minute_of_week=600,
        centers=centers,
        pools=tuple(pools),
        claims=Claims.of(claims),  # as the daemon's picture of the world keeps them
        reservations=(),
        classes=(*_queue(draw, requests, waiting), *_vips(draw, shapes, vips)),
        accelerators=ACCELERATORS,
    )


def _requests(
    draw: np.random.Generator, shapes: list[NodeShape]
) -> Iterator[tuple[str, int, JobRequest, TenantId]]:
    """(class key, kind, request, tenant) of the classes, most popular first."""
    for _ in range(CLASSES):
        kind = int(draw.integers(0, len(KINDS)))
        cards = int(draw.choice([1, 2, 4, 8], p=[0.2, 0.17, 0.18, 0.45]))
        nodes = int(draw.choice([1, 2, 4, 8], p=[0.72, 0.16, 0.09, 0.03])) if cards == CARDS else 1
        shape = shapes[kind]
        share = NodeShape(
            "X86", 16 * cards, 128 * cards, shape.accelerator, cards, shape.accelerator_memory_gib
        )
        request = JobRequest(
            spec=make_spec(share),
            nodes=nodes,
            tier=Tier(int(draw.choice([0, 1, 2], p=[0.25, 0.6, 0.15]))),
            preemptible=bool(draw.random() >= NOT_EVICTABLE),
            estimated_run_time_s=round(float(np.exp(draw.uniform(np.log(1800), np.log(72 * 3600))))),
            resumable=True,
        )
        tenant = TenantId(f"t{int(draw.integers(0, TENANTS)):02}")
        yield class_key(request, tenant), kind, request, tenant


def _filled(
    draw: np.random.Generator,
    shapes: list[NodeShape],
    of_center: list[int],
    requests: list[tuple[str, int, JobRequest, TenantId]],
) -> tuple[list[Pool], list[Claim]]:
    """Pools and what runs there: each run on the fullest nodes that have room."""
    popular = 1 / np.arange(1, CLASSES + 1) ** 0.8
    popular /= popular.sum()
    at = [[c for c, kind in enumerate(of_center) if kind == k] for k in range(len(KINDS))]
    free: list[list[int]] = [[] for _ in of_center]
    claims = []
    for i, k in enumerate(draw.choice(CLASSES, RUNS, p=popular).tolist()):
        key, kind, request, tenant = requests[k]
        c = int(draw.choice(at[kind]))
        assert request.spec is not None
        cards = request.spec.shape.accelerators
        left = request.nodes
        if cards < CARDS:
            roomy = [n for n, room in enumerate(free[c]) if room >= cards]
            if roomy:
                free[c][min(roomy, key=lambda n: (free[c][n], n))] -= cards
                left = 0
        free[c] += [CARDS - cards] * left
        claims.append(_claim(draw, i, (key, request, tenant), c))
    pools = []
    for c, rooms in enumerate(free):
        shape = shapes[of_center[c]]
        counts = np.bincount(rooms, minlength=CARDS).tolist()
        pools.append(
            Pool(
                id=PoolId(f"c{c:03}/p"),
                center=CenterId(f"c{c:03}"),
                native="p",
                shape=shape,
                nodes=round(len(rooms) * 1.1),
                free=tuple(FreeNodes(16 * r, 128 * r, r, n) for r, n in enumerate(counts) if r and n),
                as_of_ms=NOW_MS,
                accuracy=Accuracy.EXACT,
                prices=(Price(round(KINDS[of_center[c]][4] * float(draw.uniform(0.8, 1.3)) * MICRO)),),
            )
        )
    return pools, claims


def _claim(draw: np.random.Generator, i: int, job: tuple[str, JobRequest, TenantId], center: int) -> Claim:
    key, request, tenant = job
    assert request.spec is not None
    ran_s = max(60, round(request.estimate_s * float(draw.random())))
    checkpoint_s = round(float(draw.uniform(0, min(ran_s, 3600)))) if draw.random() < 0.8 else None
    return Claim(
        run=RunId(f"bk-{int(draw.integers(0, 32**6)):08x}-{i}"),
        center=CenterId(f"c{center:03}"),
        pool=PoolId(f"c{center:03}/p"),
        shape=request.spec.shape,
        nodes=request.nodes,
        started_ms=NOW_MS - ran_s * 1000,
        tier=request.tier,
        tenant=tenant,
        job=JobId(f"j{i:05}"),
        class_key=key,
        estimate_s=request.estimate_s,
        rate_micro_per_hour=10 * MICRO * request.spec.shape.accelerators * request.nodes,
        request=request,
        queued_ms=NOW_MS - (ran_s + round(float(np.exp(draw.uniform(0, np.log(86_400)))))) * 1000,
        checkpoint_ms=None if checkpoint_s is None else NOW_MS - checkpoint_s * 1000,
    )


def _queue(
    draw: np.random.Generator, requests: list[tuple[str, int, JobRequest, TenantId]], waiting: int
) -> list[JobClass]:
    counts = np.bincount(draw.integers(0, CLASSES, waiting), minlength=CLASSES).tolist()
    made: dict[str, JobClass] = {}
    for k, (key, _, request, tenant) in enumerate(requests):
        ages = np.sort(np.exp(draw.uniform(0, np.log(40_000), counts[k])))[::-1]
        jobs = tuple(
            QueuedJob(JobId(f"q{k:03}-{i}"), NOW_MS - round(age * 1000))
            for i, age in enumerate(ages.tolist())
        )
        if jobs and key not in made:
            made[key] = JobClass(key, request, tenant, jobs)
    return list(made.values())


def _vips(draw: np.random.Generator, shapes: list[NodeShape], vips: int) -> list[JobClass]:
    made = []
    sizes, odds = FEW_GANGS if vips < 300 else MANY_GANGS
    for i in range(vips):
        shape = shapes[int(draw.integers(0, len(KINDS)))]
        nodes = int(draw.choice(sizes, p=odds))
        request = JobRequest(
            spec=make_spec(shape),
            nodes=nodes,
            tier=Tier.VIP,
            preempt_policy=2,
            preemptible=False,
            estimated_run_time_s=3600,
        )
        job = QueuedJob(JobId(f"v{i:03}"), NOW_MS - int(draw.integers(1000, 60_000)))
        made.append(JobClass(f"vip{i:03}", request, TenantId(f"t{i % TENANTS:02}"), (job,)))
    return made
