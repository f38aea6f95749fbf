"""A snapshot and its policies as arrays: classes of jobs, pools, options, rows.

What belongs here: which class may use which pool (options), in slots of what size, at what cost, and
the rows that bind them: slots, in-flight room, limits.  What does not: choosing (greedy, solver).

Sets.  Classes, pools and centers are sorted by key and id, so the order in the snapshot does not
matter.  An option is a class in a pool it may use.  A started job takes `nodes` slots of `tau`
units of one pool; the slots of a gang may share a node.

Slot rows.  For every slot size t in use in a pool, the slots of at least t units that are taken,
each counted as floor(tau / t), are at most the sum over nodes of floor(units / t), or where cards are
split of what their cards hold (snapshot.slots).  Sizes are powers of two and the whole node, so these
rows hold exactly when first-fit decreasing packs all slots.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from broker.core.amounts import times
from broker.core.backfill import held_limits
from broker.core.budget import budget_limits
from broker.core.explain import Code
from broker.core.fitting import (
    BoolArray,
    CenterColumns,
    Chooser,
    Fitting,
    IntArray,
    PoolColumns,
    StrArray,
    ints,
    slot_sizes,
)
from broker.core.memory import Block, Memory, World
from broker.core.model import (
    CenterFacts,
    CenterId,
    JobClass,
    JobId,
    JobRequest,
    Pool,
    PoolId,
    Snapshot,
    Spec,
    TenantId,
)
from broker.core.plan import NOBODY, Placement
from broker.core.policy import Limit, PolicySet
from broker.core.queue import as_queue
from broker.core.snapshot import Free, Holding, holdings, in_flight_room, with_holders

__all__ = ["BoolArray", "IntArray", "PoolColumns", "Problem", "StrArray", "build", "class_key", "slot_sizes"]

CodeArray = npt.NDArray[np.int8]

AGE_S = (0, 60, 300, 900, 3600, 14_400, 86_400)
"""Lower edges of the age buckets, seconds."""

_NONE = np.zeros(0, dtype=np.int64)


def _exact_dot(prices: IntArray, counts: IntArray) -> int:
    """The exact sum of products: halves of the prices, whose sums stay inside int64 for 2^31 jobs."""
    some = np.flatnonzero(counts)
    price, n = prices[some], counts[some]
    return (int((price >> 31) @ n) << 31) + int((price & 0x7FFF_FFFF) @ n)


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One round's question.  K classes, P pools, B age buckets, J options, R rows, E row entries.

    Options of class k are first[k] … first[k+1]-1, in order of pools; the entries of option j are
    entry_first[j] … entry_first[j+1]-1, its slot rows first, in order of size.  Money is micro-CNY.
    """

    snapshot: Snapshot
    policies: PolicySet
    centers: tuple[CenterFacts, ...]
    pools: tuple[Pool, ...]
    classes: tuple[JobClass, ...]
    center: CenterColumns
    pool: PoolColumns
    specs: tuple[Spec, ...]
    fittings: tuple[Fitting, ...]  # [K], shared by classes that ask for the same
    age_s: IntArray  # [B]
    waiting: IntArray  # [K,B] queued jobs
    codes: CodeArray = field(
        default_factory=lambda: np.zeros(0, dtype=np.int8)
    )  # [K,P] explain.Code, 0: allowed
    first: IntArray = field(default_factory=lambda: _NONE)  # [K+1]
    option_class: IntArray = field(default_factory=lambda: _NONE)
    option_pool: IntArray = field(default_factory=lambda: _NONE)
    tau: IntArray = field(default_factory=lambda: _NONE)  # units per node of the job
    cost: IntArray = field(default_factory=lambda: _NONE)  # per job
    rate: IntArray = field(default_factory=lambda: _NONE)  # per job and hour, prices alone
    by_cost: IntArray = field(default_factory=lambda: _NONE)  # options by class, then cost, then pool
    least_millicards: IntArray = field(default_factory=lambda: _NONE)  # [K] of a job by its smallest option
    ub: IntArray = field(default_factory=lambda: _NONE)  # jobs at most, tightened by every row
    row_ub: IntArray = field(default_factory=lambda: _NONE)  # jobs at most, by the rows alone
    worth: IntArray = field(default_factory=lambda: _NONE)  # [K,B] of leaving a job waiting
    free: Free = field(default_factory=dict)  # before anything is held
    holdings: Mapping[PoolId, Holding] = field(default_factory=dict)
    row_pool: IntArray = field(default_factory=lambda: _NONE)  # of the slot rows, which come first
    row_name: tuple[str, ...] = ()
    row_code: IntArray = field(default_factory=lambda: _NONE)
    row_bound: IntArray = field(default_factory=lambda: _NONE)
    entry_first: IntArray = field(default_factory=lambda: _NONE)  # [J+1]
    entry_row: IntArray = field(default_factory=lambda: _NONE)
    entry_coef: IntArray = field(default_factory=lambda: _NONE)

    def job_rate(self, k: int, pools: IntArray) -> IntArray:
        """Micro-CNY per hour of one job of class `k` in these pools."""
        return times(self.fittings[k].rate[pools], self.classes[k].request.nodes)

    def job_millicards(self, k: int, pools: IntArray) -> IntArray:
        """Thousandths of cards one job of class `k` holds in these pools."""
        return self.fittings[k].millicards[pools] * self.classes[k].request.nodes

    def options(self, k: int) -> slice:
        """The options of class `k`."""
        return slice(int(self.first[k]), int(self.first[k + 1]))

    def started(self, y: IntArray) -> IntArray:
        """Jobs started per class, from jobs per option."""
        return np.bincount(self.option_class, weights=y, minlength=len(self.classes)).astype(np.int64)

    def used(self, y: IntArray) -> IntArray:
        """What `y` takes of every row, in exact integers."""
        taken = np.zeros(len(self.row_bound), dtype=np.int64)
        some = np.flatnonzero(y)
        entries, spans = self.entries(some)
        np.add.at(taken, self.entry_row[entries], self.entry_coef[entries] * np.repeat(y[some], spans))
        return taken

    def entries(self, options: IntArray) -> tuple[IntArray, IntArray]:
        """The entries of some options, one option after the other, and how many each has."""
        starts = self.entry_first[options]
        spans = self.entry_first[options + 1] - starts
        ends = np.cumsum(spans)
        return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - ends + spans, spans), spans

    def takes(self, option: int) -> tuple[IntArray, IntArray]:
        """The rows that an option is in, and what one job takes of each."""
        entries = slice(int(self.entry_first[option]), int(self.entry_first[option + 1]))
        return self.entry_row[entries], self.entry_coef[entries]

    def left(self, y: IntArray) -> IntArray:
        """What `y` leaves of every row."""
        return self.row_bound - self.used(y)

    def feasible(self, y: IntArray) -> bool:
        """Whether `y` keeps every row and starts no more jobs than wait."""
        return bool(
            (y >= 0).all()
            and (self.left(y) >= 0).all()
            and (self.started(y) <= self.waiting.sum(axis=1)).all()
        )

    def unserved(self, y: IntArray) -> IntArray:
        """[K,B] jobs still waiting when every class starts its oldest first."""
        oldest_first = self.waiting[:, ::-1]
        before = np.cumsum(oldest_first, axis=1) - oldest_first
        # np.clip says the same in three times the time.
        served = np.minimum(np.maximum(self.started(y)[:, None] - before, 0), oldest_first)
        return self.waiting - served[:, ::-1]

    def objective(self, y: IntArray) -> int:
        """Cost of what starts plus worth of what waits; exact, since sums may exceed int64."""
        return _exact_dot(self.cost, y) + _exact_dot(self.worth.ravel(), self.unserved(y).ravel())

    def placement(self, option: int, job: JobId = NOBODY, *, exact: bool = False) -> Placement:
        """A job of an option's class that starts by it."""
        k, at, rate = int(self.option_class[option]), int(self.option_pool[option]), int(self.rate[option])
        pool, job_class = self.pools[at], self.classes[k]
        return Placement(
            job=job,
            class_key=job_class.key,
            center=pool.center,
            pool=pool.id,
            spec=self.specs[int(self.fittings[k].spec[at])],
            slot=int(self.tau[option]),
            nodes=job_class.request.nodes,
            cost_micro=rate * job_class.estimate_s // 3600,
            rate_micro_per_hour=rate,
            exact=exact,
        )

    def counts(self, placements: Iterable[Placement]) -> IntArray:
        """Jobs per option of a plan's placements."""
        index = {
            (self.classes[k].key, self.pools[p].id): j
            for j, (k, p) in enumerate(
                zip(self.option_class.tolist(), self.option_pool.tolist(), strict=True)
            )
        }
        y = np.zeros(len(self.option_class), dtype=np.int64)
        for placement in placements:
            y[index[placement.class_key, placement.pool]] += 1
        return y


