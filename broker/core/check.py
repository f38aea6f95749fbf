"""An independent check that a plan can be carried out.

What belongs here: `violations`, which uses the snapshot alone.  What does not: the plan's types
(plan.py) and the arrays of the problem; a defect there must not hide itself here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from broker.core.budget import overspent
from broker.core.model import (
    EVERY_CENTER,
    Accuracy,
    CenterFacts,
    CenterId,
    CenterState,
    Claim,
    FreeNodes,
    Health,
    JobClass,
    JobId,
    Kind,
    NodeShape,
    Pool,
    PoolId,
    RunState,
    Snapshot,
    Spec,
    Tier,
    Why,
)
from broker.core.packing import pack_on_cards, unpacked_in_order
from broker.core.plan import Alike, Placement, Placements, Plan, Preemption, after, grouped
from broker.core.queue import Span, as_queue
from broker.core.resources import (
    effective_gflops,
    rate_micro_per_hour,
    same_card_memory,
    same_devices,
    slot_size,
)
from broker.core.snapshot import (
    Free,
    Holding,
    by_pool,
    effective_free,
    holdings,
    in_flight_room,
    supply,
    units,
    with_holders,
    without,
)

# Looking up a member of an enumeration costs more than all else in a loop over placements.
_ACTIVE, _FRESH, _UNKNOWN, _ONLINE = CenterState.ACTIVE, Health.FRESH, Accuracy.UNKNOWN, Kind.ONLINE

_Counts = list[tuple[Placement, int]]
"""What is placed in one pool: jobs of each kind."""
_Nodes = dict[tuple[int, int, int, int], int]
"""How many nodes have so many (units, cards, cores, GiB) left."""


class Checked:
    """What was found without fault in earlier rounds; of use to one thread at a time.

    Nothing kept here can change a verdict: a verdict is taken over only where all it rests on is
    the same.  Faults are not kept.
    """

    def __init__(self) -> None:
        self._kinds: dict[int, tuple[object, ...]] = {}
        self._packed: dict[PoolId, tuple[NodeShape, tuple[FreeNodes, ...], _Counts]] = {}
        self._nodes: dict[PoolId, tuple[NodeShape, Sequence[FreeNodes], _Nodes]] = {}
        self._pools: tuple[tuple[Pool, ...], Mapping[PoolId, Pool]] = ((), {})

    def pools(self, snapshot: Snapshot) -> Mapping[PoolId, Pool]:
        """The snapshot's pools by id."""
        if self._pools[0] is not snapshot.pools:
            self._pools = (snapshot.pools, {pool.id: pool for pool in snapshot.pools})
        return self._pools[1]

    def begin(self, kinds: int) -> None:
        """Forgets all when most of it is of kinds that come no more."""
        if len(self._kinds) > 4 * kinds + 1000:
            self._kinds.clear()

    def fits(self, kind: Placement, job_class: JobClass, pool: Pool, snapshot: Snapshot) -> bool:
        """Whether this very kind was found to fit this class and pool; if not, `fitted` may follow."""
        known = self._kinds.get(id(kind))
        return (
            known is not None
            and known[0] is kind  # an id alone may be that of an object which is gone
            and known[1] is job_class.request
            and known[2] is pool.shape
            and known[3] is pool.specs
            and known[4] is pool.prices
            and known[5] is snapshot.accelerators
            and known[6] == (pool.nodes, pool.accuracy, snapshot.minute_of_week)
        )

    def fitted(self, kind: Placement, job_class: JobClass, pool: Pool, snapshot: Snapshot) -> None:
        self._kinds[id(kind)] = (
            kind,
            job_class.request,
            pool.shape,
            pool.specs,
            pool.prices,
            snapshot.accelerators,
            (pool.nodes, pool.accuracy, snapshot.minute_of_week),
        )

    def packs(self, pool: Pool, free: tuple[FreeNodes, ...], counts: _Counts) -> bool:
        """Whether just these were packed on just these nodes; if not, `packed` may follow."""
        known = self._packed.get(pool.id)
        return (
            known is not None
            and (known[0] is pool.shape or known[0] == pool.shape)
            and (known[1] is free or known[1] == free)
            and known[2] == counts
        )

    def packed(self, pool: Pool, free: tuple[FreeNodes, ...], counts: _Counts) -> None:
        self._packed[pool.id] = (pool.shape, free, counts)

    def nodes(self, pool: Pool, free: Sequence[FreeNodes]) -> _Nodes:
        """What the free nodes of a pool have left, for the caller to change."""
        known = self._nodes.get(pool.id)
        if known is None or known[0] is not pool.shape or known[1] is not free:
            known = self._nodes[pool.id] = (pool.shape, free, _left(pool.shape, free))
        return known[2].copy()


