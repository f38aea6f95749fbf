"""A snapshot and its policies as arrays: classes of jobs, pools, options, rows.

What belongs here: which class may use which pool (options), in slots of what size, at what cost, and
the rows that bind them: slots, in-flight room, limits.  What does not: choosing (greedy, solver).

Sets.  Classes, pools and centers are sorted by key and id, so the order in the snapshot does not
matter.  An option is a class in a pool it may use.  A started job takes `nodes` slots of `tau`
units of one pool; the slots of a gang may share a node.

Slot rows.  For every slot size t in use in a pool, the slots of at least t units that are taken,
each counted as floor(tau / t), are at most the sum over nodes of floor(units / t).  Sizes are powers
of two and the whole node, so these rows hold exactly when first-fit decreasing packs all slots.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from broker.core.explain import Code
from broker.core.model import (
    Accuracy,
    CenterFacts,
    CenterId,
    CenterState,
    Health,
    JobClass,
    JobRequest,
    NodeShape,
    Pool,
    Snapshot,
    Spec,
    TenantId,
)
from broker.core.policy import Limit, PolicySet
from broker.core.resources import effective_gflops, millicards, price_at, slices, slot_size, unit_count
from broker.core.snapshot import Free, effective_free, in_flight_room, supply

if TYPE_CHECKING:
    from broker.core.plan import Placement

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
StrArray = npt.NDArray[np.str_]

AGE_S = (0, 60, 300, 900, 3600, 14_400, 86_400)
"""Lower edges of the age buckets, seconds."""

_NONE = np.zeros(0, dtype=np.int64)


def _ints(values: Iterable[int]) -> IntArray:
    return np.fromiter(values, dtype=np.int64)


def _exact_dot(prices: IntArray, counts: IntArray) -> int:
    return sum(int(price) * int(n) for price, n in zip(prices, counts, strict=True) if n)


@dataclass(frozen=True, slots=True, eq=False)
class PoolColumns:
    """Facts of the pools, one row each.  `units`, cards, cores and memory are per node.

    `center` indexes Problem.centers; `price` is micro-CNY per card-hour (core-hour without cards) at
    this minute, 0 without a price; `offers` counts the specs the platform lists, 0: it has no list.
    """

    center: IntArray
    arch: StrArray
    product: StrArray
    units: IntArray
    cards: IntArray
    cores: IntArray
    memory_gib: IntArray
    card_memory_gib: IntArray
    nodes: IntArray
    price: IntArray
    wait_s: IntArray
    unknown: BoolArray
    offers: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class CenterColumns:
    """Facts of the centers, one row each.

    `closed` is the code of its state and health, 0 where it takes runs; `max_run_time_s` is -1
    without a limit.
    """

    closed: IntArray
    gang: BoolArray
    services: BoolArray
    max_run_time_s: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Fitting:
    """One node of a class in every pool, whether or not it fits there.

    `spec` indexes Problem.specs; `tau` is the slot in units, 0 where it does not fit; `rate` is
    micro-CNY per hour, `gflops` effective power, both of one node; `offered`: the platform's list, if
    it has one, has the spec.  Where a job asks for power, the spec is the smallest that has it, else
    the strongest there is.
    """

    spec: IntArray
    cards: IntArray
    cores: IntArray
    memory_gib: IntArray
    gflops: IntArray
    millicards: IntArray
    rate: IntArray
    tau: IntArray
    offered: BoolArray


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
    codes: IntArray = field(default_factory=lambda: _NONE)  # [K,P] explain.Code, 0: allowed
    first: IntArray = field(default_factory=lambda: _NONE)  # [K+1]
    option_class: IntArray = field(default_factory=lambda: _NONE)
    option_pool: IntArray = field(default_factory=lambda: _NONE)
    tau: IntArray = field(default_factory=lambda: _NONE)  # units per node of the job
    cost: IntArray = field(default_factory=lambda: _NONE)  # per job
    rate: IntArray = field(default_factory=lambda: _NONE)  # per job and hour, prices alone
    ub: IntArray = field(default_factory=lambda: _NONE)  # jobs at most, tightened by every row
    worth: IntArray = field(default_factory=lambda: _NONE)  # [K,B] of leaving a job waiting
    row_name: tuple[str, ...] = ()
    row_code: IntArray = field(default_factory=lambda: _NONE)
    row_bound: IntArray = field(default_factory=lambda: _NONE)
    entry_first: IntArray = field(default_factory=lambda: _NONE)  # [J+1]
    entry_row: IntArray = field(default_factory=lambda: _NONE)
    entry_coef: IntArray = field(default_factory=lambda: _NONE)

    def job_rate(self, k: int, pools: IntArray) -> IntArray:
        """Micro-CNY per hour of one job of class `k` in these pools."""
        return self.fittings[k].rate[pools] * self.classes[k].request.nodes

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
        np.add.at(taken, self.entry_row, self.entry_coef * np.repeat(y, np.diff(self.entry_first)))
        return taken

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
        served: IntArray = np.clip(self.started(y)[:, None] - before, 0, oldest_first)
        return self.waiting - served[:, ::-1]

    def objective(self, y: IntArray) -> int:
        """Cost of what starts plus worth of what waits; exact, since sums may exceed int64."""
        return _exact_dot(self.cost, y) + _exact_dot(self.worth.ravel(), self.unserved(y).ravel())

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


def build(snapshot: Snapshot, policies: PolicySet, free: Free | None = None) -> Problem:
    """The problem of a snapshot; `free` is its effective free capacity, where it is at hand already.

    Raises ValueError when two classes have one key.
    """
    free = effective_free(snapshot) if free is None else free
    problem = _frame(snapshot, policies)
    problem = _with_options(problem)
    worth = [policies.worth(problem, k) for k in range(len(problem.classes))]
    problem = replace(problem, worth=np.array(worth, dtype=np.int64).reshape(-1, len(AGE_S)))
    return _with_rows(problem, free, policies.limits(problem))


def _frame(snapshot: Snapshot, policies: PolicySet) -> Problem:
    """Sorted sets, columns, and one node of every class in every pool."""
    centers = tuple(sorted(snapshot.centers, key=lambda c: c.id))
    center_at = {center.id: i for i, center in enumerate(centers)}
    pools = tuple(sorted((p for p in snapshot.pools if p.center in center_at), key=lambda p: p.id))
    classes = tuple(sorted(snapshot.classes, key=lambda c: c.key))
    for one, next_one in itertools.pairwise(classes):
        if one.key == next_one.key:
            raise ValueError(f"class {one.key} occurs twice in snapshot {snapshot.version}")
    columns = _columns(pools, center_at, snapshot.minute_of_week)
    specs: dict[Spec, int] = {}
    chooser = _Chooser(snapshot, pools, columns, specs)
    fittings = tuple(chooser.fitting(c.request) for c in classes)
    ages = np.array(AGE_S, dtype=np.int64)
    waiting = np.zeros((len(classes), len(AGE_S)), dtype=np.int64)
    for k, job_class in enumerate(classes):
        age_s = np.maximum(0, snapshot.now_ms - _ints(j.queued_ms for j in job_class.jobs)) // 1000
        waiting[k] = np.bincount(np.searchsorted(ages, age_s, side="right") - 1, minlength=len(AGE_S))
    return Problem(
        snapshot=snapshot,
        policies=policies,
        centers=centers,
        pools=pools,
        classes=classes,
        center=CenterColumns(
            closed=_ints(_closed(c) for c in centers),
            gang=np.array([c.gang for c in centers], dtype=np.bool_),
            services=np.array([c.services for c in centers], dtype=np.bool_),
            max_run_time_s=_ints(-1 if c.max_run_time_s is None else c.max_run_time_s for c in centers),
        ),
        pool=columns,
        specs=tuple(specs),
        fittings=fittings,
        age_s=ages,
        waiting=waiting,
    )


def _closed(center: CenterFacts) -> Code:
    """Why a center takes no runs at all; the operator's word comes before what polls say."""
    by_state = {CenterState.INACTIVE: Code.CENTER_INACTIVE, CenterState.DRAIN: Code.CENTER_DRAINING}
    by_health = {
        Health.UNKNOWN: Code.CENTER_UNPOLLED,
        Health.DOWN: Code.CENTER_DOWN,
        Health.SUSPECT: Code.CENTER_SUSPECT,
    }
    return by_state.get(center.state) or by_health.get(center.health, Code.ALLOWED)


