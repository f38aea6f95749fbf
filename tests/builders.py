"""Builders of domain types for tests: every argument has a default, so a test says only what it is about.

What belongs here: values of broker.core.model, the default policies, and random worlds for property
tests.  What does not: anything that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from broker.core.model import (
    Accelerator,
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
    Reservation,
    RunId,
    Snapshot,
    Spec,
    TenantId,
    Tier,
)
from broker.core.policy import PolicySet, Weighted
from broker.core.resources import make_spec, slices
from policies.age import Age
from policies.cost import Cost
from policies.fit import Fit
from policies.priority import Priority
from policies.wait import Wait

NOW_MS = 1_800_000_000_000
A800 = "Nvidia/GPU/A800"
ASCEND = "Huawei/NPU/Ascend910B"
ACCELERATORS = {
    A800: Accelerator(name=A800, memory_gib=(40, 80), fp16_gflops=312_000, factor_permille=1000),
    ASCEND: Accelerator(name=ASCEND, memory_gib=(64,), fp16_gflops=320_000, factor_permille=800),
}


def node(
    cards: int = 8,
    *,
    cores: int | None = None,
    memory_gib: int | None = None,
    accelerator: str = A800,
    card_memory_gib: int = 80,
    arch: str = "X86",
    permille: int = 1000,
    split: int = 0,
) -> NodeShape:
    """A node or slice with 16 cores and 128 GiB per card; its devices are `permille` of a card each, and
    may be split in steps of `split`."""
    return NodeShape(
        arch=arch,
        cores=cards * 16 if cores is None else cores,
        memory_gib=cards * 128 if memory_gib is None else memory_gib,
        accelerator=accelerator if cards else "",
        accelerators=cards,
        accelerator_memory_gib=card_memory_gib if cards else 0,
        card_permille=permille,
        split_permille=split,
    )


def part(permille: int, *, cores: int = 2, memory_gib: int = 8, card_memory_gib: int | None = None) -> Spec:
    """The spec of a part of one card of `node`, with that share of its memory."""
    memory = 80 * permille // 1000 if card_memory_gib is None else card_memory_gib
    shape = node(1, cores=cores, memory_gib=memory_gib, card_memory_gib=memory, permille=permille)
    return make_spec(shape)


def cpu_node(cores: int = 64, memory_gib: int = 256, arch: str = "X86") -> NodeShape:
    return NodeShape(arch=arch, cores=cores, memory_gib=memory_gib)


def spec(shape: NodeShape | int = 1) -> Spec:
    """The spec of a shape, or of so many cards of `node`."""
    return make_spec(node(shape) if isinstance(shape, int) else shape)


def center(id: str = "sz-1", **changes: Any) -> CenterFacts:
    """An active, fresh center with room for 32 runs that do not run yet."""
    facts: dict[str, Any] = {
        "name": id,
        "state": CenterState.ACTIVE,
        "health": Health.FRESH,
        "max_in_flight": 32,
    }
    return CenterFacts(id=CenterId(id), **{**facts, **changes})


def free(cards: int, nodes: int = 1, *, cores: int | None = None, memory_gib: int | None = None) -> FreeNodes:
    """`nodes` nodes with so many cards free, and the default share of cores and memory."""
    return FreeNodes(
        cores=cards * 16 if cores is None else cores,
        memory_gib=cards * 128 if memory_gib is None else memory_gib,
        accelerators=cards,
        nodes=nodes,
    )


def pool(
    id: str = "sz-1/a",
    shape: NodeShape | None = None,
    *,
    nodes: int = 2,
    free: Sequence[FreeNodes] | None = None,
    price: int | None = None,
    **changes: Any,
) -> Pool:
    """A pool `CENTER/NAME` with an exact report of now, all nodes free unless `free` says otherwise.

    `price` is micro-CNY per card-hour (core-hour without cards).
    """
    shape = node() if shape is None else shape
    whole = FreeNodes(shape.cores, shape.memory_gib, shape.accelerators, nodes)
    facts: dict[str, Any] = {
        "center": CenterId(id.split("/")[0]),
        "native": id.split("/")[-1],
        "as_of_ms": NOW_MS,
        "accuracy": Accuracy.EXACT,
        "prices": () if price is None else (Price(price),),
    }
    return Pool(
        id=PoolId(id),
        shape=shape,
        nodes=nodes,
        free=(whole,) if free is None else tuple(free),
        **{**facts, **changes},
    )


def request(wish: Spec | NodeShape | int | None = 1, **changes: Any) -> JobRequest:
    """A request for a spec, a shape or so many cards per node; None: by `min_gflops`."""
    wanted = wish if wish is None or isinstance(wish, Spec) else spec(wish)
    return JobRequest(spec=wanted, **changes)


def job_class(
    key: str = "k",
    wish: Spec | NodeShape | int | None = 1,
    *,
    jobs: int = 1,
    age_s: int = 0,
    tenant: str = "t",
    avoid: Sequence[str] = (),
    **changes: Any,
) -> JobClass:
    """`jobs` jobs `KEY-0` … of one class that have waited `age_s`; further keywords are the request's."""
    queued = tuple(QueuedJob(JobId(f"{key}-{i}"), NOW_MS - age_s * 1000) for i in range(jobs))
    return JobClass(
        key=key,
        request=request(wish, **changes),
        tenant=TenantId(tenant),
        jobs=queued,
        avoid=frozenset(CenterId(c) for c in avoid),
    )