def violations(
    plan: Plan, snapshot: Snapshot, free: Free | None = None, checked: Checked | None = None
) -> list[str]:
    """Everything in `plan` that the snapshot does not allow, in words; empty: it can be carried out.

    Placements are packed node by node on the effective free nodes of each pool, largest slots first,
    and those of jobs that leave reservations alone on what these leave.  `free` is
    effective_free(snapshot, reservations=()), where at hand; `checked` saves what did not change
    since the last round.
    """
    checked = Checked() if checked is None else checked
    snapshot = with_holders(snapshot)
    found: list[str] = []
    if plan.based_on != snapshot.version:
        found.append(f"the plan is for version {plan.based_on}, the snapshot has {snapshot.version}")
    centers = {c.id: c for c in snapshot.centers}
    pools = checked.pools(snapshot)
    keyed = {c.key: c for c in snapshot.classes}
    placed = grouped(plan.placements)
    alike = (*placed, *grouped(p.placement for p in plan.preemptions if p.placement is not None))
    counts = [len(one.jobs) for one in alike]
    classes = [keyed.get(one.kind.class_key) for one in alike]
    found += _job_faults(zip(alike, counts, classes, strict=True), snapshot, keyed)
    found += overspent(alike, snapshot)
    sent: dict[CenterId, int] = {}
    checked.begin(len(alike))
    for one, count, job_class in zip(alike, counts, classes, strict=True):
        kind = one.kind
        sent[kind.center] = sent.get(kind.center, 0) + count
        center, pool = centers.get(kind.center), pools.get(kind.pool)
        if job_class is None or center is None or pool is None or pool.center != kind.center:
            found.append(
                f"job {one.jobs[0]}: no class {kind.class_key}, or no pool {kind.pool} at {kind.center}"
            )
            continue
        wrong = _center_faults(job_class, center)
        if not checked.fits(kind, job_class, pool, snapshot):
            unfit = list(_pool_faults(kind, job_class, pool, snapshot))
            if not unfit:
                checked.fitted(kind, job_class, pool, snapshot)
            wrong += unfit
        if wrong:
            found += [f"job {one.jobs[0]} in {kind.pool}: {fault}" for fault in wrong]
    for center_id, count in sorted(sent.items()):
        room = in_flight_room(centers[center_id]) if center_id in centers else 0
        if count > room:
            found.append(f"center {center_id}: {count} runs sent, in-flight room for {room}")
    placed_in: defaultdict[PoolId, _Counts] = defaultdict(list)
    for one, count in zip(placed, counts, strict=False):  # those of preemptions come behind
        if not one.kind.platform_kills:
            placed_in[one.kind.pool].append((one.kind, count))
    free = effective_free(snapshot, reservations=()) if free is None else free
    found += _packing_faults(placed_in, snapshot, pools, free, checked)
    return found + _preemption_faults(plan, snapshot, pools)


def _job_faults(
    alike: Iterable[tuple[Alike, int, JobClass | None]], snapshot: Snapshot, keyed: Mapping[str, JobClass]
) -> list[str]:
    """Jobs that are not queued, or in another class, or placed more than once.

    `alike` are placements, how many they are, and their class.
    """
    found: list[str] = []
    spans: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    queued: dict[JobId, tuple[str, int]] | None = None
    for one, count, job_class in alike:
        first, last = one.first, one.first + count
        if first >= 0 and job_class and _stand(one.jobs, as_queue(job_class.jobs).ids, first, last):
            spans[job_class.key].append((first, last))
            continue
        if queued is None:
            queued = {job: (c.key, i) for c in snapshot.classes for i, job in enumerate(as_queue(c.jobs).ids)}
        for job in one.jobs:
            key, at = queued.get(job, ("", 0))
            if job not in queued:
                found.append(f"job {job} is not queued")
            elif key != one.kind.class_key:
                found.append(f"job {job} is of class {key}")
            spans[key].append((at, at + 1))
    for key, taken in spans.items():
        if len(taken) == 1:
            continue
        done = 0
        for first, last in sorted(taken):
            if first < done and key in keyed:
                found.append(f"job {keyed[key].jobs[first].id} is placed more than once")
            done = max(done, last)
    return found


