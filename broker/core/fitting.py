"""One node of a request in every pool: which spec, in slots of what size, at what price.

What belongs here: facts of the centers and pools as columns, and the fitting of a request to them.
What does not: whether a policy allows it and whether there is room (core/problem.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from broker.core.explain import Code
from broker.core.model import (
    Accelerator,
    Accuracy,
    CenterFacts,
    CenterId,
    CenterState,
    Health,
    JobRequest,
    NodeShape,
    Pool,
    Spec,
)
from broker.core.resources import (
    PART_UNITS,
    card_units,
    effective_gflops,
    millicards,
    price_at,
    same_card_memory,
    same_devices,
    slices,
    slot_size,
    unit_count,
)

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
StrArray = npt.NDArray[np.str_]


def ints(values: Iterable[int]) -> IntArray:
    return np.fromiter(values, dtype=np.int64)


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


def center_columns(centers: tuple[CenterFacts, ...]) -> CenterColumns:
    return CenterColumns(
        closed=ints(_closed(c) for c in centers),
        gang=np.array([c.gang for c in centers], dtype=np.bool_),
        services=np.array([c.services for c in centers], dtype=np.bool_),
        max_run_time_s=ints(-1 if c.max_run_time_s is None else c.max_run_time_s for c in centers),
    )


_BY_STATE = {CenterState.INACTIVE: Code.CENTER_INACTIVE, CenterState.DRAIN: Code.CENTER_DRAINING}
_BY_HEALTH = {
    Health.UNKNOWN: Code.CENTER_UNPOLLED,
    Health.DOWN: Code.CENTER_DOWN,
    Health.SUSPECT: Code.CENTER_SUSPECT,
}


def _closed(center: CenterFacts) -> Code:
    """Why a center takes no runs at all; the operator's word comes before what polls say."""
    return _BY_STATE.get(center.state) or _BY_HEALTH.get(center.health, Code.ALLOWED)


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
    card_units: IntArray
    card_permille: IntArray
    split_permille: IntArray


def pool_columns(
    pools: tuple[Pool, ...], centers: tuple[CenterFacts, ...], minute_of_week: int
) -> PoolColumns:
    center_at: dict[CenterId, int] = {center.id: i for i, center in enumerate(centers)}
    return PoolColumns(
        center=ints(center_at[p.center] for p in pools),
        arch=np.array([p.shape.arch for p in pools], dtype=np.str_),
        product=np.array([p.shape.accelerator for p in pools], dtype=np.str_),
        units=ints(unit_count(p.shape) for p in pools),
        cards=ints(p.shape.accelerators for p in pools),
        cores=ints(p.shape.cores for p in pools),
        memory_gib=ints(p.shape.memory_gib for p in pools),
        card_memory_gib=ints(p.shape.accelerator_memory_gib for p in pools),
        nodes=ints(p.nodes for p in pools),
        price=ints(price_at(p.prices, minute_of_week) or 0 for p in pools),
        wait_s=ints(p.expected_wait_s for p in pools),
        unknown=np.array([p.accuracy is Accuracy.UNKNOWN for p in pools], dtype=np.bool_),
        offers=ints(len(p.specs) for p in pools),
        card_units=ints(card_units(p.shape) for p in pools),
        card_permille=ints(p.shape.card_permille for p in pools),
        split_permille=ints(p.shape.split_permille for p in pools),
    )