def claim(
    run: str = "bk-1",
    wish: NodeShape | int = 1,
    *,
    pool: str = "sz-1/a",
    nodes: int = 1,
    started_ms: int | None = None,
) -> Claim:
    """What a live run holds; by default the center has not said that it started."""
    return Claim(
        run=RunId(run),
        center=CenterId(pool.split("/")[0]),
        pool=PoolId(pool),
        shape=node(wish) if isinstance(wish, int) else wish,
        nodes=nodes,
        started_ms=started_ms,
    )


def reservation(slot: int, *, nodes: int = 1, pool: str = "sz-1/a", **changes: Any) -> Reservation:
    """A hold in force now."""
    facts: dict[str, Any] = {
        "id": 1,
        "job": JobId("held"),
        "not_before_ms": NOW_MS,
        "expires_ms": NOW_MS + 3_600_000,
        "why": "test",
    }
    return Reservation(pool=PoolId(pool), slot=slot, nodes=nodes, **{**facts, **changes})


def snapshot(
    *parts: CenterFacts | Pool | Claim | Reservation | JobClass, minute_of_week: int = 0, version: int = 7
) -> Snapshot:
    """A snapshot of these parts, given in any order."""
    return Snapshot(
        version=version,
        now_ms=NOW_MS,
        minute_of_week=minute_of_week,
        centers=tuple(p for p in parts if isinstance(p, CenterFacts)),
        pools=tuple(p for p in parts if isinstance(p, Pool)),
        claims=tuple(p for p in parts if isinstance(p, Claim)),
        reservations=tuple(p for p in parts if isinstance(p, Reservation)),
        classes=tuple(p for p in parts if isinstance(p, JobClass)),
        accelerators=ACCELERATORS,
    )


def policy_set(*further: object) -> PolicySet:
    """The five default policies with their defaults, and further ones after them."""
    default = (Fit(), Cost(), Wait(), Priority(), Age())
    return PolicySet(tuple(Weighted(type(p).__name__.lower(), p) for p in (*default, *further)))


# ---------------------------------------------------------------- random worlds for property tests

NODES = (
    node(8),
    node(6, cores=100, memory_gib=500),
    node(4, cores=32, memory_gib=1024),
    node(16),
    node(8, accelerator=ASCEND, card_memory_gib=64, arch="ARM"),
    cpu_node(24, 100),
    node(4, split=1),
    node(3, cores=40, memory_gib=900, split=125),
    node(7, cores=56, memory_gib=448, card_memory_gib=10, permille=142),
)