def _stand(jobs: Sequence[JobId], ids: Sequence[JobId], first: int, last: int) -> bool:
    """Whether these jobs are ids[first:last]."""
    if isinstance(jobs, Span) and jobs.of is ids:
        return jobs.first == first and jobs.last == last <= len(ids)
    return list(ids[first:last]) == list(jobs)


def _preemption_faults(plan: Plan, snapshot: Snapshot, pools: Mapping[PoolId, Pool]) -> list[str]:
    """What is wrong with the stops: victims, who they are for, and that they are enough (law 6)."""
    if not plan.preemptions:
        return []
    found = [f"run {run} is stopped {n} times" for run, n in Counter(plan.stops).items() if n > 1]
    claims = {c.run: c for c in snapshot.claims}
    able = [c for c in snapshot.classes if c.request.tier is Tier.VIP and c.request.preempt_policy == 2]
    waiting = {job for c in able for job in as_queue(c.jobs).ids}
    placed = plan.starts
    stopping_in = {p.pool for p in plan.preemptions}
    some = replace(snapshot, claims=tuple(c for c in snapshot.claims if c.pool in stopping_in))
    there = (one for one in grouped(plan.placements) if one.kind.pool in stopping_in)
    world = after(some, Placements(there))
    claims_in = by_pool(world.claims)
    ending = {c.run for c in world.claims if c.stopping} | set(plan.stops)
    ended: dict[tuple[PoolId, int], Snapshot] = {}
    for preemption in plan.preemptions:
        first = preemption.placement
        if first is not None and (first.job, first.pool) != (preemption.job, preemption.pool):
            found.append(f"{first.job} is sent first to {first.pool} where {preemption.job} preempts")
        for run in preemption.victims:
            victim = claims.get(run)
            fault = "does not run" if victim is None or victim.stopping else _victim_fault(victim, preemption)
            found += [f"victim {run} of {preemption.job} {fault}"] if fault else []
        record = snapshot.kill_records.get(preemption.job)
        if preemption.job not in waiting or preemption.job in placed:
            found.append(f"runs are stopped for {preemption.job}, which is no VIP job that waits for that")
        elif record is not None and record.suffered:
            found.append(f"runs are stopped for {preemption.job}, which was itself stopped for another")
        held = [r for r in plan.reservations if r.job == preemption.job and r.pool == preemption.pool]
        if not held or not preemption.victims or preemption.pool not in pools:
            found.append(f"nothing is held for {preemption.job} in {preemption.pool}")
            continue
        others = [
            r
            for r in plan.reservations
            if r.pool == preemption.pool
            and r.job != preemption.job
            and (r.why == Why.PREEMPTING or (r.why == Why.VIP and r in snapshot.reservations))
        ]
        key = preemption.pool, held[0].slot
        if key not in ended:
            pool, mine = pools[preemption.pool], tuple(claims_in.get(preemption.pool, ()))
            part = replace(world, pools=(pool,), claims=mine)
            ended[key] = without(part, ending, slot=held[0].slot)
        then = effective_free(ended[key], reservations=others)
        have = supply(pools[preemption.pool].shape, then[preemption.pool], held[0].slot)
        if have < held[0].nodes:
            found.append(f"job {preemption.job}: {have} slots without its victims, {held[0].nodes} needed")
    return found


def _victim_fault(claim: Claim, preemption: Preemption) -> str:
    if claim.request is None or not claim.request.preemptible:
        return "is not preemptible"
    if claim.tier >= Tier.VIP or claim.state is not RunState.RUNNING or claim.pool != preemption.pool:
        return f"is a {claim.tier.name} run in {claim.state}, in {claim.pool}"
    return ""