# ---------------------------------------------------------------- building, in steps


def build(
    snapshot: Snapshot,
    policies: PolicySet,
    free: Free | None = None,
    memory: Memory | None = None,
    *,
    rows: bool = True,
) -> Problem:
    """The problem of a snapshot; `free` is what is free in it before reservations, where at hand.

    Jobs that capacity is held for are classes of their own.  `memory` is kept by the caller from
    round to round: policies are then asked for classes and pools that changed, and arrays that stay
    equal stay the same objects.  Without `rows` there are no rows and no bounds: for who tests room in
    another way.  Raises ValueError when two classes have one key.
    """
    snapshot = with_holders(snapshot)
    memory = Memory() if memory is None else memory
    free = memory.free(snapshot) if free is None else free
    problem, changed = _frame(snapshot, policies, free, memory)
    problem = _with_options(problem, memory, changed)
    _weigh_classes(problem, memory)
    if not rows:
        return problem
    limits = (*policies.limits(problem), *budget_limits(problem), *held_limits(problem))
    return _with_rows(problem, memory, limits)


def _frame(snapshot: Snapshot, policies: PolicySet, free: Free, memory: Memory) -> tuple[Problem, IntArray]:
    """Sorted sets, columns, and one node of every class in every pool; and the pools that changed."""
    centers, pools = memory.sorted_places(snapshot)
    classes = tuple(sorted(snapshot.classes, key=lambda c: c.key))
    for one, next_one in itertools.pairwise(classes):
        if one.key == next_one.key:
            raise ValueError(f"class {one.key} occurs twice in snapshot {snapshot.version}")
    world = World(
        centers=centers,
        pools=pools,
        policies=policies,
        asked=policies.depends(snapshot),
        products=snapshot.accelerators,
        minute=snapshot.minute_of_week,
        free=free,
    )
    chooser, columns, changed = memory.look(world)
    fittings = memory.fittings(classes, chooser)
    problem = Problem(
        snapshot=snapshot,
        policies=policies,
        centers=centers,
        pools=pools,
        classes=classes,
        center=memory.center_columns(),
        pool=columns,
        specs=chooser.specs(),  # those of the fittings, too
        fittings=fittings,
        age_s=np.array(AGE_S, dtype=np.int64),
        waiting=_waiting(classes, snapshot.now_ms),
        free=free,
        holdings=holdings(snapshot),
    )
    return problem, changed


