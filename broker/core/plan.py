"""What a round decides, and an independent check that it can be carried out.

What belongs here: the plan's types and `violations`, which uses the snapshot alone.  What does not:
the arrays of the problem; a defect there must not hide itself here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from broker.core.explain import Reason
from broker.core.model import (
    Accuracy,
    CenterFacts,
    CenterId,
    CenterState,
    FreeNodes,
    Health,
    JobClass,
    JobId,
    Kind,
    Pool,
    PoolId,
    Reservation,
    RunId,
    Snapshot,
    Spec,
)
from broker.core.resources import effective_gflops, rate_micro_per_hour, slot_size
from broker.core.snapshot import effective_free, in_flight_room, units


@dataclass(frozen=True, slots=True)
class Placement:
    """One job that starts: `nodes` slots of `slot` units of a pool.

    `rate_micro_per_hour` is the price of the whole job at the snapshot's minute, `cost_micro` that
    price over the estimate of the job's class.
    """

    job: JobId
    class_key: str
    center: CenterId
    pool: PoolId
    spec: Spec
    slot: int
    nodes: int
    cost_micro: int
    rate_micro_per_hour: int


class Source(StrEnum):
    """Which of the two candidates a plan is."""

    GREEDY = "greedy"
    LP = "lp"


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision of one round on the snapshot of version `based_on`.

    `objective` is micro-CNY: cost of what starts plus worth of what waits.  No plan is below `bound`,
    where the relaxation was solved to the end.  `deferrals` has the reasons of every class, by key,
    of which jobs still wait.
    """

    based_on: int
    placements: tuple[Placement, ...] = ()
    stops: tuple[RunId, ...] = ()  # runs to preempt
    reservations: tuple[Reservation, ...] = ()
    stagings: tuple[tuple[str, CenterId], ...] = ()  # data sets to copy
    deferrals: Mapping[str, tuple[Reason, ...]] = field(default_factory=dict)
    objective: int = 0
    bound: int | None = None
    solver_status: str = ""
    source: Source = Source.GREEDY


def violations(plan: Plan, snapshot: Snapshot) -> list[str]:
    """Everything in `plan` that the snapshot does not allow, in words; empty: it can be carried out.

    Placements are packed node by node on the effective free nodes of each pool, largest slots first.
    """
    found: list[str] = []
    if plan.based_on != snapshot.version:
        found.append(f"the plan is for version {plan.based_on}, the snapshot has {snapshot.version}")
    centers = {c.id: c for c in snapshot.centers}
    pools = {p.id: p for p in snapshot.pools}
    queued = {job.id: job_class for job_class in snapshot.classes for job in job_class.jobs}
    for job, times in Counter(p.job for p in plan.placements).items():
        if times > 1:
            found.append(f"job {job} is placed {times} times")
    # Placements of a class in a pool differ by job alone, so each kind is looked at once.
    kinds: dict[Placement, list[JobId]] = {}
    for placement in plan.placements:
        if placement.job not in queued:
            found.append(f"job {placement.job} is not queued")
        elif queued[placement.job].key != placement.class_key:
            found.append(f"job {placement.job} is of class {queued[placement.job].key}")
        kinds.setdefault(replace(placement, job=JobId("")), []).append(placement.job)
    keyed = {c.key: c for c in snapshot.classes}
    for kind, jobs in kinds.items():
        job_class, center, pool = keyed.get(kind.class_key), centers.get(kind.center), pools.get(kind.pool)
        if job_class is None or center is None or pool is None or pool.center != kind.center:
            found.append(f"job {jobs[0]}: no class {kind.class_key}, or no pool {kind.pool} at {kind.center}")
            continue
        wrong = [*_center_faults(job_class, center), *_pool_faults(kind, job_class, pool, snapshot)]
        found += [f"job {jobs[0]} in {kind.pool}: {fault}" for fault in wrong]
    sent = Counter(p.center for p in plan.placements)
    for center_id, count in sorted(sent.items()):
        room = in_flight_room(centers[center_id]) if center_id in centers else 0
        if count > room:
            found.append(f"center {center_id}: {count} runs sent, in-flight room for {room}")
    return found + _packing_faults(kinds, snapshot, pools)