def _center_faults(job_class: JobClass, center: CenterFacts) -> list[str]:
    found: list[str] = []  # mostly empty: no generator, which costs more than the tests
    request, limit = job_class.request, center.max_run_time_s
    if center.state is not _ACTIVE:
        found.append(f"center is {center.state}")
    if center.health is not _FRESH:
        found.append(f"center is {center.health}")
    if request.centers and center.id not in request.centers:
        found.append("the job names other centers")
    if center.id in job_class.avoid or EVERY_CENTER in job_class.avoid:
        found.append("the job avoids the center")
    if request.kind is _ONLINE and not center.services:
        found.append("no services there")
    if request.image_id:
        if request.image_id not in center.images:
            found.append(f"no image {request.image_id} there")
    elif request.image_url and not center.any_image_url:
        found.append(f"no image {request.image_url} there")
    if request.nodes > 1 and not center.gang:
        found.append("no gangs there")
    if limit is not None and request.max_run_time_s is not None and request.max_run_time_s > limit:
        found.append(f"{request.max_run_time_s} s is longer than {limit} s")
    return found


def _pool_faults(kind: Placement, job_class: JobClass, pool: Pool, snapshot: Snapshot) -> Iterator[str]:
    request, shape, node = job_class.request, kind.spec.shape, pool.shape
    if kind.nodes != request.nodes:
        yield f"{kind.nodes} nodes instead of {request.nodes}"
    if request.nodes > pool.nodes and (pool.accuracy is not Accuracy.UNKNOWN or pool.nodes):
        yield f"{request.nodes} nodes in a pool of {pool.nodes}"
    if request.spec is not None and kind.spec is not request.spec and kind.spec != request.spec:
        yield f"spec {kind.spec.id} is not the one asked for"
    if request.spec is None and effective_gflops(shape, snapshot.accelerators) < request.min_gflops:
        yield f"spec {kind.spec.id} is weaker than {request.min_gflops} GFLOPS"
    if shape.accelerator != node.accelerator:
        yield f"{shape.accelerator!r} on {node.accelerator!r}"
    if shape.arch != node.arch:
        yield f"{shape.arch} on {node.arch}"
    if not same_card_memory(node, shape):
        yield f"{shape.accelerator_memory_gib} GiB cards on {node.accelerator_memory_gib} GiB cards"
    if not same_devices(node, shape):
        yield f"{shape.accelerators} x {shape.card_permille} of {node.card_permille} thousandths"
    if pool.specs and all(kind.spec.id != s.id for s in pool.specs):
        yield f"{kind.spec.id} is not offered"
    slot = slot_size(node, shape)
    if not 0 < slot == kind.slot:
        yield f"slot of {kind.slot} instead of {slot}"
    rate = rate_micro_per_hour(pool, shape, kind.nodes, snapshot.minute_of_week)
    ceiling = request.max_rate_micro
    if ceiling is not None and rate > ceiling:
        yield f"{rate} micro-CNY/h above the ceiling {ceiling}"
    if rate != kind.rate_micro_per_hour:
        yield f"rate {kind.rate_micro_per_hour} instead of {rate}"


def _packing_faults(
    placed: Mapping[PoolId, _Counts],
    snapshot: Snapshot,
    pools: Mapping[PoolId, Pool],
    free: Free,
    checked: Checked,
) -> list[str]:
    held = holdings(snapshot)
    keyed = {c.key: c for c in snapshot.classes} if held else {}
    found: list[str] = []
    for pool_id in sorted(placed):
        pool, counts = pools.get(pool_id), placed[pool_id]
        if pool is None or pool.accuracy is _UNKNOWN:
            continue
        if pool_id in held:
            found += _faults_beside(pool, free[pool_id], counts, held[pool_id], keyed, snapshot.now_ms)
        elif not checked.packs(pool, free[pool_id], counts):
            faults = _faults_alone(pool, free[pool_id], counts, checked)
            if not faults:
                checked.packed(pool, free[pool_id], counts)
            found += faults
    return found