def _waiting(classes: tuple[JobClass, ...], now_ms: int) -> IntArray:
    """[K,B] jobs by age.  A job's age is in whole seconds; a job of the future is new."""
    edges = now_ms - np.array([*AGE_S[1:]], dtype=np.int64) * 1000
    older = np.zeros((len(classes), len(AGE_S) + 1), dtype=np.int64)
    for k, job_class in enumerate(classes):
        queue = as_queue(job_class.jobs)
        older[k, 0] = len(queue)
        older[k, 1:-1] = queue.queued_ms.searchsorted(edges, side="right")
    return older[:, :-1] - older[:, 1:]


def _with_options(p: Problem, memory: Memory, changed: IntArray) -> Problem:
    """Codes by the policies, and an option for every class in every pool it may use."""
    blocks = []
    everywhere = np.arange(len(p.pools), dtype=np.int64)
    for k, job_class in enumerate(p.classes):
        block = memory.block(job_class)
        if block is None:
            block = memory.blocks[job_class.key] = _block(p, k, everywhere, None)
        elif len(changed):
            block = memory.blocks[job_class.key] = _block(p, k, changed, block)
        blocks.append(block)
    worth = np.zeros((len(blocks), len(AGE_S)), dtype=np.int64)
    p = replace(p, worth=worth, **memory.options(tuple(blocks), len(p.pools)))
    memory.forget_old()
    return p


def _block(p: Problem, k: int, asked: IntArray, before: Block | None) -> Block:
    """What the policies say of class `k`, asked for some pools; the rest as they said before."""
    fitting = p.fittings[k]
    codes = np.zeros(len(p.pools), dtype=np.int8)
    cost = np.zeros(len(p.pools), dtype=np.int64)
    if before is not None:
        codes[:] = before.codes
        cost[before.pools] = before.cost
    codes[asked] = p.policies.allow(p, k, asked).codes
    allowed = (codes == Code.ALLOWED) & (fitting.tau > 0)
    mine = asked[allowed[asked]]
    # Equal costs are told apart by the order of pools: a micro-CNY per rank.
    cost[mine] = p.policies.cost(p, k, mine) + mine
    pools = np.flatnonzero(allowed)
    return Block(
        job_class=p.classes[k],
        codes=codes,
        pools=pools,
        tau=fitting.tau[pools],
        cost=cost[pools],
        rate=p.job_rate(k, pools),
        by_cost=np.argsort(cost[pools], kind="stable"),
        least_millicards=int(p.job_millicards(k, pools).min()) if len(pools) else 0,
    )


def _weigh_classes(p: Problem, memory: Memory) -> None:
    """Worth by the policies, which may look at the options."""
    for k, job_class in enumerate(p.classes):
        block = memory.blocks[job_class.key]
        known = block.worth
        if known is None:
            known = p.policies.worth(p, k)
            memory.blocks[job_class.key] = replace(block, worth=known)
        p.worth[k] = known
    p.worth[:] = p.policies.multiplied(p, p.worth)