@st.composite
def free_groups(draw: st.DrawFn, shape: NodeShape) -> tuple[FreeNodes, ...]:
    """One to four groups of nodes, half of them wholly free."""

    def group() -> FreeNodes:
        whole = draw(st.booleans())
        parts = (shape.cores, shape.memory_gib, shape.accelerators)
        cores, memory, cards = parts if whole else (draw(st.integers(0, part)) for part in parts)
        left: list[int] = []
        if shape.split_permille and not whole:
            some = st.lists(st.integers(1, 999), max_size=shape.accelerators - cards)
            left = sorted(draw(some))
        return FreeNodes(cores, memory, cards, draw(st.integers(1, 3)), tuple(left))

    return tuple(group() for _ in range(draw(st.integers(1, 4))))


@st.composite
def pools(draw: st.DrawFn, shapes: Sequence[NodeShape], center_ids: Sequence[str], name: str) -> Pool:
    shape = draw(st.sampled_from(shapes))
    groups = draw(free_groups(shape))
    return pool(
        f"{draw(st.sampled_from(center_ids))}/{name}",
        shape,
        nodes=sum(g.nodes for g in groups) + draw(st.integers(0, 2)),
        free=groups,
        price=draw(st.none() | st.integers(0, 30_000_000)),
        accuracy=draw(st.sampled_from([Accuracy.EXACT] * 5 + [Accuracy.ESTIMATED, Accuracy.UNKNOWN])),
        specs=draw(st.sampled_from([(), (), (), slices(shape)])),
        expected_wait_s=draw(st.sampled_from([0, 60, 7200])),
    )


@st.composite
def classes(draw: st.DrawFn, shapes: Sequence[NodeShape], center_ids: Sequence[str], key: str) -> JobClass:
    shape = draw(st.sampled_from(shapes))
    odd = replace(slices(shape)[0].shape, cores=shape.cores // 3 + 1)
    wish = draw(st.sampled_from([*slices(shape), spec(odd), None]))
    job = job_class(
        key,
        wish,
        min_gflops=draw(st.integers(0, 2_000_000)) if wish is None else 0,
        nodes=draw(st.sampled_from([1, 1, 1, 2, 3])),
        tier=draw(st.sampled_from(Tier)),
        centers=draw(st.sampled_from([(), (), (), (CenterId(center_ids[0]),)])),
        estimated_run_time_s=draw(st.sampled_from([None, 600, 7200, 90_000])),
        max_price_micro=draw(st.sampled_from([None, None, None, 10**7, 10**8])),
    )
    ages = draw(st.lists(st.sampled_from([0, 90, 4000, 100_000]), min_size=1, max_size=6))
    jobs = [QueuedJob(JobId(f"{key}-{i}"), NOW_MS - age * 1000) for i, age in enumerate(sorted(ages)[::-1])]
    return replace(job, jobs=tuple(jobs))


@st.composite
def worlds(draw: st.DrawFn) -> Snapshot:
    """Snapshots of one or two kinds of nodes: up to three centers, five pools, three claims, six classes."""
    shapes = draw(st.lists(st.sampled_from(NODES), min_size=1, max_size=2))
    center_ids = [f"c{i}" for i in range(draw(st.integers(1, 3)))]
    centers = [
        center(
            c,
            max_in_flight=draw(st.sampled_from([32, 32, 32, 4, 1, 0])),
            gang=draw(st.sampled_from([True, True, True, False])),
            health=draw(st.sampled_from([Health.FRESH] * 7 + [Health.SUSPECT])),
        )
        for c in center_ids
    ]
    some_pools = [draw(pools(shapes, center_ids, f"p{i}")) for i in range(draw(st.integers(1, 5)))]
    some_classes = [draw(classes(shapes, center_ids, f"k{i}")) for i in range(draw(st.integers(1, 6)))]
    claims = [
        claim(f"bk-{i}", slices(p.shape)[-1 if i else 0].shape, pool=p.id)
        for i, p in enumerate(some_pools[:3])
        if draw(st.booleans())
    ]
    return snapshot(*centers, *some_pools, *some_classes, *claims)