def _faults_alone(pool: Pool, free: Sequence[FreeNodes], counts: _Counts, checked: Checked) -> list[str]:
    """What has no room in a pool in which nothing is held."""
    exact = [(kind.spec, kind.nodes, n) for kind, n in counts if kind.exact]
    slots = [(kind, n) for kind, n in counts if not kind.exact]
    found = [
        f"pool {pool.id}: {spec.id} has no room in the order of the plan"
        for spec in (unpacked_in_order(pool.shape, free, exact) if exact else ())
    ]
    if exact and slots:
        found.append(_MIXED.format(pool.id))
    return found + (_unpacked(pool, free, slots, nodes=checked.nodes(pool, free)) if slots else [])


def _faults_beside(
    pool: Pool,
    free: Sequence[FreeNodes],
    counts: _Counts,
    held: Holding,
    keyed: Mapping[str, JobClass],
    now_ms: int,
) -> list[str]:
    """What has no room in a pool, and what has none on nodes that it must leave alone."""
    found = [_MIXED.format(pool.id)] if any(kind.exact for kind, _ in counts) else []
    classes = [keyed.get(kind.class_key) for kind, _ in counts]
    leaves = [0 if one is None else held.depth(one, now_ms) for one in classes]
    for level, there in enumerate((free, *held.free[1:])):
        bound = [one for one, depth in zip(counts, leaves, strict=True) if depth >= level]
        beside = f" beside what is held for {held.reservations[level - 1].job}" if level else ""
        found += _unpacked(pool, there, bound, beside)
    return found


_MIXED = "pool {}: something is held there, or slots are taken"


def _unpacked(
    pool: Pool, free: Sequence[FreeNodes], counts: _Counts, beside: str = "", nodes: _Nodes | None = None
) -> list[str]:
    wanted: dict[tuple[int, Spec], int] = {}
    for kind, n in counts:
        which = (kind.slot, kind.spec)
        wanted[which] = wanted.get(which, 0) + kind.nodes * n
    return [
        f"pool {pool.id}: {n} slots of {t} for {s.id} do not pack{beside}"
        for (t, s), n in pack(pool, free, wanted, nodes).items()
    ]


def pack(
    pool: Pool,
    free: Sequence[FreeNodes],
    wanted: Mapping[tuple[int, Spec], int],
    nodes: _Nodes | None = None,
) -> dict[tuple[int, Spec], int]:
    """Puts (slot, spec) → count on real nodes, largest slots first, the fullest node that holds one.

    Returns what does not fit.  A slot takes its units, and its cards, cores and GiB must be free too.
    `nodes` is what the free nodes have left, where at hand; it is used up.
    """
    if pool.shape.split_permille:
        return pack_on_cards(pool.shape, free, wanted)
    nodes = _left(pool.shape, free) if nodes is None else nodes
    unpacked: dict[tuple[int, Spec], int] = {}
    for (slot, spec), count in sorted(wanted.items(), key=lambda w: (-w[0][0], w[0][1].id)):
        shape, left = spec.shape, count
        # A slot of nothing is a fault of its kind, told there.
        a, b, c, d = max(1, slot), shape.accelerators, shape.cores, shape.memory_gib
        for state in sorted([s for s in nodes if s[0] >= a and s[1] >= b and s[2] >= c and s[3] >= d]):
            if not left:
                break
            w, x, y, z = state
            # A node that holds one is the fullest that does until it holds no more.
            most = w // a
            if b and x < most * b:
                most = x // b
            if c and y < most * c:
                most = y // c
            if d and z < most * d:
                most = z // d
            whole, rest = divmod(min(left, most * nodes[state]), most)
            left -= whole * most + rest
            nodes[state] -= whole + bool(rest)
            for slots, some in ((most, whole), (rest, int(rest > 0))):
                if some:
                    then = (w - slots * a, x - slots * b, y - slots * c, z - slots * d)
                    nodes[then] = nodes.get(then, 0) + some
            if not nodes[state]:
                del nodes[state]
        if left:
            unpacked[slot, spec] = left
    return unpacked


def _left(shape: NodeShape, free: Sequence[FreeNodes]) -> _Nodes:
    nodes: _Nodes = {}
    for group in free:
        state = (units(shape, group), group.accelerators, group.cores, group.memory_gib)
        nodes[state] = nodes.get(state, 0) + group.nodes
    return nodes