def _center_faults(job_class: JobClass, center: CenterFacts) -> list[str]:
    request = job_class.request
    image_ok = (
        request.image_id in center.images
        if request.image_id
        else not request.image_url or center.any_image_url
    )
    limit = center.max_run_time_s
    checks = (
        (center.state is CenterState.ACTIVE, f"center is {center.state}"),
        (center.health is Health.FRESH, f"center is {center.health}"),
        (not request.centers or center.id in request.centers, "the job names other centers"),
        (center.id not in job_class.avoid, "the job avoids the center"),
        (request.kind is not Kind.ONLINE or center.services, "no services there"),
        (image_ok, f"no image {request.image_id or request.image_url} there"),
        (request.nodes == 1 or center.gang, "no gangs there"),
        (
            limit is None or request.max_run_time_s is None or request.max_run_time_s <= limit,
            f"{request.max_run_time_s} s is longer than {limit} s",
        ),
    )
    return [fault for ok, fault in checks if not ok]


def _pool_faults(kind: Placement, job_class: JobClass, pool: Pool, snapshot: Snapshot) -> list[str]:
    request, shape, node = job_class.request, kind.spec.shape, pool.shape
    rate = rate_micro_per_hour(pool, shape, kind.nodes, snapshot.minute_of_week)
    ceiling = request.max_rate_micro
    checks = (
        (kind.nodes == request.nodes, f"{kind.nodes} nodes instead of {request.nodes}"),
        (
            request.nodes <= pool.nodes or (pool.accuracy is Accuracy.UNKNOWN and pool.nodes == 0),
            f"{request.nodes} nodes in a pool of {pool.nodes}",
        ),
        (request.spec is None or kind.spec == request.spec, f"spec {kind.spec.id} is not the one asked for"),
        (
            request.spec is not None or effective_gflops(shape, snapshot.accelerators) >= request.min_gflops,
            f"spec {kind.spec.id} is weaker than {request.min_gflops} GFLOPS",
        ),
        (shape.accelerator == node.accelerator, f"{shape.accelerator!r} on {node.accelerator!r}"),
        (shape.arch == node.arch, f"{shape.arch} on {node.arch}"),
        (
            not shape.accelerators or shape.accelerator_memory_gib == node.accelerator_memory_gib,
            f"{shape.accelerator_memory_gib} GiB cards on {node.accelerator_memory_gib} GiB cards",
        ),
        (not pool.specs or kind.spec.id in {s.id for s in pool.specs}, f"{kind.spec.id} is not offered"),
        (0 < slot_size(node, shape) == kind.slot, f"slot of {kind.slot} instead of {slot_size(node, shape)}"),
        (ceiling is None or rate <= ceiling, f"{rate} micro-CNY/h above the ceiling {ceiling}"),
        (rate == kind.rate_micro_per_hour, f"rate {kind.rate_micro_per_hour} instead of {rate}"),
    )
    return [fault for ok, fault in checks if not ok]


def _packing_faults(
    kinds: Mapping[Placement, Sequence[JobId]], snapshot: Snapshot, pools: Mapping[PoolId, Pool]
) -> list[str]:
    free = effective_free(snapshot)
    wanted: dict[PoolId, Counter[tuple[int, Spec]]] = {}
    for kind, jobs in kinds.items():
        if kind.pool in pools and pools[kind.pool].accuracy is not Accuracy.UNKNOWN:
            slots = wanted.setdefault(kind.pool, Counter())
            slots[kind.slot, kind.spec] += kind.nodes * len(jobs)
    found = []
    for pool_id in sorted(wanted):
        unpacked = pack(pools[pool_id], free[pool_id], wanted[pool_id])
        found += [
            f"pool {pool_id}: {n} slots of {t} for {s.id} do not pack" for (t, s), n in unpacked.items()
        ]
    return found


def pack(
    pool: Pool, free: Sequence[FreeNodes], wanted: Mapping[tuple[int, Spec], int]
) -> dict[tuple[int, Spec], int]:
    """Puts (slot, spec) → count on real nodes, largest slots first, the fullest node that holds one.

    Returns what does not fit.  A slot takes its units, and its cards, cores and GiB must be free too.
    """
    nodes: Counter[tuple[int, int, int, int]] = Counter()  # (units, cards, cores, GiB) left
    for group in free:
        state = (units(pool.shape, group), group.accelerators, group.cores, group.memory_gib)
        nodes[state] += group.nodes
    unpacked: dict[tuple[int, Spec], int] = {}
    for (slot, spec), count in sorted(wanted.items(), key=lambda w: (-w[0][0], w[0][1].id)):
        shape, left = spec.shape, count
        need = (slot, shape.accelerators, shape.cores, shape.memory_gib)
        while left:
            fitting = [s for s, n in nodes.items() if n and all(a >= b for a, b in zip(s, need, strict=True))]
            if not fitting:
                unpacked[slot, spec] = left
                break
            state = min(fitting)
            taken = min(left, nodes[state])
            nodes[state] -= taken
            nodes[state[0] - slot, state[1] - need[1], state[2] - need[2], state[3] - need[3]] += taken
            left -= taken
    return unpacked