def _columns(pools: tuple[Pool, ...], center_at: dict[CenterId, int], minute_of_week: int) -> PoolColumns:
    return PoolColumns(
        center=_ints(center_at[p.center] for p in pools),
        arch=np.array([p.shape.arch for p in pools], dtype=np.str_),
        product=np.array([p.shape.accelerator for p in pools], dtype=np.str_),
        units=_ints(unit_count(p.shape) for p in pools),
        cards=_ints(p.shape.accelerators for p in pools),
        cores=_ints(p.shape.cores for p in pools),
        memory_gib=_ints(p.shape.memory_gib for p in pools),
        card_memory_gib=_ints(p.shape.accelerator_memory_gib for p in pools),
        nodes=_ints(p.nodes for p in pools),
        price=_ints(price_at(p.prices, minute_of_week) or 0 for p in pools),
        wait_s=_ints(p.expected_wait_s for p in pools),
        unknown=np.array([p.accuracy is Accuracy.UNKNOWN for p in pools], dtype=np.bool_),
        offers=_ints(len(p.specs) for p in pools),
    )


def _same_kind(wanted: NodeShape, node: NodeShape) -> bool:
    """Whether architecture, product and memory per card agree exactly."""
    return (wanted.arch, wanted.accelerator) == (node.arch, node.accelerator) and (
        not wanted.accelerators or wanted.accelerator_memory_gib == node.accelerator_memory_gib
    )