def repriced(columns: PoolColumns, pools: tuple[Pool, ...], minute_of_week: int) -> PoolColumns:
    """The columns with other facts of the same pools: prices, waits and nodes, never shapes."""
    return replace(
        columns,
        nodes=ints(p.nodes for p in pools),
        price=ints(price_at(p.prices, minute_of_week) or 0 for p in pools),
        wait_s=ints(p.expected_wait_s for p in pools),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Fitting:
    """One node of a class in every pool, whether or not it fits there.

    `spec` indexes Problem.specs; `tau` is the slot in units, 0 where it does not fit; `rate` is
    micro-CNY per hour, `gflops` effective power, both of one node; `permille` is the part of a card
    that each of its devices is; `offered`: the platform's list, if it has one, has the spec.  Where a
    job asks for power, the spec is the smallest that has it, else the strongest there is.

    `notes` are what policies worked out of all this but `rate`, of the wish and of the pools' shapes, by
    the policy's type: a fitting that is priced anew keeps them.
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
    permille: IntArray
    notes: dict[type, Any] = field(default_factory=dict)


def _same_kind(wanted: NodeShape, node: NodeShape) -> bool:
    """Whether architecture, product, memory per device and the size of devices agree."""
    return (
        (wanted.arch, wanted.accelerator) == (node.arch, node.accelerator)
        and same_card_memory(node, wanted)
        and same_devices(node, wanted)
    )


class Chooser:
    """Finds the fitting of a request; equal wishes share one."""

    def __init__(
        self, products: Mapping[str, Accelerator], pools: tuple[Pool, ...], columns: PoolColumns
    ) -> None:
        self._pools = pools
        self._columns = columns
        self._specs: dict[Spec, int] = {}
        self._made: dict[Spec | int, Fitting] = {}
        # Per pool: (GFLOPS, spec) of what it offers and can hold, weakest and smallest first.
        offers = {
            (shape, specs): sorted(
                (
                    (effective_gflops(s.shape, products), s)
                    for s in specs or slices(shape)
                    if _same_kind(s.shape, shape) and slot_size(shape, s.shape)
                ),
                key=lambda o: (o[0], millicards(o[1].shape), o[1].shape, o[1].id),
            )
            for shape, specs in {(p.shape, p.specs) for p in pools}
        }
        self._offers = [offers[p.shape, p.specs] for p in pools]
        self._listed = [frozenset(s.id for s in p.specs) for p in pools]
        self._products = products

    def reprice(self, columns: PoolColumns) -> None:
        """Goes on with other facts of the same pools: prices, waits and nodes, never shapes."""
        self._columns = columns
        for wish, made in self._made.items():
            self._made[wish] = replace(made, rate=_rate(columns, made.cards, made.permille, made.cores))

    def specs(self) -> tuple[Spec, ...]:
        """Specs by their index in `Fitting.spec`."""
        return tuple(self._specs)

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
            which = ints(-1 if s is None else kinds.setdefault(s, len(kinds)) for s in chosen)
            offered = [True] * len(self._pools)

        def of(fact: Callable[[Spec], int], *, none: int = 0) -> IntArray:
            # The last value stands for no spec at all, at index -1.
            return ints([*map(fact, kinds), none])[which]

        cards, cores = of(lambda s: s.shape.accelerators), of(lambda s: s.shape.cores)
        memory, permille = of(lambda s: s.shape.memory_gib), of(lambda s: s.shape.card_permille)
        card_memory = of(lambda s: s.shape.accelerator_memory_gib)
        slots = slot_sizes(c, cards, cores, memory, permille=permille, card_memory_gib=card_memory)
        return Fitting(
            spec=of(lambda s: self._specs.setdefault(s, len(self._specs)), none=-1),
            cards=cards,
            cores=cores,
            memory_gib=memory,
            gflops=of(lambda s: effective_gflops(s.shape, self._products)),
            millicards=of(lambda s: millicards(s.shape)),
            rate=_rate(c, cards, permille, cores),
            tau=np.where(which >= 0, slots, 0),
            offered=np.array(offered, dtype=np.bool_),
            permille=permille,
        )


def _rate(c: PoolColumns, cards: IntArray, permille: IntArray, cores: IntArray) -> IntArray:
    """resources.rate_micro_per_hour of one node."""
    return np.where(c.cards > 0, c.price * cards * permille // 1000, c.price * cores)


def slot_sizes(
    c: PoolColumns,
    cards: IntArray,
    cores: IntArray,
    memory_gib: IntArray,
    *,
    permille: IntArray,
    card_memory_gib: IntArray,
) -> IntArray:
    """resources.slot_size for one wish per pool: units of a node, 0 where it does not fit."""
    part = (cards > 0) & (c.split_permille > 0) & (permille < c.card_permille)
    memory_permille = np.where(
        c.card_memory_gib > 0, -(-card_memory_gib * 1000 // np.maximum(c.card_memory_gib, 1)), 0
    )
    of_card = -(-np.maximum(permille, memory_permille) * PART_UNITS // 1000)
    share = np.maximum(np.where(part, of_card, cards * c.card_units), 1)
    for wanted, full in ((cores, c.cores), (memory_gib, c.memory_gib)):
        share = np.maximum(share, -(-wanted * c.units // np.maximum(full, 1)))
    powers = np.int64(1) << np.arange(40, dtype=np.int64)
    tau = np.minimum(powers[np.searchsorted(powers, np.minimum(share, c.units))], c.units)
    fits = (cards <= c.cards) & (cores <= c.cores) & (memory_gib <= c.memory_gib)
    granted = part & (cards == 1) & (permille % np.maximum(c.split_permille, 1) == 0)
    fits &= (cards == 0) | (permille == c.card_permille) | granted
    return np.where(fits, tau, 0)