def weigh(p: Problem, classes: tuple[JobClass, ...], memory: Memory) -> IntArray:
    """[K,B] worth of leaving jobs of these classes waiting, of which none waits now.

    `memory` is that of the problem: what it knows of a class is not asked for again.
    """
    worth = np.zeros((len(classes), len(AGE_S)), dtype=np.int64)
    blocks = [memory.block(job_class) for job_class in classes]
    for k, block in enumerate(blocks):
        if block is not None and block.worth is not None:
            worth[k] = block.worth
    unknown = [k for k, block in enumerate(blocks) if block is None or block.worth is None]
    factored = bool(p.policies.factors(p))  # if so, by what all these classes are
    numbers = list(range(len(classes))) if factored else unknown
    if not numbers:
        return worth
    asked = tuple(classes[k] for k in numbers)
    wanted = {spec.id: spec for c in asked if (spec := c.request.spec) is not None}
    known = {
        spec.id: fitting
        for c, fitting in zip(p.classes, p.fittings, strict=True)
        if (spec := c.request.spec) is not None and wanted.get(spec.id) == spec
    }
    if all(c.request.spec is not None and c.request.spec.id in known for c in asked):
        specs, fittings = p.specs, tuple(known[c.request.spec.id] for c in asked if c.request.spec)
    else:
        chooser = Chooser(p.snapshot.accelerators, p.pools, p.pool)
        fittings = tuple(chooser.fitting(c.request) for c in asked)
        specs = chooser.specs()
    part = Problem(
        snapshot=p.snapshot,
        policies=p.policies,
        centers=p.centers,
        pools=p.pools,
        classes=asked,
        center=p.center,
        pool=p.pool,
        specs=specs,
        fittings=fittings,
        age_s=p.age_s,
        waiting=np.zeros((len(asked), len(AGE_S)), dtype=np.int64),
        free=p.free,
        holdings=p.holdings,
    )
    everywhere = np.arange(len(p.pools), dtype=np.int64)
    known_blocks = [blocks[k] or _block(part, n, everywhere, None) for n, k in enumerate(numbers)]
    part = replace(part, **Memory().options(tuple(known_blocks), len(p.pools)))
    for n, (k, block) in enumerate(zip(numbers, known_blocks, strict=True)):
        if block.worth is None:
            worth[k] = asked_for = p.policies.worth(part, n)
            memory.blocks[block.job_class.key] = replace(block, worth=asked_for)
    return p.policies.multiplied(part, worth) if factored else worth


def _with_rows(p: Problem, memory: Memory, limits: tuple[Limit, ...]) -> Problem:
    """Slot rows, in-flight rows, limits; entries by option; upper bounds by all of them."""
    nodes = ints(c.request.nodes for c in p.classes)
    rows = memory.rows(p, nodes, limits)
    row_bound = np.concatenate(
        [
            memory.slot_bounds(p, rows),
            ints(in_flight_room(c) for c in p.centers),
            ints(limit.bound for limit in limits),
        ]
    )
    row_ub = _NONE
    if len(p.option_class):
        row_ub = np.minimum.reduceat(row_bound[rows.entry_row] // rows.entry_coef, rows.entry_first[:-1])
    return replace(
        p,
        ub=np.minimum(p.waiting.sum(axis=1)[p.option_class], row_ub),
        row_ub=row_ub,
        row_pool=rows.row_pool,
        row_name=rows.names,
        row_code=rows.codes,
        row_bound=row_bound,
        entry_first=rows.entry_first,
        entry_row=rows.entry_row,
        entry_coef=rows.entry_coef,
    )


# ---------------------------------------------------------------- the key of a class


def class_key(request: JobRequest, tenant: TenantId, avoid: Iterable[CenterId] = ()) -> str:
    """A short stable name of everything about a job that matters for its placement.

    Name, command, environment and labels do not matter.  Run times share a class within a factor of
    two; what decides where a job may go (the price ceiling per hour, the longest run time) is exact.
    """
    facts: tuple[object, ...] = (
        request.kind.value,
        tuple(sorted(request.centers)),
        request.spec.id if request.spec is not None else request.min_gflops,
        request.nodes,
        request.image_id or bool(request.image_url),
        int(request.tier),
        request.preemptible,
        request.preempt_policy,
        tuple(sorted(request.vip_nodes)),
        request.estimate_s.bit_length(),
        request.estimated_run_time_s is None,  # then its run time is learned another way
        request.max_rate_micro,
        request.max_run_time_s,
        tuple(sorted(request.datasets)),
        tenant,
        tuple(sorted(avoid)),
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=10).hexdigest()