class _Chooser:
    """Finds the fitting of a request; equal wishes share one."""

    def __init__(
        self, snapshot: Snapshot, pools: tuple[Pool, ...], columns: PoolColumns, specs: dict[Spec, int]
    ) -> None:
        self._pools = pools
        self._columns = columns
        self._specs = specs
        self._made: dict[Spec | int, Fitting] = {}
        products = snapshot.accelerators
        # Per pool: (GFLOPS, spec) of what it offers and can hold, weakest and smallest first.
        offers = {
            (p.shape, p.specs): sorted(
                (
                    (effective_gflops(s.shape, products), s)
                    for s in p.specs or slices(p.shape)
                    if _same_kind(s.shape, p.shape) and slot_size(p.shape, s.shape)
                ),
                key=lambda o: (o[0], millicards(o[1].shape), o[1].shape, o[1].id),
            )
            for p in pools
        }
        self._offers = [offers[p.shape, p.specs] for p in pools]
        self._listed = [frozenset(s.id for s in p.specs) for p in pools]
        self._products = products

    def fitting(self, request: JobRequest) -> Fitting:
        wish: Spec | int = request.spec if request.spec is not None else request.min_gflops
        if wish not in self._made:
            self._made[wish] = self._fit(wish)
        return self._made[wish]

    def _fit(self, wish: Spec | int) -> Fitting:
        c = self._columns
        kinds: dict[Spec, int] = {}
        if isinstance(wish, Spec):
            kinds[wish] = 0
            which = np.zeros(len(self._pools), dtype=np.int64)
            offered = [not ids or wish.id in ids for ids in self._listed]
        else:
            chosen = [
                next((s for power, s in offers if power >= wish), offers[-1][1] if offers else None)
                for offers in self._offers
            ]
            which = _ints(-1 if s is None else kinds.setdefault(s, len(kinds)) for s in chosen)
            offered = [True] * len(self._pools)

        def of(fact: Callable[[Spec], int], *, none: int = 0) -> IntArray:
            # The last value stands for no spec at all, at index -1.
            return _ints([*map(fact, kinds), none])[which]

        cards, cores = of(lambda s: s.shape.accelerators), of(lambda s: s.shape.cores)
        memory = of(lambda s: s.shape.memory_gib)
        return Fitting(
            spec=of(lambda s: self._specs.setdefault(s, len(self._specs)), none=-1),
            cards=cards,
            cores=cores,
            memory_gib=memory,
            gflops=of(lambda s: effective_gflops(s.shape, self._products)),
            millicards=of(lambda s: millicards(s.shape)),
            rate=np.where(c.cards > 0, cards, cores) * c.price,
            tau=np.where(which >= 0, slot_sizes(c, cards, cores, memory), 0),
            offered=np.array(offered, dtype=np.bool_),
        )


def slot_sizes(c: PoolColumns, cards: IntArray, cores: IntArray, memory_gib: IntArray) -> IntArray:
    """resources.slot_size for one wish per pool: units of a node, 0 where it does not fit."""
    share = np.maximum(cards, 1)
    for wanted, full in ((cores, c.cores), (memory_gib, c.memory_gib)):
        share = np.maximum(share, -(-wanted * c.units // np.maximum(full, 1)))
    powers = np.int64(1) << np.arange(40, dtype=np.int64)
    tau = np.minimum(powers[np.searchsorted(powers, np.minimum(share, c.units))], c.units)
    fits = (cards <= c.cards) & (cores <= c.cores) & (memory_gib <= c.memory_gib)
    return np.where(fits, tau, 0)


def _with_options(p: Problem) -> Problem:
    """Codes by the policies, and an option for every class in every pool it may use."""
    everywhere = np.arange(len(p.pools), dtype=np.int64)
    codes = np.zeros((len(p.classes), len(p.pools)), dtype=np.int64)
    columns: dict[str, list[IntArray]] = {name: [_NONE] for name in ("pool", "tau", "cost", "rate")}
    sizes = [0]
    for k, fitting in enumerate(p.fittings):
        codes[k] = p.policies.allow(p, k, everywhere).codes
        pools = np.flatnonzero((codes[k] == Code.ALLOWED) & (fitting.tau > 0))
        columns["pool"].append(pools)
        columns["tau"].append(fitting.tau[pools])
        # Equal costs are told apart by the order of pools: a micro-CNY per rank.
        columns["cost"].append(p.policies.cost(p, k, pools) + pools)
        columns["rate"].append(p.job_rate(k, pools))
        sizes.append(len(pools))
    return replace(
        p,
        codes=codes,
        first=np.cumsum(np.array(sizes, dtype=np.int64)),
        option_class=np.repeat(np.arange(len(p.classes), dtype=np.int64), sizes[1:]),
        option_pool=np.concatenate(columns["pool"]),
        tau=np.concatenate(columns["tau"]),
        cost=np.concatenate(columns["cost"]),
        rate=np.concatenate(columns["rate"]),
    )


_ROW_KEY = 1 << 24  # more than any node has units


def _with_rows(p: Problem, free: Free, limits: tuple[Limit, ...]) -> Problem:
    """Slot rows, in-flight rows, limits; entries by option; upper bounds by all of them."""
    options = np.arange(len(p.option_class), dtype=np.int64)
    nodes = _ints(c.request.nodes for c in p.classes)[p.option_class]
    # 1 slot rows: one per pool and slot size in use there; an option is in those up to its own size
    slotted = ~p.pool.unknown[p.option_pool]
    keys, own = np.unique((p.option_pool * _ROW_KEY + p.tau)[slotted], return_inverse=True)
    row_pool, row_size = keys // _ROW_KEY, keys % _ROW_KEY
    smallest = np.searchsorted(row_pool, p.option_pool[slotted])
    spans = own - smallest + 1
    slot_option = np.repeat(options[slotted], spans)
    within = np.arange(len(slot_option), dtype=np.int64) - np.repeat(np.cumsum(spans) - spans, spans)
    slot_row = np.repeat(smallest, spans) + within
    slot_coef = nodes[slot_option] * (p.tau[slot_option] // row_size[slot_row])
    names = [f"slots:{p.pools[i].id}:{t}" for i, t in zip(row_pool.tolist(), row_size.tolist(), strict=True)]
    bounds = [
        supply(p.pools[i].shape, free[p.pools[i].id], t)
        for i, t in zip(row_pool.tolist(), row_size.tolist(), strict=True)
    ]
    # 2 in-flight rows, one per center
    in_flight_row = len(names) + p.pool.center[p.option_pool]
    names += [f"in-flight:{c.id}" for c in p.centers]
    bounds += [in_flight_room(c) for c in p.centers]
    # 3 limits
    limit_row = [np.full(len(x.options), len(names) + i, dtype=np.int64) for i, x in enumerate(limits)]
    names += [f"limit:{x.name}" for x in limits]
    bounds += [x.bound for x in limits]
    codes = [Code.CAPACITY] * len(keys) + [Code.IN_FLIGHT] * len(p.centers) + [x.code for x in limits]
    # 4 entries, sorted by option; the sort is stable, so slot rows stay first
    entry_option = np.concatenate([slot_option, options, *(x.options for x in limits)])
    entry_row = np.concatenate([slot_row, in_flight_row, *limit_row])
    entry_coef = np.concatenate([slot_coef, np.ones_like(options), *(x.coefficients for x in limits)])
    order = np.argsort(entry_option, kind="stable")
    entry_row, entry_coef = entry_row[order], entry_coef[order]
    entry_first = np.searchsorted(entry_option[order], np.arange(len(options) + 1))
    row_bound = np.array(bounds, dtype=np.int64)
    # 5 upper bounds
    ub = p.waiting.sum(axis=1)[p.option_class]
    if len(options):
        ub = np.minimum(ub, np.minimum.reduceat(row_bound[entry_row] // entry_coef, entry_first[:-1]))
    return replace(
        p,
        ub=ub,
        row_name=tuple(names),
        row_code=np.array(codes, dtype=np.int64),
        row_bound=row_bound,
        entry_first=entry_first.astype(np.int64),
        entry_row=entry_row,
        entry_coef=entry_coef,
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
        request.max_rate_micro,
        request.max_run_time_s,
        tuple(sorted(request.datasets)),
        tenant,
        tuple(sorted(avoid)),
    )
    return hashlib.blake2b(repr(facts).encode(), digest_size=10).hexdigest()
